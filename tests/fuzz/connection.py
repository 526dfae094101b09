"""However the bytes are cut, wherever they are read to and whichever codec it has, a Connection comes to what a plain
reading of the frames says; what it sends in between decodes to what was sent: each Ping is answered at most once, none
after the peer's Close, and after our own only Pings are; and it raises what is documented and nothing else.
"""

import itertools
import sys
from types import ModuleType
from unittest import mock

from anyio_ws.protocol import Connection, _pycodec
from anyio_ws.protocol.connection import MAX_PINGS
from anyio_ws.protocol.frames import encode_frame

from .inputs import Choices, decode_seeds
from .reference import CLOSE_CODES, Event, decode

try:
    from anyio_ws.protocol import _codec
except ImportError:
    CODECS: list[ModuleType] = [_pycodec]
else:
    CODECS = [_codec, _pycodec]

KEY = b"\x37\xfa\x21\x3d"
MAX_SIZES = [None, 0, 125, 126, 1_000, 65_536]
SIZES = [0, 1, 125, 126, 1_000, 65_535, 65_536]
CODES = [1000, 1001, 1002, 1009, 1011, 1014, 3000, 4999, 999, 1004, 1005, 1006, 1015, 2999, 5000, 0, -1, 65_536]
COUNTS = [1, 1, 1, 2, 50, 1_200]

Step = tuple[str, bytes, int, list[bytes], int]
"""What is done; the bytes of a chunk or of a payload; a close code; the chunk in pieces; how much room there is."""


def run(data: bytes) -> None:
    choices = Choices(data)
    is_client, max_size, codec, scratch = choices.flag(), choices.pick(MAX_SIZES), choices.pick(CODECS), choices.flag()
    steps = [choose_step(choices, is_client) for _ in range(choices.below(24)) if choices]
    expected = model(steps, is_client, max_size)
    plain = make(_pycodec, is_client, max_size, None)
    assert play(plain, steps, is_client, cut=False) == expected
    other = make(codec, is_client, max_size, memoryview(bytearray(1_000)) if scratch else None)
    assert play(other, steps, is_client, cut=True) == expected


def choose_step(choices: Choices, is_client: bool) -> Step:
    kind = choices.pick(["receive", "receive", "receive", "answer", "text", "binary", "ping", "pong", "close", "fail"])
    if kind != "receive":
        return kind, choices.take(choices.below(160)), choices.pick(CODES), [], 0
    chunk = b"".join(choose_frames(choices, is_client) for _ in range(choices.below(4) + 1))
    return kind, chunk, 0, choices.cut(chunk), choices.pick([sys.maxsize, 1, 100])


def choose_frames(choices: Choices, is_client: bool) -> bytes:
    """Some bytes, or a frame, perhaps many times."""
    if choices.below(8) == 7:
        return choices.take(choices.below(20))
    first, payload = choices.below(256), choices.take(choices.below(130))
    if choices.below(4) == 3:
        payload = payload.ljust(choices.pick(SIZES), b"x")
    # An opcode that there is and no RSV bit, but for one in four.
    first = first if choices.below(4) == 3 else 0x80 * (first > 80) | [1, 2, 0, 9, 8, 10][first % 6]
    frame = encode_frame(first & 0x7F, payload, None if is_client else KEY, first > 0x7F)
    return frame * (choices.pick(COUNTS) if len(frame) < 10 else 1)


def make(codec: ModuleType, is_client: bool, max_size: int | None, scratch: memoryview | None) -> Connection:
    names = ["Decoder", "MaskingKeys", "encode_frame"]
    with mock.patch.multiple("anyio_ws.protocol.connection", **{name: getattr(codec, name) for name in names}):
        return Connection(is_client=is_client, max_size=max_size, scratch=scratch)


def play(connection: Connection, steps: list[Step], is_client: bool, *, cut: bool) -> list[object]:
    """Do what the steps say, as a caller does who keeps to the rules; return all that comes of it."""
    outcome: list[object] = []
    for kind, data, code, pieces, room in steps:
        connection.news = False
        sent = b""
        if kind == "receive":
            outcome.append(receive(connection, pieces, room) if cut else connection.feed(data))
        elif kind == "answer":
            sent = connection.answer()
        elif connection.close_sent is None and connection.close_received is None:
            try:
                sent = send(connection, kind, data, code)
            except ValueError as exc:
                outcome.append(type(exc))
        outcome.append(decode(sent, masked=is_client, after_close=True))
        error = connection.error and connection.error.close_code
        outcome += [connection.news, list(connection.pings), list(connection.pongs), connection.close_received, error]
        outcome += [connection.close_sent, connection.pings_received, connection.pongs_received]
        assert not connection.pending
    return outcome


def receive(connection: Connection, pieces: list[bytes], room: int) -> list[str | bytes]:
    messages: list[str | bytes] = []
    for piece in pieces:
        while piece:
            buffer = connection.get_buffer()
            if buffer is None:
                messages += connection.feed(piece, room)
                piece = b""
            else:
                count = min(len(buffer), len(piece))
                buffer[:count] = piece[:count]
                del buffer
                messages += connection.filled(count, room)
                piece = piece[count:]
            while connection.pending:
                messages += connection.feed(b"", room)
    return messages


def send(connection: Connection, kind: str, data: bytes, code: int) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    if kind == "close":
        return connection.send_close(code, text)
    if kind == "fail":
        return connection.send_close(connection.error.close_code) if connection.error else b""
    if kind == "text":
        return connection.encode(1, text)
    if kind == "binary":
        return connection.encode(2, data)
    return connection.encode({"ping": 9, "pong": 10}[kind], data[:125])


def model(steps: list[Step], is_client: bool, max_size: int | None) -> list[object]:
    """What `play` must return."""
    outcome: list[object] = []
    received = b""
    past: list[Event] = []
    pings: list[object] = []
    pongs: list[object] = []
    close_received = close_sent = error = None
    pings_received = 0
    for kind, data, code, _, _ in steps:
        sent: list[Event] = []
        news = False
        if kind == "receive":
            received += data
            events = decode(received, masked=not is_client, max_size=max_size)
            messages = []
            for what, value in events[len(past) :]:
                if what in ("text", "binary"):
                    messages += [value] if close_sent is None else []
                    continue
                news = True
                if what == "ping":
                    pings_received += 1
                    pings = [*pings[: MAX_PINGS - 1], value]
                elif what == "pong":
                    pongs.append(value)
                elif what == "close":
                    close_received = value
                else:
                    error = value
            past = events
            outcome.append(messages)
        elif kind == "answer":
            sent = [("pong", ping) for ping in pings] if close_received is None else []
            pings = []
            if close_received is not None and close_sent is None:
                close_sent = (close_received[0], "")
                sent.append(("close", close_sent))
        elif close_sent is None and close_received is None:
            text = data.decode("utf-8", "surrogateescape")
            is_text = not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
            if kind == "close" and code not in CLOSE_CODES:
                outcome.append(ValueError)
            elif kind in ("close", "text") and not is_text:
                outcome.append(UnicodeEncodeError)
            elif kind == "close":
                close_sent = (code, cut_reason(text))
                sent = [("close", close_sent)]
            elif kind == "text":
                sent = [("text", text)]
            elif kind == "fail":
                if error is not None:
                    close_sent = (error, "")
                    sent = [("close", close_sent)]
            else:
                sent = [(kind, data[: 125 if kind != "binary" else None])]
        outcome.append(sent)
        outcome += [news, list(pings), list(pongs), close_received, error, close_sent, pings_received, len(pongs)]
    return outcome


def cut_reason(text: str) -> str:
    """The first letters that fit, RFC 6455 §5.5."""
    sizes = itertools.accumulate(len(letter.encode()) for letter in text)
    return text[: sum(size <= 123 for size in sizes)]


# The smallest of what the fuzzer found that go through every line together.
SEEDS = decode_seeds("""
    AQHcfwEAAA==
    NQAAAAkAAAgv
    QFkA1vsK////
    NcsAAAAJAAAILw==
    tgEKADrcAAEANA==
    /yv/CQD/9v9ljw==
    AFkAAQEAfwABKwI=
    Afb/B/ehoaGhoaE=
    iYmJNzfxBfHx8UA=
    wGZmZsDApvb/pvY=
    wMDQwMA9pvb2/wo=
    98kAAAkA///2//8=
    wDfApibAZmb2/6b2
    AFl/AH9ZAAABAAAACg==
    ogb/ACv2AQEK/wEAfg==
    AAn/0wAQAADx8fHxQPs=
    EqGhoQZeI6GhVgdWBwI=
    QKGhAADhI6GhVgYAEAA=
    Dg4A////////AAoAAAAA
    QwcAAAAAAAAAFwQOWQAy
    Vgb/AQABAQAAAPj//wEABw==
    XQFABv8AAAQA3AAAAP8f//+o
    VpYAAAAAAAAACv8Awc76AAPx8QAx
    raEAAAAAAAAAIhKhywD/JqGhVgAJRgA=
    AP8AAAAAAAAA////AAEAAAAAAAAAAAAA/8Qg/wA=
    AP//////////Bf//AAEAAAAAAAAAAAAA/8ThAAA=
    RPr6+vr6/wAAAAAAAFIATsrKygBmAAAALjJ/AQA=
    flJ+foWB/v+BawAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAlf//Pv+RAA==
""")
