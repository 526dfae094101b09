"""Some seeds of the simulation, and that it can be trusted. `python -m simulation` runs as many as you like."""

import os
import time
import zlib
from contextlib import nullcontext
from typing import Any

import pytest

import anyio_ws.byte_stream
import anyio_ws.inbox
from anyio_ws.byte_stream import MessageByteStream
from anyio_ws.core import Core
from anyio_ws.keepalive import Keepalive
from anyio_ws.outbox import Outbox
from anyio_ws.overflow import Backlog
from anyio_ws.protocol import Opcode, PerMessageDeflate, encode_frame
from anyio_ws.protocol.compressing import Compressing
from anyio_ws.protocol.connection import Connection
from anyio_ws.protocol.deflate_backends import FULL_FLUSH, SYNC_FLUSH, Backend
from anyio_ws.receive_stream import ReceiveStream
from anyio_ws.send_stream import SendStream
from anyio_ws.websocket import WebSocket

from .harness import Failure, simulate
from .inbox import Inbox
from .wire import Inflating, Wire, agreed
from .world import KINDS, World

SEEDS = 12
"""Of each kind on each loop."""

FRESH = 0 if "CI" in os.environ else 3
"""More of them, never seen before; a failure says which it was."""

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(60)]

loops = pytest.mark.parametrize(
    "loop", ["asyncio", pytest.param("trio", marks=pytest.mark.timeout(60, method="thread"))]
)
kinds = pytest.mark.parametrize("kind", KINDS)


@loops
@kinds
def test_whatever_happens_every_promise_holds(loop: str, kind: str) -> None:
    pytest.importorskip(loop)
    first = int(time.time() * 1000)
    worlds: list[World] = []
    simulate(loop, [*range(SEEDS), *range(first, first + FRESH)], kind, done=worlds.append)
    assert sum(len(world.dice.events) for world in worlds) > 1000


def traces(loop: str, kind: str, seeds: range) -> list[list[tuple[Any, ...]]]:
    found: list[list[tuple[Any, ...]]] = []
    simulate(loop, seeds, kind, done=lambda world: found.append(world.dice.events))
    return found


@loops
@kinds
def test_a_seed_gives_the_same_trace_whatever_ran_before_in_its_event_loop(loop: str, kind: str) -> None:
    pytest.importorskip(loop)
    assert traces(loop, kind, range(102, 105)) == traces(loop, kind, range(100, 105))[2:]


def forgets_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "_wake", lambda self: None)


def forgets_what_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anyio_ws.inbox.Inbox, "make_room", lambda self, size: None)


def tears_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Outbox.keep
    monkeypatch.setattr(Outbox, "keep", lambda self, rest: keep(self, rest[1:]))


def answers_late_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Connection.answer

    def with_pongs(self: Connection) -> bytes:
        pongs = [self.encode(Opcode.PONG, ping) for ping in self.pings if self.close_received is not None]
        return b"".join(pongs) + answer(self)

    monkeypatch.setattr(Connection, "answer", with_pongs)


def never_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keepalive, "_judge", lambda self, now, ping: None)


def receives_although_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = WebSocket.receive

    async def deaf(self: WebSocket) -> str | bytes:
        inbox = self._core.inbox.messages
        return inbox.pop() if inbox and not self._core.inbox.paused else await receive(self)

    monkeypatch.setattr(WebSocket, "receive", deaf)


def blames_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = Core.fail

    def failing(self: Core, exc: Exception, initiator: Any = "peer") -> None:
        fail(self, exc, "local" if initiator == "peer" else "peer")

    monkeypatch.setattr(Core, "fail", failing)


def keeps_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compressing, "last_flush", SYNC_FLUSH)
    flush = Backend.compress
    monkeypatch.setattr(Backend, "compress", lambda *args: flush(*args[:-1], min(args[-1], FULL_FLUSH)))


def widens_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Backend.new_compressor
    monkeypatch.setattr(Backend, "new_compressor", lambda self, level, bits, memory: new(self, level, 15, memory))


def compresses_what_it_must_not(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = PerMessageDeflate.encode
    monkeypatch.setattr(
        PerMessageDeflate, "encode", lambda self, opcode, payload, wanted: encode(self, opcode, payload)
    )


def lets_others_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "hold", lambda self: None)


def ends_what_was_left_early(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = SendStream.__aexit__

    async def leaving(self: SendStream, *_: object) -> None:
        await leave(self, None, None, None)

    monkeypatch.setattr(SendStream, "__aexit__", leaving)


def loses_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    put = ReceiveStream._put
    monkeypatch.setattr(ReceiveStream, "_put", lambda self, part: put(self, part[:-1] if len(part) > 100 else part))


def gives_the_rest_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = ReceiveStream.__aexit__

    async def leaving(self: ReceiveStream, *args: Any) -> None:
        await leave(self, *args)
        self._core.inbox.parts = None

    monkeypatch.setattr(ReceiveStream, "__aexit__", leaving)


def drops_at_the_wrong_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(self: Backlog, inbox: list[str | bytes], new: int, limit: int) -> int:
        return self._drop_newest(inbox, new, limit) if self._drops_oldest else self._drop_oldest(inbox, limit)

    monkeypatch.setattr(Backlog, "_drop", drop)


def counts_no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_ws.overflow.MESSAGE_OVERHEAD", 0)


def loses_what_a_thread_inflates(monkeypatch: pytest.MonkeyPatch) -> None:
    end = anyio_ws.inbox.Inbox.end

    def ending(self: anyio_ws.inbox.Inbox) -> None:
        self._behind = None
        end(self)

    monkeypatch.setattr(anyio_ws.inbox.Inbox, "end", ending)


def drops_the_rest_when_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = MessageByteStream.receive

    async def receiving(self: MessageByteStream, max_bytes: int) -> bytes:
        try:
            return await receive(self, max_bytes)
        except BaseException:
            self._rest = memoryview(b"")
            raise

    monkeypatch.setattr(MessageByteStream, "receive", receiving)


def reads_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebSocket, "_receive_binary", WebSocket.receive_bytes)


def sends_pieces_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = range
    monkeypatch.setattr(anyio_ws.byte_stream, "range", lambda *args: reversed(pieces(*args)), raising=False)


def lets_two_write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anyio_ws.byte_stream, "ResourceGuard", nullcontext)


MUTANTS = [
    forgets_turns,
    forgets_what_is_held_back,
    tears_what_is_kept,
    answers_late_pings,
    never_judges,
    receives_although_cancelled,
    blames_the_other,
    keeps_the_context,
    widens_the_window,
    compresses_what_it_must_not,
    lets_others_in_between,
    ends_what_was_left_early,
    loses_a_chunk,
    gives_the_rest_to_the_next,
    drops_at_the_wrong_end,
    counts_no_overhead,
    loses_what_a_thread_inflates,
    drops_the_rest_when_it_is_cancelled,
    reads_text,
    sends_pieces_backwards,
    lets_two_write_at_once,
]


# Where to begin, for those that few seeds find.
FIRST_SEEDS = {loses_what_a_thread_inflates: 750}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_library_that_breaks_its_promises_is_caught(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    first = FIRST_SEEDS.get(mutant, 0)
    with pytest.raises(Failure, match=r"--seed \d+ --trace"):
        simulate("asyncio", range(first, first + 1000))


def read(data: bytes, side: str = "server", extensions: str = "") -> list[tuple[int, bytes, int, bool]]:
    found: list[tuple[int, bytes, int, bool]] = []
    wire = Wire(side, lambda *what: found.append(what))
    if (parameters := agreed(extensions)) is not None:
        wire.deflate = Inflating(parameters, side)
    for byte in data:
        wire.feed(bytes([byte]))
    return found


def test_the_wire_has_messages_and_control_frames_in_their_order() -> None:
    key = b"abcd"
    data = encode_frame(1, b"fra", key, False) + encode_frame(9, b"?", key) + encode_frame(0, b"gment", key)
    assert read(data + encode_frame(2, bytes(70000), key), "client") == [
        (9, b"?", 16, False),
        (1, b"fragment", 27, False),
        (2, bytes(70000), 70041, False),
    ]


NO_TAKEOVER = "permessage-deflate; server_no_context_takeover"


def compressed(*messages: bytes, flush: int = zlib.Z_SYNC_FLUSH, bits: int = 15) -> list[bytes]:
    compressor = zlib.compressobj(wbits=-bits)
    return [(compressor.compress(message) + compressor.flush(flush))[:-4] for message in messages]


@pytest.mark.parametrize(
    ("extensions", "flush"), [("permessage-deflate", zlib.Z_SYNC_FLUSH), (NO_TAKEOVER, zlib.Z_FULL_FLUSH)]
)
def test_the_wire_inflates_what_was_agreed(extensions: str, flush: int) -> None:
    message = os.urandom(1000) * 2
    first, second = compressed(message, message, flush=flush)
    data = encode_frame(0x42, first[:100], None, False) + encode_frame(9, b"?") + encode_frame(0, first[100:])
    found = read(data + encode_frame(0x42, second) + encode_frame(2, b"plain"), extensions=extensions)
    assert [(opcode, payload, whether) for opcode, payload, _, whether in found] == [
        (9, b"?", False),
        (2, message, True),
        (2, message, True),
        (2, b"plain", False),
    ]


NOISE = os.urandom(3000)


@pytest.mark.parametrize(
    ("extensions", "payloads"),
    [
        ("", compressed(b"a message")),
        (NO_TAKEOVER, compressed(NOISE, NOISE)),
        ("permessage-deflate; server_max_window_bits=10", compressed(NOISE, NOISE)),
        ("permessage-deflate; server_max_window_bits=10", compressed(NOISE * 2)),
        ("permessage-deflate", [b"\xff"]),
        ("permessage-deflate", [compressed(b"a message")[0][:-3]]),
        ("permessage-deflate", [compressed(b"a message")[0] + b"\0\0\0\xff\xff\1\0\0\xff\xff"]),
    ],
    ids=["not-agreed", "takeover", "window", "window-in-one", "no-deflate", "cut-off", "final"],
)
def test_the_wire_inflates_nothing_else(extensions: str, payloads: list[bytes]) -> None:
    with pytest.raises(AssertionError):
        read(b"".join(encode_frame(0x42, payload) for payload in payloads), extensions=extensions)


@pytest.mark.parametrize("first", [0x49, 0x40], ids=["ping", "continuation"])
def test_the_wire_takes_the_bit_on_the_first_frame_of_a_message_only(first: int) -> None:
    data = encode_frame(0x42, compressed(b"a message")[0], None, False) + encode_frame(first, b"")
    with pytest.raises(AssertionError, match="RSV1"):
        read(data, extensions="permessage-deflate")


@pytest.mark.parametrize(
    ("policy", "waiting", "dropped"),
    [
        ("backpressure", [0, 1, 2, 3], []),
        ("drop_oldest", [2, 3], [0, 1]),
        ("latest", [3], [0, 1, 2]),
        ("drop_newest", [0, 1], [2, 3]),
        ("close", [0, 1], [2]),
    ],
)
def test_the_model_of_the_inbox(policy: str, waiting: list[int], dropped: list[int]) -> None:
    inbox = Inbox(policy, 200)
    for number in range(4):
        if not inbox.closed:
            inbox.arrive(number, 100, is_awaited=False)
    assert [number for number, _ in inbox.waiting] == waiting
    assert inbox.dropped == dropped
    assert inbox.closed == (policy == "close")


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1\x00",
        b"\x83\x00",
        b"\x80\x00",
        b"\x01\x00\x81\x00",
        b"\x09\x00",
        b"\x81\x80abcd",
        b"\x89\x7e\x00\x7e",
        b"\x81\x7e\x00\x7d",
        b"\x81\x7f" + bytes(6) + b"\xff\xff",
        b"\x81\x01\xff",
        b"\x88\x00\x81\x00",
    ],
    ids=[
        "rsv",
        "opcode",
        "nothing-to-continue",
        "not-continued",
        "half-a-ping",
        "masked",
        "long-ping",
        "126",
        "127",
        "utf8",
        "after-the-close",
    ],
)
def test_the_wire_takes_nothing_that_the_rfc_forbids(data: bytes) -> None:
    with pytest.raises((AssertionError, UnicodeDecodeError)):
        read(data)
