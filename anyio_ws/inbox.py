"""What has arrived and was not taken yet, and when reading pauses because of it.

Theory of operation. The transport reads into the decoder's memory and calls `Inbox.received`, which decodes, gives a
stream what is its own, and files the messages that are whole. Whoever receives takes the oldest. Reading pauses, and
what was read already stays undecoded, while

- the inbox is full: it goes on when half of the room is free. Unless `overflow` says what is dropped instead;
- a message is being restored, by a worker thread or by a stream: the next one may refer to it (`hold_back`);
- a message over `max_size` waits for its receiver, who refuses it or takes it in parts (`hold`).

While a message is received in parts (`parts`), what waits of it counts by itself, and the messages in the inbox, if
any, are for later.

Like the core, nothing here suspends or raises `Exception`.
"""

import sys
from typing import Protocol

from .logs import Log
from .loops import Loop, Waiter
from .options import Options
from .overflow import Backlog
from .protocol import Connection, ProtocolError
from .protocol.frames import MESSAGE_OVERHEAD
from .protocol.restoring import Deferred, Restoring
from .transports.base import Transport


class Parts(Protocol):
    """Takes a message as it arrives."""

    def arrived(self, messages: list[str | bytes]) -> bool:
        """Something was read: the message has ended with the first of these, or more of it is in the decoder.

        Returns whether reading is to pause.
        """
        ...


class Lifecycle(Protocol):
    """What the inbox needs of its connection."""

    closing: bool

    @property
    def ended(self) -> bool: ...

    def news(self) -> None:
        """`Connection.news` was set while something was decoded."""
        ...

    def peer_erred(self, error: ProtocolError) -> None:
        """The peer broke the protocol behind the messages that were filed."""
        ...

    def read_on(self) -> None:
        """What kept us from reading is over, unless the inbox is still `paused`."""
        ...

    def refuse(self, code: int, cause: Exception, *, keep_inbox: bool = False) -> None:
        """Fail the connection."""
        ...


class Inbox:
    """The receiving half of a connection.

    Args:
        core: the connection.
        connection: what decodes.
        transport: what reads; nothing has been read yet.

    Attributes:
        messages: the latest first; a deque, even if empty, takes 700 bytes.
        room: of the inbox, in bytes; what was taken since is counted when the rest is used up.
        paused: reading is.
        counts: whoever takes a message tells `make_room`.
        stopped: nothing more comes: what says why is raised when the inbox is empty.
        receiver: the task that waits for a message, or receives one in parts.
        streaming: it does the latter: the messages in the inbox are not for it.
        waits: how often a task began to.
        waiter: where it waits.
        parts: what a message goes to that is received in parts, before anything goes to the inbox.
        parts_size: of what waits there, counted as in the inbox.
        held: a message that was found to be over max_size when all of it had come.
        discarded: how many messages our Close took from the inbox.
        deferred_messages: how many were restored by a thread or in parts, which the decoder does not count.
        last_received: when anything came, on the loop's clock.
        last_message: when a message did.
    """

    __slots__ = (
        "_backlog",
        "_behind",
        "_connection",
        "_core",
        "_decoder",
        "_delivering",
        "_ignored",
        "_limit",
        "_log",
        "_options",
        "_reading_out",
        "_telling",
        "_time",
        "_transport",
        "counts",
        "deferred_messages",
        "discarded",
        "held",
        "last_message",
        "last_received",
        "messages",
        "parts",
        "parts_size",
        "paused",
        "receiver",
        "room",
        "stopped",
        "streaming",
        "waiter",
        "waits",
    )

    def __init__(
        self, core: Lifecycle, connection: Connection, transport: Transport, loop: Loop, options: Options, log: Log
    ) -> None:
        self._core = core
        self._connection = connection
        self._decoder = connection.decoder
        self._transport = transport
        self._options = options
        self._log = log
        self._time = loop.time
        self.messages: list[str | bytes] = []
        # With a backlog there is room for one message, so that it hears of each.
        self._backlog: Backlog | None = (
            None if options.overflow == "backpressure" else Backlog(options.overflow, options.receive_buffer_size)
        )
        self._telling = False  # the backlog is hearing of messages
        self._limit: int = options.receive_buffer_size if self._backlog is None else 1
        self.room: int = self._limit
        self.paused: bool = False
        self.counts: bool = self._backlog is not None
        self.stopped: bool = False
        self._reading_out = False  # the connection hangs up: nobody receives what comes now
        self._delivering = False  # a message has left the inbox and its receiver has not seen it yet

        self.receiver: object | None = None
        self.streaming: bool = False
        self.waits: int = 0
        self.waiter: Waiter = transport.waiter

        # A message that a worker thread or a stream is restoring: nothing behind it is decoded, and reading is paused.
        self._behind: Deferred | Restoring | None = None
        self.held: Restoring | None = None
        self.parts: Parts | None = None
        self.parts_size: int = 0

        self.discarded: int = 0
        self._ignored = 0  # messages that came after our Close
        self.deferred_messages: int = 0
        self.last_received: float = loop.time()
        self.last_message: float = self.last_received

    @property
    def messages_received(self) -> int:
        return self._decoder.messages + self.deferred_messages - self._ignored

    @property
    def messages_dropped(self) -> int:
        return 0 if self._backlog is None else self._backlog.dropped

    @property
    def receiving_done(self) -> tuple[int, int]:
        """Changes whenever a task receives: waits begun, and messages taken from the inbox."""
        return self.waits, self.messages_received - self.messages_dropped - len(self.messages) - self.discarded

    @property
    def is_amid(self) -> bool:
        """Reading is paused, and what was read is not all decoded: there may be a Close in it."""
        return self.paused and (bool(self._decoder.pending) or self._behind is not None)

    @property
    def _is_awaited(self) -> bool:
        """A task waits for the oldest message."""
        return self.receiver is not None and not self.streaming

    # What arrives

    def received(self, count: int) -> None:
        """Decode and file what was read; with 0, which only the inbox says, go on with what the decoder holds back."""
        if count:
            self.last_received = self._time()
        connection = self._connection
        if self._reading_out and connection.too_big is not None:
            return  # the decoder does not go on behind such a frame, and would keep all that comes
        waiting = self.messages
        messages = self._decoder.filled(count, self.room if waiting else self._limit)
        self.room = room = self._decoder.room
        if self.parts is not None and self.parts.arrived(messages):
            self.pause()
        if messages:
            # Whoever has closed does not wait for data (RFC 6455 §1.4).
            if connection.close_sent is not None:
                self._ignored += len(messages)
            else:
                # What was held back came long ago, but meanwhile we kept the peer from sending more.
                self.last_message = self.last_received if count else self._time()
                if self._log.debug:
                    for message in messages:
                        self._log.received(message)
                messages.reverse()
                waiting[:0] = messages
        if connection.news:
            connection.news = False
            self._core.news()
        if room <= 0:
            self._used_up(len(messages))
        if self.receiver is not None and (waiting or self.stopped):
            self.waiter.wake()

    def defer(self, deferred: Deferred) -> None:
        """A message came that a worker thread is to restore, see `file`."""
        self.stopped = False  # also if the connection has ended: it came before that
        self.hold_back(deferred)

    def file(self, deferred: Deferred, outcome: str | bytes | ProtocolError | None) -> None:
        """A worker thread has finished a message: go on behind it. None: it has not, and the connection has ended."""
        if deferred is not self._behind:
            return  # the connection is closing
        if outcome is None:
            self.stopped = True
            self.waiter.wake()
            return
        self.stopped = self._core.ended  # unless there is more like this behind it
        too_big = isinstance(outcome, ProtocolError) and outcome.close_code == 1009
        held = deferred.in_parts() if too_big and not self._core.ended else None
        if isinstance(outcome, ProtocolError) and held is not None:
            self.held = self._behind = held
            self._connection.too_big = outcome
            self.hold(outcome)
        else:
            self._behind = None
            self.paused = False
            self.counts = self._backlog is not None
            if isinstance(outcome, ProtocolError):
                self._connection.error = outcome
                self._core.peer_erred(outcome)
            else:
                self.deferred_messages += 1
                self.last_message = self._time()
                if self._log.debug:
                    self._log.received(outcome)
                self.messages.insert(0, outcome)
                self._used_up(1)
        if self.receiver is not None and (self.messages or self.stopped):
            self.waiter.wake()
        self._core.read_on()

    def hold_back(self, message: Deferred | Restoring) -> None:
        """Decode nothing behind this message, all of which has come, until it is restored."""
        self._behind = message
        self.pause()

    def restored(self) -> None:
        """A message was restored in parts: go on behind it."""
        self._behind = None
        self.deferred_messages += 1
        if self.paused:
            self.proceed()

    def hold(self, error: ProtocolError) -> None:
        """A message over max_size is here: it is for the next receiver to refuse, or to stream."""
        if self._core.closing:
            self._connection.error = error
            self._core.peer_erred(error)
        else:
            self.stopped = True
            self.pause()

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
        if self._connection.too_big is not None:
            self._connection.too_big = None
            self.stopped = self._core.ended

    # Room

    def _used_up(self, new: int) -> None:
        """There is no room left, unless messages were taken since it was counted."""
        if self._backlog is not None:
            if not self._telling:
                self._tell_backlog(self._backlog, new)
            return
        self.room = self._limit - sum(map(len, self.messages)) - MESSAGE_OVERHEAD * len(self.messages)
        if self.room <= 0:
            # One message that somebody waits for, however large, is as good as taken: if not, the next read pauses.
            if not self._is_awaited or len(self.messages) > 1 or self._decoder.pending:
                self.pause()
        elif self._decoder.pending and self._connection.too_big is None and self._behind is None:
            self.received(0)

    def _tell_backlog(self, backlog: Backlog, new: int) -> None:
        """Messages came that the backlog has not heard of: it drops what is too much, and decoding goes on."""
        messages, connection = self.messages, self._connection
        self._telling = True
        while True:
            dropped = backlog.arrived(messages, new, self._is_awaited)
            if dropped and self._log.debug:
                self._log.event("messages dropped: %d (overflow=%r)", dropped, self._options.overflow)
            if dropped and backlog.closes:
                size = self._options.receive_buffer_size
                cause = BufferError(f'unread messages exceed receive_buffer_size={size:,} (overflow="close")')
                self._core.refuse(1008, cause, keep_inbox=True)
            closed = dropped and backlog.closes
            if closed or connection.too_big is not None or self._behind is not None or not self._decoder.pending:
                break
            before = len(messages)
            self.room = backlog.round
            self.received(0)
            new = len(messages) - before
        self._telling = False
        self.room = self._limit

    def pause(self) -> None:
        """Read nothing, until `make_room` or `file` finds no reason any more."""
        if not self.paused:
            self.paused = self.counts = True
            self._transport.pause()

    def proceed(self) -> None:
        """Nothing was taken from the inbox, but what kept us from reading is over."""
        self.make_room(-MESSAGE_OVERHEAD)

    def make_room(self, size: int) -> None:
        """A message was taken from a full inbox: go on when half of it is free, first with what is here undecoded."""
        if self._backlog is not None:
            self._backlog.taken(self.messages, size)
        if not self.paused:
            return
        self.room = self.room + size + MESSAGE_OVERHEAD if self.messages else self._limit
        blocked = self._connection.error or self._connection.too_big or self._behind
        if 2 * self.room < self._limit or blocked is not None:
            return
        self.paused = False
        self.counts = self._backlog is not None
        self.last_message = self._time()  # while we did not read, the peer could not send
        self._delivering = not self._core.closing
        self.received(0)
        self._core.read_on()
        self._delivering = False

    # The end

    def discard(self) -> None:
        """Nobody is to receive what is here."""
        self.discarded += len(self.messages)
        self.messages.clear()

    def stop(self) -> bool:
        """Nothing more comes. Returns whether something is left that is to be received first; no more is read then."""
        self.stopped = True
        is_left = bool(self.messages) or self._delivering
        if is_left:
            self.pause()
        return is_left

    def close(self) -> None:
        """Our Close is sent: what comes now is discarded, so it needs no room."""
        self._behind = self.held = None
        self.room = self._limit = sys.maxsize

    def end(self) -> None:
        """The connection has ended. What had arrived before is received first."""
        # Also what a thread is restoring, but not what was found to be too large.
        self.stopped = self.held is not None or not isinstance(self._behind, Deferred)
        self.held = None
        if self.receiver is not None:
            self.waiter.wake()

    def read_out(self) -> None:
        """The connection hangs up, which it does by reading what comes until the peer does; that is for nobody."""
        self._reading_out = True
        if self.paused:
            self.paused = False
            self._transport.resume()
