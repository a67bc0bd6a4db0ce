"""What a search's body asks to be done with its ranked lists: to fuse, re-rank, diversify and group them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from msgspec import UNSET, UnsetType

from router.decode.bodies import GroupByBody, SearchBody
from router.decode.lists import weight_problem
from router.decode.queries import check_text
from router.query.composition import (
    Composition,
    Diversity,
    Fusion,
    FusionMethod,
    GroupBy,
    Leg,
    Rerank,
)
from router.query.errors import InvalidError, Problem
from router.query.filter import field_of
from router.settings import Settings
from shard_config.model import Collection
from shard_config.values import shown

__all__ = ["StepReader"]

_CANDIDATES = 50
_MOST_FUSION_K = 10_000.0


class StepReader:
    """Reads the steps of one body; adds to `problems`."""

    def __init__(
        self,
        body: SearchBody,
        collection: Collection,
        limits: Settings,
        prefix: str,
        problems: list[Problem],
    ) -> None:
        self.problems = problems
        self._body = body
        self._collection = collection
        self._limits = limits
        self._prefix = prefix

    def composition(self, legs: Sequence[Leg], rerankers: Container[str]) -> Composition | None:
        """What is to be done beside one plain search, if anything is."""
        body, end = self._body, self._body.offset + self._body.k
        fusion = self._fusion(legs)
        rerank = self._rerank(rerankers)
        diversity = self._diversity()
        group_by = None if body.group_by is UNSET else self._group_by(body.group_by)
        several = len(legs) > 1
        if several or rerank or diversity or group_by:
            wanted = _CANDIDATES if body.candidates is UNSET else body.candidates
            depth = max(wanted, end)
            for step in (rerank, diversity):
                depth = max(depth, 0 if step is None else step.candidates)
            self._check_count("candidates", wanted, self._limits.max_candidates, "max_candidates")
        else:
            depth = end
            if body.candidates is not UNSET:
                self._wrong("candidates", "nothing is fused, re-ranked, diversified or grouped")
            if not any(leg.without for leg in legs):
                return None
        if end > self._limits.max_candidates:
            self._wrong(
                "offset" if body.offset else "k",
                f"offset + k = {_digits(end)} exceeds {self._limits.max_candidates} (max_candidates), the"
                " most rows of a list that is fused, re-ranked, diversified, grouped, or lacks examples",
            )
        return Composition(tuple(legs), depth, fusion, rerank, diversity, group_by)

    def _fusion(self, legs: Sequence[Leg]) -> Fusion:
        given = self._body.fusion
        if given is UNSET:
            return Fusion()
        if len(legs) == 1:
            self._wrong("fusion", "a search of one list has nothing to fuse")
        if not 0 <= given.k <= _MOST_FUSION_K:
            self._wrong("fusion.k", f"k={given.k:g} is not between 0 and {_MOST_FUSION_K:g}")
        if given.weights and self._body.queries is not UNSET:
            self._wrong("fusion.weights", "each of `queries` has a weight of its own")
        elif given.weights and legs:
            names = [leg.name for leg in legs]
            for name, weight in given.weights.items():
                if name in names:
                    if (problem := weight_problem(weight)) is not None:
                        self._wrong(f"fusion.weights.{name}", problem)
                else:
                    self._wrong(f"fusion.weights.{name[:80]}", f"unknown list; there are {', '.join(names)}")
            if not any(leg.weight > 0 for leg in legs):
                self._wrong("fusion.weights", "no weight is above 0")
        return Fusion(FusionMethod(given.method), given.k)

    def _rerank(self, rerankers: Container[str]) -> Rerank | None:
        given = self._body.rerank
        if given is UNSET:
            return None
        if given.model not in rerankers:
            names = ", ".join(sorted(rerankers)) if isinstance(rerankers, Mapping) else ""
            there = f"it has {names}" if names else "it has none"
            self._wrong("rerank.model", f"no re-ranker {shown(given.model)} in the shard map; {there}")
        if self._collection.content is None and self._collection.template is None:
            self._wrong("rerank", f"documents of {self._collection.name} have no content to compare with")
        self._check_count("rerank.candidates", given.candidates, self._limits.max_rerank, "max_rerank")
        return Rerank(given.model, self._compared_with(given.text), given.candidates)

    def _compared_with(self, text: str | UnsetType) -> str:
        """What re-ranking compares documents with."""
        body = self._body
        if text is not UNSET:
            return check_text(text, f"{self._prefix}rerank.text", self.problems)
        if body.text is not UNSET:
            return body.text
        queries = [] if body.queries is UNSET else body.queries
        texts = {query.text for query in queries if query.text is not UNSET}
        if len(texts) == 1:
            return str(texts.pop())
        which = "several texts" if texts else "no text"
        self._wrong("rerank.text", f"required, since the search has {which}")
        return ""

    def _diversity(self) -> Diversity | None:
        given = self._body.diversity
        if given is UNSET:
            return None
        if not 0 <= given.weight <= 1:
            self._wrong("diversity.lambda", f"lambda={given.weight:g} is not between 0 and 1")
        most = self._limits.max_candidates
        self._check_count("diversity.candidates", given.candidates, most, "max_candidates")
        return Diversity(given.weight, given.candidates)

    def _group_by(self, given: GroupByBody) -> GroupBy | None:
        most = self._collection.search.max_k
        if given.size < 1:
            self._wrong("group_by.size", f"size={_digits(given.size)} is below 1")
        elif given.size * max(self._body.k, 1) > most:
            self._wrong(
                "group_by.size",
                f"k groups of {_digits(given.size)} exceed {most} hits for {self._collection.name}",
            )
        path = f"{self._prefix}group_by.field"
        if given.field in ("id", "content"):
            self._wrong("group_by.field", f"{given.field} is no field that documents share")
            return None
        try:
            return GroupBy(field_of(self._collection, given.field, self._limits, path), given.size)
        except InvalidError as exc:
            self.problems.extend(exc.problems)
            return None

    def _check_count(self, path: str, value: int, most: int, setting: str) -> None:
        if not 1 <= value <= most:
            name = path.rpartition(".")[2]
            self._wrong(path, f"{name}={_digits(value)} is not between 1 and {most} ({setting})")

    def _wrong(self, path: str, message: str) -> None:
        self.problems.append(Problem(f"{self._prefix}{path}", message))


def _digits(value: int) -> str:
    """Python refuses to write out integers of more than 4300 digits."""
    return str(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"
