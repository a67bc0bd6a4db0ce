from __future__ import annotations

import asyncio

from router.http.write_batch import BatchedTransport, WriteBatch


class Wire(asyncio.Transport):
    """Remembers what it was told, in a list that several share."""

    def __init__(self, name: str, said: list[str]) -> None:
        super().__init__()
        self.name = name
        self.said = said
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said.append(f"{self.name} {bytes(data).decode()}")

    def close(self) -> None:
        self.closed = True
        self.said.append(f"{self.name} closed")

    def is_closing(self) -> bool:
        return self.closed


async def test_what_one_turn_writes_leaves_at_its_end_in_order() -> None:
    said: list[str] = []
    batch = WriteBatch()
    a, b = (BatchedTransport(Wire(name, said), batch) for name in "ab")
    a.write(b"1")
    b.write(b"2")
    a.write(b"3")
    assert said == []
    assert repr(batch) == "<WriteBatch 3 waiting>"
    await asyncio.sleep(0)
    assert said == ["a 1", "b 2", "a 3"]
    a.write(b"4")
    await asyncio.sleep(0)
    assert said[3:] == ["a 4"]


async def test_nothing_waits_for_more_than_fifteen_others() -> None:
    said: list[str] = []
    transport = BatchedTransport(Wire("a", said), WriteBatch())
    for i in range(40):
        transport.write(b"%d" % i)
        assert len(said) == (i + 1) // 16 * 16
    await asyncio.sleep(0)
    assert said == [f"a {i}" for i in range(40)]


async def test_a_connection_that_closes_has_said_what_it_had_to_say() -> None:
    said: list[str] = []
    batch = WriteBatch()
    a, b = (BatchedTransport(Wire(name, said), batch) for name in "ab")
    a.write(b"1")
    b.write(b"2")
    a.close()
    assert a.is_closing()
    assert said == ["a 1", "b 2", "a closed"]


async def test_a_connection_that_is_gone_costs_the_others_nothing() -> None:
    said: list[str] = []
    batch = WriteBatch()
    gone, other = Wire("a", said), Wire("b", said)
    batch.put(gone, b"1")
    batch.put(other, b"2")
    gone.closed = True
    await asyncio.sleep(0)
    assert said == ["b 2"]


async def test_what_an_answer_begins_with_may_be_sent_ahead_of_it() -> None:
    said: list[str] = []
    transport = BatchedTransport(Wire("a", said), WriteBatch())
    assert transport.write_ahead() and transport.write_ahead()
    transport.write(b"HTTP/1.1 200 OK")
    transport.write(b" and more")
    assert [transport.write_ahead() for _ in range(10)] == [True] * 9 + [False]
    transport.write(b"HTTP/1.1 ")
    await asyncio.sleep(0)
    assert "".join(part.removeprefix("a ") for part in said) == "HTTP/1.1 200 OK and moreHTTP/1.1 "
