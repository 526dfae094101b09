"""What the library needs from an event loop, the same on each; and who reads on trio."""

import asyncio
import math
import random
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from anyio_ws.loops import Loop, open_loop
from anyio_ws.loops.base import BUDGET_CALLS, SCRATCH_SIZE
from anyio_ws.tasks import Tasks
from support.tools import settle, wait


@asynccontextmanager
async def owner() -> AsyncGenerator[Loop]:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        yield loop
        loop.close()


@pytest.fixture
async def loop() -> AsyncGenerator[Loop]:
    async with owner() as loop:
        yield loop


# Clock and timers


@pytest.mark.virtual_time
async def test_timers_are_called_in_order_and_on_time(loop: Loop) -> None:
    called: list[tuple[str, float]] = []
    start = loop.time()

    def note(name: str) -> Callable[[], None]:
        return lambda: called.append((name, loop.time() - start))

    loop.call_at(start + 20, note("late"))
    loop.call_at(start + 5, note("early"))
    loop.call_at(start + 10, note("cancelled")).cancel()
    loop.call_at(start - 1, note("past"))
    await anyio.sleep(30)
    assert [name for name, _ in called] == ["past", "early", "late"]
    assert [when for _, when in called] == pytest.approx([0, 5, 20])


@pytest.mark.virtual_time
async def test_a_timer_may_set_the_next(loop: Loop) -> None:
    times: list[float] = []
    start = loop.time()

    def again() -> None:
        times.append(loop.time() - start)
        if len(times) < 3:
            loop.call_at(loop.time() + 1, again)

    loop.call_at(start + 1, again)
    loop.call_at(start + 100, again)
    await anyio.sleep(50)
    assert times == pytest.approx([1, 2, 3])


@pytest.mark.virtual_time
async def test_a_cancelled_timer_in_front_delays_nothing(loop: Loop) -> None:
    called: list[float] = []
    start = loop.time()
    first = loop.call_at(start + 1, lambda: called.append(1))
    loop.call_at(start + 2, lambda: called.append(2))
    first.cancel()
    first.cancel()
    await anyio.sleep(3)
    assert called == [2]


@pytest.mark.virtual_time
async def test_a_callback_that_fails_is_logged_and_stops_no_other(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def fail() -> None:
        raise KeyError("bug")

    start = loop.time()
    loop.call_at(start + 1, fail)
    loop.call_at(start + 1, lambda: called.append("due at the same time"))
    loop.call_at(start + 2, lambda: called.append("due later"))
    await anyio.sleep(3)
    assert called == ["due at the same time", "due later"]
    loop.call_soon(fail)
    loop.call_soon(lambda: called.append("soon"))
    await settle()
    assert called[2:] == ["soon"]
    loop.call_soon(lambda: called.append("later"))
    await settle()
    assert called[3:] == ["later"]
    assert caplog.messages == ["a callback failed"] * 2
    for record in caplog.records:
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], KeyError)
        assert record.connection_id == "-"  # type: ignore[attr-defined]


@pytest.mark.virtual_time
async def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    called: list[int] = []
    start = loop.time()
    for number in range(100):
        loop.call_at(start + 100 - number, partial(called.append, number))
    for _ in range(1000):
        loop.call_at(start + 3600, pytest.fail).cancel()
        assert len(loop._timers) <= 2 * 100 + 1
    await anyio.sleep(101)
    assert called == list(reversed(range(100)))


@pytest.mark.virtual_time
async def test_timers_that_were_called_do_not_count_as_cancelled(loop: Loop) -> None:
    start = loop.time()
    timers = [loop.call_at(start + 1, lambda: None) for _ in range(100)]
    early = loop.call_at(start + 0.5, lambda: None)
    early.cancel()
    await anyio.sleep(2)
    for timer in timers:
        timer.cancel()
    early.cancel()
    assert loop._cancelled == 0


@pytest.mark.virtual_time
async def test_a_callback_may_cancel_many_timers(loop: Loop) -> None:
    called: list[str] = []
    start = loop.time()
    timers = [loop.call_at(start + 1, pytest.fail) for _ in range(100)]

    def cancel() -> None:
        for timer in timers:
            timer.cancel()

    loop.call_at(start + 0.5, cancel)
    loop.call_at(start + 0.5, lambda: called.append("due at the same time"))
    loop.call_at(start + 2, lambda: called.append("due later"))
    await anyio.sleep(3)
    assert called == ["due at the same time", "due later"]


@pytest.mark.virtual_time
async def test_close_forgets_everything() -> None:
    called: list[int] = []
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        loop.call_at(loop.time() + 1, lambda: called.append(1))
        loop.call_soon(lambda: called.append(2))
        loop.close()
        loop.close()
        await anyio.sleep(3)
    assert called == []


@pytest.mark.real_time
async def test_a_real_timer_is_called(loop: Loop) -> None:
    event = anyio.Event()
    due = loop.time() + 0.002
    loop.call_at(due, event.set)
    await event.wait()
    assert loop.time() >= due


@pytest.mark.real_time
async def test_the_clock_is_fine_enough_for_a_round_trip(loop: Loop) -> None:
    times = set[float]()
    for _ in range(10):
        times.add(loop.time())
        sum(range(1000))
    assert len(times) == 10


async def test_a_stall_is_warned_of_once_for_all_timers(loop: Loop) -> None:
    warned: list[float] = []
    loop.note_stall(10, 15, warned.append)
    loop.note_stall(11, 15, warned.append)
    loop.note_stall(14, 15.5, warned.append)
    loop.note_stall(20, 23, warned.append)
    assert warned == [5, 3]


# The end of the tick


async def test_call_soon_comes_once_and_before_the_next_tick(loop: Loop) -> None:
    called: list[int] = []
    loop.call_soon(lambda: called.append(1))
    loop.call_soon(lambda: called.append(2))
    assert called == []
    await settle()
    assert called == [1, 2]


async def test_call_soon_from_a_callback_is_called_too(loop: Loop) -> None:
    event = anyio.Event()
    loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(event.set)))
    await event.wait()


@pytest.mark.virtual_time
async def test_call_soon_comes_before_a_task_that_slept_is_woken(loop: Loop) -> None:
    order: list[str] = []

    async def sleeper() -> None:
        await anyio.sleep(1)
        order.append("slept")

    async with anyio.create_task_group() as group:
        group.start_soon(sleeper)
        await settle()
        loop.call_soon(lambda: order.append("soon"))
    assert order == ["soon", "slept"]


# Waiting


async def test_a_waiter_is_woken(loop: Loop) -> None:
    waiter = loop.waiter()
    waiter.wake()  # nobody waits: forgotten
    done: list[int] = []

    async def wait() -> None:
        await waiter.wait()
        done.append(1)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await settle()
        assert done == []
        waiter.wake()
        waiter.wake()
    assert done == [1]


async def test_a_waiter_can_be_cancelled_and_used_again(loop: Loop) -> None:
    waiter = loop.waiter()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(wait, waiter)
            await settle()
            scope.cancel()
    waiter.wake()
    async with anyio.create_task_group() as group:
        group.start_soon(wait, waiter)
        await settle()
        waiter.wake()


async def test_waiting_renews_the_budget(loop: Loop) -> None:
    waiter = loop.waiter()
    async with anyio.create_task_group() as group:
        group.start_soon(wait, waiter)
        await settle()
        loop.budget.sends = loop.budget.receives = 0
        assert loop.budget.exhausted()
        waiter.wake()
        await settle()
    assert (loop.budget.sends, loop.budget.receives) == (BUDGET_CALLS, BUDGET_CALLS)


async def test_a_wake_up_that_nobody_waits_for_does_not_renew_the_budget(loop: Loop) -> None:
    waiter = loop.waiter()
    async with anyio.create_task_group() as group:
        group.start_soon(wait, waiter)
        await settle()
        waiter.wake()
        loop.budget.sends = 5
        waiter.wake()
        assert loop.budget.sends == 5
    loop.budget.sends = 5
    waiter.wake()
    assert loop.budget.sends == 5


@pytest.mark.parametrize("kind", ["sends", "receives"])
async def test_a_budget_is_exhausted_when_there_are_no_more_calls_of_a_kind(kind: str, loop: Loop) -> None:
    loop.budget.renew()
    assert not loop.budget.exhausted()
    setattr(loop.budget, kind, 0)
    assert loop.budget.exhausted()


async def test_the_budget_belongs_to_the_event_loop(loop: Loop) -> None:
    async with owner() as other:
        assert other.budget is loop.budget
    assert len(loop.budget.scratch) == SCRATCH_SIZE


async def test_a_budget_is_exhausted_after_its_time(loop: Loop) -> None:
    loop.budget.renew()
    loop.budget.since -= 1
    assert loop.budget.exhausted()
    loop.budget.renew()
    assert loop.budget.sends == BUDGET_CALLS


# Tasks and cancellation


async def test_tasks_have_names(loop: Loop) -> None:
    names: list[str] = []

    async def named() -> None:
        names.append(loop.task_name(loop.current_task()))

    async with anyio.create_task_group() as group:
        group.start_soon(named, name="Ann")
    assert names == ["Ann"]


async def test_a_delivered_cancellation_is_seen_and_raised(loop: Loop) -> None:
    seen: list[bool] = []

    async def cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            seen.append(not loop.tasks_tell or loop.current_task().cancelling() > 0)
            with pytest.raises(anyio.get_cancelled_exc_class()):
                await loop.checkpoint_if_cancelled()

    async with anyio.create_task_group() as group:
        group.start_soon(cancelled)
        await settle()
        group.cancel_scope.cancel()
    assert seen == [True]


async def test_without_a_cancellation_the_checks_do_nothing(loop: Loop, loop_name: str) -> None:
    assert loop.tasks_tell is (loop_name != "trio")
    assert not loop.tasks_tell or loop.current_task().cancelling() == 0
    await loop.checkpoint_if_cancelled()
    await loop.checkpoint()


# Sockets: nothing is lost, whoever reads


class Connection:
    """What a connection does with its readiness: an inbox with a limit, one receiver."""

    LIMIT = 50

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.chance = random.Random(0)
        self.inbox: deque[int] = deque()
        self.paused = False
        self.readiness = loop.readiness(sock, self.readable, self.writable)
        self.readiness.start()
        self.check()

    def readable(self) -> int:
        try:
            data = self.sock.recv(self.chance.randint(1, 20))
        except BlockingIOError:
            return 0
        self.inbox.extend(data)
        if len(self.inbox) >= self.LIMIT:
            self.paused = True
            self.readiness.pause()
        self.readiness.wake()
        return len(data)

    def writable(self) -> None:
        self.readiness.write_done()

    def check(self) -> None:
        """The invariant of trio_loop, everywhere outside it."""
        readiness: Any = self.readiness
        if hasattr(readiness, "_flagged"):
            assert readiness._reader or readiness._flagged or not readiness._reading
            assert readiness._reading is not self.paused

    async def receive(self) -> int:
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not self.inbox:
            await self.readiness.wait()
        item = self.inbox.popleft()
        if self.paused and len(self.inbox) < self.LIMIT // 2:
            self.paused = False
            self.readiness.resume()
        return item

    def close(self) -> None:
        self.readiness.close()
        self.sock.close()


@pytest.mark.virtual_time
@pytest.mark.parametrize("seed", range(12))
async def test_no_byte_is_lost_under_random_cancellations(
    loop: Loop, loop_name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    if loop_name == "trio" and seed % 2:  # most reads seem to leave something in the socket; some do
        monkeypatch.setattr("anyio_ws.loops.trio_loop.SCRATCH_SIZE", 10)
    near, far = socket.socketpair()
    far.setblocking(False)
    connection = Connection(loop, near)
    total = 3000
    received: list[int] = []

    async def send() -> None:
        sent = 0
        while sent < total:
            count = min(chance.randint(1, 40), total - sent)
            try:
                sent += far.send(bytes((sent + index) & 0xFF for index in range(count)))
            except BlockingIOError:
                await anyio.sleep(0.001)
            if chance.random() < 0.5:
                await anyio.sleep(chance.choice([0, 0.0001, 0.01, 0.03, 0.1]))

    async def disturb() -> None:
        while len(received) < total:
            await anyio.sleep(chance.choice([0.001, 0.02, 0.05]))
            action = chance.randrange(3)
            if action == 0:
                connection.readiness.watch()
            elif action == 1:
                connection.readiness.want_write()
            elif not connection.paused:
                connection.readable()
            connection.check()

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        group.start_soon(disturb)
        while len(received) < total:
            with anyio.move_on_after(chance.choice([0, 0.0001, 0.01, 0.05, 10])):
                for _ in range(chance.randint(1, 50)):
                    if len(received) < total:
                        received.append(await connection.receive())
            connection.check()
            if chance.random() < 0.2:
                await anyio.sleep(chance.choice([0, 0.01, 0.03]))
    assert received == [index & 0xFF for index in range(total)]
    connection.close()
    far.close()


@pytest.fixture
async def pair(loop: Loop) -> AsyncGenerator[tuple[Connection, socket.socket]]:
    near, far = socket.socketpair()
    connection = Connection(loop, near)
    yield connection, far
    connection.close()
    far.close()


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_without_a_receiver_a_watcher_reads_after_a_moment(pair: tuple[Connection, socket.socket]) -> None:
    connection, far = pair
    far.send(b"1")
    await anyio.sleep(0.019)
    assert not connection.inbox
    await anyio.sleep(0.002)
    assert list(connection.inbox) == [ord("1")]
    far.send(b"2")
    await settle()
    assert list(connection.inbox) == [ord("1"), ord("2")]


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_an_idle_receiver_is_the_only_task(pair: tuple[Connection, socket.socket]) -> None:
    import trio

    connection, far = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive)
        await settle()
        before = trio.lowlevel.current_statistics().tasks_living
        await trio.sleep(1)
        assert trio.lowlevel.current_statistics().tasks_living == before
        far.send(b"1")


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_a_watcher_hands_over_to_a_receiver_and_ends(pair: tuple[Connection, socket.socket]) -> None:
    import trio

    connection, far = pair
    readiness: Any = connection.readiness
    await trio.sleep(0.1)
    assert readiness._reader  # the watcher
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive)
        await settle()
        assert readiness._wanted == 1
        assert not readiness._waiting
        far.send(b"1")
        await settle()
        nursery.start_soon(connection.receive)
        await settle()
        assert readiness._waiting  # now the receiver waits for the socket itself
        far.send(b"2")


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_watch_starts_at_once_and_only_one(pair: tuple[Connection, socket.socket]) -> None:
    import trio

    connection, far = pair
    before = trio.lowlevel.current_statistics().tasks_living
    connection.readiness.watch()
    connection.readiness.watch()
    await settle()
    assert trio.lowlevel.current_statistics().tasks_living == before + 1
    far.send(b"1")
    await settle()
    assert list(connection.inbox) == [ord("1")]


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_a_watcher_among_many_tasks_ends_with_the_owner() -> None:
    import trio

    ended: list[str] = []

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("watcher")

    async with owner() as loop:
        loop.start_task(trio.sleep_forever)
        await settle()
        loop.start_io(watch)
        await settle()
        assert ended == []
    assert ended == ["watcher"]


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_what_a_watcher_among_many_tasks_raises_comes_out_of_the_owner_as_it_is() -> None:
    import trio

    error = SystemExit(3)  # of a logging handler, for example

    def readable() -> int:
        raise error

    near, far = socket.socketpair()
    with near, far, pytest.raises(SystemExit) as info:
        async with owner() as loop:
            loop.start_task(trio.sleep_forever)
            await settle()
            readiness = loop.readiness(near, readable, lambda: None)
            readiness.start()
            readiness.watch()
            far.send(b"1")
            await trio.sleep_forever()
    assert info.value is error


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_a_flag_is_not_for_a_connection_that_was_paused_meanwhile(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, far = pair
    connection.readiness.pause()
    far.send(b"1")
    await anyio.sleep(1)
    assert not connection.inbox
    connection.readiness.resume()
    await anyio.sleep(1)
    assert connection.inbox


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_the_caretaker_parks_when_nothing_is_due(loop: Loop) -> None:
    caretaker: Any = loop
    await settle()
    assert caretaker._parking._task is not None
    assert caretaker._alarm.deadline == math.inf
    loop.call_at(loop.time() + 5, lambda: None)
    assert caretaker._alarm.deadline == loop.time() + 5
    await anyio.sleep(6)
    assert caretaker._parking._task is not None
    assert caretaker._alarm.deadline == math.inf


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_a_writer_that_is_wanted_again_on_its_way_out_goes_on(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, _ = pair
    writes: list[int] = []

    def writable() -> None:
        writes.append(1)
        connection.readiness.write_done()
        if len(writes) < 3:
            connection.readiness.want_write()

    readiness: Any = connection.readiness
    readiness._writable = writable
    connection.readiness.want_write()
    connection.readiness.want_write()
    await settle()
    assert writes == [1, 1, 1]
    assert not readiness._writer


@pytest.mark.real_time
@pytest.mark.loops("asyncio", "uvloop")
async def test_asyncio_the_loop_itself_watches(pair: tuple[Connection, socket.socket]) -> None:
    connection, far = pair
    before = len(asyncio.all_tasks())
    connection.readiness.watch()
    far.send(b"1")
    while not connection.inbox:
        await anyio.lowlevel.checkpoint()
    assert len(asyncio.all_tasks()) == before


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_after_a_read_that_filled_the_scratch_the_next_one_does_not_wait(
    pair: tuple[Connection, socket.socket],
) -> None:
    from trio.testing import assert_checkpoints, assert_no_checkpoints

    connection, far = pair
    readiness: Any = connection.readiness
    sizes = [SCRATCH_SIZE, SCRATCH_SIZE, 1, SCRATCH_SIZE - 1]
    readiness._readable = lambda: sizes.pop(0)
    far.send(b"1")
    with assert_checkpoints():
        await readiness.wait()
    for _ in range(2):
        with assert_no_checkpoints():
            await readiness.wait()
        connection.check()
    assert sizes == [SCRATCH_SIZE - 1]
    with assert_checkpoints():
        await readiness.wait()
    assert sizes == []


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_after_a_full_read_a_paused_connection_is_not_read(pair: tuple[Connection, socket.socket]) -> None:
    connection, far = pair
    readiness: Any = connection.readiness
    readiness._readable = lambda: SCRATCH_SIZE
    far.send(b"1")
    await readiness.wait()
    readiness._readable = lambda: pytest.fail("paused")
    connection.readiness.pause()
    async with anyio.create_task_group() as group:
        group.start_soon(wait, connection.readiness)
        await settle()
        connection.readiness.wake()


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_a_receiver_whose_connection_was_paused_meanwhile_does_not_read(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, far = pair
    async with anyio.create_task_group() as group:
        group.start_soon(wait, connection.readiness)
        await settle()
        connection.readiness.pause()
        far.send(b"1")
    assert not connection.inbox


@pytest.mark.virtual_time
@pytest.mark.loops("trio")
async def test_trio_a_writer_that_is_not_wanted_any_more_does_not_write(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, far = pair
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            connection.sock.send(bytes(1 << 20))
    readiness: Any = connection.readiness
    readiness._writable = lambda: pytest.fail("not wanted")
    connection.readiness.want_write()
    await settle()
    connection.readiness.write_done()
    with pytest.raises(BlockingIOError):
        while True:
            far.recv(1 << 20)
    await settle()
    assert not readiness._writer
