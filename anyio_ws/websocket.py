"""WebSocket: the object that people hold.

Usage rules. Any number of tasks may send; each message goes out whole, first come, first served. One task receives at a
time. Everything is to be used in the event loop's own thread. Cancelling any call leaves the connection usable: a
message is either returned or still there, a send did nothing or will be sent whole. Connections come from `connect`,
`accept`, `Server` and `serve`, not from the class.

`send`, `receive` and `ping` look for a cancellation at each call and yield to the event loop at least once in 64
messages or 1 ms, for all connections of the loop together; a checkpoint at each call would cost more than all the rest.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

from anyio import BusyResourceError, Event
from anyio.abc import ByteStream, ObjectStream

from .byte_stream import MessageByteStream
from .core import FRAME_PARTS, Core, check_close
from .exceptions import CloseInfo, ConnectionClosedError, ConnectionClosedOK
from .loops import uninterruptible
from .protocol import Opcode, ProtocolError, Request, Response
from .protocol.connection import COMPRESS, PLAIN
from .receive_stream import ReceiveStream
from .running import run
from .send_stream import SendStream
from .stats import Stats
from .transports.base import Buffer
from .workers import send_later

T = TypeVar("T")


class Messages(Generic[T]):
    """An asynchronous iterator over messages. It holds nothing: it may be abandoned at any point."""

    __slots__ = ("_receive",)

    def __init__(self, receive: "Receive[T]") -> None:
        self._receive = receive

    def __aiter__(self) -> "Messages[T]":
        return self

    def __anext__(self) -> Awaitable[T]:
        return self._receive(StopAsyncIteration)


Receive = Callable[[type[Exception]], Awaitable[T]]
"""Receives a message; at an end in good order, it raises StopAsyncIteration if that is what it was called with."""


class WebSocket(ObjectStream[str | bytes]):
    """A connection, at either end.

    Iterating receives messages until the connection ends in good order; otherwise it raises ConnectionClosedError.

    Attributes:
        request: the opening handshake's request: the one a client sent, or a server received.
        response: its answer.
        subprotocol: the one that was agreed on, or None.
        remote_address: (host, port) of the peer's socket, the path of a Unix socket, or None where there is no socket.
    """

    def __init__(
        self,
        core: Core,
        request: Request,
        response: Response,
        subprotocol: str | None,
        remote_address: tuple[str, int] | str | None = None,
    ) -> None:
        self.request = request
        self.response = response
        self.subprotocol = subprotocol
        self.remote_address = remote_address
        self._core = core
        # What each message needs, without a detour.
        self._loop = core.loop
        self._budget = core.loop.budget
        self._tasks_tell = core.loop.tasks_tell
        self._current_task = core.loop.current_task
        self._inbox = core.inbox
        self._messages = core.inbox.messages
        self._write = core.transport.write
        self._outbox = core.outbox

    def __repr__(self) -> str:
        side = "client" if self._core.is_client else "server"
        state = "open" if self.close_info is None else f"ended: {self.close_info}"
        return f"<WebSocket {self.id} {side} {self.request.path!r} {state}>"

    # Receiving

    async def receive(self) -> str | bytes:
        """Receive the next message.

        Text messages come as str and binary ones as bytes, in the order they were sent. Messages that arrived before
        the connection ended are received first.

        Raises:
            ConnectionClosedOK: the connection has ended in good order; also an anyio.EndOfStream.
            ConnectionClosedError: it has ended in any other way.
            anyio.BusyResourceError: another task is receiving.
            RuntimeError: this one is, in `receive_stream`.

        Cancellation: safe; no message is lost.
        RFC 6455 §5.4, §5.6.
        """
        return await self._receive(ConnectionClosedOK)

    @uninterruptible
    async def _receive(self, end: type[Exception]) -> str | bytes:
        budget = self._budget
        budget.receives -= 1
        if not budget.receives & 7 and budget.exhausted():
            await self._yield()
        elif not self._tasks_tell or self._current_task().cancelling():
            await self._loop.checkpoint_if_cancelled()
        inbox = self._inbox
        messages = self._messages
        if not messages or inbox.receiver is not None:
            if inbox.receiver is not None:
                raise self._busy()
            inbox.receiver = self._current_task()
            inbox.waits += 1
            try:
                while not messages:
                    if inbox.stopped:
                        self._raise_end(end)
                    if self._outbox.size:
                        self._outbox.flush()  # whoever waits for messages lets the replies to the last ones go
                        if messages or inbox.stopped:
                            continue
                    await inbox.waiter.wait()
            finally:
                inbox.receiver = None
        message = messages.pop()
        if inbox.counts:
            inbox.make_room(len(message))
        return message

    def _busy(self) -> Exception:
        name = self._loop.task_name
        task = self._current_task()
        if self._inbox.receiver is task:
            return RuntimeError("this task is inside receive_stream(): it has to leave that, to receive anything else")
        return BusyResourceError(f"receiving (task {name(self._inbox.receiver)!r}; this is {name(task)!r}) from")

    def _raise_end(self, end: type[Exception]) -> NoReturn:
        """Raise what says why there are no more messages."""
        core = self._core
        error = core.connection.error or core.connection.too_big
        if error is not None:
            core.refuse(error.close_code, error)
        exc = core.exception(receiving=True)
        if end is StopAsyncIteration and isinstance(exc, ConnectionClosedOK):
            raise StopAsyncIteration
        raise exc

    async def _yield(self) -> None:
        """Let the other tasks run: this loop has had its share."""
        self._outbox.flush()
        await self._loop.checkpoint()
        self._budget.renew()

    @uninterruptible
    async def receive_many(self) -> list[str | bytes]:
        """Receive all messages that have arrived, at least one.

        Raises:
            ConnectionClosedOK, ConnectionClosedError, anyio.BusyResourceError: as `receive`.

        Cancellation: safe; no message is lost.
        """
        messages = [await self.receive(), *reversed(self._messages)]
        self._messages.clear()
        if self._inbox.counts:
            self._inbox.make_room(0)
        return messages

    async def receive_text(self) -> str:
        """Receive the next message, which is to be text.

        Raises:
            ConnectionClosedError: it was binary, so the connection was closed with 1003 (the cause says what came); or
                it has ended otherwise.
            ConnectionClosedOK, anyio.BusyResourceError: as `receive`.

        Cancellation: safe; no message is lost.
        """
        return await self._receive_text(ConnectionClosedOK)

    async def _receive_text(self, end: type[Exception]) -> str:
        message = await self._receive(end)
        if isinstance(message, str):
            return message
        raise self._refuse(
            ProtocolError(f"a binary message of {len(message):,} bytes came, expected text (receive_text)", 1003)
        )

    async def receive_bytes(self) -> bytes:
        """Receive the payload of the next message as bytes, whether it is text or binary.

        Raises:
            ConnectionClosedOK, ConnectionClosedError, anyio.BusyResourceError: as `receive`.

        Cancellation: safe; no message is lost.
        """
        return await self._receive_bytes(ConnectionClosedOK)

    async def _receive_bytes(self, end: type[Exception]) -> bytes:
        message = await self._receive(end)
        return message.encode() if isinstance(message, str) else message

    async def receive_json(self) -> Any:
        """Receive the next message, text or binary, and decode it with the option `json`.

        Raises:
            ConnectionClosedError: it was not JSON, so the connection was closed with 1007 (the cause says why); or it
                has ended otherwise.
            ConnectionClosedOK, anyio.BusyResourceError: as `receive`.

        Cancellation: safe; no message is lost.
        """
        return await self._receive_json(ConnectionClosedOK)

    async def _receive_json(self, end: type[Exception]) -> Any:
        message = await self._receive(end)
        try:
            return self._core.options.json.loads(message)
        except (ValueError, RecursionError) as exc:  # the latter: nested too deeply
            kind = "text" if isinstance(message, str) else "binary"
            unit = "characters" if isinstance(message, str) else "bytes"
            error = ProtocolError(
                f"a {kind} message of {len(message):,} {unit} came that is not JSON (receive_json)", 1007
            )
            error.__cause__ = exc
            raise self._refuse(error) from error

    @uninterruptible
    def _refuse(self, error: ProtocolError) -> ConnectionClosedError:
        """Close because of a message that the caller cannot use, also one that came before the peer's Close."""
        core = self._core
        core.refuse(error.close_code, error)
        assert core.close_info is not None
        exc = ConnectionClosedError(core.close_info)
        exc.__cause__ = error
        return exc

    def __aiter__(self) -> "Messages[str | bytes]":  # type: ignore[override]  # plain, and it may be abandoned
        return Messages(self._receive)

    def iter_text(self) -> Messages[str]:
        """Iterate with `receive_text` until the connection ends in good order."""
        return Messages(self._receive_text)

    def iter_bytes(self) -> Messages[bytes]:
        """Iterate with `receive_bytes` until the connection ends in good order."""
        return Messages(self._receive_bytes)

    def iter_json(self) -> Messages[Any]:
        """Iterate with `receive_json` until the connection ends in good order."""
        return Messages(self._receive_json)

    def receive_stream(self, max_size: int | None = None) -> ReceiveStream:
        """Receive the next message in parts: `async with ws.receive_stream() as stream`, `async for chunk in stream`.

        Memory is bounded by `receive_buffer_size`, and by the option `max_size` for what has come before anybody
        receives it, however large the message is. Entering waits for it to begin, and
        until the block is left no other task can receive. One that has arrived already, and is within the option
        `max_size`, comes in one chunk.

        Args:
            max_size: bytes that the message may have, inflated if it is compressed, None for no limit; a larger one
                closes the connection with 1009. The option `max_size` does not apply.

        Raises:
            ConnectionClosedOK, ConnectionClosedError, anyio.BusyResourceError, RuntimeError: on entering, as `receive`.
            ValueError: the limit is none.

        Cancellation: see `ReceiveStream`.
        RFC 6455 §5.4.
        """
        return ReceiveStream(self._core, self._checkpoint, self._busy, self._refuse, max_size)

    # As bytes

    def as_byte_stream(self) -> ByteStream:
        """Return an anyio ByteStream over binary messages, for TLS, a line protocol, or whatever else speaks bytes.

        The boundaries of messages mean nothing: what is sent may arrive in other pieces. One task at a time sends, one
        receives, and nobody else uses the connection meanwhile. Closing the stream closes the connection with 1000. A
        text message is an error, 1003.

        Its `receive` raises anyio.EndOfStream when the connection has ended in good order, else
        anyio.BrokenResourceError, and no byte is lost to a cancellation. Its `send` sends one message, or one for each
        MiB of more than that, which is the `max_size` that peers accept by default; if it is cancelled, the first so
        many MiB were sent. Its `send_eof` raises NotImplementedError: a WebSocket cannot close one direction only.
        """
        return MessageByteStream(self, self._receive_binary, self._checkpoint)

    async def _receive_binary(self) -> bytes:
        message = await self._receive(ConnectionClosedOK)
        if isinstance(message, bytes):
            return message
        size = len(message)
        raise self._refuse(
            ProtocolError(f"a text message of {size:,} characters came, expected binary (as_byte_stream)", 1003)
        )

    # Sending

    @uninterruptible
    async def send(self, item: str | Buffer, *, text: bool | None = None, compress: bool | None = None) -> None:
        """Send a message.

        Returns when less than `write_buffer_size` waits to be sent: the peer has not necessarily received it.

        Args:
            item: str for a text message, bytes-like for a binary one.
            text: True sends bytes, which must be UTF-8, as a text message; False sends a str as a binary one.
            compress: True compresses the message, also below the option's `threshold`; False does not, as is right for
                what is compressed already, or holds secrets beside what others choose. Without compression it means
                nothing.

        Raises:
            ConnectionClosedOK: the connection has ended, or is closing, in good order.
            ConnectionClosedError: it has ended in any other way.
            TypeError: the item is neither.
            ValueError: it cannot be sent as text: a lone surrogate, or bytes that are not UTF-8.
            RuntimeError: this very task is inside `send_stream()`, which it would wait for.

        Cancellation: safe; the message was not sent, or will be sent whole.
        RFC 6455 §5.6.
        """
        budget = self._budget
        budget.sends -= 1
        if not budget.sends & 7 and budget.exhausted():
            await self._yield()
        elif not self._tasks_tell or self._current_task().cancelling():
            await self._loop.checkpoint_if_cancelled()
        opcode = _OPCODES.get(type(item)) if text is None and compress is None else None
        if opcode is None:
            opcode, item = _kind(item, text)
            if compress is not None and self._core.connection.extensions:
                opcode |= COMPRESS if compress else PLAIN
        outbox = self._outbox
        if not outbox.free:
            await self._turn()
        # Committing: nothing below suspends until all of it is done.
        core = self._core
        if len(item) >= FRAME_PARTS and (not isinstance(item, str) or len(item) >= core.large_text):
            if len(item) >= core.connection.inline_limit and not opcode & PLAIN:
                await self._send_later(opcode, item)
                return
            core.send_large(opcode, item)
        else:
            frame = core.encode(opcode, item)
            core.messages_sent += 1
            if core.log.debug:
                core.log.sent(opcode, item)
            if self._messages:
                outbox.join(frame)  # more messages wait to be received: their replies can leave together
            elif outbox.size:
                outbox.write(frame)
            else:  # what outbox.write() would do
                taken = self._write(frame)
                outbox.taken += taken
                if taken != len(frame):
                    outbox.keep(memoryview(frame)[taken:])
        if not outbox.free:
            await self._settle()

    async def _send_later(self, opcode: int, item: str | Buffer) -> None:
        """Commit a message that takes so long to compress that a worker thread does it; it is the caller's turn."""
        core = self._core
        payload = item.encode() if isinstance(item, str) else bytes(item)
        if core.log.debug:
            core.log.sent(opcode, payload)
        before = core.messages_sent
        done = Event()
        self._outbox.hold()
        core.loop.spawn(send_later, core, opcode, payload, done)
        core.transport.watch()
        await done.wait()
        if core.messages_sent == before:
            raise core.exception()
        if self._outbox.size >= core.options.write_buffer_size:  # it was sent, also if the connection has ended since
            await self._settle()

    async def _turn(self) -> None:
        """Wait until the caller may commit."""
        if self._core.closing:
            raise self._core.exception()
        if self._core.sender is self._current_task():
            raise RuntimeError("this task is inside send_stream(): what it sends now would wait for that for ever")
        self._core.transport.watch()  # also while we wait, pings are to be answered and a reset noticed
        await self._outbox.turn()
        if self._core.closing:
            raise self._core.exception()

    async def _settle(self) -> None:
        """Wait until what is committed is less than the limit."""
        self._core.transport.watch()
        await self._outbox.drained()
        if self._core.ended:
            raise self._core.exception()

    @uninterruptible
    async def send_many(self, items: Iterable[str | Buffer]) -> None:
        """Send several messages in one write, or as few as `write_buffer_size` allows.

        Other senders' messages may come between them where it has to wait.

        Raises:
            ConnectionClosedOK, ConnectionClosedError, TypeError, ValueError, RuntimeError: as `send`; nothing was sent
                if an item is wrong.

        Cancellation: safe; the first so many messages were sent, or will be, whole.
        """
        await self._checkpoint()
        if self._core.closing:
            raise self._core.exception()
        checked: list[tuple[int, str | Buffer]] = []
        for item in items:
            if type(item) is bytes:
                checked.append((2, item))
            else:
                checked.append(_kind(item, None))
                if isinstance(item, str) and not item.isascii():
                    item.encode()  # may have a lone surrogate
            if not len(checked) & 63 and self._budget.exhausted():
                await self._yield()
        start = 0
        while start < len(checked):
            if not self._outbox.free:
                await self._turn()
            start = self._core.send_batch(checked, start)
            if not self._outbox.free:
                await self._settle()
            if self._budget.exhausted():
                await self._yield()

    async def send_json(self, obj: Any) -> None:
        """Encode an object with the option `json` and send it as a text message.

        Raises:
            ConnectionClosedOK, ConnectionClosedError, RuntimeError: as `send`.
            Exception: whatever `dumps` raises; nothing was sent.

        Cancellation: as `send`.
        """
        await self.send(self._core.options.json.dumps(obj), text=True)

    def send_stream(self, *, text: bool = False, compress: bool | None = None) -> SendStream:
        """Send a message in parts: `async with ws.send_stream() as stream: await stream.send(chunk)`.

        Entering waits for its turn, as `send` does. The message ends with the block; all others wait until then.

        Args:
            text: whether it is a text message; its chunks are str then, otherwise bytes-like.
            compress: False does not compress it, as for `send`. Otherwise a connection that compresses does so, chunk
                by chunk, whatever their size: each can be inflated when it has arrived.

        Raises:
            ConnectionClosedOK, ConnectionClosedError: on entering and on leaving, as `send`.
            RuntimeError: on entering: this very task is inside another one.

        Cancellation: see `SendStream`.
        RFC 6455 §5.4.
        """
        return SendStream(self._core, self._checkpoint, self._turn, self._settle, text=text, compress=compress)

    @uninterruptible
    async def flush(self) -> None:
        """Send now what was joined to be sent with later messages.

        Joined messages leave by themselves when no received message is left, or the handler awaits something else. Only
        a handler that computes for long between `send` and its next `await` needs this.

        Raises:
            ConnectionClosedOK, ConnectionClosedError: as `send`.

        Cancellation: safe.
        """
        await self._checkpoint()
        if self._core.closing:
            raise self._core.exception()
        self._outbox.flush()
        if not self._outbox.free:
            await self._settle()

    async def send_eof(self) -> None:
        """Not implemented: a WebSocket closes in both directions; see `aclose`."""
        raise NotImplementedError("a WebSocket cannot close one direction only; use aclose()")

    async def _checkpoint(self) -> None:
        """What begins every call that may complete without waiting; `send` has a copy, and `_receive` its own."""
        budget = self._budget
        budget.sends -= 1
        if not budget.sends & 7 and budget.exhausted():
            await self._yield()
        elif not self._tasks_tell or self._current_task().cancelling():
            await self._loop.checkpoint_if_cancelled()

    # Pings

    @uninterruptible
    async def ping(self, data: str | bytes | None = None) -> float:
        """Ping the peer and wait for its Pong.

        Keepalive does this by itself; see `ping_interval` and `latency`.

        Args:
            data: at most 125 bytes that no other Ping in flight carries; random by default.

        Returns:
            The round-trip time in seconds.

        Raises:
            ConnectionClosedOK, ConnectionClosedError: the connection ended first.
            ValueError: the data is too long, or in flight already.

        Cancellation: safe; the Ping was sent, its Pong is ignored.
        RFC 6455 §5.5.2, §5.5.3.
        """
        payload = os.urandom(4) if data is None else data.encode() if isinstance(data, str) else bytes(data)
        core = self._core
        if len(payload) > 125:
            raise ValueError(f"a ping carries at most 125 bytes (RFC 6455 §5.5), not {len(payload)}")
        await self._checkpoint()
        if core.closing:
            raise core.exception()
        if payload in core.pings.in_flight:
            raise ValueError(f"a ping with the data {payload!r} is in flight already")
        ping = core.pings.send(payload, Event())
        assert ping.done is not None
        try:
            if ping.answered is None and not core.ended:
                core.transport.watch()
                await ping.done.wait()
        finally:
            if core.pings.in_flight.get(payload) is ping:
                del core.pings.in_flight[payload]
        if ping.answered is None:
            raise core.exception()
        return ping.round_trip

    @property
    def latency(self) -> float | None:
        """The latest round-trip time in seconds, from `ping` or keepalive; None before the first Pong."""
        return self._core.pings.latency

    # Both at once

    async def run(self, *functions: Callable[["WebSocket"], Awaitable[object]]) -> None:
        """Call several functions at the same time, each with this WebSocket; none outlives the others.

        The first to return cancels the rest. (A producer that should not end the conversation awaits `wait_closed()`
        last.) When the connection ends, a function that receives is not cancelled: it gets what had arrived and then
        the end, and its return cancels the others; what still runs `close_timeout` later is cancelled. If nobody has
        received, all are cancelled at once.

        Raises:
            TypeError: no function.
            ConnectionClosedError: the connection ended other than in good order, and nothing worse happened.
            Exception: what a function raised, flat if it was one, else in a group. This connection's end counts once
                and yields to any other error.

        Cancellation: cancels the functions and waits for them; the connection stays open.
        """
        await run(self, self._core, functions)

    # Closing

    @uninterruptible
    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and wait until it is gone, at most `close_timeout`.

        Messages that were sent go out first; messages that nobody has received are discarded. Idempotent: any task may
        call it, several wait for the same end.

        Args:
            code: 1000-1003, 1007-1014 or 3000-4999.
            reason: cut at a character if it is over 123 bytes in UTF-8.

        Raises:
            ValueError: the code must not be sent, or the reason is no Unicode (a lone surrogate).

        Cancellation: before anything was sent, nothing happened; after it, the last task that waits drops the
        connection.
        RFC 6455 §7.1.2.
        """
        core = self._core
        if not isinstance(code, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a close code is an int, not {code!r}; the reason comes second")
        check_close(code, reason)
        await self._checkpoint()
        core.close(code, reason)
        if core.gone:
            return
        if core.gone_event is None:
            core.gone_event = Event()
        core.closers += 1
        core.transport.watch()
        try:
            await core.gone_event.wait()
        finally:
            core.closers -= 1
            if not core.closers:
                core.let_go()

    @uninterruptible
    def abort(self) -> None:
        """Drop the connection at once, without a closing handshake. Idempotent."""
        self._core.abort()

    async def wait_closed(self) -> CloseInfo:
        """Wait until the connection has ended, and return how. It reads no messages.

        Cancellation: safe.
        """
        await self._checkpoint()
        core = self._core
        if core.close_info is None:
            core.transport.watch()
            if core.ended_event is None:
                core.ended_event = Event()
            await core.ended_event.wait()
            assert core.close_info is not None
        return core.close_info

    @property
    def close_info(self) -> CloseInfo | None:
        """How the connection ended; None while it has not."""
        return self._core.close_info

    # Facts

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that tell this connection from others in the log."""
        return self._core.log.id

    @property
    def local_address(self) -> tuple[str, int] | str | None:
        """(host, port) of our socket, the path of a Unix socket, or None where there is no socket, or not any more."""
        return self._core.local_address

    @property
    def stats(self) -> Stats:
        """What went over the connection so far."""
        return self._core.stats

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """What `extra()` answers: anyio's SocketAttribute and TLSAttribute, as far as there is a socket and TLS."""
        return self._core.transport.attributes


_OPCODES: dict[type, int] = {str: 1, bytes: 2}  # plain ints, as most messages are sent


def _kind(item: object, text: bool | None) -> tuple[int, str | Buffer]:
    """Return the opcode and the payload of a message."""
    if isinstance(item, str):
        return (Opcode.TEXT, item) if text is not False else (Opcode.BINARY, item.encode())
    if not isinstance(item, bytes | bytearray):
        try:
            item = memoryview(item).cast("B")  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"a message is str or bytes-like, not {type(item).__name__}") from None
    if text:
        try:
            str(item, "utf-8")
        except UnicodeDecodeError as exc:
            raise ValueError(f"bytes sent with text=True must be UTF-8: {exc}") from exc
        return Opcode.TEXT, item
    return Opcode.BINARY, item
