"""What must be true of one end of a connection, whatever the network, the peer, the calls and their cancellations do.

`Endpoint.check` holds at any moment, `check_quiet` when nothing can happen without time passing, `check_end` when all
is over. Truth comes from what was said here (`Message`), from what was written, by a decoder of its own (`Wire`), and
from when messages came and were taken (`Inbox`).
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import ByteStream

import anyio_ws.core
import anyio_ws.inbox
from anyio_ws import CloseInfo, ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, Deflate, WebSocket
from anyio_ws.options import Options
from anyio_ws.transports.socket import SocketTransport
from anyio_ws.transports.stream import StreamTransport
from anyio_ws.transports.tls import TLSTransport

from .dice import Dice
from .inbox import Inbox
from .link import Pipe, SimTransport
from .wire import Inflating, Wire, agreed

OVERHEAD = 64
"""What a message counts in the inbox beyond its length, as documented."""

CONTROL_FRAME = 131
"""Bytes of the largest control frame."""

UNWATCHED = 1 / 32
"""Seconds in which an end on trio may not notice what has arrived."""

CHUNK = 2**17
"""Bytes that one read brings, and more: what a message in parts may have beyond receive_buffer_size."""

SENDING = ("send", "send_many", "flush", "send_stream", "write")
RECEIVING = ("receive", "receive_many", "iterate", "receive_stream", "read")
"""To read and to write is to receive and to send with a byte stream."""

WRITING = ("write", "write nothing")
"""Of these, there can be one at a time."""


@dataclass(eq=False)
class Message:
    """A message that somebody wants to send.

    Attributes:
        called, returned: moments, counted in calls that began or ended.
        epoch: of its call; when it changes, nothing could happen any more without time passing.
        batch: the call it belongs to, and its place there.
        forbidden: why it must not be sent, if so.
        compress: what its sender says about that.
        in_parts: it is sent in parts, and its size is not known before.
        is_piece: a byte stream sends it.
    """

    opcode: int
    payload: bytes
    called: int
    epoch: int
    batch: tuple[int, int]
    forbidden: str = ""
    returned: float = math.inf
    compress: bool | None = None
    in_parts: bool = False
    is_piece: bool = False


@dataclass(eq=False)
class Call:
    """A call in progress.

    Attributes:
        phase: what a call that does several things is doing: "turn", "room", "message" and "chunk" are what it waits
            for, "" is nothing.
    """

    kind: str
    began: float
    epoch: int
    jumped: float
    phase: str = ""
    cancel: Callable[[], object] | None = None
    struck: bool = False


@dataclass
class Clock:
    """What both ends share.

    Attributes:
        moment: counts calls that began or ended.
        epoch: counts the times when nothing could happen.
        jumped: seconds for which the event loop was blocked; `jumps` says how often, `last_jump` when it ended.
        is_instant: the network is good, and takes no time.
        stirred: when something has happened last, a call that began or ended among it.
        threads: worker threads that are at work.
        faults: what the network did that no good one does.
        broken: what was found to be untrue.
    """

    moment: int = 0
    epoch: int = 0
    jumped: float = 0.0
    jumps: int = 0
    last_jump: tuple[float, float] = (-math.inf, 0.0)
    is_instant: bool = False
    stirred: float = 0.0
    threads: int = 0
    faults: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Endpoint:
    """One end.

    Args:
        name: "client" or "server".
        handshake: what it writes begins with the opening handshake.

    Attributes:
        largest: bytes of the largest messages that the application of either end makes.
    """

    peer: "Endpoint"
    largest: int
    ws: WebSocket
    stream: ByteStream
    incoming: Pipe
    outgoing: Pipe

    def __init__(self, name: str, dice: Dice, clock: Clock, options: Options, *, handshake: bool) -> None:
        self.name = name
        self.dice = dice
        self.clock = clock
        self.options = options
        self.is_open = False
        self.calls: list[Call] = []
        self.close_calls: list[tuple[int, str]] = []
        self.aborted = False
        self.wire = Wire(name, self._on_frame, handshake=self.on_answer if handshake else None)
        self.unfinished = 0  # messages in parts that have begun and may never end
        # What came.
        self.received = 0
        self.inbox = Inbox(options.overflow, options.receive_buffer_size)
        self._depth = self._numbered = self._discarded = 0
        self._takes_parts = False
        self.streaming: int | None = None  # the message that is being received in parts
        self._streamed: set[int] = set()
        self._left: list[tuple[int, int, bytes]] = []  # those of which only the beginning was received
        self._is_last_left = False
        self._refused: float = math.inf  # what had come of it was received, and then the end
        self.stream_limits: set[float] = set()
        # What came by the byte stream.
        self.rest = b""  # of the message that was taken last
        self._text = -1  # the number of a text message that was taken
        self._refusal: BaseException | None = None  # which a read has raised because of it
        # What is to come on the wire, and what came.
        self.unsent: dict[tuple[int, bytes], Message] = {}
        self.empty: Counter[int] = Counter()
        self.returned_unsent: set[Message] = set()
        self.sent: list[tuple[int, bytes, int, Message | None]] = []
        self.pings: list[tuple[bytes, int]] = []
        self.close: tuple[int, str, int] | None = None
        self._answered = 0  # of the peer's pings
        self._largest = 0
        # What was last seen.
        self.info: CloseInfo | None = None
        self._inbox = 0
        self._fed = self._fed_before_end = self._fed_at_end = 0
        self._heard = self._moved = self._last_message = self._last_taken = self._fed_at = 0.0
        self._heard_messages = 0
        self._closing: float | None = None
        self._last_word: int | None = None
        self._pongs = self._control_end = 0
        self._was_paused = False
        self._committed = 0  # bytes, before the peer's Close was seen

    def begin(self, ws: WebSocket) -> None:
        self.is_open = True
        self.ws = ws
        self.stream = ws.as_byte_stream()
        self.core = ws._core
        self.transport = ws._core.transport
        self._heard = self._moved = self._last_message = self._last_taken = self._fed_at = self.dice.now()
        watched[id(ws._core.inbox)] = self
        self.file()

    def on_answer(self, extensions: str) -> None:
        """The opening handshake has agreed on this."""
        parameters = agreed(extensions)
        if parameters is not None:
            for end in (self, self.peer):
                end.wire.deflate = Inflating(parameters, end.name)

    def fail(self, text: str) -> None:
        text = f"{self.name}: {text}"
        self.dice.log("BROKEN", text)
        self.clock.broken.append(text)

    def expect(self, truth: object, text: str) -> None:
        if not truth:
            self.fail(text)

    # The wire

    def tap(self, data: bytes) -> None:
        """This end has written."""
        self._moved = self.dice.now()
        try:
            self.wire.feed(data)
        except (AssertionError, UnicodeDecodeError) as exc:
            self.fail(f"torn or invalid on the wire: {exc}")

    def _on_frame(self, opcode: int, payload: bytes, end: int, compressed: bool) -> None:
        self.dice.log(self.name, "frame", opcode, len(payload), payload[:8], *["compressed"] * compressed)
        if opcode in (9, 10):
            self.dice.pinged()
        if opcode in (1, 2):
            self._on_message(opcode, payload, end, compressed)
        elif opcode == 9:
            self.pings.append((payload, end))
        elif opcode == 10:
            self._on_pong(payload, end)
        elif self.close is not None:
            self.fail("a second Close")
        else:
            self.close = (int.from_bytes(payload[:2]) if payload else 1005, payload[2:].decode(), end)
            self.expect(not self.returned_unsent, "a Close before a message whose send had returned")

    def _on_message(self, opcode: int, payload: bytes, end: int, compressed: bool) -> None:
        self.expect(self.close is None, "a message after the Close")
        message = None
        if payload:
            message = self.unsent.pop((opcode, payload), None)
            if message is None:
                self.fail(f"a message torn, sent twice or never asked for: {opcode} {len(payload)} {payload[:20]!r}")
                return
            self.expect(not message.forbidden, f"sent although {message.forbidden}: {payload[:8]!r}")
            self.returned_unsent.discard(message)
            self.unfinished -= message.in_parts
            self._check_compressed(message, compressed)
        else:
            self.empty[opcode] -= 1
            self.expect(self.empty[opcode] >= 0, "an empty message too many")
        self._largest = max(self._largest, len(payload))
        self.sent.append((opcode, payload, end, message))

    def _check_compressed(self, message: Message, compressed: bool) -> None:
        deflate, options = self.wire.deflate, self.options.compression
        if deflate is None:
            return
        assert isinstance(options, Deflate)
        wanted = message.compress
        if wanted is None:
            wanted = message.in_parts or len(message.payload) >= options.threshold
            if wanted and not message.in_parts and not deflate.is_taken_over:
                return  # it may be as it is because it would become no shorter
        self.expect(compressed == wanted, f"compressed: {compressed}, wanted: {wanted}, {len(message.payload)} bytes")

    def _on_pong(self, payload: bytes, position: int) -> None:
        fed = self.core.connection.decoder.fed
        if isinstance(self.transport, SimTransport):  # elsewhere, two reads may pass between two checks
            late = self.core.connection.close_received is not None and position > self._committed
            self.expect(not late, "a Pong after the peer's Close")
        for index in range(self._answered, len(self.peer.pings)):
            data, end = self.peer.pings[index]
            if data == payload and end <= fed:
                self._answered = index + 1
                return
        self.fail(f"a Pong that answers nothing: {payload!r}")

    # Calls

    def begin_call(self, kind: str) -> Call:
        self.check()
        self.clock.moment += 1
        self.clock.stirred = self.dice.now()
        call = Call(kind, self.dice.now(), self.clock.epoch, self.clock.jumped)
        self.calls.append(call)
        return call

    def stir(self) -> None:
        """Something has happened in the middle of a call."""
        self.clock.moment += 1
        self.clock.stirred = self.dice.now()
        self.check()

    def end_call(self, call: Call) -> None:
        self.clock.moment += 1
        self.clock.stirred = self.dice.now()
        self.calls.remove(call)
        self.check()

    def waiting(self, *kinds: str) -> int:
        return sum(call.kind in kinds for call in self.calls)

    def check_item(self, item: str | bytes) -> None:
        """A message was received."""
        self.expect(not self.has_closed, "received after aclose() had discarded the inbox")
        self.file()
        opcode, payload = (1, item.encode()) if isinstance(item, str) else (2, item)
        if self.inbox.taken:
            self._check_received(self.inbox.taken.popleft(), opcode, payload)
        else:
            self.fail(f"received what never came: {payload[:20]!r}")

    def _check_received(self, number: int, opcode: int, payload: bytes) -> None:
        sent = self.peer.sent
        self.received += 1
        self._is_last_left = False
        if number >= len(sent):
            self.fail(f"received what was never sent: {payload[:20]!r}")
        elif sent[number][:2] != (opcode, payload):
            self.fail(
                f"message {number} is {opcode} {payload[:20]!r}, sent was {sent[number][0]} {sent[number][1][:20]!r}"
            )

    def begin_stream(self) -> None:
        """A message is received in parts from now on: one that was taken from the inbox, or the next one to end."""
        self.file()
        taken = self.inbox.taken
        self.streaming = taken.popleft() if taken else self.core.inbox.messages_received
        self._streamed.add(self.streaming)

    def end_stream(self, chunks: list[str | bytes], how: str, *, is_text: bool) -> None:
        """These were its chunks, when it had "ended", was "left", or when the connection had ended ("broken")."""
        number, opcode = self.streaming, 1 if is_text else 2
        assert number is not None
        self.streaming = None
        payload = b"".join(chunk.encode() if isinstance(chunk, str) else chunk for chunk in chunks)
        if how == "ended":
            self._check_received(number, opcode, payload)
            return
        self._left.append((number, opcode, payload))
        info = self.ws.close_info
        if how == "left" and info is not None and "max_size" in str(info.cause):
            self._refused = min(self._refused, number + 1)  # those behind it were discarded
        if how == "left":
            self.received += 1
            self._is_last_left = True
        else:
            self._streamed.discard(number)
            self._refused = min(self._refused, number)

    # As bytes

    def check_read(self, data: bytes, max_bytes: int) -> None:
        """A read has returned this."""
        self.expect(not self._take(), "a text message was taken as bytes")
        expected, self.rest = self.rest[:max_bytes], self.rest[max_bytes:]
        self.expect(data and data == expected, f"read {data[:20]!r} ({len(data)}), expected {expected[:20]!r}")
        self._check_rest()

    def check_read_raised(self, exc: BaseException) -> None:
        """A read was cancelled, or has raised an error."""
        is_text = self._take()
        self._check_rest()
        if is_text:
            self._refusal = exc
            refused = isinstance(exc, ConnectionClosedError) and getattr(exc.__cause__, "close_code", None) == 1003
            self.expect(refused, f"read raised {exc!r}, but a text message came")
            info = self.ws.close_info
            if info is not None and info.cause is exc.__cause__:
                self._refused = min(self._refused, self._text + 1)  # those behind it were discarded

    def _take(self) -> bool:
        """What has left the inbox is in the byte stream's hands. Returns whether that was text, which it refuses."""
        self.file()
        is_text = False
        while self.inbox.taken:
            number = self.inbox.taken.popleft()
            opcode, payload, *_ = self.peer.sent[number]
            self.received += 1
            self._is_last_left = False
            self.expect(not self.rest, f"message {number} was taken, {len(self.rest)} bytes were left of the last")
            self.expect(not (payload and self.has_closed), "read after aclose() had discarded the inbox")
            if opcode == 1:
                is_text, self._text = True, number
            else:
                self.rest = payload
        return is_text

    def _check_rest(self) -> None:
        kept = self.stream._rest
        self.expect(kept == self.rest, f"the byte stream keeps {bytes(kept)[:20]!r}, expected {self.rest[:20]!r}")

    # What the core does, see `watch`

    def before(self, *, ends_parts: bool) -> None:
        """The core is about to take what has come, or what came of a message in parts has all been inflated."""
        if self.core.connection.close_received is None:
            self._committed = self.core.outbox.taken + self.core.outbox.size
        if not self._depth:
            self.file()
            parts: Any = self.core.inbox.parts
            self._takes_parts = ends_parts or (parts is not None and parts._taking)
            self._is_awaited = self.core.inbox.receiver is not None and not self.core.inbox.streaming
        self._depth += 1

    def after(self) -> None:
        """It has taken that."""
        self._depth -= 1
        if not self._depth:
            new = range(self._numbered, self.core.inbox.messages_received)
            if new and self._takes_parts:
                new = new[1:]  # its last part
            for number in new:
                if number >= len(self.peer.sent):
                    self.fail(f"message {number} came, but was never sent")
                    break
                opcode, payload, *_ = self.peer.sent[number]
                size = len(payload.decode()) if opcode == 1 else len(payload)
                self.inbox.arrive(number, size + OVERHEAD, is_awaited=self._is_awaited)
            self._numbered = self.core.inbox.messages_received
            self.file(taken=False)

    def file(self, *, taken: bool = True) -> None:
        """What is in the inbox is what is to be there, but for what calls have taken."""
        if self._depth:
            return
        core, inbox = self.core, self.inbox
        if self._numbered < core.inbox.messages_received:  # before this end was watched
            self._depth += 1
            self._takes_parts = self._is_awaited = False
            self.after()
            return
        before = len(inbox.taken)
        inbox.leave(len(core.inbox.messages), core.inbox.discarded - self._discarded)
        self._discarded = core.inbox.discarded
        self.expect(taken or len(inbox.taken) == before, "a message is lost in the inbox")
        sizes = [len(item) + OVERHEAD for item in reversed(core.inbox.messages)]
        expected = [size for _, size in inbox.waiting]
        self.expect(sizes == expected, f"in the inbox are {sizes}, expected {expected}")
        dropped = len(inbox.dropped)
        count = core.inbox.messages_dropped
        self.expect(count == dropped, f"{count} dropped, expected {dropped}")

    @property
    def has_closed(self) -> bool:
        """The ending began with our aclose()."""
        info = self.ws.close_info
        return info is not None and info.initiator == "local" and (info.code, info.reason) in self.close_calls

    def check_raised(self, exc: Exception, kind: str) -> None:
        """A call has raised."""
        if not isinstance(exc, ConnectionClosed):
            rivals = RECEIVING if kind in RECEIVING else WRITING
            if not (isinstance(exc, anyio.BusyResourceError) and kind in rivals and self.waiting(*rivals) > 1):
                self.fail(f"{kind} raised {exc!r}")
            return
        info = self.ws.close_info
        self.expect(kind != "read" or not self.rest, f"read raised {exc!r}, {len(self.rest)} bytes were left")
        if info and exc is self._refusal and exc.__cause__ is not info.cause:
            # The text message came before the end, and was read after it.
            self.expect(exc.close_info is info, f"read raised {exc.close_info}, the connection ended with {info}")
            return
        is_over = any(f"max_size={limit:,}" in str(exc.__cause__) for limit in self.stream_limits)
        if info and kind == "stream.receive" and is_over and (exc.__cause__ is not info.cause or self.has_closed):
            # The message is over the stream's own limit, and by then the connection was closing for another reason.
            self.expect(isinstance(exc, ConnectionClosedError), f"{kind} raised {exc!r}")
            return
        if info is None:
            info = exc.close_info
            self.expect((info.code, info.reason) in self.close_calls, f"{kind} raised {exc!r} while open")
            good = True
        else:
            self.expect(exc.close_info is info, f"{kind} raised {exc.close_info}, the connection ended with {info}")
            good = self.has_closed or (info.initiator == "peer" and info.code in (1000, 1001, 1005))
        self.expect(isinstance(exc, ConnectionClosedOK if good else ConnectionClosedError), f"{kind} raised {exc!r}")
        of_receive = good and kind in RECEIVING
        self.expect(isinstance(exc, anyio.EndOfStream) == of_receive, f"{kind} raised {type(exc).__name__}")
        self.expect(exc.__cause__ is info.cause, f"{kind} raised with the cause {exc.__cause__!r}")
        if kind in RECEIVING:
            self.check_all_received()

    def check_all_received(self) -> None:
        """There are no more messages: what arrived has been received, unless we closed."""
        self.check()
        info = self.ws.close_info
        if info is None or (self.close_calls and (info.initiator == "local" or self.core.inbox.discarded)):
            return
        least = self._arrived(self._fed_before_end)
        most = self._arrived(self._fed_at_end) + self._is_last_left
        count = self.received + sum(number < self._refused for number in self.inbox.dropped)
        text = f"{least} to {most} messages arrived before {info}, {count} received or dropped"
        self.expect(least <= count <= most or self.inbox.closed, text)

    def _arrived(self, fed: int) -> int:
        """How many of the peer's messages so many bytes are, up to one that is too large."""
        count = 0
        for _, payload, end, _ in self.peer.sent:
            too_big = len(payload) > (self.options.max_size or math.inf) and count not in self._streamed
            if end > fed or too_big or count == self._refused:
                break
            count += 1
        return count

    # At any moment

    def check(self) -> None:
        self.file()
        core = self.core
        now = self.dice.now()
        inbox = core.inbox.messages
        fed = core.connection.decoder.fed
        before, self._fed = self._fed, fed
        if fed != before:
            # Other transports read, or decrypt, also between the moments that we see.
            seen = isinstance(self.transport, SimTransport)
            self._heard = self._fed_at = now if seen else core.inbox.last_received
            self.expect(fed <= self.peer.wire.position + len(self.peer.wire._rest), "received more than was sent")
        if len(inbox) != self._inbox:
            self._inbox = len(inbox)
            held = sum(map(len, inbox)) + OVERHEAD * len(inbox)
            newest = len(inbox[0]) + OVERHEAD if inbox else 0
            bounded = held - newest < self.options.receive_buffer_size or not inbox
            self.expect(bounded or core.inbox._backlog is not None, f"{held} bytes in the inbox")
        # All of it may have come before anybody receives it.
        bounded = core.inbox.parts_size < self.options.receive_buffer_size + max(CHUNK, self.largest)
        self.expect(bounded, f"{core.inbox.parts_size} bytes of a message in parts")
        messages = core.inbox.messages_received
        if messages != self._heard_messages:
            self._heard_messages = messages
            self._last_message = self._fed_at  # when its bytes came, however long it was held back
            self._last_taken = now
        elif inbox or core.inbox.paused or core.inbox.parts_size or (self._takes_parts and fed != before):
            self._last_taken = now
        if isinstance(self.transport, TLSTransport):
            self._heard = max(self._heard, core.inbox.last_received)  # a part of a record is a sign of life too
        if core.inbox.paused:
            self._heard = now
        size = core.outbox.size
        if size > self.options.write_buffer_size:
            bound = self.options.write_buffer_size + self._bound_of_a_message() + CONTROL_FRAME * (core.pings.sent + 2)
            self.expect(size < bound, f"{size} bytes in the outbox, bound {bound}")
        if core.closing:
            self.note_closing()
        if not getattr(self.transport, "_breaking", False):  # else it is amid a write, and `taken` is to come
            many = core.pings.answered > self._pongs and core.outbox.taken < self._control_end
            self.expect(not many, "a Pong joins one that waits")
            self._pongs, self._control_end = core.pings.answered, core.outbox._control_end
        info = self.ws.close_info
        if info is not self.info:
            self.expect(self.info is None, f"close_info changed from {self.info} to {info}")
            self.info = info
            self._fed_at_end = fed
            # What is read after it ended is not received, and elsewhere that may be before we look.
            self._fed_before_end = fed if isinstance(self.transport, SimTransport) else before
            self.dice.log(self.name, "ended", str(info), repr(info and info.cause))
            self._check_ending(now)
        if core.connection.close_received is None:
            self._committed = core.outbox.taken + size
        self._was_paused = core.inbox.paused
        if self._last_word is not None:
            self.expect(core.outbox.taken + size == self._last_word, "something was sent after the peer's Close")
        elif core.connection.close_received is not None and info is not None:
            self._last_word = core.outbox.taken + size

    def note_closing(self) -> None:
        """It is closing, or may be about to."""
        if self._closing is None:
            self._closing = self.dice.now()

    def _bound_of_a_message(self) -> int:
        largest = max((len(payload) for _, payload in self.unsent), default=self._largest)
        largest = max(self._largest, largest)
        largest += largest // 8 + 64  # what compressing adds to it at worst
        return largest + 14 * (2 + largest // anyio_ws.core.FRAGMENT)

    def _check_ending(self, now: float) -> None:
        """It has ended just now: was there a reason?"""
        info = self.info
        assert info is not None
        cause, core, peer, options = info.cause, self.core, self.peer, self.options
        theirs = peer.close if peer.close and peer.close[2] <= self._fed else None
        if info.clean:
            self.expect(theirs is not None, f"{info} is clean, but no Close came")
            self.expect(cause is None, f"{info} is clean, with the cause {cause!r}")
        if info.initiator == "peer" and info.code != 1006:
            self.expect(theirs and theirs[:2] == (info.code, info.reason), f"{info}, but the peer's Close was {theirs}")
        if info.initiator == "local" and info.code != 1006 and self.close is not None:
            self.expect(self.close[:2] == (info.code, info.reason[:123]), f"{info}, but our Close was {self.close}")
        if info.code == 1006:
            self.expect(not info.clean and self.close is None, f"{info}, although our Close was {self.close}")
            ours = isinstance(cause, ConnectionAbortedError | TimeoutError)
            self.expect((info.initiator == "local") == ours, f"{info.initiator} began {info}: {cause!r}")
        text = str(cause)
        if cause is None:
            self.expect(info.clean, f"{info} without a cause")
        elif "ping_timeout" in text:
            assert options.ping_timeout is not None
            self.expect(now - self._fed_at >= options.ping_timeout, f"{info}: heard {now - self._fed_at} s ago")
            self.expect(not self.core.inbox.paused, f"{info}, but it is we who do not read")
            # A stream cannot look; TLS does not count what is no whole record.
            looked = isinstance(self.transport, SimTransport | SocketTransport)
            self.expect(
                not (looked and self.incoming.unread),
                f"{info}: {self.incoming.unread} bytes had arrived, and were not read",
            )
            assert options.ping_interval is not None
            ended, seconds = self.clock.last_jump
            longest = max(options.ping_interval, options.ping_timeout) + max(1, options.ping_timeout / 4)
            fresh = seconds <= longest or now - ended >= options.ping_timeout
            self.expect(fresh, f"{info}, {now - ended} s after the event loop was blocked for {seconds} s")
        elif "close_timeout" in text:
            assert self._closing is not None
            assert options.close_timeout is not None
            self.expect(now - self._closing >= options.close_timeout, f"{info} after {now - self._closing} s")
        elif "idle_timeout" in text:
            assert options.idle_timeout is not None
            self.expect(now - self._last_message >= options.idle_timeout, f"{info}: {now - self._last_message} s")
        elif "max_size" in text:
            limit = min(options.max_size or math.inf, *self.stream_limits, math.inf)
            big = any(len(payload) > limit for _, payload, *_ in peer.sent) or not peer.wire.is_whole
            self.expect(big, f"{info}, but nothing so large was sent")
        elif "as_byte_stream" in text:
            self.expect(info.code in (1003, *(code for code, _ in self.close_calls)), f"{info}: {text}")
        elif "whose receiver had left" in text:
            self.expect(self._left, f"{info}, but nobody had left")
            self.expect(info.code == 1009, f"{info}: {text}")
            self._refused = min(self._refused, *(number + 1 for number, *_ in self._left[-1:]))
        elif isinstance(cause, BufferError):
            self.expect(info.code == 1008 and options.overflow == "close", f"{info}: {text}")
        elif isinstance(cause, ConnectionAbortedError):
            self.expect(self.aborted or self.close_calls, f"{info}, but nobody aborted")
        elif isinstance(cause, OSError | EOFError):
            gone = peer.transport.closed or peer.core._shut
            self.expect(self.clock.faults or gone, f"{info}: {cause!r}, but the network was good")
            unread = self.incoming.unread if isinstance(self.transport, SimTransport | SocketTransport) else 0
            roomy = options.receive_buffer_size >= 65536 and not core.inbox.messages and not self._was_paused
            self.expect(not (roomy and unread), f"{info}: {unread} bytes had arrived before, and were not read")
        else:
            self.fail(f"{info}: {cause!r}")

    # When nothing can happen without time passing

    def check_quiet(self) -> None:
        self.check()
        core, ws, outbox, options = self.core, self.ws, self.core.outbox, self.options
        for call in self.calls:
            kind = call.kind
            if kind == "receive_stream" and call.phase != "message":
                waits = call.phase == "chunk" and not core.inbox.stopped and not core.inbox.parts_size
                self.expect(waits or not call.phase, f"{kind} waits for a {call.phase}, but there is one")
            elif kind in RECEIVING:
                something = core.inbox.messages or core.inbox.stopped or (kind == "read" and self.rest)
                self.expect(not something, f"{kind} waits, but there is something to return or raise")
            elif kind in SENDING and (kind != "send_stream" or call.phase):
                full = outbox.size >= options.write_buffer_size
                held = outbox.held and (call.phase != "room" or self.clock.threads)
                self.expect(full or held, f"{kind} waits, but there is room")
                self.expect(not core.closing or self.clock.threads, f"{kind} waits, but the connection is closing")
            elif kind in ("ping", "wait_closed"):
                self.expect(ws.close_info is None, f"{kind} waits, but the connection has ended")
            elif kind == "aclose":
                self.expect(not self.transport.closed, "aclose waits, but the connection is gone")
        if self.transport.closed:
            self.expect(ws.close_info is not None, "gone without a close_info")
            return
        self.expect(not outbox.size or outbox.blocked, f"{outbox.size} bytes wait for nothing")
        self.expect(not outbox.blocked or self.waits_for_room(), f"{outbox.size} bytes wait, and nobody will go on")
        if self.dice.now() - self.clock.stirred >= (UNWATCHED if isinstance(self.transport, SocketTransport) else 0):
            self._check_reading()
        if ws.close_info is not None:
            return
        pings = core.connection.pings
        self.expect(len(pings) <= 1, f"{len(pings)} pings are owed an answer")
        self.expect(not pings or outbox.control_waits, "a ping is not answered")
        held = core.connection.error or core.connection.too_big
        held = held or core.inbox.parts_size or self.clock.threads or self.streaming is not None
        self.expect(core.inbox.messages or not core.inbox.paused or held, "reading is paused, but the inbox is empty")
        reason = self.clock.threads or self.waiting("send_stream")
        self.expect(not outbox.held or reason, "the outbox is held, but nobody sends in parts")
        if not outbox.size and not self.transport.unsent:
            self.expect(ws.stats.frames_sent == self.wire.frames, "stats.frames_sent is wrong")
            self.expect(not self.returned_unsent, "a send has returned, but its message was not written")
        if self.waiting("read"):
            self.expect(not self._take(), "read waits, but has taken a text message")
            self._check_rest()
        stats = ws.stats
        self.expect(stats.bytes_received == core.connection.decoder.fed, "stats.bytes_received is wrong")
        taken = stats.messages_received - len(core.inbox.messages) - core.inbox.discarded - stats.messages_dropped
        least, most = self.received - self._is_last_left, self.received + (self.streaming is not None)
        self.expect(least <= taken <= most, f"a message is lost: {taken} were taken, {self.received} received")
        self._check_silence()

    def _check_reading(self) -> None:
        """Nothing happens any more, so nothing is left to do."""
        core, peer = self.core, self.peer
        if not (core.inbox.paused or core._eof):
            self.expect(not self.incoming.arrived, f"{self.incoming.arrived} bytes are here, and nobody reads them")
            self.expect(not self.incoming.was_reset, "a reset is here, and nobody has noticed")
        if self.clock.is_instant:
            self.expect(not core.closing or peer.core.inbox.paused, "it is closing, and nothing more happens")
            written = peer.wire.position + len(peer.wire._rest)
            self.expect(
                core.inbox.paused or core.closing or self._fed == written, f"{self._fed} of {written} bytes were read"
            )

    def waits_for_room(self) -> bool:
        """The transport will say when it takes more."""
        if isinstance(self.transport, SocketTransport):
            sock: Any = self.transport._sock
            return bool(sock.is_waited_for("write"))
        return self.outgoing.short or self.outgoing.is_broken or isinstance(self.transport, StreamTransport)

    def check_half_close(self) -> None:
        """This end half-closes: it must have said all that it had to say, if it could."""
        if self.outgoing.is_broken:
            return
        self.expect(not self.core.outbox.size, f"{self.core.outbox.size} bytes were not written before the end")
        whole = self.wire.is_whole or (self.unfinished and not self.wire.is_torn)
        self.expect(self.close is not None and whole, "the end without a Close")

    def _check_silence(self) -> None:
        """Keepalive and idle_timeout should have struck."""
        options, now = self.options, self.dice.now()
        jumped = self.clock.jumped + self.clock.jumps  # after each, what came meanwhile may be waited for, for a second
        if options.ping_interval is not None and options.ping_timeout is not None:
            bound = options.ping_interval + 2 * options.ping_timeout + 1 + jumped
            silence = now - max(self._heard, self._moved)
            self.expect(silence <= bound, f"the peer was silent for {silence} s, and nothing was done")
        if options.idle_timeout is not None and self._closing is None:
            silence = now - self._last_taken
            self.expect(
                silence <= options.idle_timeout + 1 + jumped, f"no message for {silence} s, and nothing was done"
            )

    # At the end

    def check_end(self) -> None:
        core, info = self.core, self.ws.close_info
        if info is None or not self.transport.closed:
            self.fail("did not end")
            return
        outbox = core.outbox
        refused = "as_byte_stream" in str(info.cause)
        self.expect(not refused or self._refusal is not None, f"{info}, but no text message was read")
        self.expect(not self.calls, f"still waiting: {[call.kind for call in self.calls]}")
        self.expect(not (outbox._turns or outbox._drained), "a sender waits for ever")
        self.expect(core.inbox.receiver is None and not core.closers, "a receiver or a closer was left")
        self.expect(not outbox.size and not outbox._buffers, "something was left in the outbox")
        held = outbox.held and not self.clock.threads
        self.expect(not held and core.sender is None, "a sender in parts was left")
        self.expect(core.inbox.parts is None or not core.inbox.parts_size, "a message in parts was left")
        for number, opcode, payload in self._left:
            if number < len(self.peer.sent):
                whole = self.peer.sent[number]
                begins = whole[0] == opcode and whole[1].startswith(payload)
                self.expect(
                    begins, f"message {number} begins {whole[:2]!r:.30}, received was {opcode} {payload[:20]!r}"
                )
        self.expect(not [ping for ping in core.pings.in_flight.values() if ping.done], "a waiting ping was left")
        live = [timer.callback for timer in core.loop._timers if timer.callback is not None]
        self.expect(not live, f"timers were left: {live}")
        self._check_agreement(info)
        self._check_order()
        self._check_batches()

    def _check_agreement(self, info: CloseInfo) -> None:
        other = self.peer.ws.close_info
        if not info.clean or other is None:
            return
        self.expect(self.peer.close is not None, f"{info} is clean, but no Close came")
        if info.initiator == "peer":
            self.expect(self.peer.has_closed or "local" in other.initiator, f"{info} here, {other} there")
            self.expect((other.code, other.reason) == (info.code, info.reason), f"{info} here, {other} there")
        elif other.clean and other.initiator == "peer":
            self.expect((other.code, other.reason) == (info.code, info.reason), f"{info} here, {other} there")

    def _check_order(self) -> None:
        """First come, first served."""
        returned, epoch = math.inf, math.inf
        places: dict[int, int] = {}
        for _, payload, _, message in reversed(self.sent):
            if message is None:
                continue
            text = f"{payload[:8]!r} came before a message"
            self.expect(message.called < returned, f"{text} whose send had returned before")
            self.expect(message.epoch <= epoch, f"{text} whose send had waited already")
            batch, place = message.batch
            self.expect(place < places.get(batch, 1 << 30), f"{text} that stands before it in the same call")
            places[batch] = place
            returned = min(returned, message.returned)
            if not place:
                epoch = min(epoch, message.epoch)

    def _check_batches(self) -> None:
        """Of what one call was to send, the first so many were sent, and two that write do not mix."""
        last = dict(message.batch for *_, message in self.sent if message is not None)
        for message in self.unsent.values():
            batch, place = message.batch
            self.expect(place > last.get(batch, -1), f"{message.payload[:8]!r} is missing before what was sent with it")
        pieces = [message.batch for *_, message in self.sent if message is not None and message.is_piece]
        self.expect(pieces == sorted(pieces), "what two calls have written is mixed")


watched: dict[int, Endpoint] = {}
"""Whose core is whose, by its id: there are two at a time."""


def watch(function: Callable[..., None], *, ends_parts: bool = False) -> Callable[..., None]:
    """Let a method of Inbox, by which messages come into it, tell the end that it belongs to."""

    def watching(inbox: anyio_ws.inbox.Inbox, *args: Any) -> None:
        end = watched.get(id(inbox))
        if end is None:
            function(inbox, *args)
            return
        end.before(ends_parts=ends_parts)
        try:
            function(inbox, *args)
        finally:
            end.after()

    return watching
