"""Any byte stream as a transport: anyio's ByteStream, an object stream of bytes, or trio.abc.Stream.

Theory of operation. Such a stream cannot try without waiting, and cancelling its `send` may tear a frame. So a reader
and a writer task live as long as the transport does; only `close` and `abort` cancel them, and both end the stream.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from anyio import CancelScope, EndOfStream, create_task_group, move_on_after
from anyio.abc import ByteStream, ObjectStream

from anyio_ws.loops import Loop

from .base import Buffer, Transport

CHUNK = 65536
"""Bytes asked for at once, and taken from the writer before the stream has sent the previous ones."""

CLOSE_SECONDS = 1
"""Seconds that closing the stream may take, for those that say goodbye first, as TLS does."""


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
        "_loop", "_outgoing", "_paused", "_reader", "_receive", "_scope", "_send", "_short", "_shutdown", "_size",
        "_started", "_stream", "_waiter", "_writer",
    )  # fmt: skip

    def __init__(self, stream: AnyStream, loop: Loop) -> None:
        super().__init__()
        self._stream = stream
        self._send: Callable[[bytes], Awaitable[None]]
        self._receive: Callable[[], Awaitable[bytes]]
        if isinstance(stream, ObjectStream | ByteStream):
            self._send, self._receive = stream.send, stream.receive
        else:
            self._send, self._receive = stream.send_all, stream.receive_some
        self._loop = loop
        self._waiter = loop.waiter()  # the task in wait()
        self._reader = loop.waiter()  # the reader task, while paused
        self._writer = loop.waiter()  # the writer task, while there is nothing to write
        self._scope: CancelScope | None = None
        self._outgoing: deque[bytes] = deque()
        self._size = 0
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

    async def wait(self) -> None:
        await self._waiter.wait()

    def wake(self) -> None:
        self._waiter.wake()

    def poll(self) -> None:
        pass  # the reader task has read all there is, or the stream says nothing without waiting

    def write(self, buffers: Sequence[Buffer]) -> int:
        taken = 0
        for buffer in buffers:
            part = bytes(memoryview(buffer)[: CHUNK - self._size])
            if part:
                self._outgoing.append(part)
                self._size += len(part)
                taken += len(part)
            if len(part) < len(buffer):
                self._short = True
                break
        self._writer.wake()
        return taken

    def shutdown(self) -> None:
        self._shutdown = True
        self._writer.wake()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self._scope is not None:
                self._scope.cancel()
            self._waiter.wake()
            if not self._started:
                self._started = True
                self._loop.spawn(self._run)  # closes the stream

    def abort(self) -> None:
        self.close()

    @property
    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return getattr(self._stream, "extra_attributes", {})

    async def _run(self) -> None:
        """Move bytes both ways until `close`, then close the stream."""
        try:
            if not self.closed:
                async with create_task_group() as group:
                    self._scope = group.cancel_scope
                    group.start_soon(self._write)
                    await self._read()
        finally:
            with move_on_after(CLOSE_SECONDS, shield=True):
                await self._stream.aclose()

    async def _read(self) -> None:
        try:
            while data := await self._receive():
                view = memoryview(data)
                while view:
                    while self._paused:
                        await self._reader.wait()
                    buffer = self.receiver.get_buffer()
                    count = min(len(view), len(buffer))
                    buffer[:count] = view[:count]
                    view = view[count:]
                    self.receiver.received(count)
        except EndOfStream:
            pass
        except Exception as exc:
            self.receiver.fail(exc)
            return
        if not self.closed:
            self.receiver.eof()

    async def _write(self) -> None:
        try:
            while self._outgoing or not self._shutdown:
                if not self._outgoing:
                    await self._writer.wait()
                    continue
                part = self._outgoing.popleft()
                await self._send(part)
                self._size -= len(part)
                if self._short:
                    self._short = False
                    self.receiver.writable()
            await self._half_close()
        except Exception as exc:
            self.receiver.fail(exc)

    async def _half_close(self) -> None:
        try:
            await self._stream.send_eof()  # type: ignore[union-attr]  # missing is as good as not implemented
        except (AttributeError, NotImplementedError):
            # Only closing tells the peer that no more will come. Nothing is left to say: both Closes are sent, or lost.
            self.receiver.eof()
