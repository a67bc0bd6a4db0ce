"""What extended statistics say of equalities with several columns.

The arithmetic is that of PostgreSQL's planner (src/backend/statistics/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

from router.query.statistics import CombinedStatistics

__all__ = ["together"]


def together(
    alone: dict[str, float], keys: Mapping[str, Sequence[object]], combined: Sequence[CombinedStatistics]
) -> float:
    """statext_clauselist_selectivity: by the columns' common combinations, then by what decides what.

    `alone` are the shares of equalities with these columns; it is used up.
    """
    share = 1.0
    for known in combined:
        if known.common and len(alone) > 1 and all(map(alone.__contains__, known.columns)):
            values = [keys[name] for name in known.columns]
            share *= _by_combinations(known, values, [alone.pop(name) for name in known.columns])
    for known in combined:
        names = {*alone}
        for given, decided, degree in known.dependencies if len(names) > 1 else ():
            if decided in names and given <= names:
                # clauselist_apply_dependencies
                before, after = prod([alone[name] for name in given]), alone.pop(decided)
                implied = degree if before <= after else degree * after / before
                share *= implied + (1.0 - degree) * after
                names.discard(decided)
    return min(share * prod(alone.values()), 1.0)


def _by_combinations(
    known: CombinedStatistics, keys: Sequence[Sequence[object]], alone: Sequence[float]
) -> float:
    """mcv_combine_selectivities: the combinations that match, and what the columns say of the others."""
    common = known.common
    if prod(map(len, keys)) <= len(common):
        found = [common[one] for one in product(*keys) if one in common]
    else:
        sets = [set(some) for some in keys]
        found = [shares for one, shares in common.items() if all(map(set.__contains__, sets, one))]
    share = independent = 0.0
    for actual, as_if in found:
        share += actual
        independent += as_if
    others = prod(alone) - independent
    return share + min(others, known.others) if others > 0.0 else share
