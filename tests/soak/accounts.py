"""Numbered messages with checksums, and the account that each end of a conversation keeps of them.

A message is `<conversation> <stream> <number> <kind> <checksum> <body>`, as text or binary. A stream is what one task
sends, so that its numbers are in order however many tasks send at once.
"""

from typing import Any
from zlib import crc32

from anyio_ws import ConnectionClosed, WebSocket

# Streams
TALK = "talk"  # from the client
ECHO = "echo"
NEWS = "news"  # what the server tells everybody

# Kinds
DATA = "data"  # is echoed; from the server, it is an echo or news
FLOOD = "flood"  # the body says how many bytes, in how many messages, are wanted
END = "end"  # is answered with END; the body says who closes then


class Account:
    """What one end of a conversation has sent and received.

    Attributes:
        conversation: its number.
        sent: messages by stream; `doubtful` are those whose `send` did not return: sent whole, or not at all.
        received: messages by stream.
        expected: the next number, by stream.
        missing: numbers that were left out; they must be among the sender's doubtful ones.
        faults: what must not be.
        read_to_end: everything was received that there was.
        facts: whatever else is known.
    """

    __slots__ = (
        "conversation",
        "doubtful",
        "expected",
        "facts",
        "faults",
        "missing",
        "read_to_end",
        "received",
        "sent",
        "ws",
    )

    def __init__(self, conversation: int, **facts: Any) -> None:
        self.conversation = conversation
        self.ws: WebSocket | None = None
        self.sent: dict[str, int] = {}
        self.doubtful: set[tuple[str, int]] = set()
        self.received: dict[str, int] = {}
        self.expected: dict[str, int] = {}
        self.missing: list[tuple[str, int]] = []
        self.faults: list[str] = []
        self.read_to_end = False
        self.facts = facts

    async def send(self, stream: str, kind: str, body: bytes, *, text: bool = False) -> None:
        assert self.ws is not None
        number = self.sent.get(stream, 0)
        self.sent[stream] = number + 1
        head = f"{self.conversation} {stream} {number} {kind}".encode()
        message = b"%b %08x %b" % (head, crc32(head, crc32(body)), body)
        self.doubtful.add((stream, number))
        await self.ws.send(message, text=text)
        self.doubtful.discard((stream, number))

    def take(self, message: str | bytes) -> tuple[str, bytes]:
        """Check a message that was received; return its kind and its body."""
        data = message.encode() if isinstance(message, str) else message
        try:
            conversation, stream, digits, kind, checksum, body = data.split(b" ", 5)
            number, name = int(digits), stream.decode()
            if int(checksum, 16) != crc32(b" ".join((conversation, stream, digits, kind)), crc32(body)):
                raise ValueError("wrong checksum")
            if int(conversation) != self.conversation:
                raise ValueError("a message of another conversation")
        except ValueError as exc:
            self.faults.append(f"{exc}: {data[:60]!r}")
            return "", b""
        expected = self.expected.get(name, 0)
        if number < expected:
            self.faults.append(f"{name} {number} came twice or late, expected {expected}")
        self.missing.extend((name, left_out) for left_out in range(expected, number))
        self.expected[name] = number + 1
        self.received[name] = self.received.get(name, 0) + 1
        return kind.decode(), body

    async def receive(self) -> tuple[str, bytes] | None:
        """Receive and check a message; None at the end, whatever it is."""
        assert self.ws is not None
        try:
            message = await self.ws.receive()
        except ConnectionClosed:
            self.read_to_end = True
            return None
        return self.take(message)

    @property
    def ended(self) -> bool:
        """The connection has."""
        return self.ws is not None and self.ws.close_info is not None

    def closed(self) -> dict[str, Any]:
        """The account of a connection that has ended, for the conductor."""
        assert self.ws is not None
        info, stats = self.ws.close_info, self.ws.stats
        assert info is not None
        return {
            "conversation": self.conversation,
            "sent": dict(self.sent),  # a telling of news may still try
            "doubtful": sorted(self.doubtful),
            "received": self.received,
            "expected": self.expected,
            "missing": self.missing,
            "faults": self.faults,
            "read_to_end": self.read_to_end,
            "committed": stats.messages_sent,
            "arrived": stats.messages_received,
            "bytes": stats.bytes_sent,
            "code": info.code,
            "initiator": info.initiator,
            "clean": info.clean,
            "ending": str(info),
            **self.facts,
        }
