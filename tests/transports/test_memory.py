"""Two connected ends in memory: they behave as sockets do, and nothing comes back within a call."""

from collections.abc import AsyncGenerator, Callable

import anyio
import pytest

from anyio_ws.loops import open_loop
from anyio_ws.tasks import Tasks
from anyio_ws.transports.memory import CAPACITY, MemoryTransport, memory_pipe
from support.tools import settle, wait


class Recorder:
    """A receiver that notes what it is told."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.data = bytearray()
        self.events: list[str] = []
        self.errors: list[Exception] = []
        self.buffer = memoryview(bytearray(50_000))
        self.on_received: Callable[[], None] = lambda: None
        transport.receiver = self

    def get_buffer(self) -> memoryview:
        return self.buffer

    def received(self, count: int) -> None:
        assert count > 0
        self.data += self.buffer[:count]
        self.on_received()
        self.transport.waiter.wake()

    def eof(self) -> None:
        self.events.append("eof")

    def writable(self) -> None:
        self.events.append("writable")

    def fail(self, exc: Exception) -> None:
        self.events.append("fail")
        self.errors.append(exc)


End = tuple[MemoryTransport, Recorder]


@pytest.fixture
async def ends() -> AsyncGenerator[tuple[End, End]]:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        one, two = memory_pipe(loop, loop)
        at_one, at_two = Recorder(one), Recorder(two)
        one.start()
        two.start()
        await settle()
        yield (one, at_one), (two, at_two)
        loop.close()


Ends = tuple[End, End]


async def test_what_is_written_arrives_in_the_next_tick(ends: Ends) -> None:
    (one, _), (_, at_two) = ends
    assert one.write_vector((b"one", bytearray(b"two"), memoryview(b"three"))) == 11
    assert at_two.data == b""
    await settle()
    assert at_two.data == b"onetwothree"


async def test_a_task_in_wait_is_woken(ends: Ends) -> None:
    (one, _), (two, at_two) = ends
    async with anyio.create_task_group() as group:
        group.start_soon(wait, two.waiter)
        await settle()
        one.write(b"hello")
    assert at_two.data == b"hello"


async def test_no_more_is_taken_than_a_sockets_buffer_holds(ends: Ends) -> None:
    (one, at_one), (two, at_two) = ends
    two.pause()
    assert one.write(bytes(CAPACITY + 10)) == CAPACITY
    assert one.write(b"no more") == 0
    await settle()
    assert at_one.events == []
    two.resume()
    await settle()
    assert len(at_two.data) == CAPACITY
    assert at_one.events == ["writable"]
    assert one.write(b"more") == 4


async def test_while_paused_nothing_is_received(ends: Ends) -> None:
    (one, _), (two, at_two) = ends
    at_two.on_received = two.pause
    one.write(b"one")
    one.write(b"two")
    two.watch()
    await settle()
    assert at_two.data == b"one"
    two.poll()
    assert at_two.data == b"one"
    two.resume()
    await settle()
    assert at_two.data == b"onetwo"


async def test_poll_reads_at_once(ends: Ends) -> None:
    (one, _), (two, at_two) = ends
    one.write(b"hello")
    two.poll()
    assert at_two.data == b"hello"
    two.close()
    two.poll()


async def test_shutdown_is_an_end_told_once_and_the_other_direction_goes_on(ends: Ends) -> None:
    (one, at_one), (two, at_two) = ends
    one.write(b"bye")
    one.shutdown()
    await settle()
    two.poll()
    assert at_two.data == b"bye"
    assert at_two.events == ["eof"]
    two.write(b"answer")
    await settle()
    assert at_one.data == b"answer"


async def test_close_is_an_end_and_then_a_write_breaks(ends: Ends) -> None:
    (one, _), (two, at_two) = ends
    one.write(b"bye")
    one.close()
    one.close()
    one.abort()
    await settle()
    assert at_two.data == b"bye"
    assert at_two.events == ["eof"]
    assert two.write(b"lost") == 0
    assert isinstance(at_two.errors[0], BrokenPipeError)


async def test_close_with_unread_bytes_is_a_reset(ends: Ends) -> None:
    (one, _), (two, at_two) = ends
    one.pause()
    two.write(b"unread")
    one.close()
    await settle()
    assert isinstance(at_two.errors[0], ConnectionResetError)


async def test_abort_is_a_reset(ends: Ends) -> None:
    (one, _), (_, at_two) = ends
    one.abort()
    await settle()
    assert at_two.events == ["fail"]
    assert isinstance(at_two.errors[0], ConnectionResetError)


async def test_a_reset_while_paused_is_found_by_poll(ends: Ends) -> None:
    (one, _), (two, at_two) = ends
    two.pause()
    one.abort()
    await settle()
    assert at_two.events == []
    two.poll()
    assert isinstance(at_two.errors[0], ConnectionResetError)


async def test_close_lets_wait_return(ends: Ends) -> None:
    (one, _), _ = ends
    async with anyio.create_task_group() as group:
        group.start_soon(wait, one.waiter)
        await settle()
        one.close()


async def test_closing_while_receiving_ends_it(ends: Ends) -> None:
    (one, _), (two, at_two) = ends
    at_two.on_received = two.close
    one.write(b"one")
    one.write(b"two")
    await settle()
    assert at_two.data == b"one"
    assert at_two.events == []


async def test_there_are_no_attributes(ends: Ends) -> None:
    (one, _), _ = ends
    assert one.attributes == {}
