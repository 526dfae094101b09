"""Keepalive: is the peer still there?

Theory of operation. Any byte received is a sign of life. A peer that has been silent for `ping_interval` gets a Ping;
if it stays silent for `ping_timeout` after that was written, the connection has failed. The clock does not run

- while we ourselves have paused reading, because the application does not keep up: the peer's answer may be waiting in
  the kernel. TCP's own keepalive and the socket's error state stand in;
- while frames that wait in front of the Ping, or behind it, move: then the peer is reading. If nothing moves, it runs;
- while the event loop was blocked: a timer that comes too late warns, and probes afresh before it judges. One that is
  only a little late looks at what has arrived first; where that cannot be done (a stream), it probes afresh once.

There is no task: the owner's heap of timers serves all its connections, and receiving only records a time.
"""

from typing import Literal, Protocol

from .inbox import Inbox
from .loops import Loop
from .pings import Ping

LATE = 0.005
"""Seconds that a timer may be late on a loop with nothing else to do: clocks and selectors count in milliseconds."""


class Kept(Protocol):
    """What keepalive needs of a connection."""

    inbox: Inbox
    last_moved: float

    @property
    def ended(self) -> bool:
        """`close_info` is set."""
        ...

    def probe(self) -> Ping:
        """Send a Ping."""
        ...

    def poll(self) -> bool:
        """Read once without waiting. Returns False if that cannot be done."""
        ...

    def fail(self, exc: Exception, initiator: Literal["local", "peer"]) -> None: ...

    def stalled(self, seconds: float) -> None:
        """Warn that the event loop was blocked."""
        ...


class Keepalive:
    """The timer of one connection.

    Args:
        connection: the one to watch.
        loop: its owner's adapter.
        interval: `ping_interval`, seconds.
        timeout: `ping_timeout`, seconds, or None to send pings and never judge.
    """

    __slots__ = ("_connection", "_interval", "_loop", "_ping", "_probed", "_spared", "_timeout", "_timer")

    def __init__(self, connection: Kept, loop: Loop, interval: float, timeout: float | None) -> None:
        self._connection = connection
        self._loop = loop
        self._interval = interval
        self._timeout = timeout
        self._ping: Ping | None = None  # the probe in flight
        self._probed = 0.0  # when it was begun
        self._spared = False  # a late judgement was put off, and there was no sign of life since
        self._timer = loop.call_at(loop.time() + interval, self._due)

    def stop(self) -> None:
        self._timer.cancel()

    def _arm(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._due)

    def _due(self) -> None:
        connection = self._connection
        now = self._loop.time()
        late = now - self._timer.when
        if late > max(1.0, (self._timeout or 0) / 4):
            self._loop.note_stall(self._timer.when, now, connection.stalled)
            self._probe(now)
        elif connection.inbox.paused:
            self._ping = None
            connection.poll()  # finds only errors while paused
            if not connection.ended:
                self._arm(now + self._interval)
        elif self._ping is None:
            # The very sum that the timer is armed for. A difference may be rounded to less than the interval, for ever
            # on a clock that stands still while there is something to do.
            due = connection.inbox.last_received + self._interval
            if now < due:
                self._arm(due)
            else:
                self._probe(now)
        else:
            self._judge(now, self._ping)

    def _probe(self, now: float) -> None:
        self._ping = self._connection.probe()
        if self._connection.ended:
            return  # it broke in this very call
        self._probed = now
        self._arm(now + (self._interval if self._timeout is None else self._timeout))

    def _judge(self, now: float, ping: Ping) -> None:
        connection = self._connection
        looked = connection.poll()  # after a busy tick the Pong may still be in the kernel
        if connection.ended:
            return
        if connection.inbox.last_received >= self._probed or self._timeout is None:
            self._ping = None
            self._spared = False
            self._arm(max(connection.inbox.last_received + self._interval, now))
            return
        # What moves behind the Ping shows that the peer reads: it may have that Ping before it only now.
        since = connection.last_moved if ping.sent is None else max(ping.sent, connection.last_moved)
        if now < (deadline := max(since, self._probed) + self._timeout):
            self._arm(deadline)
            return
        if not looked and not self._spared and now - self._timer.when > LATE:
            self._spared = True
            self._probe(now)
            return
        exc = TimeoutError(f"the peer was silent for {self._timeout:g} s after a ping (ping_timeout)")
        connection.fail(exc, "local")
