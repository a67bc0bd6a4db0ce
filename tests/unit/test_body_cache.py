from __future__ import annotations

import msgspec

from router.http.body_cache import BodyCache, CheckedSearch
from tests.unit.queries import collection, query


def checked(documents: object = None, **changes: object) -> CheckedSearch:
    return CheckedSearch(query(documents, **changes), 1.0, reusable=True)  # type: ignore[arg-type]


def test_a_body_means_the_same_for_the_same_collection_alone() -> None:
    cache = BodyCache(1 << 20)
    one, other = collection(), collection(name="others")
    cache.put(b"{}", checked(one, k=1))
    assert cache.get(other, b"{}") is None
    cache.put(b"{}", checked(other, k=2))
    # Neither takes the other's place.
    first, second = cache.get(one, b"{}"), cache.get(other, b"{}")
    assert first is not None and second is not None
    assert (first.query.k, second.query.k, len(cache)) == (1, 2, 2)


def test_a_new_map_has_collections_that_the_old_ones_bodies_say_nothing_of() -> None:
    cache = BodyCache(1 << 20)
    old = collection()
    cache.put(b"{}", checked(old))
    size = cache.size_bytes
    new = msgspec.structs.replace(old)
    assert old == new and cache.get(new, b"{}") is None
    cache.put(b"{}", checked(new))
    assert cache.get(new, b"{}") is not None and cache.get(old, b"{}") is None
    assert (len(cache), cache.size_bytes) == (1, size)


def test_the_oldest_make_room_and_what_is_too_large_is_not_kept() -> None:
    cache, documents = BodyCache(10_000), collection()
    for number in range(100):
        cache.put(b"%d" % number, checked(documents))
        assert cache.size_bytes <= 10_000
    assert 0 < len(cache) < 100
    assert cache.get(documents, b"99") is not None and cache.get(documents, b"0") is None
    before = repr(cache)
    cache.put(b"x" * 4000, checked(documents))
    assert repr(cache) == before
