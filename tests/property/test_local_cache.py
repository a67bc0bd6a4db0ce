"""L1 against a list in the order of use, whatever is stored, read and waited for in between."""

from __future__ import annotations

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.stages.local_cache import _ENTRY_BYTES, Store
from tests.unit.queries import answer

MOST_BYTES = 40_000
# A key's answers are all of one size; the last is larger than what one answer may take.
SIZES = [2, 100, 1000, 2000, 3000, MOST_BYTES // 8 - _ENTRY_BYTES, MOST_BYTES // 8]
NUMBERS = st.integers(0, 13)


class LeastRecentlyUsed(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.store = Store(MOST_BYTES, lambda: self.now)
        # From the least recently used: number of the key, hits, and when they are too old.
        self.kept: list[tuple[int, bytes, float]] = []
        self.texts = count()
        self.hits = self.misses = 0

    @rule(number=NUMBERS, ttl=st.sampled_from([-1.0, 0.0, 0.5, 3.0, 60.0]))
    def put(self, number: int, ttl: float) -> None:
        size = SIZES[number % len(SIZES)]
        hits = f"{next(self.texts):>{size}}"[-size:].encode()
        self.store.put(self.key(number), answer(hits.decode()), ttl)
        if ttl <= 0 or _ENTRY_BYTES + size > MOST_BYTES // 8:
            return
        self.kept = [entry for entry in self.kept if entry[0] != number]
        self.kept.append((number, hits, self.now + ttl))
        while self.bytes() > MOST_BYTES:
            self.kept.pop(0)

    @rule(number=NUMBERS)
    def get(self, number: int) -> None:
        found = self.store.get(self.key(number))
        entry = next((entry for entry in self.kept if entry[0] == number), None)
        if entry is None:
            assert found is None
            self.misses += 1
        else:
            assert found is not None and bytes(found.hits) == entry[1]
            self.hits += 1
            self.kept.remove(entry)
            self.kept.append(entry)

    @rule(seconds=st.sampled_from([0.25, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.kept = [entry for entry in self.kept if entry[2] > self.now]

    @invariant()
    def holds_what_fits(self) -> None:
        assert (len(self.store), self.store.size_bytes) == (len(self.kept), self.bytes())
        assert (self.store.hits, self.store.misses) == (self.hits, self.misses)

    def bytes(self) -> int:
        return sum(_ENTRY_BYTES + len(hits) for _, hits, _ in self.kept)

    def key(self, number: int) -> tuple[str, str, int, bytes]:
        return ("docs", "map", number // len(SIZES), bytes([number % len(SIZES)]))


TestLeastRecentlyUsed = LeastRecentlyUsed.TestCase
TestLeastRecentlyUsed.settings = settings(max_examples=60, stateful_step_count=60)
