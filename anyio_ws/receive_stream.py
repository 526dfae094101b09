"""receive_stream(): one message that is received in parts, before it has all come, in bounded memory.

Theory of operation. A stream holds the receiver's place. From the moment it has its message, `Inbox.received` gives it
what each read has brought (`arrived`), before it gives anything to the inbox. When `receive_buffer_size` waits to be
taken, reading pauses, and goes on when half of it is free. A message that somebody no longer wants is discarded in the
same place, as it arrives; nobody waits for that.

What is compressed waits as it came, and `receive` inflates a chunk of it at a time. When all of it has come, nothing
behind it is decoded (`Inbox.hold_back`) until all of it is inflated, for the next message may refer to this one.
"""

import sys
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import cast

from anyio import BusyResourceError, EndOfStream

from .core import Core
from .exceptions import ConnectionClosedError
from .logs import BEGINNING
from .loops import uninterruptible
from .options import check_size
from .protocol import Opcode, ProtocolError
from .protocol.frame_rules import too_big
from .protocol.frames import MESSAGE_OVERHEAD
from .protocol.restoring import Restoring

CHUNK = 2**16
"""Bytes that are inflated at a time, some 0.2 ms: no worker thread is needed for that."""

DISCARD = 2**20
"""Bytes of a message's rest that are read and thrown away when its receiver has left; more would be a burden that the
peer decides on. It is the default of max_size, the largest message that anybody has to discard without a stream."""


class ReceiveStream:
    """A message that is received in parts: `async with ws.receive_stream() as stream: async for chunk in stream: ...`.

    The block begins when the next message does. The chunks are str for a text message, cut between characters, and
    bytes for a binary one; how large they are depends on how they arrive, not on the fragments. A compressed message
    is inflated chunk by chunk, 64 KiB at most, unless it was there already: see `WebSocket.receive_stream`.

    Leaving before the end discards the rest of the message as it comes. If that is more than 1 MiB, the connection is
    closed with 1009. The next receiver gets the next message.

    Attributes:
        text: whether it is a text message.

    Cancellation: on entering, no message is lost; inside, the rest is discarded, as above.
    RFC 6455 §5.4, RFC 7692 §7.2.2.
    """

    __slots__ = ("_beginning", "_busy", "_checkpoint", "_chunks", "_core", "_discarded", "_entered", "_error",
                 "_finished", "_max_size", "_open", "_refuse", "_restoring", "_size", "_taking", "_waiting",
                 "text")  # fmt: skip

    def __init__(
        self,
        core: Core,
        checkpoint: Callable[[], Awaitable[None]],
        busy: Callable[[], Exception],
        refuse: Callable[[ProtocolError], ConnectionClosedError],
        max_size: int | None,
    ) -> None:
        check_size("max_size of receive_stream()", max_size, optional=True)
        self.text: bool = False
        self._core = core
        self._checkpoint = checkpoint
        self._busy = busy
        self._refuse = refuse
        self._max_size = sys.maxsize if max_size is None else max_size
        self._entered = self._open = False
        self._waiting = False  # a task does, for a chunk
        self._taking = False  # the message has begun, and is ours
        self._finished = False  # all of it has come, and is inflated
        self._chunks: deque[str | bytes] = deque()
        self._restoring: Restoring | None = None  # it is compressed, and not all of it is inflated
        self._size = 0  # bytes that have come, or come out
        self._discarded: int | None = None  # bytes, since the block was left
        self._error: ProtocolError | None = None
        self._beginning: str | bytes = b""  # for the log

    @uninterruptible
    async def __aenter__(self) -> "ReceiveStream":
        if self._entered:
            raise RuntimeError("a ReceiveStream is for one `async with` only; call receive_stream() again")
        self._entered = True
        core, inbox = self._core, self._core.inbox
        await self._checkpoint()
        if inbox.receiver is not None:
            raise self._busy()
        inbox.receiver = core.loop.current_task()
        inbox.waits += 1
        try:
            await self._begin()
        except BaseException:
            inbox.receiver = None
            if inbox.parts is None or inbox.parts is self:  # or else the limit is that of a message being discarded
                inbox.parts = None
                max_size = core.options.max_size
                core.connection.decoder.max_size = sys.maxsize if max_size is None else max_size
            raise
        self._open = True
        return self

    async def _begin(self) -> None:
        """Wait until a message is here, or its beginning, and take that."""
        core, inbox, connection, outbox = self._core, self._core.inbox, self._core.connection, self._core.outbox
        held: ProtocolError | None = None
        while not inbox.messages and inbox.held is None:
            if connection.too_big is not None and held is None and not core.closing:
                held = connection.too_big
                inbox.stream(self._max_size)
                inbox.proceed()
            elif inbox.stopped:
                raise self._end(receiving=True)
            elif inbox.parts is None:
                inbox.parts = self
            elif inbox.parts is self and connection.takes_parts and not core.closing:
                break
            elif held is not None and connection.decoder.begun:
                self._error = held  # several extensions have to restore it
                raise self._end(receiving=True)
            elif outbox.size and not outbox.blocked:
                outbox.flush()  # as in receive()
            else:
                await inbox.waiter.wait()
        # Nothing suspends from here on: what is taken now cannot be put back.
        self._taking = inbox.streaming = True
        if inbox.messages:
            message = inbox.messages.pop()
            self.text = isinstance(message, str)
            inbox.parts = None
            self._finish(message, logged=True)
            if inbox.counts:
                inbox.make_room(len(message))
        elif inbox.held is not None:
            inbox.parts = None
            self._restoring = inbox.take_held(inbox.held)
            self.text = self._restoring.is_text
        else:
            self.text = connection.decoder.begun & 0xF == Opcode.TEXT
            self._restoring = connection.in_parts()
            inbox.stream(self._max_size)
            self.arrived([])

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
        self._check()
        await self._checkpoint()
        if self._waiting:
            raise BusyResourceError("receiving a chunk from")
        self._waiting = True
        try:
            await self._next()
        finally:
            self._waiting = False
        chunk = self._chunks.popleft()
        self._core.inbox.parts_size -= len(chunk) + MESSAGE_OVERHEAD
        self._make_room()
        return chunk

    def _make_room(self) -> None:
        """Let reading go on if half of the room is free."""
        inbox = self._core.inbox
        if inbox.paused and 2 * inbox.parts_size <= self._core.options.receive_buffer_size:
            inbox.proceed()

    async def _next(self) -> None:
        """Wait until there is a chunk."""
        inbox, outbox = self._core.inbox, self._core.outbox
        while not self._chunks and not self._restore():
            self._check()
            if self._restoring is not None and self._restoring.is_ready:
                continue  # there was room to read on, and what that has brought came before we wait
            if self._finished:
                raise EndOfStream
            if inbox.stopped:
                raise self._end(receiving=False)
            if outbox.size and not outbox.blocked:
                outbox.flush()
            else:
                await inbox.waiter.wait()

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
        core, inbox = self._core, self._core.inbox
        self._open = inbox.streaming = False
        inbox.receiver = None
        self._chunks.clear()
        restoring = self._restoring
        if restoring is not None and core.connection.close_sent is not None:
            self._restoring = None  # nobody is to receive what refers to it
            if restoring.fin:
                inbox.restored()
        inbox.parts_size = 0 if self._restoring is None else self._restoring.size
        if not self._finished:
            self._discarded = 0
            if not core.closing and (self._restoring is None or not self._restoring.fin):
                inbox.stream(sys.maxsize)
            self._discard()
        if self._waiting:
            inbox.waiter.wake()
        if inbox.paused:
            inbox.proceed()

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
        """Take what belongs to this message; see `inbox.Parts`."""
        core, inbox = self._core, self._core.inbox
        if core.connection.close_sent is not None:
            core.connection.decoder.take()  # nobody is to receive it; it need not be kept either
            return False
        if not self._taking:
            if core.connection.decoder.begun:
                inbox.waiter.wake()
            return False
        inbox.last_message = inbox.last_received
        if self._restoring is not None:
            self._take(self._restoring)
        elif messages:
            inbox.parts = None
            self._finish(messages.pop(0))
        else:
            self._put(core.connection.decoder.take())
        if inbox.receiver is not None:
            inbox.waiter.wake()
        return not self._finished and inbox.parts_size >= core.options.receive_buffer_size

    def _take(self, restoring: Restoring) -> None:
        """The same of a message that is to be restored."""
        inbox, connection = self._core.inbox, self._core.connection
        before = restoring.size
        if connection.last_part is None:
            restoring.feed(cast("bytes", connection.decoder.take()))
        else:
            restoring.feed(connection.last_part, fin=True)
            connection.last_part = None
        inbox.parts_size += restoring.size - before
        if self._discarded is not None:
            self._discard()
        if self._restoring is not None and restoring.fin:
            inbox.hold_back(restoring)

    def _discard(self) -> None:
        """Restore what nobody wants: the next message may refer to it."""
        while self._restore():
            pass

    def _restore(self) -> bool:
        """Restore a chunk, if there is one."""
        core, inbox, restoring = self._core, self._core.inbox, self._restoring
        if restoring is None:
            return False
        limit, size = (self._max_size, self._size) if self._discarded is None else (DISCARD, self._discarded)
        inbox.parts_size -= restoring.size
        try:
            part = restoring.take(min(CHUNK, limit - size + 1))
        except ProtocolError as exc:
            self._error = exc
            core.refuse(exc.close_code, exc)
            self._restoring = None
            return False
        self._put(part)
        if self._error is not None:
            self._restoring = None
            return False
        inbox.parts_size += restoring.size
        if restoring.done:
            self._restoring = None
            self._finished = True
            inbox.parts = None
            if core.log.debug:
                core.log.received(self._beginning, self._size)
            inbox.restored()
        elif not part:
            self._make_room()
        return bool(part)

    def _finish(self, rest: str | bytes, *, logged: bool = False) -> None:
        """The message has ended, with this."""
        core = self._core
        self._put(rest)
        if self._error is None:
            self._finished = True
            if core.log.debug and not logged:
                core.log.received(self._beginning, self._size)

    def _put(self, part: str | bytes) -> None:
        core = self._core
        size = len(part) if isinstance(part, bytes) or part.isascii() else len(part.encode())
        if core.log.debug:
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
            core.inbox.parts_size += len(part) + MESSAGE_OVERHEAD
