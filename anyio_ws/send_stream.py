"""send_stream(): one message that is sent in parts, before it is all there, in bounded memory.

Theory of operation. A stream holds the outbox from its first moment to its last: control frames pass, other messages
wait. Each chunk is compressed, if the connection compresses, and committed as a fragment, without a suspension in
between; the end of the block commits the last one. A chunk that takes too long to compress for the event loop goes to a
worker thread, and what was begun there is committed, whoever waits for it. What cannot be completed is never made to
look complete: the connection is closed instead.
"""

from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType

from anyio import Event

from .core import FRAGMENT, Core, closing_code
from .logs import BEGINNING
from .loops import uninterruptible
from .protocol import Opcode, PartEncoder
from .transports.base import Buffer
from .workers import encode_later


class SendStream:
    """A message that is sent in parts: `async with ws.send_stream() as stream: await stream.send(chunk)`.

    The message ends where the block does. If an exception or a cancellation ends the block, the message cannot be
    completed: unless nothing of it was sent, the connection is closed, with 1011 or 1001, and the exception goes on.

    Other messages wait until the block has ended; Pings, Pongs and a Close do not. A `send` of the task that is inside
    the block would wait for itself: it raises RuntimeError.

    Cancellation: on entering, nothing happened; inside, as above; on leaving, the message is complete.
    RFC 6455 §5.4, RFC 7692 §7.2.1.
    """

    __slots__ = ("_beginning", "_begun", "_checkpoint", "_complete", "_compress", "_core", "_encoder", "_encoding",
                 "_entered", "_left", "_open", "_opcode", "_settle", "_size", "_turn")  # fmt: skip

    def __init__(
        self,
        core: Core,
        checkpoint: Callable[[], Awaitable[None]],
        turn: Callable[[], Awaitable[None]],
        settle: Callable[[], Awaitable[None]],
        *,
        text: bool,
        compress: bool | None,
    ) -> None:
        self._core = core
        self._checkpoint = checkpoint
        self._turn = turn
        self._settle = settle
        self._opcode = Opcode.TEXT if text else Opcode.BINARY
        self._compress = compress
        self._entered = self._open = self._left = False
        self._begun = False  # something was sent
        self._complete = False  # all of it was
        self._encoder: PartEncoder | None = None
        self._encoding: Event | None = None  # a worker thread is at work, until this is set
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
        # What the call before has left, if it was cancelled while it waited.
        while not core.closing and (self._encoding is not None or self._full):
            if self._encoding is not None:
                await self._encoding.wait()
            else:
                await self._settle()
        self._check()
        if core.closing:
            raise core.exception()
        # Committing: nothing below suspends until all of it is done.
        if core.log.debug:
            self._note(payload)
        if not self._begun:
            opcode, self._encoder = core.connection.encoder(self._opcode, self._compress)
        else:
            opcode = Opcode.CONTINUATION
        self._begun = True
        view = memoryview(payload)
        parts: list[Buffer] = [view[start : start + FRAGMENT] for start in range(0, len(view), FRAGMENT)]
        if self._encoder is not None and len(view) >= core.connection.inline_limit:
            await self._encode_later(opcode, self._encoder, bytes(view))
        elif not self._commit(opcode, parts if self._encoder is None else map(self._encoder.encode, parts)):
            raise core.exception()
        if self._full:
            await self._settle()

    async def _encode_later(self, opcode: int, encoder: PartEncoder, chunk: bytes) -> None:
        """Commit a chunk that takes so long to compress that a worker thread does it."""
        core = self._core
        committed = False
        done = self._encoding = Event()

        def encode() -> list[Buffer]:
            view = memoryview(chunk)
            return [encoder.encode(view[start : start + FRAGMENT]) for start in range(0, len(view), FRAGMENT)]

        def encoded(fragments: list[Buffer] | None) -> None:
            nonlocal committed
            self._encoding = None
            if fragments is not None and not core.closing:
                committed = self._commit(opcode, fragments)
                if committed and self._left:
                    self._end()
            done.set()

        core.loop.spawn(encode_later, core, encode, encoded)
        core.transport.watch()
        await done.wait()
        if not committed:
            raise core.exception()

    @uninterruptible
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        core = self._core
        self._open = False
        core.sender = None
        if exc is None and not core.closing:
            self._left = True
            if self._encoding is None:
                self._end()
            else:  # the call of send() was cancelled; now the message will be completed, whoever waits for it
                await self._encoding.wait()
            if not self._complete:  # the connection is closing
                raise core.exception()
            if self._full:
                await self._settle()
            return
        if exc is not None and self._begun:
            core.close(closing_code(exc), "")
        core.outbox.release()
        if exc is None:
            raise core.exception()

    def _end(self) -> None:
        """Commit the end of the message, and let the next sender go on."""
        core = self._core
        try:
            if self._encoder is not None:
                core.send_part(Opcode.CONTINUATION, self._encoder.encode(b"", fin=True))
            else:
                core.send_part(Opcode.CONTINUATION if self._begun else self._opcode, b"")
        except Exception as exc:  # as in _commit()
            core.fail(exc, "local")
            return
        self._complete = True
        core.messages_sent += 1
        if core.log.debug:
            core.log.sent(self._opcode, self._beginning, self._size)
        core.outbox.release()

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

    def _note(self, payload: Buffer) -> None:
        """Keep what the log says of the message."""
        self._beginning = (self._beginning + payload[: 4 * BEGINNING + 4])[: 4 * BEGINNING + 4]
        self._size += len(payload)

    def _commit(self, opcode: int, fragments: Iterable[Buffer]) -> bool:
        """Commit frames of the message; the opcode is the first one's.

        Returns whether all are. An exception, such as a MemoryError, ends the connection: without a part that its
        sender may know nothing of, the message must not go on.
        """
        core = self._core
        try:
            for fragment in fragments:
                core.send_part(opcode, fragment, fin=False)
                core.fragments_sent += 1
                opcode = Opcode.CONTINUATION
        except Exception as exc:
            core.fail(exc, "local")
            return False
        return True
