"""Some seeds of the simulation, and that it can be trusted. `python -m simulation` runs as many as you like."""

import os
import time
from typing import Any

import pytest

from anyio_ws.core import Core
from anyio_ws.keepalive import Keepalive
from anyio_ws.outbox import Outbox
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.protocol.connection import Connection
from anyio_ws.websocket import WebSocket

from .harness import Failure, simulate
from .wire import Wire
from .world import KINDS, World

pytestmark = pytest.mark.exhaustive

SEEDS = 12
"""Of each kind on each loop."""

FRESH = 0 if "CI" in os.environ else 3
"""More of them, never seen before; a failure says which it was."""

pytestmark = pytest.mark.timeout(60)

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
    monkeypatch.setattr(Core, "make_room", lambda self, size: None)


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
        inbox = self._core.inbox
        return inbox.pop() if inbox and not self._core.paused else await receive(self)

    monkeypatch.setattr(WebSocket, "receive", deaf)


def blames_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = Core.fail

    def failing(self: Core, exc: Exception, initiator: Any = "peer") -> None:
        fail(self, exc, "local" if initiator == "peer" else "peer")

    monkeypatch.setattr(Core, "fail", failing)


MUTANTS = [
    forgets_turns,
    forgets_what_is_held_back,
    tears_what_is_kept,
    answers_late_pings,
    never_judges,
    receives_although_cancelled,
    blames_the_other,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_library_that_breaks_its_promises_is_caught(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    with pytest.raises(Failure, match=r"--seed \d+ --trace"):
        simulate("asyncio", range(200))


def read(data: bytes, *, masked: bool = False) -> list[tuple[int, bytes, int]]:
    found: list[tuple[int, bytes, int]] = []
    wire = Wire(masked, lambda *what: found.append(what))
    for byte in data:
        wire.feed(bytes([byte]))
    return found


def test_the_wire_has_messages_and_control_frames_in_their_order() -> None:
    key = b"abcd"
    data = encode_frame(1, b"fra", key, False) + encode_frame(9, b"?", key) + encode_frame(0, b"gment", key)
    assert read(data + encode_frame(2, bytes(70000), key), masked=True) == [
        (9, b"?", 16),
        (1, b"fragment", 27),
        (2, bytes(70000), 70041),
    ]


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
    ],
)
def test_the_wire_takes_nothing_that_the_rfc_forbids(data: bytes) -> None:
    with pytest.raises((AssertionError, UnicodeDecodeError)):
        read(data)
