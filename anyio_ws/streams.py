"""One message in parts: sent before it is all there, received before it has all come, in bounded memory either way.

Theory of operation. A stream that sends holds the outbox from its first moment to its last: control frames pass, other
messages wait. Each chunk is committed as a fragment, without a suspension, and the end of the block commits an empty
last one. What cannot be completed is never made to look complete: the connection is closed instead.

A stream that receives holds the receiver's place. From the moment it has its message, `Core.received` gives it what
each read has brought (`arrived`), before it gives anything to the inbox. When `receive_buffer_size` waits to be taken,
reading pauses, and goes on when half of it is free. A message that somebody no longer wants is discarded in the same
place, as it arrives; nobody waits for that.
"""

import sys
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

from anyio import BusyResourceError, EndOfStream

from .core import FRAGMENT, Core, closing_code
from .exceptions import ConnectionClosedError
from .logs import BEGINNING
from .loops import uninterruptible
from .protocol import Opcode, ProtocolError
from .protocol.frame_rules import too_big
from .protocol.frames import MESSAGE_OVERHEAD
from .transports.base import Buffer

RSV = 0x70

DISCARD = 2**20
"""Bytes of a message's rest that are read and thrown away when its receiver has left; more would be a burden that the
peer decides on. It is the default of max_size, the largest message that anybody has to discard without a stream."""


class SendStream:
    """A message that is sent in parts: `async with ws.send_stream() as stream: await stream.send(chunk)`.

    The message ends where the block does. If an exception or a cancellation ends the block, the message cannot be
    completed: unless nothing of it was sent, the connection is closed, with 1011 or 1001, and the exception goes on.

    Other messages, of this or of other tasks, wait until the block has ended; Pings, Pongs and a Close do not.
    A message in parts is not compressed.

    Cancellation: on entering, nothing happened; inside, as above; on leaving, the message is complete.
    RFC 6455 §5.4.
    """

    __slots__ = ("_beginning", "_begun", "_checkpoint", "_core", "_entered", "_open", "_opcode", "_settle", "_size",
                 "_turn")  # fmt: skip

    def __init__(
        self,
        core: Core,
        checkpoint: Callable[[], Awaitable[None]],
        turn: Callable[[], Awaitable[None]],
        settle: Callable[[], Awaitable[None]],
        *,
        text: bool,
    ) -> None:
        self._core = core
        self._checkpoint = checkpoint
        self._turn = turn
        self._settle = settle
        self._opcode = Opcode.TEXT if text else Opcode.BINARY
        self._entered = self._open = False
        self._begun = False  # something was sent
        self._size = 0
        self._beginning = b""  # for the log

    @uninterruptible
    async def __aenter__(self) -> "SendStream":
        if self._entered:
            raise RuntimeError("a SendStream is for one `async with` only; call send_stream() again")
        self._entered = True
        core = self._core
        await self._checkpoint()
        if core.closing:
            raise core.exception()
        if not core.outbox.free:
            await self._turn()
        core.outbox.hold()
        core.sender = core.loop.current_task()
        self._open = True
        return self

    @uninterruptible
    async def send(self, chunk: str | Buffer) -> None:
        """Send a part of the message, as a frame.

        Returns when less than `write_buffer_size` waits to be sent. An empty chunk sends nothing.

        Args:
            chunk: str if the message is text, otherwise bytes-like.

        Raises:
            ConnectionClosedOK, ConnectionClosedError: the connection has ended, or is closing.
            TypeError: the chunk is of the other kind.
            ValueError: it has a lone surrogate.
            RuntimeError: the block has not been entered, or was left.

        Cancellation: the chunk was not sent, or will be sent whole; if the block catches it, the message can go on.
        RFC 6455 §5.4.
        """
        core = self._core
        self._check()
        payload = self._payload(chunk)
        await self._checkpoint()
        if not payload:
            return
        while not core.closing and self._full:  # the call before was cancelled while it waited for room
            await self._settle()
        self._check()
        if core.closing:
            raise core.exception()
        # Committing: nothing below suspends until all of it is done.
        view = memoryview(payload)
        for start in range(0, len(view), FRAGMENT):
            self._commit(view[start : start + FRAGMENT], fin=False)
            core.fragments_sent += 1
        if self._full:
            await self._settle()

    @uninterruptible
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        core = self._core
        self._open = False
        core.sender = None
        if exc is None and not core.closing:
            self._commit(b"", fin=True)
            core.messages_sent += 1
            if core.debug:
                core.log_sent(self._opcode, self._beginning, self._size)
            core.outbox.release()
            if self._full:
                await self._settle()
            return
        if exc is not None and self._begun:
            core.close(closing_code(exc), "")
        core.outbox.release()
        if exc is None:
            raise core.exception()

    @property
    def _full(self) -> bool:
        """As much waits to be sent as may."""
        return self._core.outbox.size >= self._core.options.write_buffer_size

    def _check(self) -> None:
        if not self._open:
            raise RuntimeError("a SendStream is to be used inside its `async with` block")

    def _payload(self, chunk: str | Buffer) -> Buffer:
        text = self._opcode == Opcode.TEXT
        if isinstance(chunk, str):
            if text:
                return chunk.encode()
        elif not text:
            try:
                return chunk if isinstance(chunk, bytes | bytearray) else memoryview(chunk).cast("B")
            except TypeError:
                pass
        expected = "str, as text=True says" if text else "bytes-like, unless send_stream() is told text=True"
        raise TypeError(f"a chunk of this message is {expected}; got {type(chunk).__name__}")

    def _commit(self, payload: Buffer, *, fin: bool) -> None:
        """Commit a frame of the message."""
        core = self._core
        if core.debug:
            self._beginning = (self._beginning + payload[: 4 * BEGINNING + 4])[: 4 * BEGINNING + 4]
        self._size += len(payload)
        opcode = Opcode.CONTINUATION if self._begun else self._opcode
        self._begun = True
        core.send_part(opcode, payload, fin)


class ReceiveStream:
    """A message that is received in parts: `async with ws.receive_stream() as stream: async for chunk in stream: ...`.

    The block begins when the next message does. The chunks are str for a text message, cut between characters, and
    bytes for a binary one; how large they are depends on how they arrive, not on the fragments. A compressed message
    comes as a whole, in one chunk, and the option `max_size` is its limit.

    Leaving before the end discards the rest of the message as it comes. If that is more than 1 MiB, the connection is
    closed with 1009. The next receiver gets the next message.

    Attributes:
        text: whether it is a text message.

    Cancellation: on entering, no message is lost; inside, the rest is discarded, as above.
    RFC 6455 §5.4.
    """

    __slots__ = ("_beginning", "_busy", "_checkpoint", "_chunks", "_core", "_discarded", "_entered", "_error",
                 "_finished", "_max_size", "_open", "_refuse", "_size", "_taking", "_waiting", "text")  # fmt: skip

    def __init__(
        self,
        core: Core,
        checkpoint: Callable[[], Awaitable[None]],
        busy: Callable[[], BusyResourceError],
        refuse: Callable[[ProtocolError], ConnectionClosedError],
        max_size: int | None,
    ) -> None:
        self.text: bool = False
        self._core = core
        self._checkpoint = checkpoint
        self._busy = busy
        self._refuse = refuse
        self._max_size = sys.maxsize if max_size is None else max_size
        self._entered = self._open = False
        self._waiting = False  # a task does, for a chunk
        self._taking = False  # the message has begun, and is ours
        self._finished = False  # all of it has come
        self._chunks: deque[str | bytes] = deque()
        self._size = 0  # bytes that have come
        self._discarded: int | None = None  # bytes, since the block was left
        self._error: ProtocolError | None = None
        self._beginning: str | bytes = b""  # for the log

    @uninterruptible
    async def __aenter__(self) -> "ReceiveStream":
        if self._entered:
            raise RuntimeError("a ReceiveStream is for one `async with` only; call receive_stream() again")
        self._entered = True
        core = self._core
        await self._checkpoint()
        if core.receiver is not None:
            raise self._busy()
        core.receiver = core.loop.current_task()
        core.waits += 1
        try:
            await self._begin()
        except BaseException:
            core.receiver = None
            if core.parts is self:
                core.parts = None
            max_size = core.options.max_size
            core.connection.decoder.max_size = sys.maxsize if max_size is None else max_size
            raise
        self._open = True
        return self

    async def _begin(self) -> None:
        """Wait until a message is here, or its beginning, and take that."""
        core, connection, outbox = self._core, self._core.connection, self._core.outbox
        held: ProtocolError | None = None
        while not core.inbox:
            if connection.too_big is not None and held is None and not core.closing:
                held = connection.too_big
                core.stream(self._max_size)
                core.proceed()
            elif core.stopped:
                raise self._end(receiving=True)
            elif core.parts is None:
                core.parts = self
            elif core.parts is self and self._can_begin and not core.closing:
                break
            elif held is not None and connection.decoder.begun:
                self._error = held  # it is compressed
                raise self._end(receiving=True)
            elif outbox.size and not outbox.blocked:
                outbox.flush()  # as in receive()
            else:
                await core.waiter.wait()
        # Nothing suspends from here on: what is taken now cannot be put back.
        self._taking = True
        if core.inbox:
            message = core.inbox.pop()
            self.text = isinstance(message, str)
            core.parts = None
            self._finish(message, logged=True)
            if core.counts:
                core.make_room(len(message))
        else:
            self.text = connection.decoder.begun & 0xF == Opcode.TEXT
            core.stream(self._max_size)
            self.arrived([])

    @property
    def _can_begin(self) -> bool:
        """A message has begun that can be taken in parts."""
        begun = self._core.connection.decoder.begun
        return begun != 0 and not begun & RSV

    @uninterruptible
    async def receive(self) -> str | bytes:
        """Receive the next chunk, which is not empty.

        Raises:
            anyio.EndOfStream: the message has ended.
            ConnectionClosedOK, ConnectionClosedError: the connection has ended before the message; what had come is
                received first. Here they are no EndOfStream.
            anyio.BusyResourceError: another task is receiving from this stream.
            RuntimeError: the block has not been entered, or was left.

        Cancellation: safe; no chunk is lost.
        """
        core = self._core
        self._check()
        await self._checkpoint()
        if self._waiting:
            raise self._busy()
        self._waiting = True
        try:
            await self._next()
        finally:
            self._waiting = False
        chunk = self._chunks.popleft()
        core.parts_size -= len(chunk) + MESSAGE_OVERHEAD
        if core.paused and 2 * core.parts_size <= core.options.receive_buffer_size:
            core.proceed()
        return chunk

    async def _next(self) -> None:
        """Wait until there is a chunk."""
        core, outbox = self._core, self._core.outbox
        while not self._chunks:
            self._check()
            if self._finished:
                raise EndOfStream
            if core.stopped:
                raise self._end(receiving=False)
            if outbox.size and not outbox.blocked:
                outbox.flush()
            else:
                await core.waiter.wait()

    def __aiter__(self) -> "ReceiveStream":
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    @uninterruptible
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        core = self._core
        self._open = False
        core.receiver = None
        self._chunks.clear()
        core.parts_size = 0
        if not self._finished:
            self._discarded = 0
            if not core.closing:
                core.stream(sys.maxsize)
        if self._waiting:
            core.waiter.wake()
        if core.paused:
            core.proceed()

    def _check(self) -> None:
        if not self._open:
            raise RuntimeError("a ReceiveStream is to be used inside its `async with` block")

    def _end(self, *, receiving: bool) -> Exception:
        """Return what says why nothing more comes."""
        core = self._core
        if self._error is not None:
            return self._refuse(self._error)
        error = core.connection.error or core.connection.too_big
        if error is not None:
            core.refuse(error.close_code, error)
        return core.exception(receiving)

    # What arrives

    def arrived(self, messages: list[str | bytes]) -> bool:
        """Take what belongs to this message; see `core.Parts`."""
        core = self._core
        if core.connection.close_sent is not None:
            core.connection.decoder.take()  # nobody is to receive it; it need not be kept either
            return False
        if not self._taking:
            if core.connection.decoder.begun:
                core.waiter.wake()
            return False
        core.last_message = core.last_received
        if messages:
            core.parts = None
            self._finish(messages.pop(0))
        else:
            self._put(core.connection.decoder.take())
        if core.receiver is not None:
            core.waiter.wake()
        return not self._finished and core.parts_size >= core.options.receive_buffer_size

    def _finish(self, rest: str | bytes, *, logged: bool = False) -> None:
        """The message has ended, with this."""
        core = self._core
        self._put(rest)
        if self._error is None:
            self._finished = True
            if core.debug and not logged:
                core.log_received(self._beginning, self._size)

    def _put(self, part: str | bytes) -> None:
        core = self._core
        size = len(part) if isinstance(part, bytes) or part.isascii() else len(part.encode())
        if core.debug:
            self._beginning = ((self._beginning or part[:0]) + part)[: BEGINNING + 1]  # type: ignore[operator]
        self._size += size
        if self._discarded is not None:
            self._discarded += size
            if self._discarded > DISCARD:
                self._error = ProtocolError(
                    f"over {DISCARD:,} bytes followed of a message whose receiver had left (receive_stream)", 1009
                )
                core.refuse(1009, self._error)
        elif self._size > self._max_size:
            self._error = too_big(self._size, self._max_size, fin=False)
            core.refuse(1009, self._error)
        elif part:
            self._chunks.append(part)
            core.parts_size += len(part) + MESSAGE_OVERHEAD
