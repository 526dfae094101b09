"""Counters of a connection and of a server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What went over a connection so far.

    Attributes:
        messages_received, messages_sent: whole messages. A received one has arrived, whether anybody took it or not; a
            sent one was committed, perhaps not yet written.
        messages_dropped: of those received, the ones that the option `overflow` dropped.
        frames_received, frames_sent: all frames, control frames included.
        bytes_received, bytes_sent: payload and framing, without the opening handshake and TLS.
        pings_received, pings_sent, pongs_received, pongs_sent: of these frames.
        last_received: when the last byte arrived, on the event loop's clock (`anyio.current_time()`).
    """

    messages_received: int
    messages_sent: int
    messages_dropped: int
    frames_received: int
    frames_sent: int
    bytes_received: int
    bytes_sent: int
    pings_received: int
    pings_sent: int
    pongs_received: int
    pongs_sent: int
    last_received: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStats:
    """What a server did so far.

    Attributes:
        accepted: connections that were opened.
        rejected: handshakes that were answered with something other than 101, failed, or were cut short because the
            server was drained or left.
        open: connections that are open now.
    """

    accepted: int
    rejected: int
    open: int
