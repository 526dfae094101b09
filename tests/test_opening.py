"""Moving the bytes of an opening handshake, and handing the transport over to the connection."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.streams.stapled import StapledObjectStream

from anyio_ws.core import Core
from anyio_ws.loops import Loop, Waiter, open_loop
from anyio_ws.loops.base import SCRATCH_SIZE
from anyio_ws.opening import MAX_EARLY, Opening
from anyio_ws.options import Options
from anyio_ws.protocol import encode_frame
from anyio_ws.tasks import Tasks
from anyio_ws.testing import RawPeer
from anyio_ws.transports.base import Buffer
from anyio_ws.transports.memory import CAPACITY, MemoryTransport, memory_pipe
from anyio_ws.transports.stream import CHUNK, StreamTransport
from support.tools import settle


def line(data: bytes) -> bytes | None:
    """What the openings below wait for: one line in one piece."""
    if not data.endswith(b"\n"):
        raise ValueError(f"no line: {data!r}")
    return data


class Ends:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.transport, far = memory_pipe(loop, loop)
        self.peer = RawPeer(far, loop, is_client=True)
        far.start()
        self.opening = Opening(self.transport, loop, line)

    def core(self, receive_buffer_size: int = 65536) -> Core:
        options = Options(ping_interval=None, receive_buffer_size=receive_buffer_size)
        return Core(self.transport, self.loop, options, is_client=False)


class Ready(Waiter):
    """There is always something to read, so that `wait` never suspends, as a socket's on trio."""

    waits = 0

    async def wait(self) -> None:
        self.waits += 1
        assert self.waits < 1000, "the other tasks do not get their turn"

    def wake(self) -> None:
        pass


class Flooded(MemoryTransport):
    full = False

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.waiter = Ready()

    def write(self, data: Buffer) -> int:
        return 0 if self.full else super().write(data)


@asynccontextmanager
async def flooded() -> AsyncGenerator[tuple[Flooded, Opening[bytes]]]:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        transport, far = Flooded(loop), MemoryTransport(loop)
        transport.peer, far.peer = far, transport
        yield transport, Opening(transport, loop, line)
        transport.abort()
        loop.close()


@asynccontextmanager
async def new_ends() -> AsyncGenerator[Ends]:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        ends = Ends(loop)
        yield ends
        ends.transport.abort()
        loop.close()


@pytest.fixture
async def ends() -> AsyncGenerator[Ends]:
    async with new_ends() as ends:
        yield ends


MESSAGE = encode_frame(1, "hello", b"mask")
CLOSE = encode_frame(8, b"\x03\xe8", b"mask")


async def test_what_comes_before_the_hand_over_reaches_the_connection(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    assert await ends.opening.receive() == b"open\n"
    await ends.peer.send(MESSAGE)
    await settle()
    core = ends.core()
    ends.opening.hand_over(core, MESSAGE)
    assert list(core.inbox.messages) == ["hello", "hello"]
    await ends.peer.send(MESSAGE)
    await settle()
    assert len(core.inbox.messages) == 3
    core.abort()


async def test_what_the_inbox_has_no_room_for_waits_in_the_decoder_however_much_it_is(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    core = ends.core(receive_buffer_size=100)
    count = 3 * SCRATCH_SIZE // len(MESSAGE)
    ends.opening.hand_over(core, MESSAGE * count)
    assert core.inbox.paused
    received = 0
    while core.inbox.messages:
        assert len(core.inbox.messages) <= 2
        received += len(core.inbox.messages)
        core.inbox.messages.clear()
        core.inbox.make_room(0)
    assert received == count
    assert not core.inbox.paused
    core.abort()


async def test_not_too_much_is_taken_before_the_hand_over(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    async with anyio.create_task_group() as group:
        group.start_soon(ends.peer.send, MESSAGE * 100_000)
        await settle()
        assert MAX_EARLY <= len(ends.opening.early) <= MAX_EARLY + CAPACITY
        core = ends.core()
        ends.opening.hand_over(core, b"")
        assert core.inbox.messages[0] == "hello"
        core.abort()
        await settle()
        group.cancel_scope.cancel()


async def test_an_end_before_the_hand_over_is_the_connections(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    await ends.peer.send(MESSAGE)
    ends.peer.send_eof()
    await settle()
    core = ends.core()
    ends.opening.hand_over(core, b"")
    assert list(core.inbox.messages) == ["hello"]
    assert core.close_info is not None
    assert isinstance(core.close_info.cause, EOFError)
    assert core.gone


async def test_a_close_and_an_end_before_the_hand_over_leave_nothing_open(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    await ends.peer.send(CLOSE)
    ends.peer.send_eof()
    await settle()
    core = ends.core()
    ends.opening.hand_over(core, b"")
    await settle()
    assert core.close_info is not None
    assert core.close_info.clean
    assert core.gone


@pytest.mark.parametrize("closes", [False, True])
async def test_an_end_before_the_hand_over_comes_after_what_the_inbox_has_no_room_for(closes: bool, ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    await ends.peer.send(MESSAGE * 10 + CLOSE * closes)
    ends.peer.send_eof()
    await settle()
    core = ends.core(receive_buffer_size=100)
    ends.opening.hand_over(core, b"")
    for _ in range(5):
        assert core.close_info is None
        assert list(core.inbox.messages) == ["hello"] * 2
        core.inbox.messages.clear()
        core.inbox.make_room(0)
    await settle()
    assert core.gone
    assert not core.inbox.messages
    assert core.close_info is not None
    assert core.close_info.clean == closes
    assert isinstance(core.close_info.cause, EOFError) != closes


async def test_a_reset_before_the_hand_over_is_the_connections(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    ends.peer.reset()
    await settle()
    core = ends.core()
    ends.opening.hand_over(core, b"")
    assert core.close_info is not None
    assert isinstance(core.close_info.cause, ConnectionResetError)


async def test_the_first_error_counts(ends: Ends) -> None:
    first = OSError("first")
    ends.opening.fail(first)
    ends.opening.fail(OSError("second"))
    with pytest.raises(OSError, match="first"):
        await ends.opening.receive()


async def test_a_long_message_is_sent_as_the_transport_takes_it(ends: Ends) -> None:
    data = bytes(range(256)) * 1000
    async with anyio.create_task_group() as group:
        group.start_soon(ends.opening.send, data)
        assert await ends.peer.receive(len(data)) == data
    ends.opening.writable()  # there is no more


async def test_a_send_starts_the_transport() -> None:
    there, request = anyio.create_memory_object_stream[bytes]()
    answer, back = anyio.create_memory_object_stream[bytes]()
    async with Tasks() as tasks, request, answer:
        loop = open_loop(tasks.start_service)
        transport = StreamTransport(StapledObjectStream(there, back), loop)
        opening = Opening(transport, loop, line)
        data = b"x" * (2 * CHUNK + 1)  # more than is taken at once
        async with anyio.create_task_group() as group:
            group.start_soon(opening.send, data)
            got = b""
            with anyio.fail_after(10):
                while len(got) < len(data):
                    got += await request.receive()
        assert got == data
        transport.abort()
        loop.close()


async def test_a_send_does_not_read_on_if_too_much_had_come(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    async with anyio.create_task_group() as group:
        group.start_soon(ends.peer.send, bytes(10 * MAX_EARLY))
        await settle()
        early = len(ends.opening.early)
        await ends.opening.send(b"an answer")
        await settle()
        assert len(ends.opening.early) == early
        group.cancel_scope.cancel()


async def test_a_send_that_breaks_raises(ends: Ends) -> None:
    ends.peer.pause()
    async with anyio.create_task_group() as group:

        async def send() -> None:
            with pytest.raises(OSError, match="reset"):
                await ends.opening.send(bytes(CAPACITY * 2))

        group.start_soon(send)
        ends.transport.start()
        await settle()
        ends.peer.reset()


async def test_after_something_invalid_an_answer_can_be_sent_and_the_rest_is_discarded(ends: Ends) -> None:
    await ends.peer.send(b"nonsense")
    with pytest.raises(ValueError, match="no line"):
        await ends.opening.receive()
    await ends.peer.send(b"more nonsense")
    await settle()
    await ends.opening.send(b"go away")
    async with anyio.create_task_group() as group:
        group.start_soon(ends.opening.hang_up, 1)
        assert await ends.peer.receive_eof() == b"go away"
        await ends.peer.send(b"even more")
        ends.peer.send_eof()
    assert ends.transport.closed


async def test_hanging_up_reads_on_if_too_much_had_come(ends: Ends) -> None:
    await ends.peer.send(b"open\n")
    await ends.opening.receive()
    ends.peer._unsent.append(bytes(10 * MAX_EARLY))
    ends.peer.writable()
    await settle()
    await ends.opening.send(b"go away")
    async with anyio.create_task_group() as group:
        group.start_soon(ends.opening.hang_up, 1)
        assert await ends.peer.receive_eof() == b"go away"
        await settle()
        assert not ends.peer._unsent
        ends.peer.send_eof()
    assert isinstance(ends.transport, MemoryTransport)
    assert not ends.transport._arrived


async def test_a_peer_that_floods_a_hang_up_lets_other_tasks_have_their_turn() -> None:
    async with flooded() as (transport, opening), anyio.create_task_group() as group:
        group.start_soon(opening.hang_up, 1)
        await settle()
        assert not transport.closed
        opening.eof()
    assert transport.closed


async def test_a_peer_that_floods_a_send_lets_other_tasks_have_their_turn() -> None:
    async with flooded() as (transport, opening), anyio.create_task_group() as group:
        transport.full = True
        group.start_soon(opening.send, b"an answer")
        await settle()
        transport.full = False
        opening.writable()


async def test_hanging_up_waits_for_what_the_transport_holds_although_the_peer_has_ended() -> None:
    class Holding(Flooded):
        held = True

        @property
        def unsent(self) -> bool:
            return self.held

    async with Tasks() as tasks, anyio.create_task_group() as group:
        loop = open_loop(tasks.start_service)
        transport, far = Holding(loop), MemoryTransport(loop)
        transport.peer, far.peer = far, transport
        opening = Opening(transport, loop, line)
        opening.eof()
        group.start_soon(opening.hang_up, 1)
        await settle()
        assert not transport.closed
        transport.held = False
        await settle()
        assert transport.closed
        loop.close()
