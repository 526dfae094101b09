"""What connect(), accept() and the server share: the bytes of an opening handshake, and the block of a connection."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from anyio import CancelScope, current_time

from .core import Core, closing_code
from .loops import Loop, open_loop
from .options import Options
from .tasks import Tasks
from .transports.base import Transport
from .websocket import WebSocket

T = TypeVar("T")

MAX_EARLY = 65536
"""Bytes taken behind a complete handshake before the connection is open: a peer may not wait for the answer."""


class Opening(Generic[T]):
    """The transport's receiver during the opening handshake.

    Args:
        transport: connected; it is started by the first `receive` or `send`.
        loop: the owner's adapter.
        feed: takes bytes, `b""` for EOF, and returns what was awaited once it is complete.
    """

    __slots__ = (
        "_discarding", "_eof", "_error", "_feed", "_invalid", "_loop", "_result", "_scratch", "_started", "_transport",
        "_unsent", "answered", "early",
    )  # fmt: skip

    def __init__(self, transport: Transport, loop: Loop, feed: Callable[[bytes], T | None]) -> None:
        transport.receiver = self
        self._transport = transport
        self._loop = loop
        self._feed = feed
        self._started = False
        self._scratch = loop.budget.scratch
        self._result: T | None = None
        self._invalid: Exception | None = None  # what came is not what may come
        self._error: Exception | None = None  # the transport failed
        self._discarding = False
        self._eof = False
        self._unsent: memoryview | None = None
        self.answered: bool = False  # something was sent
        self.early: bytes | bytearray = b""  # what came behind the handshake, in later reads

    async def receive(self) -> T:
        """Wait for what was awaited.

        Raises:
            InvalidHandshake: it is not what may come.
            OSError, ssl.SSLError: the transport failed.
        """
        self._start()
        while self._result is None:
            if self._invalid is not None:
                raise self._invalid
            if self._error is not None:
                raise self._error
            await self._transport.waiter.wait()
        return self._result

    def _start(self) -> None:
        if not self._started:  # again, it would read on although it was paused
            self._started = True
            self._transport.start()

    async def send(self, data: bytes) -> None:
        """Send bytes, and wait until the transport has taken them.

        Raises:
            OSError, ssl.SSLError: the transport failed.
        """
        self._start()
        self.answered = True
        taken = self._transport.write(data)
        if taken < len(data):
            self._unsent = memoryview(data)[taken:]
        while self._unsent and self._error is None:
            await self._transport.waiter.wait()
            await self._loop.checkpoint()  # while the peer floods us, waiting may take no time
        if self._error is not None:
            raise self._error

    async def hang_up(self, seconds: float) -> None:
        """End our side; give the peer some time to read the answer and to end too. Then close."""
        self._discarding = True
        self._transport.resume()  # the peer may have said so much that reading was paused
        self._transport.shutdown()
        with CancelScope(deadline=current_time() + seconds):
            while (not self._eof or self._transport.unsent) and self._error is None:
                await self._transport.waiter.wait()
                await self._loop.checkpoint()  # while the peer floods us, waiting may take no time
        self._transport.close()

    def get_buffer(self) -> memoryview:
        return self._scratch

    def received(self, count: int) -> None:
        if self._discarding:
            return
        data = bytes(self._scratch[:count])
        if self._result is None:
            if self._invalid is None:
                self._try(data)
        else:
            if not self.early:
                self.early = bytearray()  # which takes the next without a copy
            self.early += data
            if len(self.early) >= MAX_EARLY:
                self._transport.pause()

    def heard(self) -> None:
        pass

    def eof(self) -> None:
        self._eof = True
        if self._result is None and self._invalid is None:
            self._try(b"")
        self._transport.waiter.wake()

    def _try(self, data: bytes) -> None:
        try:
            self._result = self._feed(data)
        except Exception as exc:
            self._invalid = exc
        if self._result is not None or self._invalid is not None:
            self._transport.waiter.wake()

    def writable(self) -> None:
        if self._unsent:
            self._unsent = self._unsent[self._transport.write(self._unsent) :]
        if not self._unsent:
            self._transport.waiter.wake()

    def fail(self, exc: Exception) -> None:
        self._error = self._error or exc
        self._transport.waiter.wake()

    def hand_over(self, core: Core, trailing_data: bytes) -> None:
        """The handshake is done: the transport goes on to the connection."""
        core.start(trailing_data + self.early)
        if self._error is not None:
            core.fail(self._error)
        elif self._eof:
            core.eof()


async def end(ws: WebSocket, core: Core, code: int, seconds: float) -> None:
    """Close a connection whose block, or handler, a cancellation or an exception has ended.

    The Close is sent before anything suspends: the time is the peer's, who is to answer. It would not do to spend it on
    the other tasks of a busy event loop, which may be thousands of connections that end at the same time.
    """
    core.close(code, "")
    with CancelScope(shield=True, deadline=current_time() + seconds):
        await ws.aclose()


class Block(ABC):
    """`async with`: opens a connection, and closes it with the code that says how the block ended.

    1000 on a normal exit, 1001 on cancellation, 1011 on an exception; the latter two are shielded, for at most
    `Options.ending_bound` seconds. Leaving raises what the block raised, the same object; never that the connection
    failed.
    """

    _options: Options

    def __init__(self) -> None:
        self._tasks: Tasks | None = None

    @abstractmethod
    async def _open(self, loop: Loop) -> tuple[WebSocket, Core]:
        """Open the connection, or raise and leave nothing open."""

    async def __aenter__(self) -> WebSocket:
        if self._tasks is not None:
            raise RuntimeError(f"{type(self).__name__}() is for one `async with` only; make a new one")
        self._tasks = await Tasks().__aenter__()
        self._loop = open_loop(self._tasks.start_service)
        self._task = self._loop.current_task()
        try:
            self._websocket, self._core = await self._open(self._loop)
        except BaseException as exc:
            await self._leave(exc)
            raise
        return self._websocket

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._loop.current_task() is not self._task:
            raise RuntimeError(f"the block of {type(self).__name__}() must be left by the task that entered it")
        ws = self._websocket
        try:
            if exc is None:
                await ws.aclose()
            else:
                await end(ws, self._core, closing_code(exc), self._options.ending_bound)
        except BaseException as late:
            await self._leave(late)
            raise
        return await self._leave(exc)

    async def _leave(self, exc: BaseException | None) -> bool:
        assert self._tasks is not None
        if hasattr(self, "_websocket"):
            self._websocket.abort()
        self._loop.close()
        return await self._tasks.__aexit__(type(exc) if exc else None, exc, exc.__traceback__ if exc else None)
