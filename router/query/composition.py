"""What a search consists of beyond one ranked list: its legs, and the steps that follow them. Pure values.

Each leg is a ranked list of its own: by nearness or by words, with a filter of its own if it likes. Lists are
fused into one, the best of which may be re-ranked by a model, diversified and grouped, in this order. What
came of each step is told in the answer's `Account`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from router.query.filter import Field, Filter

__all__ = [
    "Account",
    "Composition",
    "Diversity",
    "Fusion",
    "FusionMethod",
    "Group",
    "GroupBy",
    "Leg",
    "LegAccount",
    "Match",
    "Mode",
    "Rerank",
    "StepAccount",
]


class Mode(StrEnum):
    VECTOR = "vector"
    FULLTEXT = "fulltext"


class Match(StrEnum):
    """Which of a text's words a row must hold: every one, or at least one, those with more of them first."""

    ALL = "all"
    ANY = "any"


class FusionMethod(StrEnum):
    """How ranked lists become one: by reciprocal ranks, or by scores scaled to 0..1 in each list."""

    RRF = "rrf"
    SCORES = "scores"


class Leg(msgspec.Struct, frozen=True):
    """One ranked list that is asked for.

    Attributes:
        name: what the answer calls it; distinct within a search.
        vector: as of `SearchQuery`, where the mode is `VECTOR`.
        words: where it is `FULLTEXT`; `match` says which of them must be there.
        filter: what its rows match beside the search's own filter.
        without: ids that are left out: those of the examples of a search for more like them.
        missing: why it cannot be asked for, if it cannot: its text has no vector now.
    """

    name: str
    mode: Mode
    vector: bytes = b""
    words: str | None = None
    match: Match = Match.ALL
    weight: float = 1.0
    filter: Filter | None = None
    without: tuple[object, ...] = ()
    missing: str | None = None


class Fusion(msgspec.Struct, frozen=True):
    """`k` is that of reciprocal rank fusion: the larger, the less the first ranks count."""

    method: FusionMethod = FusionMethod.RRF
    k: float = 60.0


class Rerank(msgspec.Struct, frozen=True):
    """Order the best `candidates` by what `model`, one of the map's rerankers, says of them and `text`."""

    model: str
    text: str
    candidates: int = 50


class Diversity(msgspec.Struct, frozen=True):
    """Choose among the best `candidates` by maximal marginal relevance; `weight` 1 is relevance alone."""

    weight: float = 0.5
    candidates: int = 50


class GroupBy(msgspec.Struct, frozen=True):
    """k groups by the value of `field`, a column or a path into the metadata, of up to `size` hits each."""

    field: Field
    size: int = 1


class Composition(msgspec.Struct, frozen=True):
    """What is done beyond one plain search; `candidates` is how deep each leg goes."""

    legs: tuple[Leg, ...]
    candidates: int = 50
    fusion: Fusion = Fusion()
    rerank: Rerank | None = None
    diversity: Diversity | None = None
    group_by: GroupBy | None = None


class LegAccount(msgspec.Struct, frozen=True, omit_defaults=True):
    """`candidates` were asked for, and `returned` came; `error` says why a leg is missing altogether.

    `no_words`: its text holds nothing to search for.
    """

    name: str
    mode: Mode
    weight: float
    candidates: int
    returned: int
    error: str | None = None
    no_words: bool = False


class StepAccount(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a step: whether it was `done`, on how many candidates, and if not, why."""

    done: bool
    candidates: int = 0
    reason: str | None = None


class Group(msgspec.Struct, frozen=True):
    """`value` is JSON. `full`: no row of this value is missing among its hits, up to the size asked for."""

    value: bytes
    hits: int
    full: bool


class Account(msgspec.Struct, frozen=True):
    """What was done beside searching; each becomes a member of the answer if it is there."""

    legs: tuple[LegAccount, ...] = ()
    rerank: StepAccount | None = None
    diversity: StepAccount | None = None
    groups: tuple[Group, ...] | None = None
