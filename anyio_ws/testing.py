"""Tools for tests: connections in memory, a whole server in memory, a peer that speaks raw bytes, and a virtual clock.

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(request):
        return virtual_clock(request.param)

    async def test_chat():
        async with connected_pair(target="/room") as (client, server):
            ...

Nothing here needs pytest, and trio only where trio runs.
"""

import asyncio
import errno
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar, TypeVarTuple, Unpack

from anyio import CancelScope, EndOfStream, current_time

from .attending import Handler
from .client import connect
from .core import Core, closing_code
from .exceptions import ConnectFailed
from .loops import Loop, Waiter, open_loop
from .options import Options, SharedOptions
from .protocol import (
    ClientHandshake,
    Opcode,
    Request,
    Response,
    ServerHandshake,
    apply_mask,
    encode_close,
    encode_frame,
    parse_url,
)
from .protocol.extensions import Extension
from .protocol.http import HeadersLike
from .server import Server, ServerOptions
from .tasks import Tasks
from .transports.base import Transport
from .transports.memory import MemoryTransport, memory_pipe
from .websocket import WebSocket

__all__ = ["MemoryServer", "RawFrame", "RawPeer", "connected_pair", "raw_peer", "virtual_clock"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

URL = "ws://test"


def virtual_clock(backend: str) -> tuple[str, dict[str, Any]]:
    """Make a clock that jumps to the next timer instead of waiting: an hour takes a millisecond.

    It jumps also while a worker thread of anyio's or trio's is at work, as one is on large messages with compression.

    Args:
        backend: "asyncio" or "trio".

    Returns:
        What anyio's `anyio_backend` fixture, or `anyio.run`, takes: the name and the options of the backend.

    Raises:
        ValueError: there is none for this backend. (uvloop takes no other clock.)
    """
    if backend == "asyncio":
        return backend, {"loop_factory": _VirtualLoop}
    if backend == "trio":
        from trio.testing import MockClock

        return backend, {"clock": MockClock(autojump_threshold=0)}
    raise ValueError(f"there is a virtual clock for 'asyncio' and 'trio', not for {backend!r}")


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose selector advances the clock when there is nothing to do until a timer.

    While a thread of its executor is at work, which knows nothing of this clock, time passes at its real pace. (The
    threads of anyio.to_thread are not among these.)
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.working = 0  # threads
        super().__init__(_VirtualSelector(self))

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self.working += 1
        future.add_done_callback(self._worked)
        return future

    def _worked(self, _: object) -> None:
        self.working -= 1

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        self.working += 1  # asyncio ends the threads in another one, and allows it 300 s
        await super().shutdown_default_executor(*args, **kwargs)


class _VirtualSelector(selectors.DefaultSelector):
    def __init__(self, loop: _VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()  # only a thread or a socket can wake this loop
        if self._loop.working:
            began = time.monotonic()
            ready = super().select(timeout)
            self._loop.advance(time.monotonic() - began)
            return ready
        ready = super().select(0)
        if not ready:
            self._loop.advance(timeout)
        return ready


class _Pair:
    """What `connected_pair` and `raw_peer` share: an owner of two ends of a pipe."""

    def __init__(self) -> None:
        self._tasks: Tasks | None = None

    async def _enter(self) -> tuple[Loop, MemoryTransport, MemoryTransport]:
        if self._tasks is not None:
            raise RuntimeError(f"{type(self).__name__}() is for one `async with` only; make a new one")
        self._tasks = await Tasks().__aenter__()
        self._loop = open_loop(self._tasks.start_service)
        return self._loop, *memory_pipe(self._loop, self._loop)

    async def _leave(self, exc: BaseException | None) -> bool:
        assert self._tasks is not None
        self._loop.close()
        return await self._tasks.__aexit__(type(exc) if exc else None, exc, exc.__traceback__ if exc else None)


def _websocket(
    loop: Loop,
    transport: Transport,
    options: Options,
    *,
    is_client: bool,
    request: Request,
    response: Response,
    subprotocol: str | None = None,
    extensions: Sequence[Extension] = (),
) -> WebSocket:
    core = Core(transport, loop, options, is_client=is_client, extensions=extensions)
    ws = WebSocket(core, request, response, subprotocol)
    core.start(b"")
    return ws


class connected_pair(_Pair):
    """Two WebSockets that are connected in memory: `async with connected_pair() as (client, server): ...`.

    The opening handshake takes place, so `server.request` is what a server would see. Leaving closes both.

    Args:
        target: path and query of the request.
        headers: more headers of the request.
        subprotocols: of both ends.
        options: of both ends, as for `connect`.

    Cancellation: as for `connect`.
    """

    def __init__(
        self,
        *,
        target: str = "/",
        headers: HeadersLike = (),
        subprotocols: Sequence[str] = (),
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__()
        self._options = Options(**options)
        extensions = self._options.extensions
        self._client_handshake = ClientHandshake(
            parse_url(URL + target), additional_headers=headers, subprotocols=subprotocols, extensions=extensions
        )
        self._server_handshake = ServerHandshake(subprotocols=subprotocols, extensions=extensions)

    async def __aenter__(self) -> tuple[WebSocket, WebSocket]:
        loop, client_end, server_end = await self._enter()
        try:
            client, server = self._client_handshake, self._server_handshake
            request = server.feed(client.request_bytes())
            assert request is not None
            answer, data = server.accept()
            response = client.feed(data)
            assert response is not None
            self._client = _websocket(
                loop,
                client_end,
                self._options,
                is_client=True,
                request=client.request,
                response=response,
                subprotocol=client.subprotocol,
                extensions=client.extensions,
            )
            self._server = _websocket(
                loop,
                server_end,
                self._options,
                is_client=False,
                request=request,
                response=answer,
                subprotocol=server.subprotocol,
                extensions=server.extensions,
            )
        except BaseException as exc:
            await self._leave(exc)
            raise
        return self._client, self._server

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            if exc is None:
                await self._client.aclose()
            else:
                with CancelScope(shield=True, deadline=current_time() + self._options.ending_bound):
                    await self._client.aclose(closing_code(exc))
        except BaseException as late:
            self._abort()
            await self._leave(late)
            raise
        self._abort()
        return await self._leave(exc)

    def _abort(self) -> None:
        self._client.abort()
        self._server.abort()


class MemoryServer(Server):
    """A `Server` without sockets: `async with MemoryServer(handler) as server, server.connect("/path") as ws: ...`.

    Handshakes, `origins`, `process_request`, `max_connections` and `drain` are those of a real server.

    Args:
        handler: as for `Server`.
        options: as for `Server`, but for those that say where to listen.
    """

    def __init__(self, handler: Handler, **options: Unpack[ServerOptions]) -> None:
        super().__init__(handler, listeners=[], **options)  # type: ignore[misc]

    def connect(self, target: str = "/", **options: Any) -> connect:
        """Connect to this server.

        Args:
            target: path and query.
            options: as for `connect`, but for those that say how to get there.
        """
        return _MemoryConnect(self._pipe, target, **options)

    def _pipe(self, loop: Loop) -> MemoryTransport:
        if self._closed.is_set():
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the server is closed")
        client_end, server_end = memory_pipe(loop, self._loop)
        self.start_connection(server_end, None)
        return client_end


class _MemoryConnect(connect):
    def __init__(self, pipe: Callable[[Loop], Transport], target: str, **options: Any) -> None:
        super().__init__(URL + target, **options)
        self._pipe = pipe

    async def _connected(self, loop: Loop) -> Transport:
        try:
            return self._pipe(loop)
        except ConnectionRefusedError as exc:
            raise ConnectFailed(exc.errno, f"cannot connect to the MemoryServer: {exc.strerror}") from exc


class RawFrame(NamedTuple):
    """A frame as it came, unmasked."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0


class RawPeer:
    """The other end of a connection, which speaks bytes and frames and checks nothing. See `raw_peer`.

    One task may receive while another sends.
    """

    def __init__(self, transport: MemoryTransport, loop: Loop, *, is_client: bool) -> None:
        transport.receiver = self
        self._transport = transport
        self._loop = loop
        self._waiters: list[Waiter] = []
        self._is_client = is_client
        self._scratch = loop.budget.scratch
        self._received = bytearray()
        self._unsent: deque[bytes] = deque()
        self._eof = False

    # What a test says

    async def send(self, data: bytes) -> None:
        """Send bytes, and wait until the other end's transport has taken them."""
        self._unsent.append(data)
        self.writable()
        while self._unsent and not self._eof:
            await self._wait()

    async def send_frame(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool | None = None
    ) -> None:
        """Send a frame, masked if this end is the client, unless `masked` says otherwise."""
        key = b"\x37\xfa\x21\x3d" if (self._is_client if masked is None else masked) else None
        await self.send(encode_frame(opcode, payload, key, fin))

    async def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Send a Close frame."""
        await self.send_frame(Opcode.CLOSE, encode_close(code, reason))

    def send_eof(self) -> None:
        """End this side of the connection."""
        self._transport.shutdown()

    def close(self) -> None:
        """Close the transport, without a Close frame."""
        self._transport.close()
        self.eof()

    def reset(self) -> None:
        """Reset the connection."""
        self._transport.abort()
        self.eof()

    def pause(self) -> None:
        """Read nothing until `resume`, as a peer that hangs."""
        self._transport.pause()

    def resume(self) -> None:
        """Read again."""
        self._transport.resume()

    async def receive(self, count: int) -> bytes:
        """Receive exactly so many bytes.

        Raises:
            anyio.EndOfStream: fewer came.
        """
        while len(self._received) < count:
            if self._eof:
                raise EndOfStream
            await self._wait()
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    async def receive_frame(self) -> RawFrame:
        """Receive a frame.

        Raises:
            anyio.EndOfStream: the stream ended instead.
        """
        first, second = await self.receive(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(await self.receive(2 if length == 126 else 8))
        key = await self.receive(4) if second & 0x80 else b""
        payload = await self.receive(length)
        if key:
            payload = apply_mask(payload, key)
        return RawFrame(first & 0xF, payload, bool(first & 0x80), first >> 4 & 7)

    async def receive_eof(self) -> bytes:
        """Receive until the other end has closed; return what came before."""
        while not self._eof:
            await self._wait()
        return bytes(self._received)

    async def _wait(self) -> None:
        """Wait until anything has happened."""
        waiter = self._loop.waiter()
        self._waiters.append(waiter)
        try:
            await waiter.wait()
        finally:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    # The transport's receiver

    def get_buffer(self) -> memoryview:
        return self._scratch

    def received(self, count: int) -> None:
        self._received += self._scratch[:count]
        self._wake()

    def heard(self) -> None:
        """Nothing happens: it is not TLS."""

    def eof(self) -> None:
        self._eof = True
        self._wake()

    def writable(self) -> None:
        while self._unsent:
            data = self._unsent.popleft()
            taken = self._transport.write(data)
            if taken < len(data):
                self._unsent.appendleft(data[taken:])
                return
        self._wake()

    def fail(self, exc: Exception) -> None:
        self.eof()


class raw_peer(_Pair):
    """A WebSocket and a peer that speaks raw bytes: `async with raw_peer() as (peer, ws): ...`.

    The opening handshake is done. Leaving drops the connection.

    Args:
        role: the peer's; "client" gives a server's WebSocket.
        options: of the WebSocket, as for `connect`.
    """

    def __init__(self, role: Literal["client", "server"] = "client", **options: Unpack[SharedOptions]) -> None:
        super().__init__()
        self._is_client = role == "client"
        self._options = Options(**options)

    async def __aenter__(self) -> tuple[RawPeer, WebSocket]:
        loop, near, far = await self._enter()
        request = Request("GET", "/", {"Host": "test"}, is_websocket=True)
        self._ws = _websocket(
            loop, near, self._options, is_client=not self._is_client, request=request, response=Response(101)
        )
        peer = RawPeer(far, loop, is_client=self._is_client)
        far.start()
        return peer, self._ws

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._ws.abort()
        return await self._leave(exc)
