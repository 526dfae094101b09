"""Any byte stream as a transport: anyio's ByteStream, an object stream of bytes, or trio.abc.Stream.

Theory of operation. Such a stream cannot try without waiting, and cancelling its `send` may tear a frame. So a reader
and a writer task live as long as the transport does. `close` lets the writer finish with what was taken, within
CLOSE_SECONDS, even if the owner leaves meanwhile; only `abort` cancels it. Both end the stream.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from anyio import CancelScope, EndOfStream, create_task_group, move_on_after
from anyio.abc import ByteStream, ObjectStream

from anyio_ws.loops import Loop, uninterruptible

from .base import Buffer, Transport

CHUNK = 65536
"""Bytes asked for at once, and taken from the writer before the stream has sent the previous ones."""

CLOSE_SECONDS = 1
"""Seconds that sending the rest may take, and closing the stream, for those that say goodbye first, as TLS does."""


class TrioStream(Protocol):
    """The part of `trio.abc.HalfCloseableStream` that is used; `send_eof` may be missing."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes: ...

    async def aclose(self) -> None: ...


AnyStream = ByteStream | ObjectStream[bytes] | TrioStream


class StreamTransport(Transport):
    """Moves bytes over a stream, which it owns from now on.

    Args:
        stream: connected; nothing else may use it any more.
        loop: the owner's adapter; its tasks must outlive the transport.
    """

    __slots__ = (
        "_broken", "_loop", "_objects", "_outgoing", "_paused", "_reader", "_reading", "_receive", "_scope", "_send",
        "_short", "_shutdown", "_size", "_started", "_stream", "_writer",
    )  # fmt: skip

    def __init__(self, stream: AnyStream, loop: Loop) -> None:
        super().__init__(loop.waiter())
        self._stream = stream
        self._send: Callable[[bytes], Awaitable[None]]
        self._receive: Callable[[], Awaitable[bytes]]
        if isinstance(stream, ObjectStream | ByteStream):
            self._send, self._receive = stream.send, stream.receive
        else:
            self._send, self._receive = stream.send_all, stream.receive_some
        self._loop = loop
        self._reader = loop.waiter()  # the reader task, while paused
        self._writer = loop.waiter()  # the writer task, while there is nothing to write
        self._objects = isinstance(stream, ObjectStream)  # an empty one is no end
        self._scope = CancelScope()  # both tasks
        self._reading = CancelScope()
        self._outgoing: deque[bytes] = deque()
        self._size = 0
        self._broken: Exception | None = None  # what ended the reading
        self._started = False
        self._paused = True
        self._short = False
        self._shutdown = False

    def start(self) -> None:
        if not self._started:
            self._started = True
            self._loop.spawn(self._run)
        self.resume()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._reader.wake()

    def watch(self) -> None:
        pass  # the reader task always does

    def poll(self) -> bool:
        if self._paused and self._broken is not None:
            self._fail(self._broken)
        return False  # only the reader task can look, when it has its turn

    def write(self, data: Buffer) -> int:
        part = bytes(memoryview(data)[: CHUNK - self._size])
        if part:
            self._outgoing.append(part)
            self._size += len(part)
            self._writer.wake()
        if len(part) < len(data):
            self._short = True
        return len(part)

    def shutdown(self) -> None:
        self._shutdown = True
        self._writer.wake()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._reading.cancel()
            self._scope.shield = True
            self._scope.deadline = self._loop.time() + CLOSE_SECONDS
            self._writer.wake()
            self.waiter.wake()
            if not self._started:
                self._started = True
                self._loop.spawn(self._run)  # closes the stream

    def abort(self) -> None:
        if not self.closed:
            self.close()
            self._scope.cancel()

    @property
    def unsent(self) -> bool:
        return self._size > 0

    @property
    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return getattr(self._stream, "extra_attributes", {})

    async def _run(self) -> None:
        """Move bytes both ways until `close`, then close the stream."""
        try:
            with self._scope:
                async with create_task_group() as group:
                    group.start_soon(self._write)
                    with self._reading:
                        await self._read()
        finally:
            # What goes wrong here changes nothing: the connection has ended.
            with suppress(Exception), move_on_after(CLOSE_SECONDS, shield=True):
                await self._stream.aclose()

    @uninterruptible
    async def _read(self) -> None:
        try:
            while (data := await self._receive()) or self._objects:
                view = memoryview(data)
                while view:
                    while self._paused:
                        await self._reader.wait()
                    if self.closed:
                        return
                    buffer = self.receiver.get_buffer()
                    count = min(len(view), len(buffer))
                    buffer[:count] = view[:count]
                    view = view[count:]
                    self.receiver.received(count)
        except EndOfStream:
            pass
        except Exception as exc:
            self._broken = exc
        while self._paused:  # the receiver has no room yet for what came before, perhaps a Close
            await self._reader.wait()
        if self._broken is not None:
            self._fail(self._broken)
        elif not self.closed:
            self.receiver.eof()

    @uninterruptible
    async def _write(self) -> None:
        try:
            while self._outgoing or not (self._shutdown or self.closed):
                if not self._outgoing:
                    await self._writer.wait()
                    continue
                part = self._outgoing.popleft()
                await self._send(part)
                self._size -= len(part)
                if (self._short or not self._size) and not self.closed:
                    self._short = False
                    self.receiver.writable()
            if not self.closed:
                await self._half_close()
        except Exception as exc:
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        if not self.closed:
            if not isinstance(exc, OSError):
                broken = ConnectionError(f"the stream broke: {str(exc) or type(exc).__name__}")
                broken.__cause__ = exc
                exc = broken
            self.receiver.fail(exc)

    async def _half_close(self) -> None:
        try:
            await self._stream.send_eof()  # type: ignore[union-attr]  # missing is as good as not implemented
        except (AttributeError, NotImplementedError):
            # Only closing tells the peer that no more will come. Nothing is left to say: both Closes are sent, or lost.
            self.receiver.eof()
