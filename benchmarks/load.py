"""The load: the other end of the connections of a program under test, in blocking sockets and little else.

It has to be far cheaper than what it measures, and must not depend on any of the libraries. So it makes every frame
once, sends it again and again, and of the replies only counts the bytes. The first reply is compared as a whole; after
that, what is lost leaves us waiting, until the program is killed, and what is added is noticed at the end of a run.
"""

import socket
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from selectors import EVENT_READ, DefaultSelector
from time import perf_counter

from .measured import Failed
from .programs import BURST_PAYLOAD

TEXT, BINARY, CLOSE = 1, 2, 8
MASKING_KEY = bytes.fromhex("37fa213d")
REQUEST = """\
GET {path} HTTP/1.1\r
Host: 127.0.0.1:{port}\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
Sec-WebSocket-Version: 13\r
\r
"""
RESPONSE = """\
HTTP/1.1 101 Switching Protocols\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Accept: {accept}\r
\r
"""


# Frames, RFC 6455 §5.2


def mask(payload: bytes, key: bytes) -> bytes:
    keys = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(keys)).to_bytes(len(payload))


def make_frame(payload: bytes, opcode: int = BINARY) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, size])
    elif size < 2**16:
        head = bytes([0x80 | opcode, 126]) + size.to_bytes(2)
    else:
        head = bytes([0x80 | opcode, 127]) + size.to_bytes(8)
    return head + payload


def _head_size(frame: bytes) -> int:
    return {126: 4, 127: 10}.get(frame[1] & 0x7F, 2)


def masked(frame: bytes) -> bytes:
    end = _head_size(frame)
    return bytes([frame[0], frame[1] | 0x80]) + frame[2:end] + MASKING_KEY + mask(frame[end:], MASKING_KEY)


def unmasked(frame: bytes) -> bytes:
    end = _head_size(frame)
    return bytes([frame[0], frame[1] & 0x7F]) + frame[2:end] + mask(frame[end + 4 :], frame[end : end + 4])


# Connections


def accept_value(key: str) -> str:
    """What answers a Sec-WebSocket-Key, RFC 6455 §4.2.2."""
    return b64encode(sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()


ACCEPT = f": {accept_value('dGhlIHNhbXBsZSBub25jZQ==')}\r\n".encode()


class Connection:
    """Our end of an open WebSocket; `is_client` if the program under test is the server."""

    def __init__(self, sock: socket.socket, *, is_client: bool) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.socket = sock
        self.is_client = is_client

    def receive(self, size: int) -> bytes:
        """Receive so many bytes, or those until the end of the connection."""
        data = bytearray()
        while len(data) < size and (chunk := self.socket.recv(size - len(data))):
            data += chunk
        return bytes(data)

    def receive_head(self) -> bytes:
        """Receive the head of an HTTP message; nothing comes behind it before we send something."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            if not (chunk := self.socket.recv(4096)):
                raise Failed(f"it ended the opening handshake with {data!r}")
            data += chunk
        return data

    def close(self) -> None:
        """Do the closing handshake; it is the server that ends the TCP connection."""
        frame = make_frame((1000).to_bytes(2), CLOSE)
        self.socket.sendall(masked(frame) if self.is_client else frame)
        self.receive(2**20 if self.is_client else len(masked(frame)))
        self.socket.close()


def connect(port: int, path: str = "/") -> Connection:
    """Open a connection to a server under test."""
    connection = Connection(socket.create_connection(("127.0.0.1", port)), is_client=True)
    connection.socket.sendall(REQUEST.format(path=path, port=port).encode())
    head = connection.receive_head()
    if not head.startswith(b"HTTP/1.1 101 ") or ACCEPT not in head:
        raise Failed(f"it answered {head!r}")
    return connection


def accept(listener: socket.socket) -> Connection:
    """Open a connection from a client under test."""
    connection = Connection(listener.accept()[0], is_client=False)
    lines = connection.receive_head().decode().splitlines()
    (key,) = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("sec-websocket-key:")]
    connection.socket.sendall(RESPONSE.format(accept=accept_value(key)).encode())
    return connection


def open_and_close(port: int, seconds: float) -> int:
    """Open and close connections, one after the other, for so long; return how many it were."""
    deadline = perf_counter() + seconds
    count = 0
    while perf_counter() < deadline:
        connect(port).close()
        count += 1
    return count


# Load


@dataclass(frozen=True)
class Exchange:
    """What is sent, what comes back for it, and how many messages that is."""

    request: bytes
    reply: bytes
    messages: int = 1


def echo(size: int) -> Exchange:
    frame = make_frame((bytes(range(256)) * (size // 256 + 1))[:size])
    return Exchange(frame, frame)


def burst(count: int) -> Exchange:
    return Exchange(make_frame(str(count).encode(), TEXT), make_frame(BURST_PAYLOAD) * count, count)


@dataclass
class Run:
    """The messages of a run, and the round trips in seconds, which are such if one request was in flight."""

    messages: int = 0
    round_trips: list[float] = field(default_factory=list[float])


class Flow:
    """A connection on which a number of requests is in flight until the deadline; then it runs dry."""

    def __init__(self, connection: Connection, exchange: Exchange, window: int, round_trips: list[float]) -> None:
        self.socket = connection.socket
        request = masked(exchange.request) if connection.is_client else exchange.request
        self.request_size = len(request)
        self.reply_size = len(exchange.reply) + (0 if connection.is_client else 4)  # a client's has a masking key
        self.requests = request * window
        self.buffer = bytearray(2**18)
        self.in_flight = window
        self.received = 0  # bytes of replies that are not complete
        self.replies = 0
        self.round_trips = round_trips

    def start(self) -> None:
        self.sent_at = perf_counter()
        self.socket.sendall(self.requests)

    def advance(self, deadline: float) -> bool:
        """Receive what there is, and send as many requests as were answered. Return whether to go on."""
        count = self.socket.recv_into(self.buffer)
        if not count:
            raise Failed("it ended the connection, or has taken too long")
        self.received += count
        if self.received < self.reply_size:
            return True
        answered, self.received = divmod(self.received, self.reply_size)
        self.replies += answered
        now = perf_counter()
        self.round_trips.append(now - self.sent_at)
        if now < deadline:
            self.sent_at = now
            self.socket.sendall(self.requests[: answered * self.request_size])
            return True
        self.in_flight -= answered
        if self.in_flight < 0 or (self.in_flight == 0 and self.received):
            raise Failed("it sent more than was asked for")
        return self.in_flight > 0


def check(connection: Connection, exchange: Exchange) -> None:
    """Do one exchange, and look at every byte of the reply."""
    flow = Flow(connection, exchange, 1, [])
    flow.start()
    reply = connection.receive(flow.reply_size)
    if (reply if connection.is_client else unmasked(reply)) != exchange.reply:
        raise Failed(f"its first reply began with {reply[:40]!r}")


def run(connections: Sequence[Connection], exchange: Exchange, window: int, seconds: float) -> Run:
    """Keep `window` requests in flight on each connection for so long; return when all are answered."""
    result = Run()
    flows = [Flow(connection, exchange, window, result.round_trips) for connection in connections]
    deadline = perf_counter() + seconds
    for flow in flows:
        flow.start()
    if len(flows) == 1:
        while flows[0].advance(deadline):
            pass
    else:
        with DefaultSelector() as selector:
            for flow in flows:
                selector.register(flow.socket, EVENT_READ, flow)
            while selector.get_map():
                for key, _ in selector.select():
                    if not key.data.advance(deadline):
                        selector.unregister(key.fileobj)
    result.messages = sum(flow.replies for flow in flows) * exchange.messages
    return result
