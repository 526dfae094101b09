"""The socket transport, over real sockets on every loop."""

import errno
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_ws.loops import Loop, open_loop
from anyio_ws.tasks import Tasks
from anyio_ws.transports import socket as module
from anyio_ws.transports.socket import SocketTransport
from support.tools import settle, wait

pytestmark = pytest.mark.real_time


class Recorder:
    """A receiver that notes what it is told, and wakes who waits."""

    def __init__(self, transport: SocketTransport) -> None:
        self.transport = transport
        self.data = bytearray()
        self.events: list[str] = []
        self.errors: list[Exception] = []
        self.buffer = memoryview(bytearray(65536))
        self.changed = anyio.Event()
        self.on_received: Callable[[], None] = lambda: None
        self.on_writable: Callable[[], None] = lambda: None
        transport.receiver = self

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Somebody else reads."""
        while not condition():
            await self.changed.wait()

    async def read_until(self, condition: Callable[[], bool]) -> None:
        """This task reads, as a receiver does."""
        while not condition():
            await self.transport.waiter.wait()

    def get_buffer(self) -> memoryview:
        return self.buffer

    def received(self, count: int) -> None:
        self.data += self.buffer[:count]
        self.on_received()
        self.transport.waiter.wake()
        self._note("received")

    def eof(self) -> None:
        self.transport.waiter.wake()
        self._note("eof")

    def writable(self) -> None:
        self.on_writable()
        self._note("writable")

    def fail(self, exc: Exception) -> None:
        self.errors.append(exc)
        self.transport.abort()
        self._note("fail")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


@asynccontextmanager
async def owner() -> AsyncGenerator[Loop]:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        yield loop
        loop.close()


@pytest.fixture
async def ends() -> AsyncGenerator[tuple[SocketTransport, Recorder, socket.socket]]:
    """A transport, not started; what it reports; and a blocking socket at the other end."""
    async with owner() as loop:
        near, far = tcp_pair()
        far.settimeout(5)
        with far:
            transport = SocketTransport(near, loop)
            yield transport, Recorder(transport), far
            transport.abort()


Ends = tuple[SocketTransport, Recorder, socket.socket]


# Reading


async def test_a_task_in_wait_gets_what_arrives(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    far.sendall(b"one")
    await recorder.read_until(lambda: recorder.data == b"one")
    async with anyio.create_task_group() as group:
        group.start_soon(recorder.read_until, lambda: recorder.data == b"onetwo")
        await settle()
        far.sendall(b"two")


async def test_without_a_task_in_wait_somebody_reads_soon(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    far.sendall(b"hello")
    with anyio.fail_after(0.5):
        await recorder.until(lambda: recorder.data == b"hello")


async def test_watch_reads_from_now_on(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    transport.watch()
    transport.watch()
    far.sendall(b"hello")
    await recorder.until(lambda: recorder.data == b"hello")


async def test_while_paused_nothing_is_read(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    transport.pause()
    transport.pause()
    far.sendall(b"hello")
    transport.watch()
    transport.poll()
    await settle()
    assert recorder.data == b""
    transport.resume()
    transport.resume()
    await recorder.read_until(lambda: recorder.data == b"hello")


async def test_a_pause_while_somebody_waits_for_the_socket_holds(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    transport.watch()
    await settle()
    transport.pause()
    far.sendall(b"hello")
    await settle()
    assert recorder.data == b""
    transport.resume()
    transport.watch()
    await recorder.until(lambda: recorder.data == b"hello")


async def test_poll_reads_once_without_waiting(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    transport.poll()
    far.sendall(b"hello")
    transport.poll()
    assert recorder.data == b"hello"
    transport.close()
    transport.poll()


async def test_wake_lets_wait_return(ends: Ends) -> None:
    transport, _, _ = ends
    transport.start()
    transport.waiter.wake()  # nobody waits: forgotten
    async with anyio.create_task_group() as group:
        group.start_soon(wait, transport.waiter)
        await settle()
        transport.waiter.wake()


async def test_wait_returns_when_the_transport_is_closed(ends: Ends) -> None:
    transport, _, _ = ends
    transport.start()
    async with anyio.create_task_group() as group:
        group.start_soon(wait, transport.waiter)
        await settle()
        transport.close()


async def test_a_cancelled_wait_loses_nothing(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(wait, transport.waiter)
            await settle()
            far.sendall(b"hello")
            scope.cancel()
    await recorder.read_until(lambda: recorder.data == b"hello")


async def test_the_end_is_told_once(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    far.sendall(b"bye")
    far.shutdown(socket.SHUT_WR)
    await recorder.read_until(lambda: "eof" in recorder.events)
    await settle()
    transport.poll()
    assert recorder.events.count("eof") == 1
    assert transport.write(b"still") == 5
    assert far.recv(10) == b"still"


async def test_a_reset_fails(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    await recorder.read_until(lambda: bool(recorder.errors))
    assert isinstance(recorder.errors[0], ConnectionResetError)
    assert len(recorder.errors) == 1


async def test_a_reset_while_paused_is_found_by_poll(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    transport.pause()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    transport.poll()
    (error,) = recorder.errors
    assert isinstance(error, OSError)
    assert error.errno == errno.ECONNRESET


async def test_a_bug_in_the_receiver_fails_the_connection(ends: Ends) -> None:
    transport, recorder, far = ends

    def on_received() -> None:
        raise KeyError("bug")

    recorder.on_received = on_received
    transport.start()
    far.sendall(b"hello")
    await recorder.read_until(lambda: bool(recorder.errors))
    assert isinstance(recorder.errors[0], KeyError)


@pytest.mark.parametrize("where", ["on_received", "on_writable"])
async def test_a_keyboard_interrupt_aborts_and_goes_on(ends: Ends, where: str) -> None:
    transport, recorder, far = ends

    def interrupt() -> None:
        raise KeyboardInterrupt

    setattr(recorder, where, interrupt)
    transport.start()
    far.sendall(b"hello")
    with pytest.raises(KeyboardInterrupt):
        if where == "on_received":
            transport.poll()
        else:
            transport._writable()
    assert transport.closed
    assert isinstance(recorder.errors[0], ConnectionAbortedError)  # its waiters wake


# Writing


async def test_what_is_taken_arrives(ends: Ends) -> None:
    transport, _, far = ends
    assert transport.write(b"one") == 3
    assert transport.write_vector((b"two", bytearray(b"three"), memoryview(b"four"))) == 12
    assert far.recv(100) == b"onetwothreefour"


async def test_without_sendmsg_one_buffer_is_written_at_a_time(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SENDMSG", False)
    monkeypatch.setattr(socket.socket, "sendmsg", None, raising=False)
    transport, _, far = ends
    assert transport.write_vector((b"one", bytearray(b"two"), memoryview(b"three"))) == 11
    assert far.recv(100) == b"onetwothree"
    assert 0 < transport.write_vector((bytes(20_000_000), b"more")) < 20_000_000


async def test_what_one_call_does_not_take_of_a_long_vector_may_be_tried_again(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    unsent = [bytes([i]) for i in range(100)]

    def on_writable() -> None:
        del unsent[: transport.write_vector(unsent)]

    recorder.on_writable = on_writable
    on_writable()
    assert 0 < len(unsent) < 100
    await recorder.until(lambda: not unsent)
    assert far.recv(200) == bytes(range(100))


async def test_of_several_buffers_as_much_is_taken_as_there_is_room_for(ends: Ends) -> None:
    transport, _, _ = ends
    assert 0 < transport.write_vector((bytes(20_000_000), b"more")) < 20_000_000


async def test_a_full_socket_says_when_it_takes_more(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    rest = memoryview(bytes(20_000_000))

    def on_writable() -> None:
        nonlocal rest
        rest = rest[transport.write(rest) :]

    recorder.on_writable = on_writable
    on_writable()
    assert rest
    assert transport.write_vector((b"x", b"y")) == 0

    def drain() -> int:
        count = 0
        while count < 20_000_000:
            count += len(far.recv(1 << 20))
        return count

    assert await anyio.to_thread.run_sync(drain) == 20_000_000
    await recorder.until(lambda: not rest)
    writables = recorder.events.count("writable")
    await settle()
    assert recorder.events.count("writable") <= writables + 1  # it has stopped asking


async def test_a_waiting_reader_that_is_woken_does_not_disturb_the_writer(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    while transport.write(bytes(1_000_000)):
        pass
    async with anyio.create_task_group() as group:
        group.start_soon(wait, transport.waiter)
        await settle()
        transport.waiter.wake()
    await settle()
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            far.recv(1 << 20)
    await recorder.until(lambda: "writable" in recorder.events)


@pytest.mark.parametrize("vector", [False, True])
async def test_a_broken_write_first_reads_what_the_peer_said(vector: bool, ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    far.sendall(b"last words")
    far.close()
    transport._sock.shutdown(socket.SHUT_WR)
    assert (transport.write_vector((b"lo", b"st")) if vector else transport.write(b"lost")) == 0
    assert recorder.data == b"last words"
    assert recorder.events == ["received", "fail"]  # the end itself says less than the error does
    assert isinstance(recorder.errors[0], BrokenPipeError)


async def test_a_write_during_a_broken_write_does_not_read_in_turn(ends: Ends) -> None:
    transport, recorder, far = ends
    recorder.buffer = memoryview(bytearray(1))
    recorder.on_received = lambda: taken.append(transport.write(b"answer"))
    taken: list[int] = []
    transport.start()
    far.sendall(bytes(5000))
    far.close()
    transport._sock.shutdown(socket.SHUT_WR)
    assert transport.write(b"lost") == 0
    assert taken == [0] * 5000
    (error,) = recorder.errors
    assert isinstance(error, BrokenPipeError)


async def test_a_bug_in_writable_fails_the_connection(ends: Ends) -> None:
    transport, recorder, far = ends

    def on_writable() -> None:
        raise KeyError("bug")

    recorder.on_writable = on_writable
    transport.start()
    while transport.write(bytes(1_000_000)):
        pass
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            far.recv(1 << 20)
    await recorder.until(lambda: bool(recorder.errors))
    assert isinstance(recorder.errors[0], KeyError)


# Ending


async def test_shutdown_ends_one_direction(ends: Ends) -> None:
    transport, recorder, far = ends
    transport.start()
    transport.write(b"bye")
    transport.shutdown()
    assert far.recv(10) == b"bye"
    assert far.recv(10) == b""
    far.sendall(b"answer")
    await recorder.read_until(lambda: recorder.data == b"answer")


async def test_shutdown_of_a_socket_that_is_gone_is_silent(ends: Ends) -> None:
    transport, _, _ = ends
    transport.close()
    transport.shutdown()
    transport.close()
    transport.abort()
    transport.resume()
    assert transport._sock.fileno() == -1


async def test_abort_resets(ends: Ends) -> None:
    transport, _, far = ends
    transport.abort()
    with pytest.raises(ConnectionResetError):
        far.recv(1)


async def test_close_while_a_write_waits_stops_it(ends: Ends) -> None:
    transport, recorder, _ = ends
    transport.start()
    while transport.write(bytes(1_000_000)):
        pass
    await settle()
    transport.close()
    await settle()
    assert "writable" not in recorder.events


# Facts


async def test_attributes_of_tcp(ends: Ends) -> None:
    transport, _, far = ends
    attributes: dict[Any, Any] = {key: value() for key, value in transport.attributes.items()}
    assert attributes == {
        SocketAttribute.family: socket.AF_INET,
        SocketAttribute.local_address: far.getpeername(),
        SocketAttribute.local_port: far.getpeername()[1],
        SocketAttribute.remote_address: far.getsockname(),
        SocketAttribute.remote_port: far.getsockname()[1],
        SocketAttribute.raw_socket: transport._sock,
    }


async def test_attributes_of_a_unix_socket() -> None:
    near, far = socket.socketpair()
    async with owner() as loop:
        with far:
            transport = SocketTransport(near, loop)
            assert transport.attributes[SocketAttribute.local_address]() == ""
            assert SocketAttribute.local_port not in transport.attributes
            transport.start()
            transport.pause()  # no TCP keepalive here
            transport.close()
            assert SocketAttribute.remote_address not in transport.attributes


async def test_tcp_keepalive_stands_in_while_paused(ends: Ends) -> None:
    transport, _, _ = ends
    assert transport._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not transport._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    transport.start()
    transport.pause()
    assert transport._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert transport._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20


class Stubborn(socket.socket):
    """As on macOS, where setsockopt on a socket that the peer has reset fails."""

    def setsockopt(self, *args: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


async def test_options_that_the_system_refuses_break_nothing() -> None:
    near, far = tcp_pair()
    async with owner() as loop:
        with far:
            transport = SocketTransport(Stubborn(fileno=near.detach()), loop)
            recorder = Recorder(transport)
            transport.start()
            transport.pause()
            far.sendall(b"hello")
            transport.resume()
            await recorder.read_until(lambda: recorder.data == b"hello")
            transport.abort()


async def test_options_that_the_system_does_not_have_are_left_out(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.KEEPALIVE, "TCP_NO_SUCH_OPTION", 1)
    transport, _, _ = ends
    transport.start()
    transport.pause()
    assert transport._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
