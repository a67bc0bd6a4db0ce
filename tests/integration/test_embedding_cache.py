"""Vectors of texts in a real Redis: shared by routers, refused when wrong, and missed by nobody when away."""

from __future__ import annotations

import asyncio

from deploy.local import Cluster
from router.freshness.redis_link import RedisLink
from router.models.embedding import Embeddings
from router.settings import Settings
from tests.unit.fake_services import FakeService, bytes_of


def soon() -> float:
    return asyncio.get_running_loop().time() + 30


async def stored(made: Embeddings) -> None:
    await asyncio.gather(*made._cache._stores)


def test_a_vector_that_one_router_asked_for_another_finds_in_redis(cluster: Cluster) -> None:
    async def test() -> None:
        links = [RedisLink(cluster.redis_url, budget=10.0, pause=0.1) for _ in range(3)]
        await links[0].client.flushdb()
        first, second, third = (Embeddings(Settings(), link=link) for link in links)
        async with FakeService() as fake:
            model = fake.model()
            assert (await first.embed(model, "a", soon())).tier == "miss"
            await stored(first)
            found = await second.embed(model, "a", soon())
            assert (found.vector, found.tier) == (bytes_of("a"), "l2")
            assert (await second.embed(model, "a", soon())).tier == "l1"
            (key,) = await links[0].client.keys("pgscatter:embedding:*")
            assert 3_500_000 < await links[0].client.pttl(key) <= 3_600_000
            await links[0].client.set(key, b"\x00\x00\xc0\x7f" * 4)
            found = await third.embed(model, "a", soon())
            assert (found.vector, found.tier) == (bytes_of("a"), "miss")
            assert len(fake.requests) == 2
        for made, link in zip((first, second, third), links, strict=True):
            await made.close()
            await link.close()

    asyncio.run(test())


def test_without_redis_texts_are_embedded_all_the_same() -> None:
    async def test() -> None:
        link = RedisLink("redis://127.0.0.1:1/0", budget=0.02, pause=60.0)
        made = Embeddings(Settings(), link=link)
        async with FakeService() as fake:
            for text in "ab":
                assert (await made.embed(fake.model(), text, soon())).vector == bytes_of(text)
        assert not link.on
        await made.close()
        await link.close()

    asyncio.run(test())
