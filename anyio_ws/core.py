"""The synchronous core of a connection: what happens when bytes arrive, a timer is due, or somebody says so.

Theory of operation. Everything that changes a connection's state is a plain function, in this file or in `inbox.py`,
that never suspends and never raises `Exception`: it records the outcome and wakes whoever waits. The transport, timers
and `WebSocket` only call it. That is why the event loops behave alike, why no lock is needed, and why a cancellation
cannot strike half-way.

A connection goes through

    open ──> closing ──> ended ──> gone

It is *closing* from our Close until the peer's. It has *ended* once `close_info` is set: nothing more will be sent or
read, but what arrived before may still be received. It is *gone* when the transport is closed. In between, both ends
hang up in the order of RFC 6455 §7.1.1: the server closes first, so that it holds the TIME_WAIT, and not the client.

What the peer makes us remember is bounded: the inbox (`receive_buffer_size`, then reading pauses, or `overflow` says
what is dropped), one message being assembled (`max_size`) or what waits of one that is streamed
(`receive_buffer_size`), one chunk not yet decoded, and the latest Ping.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, cast

from anyio import Event
from anyio.abc import SocketAttribute

from .exceptions import CloseInfo, ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, EndOfMessages
from .inbox import Inbox
from .keepalive import Keepalive
from .logs import Log, describe_close
from .loops import Loop, Timer
from .options import Options
from .outbox import Outbox
from .pings import Ping, Pings
from .protocol import Close, Connection, ProtocolError
from .protocol.extensions import Extension
from .protocol.frames import check_close_code, encode_header
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
        "_began",
        "_close_end",
        "_deadline",
        "_eof",
        "_hanging_up",
        "_idle",
        "_keepalive",
        "_refusal",
        "_rested_at",
        "_shut",
        "close_info",
        "closers",
        "closing",
        "connection",
        "encode",
        "fragments_sent",
        "ended_event",
        "get_buffer",
        "gone_event",
        "inbox",
        "is_client",
        "large_text",
        "last_moved",
        "log",
        "loop",
        "messages_sent",
        "options",
        "outbox",
        "pings",
        "received",
        "sender",
        "transport",
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
        self.inbox: Inbox = Inbox(self, self.connection, transport, loop, options, self.log)
        self._eof = False
        # What each read needs, without a detour.
        self.get_buffer: Callable[[], memoryview] = cast("Callable[[], memoryview]", self.connection.get_buffer)
        self.received: Callable[[int], None] = self.inbox.received

        # Sending
        # Of a str from which on it is encoded first, because it may leave in fragments, or be compressed in a thread.
        self.large_text: int = min(FRAGMENT, self.connection.inline_limit)
        self.sender: object | None = None  # the task that sends a message in parts
        self.outbox: Outbox = Outbox(transport, loop, options.write_buffer_size)
        self.encode: Callable[[int, str | Buffer], bytes] = self.connection.encode
        self.last_moved: float = loop.time()  # when the transport last took something from the outbox

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
    def gone(self) -> bool:
        return self.transport.closed

    @property
    def local_address(self) -> tuple[str, int] | str | None:
        try:
            address: tuple[str, int] | str = self.transport.attributes[SocketAttribute.local_address]()
        except (KeyError, OSError):
            return None
        return address

    @property
    def stats(self) -> Stats:
        connection, inbox, decoder = self.connection, self.inbox, self.connection.decoder
        received = decoder.messages + inbox.deferred_messages + connection.fragments_received
        received += connection.pings_received + connection.pongs_received + (connection.close_received is not None)
        sent = self.messages_sent + self.fragments_sent
        sent += self.pings.sent + self.pings.answered + (connection.close_sent is not None)
        return Stats(
            messages_received=inbox.messages_received,
            messages_sent=self.messages_sent,
            messages_dropped=inbox.messages_dropped,
            frames_received=received,
            frames_sent=sent,
            bytes_received=decoder.fed,
            bytes_sent=self.outbox.taken + self.outbox.size,
            pings_received=connection.pings_received,
            pings_sent=self.pings.sent,
            pongs_received=connection.pongs_received,
            pongs_sent=self.pings.answered,
            last_received=inbox.last_received,
        )

    def start(self, trailing_data: bytes) -> None:
        """Begin, with the bytes that came behind the opening handshake."""
        options = self.options
        self.transport.receiver = self  # pyright: ignore[reportAttributeAccessIssue]  # two methods are attributes
        if options.ping_interval is not None:
            self._keepalive = Keepalive(self, self.loop, options.ping_interval, options.ping_timeout)
        if options.idle_timeout is not None:
            self._idle = self.loop.call_at(self.inbox.last_message + options.idle_timeout, self._idle_due)
        rest = memoryview(trailing_data)
        while rest:
            buffer = self.get_buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            rest = rest[count:]
            self.received(count)
        if not self.inbox.paused and not self.gone:
            self.transport.start()

    # The transport's receiver

    def heard(self) -> None:
        self.inbox.last_received = self.loop.time()

    def eof(self) -> None:
        self._eof = True
        if self.inbox.is_amid:
            return  # there may be a Close in it: the inbox comes back, see read_on()
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

    # What the inbox tells us

    def news(self) -> None:
        """A control frame came, or a violation was found, or a message that takes long to decode."""
        connection = self.connection
        if connection.deferred is not None:
            deferred, connection.deferred = connection.deferred, None
            if connection.close_sent is None:  # or else nobody receives it: what was before it has been refused
                self.inbox.defer(deferred)
                self.loop.spawn(finish_deferred, self, deferred, self.inbox.file)
        self.pings.received()
        if connection.close_received is not None:
            self._peer_closed()
            return
        self.pings.answer()
        if connection.error is not None:
            self.peer_erred(connection.error)
        elif connection.too_big is not None:
            self.inbox.hold(connection.too_big)

    def read_on(self) -> None:
        """Read again, unless there is a reason not to."""
        if not self.inbox.paused:
            if self._eof and not self.ended:
                self.eof()
            else:
                self.transport.resume()
        if self.ended:
            self._release()

    def peer_erred(self, error: ProtocolError) -> None:
        """An event in order: what was received before it is delivered, and answered, before the connection fails."""
        if self.ended:
            return
        if self.inbox.stop():
            self._set_deadline(self.options.ending_bound)
        else:
            self.refuse(error.close_code, error)

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
        inbox = self.inbox
        if inbox.paused or inbox.messages or inbox.parts_size:  # messages are here; it is we who do not take them
            due = now + self.options.idle_timeout
        elif late > STALL:  # the event loop was blocked: what came meanwhile is read first
            due = now + STALL
        else:
            due = inbox.last_message + self.options.idle_timeout
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
        self.inbox.discard()
        if self.gone:
            return  # it broke in this very call
        if self.options.close_timeout is not None:
            self._set_deadline(self.options.close_timeout)
        if self.inbox.paused:
            self.inbox.make_room(0)
        self.transport.watch()

    def _begin_closing(self) -> None:
        self.closing = True
        self.inbox.close()

    def refuse(self, code: int, cause: Exception, *, keep_inbox: bool = False) -> None:
        """Fail the connection, RFC 6455 §7.1.7: say why, then hang up."""
        if self.ended:
            return
        if not keep_inbox:
            self.inbox.discard()
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

    def _end(self, info: CloseInfo) -> None:
        self.close_info = info
        self.closing = True
        self.inbox.end()
        self.outbox.close()
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._idle is not None:
            self._idle.cancel()
        self._release()
        self.pings.end()
        if self.ended_event is not None:
            self.ended_event.set()
        self.log.ended(info)

    def _release(self) -> None:
        """Give back what compresses and inflates, unless what had arrived before the end is still to be inflated."""
        if self.inbox.stopped and not self.connection.decoder.pending:
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
        self.inbox.read_out()
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
