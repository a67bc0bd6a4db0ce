"""Many small worlds, each from a seed: whatever happens to a dispatcher, its promises hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import pytest

from bench.simulation.hosts import Host
from bench.simulation.virtual_time import run
from router.nodes.dispatcher import Dispatcher, Fetched, Ticket
from router.policy.batches import AdmittedBatch, Batches
from router.policy.limit import Limit
from router.postgres.connection import ErrorKind, NodeError
from router.query.errors import OverloadedError
from router.query.types import Probe, Row, Shape

SHAPE = Shape("one", "many")
WAIT = 0.05


def probe(number: int, *, key: object | None = "k", caller: object | None = None) -> Probe:
    return Probe(SHAPE, (number,), 10, 10, key=key, caller=caller)


class Execution:
    """Statements over a host's cores; those with a poisoned member fail, and some fail by chance."""

    def __init__(self, host: Host, rng: Random, *, failing: float = 0.0) -> None:
        self.host, self.rng, self.failing = host, rng, failing
        self.poisoned: set[object] = set()
        self.seen: list[object] = []
        self.started: list[tuple[float, object]] = []
        self.running = self.most = 0
        self.slow = 1.0

    async def __call__(self, probes: Sequence[Probe]) -> list[tuple[Sequence[Row], str | None]]:
        numbers = [one.args[0] for one in probes]
        now = asyncio.get_running_loop().time()
        self.started += [(now, number) for number in numbers]
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.host.run(self.slow * (0.0003 + 0.001 * len(probes) * self.rng.lognormvariate(0, 0.5)))
        finally:
            self.running -= 1
        if self.poisoned.intersection(numbers):
            raise NodeError(ErrorKind.DATA, "poisoned")
        if self.rng.random() < self.failing:
            raise NodeError(self.rng.choice(list(ErrorKind)), "by chance")
        self.seen += numbers
        return [([(number, 0.0)], None) for number in numbers]


class Search:
    """One search and what became of it; the deadline is the caller's to keep."""

    def __init__(self, dispatcher: Dispatcher, number: int, deadline: float, **options: object) -> None:
        self.loop = asyncio.get_running_loop()
        self.number, self.deadline = number, deadline
        self.outcomes: list[Fetched | Exception] = []
        self.since = self.loop.time()
        self.ended: float | None = None
        self.ticket: Ticket | None = None
        self.dispatcher = dispatcher
        try:
            self.ticket = dispatcher.submit(probe(number, **options), deadline, self.came)  # type: ignore[arg-type]
        except OverloadedError as exc:
            self.came(exc)
        else:
            self.loop.call_at(deadline, self.leave)

    def came(self, outcome: Fetched | Exception) -> None:
        self.outcomes.append(outcome)
        self.ended = self.loop.time()

    def leave(self) -> None:
        if self.ended is None and self.ticket is not None:
            self.ended = self.loop.time()
            self.dispatcher.leave(self.ticket)

    @property
    def answered(self) -> bool:
        return len(self.outcomes) == 1 and isinstance(self.outcomes[0], Fetched)


async def silence() -> None:
    """A node that answers nothing is sent a search every millisecond, and half of them leave at once."""
    loop = asyncio.get_running_loop()
    wait = 0.5

    async def never(probes: Sequence[Probe]) -> list[tuple[Sequence[Row], str | None]]:
        await loop.create_future()
        raise AssertionError("unreachable")

    dispatcher = Dispatcher("n", never, Limit(1, 1), queue=600, wait=wait, together=1000, clock=loop.time)
    looks = 0
    remove = dispatcher._backlog.remove

    def counted(unwanted: Callable[[Ticket], bool]) -> list[Ticket]:
        nonlocal looks
        looks += 1
        return remove(unwanted)

    dispatcher._backlog.remove = counted  # type: ignore[method-assign]
    searches = []
    for number in range(3000):
        searches.append(Search(dispatcher, number, loop.time() + 10 * wait))
        if number % 2 and number:
            searches[-1].leave()
        await asyncio.sleep(0.001)
        assert sum(map(len, dispatcher._backlog._queues.values())) <= 1100, "what has left is let go of"
    for search in searches[1:-600]:
        if search.number % 2 == 0:
            assert search.ended is not None
            assert wait <= search.ended - search.since <= wait * 1.04
    assert looks <= 3 * 32 / wait + 2
    await dispatcher.close()


def test_a_silent_node_is_not_looked_through_for_every_search_that_has_waited_too_long() -> None:
    run(silence())


async def chaos(seed: int) -> None:
    """Bursts of searches with all kinds of ends, on a few nodes that share a host and a limit."""
    rng = Random(seed)
    loop = asyncio.get_running_loop()
    host = Host(rng.choice([1, 2, 4]))
    nodes, least, most, queue = rng.choice([1, 1, 4]), 1, rng.randint(1, 6), rng.choice([4, 30, 100])
    limit = Limit(least, most, nodes)
    executions = [Execution(host, rng, failing=rng.choice([0, 0.1])) for _ in range(nodes)]
    together = rng.choice([1, 4, 16])
    dispatchers = [
        Dispatcher(str(i), execution, limit, queue=queue, wait=WAIT, together=together, clock=loop.time)
        for i, execution in enumerate(executions)
    ]
    searches: list[Search] = []
    for number in range(rng.randint(50, 250)):
        which = rng.randrange(nodes)
        if rng.random() < 0.02:
            executions[which].poisoned.add(number)
        dispatcher = dispatchers[which]
        free = not dispatcher.waiting and limit.admits(dispatcher.in_flight)
        searches.append(
            Search(
                dispatcher,
                number,
                loop.time() + rng.choice([0.002, 0.02, 0.2]),
                key=None if rng.random() < 0.05 else rng.choice("ab"),
                caller=rng.choice([None, None, "batch"]),
            )
        )
        ticket = searches[-1].ticket
        if free:
            assert ticket is not None and ticket.statement is not None, "a free node keeps nobody waiting"
        for one in dispatchers:
            assert one.waiting <= queue + together * most  # those that are tried again
            assert one.in_flight <= most
        assert least * nodes <= limit.value <= most * nodes
        assert limit.in_flight == sum(one.in_flight for one in dispatchers)
        if rng.random() < 0.05:
            rng.choice(searches).leave()
        if rng.random() < 0.2:
            await asyncio.sleep(rng.expovariate(100))
    await asyncio.sleep(1)
    for search in searches:
        assert len(search.outcomes) <= 1, "answered twice"
        assert search.ended is not None and search.ended <= search.deadline + 1e-9
        for outcome in search.outcomes:
            if isinstance(outcome, Fetched):
                assert outcome.rows == [(search.number, 0.0)], "somebody else's rows"
                assert outcome.queue_ms <= WAIT * 1000 + 1 + 1e-6
            elif isinstance(outcome, NodeError) and "poisoned" in str(outcome):
                assert any(search.number in execution.poisoned for execution in executions)
    ends = {search.number: search.ended for search in searches}
    for execution in executions:
        assert execution.most <= most
        for at, number in execution.started:
            ended = ends[number]  # type: ignore[index]
            assert ended is not None and at <= ended, "sent although nobody waits for it"
    for dispatcher in dispatchers:
        assert (dispatcher.waiting, dispatcher.in_flight, dispatcher.load) == (0, 0, 0)
        await dispatcher.close()
    assert limit.in_flight == 0


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_promises_hold_in_every_world(first: int) -> None:
    for seed in range(first, first + 50):
        try:
            run(chaos(seed))
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise


def one(limit: Limit, **options: object) -> tuple[Dispatcher, Execution]:
    execution = Execution(Host(1), Random(1))
    settings = {"queue": 100, "wait": 1.0, "together": 16, **options}
    clock = asyncio.get_running_loop().time
    return Dispatcher("n", execution, limit, clock=clock, **settings), execution  # type: ignore[arg-type]


def test_a_poisoned_search_fails_alone() -> None:
    async def main() -> None:
        dispatcher, execution = one(Limit(1, 1))
        execution.poisoned.add(5)
        searches = [Search(dispatcher, i, 10) for i in range(12)]
        await asyncio.sleep(5)
        assert [search.number for search in searches if not search.answered] == [5]

    run(main())


def test_those_that_leave_disturb_nobody_and_cost_nothing_while_they_wait() -> None:
    async def main() -> None:
        dispatcher, execution = one(Limit(1, 1))
        searches = [Search(dispatcher, i, 10) for i in range(12)]
        for search in searches[1:6]:
            search.leave()
        assert dispatcher.waiting == 6
        await asyncio.sleep(0.0001)
        searches[0].leave()
        await asyncio.sleep(5)
        assert execution.seen == [6, 7, 8, 9, 10, 11]
        assert [search.answered for search in searches] == [False] * 6 + [True] * 6

    run(main())


def test_the_expired_never_reach_the_node() -> None:
    async def main() -> None:
        dispatcher, execution = one(Limit(1, 1))
        for i in range(200):
            dispatcher.submit(probe(i), 0.0001 if 0 < i <= 50 else 10, lambda _: None)
            if i == 99:
                await asyncio.sleep(0)
                break
        await asyncio.sleep(5)
        assert {number for _, number in execution.started} == {0, *range(51, 100)}

    run(main())


def test_nobody_waits_longer_than_it_may() -> None:
    async def main() -> None:
        dispatcher, _ = one(Limit(1, 1), wait=0.01, together=1, queue=50)
        searches = [Search(dispatcher, i, 10) for i in range(60)]
        await asyncio.sleep(5)
        refused = [s for s in searches if isinstance(s.outcomes[0], OverloadedError)]
        assert refused
        for search in searches:
            (outcome,) = search.outcomes
            if isinstance(outcome, Fetched):
                assert outcome.queue_ms <= 10 + 1e-6
            else:
                assert search.ended is not None and search.ended - search.since <= 0.01 + 1e-9

    run(main())


def test_those_tried_again_have_their_time_to_wait_and_no_more() -> None:
    async def main() -> None:
        dispatcher, execution = one(Limit(1, 1), wait=0.05)
        execution.slow = 30.0
        execution.poisoned.add(3)
        searches = [Search(dispatcher, i, 10) for i in range(8)]
        await asyncio.sleep(5)
        retried = searches[1:]
        assert any(search.answered for search in retried)
        assert any(isinstance(search.outcomes[0], OverloadedError) for search in retried)
        for search in searches:
            (outcome,) = search.outcomes
            if isinstance(outcome, Fetched):
                assert outcome.queue_ms <= 51 + 1e-6

    run(main())


@pytest.mark.parametrize(("kind", "rest"), [("other", 0.0), ("k", 20.0)], ids=["others", "before a rest"])
def test_slow_searches_refuse_nobody_afterwards(kind: str, rest: float) -> None:
    async def main() -> None:
        dispatcher, execution = one(Limit(1, 1))
        execution.slow = 300.0
        for number in range(30):
            slow = Search(dispatcher, number, 1000, key=kind)
            await asyncio.sleep(5)
            assert slow.answered
        execution.slow = 1.0
        await asyncio.sleep(rest)
        searches = [Search(dispatcher, i, 1000) for i in range(100)]
        await asyncio.sleep(5)
        assert all(search.answered for search in searches)

    run(main())


def test_one_that_would_wait_too_long_is_refused_at_once() -> None:
    async def main() -> None:
        dispatcher, execution = one(Limit(1, 1), together=1)
        execution.slow = 100.0
        for number in range(30):
            Search(dispatcher, number, 1000)
            await asyncio.sleep(0.2)
        searches = [Search(dispatcher, i, 1000) for i in range(50)]
        refused = [search for search in searches if search.outcomes]
        assert 20 < len(refused) < 45
        assert all(isinstance(search.outcomes[0], OverloadedError) for search in refused)
        await dispatcher.close()

    run(main())


def test_what_one_node_frees_another_of_the_host_takes() -> None:
    async def main() -> None:
        limit = Limit(1, 4, nodes=2)
        limit.value = 3
        (idle, _), (busy, slow) = one(limit), one(limit)
        slow.slow = 2000.0
        Search(busy, 0, 1000)
        await asyncio.sleep(0.0001)
        slow.slow = 1.0
        beside = [Search(idle, i, 1000) for i in (1, 2)]
        waiting = Search(busy, 3, 1000)
        assert busy.waiting == 1
        await asyncio.sleep(0.5)
        assert all(search.answered for search in (*beside, waiting))
        assert busy.in_flight == 1
        await busy.close()

    run(main())


def together(searches: Sequence[Search]) -> list[int]:
    return [search.outcomes[0].together for search in searches if isinstance(search.outcomes[0], Fetched)]


def test_a_statement_carries_only_as_many_searches_as_it_answers_soon() -> None:
    async def main() -> None:
        for slow, fewest, most in ((1.0, 16, 16), (10.0, 2, 9), (100.0, 1, 1)):
            dispatcher, execution = one(Limit(1, 1), wait=1000.0)
            execution.slow = slow
            # The first goes alone, and says what the others will take.
            searches = [Search(dispatcher, i, 1000) for i in range(65)]
            await asyncio.sleep(100)
            assert all(search.answered for search in searches)
            carried = together(searches)[1:]
            assert max(carried) <= most and max(carried) >= fewest, (slow, carried)

    run(main())


def admitted(searches: int, each: float = 0.0) -> AdmittedBatch:
    return Batches(512).admit(searches, ahead=0.0, each=each, available=60.0, timeout=2.0)


async def run_batch(dispatcher: Dispatcher, searches: int, timeout: float = 2.0) -> list[Search]:
    """As the route does it: so many at a time as the batch says, each with its own time limit."""
    batch = admitted(searches, dispatcher.expected(probe(0)))
    loop = asyncio.get_running_loop()
    end = loop.time() + 60.0
    numbers = iter(range(searches))
    done: list[Search] = []
    workers = 0

    async def work() -> None:
        nonlocal workers
        for number in numbers:
            search = Search(dispatcher, number, loop.time() + timeout, caller=batch)
            while search.ended is None:
                await asyncio.sleep(0.001)
            done.append(search)
            batch.answered(search.ended - search.since, end - loop.time())
            if workers > batch.size:
                break
            start()
        workers -= 1

    def start() -> None:
        nonlocal workers
        while workers < min(batch.size, searches):
            workers += 1
            group.create_task(work())

    async with asyncio.TaskGroup() as group:
        start()
    return done


async def ask_again_and_again(
    dispatcher: Dispatcher, name: int, until: asyncio.Event, timeout: float = 2.0
) -> list[Search]:
    loop = asyncio.get_running_loop()
    searches: list[Search] = []
    while not until.is_set():
        search = Search(dispatcher, name, loop.time() + timeout)
        while search.ended is None:
            await asyncio.sleep(0.001)
        searches.append(search)
        await asyncio.sleep(0.001)
    return searches


@pytest.mark.parametrize("slow", [1.0, 10.0, 70.0])
def test_a_batch_alone_is_answered_in_whole_and_in_the_time_of_its_searches(slow: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        dispatcher, execution = one(Limit(1, 1))
        execution.slow = slow
        for number in range(30):
            single = Search(dispatcher, number, 1000)
            while single.ended is None:
                await asyncio.sleep(0.0001)
        one_by_one = loop.time()
        done = await run_batch(dispatcher, 150)
        assert sum(search.answered for search in done) == 150
        assert loop.time() - one_by_one <= 1.1 * 5 * one_by_one

    run(main())


@pytest.mark.parametrize("slow", [1.0, pytest.param(50.0, marks=pytest.mark.full)])
def test_a_batch_of_slow_searches_and_single_ones_do_not_starve_each_other(slow: float) -> None:
    """Sixteen clients take turns with it; alone they would wait for half of the time that they may."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        dispatcher, execution = one(Limit(1, 1), wait=2.0)
        execution.slow = slow
        ended = asyncio.Event()
        clients = [asyncio.create_task(ask_again_and_again(dispatcher, 1000 + i, ended)) for i in range(16)]
        await asyncio.sleep(2)
        began = loop.time()
        done = await run_batch(dispatcher, 150)
        took = loop.time() - began
        ended.set()
        singles = [s for one in await asyncio.gather(*clients) for s in one if s.since >= began]
        assert sum(search.answered for search in done) == 150
        assert took <= 60.0
        answered = sum(search.answered for search in singles)
        assert answered >= 0.9 * len(singles) and answered >= 100

    run(main())


def test_what_waits_of_a_batch_refuses_no_single_search_and_is_not_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        dispatcher, execution = one(Limit(1, 1), wait=0.5, queue=10)
        execution.slow = 50.0
        for number in range(30):
            Search(dispatcher, number, 1000)
            await asyncio.sleep(0.5)
        batch = admitted(40)
        members = [Search(dispatcher, i, loop.time() + 100, caller=batch) for i in range(40)]
        assert dispatcher.waiting == 39
        await asyncio.sleep(0.2)
        single = Search(dispatcher, 99, loop.time() + 10)
        await asyncio.sleep(20)
        assert single.answered and single.ended is not None and single.ended - single.since < 0.5
        assert all(member.answered for member in members)

    run(main())


async def shared_reads(fixed: float, each: float) -> list[int]:
    """How many searches the statements carried, where 64 clients ask for rows that are read once for all."""
    loop = asyncio.get_running_loop()
    carried: list[int] = []

    async def execute(probes: Sequence[Probe]) -> list[tuple[Sequence[Row], str | None]]:
        carried.append(len(probes))
        await asyncio.sleep(fixed + each * len(probes))
        return [([], None) for _ in probes]

    dispatcher = Dispatcher("n", execute, Limit(1, 1), queue=512, wait=60, together=16, clock=loop.time)
    once = Probe(Shape("one", "many", reads_once=True), (), 10, 10, key="k", sharers=100)

    async def client() -> None:
        for _ in range(10):
            answered: asyncio.Future[Fetched | Exception] = loop.create_future()
            dispatcher.submit(once, loop.time() + 100, answered.set_result)
            assert isinstance(await answered, Fetched)

    await asyncio.gather(*[client() for _ in range(64)])
    await dispatcher.close()
    return carried


def test_as_many_searches_share_a_read_as_it_is_worth() -> None:
    cheap, dear = run(shared_reads(0.1, 0.0005)), run(shared_reads(0.001, 0.04))
    assert max(cheap[8:]) > 40
    # Expected to share well, they do not: a statement takes no longer than two or so.
    assert max(dear[8:]) <= 3
