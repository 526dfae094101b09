"""Pings and Pongs of a connection, RFC 6455 §5.5.2 and §5.5.3: those in flight, and those that are owed an answer."""

import os

from anyio import Event

from .logs import Log, describe
from .loops import Loop
from .outbox import Outbox
from .protocol import Connection, Opcode


class Ping:
    """A Ping in flight.

    Attributes:
        sent: when it was written, on the loop's clock; None while it waits in the outbox.
        answered: when a Pong said so; None before.
        done: set when it was answered or the connection has ended; None if nobody waits.
    """

    __slots__ = ("answered", "done", "sent")

    def __init__(self, done: Event | None = None) -> None:
        self.sent: float | None = None
        self.answered: float | None = None
        self.done: Event | None = done

    @property
    def round_trip(self) -> float:
        """Seconds from writing it to the Pong; 0 if a guess of the peer's answered it before it was written."""
        if self.sent is None or self.answered is None:
            return 0.0
        return self.answered - self.sent


class Pings:
    """The Pings of a connection.

    Attributes:
        in_flight: ours that have no answer, by their payload, in the order in which they were sent.
        latency: the latest round-trip time in seconds; None before the first Pong.
        sent, answered: counters of our Pings, and of the peer's that we have answered.
    """

    __slots__ = (
        "_connection",
        "_ended",
        "_log",
        "_loop",
        "_outbox",
        "_owed",
        "answered",
        "in_flight",
        "latency",
        "sent",
    )

    def __init__(self, connection: Connection, outbox: Outbox, loop: Loop, log: Log) -> None:
        self.in_flight: dict[bytes, Ping] = {}
        self.latency: float | None = None
        self.sent: int = 0
        self.answered: int = 0
        self._connection = connection
        self._outbox = outbox
        self._loop = loop
        self._log = log
        self._ended = False
        self._owed = 0  # of the peer's, those whose answer waits for the transport: one at most

    # Ours

    def send(self, payload: bytes, done: Event | None = None) -> Ping:
        """Send one that waits for nobody but a frame that has begun to leave; the event is set as `Ping.done` is."""
        ping = self.in_flight[payload] = Ping(done)
        self.sent += 1
        if self._log.debug:
            self._log.event("> %s", describe(Opcode.PING, payload))
        self._outbox.write_control(self._connection.encode(Opcode.PING, payload))
        if not self._outbox.control_waits:
            ping.sent = self._loop.time()
        return ping

    def probe(self) -> Ping:
        """Send one of keepalive's."""
        # An earlier one, for which nobody waits, may never get a Pong of its own from a peer that lives.
        for payload in [payload for payload, ping in self.in_flight.items() if ping.done is None]:
            del self.in_flight[payload]
        return self.send(os.urandom(4))

    def written(self) -> None:
        """No control frame waits in the outbox any more."""
        self.answer()
        if any(ping.sent is None for ping in self.in_flight.values()):
            now = self._loop.time()
            for ping in self.in_flight.values():
                ping.sent = now if ping.sent is None else ping.sent

    def end(self) -> None:
        """The connection has ended: nobody is to wait any longer, and nothing is answered."""
        self._ended = True
        for ping in self.in_flight.values():
            if ping.done is not None:
                ping.done.set()

    # The peer's

    def received(self) -> None:
        """Pings or Pongs may have come."""
        connection, debug = self._connection, self._log.debug
        for payload in connection.pongs:
            if debug:
                self._log.event("< %s", describe(Opcode.PONG, payload))
            if payload in self.in_flight:  # "A Pong frame MAY be sent unsolicited." (RFC 6455 §5.5.3)
                self._pong(payload)
        connection.pongs.clear()
        if debug:
            for payload in connection.pings[self._owed :]:
                self._log.event("< %s", describe(Opcode.PING, payload))

    def _pong(self, payload: bytes) -> None:
        now = self._loop.time()
        sent = list(self.in_flight)
        for data in sent[: sent.index(payload) + 1]:
            # It answers the ones before it too: a peer may answer only the latest Ping (§5.5.3).
            ping = self.in_flight.pop(data)
            ping.answered = now
            if ping.done is not None:
                ping.done.set()
            self.latency = ping.round_trip

    def answer(self) -> None:
        """Answer Pings; while one answer waits for the transport the next one does too, and a later replaces it."""
        pings = self._connection.pings
        if not pings or self._ended:
            return
        if self._outbox.blocked:
            del pings[:-1]
            if self._outbox.control_waits:
                self._owed = 1
                return
        self._owed = 0
        self.answered += len(pings)
        if self._log.debug:
            for payload in pings:
                self._log.event("> %s", describe(Opcode.PONG, payload))
        self._outbox.write_control(self._connection.answer())
