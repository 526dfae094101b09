"""The synchronous core of a connection: what happens when bytes arrive, a timer is due, or somebody says so.

Theory of operation. Everything that changes a connection's state is a plain function in this file that never suspends
and never raises `Exception`: it records the outcome and wakes whoever waits. The transport, timers and `WebSocket` only
call it. That is why the event loops behave alike, why no lock is needed, and why a cancellation cannot strike half-way.

A connection goes through

    open ──> closing ──> ended ──> gone

It is *closing* from our Close until the peer's. It has *ended* once `close_info` is set: nothing more will be sent or
read, but what arrived before may still be received. It is *gone* when the transport is closed. In between, both ends
hang up in the order of RFC 6455 §7.1.1: the server closes first, so that it holds the TIME_WAIT, and not the client.

What the peer makes us remember is bounded: the inbox (`receive_buffer_size`, then reading pauses, or `overflow` says
what is dropped), one message being assembled (`max_size`) or what waits of one that is streamed
(`receive_buffer_size`), one chunk not yet decoded, and the latest Ping.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, Protocol, cast

from anyio import Event
from anyio.abc import SocketAttribute

from .exceptions import CloseInfo, ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, EndOfMessages
from .keepalive import Keepalive
from .logs import Log, describe_close
from .loops import Loop, Timer, Waiter
from .options import Options
from .outbox import Outbox
from .overflow import Backlog
from .pings import Ping, Pings
from .protocol import Close, Connection, ProtocolError
from .protocol.extensions import Extension
from .protocol.frames import MESSAGE_OVERHEAD, check_close_code, encode_header
from .protocol.restoring import Deferred, Restoring
from .stats import Stats
from .transports.base import Buffer, Transport
from .workers import finish_deferred

STALL = 1.0
"""Seconds that the timer of idle_timeout or open_timeout may be late before it gives the peer as much time again."""

FRAME_PARTS = 16384
"""Bytes of payload from which on a frame is sent as header and payload, and not copied into one block."""

UNFRAGMENTED = 2**20
"""Bytes of the largest message that is sent as one frame. Most are smaller than this, and so are spared the rest."""

FRAGMENT = 2**18
"""Bytes of each fragment of a larger one: how long a Ping or a Pong may have to wait on a slow line."""


def check_close(code: int, reason: str) -> None:
    """Check what an application wants to say in a Close.

    Raises:
        ValueError: it cannot be said.
    """
    check_close_code(code)
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise ValueError(f"close reason {reason!r} has surrogates, which cannot be encoded as UTF-8") from None


def closing_code(exc: BaseException) -> int:
    """The close code for a block, or a handler, that an exception ends.

    1011 if something failed, 1001 if we go away: for a cancellation, KeyboardInterrupt or SystemExit.
    """
    if isinstance(exc, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exc)
        return max(closing_code(inner) for inner in group.exceptions)
    return 1011 if isinstance(exc, Exception) else 1001


class Parts(Protocol):
    """Takes a message as it arrives."""

    def arrived(self, messages: list[str | bytes]) -> bool:
        """Something was read: the message has ended with the first of these, or more of it is in the decoder.

        Returns whether reading is to pause.
        """
        ...


class Core:
    """A connection's state.

    Args:
        transport: connected; nothing has been read since the opening handshake.
        loop: the owner's adapter.
        options: of this connection.
        is_client: which side we are.
        extensions: those agreed on.
    """

    __slots__ = (
        "_backlog",
        "_behind",
        "_began",
        "_close_end",
        "_deadline",
        "_decoder",
        "_delivering",
        "_discarded",
        "_eof",
        "_telling",
        "_hanging_up",
        "_idle",
        "_ignored",
        "_keepalive",
        "_limit",
        "_refusal",
        "_rested_at",
        "_shut",
        "_time",
        "close_info",
        "closers",
        "closing",
        "connection",
        "counts",
        "deferred_messages",
        "encode",
        "fragments_sent",
        "ended_event",
        "get_buffer",
        "gone_event",
        "held",
        "inbox",
        "is_client",
        "large_text",
        "last_message",
        "last_moved",
        "last_received",
        "log",
        "loop",
        "messages_sent",
        "options",
        "outbox",
        "parts",
        "parts_size",
        "paused",
        "pings",
        "receiver",
        "room",
        "sender",
        "stopped",
        "streaming",
        "transport",
        "waiter",
        "waits",
    )

    def __init__(
        self,
        transport: Transport,
        loop: Loop,
        options: Options,
        *,
        is_client: bool,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self.transport: Transport = transport
        self.connection: Connection = Connection(
            is_client=is_client,
            max_size=options.max_size,
            scratch=loop.budget.scratch,
            extensions=extensions,
            holds=True,
        )
        self.loop: Loop = loop
        self.options: Options = options
        self.is_client: bool = is_client
        self.log: Log = Log(is_client=is_client)

        # Receiving
        self.inbox: list[str | bytes] = []  # the latest first; a deque, even if empty, takes 700 bytes
        # With a backlog there is room for one message, so that it hears of each.
        self._backlog: Backlog | None = (
            None if options.overflow == "backpressure" else Backlog(options.overflow, options.receive_buffer_size)
        )
        self._telling = False  # the backlog is hearing of messages
        self._limit: int = options.receive_buffer_size if self._backlog is None else 1
        self.room: int = self._limit  # of the inbox; what was taken since is counted when the rest is used up
        self.paused: bool = False  # the inbox is full
        self.counts: bool = self._backlog is not None  # who takes a message tells make_room()
        self.receiver: object | None = None  # the task that waits for a message, or receives one in parts
        self.streaming: bool = False  # it does the latter: the messages in the inbox are not for it
        self.waits: int = 0  # how often a task began to
        self.stopped: bool = False  # the inbox gets nothing more
        self._discarded = 0  # messages that our Close took from the inbox
        self._ignored = 0  # messages that came after it
        # A message that a worker thread or a stream is restoring: nothing behind it is decoded, and reading is paused.
        self._behind: Deferred | Restoring | None = None
        self.held: Restoring | None = None  # it, if it was found to be over max_size
        self.deferred_messages: int = 0
        self.parts: Parts | None = None  # what a message that is streamed goes to, before anything goes to the inbox
        self.parts_size: int = 0  # of what waits there, counted as in the inbox
        self._delivering = False  # a message has left the inbox and its receiver has not seen it yet
        self.last_received: float = loop.time()
        self.last_message: float = self.last_received
        self._eof = False
        # What each read needs, without a detour.
        self.get_buffer: Callable[[], memoryview] = cast("Callable[[], memoryview]", self.connection.get_buffer)
        self._decoder = self.connection.decoder
        self._time = loop.time
        self.waiter: Waiter = transport.waiter

        # Sending
        # Of a str from which on it is encoded first, because it may leave in fragments, or be compressed in a thread.
        self.large_text: int = min(FRAGMENT, self.connection.inline_limit)
        self.sender: object | None = None  # the task that sends a message in parts
        self.outbox: Outbox = Outbox(transport, loop, options.write_buffer_size)
        self.encode: Callable[[int, str | Buffer], bytes] = self.connection.encode
        self.last_moved: float = self.last_received  # when the transport last took something from the outbox

        # Pings
        self.pings: Pings = Pings(self.connection, self.outbox, loop, self.log)
        self._keepalive: Keepalive | None = None
        self._idle: Timer | None = None

        # Closing
        self.closing: bool = False  # nobody may send any more
        self.close_info: CloseInfo | None = None
        self._began: CloseInfo | None = None  # the ending that our aclose() began
        self._refusal: CloseInfo | None = None  # the ending that our refuse() began
        self._close_end = 0  # what `taken` of the outbox will be, at least, when our Close has left
        self._deadline: Timer | None = None
        self._hanging_up = False
        self._shut = False  # our side of the transport is closed
        self.ended_event: Event | None = None
        self.gone_event: Event | None = None
        self.closers: int = 0  # tasks that wait for it in aclose()

        # Counters
        self.messages_sent: int = 0
        self._rested_at = -1  # how many there were at the last probe
        self.fragments_sent: int = 0

    @property
    def ended(self) -> bool:
        return self.close_info is not None

    @property
    def _is_awaited(self) -> bool:
        """A task waits for the oldest message of the inbox."""
        return self.receiver is not None and not self.streaming

    @property
    def gone(self) -> bool:
        return self.transport.closed

    @property
    def messages_received(self) -> int:
        return self._decoder.messages + self.deferred_messages - self._ignored

    @property
    def messages_dropped(self) -> int:
        return 0 if self._backlog is None else self._backlog.dropped

    @property
    def receiving_done(self) -> tuple[int, int]:
        """Changes whenever a task receives: waits begun, and messages taken from the inbox."""
        return self.waits, self.messages_received - self.messages_dropped - len(self.inbox) - self._discarded

    @property
    def local_address(self) -> tuple[str, int] | str | None:
        try:
            address: tuple[str, int] | str = self.transport.attributes[SocketAttribute.local_address]()
        except (KeyError, OSError):
            return None
        return address

    @property
    def stats(self) -> Stats:
        connection = self.connection
        received = connection.pings_received + connection.pongs_received + (connection.close_received is not None)
        sent = self.pings.sent + self.pings.answered + (connection.close_sent is not None)
        return Stats(
            messages_received=self.messages_received,
            messages_sent=self.messages_sent,
            messages_dropped=self.messages_dropped,
            frames_received=self._decoder.messages + self.deferred_messages + connection.fragments_received + received,
            frames_sent=self.messages_sent + self.fragments_sent + sent,
            bytes_received=self._decoder.fed,
            bytes_sent=self.outbox.taken + self.outbox.size,
            pings_received=connection.pings_received,
            pings_sent=self.pings.sent,
            pongs_received=connection.pongs_received,
            pongs_sent=self.pings.answered,
            last_received=self.last_received,
        )

    def start(self, trailing_data: bytes) -> None:
        """Begin, with the bytes that came behind the opening handshake."""
        options = self.options
        self.transport.receiver = self  # pyright: ignore[reportAttributeAccessIssue]  # get_buffer is an attribute
        if options.ping_interval is not None:
            self._keepalive = Keepalive(self, self.loop, options.ping_interval, options.ping_timeout)
        if options.idle_timeout is not None:
            self._idle = self.loop.call_at(self.last_message + options.idle_timeout, self._idle_due)
        rest = memoryview(trailing_data)
        while rest:
            buffer = self.get_buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            rest = rest[count:]
            self.received(count)
        if not self.paused and not self.gone:
            self.transport.start()

    # The transport's receiver

    def received(self, count: int) -> None:
        """Decode and file what was read; with 0, which only we say, go on with what the decoder holds back."""
        if count:
            self.last_received = self._time()
        if self._hanging_up and self.connection.too_big is not None:
            return  # the decoder does not go on behind such a frame, and would keep all that comes
        inbox = self.inbox
        messages = self._decoder.filled(count, self.room if inbox else self._limit)
        self.room = room = self._decoder.room
        if self.parts is not None and self.parts.arrived(messages):
            self._pause()
        if messages:
            # Whoever has closed does not wait for data (RFC 6455 §1.4).
            if self.closing and self.connection.close_sent is not None:
                self._ignored += len(messages)
            else:
                # What was held back came long ago, but meanwhile we kept the peer from sending more.
                self.last_message = self.last_received if count else self._time()
                if self.log.debug:
                    for message in messages:
                        self.log.received(message)
                messages.reverse()
                inbox[:0] = messages
        if self.connection.news:
            self.connection.news = False
            self._news()
        if room <= 0:
            self._used_up(len(messages))
        if self.receiver is not None and (inbox or self.stopped):
            self.waiter.wake()

    def heard(self) -> None:
        self.last_received = self._time()

    def eof(self) -> None:
        self._eof = True
        if self.paused and (self._decoder.pending or self._behind is not None):
            return  # there may be a Close in what is not decoded yet: make_room() comes back
        if not self.ended:
            self.fail(EOFError("the peer ended the connection without a Close frame"))
        else:
            self._hang_up()

    def writable(self) -> None:
        self.last_moved = self.loop.time()
        self.outbox.writable()
        if not self.outbox.control_waits:
            self.pings.written()
        if self._hanging_up and not self.outbox.size:
            self._hang_up()

    def fail(self, exc: Exception, initiator: Literal["local", "peer"] = "peer") -> None:
        """The connection broke, or is given up: nothing more moves in either direction."""
        self._break(exc, initiator)
        self._go(abort=True)

    def _break(self, exc: Exception, initiator: Literal["local", "peer"]) -> None:
        if not self.ended:
            began, error, received = self._began, self.connection.error, self.connection.close_received
            if self._refusal is not None:  # saying why has failed, but that is why
                self._end(self._refusal)
            elif began is not None:
                self._end(CloseInfo(began.code, began.reason, "local", clean=False, cause=exc))
            elif error is not None:  # found earlier; its Close was waiting for the messages before it
                self._end(CloseInfo(error.close_code, str(error), "local", clean=False, cause=error))
            elif received is not None:  # it cannot be answered
                self._end(CloseInfo(received.code, received.reason, "peer", clean=False, cause=exc))
            else:
                self._end(CloseInfo(1006, "", initiator, clean=False, cause=exc))

    # Receiving

    def _news(self) -> None:
        """A control frame came, or a violation was found, or a message that takes long to decode."""
        connection = self.connection
        if connection.deferred is not None:
            deferred, connection.deferred = connection.deferred, None
            if connection.close_sent is None:  # or else nobody receives it: what was before it has been refused
                self.stopped = False  # also if the connection has ended: it came before that
                self.hold_back(deferred)
                self.loop.spawn(finish_deferred, self, deferred)
        self.pings.received()
        if connection.close_received is not None:
            self._peer_closed()
            return
        self.pings.answer()
        if connection.error is not None:
            self._peer_erred(connection.error)
        elif connection.too_big is not None:
            self._hold(connection.too_big)

    def hold_back(self, message: Deferred | Restoring) -> None:
        """Decode nothing behind this message, all of which has come, until it is restored."""
        self._behind = message
        self._pause()

    def restored(self) -> None:
        """A message was restored in parts: go on behind it."""
        self._behind = None
        self.deferred_messages += 1
        if self.paused:
            self.proceed()

    def file(self, deferred: Deferred, outcome: str | bytes | ProtocolError | None) -> None:
        """A worker thread has finished a message: go on behind it. None: it has not, and the connection has ended."""
        if deferred is not self._behind:
            return  # the connection is closing
        if outcome is None:
            self.stopped = True
            self.waiter.wake()
            return
        self.stopped = self.ended  # unless there is more like this behind it
        too_big = isinstance(outcome, ProtocolError) and outcome.close_code == 1009
        held = deferred.in_parts() if too_big and not self.ended else None
        if isinstance(outcome, ProtocolError) and held is not None:
            self.held = self._behind = held
            self.connection.too_big = outcome
            self._hold(outcome)
        else:
            self._behind = None
            self.paused = False
            self.counts = self._backlog is not None
            if isinstance(outcome, ProtocolError):
                self.connection.error = outcome
                self._peer_erred(outcome)
            else:
                self.deferred_messages += 1
                self.last_message = self._time()
                if self.log.debug:
                    self.log.received(outcome)
                self.inbox.insert(0, outcome)
                self._used_up(1)
        if self.receiver is not None and (self.inbox or self.stopped):
            self.waiter.wake()
        self._read_on()

    def _read_on(self) -> None:
        """Read again, unless there is a reason not to."""
        if not self.paused:
            if self._eof and not self.ended:
                self.eof()
            else:
                self.transport.resume()
        if self.ended:
            self._release()

    def _hold(self, error: ProtocolError) -> None:
        """A message over max_size is here: it is for the next receiver to refuse, or to stream."""
        if self.closing:
            self.connection.error = error
            self._peer_erred(error)
        else:
            self.stopped = True
            self._pause()

    def stream(self, max_size: int) -> None:
        """Take a message of up to so many bytes, the one that is held or else the next one, in parts."""
        self._decoder.max_size = max_size
        self._admit()

    def take_held(self, held: Restoring) -> Restoring:
        """Take the message in parts that is held, restored or not."""
        self.held = None
        self._admit()
        return held

    def _admit(self) -> None:
        """A message over max_size is to come, for whoever takes or discards it."""
        if self.connection.too_big is not None:
            self.connection.too_big = None
            self.stopped = self.ended

    def _used_up(self, new: int) -> None:
        """There is no room left, unless messages were taken since it was counted."""
        if self._backlog is not None:
            if not self._telling:
                self._tell_backlog(self._backlog, new)
            return
        self.room = self._limit - sum(map(len, self.inbox)) - MESSAGE_OVERHEAD * len(self.inbox)
        if self.room <= 0:
            # One message that somebody waits for, however large, is as good as taken: if not, the next read pauses.
            if not self._is_awaited or len(self.inbox) > 1 or self._decoder.pending:
                self._pause()
        elif self._decoder.pending and self.connection.too_big is None and self._behind is None:
            self.received(0)

    def _tell_backlog(self, backlog: Backlog, new: int) -> None:
        """Messages came that the backlog has not heard of: it drops what is too much, and decoding goes on."""
        inbox = self.inbox
        self._telling = True
        while True:
            dropped = backlog.arrived(inbox, new, self._is_awaited)
            if dropped and self.log.debug:
                self.log.event("messages dropped: %d (overflow=%r)", dropped, self.options.overflow)
            if dropped and backlog.closes:
                size = self.options.receive_buffer_size
                cause = BufferError(f'unread messages exceed receive_buffer_size={size:,} (overflow="close")')
                self.refuse(1008, cause, keep_inbox=True)
            closed = dropped and backlog.closes
            if closed or self.connection.too_big is not None or self._behind is not None or not self._decoder.pending:
                break
            before = len(inbox)
            self.room = backlog.round
            self.received(0)
            new = len(inbox) - before
        self._telling = False
        self.room = self._limit

    def _pause(self) -> None:
        if not self.paused:
            self.paused = self.counts = True
            self.transport.pause()

    def proceed(self) -> None:
        """Nothing was taken from the inbox, but what kept us from reading is over."""
        self.make_room(-MESSAGE_OVERHEAD)

    def make_room(self, size: int) -> None:
        """A message was taken from a full inbox: go on when half of it is free, first with what is here undecoded."""
        if self._backlog is not None:
            self._backlog.taken(self.inbox, size)
        if not self.paused:
            return
        self.room = self.room + size + MESSAGE_OVERHEAD if self.inbox else self._limit
        blocked = self.connection.error or self.connection.too_big or self._behind
        if 2 * self.room < self._limit or blocked is not None:
            return
        self.paused = False
        self.counts = self._backlog is not None
        self.last_message = self._time()  # while we did not read, the peer could not send
        self._delivering = not self.closing
        self.received(0)
        self._read_on()
        self._delivering = False

    # Sending

    def send_large(self, opcode: int, payload: str | Buffer) -> None:
        """Commit a message that is not to be copied into one block with its header; it is its sender's turn."""
        if isinstance(payload, str):
            payload = payload.encode()
        if self.log.debug:
            self.log.sent(opcode, payload)
        self.send_transformed(*self.connection.transform(opcode, payload))

    def send_transformed(self, opcode: int, payload: Buffer) -> None:
        """The same for what the extensions have made of a message."""
        self.messages_sent += 1
        size = len(payload)
        if size <= UNFRAGMENTED:
            self.send_part(opcode, payload)
            return
        view = memoryview(payload)
        for start in range(0, size, FRAGMENT):
            self.send_part(opcode if start == 0 else 0, view[start : start + FRAGMENT], start + FRAGMENT >= size)
            self.fragments_sent += 1
        self.fragments_sent -= 1  # the last one is the message

    def send_part(self, opcode: int, payload: Buffer, fin: bool = True) -> None:
        """Commit a frame of a message."""
        if self.is_client or len(payload) < FRAME_PARTS:  # a client's copy is the masked one
            self.outbox.write(self.connection.encode_part(opcode, payload, fin))
        else:
            self.outbox.write_parts(encode_header(opcode, len(payload), None, fin), payload)

    def send_batch(self, items: list[tuple[int, str | Buffer]], start: int) -> int:
        """Commit messages from `start` on, as many as fill the outbox, in one write; it is their sender's turn.

        Returns:
            Where to go on.
        """
        frames: list[bytes] = []
        room = self.options.write_buffer_size - self.outbox.size
        for opcode, payload in islice(items, start, None):
            if len(payload) >= FRAGMENT:
                if not frames:
                    self.send_large(opcode, payload)
                    return start + 1
                break
            frames.append(self.encode(opcode, payload))
            room -= len(frames[-1])
            if self.log.debug:
                self.log.sent(opcode, payload)
            if room <= 0:
                break
        self.messages_sent += len(frames)
        self.outbox.write(b"".join(frames))
        return start + len(frames)

    # Timers

    def probe(self) -> Ping:
        """Send a Ping of keepalive's. If no message was sent since the last one, compressing gives its memory back."""
        if self.messages_sent == self._rested_at:
            for extension in self.connection.extensions:
                extension.rest()
        self._rested_at = self.messages_sent
        return self.pings.probe()

    def poll(self) -> bool:
        return self.transport.poll()

    def stalled(self, seconds: float) -> None:
        self.log.stalled(seconds)

    def _idle_due(self) -> None:
        assert self.options.idle_timeout is not None
        assert self._idle is not None
        now = self.loop.time()
        late = now - self._idle.when
        self.poll()
        if self.closing:
            return
        if self.paused or self.inbox or self.parts_size:  # messages are here; it is we who do not take them
            due = now + self.options.idle_timeout
        elif late > STALL:  # the event loop was blocked: what came meanwhile is read first
            due = now + STALL
        else:
            due = self.last_message + self.options.idle_timeout
        if due > now:
            self._idle = self.loop.call_at(due, self._idle_due)
        else:
            cause = TimeoutError(f"no message from the peer for {self.options.idle_timeout:g} s (idle_timeout)")
            self.refuse(1001, cause)

    # Closing

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake, unless it has begun. The inbox is discarded."""
        if self.closing:
            return
        error = self.connection.error or self.connection.too_big
        if error is not None:
            self.refuse(error.close_code, error)
            return
        frame = self.connection.send_close(code, reason)
        sent = self._close_sent()
        self._began = CloseInfo(sent.code, sent.reason, "local")
        self._begin_closing()
        self._close_end = self.outbox.taken + self.outbox.size + len(frame)
        self.outbox.write(frame)
        self.outbox.close()
        self._discard()
        if self.gone:
            return  # it broke in this very call
        if self.options.close_timeout is not None:
            self._set_deadline(self.options.close_timeout)
        if self.paused:
            self.make_room(0)
        self.transport.watch()

    def _begin_closing(self) -> None:
        self.closing = True
        # What comes now is discarded, so it needs no room.
        self._behind = self.held = None
        self.room = self._limit = sys.maxsize

    def _discard(self) -> None:
        """Nobody is to receive what is in the inbox."""
        self._discarded += len(self.inbox)
        self.inbox.clear()

    def refuse(self, code: int, cause: Exception, *, keep_inbox: bool = False) -> None:
        """Fail the connection, RFC 6455 §7.1.7: say why, then hang up."""
        if self.ended:
            return
        if not keep_inbox:
            self._discard()
        if self._began is not None:
            self._refusal = CloseInfo(self._began.code, self._began.reason, "local", clean=False, cause=cause)
        else:
            frame = self.connection.send_close(code, str(cause))
            self._refusal = CloseInfo(code, self._close_sent().reason, "local", clean=False, cause=cause)
            self._begin_closing()
            self.outbox.write(frame)
            if self.gone:
                return  # it broke in this very call
        self._end(self._refusal)
        self._set_deadline(self.options.ending_bound)
        self._hang_up()

    def abort(self) -> None:
        """Close the transport at once, and wake whoever waits, also if the transport was closed without us."""
        if not (self.ended and self.gone):
            self.fail(ConnectionAbortedError("the connection was aborted here"), "local")

    def let_go(self) -> None:
        """Close the transport now that nobody waits for the peer any longer. Nothing happens if it is closed.

        It destroys nothing that is on its way: a peer that is only slow still finds our Close, and no reset. What has
        not left this process yet is another matter: the peer does not take it, so the system is not to keep it either.
        """
        # It may be us who are slow, and its answer is here.
        looked = not self.gone and self.transport.poll()
        if looked and not self.gone and self.closing and not self.outbox.size and not self.transport.unsent:
            self._break(ConnectionAbortedError("the connection was closed here, without the peer's answer"), "local")
            self._go()
        else:
            self.abort()

    def exception(self, receiving: bool = False) -> ConnectionClosed:
        """The exception that says why the connection has ended, or is closing."""
        info = self.close_info or self._began
        assert info is not None
        if self._began is None and not (info.initiator == "peer" and info.code in (1000, 1001, 1005)):
            return ConnectionClosedError(info)
        return EndOfMessages(info) if receiving else ConnectionClosedOK(info)

    def is_own(self, info: CloseInfo) -> bool:
        """Whether an exception with this close_info came from this connection."""
        return info is self.close_info or info is self._began

    def _peer_closed(self) -> None:
        received, sent = self.connection.close_received, self.connection.close_sent
        assert received is not None
        if self.log.debug:
            self.log.event("< %s", describe_close(received))
        if self.ended:
            return
        if sent is not None:
            if self._is_cut_off:
                return  # ours has not left, and will not
            self._end(CloseInfo(sent.code, sent.reason, "local", clean=True))
        else:
            self._begin_closing()
            frame = self.connection.answer()
            self._close_sent()
            self.outbox.write(frame)
            if self.gone or self._is_cut_off:
                return  # it broke in this very call, or is about to
            self._end(CloseInfo(received.code, received.reason, "peer", clean=True))
            if self.options.close_timeout is not None:
                self._set_deadline(self.options.close_timeout)
        self._hang_up()

    @property
    def _is_cut_off(self) -> bool:
        """The transport is breaking, and not all that was committed has left."""
        outbox = self.outbox
        return self.transport.breaking and (outbox.taken < self._close_end or outbox.size > 0 or self.transport.unsent)

    def _peer_erred(self, error: ProtocolError) -> None:
        """An event in order: what was received before it is delivered, and answered, before the connection fails."""
        if self.ended:
            return
        self.stopped = True
        if self.inbox or self._delivering:
            self._pause()
            self._set_deadline(self.options.ending_bound)
        else:
            self.refuse(error.close_code, error)

    def _end(self, info: CloseInfo) -> None:
        self.close_info = info
        self.closing = True
        # What a thread is restoring is received first, but not what was found to be too large.
        self.stopped = self.held is not None or not isinstance(self._behind, Deferred)
        self.held = None
        self.outbox.close()
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._idle is not None:
            self._idle.cancel()
        self._release()
        self.pings.end()
        if self.ended_event is not None:
            self.ended_event.set()
        if self.receiver is not None:
            self.waiter.wake()
        self.log.ended(info)

    def _release(self) -> None:
        """Give back what compresses and inflates, unless what had arrived before the end is still to be inflated."""
        if self.stopped and not self._decoder.pending:
            for extension in self.connection.extensions:
                extension.release()

    def _close_sent(self) -> Close:
        """Our Close frame, which is on its way."""
        close = self.connection.close_sent
        assert close is not None
        if self.log.debug:
            self.log.event("> %s", describe_close(close))
        return close

    def _hang_up(self) -> None:
        """Close the transport in good order: after what is committed, and the server first.

        Closing a socket with unread data would send a reset, which destroys our Close on its way. So the server ends
        its side, reads and discards until the client has ended too, and then closes. A client that fails the connection
        does the same; else it waits for the server.
        """
        self._hanging_up = True
        if self.paused:
            self.paused = False
            self.transport.resume()
        if not self.outbox.size and not self.gone:
            if self._eof and not self.transport.unsent:
                self._go()
                return
            if not self._shut and (not self.is_client or not (self.close_info and self.close_info.clean)):
                self._shut = True
                self.transport.shutdown()
        if not self.gone:
            self.transport.watch()

    def _go(self, abort: bool = False) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.outbox.clear()
        if abort:
            self.transport.abort()
        else:
            self.transport.close()
        if self.gone_event is not None:
            self.gone_event.set()

    def _set_deadline(self, seconds: float) -> None:
        when = self.loop.time() + seconds
        if self._deadline is not None:
            if self._began is not None:
                when = min(when, self._deadline.when)  # nothing that comes moves the deadline of our own Close
            self._deadline.cancel()
        self._deadline = self.loop.call_at(when, self._deadline_due)

    def _deadline_due(self) -> None:
        error = self.connection.error
        if not self.ended and error is not None and self._began is None:
            self.refuse(error.close_code, error, keep_inbox=True)  # nobody has received what came before it
        else:
            self.poll()  # its answer may be here, and we be the slow ones
            self.fail(TimeoutError("the peer did not finish the closing handshake in time (close_timeout)"))
