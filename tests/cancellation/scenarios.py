"""The scenarios: what is called, and what must be true afterwards, cancelled or not.

To add one, write a function like those below: set the stage with `linked` or `serving`, make one call through
`trial.call`, then look at the outcome. `@over(...)` puts it into the table, once for each kind of link.
"""

import socket
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from websockets.frames import Close, Frame, Opcode

import anyio_ws.transports.connecting
from anyio_ws import ConnectionClosedOK, Deflate, HandshakeError, Server, WebSocket, accept, connect, serve
from anyio_ws.testing import RawPeer
from anyio_ws.transports.stream import StreamTransport
from support.peers import UPGRADE, head, until
from support.tools import Call, settle

from .harness import Outcome, Trial
from .links import (
    EXTENSIONS,
    OPTIONS,
    contexts,
    dialled,
    dialling,
    keeper,
    linked,
    pipe,
    raw_end,
    read_frame,
    serving,
    shaking_hands,
    with_extensions,
)

LINKS = ["memory-client", "memory-server", "stream", "tcp", "tls"]
"""A WebSocket of ours and a peer that speaks frames: see `linked`."""

SERVERS = ["memory", "tcp", "tls"]
"""A server of ours: see `serving`."""

REAL = {"tcp", "tls"}
"""Those with sockets."""

Scenario = Callable[[Trial], Awaitable[None]]
SCENARIOS: list[tuple[Scenario, str]] = []


def over(*kinds: str) -> Callable[[Scenario], Scenario]:
    """Put a scenario into the table."""

    def add(scenario: Scenario) -> Scenario:
        SCENARIOS.extend((scenario, kind) for kind in kinds)
        return scenario

    return add


# What the peer does meanwhile


async def resume(peer: RawPeer) -> None:
    peer.resume()
    peer._transport.watch()  # although nobody waits for what it reads


async def say(peer: RawPeer, *messages: bytes) -> None:
    for message in messages:
        await peer.send_frame(Opcode.TEXT, message)


async def read_all(peer: RawPeer, frames: list[Frame]) -> None:
    """Read frames until the Close, and answer that, or until the end: then the last one may be torn, and is dropped."""
    try:
        peer.resume()
        while not frames or frames[-1].opcode is not Opcode.CLOSE:
            frames.append(await read_frame(peer))
        await peer.send_frame(Opcode.CLOSE, bytes(frames[-1].data))
        peer.send_eof()
    except anyio.EndOfStream:
        pass


async def soon(trial: Trial, function: Callable[..., Awaitable[object]], *args: Any) -> None:
    """Do what may never come to its end, because the call was cancelled before; then it has a moment more."""
    async with anyio.create_task_group() as group:

        async def do() -> None:
            await function(*args)
            group.cancel_scope.cancel()

        group.start_soon(do)
        await trial.over.wait()
        await anyio.sleep(0.02)
        group.cancel_scope.cancel()


# What is true afterwards


def nobody_waits(ws: WebSocket) -> None:
    core = ws._core
    assert not core.outbox._turns
    assert not core.outbox._drained
    assert core.inbox.receiver is None
    assert core.closers == 0
    assert not core.pings.in_flight


async def usable(peer: RawPeer, ws: WebSocket) -> list[Frame]:
    """Messages go both ways. Returns what had come from us before; the fragments of a message are joined."""
    nobody_waits(ws)
    frames: list[Frame] = []

    async def read() -> None:
        while (frame := await read_frame(peer)).data != b"marker":
            if frame.opcode is Opcode.CONT:
                assert not frames[-1].fin
                frame = Frame(frames[-1].opcode, frames.pop().data + frame.data, frame.fin)
            else:
                assert not frames or frames[-1].fin, "a message in the middle of another"
            frames.append(frame)

    async with anyio.create_task_group() as group:
        peer.resume()
        group.start_soon(read)
        await ws.send("marker")
    await say(peer, b"answer")
    assert await ws.receive() == "answer"
    nobody_waits(ws)
    return frames


def gone(ws: WebSocket, *codes: int) -> None:
    """Our closing has left nothing; it said one of these, or 1006 if it was dropped without a word."""
    nobody_waits(ws)
    assert ws._core.gone
    assert ws.close_info is not None
    assert ws.close_info.initiator == "local"
    assert ws.close_info.code in codes


def messages(frames: list[Frame]) -> list[bytes]:
    assert all(frame.opcode in (Opcode.TEXT, Opcode.BINARY) for frame in frames)
    return [bytes(frame.data) for frame in frames]


# Sending


async def stalled(peer: RawPeer, ws: WebSocket, group: TaskGroup) -> tuple[Call, list[bytes]]:
    """A peer that reads nothing, and a sender that waits for room. Returns that one, and all that was sent."""
    peer.pause()
    call, sent = None, list[bytes]()
    while call is None or call.done:
        sent.append(bytes([len(sent)]) * 30000)
        call = Call(group, ws.send, sent[-1])
        await settle()
    return call, sent


@over(*LINKS)
async def send_while_there_is_room(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        ws._budget.sends = 1  # it yields before
        outcome = await trial.call(ws.send, b"subject")
        sent = messages(await usable(peer, ws))
        assert sent == [b"subject"] * (ws.stats.messages_sent - 1)
        assert bool(sent) == outcome.finished


@over(*LINKS)
async def send_json(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        ws._budget.sends = 1
        outcome = await trial.call(ws.send_json, {"a": 1})
        assert messages(await usable(peer, ws)) == [b'{"a": 1}'] * outcome.finished


@over(*LINKS)
async def send_that_waits_for_its_turn(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws), anyio.create_task_group() as group:
        earlier, sent = await stalled(peer, ws, group)
        outcome = await trial.call(ws.send, b"subject", meanwhile=partial(resume, peer))
        await earlier.wait()
        received = messages(await usable(peer, ws))
        assert received in (sent, [*sent, b"subject"])
        assert len(received) == ws.stats.messages_sent - 1
        assert not outcome.finished or b"subject" in received


@over(*LINKS)
async def send_before_others_that_wait_for_their_turn(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws), anyio.create_task_group() as group:
        _, sent = await stalled(peer, ws, group)
        others: list[Call] = []

        async def queue_up() -> None:
            others.extend(Call(group, ws.send, message) for message in (b"other 1", b"other 2"))
            await checkpoint()
            await checkpoint()
            await resume(peer)

        outcome = await trial.call(ws.send, b"subject", meanwhile=queue_up)
        for other in others:
            await other.wait()
        received = messages(await usable(peer, ws))
        # trio starts tasks in any order.
        assert [message for message in received if not message.startswith(b"other")] in (sent, [*sent, b"subject"])
        assert {b"other 1", b"other 2"} <= set(received)
        assert not outcome.finished or b"subject" in received


@over(*LINKS)
async def send_more_than_there_is_room_for(trial: Trial) -> None:
    large = bytes(range(256)) * 1600
    async with linked(trial.kind) as (peer, ws):
        peer.pause()
        ws._budget.renew()  # it is committed before it waits
        await trial.call(ws.send, large, meanwhile=partial(resume, peer))
        received = messages(await usable(peer, ws))
        assert received == ([] if trial.called_off else [large])


@over("memory-client", "memory-server", "tls")
async def send_in_fragments(trial: Trial) -> None:
    large = bytes(range(256)) * 5000
    async with linked(trial.kind) as (peer, ws):
        peer.pause()
        ws._budget.renew()
        await trial.call(ws.send, large, meanwhile=partial(resume, peer))
        received = messages(await usable(peer, ws))
        assert received == ([] if trial.called_off else [large])


@over(*LINKS)
async def send_text_that_is_large(trial: Trial) -> None:
    large = "µ" * 200_000
    async with linked(trial.kind) as (peer, ws):
        peer.pause()
        ws._budget.renew()
        await trial.call(ws.send, large, meanwhile=partial(resume, peer))
        received = messages(await usable(peer, ws))
        assert received == ([] if trial.called_off else [large.encode()])


@over(*LINKS)
async def send_many_with_little_room(trial: Trial) -> None:
    items = [bytes([number]) * 30000 for number in range(9)]
    async with linked(trial.kind) as (peer, ws):
        peer.pause()
        outcome = await trial.call(ws.send_many, items, meanwhile=partial(resume, peer))
        received = messages(await usable(peer, ws))
        assert received == items[: ws.stats.messages_sent - 1]
        assert not outcome.finished or received == items
        assert not trial.called_off or not received


@over(*LINKS)
async def send_many_small_ones(trial: Trial) -> None:
    items = [b"%d" % number for number in range(300)]
    async with linked(trial.kind) as (peer, ws):
        ws._budget.sends = 1
        outcome = await trial.call(ws.send_many, items)
        received = messages(await usable(peer, ws))
        assert received == items[: ws.stats.messages_sent - 1]
        assert not outcome.finished or received == items


@over(*LINKS)
async def flush_of_joined_messages(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        await say(peer, b"1", b"2")
        await settle()
        assert await ws.receive() == "1"
        await ws.send(b"joined")
        ws._budget.sends = 1
        await trial.call(ws.flush)
        assert await ws.receive() == "2"
        assert messages(await usable(peer, ws)) == [b"joined"]


@over(*LINKS)
async def flush_with_a_full_outbox(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws), anyio.create_task_group() as group:
        earlier, sent = await stalled(peer, ws, group)
        await trial.call(ws.flush, meanwhile=partial(resume, peer))
        await earlier.wait()
        assert messages(await usable(peer, ws)) == sent


# Receiving


RECEIVES: dict[str, Callable[[WebSocket], Awaitable[Any]]] = {
    "receive": lambda ws: ws.receive(),
    "receive_text": lambda ws: ws.receive_text(),
    "receive_bytes": lambda ws: ws.receive_bytes(),
    "receive_json": lambda ws: ws.receive_json(),
    "receive_many": lambda ws: ws.receive_many(),
    "async_for": lambda ws: anext(aiter(ws)),
    "iter_text": lambda ws: anext(ws.iter_text()),
    "iter_bytes": lambda ws: anext(ws.iter_bytes()),
    "iter_json": lambda ws: anext(ws.iter_json()),
}


def received_by(result: Any) -> list[str]:
    """What any of them returned, as text."""
    results = result if isinstance(result, list) else [] if result is None else [result]
    return [each.decode() if isinstance(each, bytes) else str(each) for each in results]


async def all_received(ws: WebSocket, result: Any, expected: list[str]) -> None:
    """Each message was returned, or can be received."""
    got = received_by(result)
    while len(got) < len(expected):
        got += received_by(await ws.receive())
    assert got == expected


async def _waits(trial: Trial, receive: Callable[[WebSocket], Awaitable[Any]]) -> None:
    async with linked(trial.kind) as (peer, ws):
        outcome = await trial.call(receive, ws, meanwhile=partial(say, peer, b"1", b"2"))
        await all_received(ws, outcome.result, ["1", "2"])
        await usable(peer, ws)


async def _finds_some(trial: Trial, receive: Callable[[WebSocket], Awaitable[Any]]) -> None:
    async with linked(trial.kind) as (peer, ws):
        await say(peer, b"1", b"2", b"3")
        await settle()
        assert await ws.receive() == "1"
        ws._budget.receives = 1  # it yields before
        outcome = await trial.call(receive, ws)
        await all_received(ws, outcome.result, ["2", "3"])
        await usable(peer, ws)


for name, receive in RECEIVES.items():
    for shape in (_waits, _finds_some):
        scenario: Any = partial(shape, receive=receive)
        scenario.__name__ = f"{name}{shape.__name__}"
        over(*(LINKS if name == "receive" else ["memory-server"]))(scenario)


@over(*LINKS)
async def receive_of_fragments(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):

        async def fragments() -> None:
            await peer.send_frame(Opcode.TEXT, b"1", fin=False)
            await settle()
            await peer.send_frame(Opcode.PING)
            await peer.send_frame(Opcode.CONT, b"2", fin=False)
            await settle()
            await peer.send_frame(Opcode.CONT, b"3")

        outcome = await trial.call(ws.receive, meanwhile=fragments)
        await all_received(ws, outcome.result, ["123"])
        assert [frame.opcode for frame in await usable(peer, ws)] == [Opcode.PONG]


@over(*LINKS)
async def receive_from_a_full_inbox(trial: Trial) -> None:
    expected = [f"{number:0100}" for number in range(20)]
    async with linked(trial.kind, receive_buffer_size=400) as (peer, ws):
        await say(peer, *(message.encode() for message in expected))
        await settle()
        first = await ws.receive()
        ws._budget.receives = 1
        outcome = await trial.call(ws.receive)
        await all_received(ws, [first, *received_by(outcome.result)], expected)
        await usable(peer, ws)


@over(*LINKS)
async def receive_while_the_peer_closes(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):

        async def end() -> None:
            await say(peer, b"last")
            await peer.send_close()

        async def both() -> list[str | bytes]:
            got = [await ws.receive()]
            got.append(await ws.receive())
            return got

        outcome = await trial.call(both, meanwhile=end, raises=ConnectionClosedOK)
        if outcome.cancelled:
            seen: list[str | bytes] = []
            with pytest.raises(ConnectionClosedOK):
                while True:
                    seen.append(await ws.receive())
            assert seen in (["last"], [])
        nobody_waits(ws)
        assert ws.close_info is not None
        assert (ws.close_info.code, ws.close_info.initiator, ws.close_info.clean) == (1000, "peer", True)


# In parts


async def some_chunks(ws: WebSocket, size: int = 0) -> None:
    async with ws.send_stream() as stream:
        for number in range(3):
            await checkpoint()
            await stream.send(b"%d" % number + bytes(size))


async def whole_or_closed(trial: Trial, peer: RawPeer, ws: WebSocket, outcome: Outcome, chunks: list[bytes]) -> None:
    """The message went out whole, or not at all, or the connection says 1001 behind its beginning."""
    if ws._core.closing:
        assert outcome.cancelled
        frames: list[Frame] = []
        await read_all(peer, frames)
        assert Close.parse(bytes(frames.pop().data)).code == 1001
        assert frames or ws._core.connection.extensions  # else a thread may not have come to its end
        assert not any(frame.fin for frame in frames)
        assert b"".join(chunks).startswith(b"".join(bytes(frame.data) for frame in frames))
        assert (await ws.wait_closed()).code == 1001
        nobody_waits(ws)
    else:
        sent = messages(await usable(peer, ws))
        assert sent == [b"".join(chunks)] * (ws.stats.messages_sent - 1)
        assert not outcome.finished or sent


@over(*LINKS)
async def send_in_parts(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        outcome = await trial.call(some_chunks, ws)
        await whole_or_closed(trial, peer, ws, outcome, [b"0", b"1", b"2"])


@over(*LINKS)
async def send_in_parts_more_than_there_is_room_for(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        peer.pause()
        outcome = await trial.call(some_chunks, ws, 150_000, meanwhile=partial(resume, peer))
        peer.resume()
        await whole_or_closed(trial, peer, ws, outcome, [b"%d" % number + bytes(150_000) for number in range(3)])


@over(*LINKS)
async def send_in_parts_behind_others(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws), anyio.create_task_group() as group:
        earlier, sent = await stalled(peer, ws, group)
        outcome = await trial.call(ws.send_stream().__aenter__, meanwhile=partial(resume, peer))
        await earlier.wait()
        if outcome.finished:
            await outcome.result.__aexit__(None, None, None)
        assert messages(await usable(peer, ws)) == ([*sent, b""] if outcome.finished else sent)


@over(*LINKS)
async def receive_in_parts(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        got: list[Any] = []
        caught: list[bool] = []

        async def fragments() -> None:
            for number in range(3):
                await peer.send_frame(Opcode.CONT if number else Opcode.TEXT, b"%d" % number, fin=number == 2)
                await settle()
            await say(peer, b"next")

        async def subject() -> None:
            async with ws.receive_stream() as stream:
                caught.append(True)
                async for chunk in stream:
                    got.append(chunk)

        outcome = await trial.call(subject, meanwhile=fragments)
        assert "012".startswith("".join(got))
        assert not outcome.finished or "".join(got) == "012"
        if not caught:
            assert await ws.receive() == "012"
        assert await ws.receive() == "next"
        await usable(peer, ws)


@over(*LINKS)
async def no_chunk_is_lost(trial: Trial) -> None:
    async with linked(trial.kind, max_size=2) as (peer, ws):
        await peer.send_frame(Opcode.TEXT, b"012345", fin=False)
        async with ws.receive_stream() as stream:
            got: list[Any] = [await stream.receive()]
            rest = partial(peer.send_frame, Opcode.CONT, b"6789")
            outcome = await trial.call(stream.receive, meanwhile=rest)
            got.append(outcome.result or "")
            got += [chunk async for chunk in stream]
            assert "".join(got) == "0123456789"
        assert ws._core.inbox.parts is None


# Compression: what takes long is left to a thread, which is real, and so is the time that it takes

RSV1 = 0x40
DEFLATE: dict[str, Any] = {"compression": Deflate()}
LARGE = b"more than any library compresses at once " * 8000


def compressed(*messages: bytes) -> list[bytes]:
    compressor = zlib.compressobj(wbits=-15)
    return [(compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for message in messages]


@over("memory-client", "memory-server", "tcp")
async def send_compressed(trial: Trial) -> None:
    async with linked(trial.kind, **DEFLATE) as (peer, ws):
        ws._budget.sends = 1  # it yields before
        outcome = await trial.call(ws.send, b"subject" * 50)
        await ws.send(b"subject" * 20)  # it refers to the one before, if that was compressed
        sent = messages(await usable(peer, ws))
        assert sent == [b"subject" * 50, b"subject" * 20][3 - ws.stats.messages_sent :]
        assert not outcome.finished or len(sent) == 2


@over("tcp", "tls")
async def send_compressed_by_a_thread(trial: Trial) -> None:
    async with linked(trial.kind, **DEFLATE) as (peer, ws):
        ws._budget.renew()  # the thread begins before it waits, and what it has begun is committed
        await trial.call(ws.send, LARGE)
        assert messages(await usable(peer, ws)) == ([] if trial.called_off else [LARGE])


@over("tcp", "tls")
async def send_many_of_which_one_is_large(trial: Trial) -> None:
    items = [b"first" * 50, LARGE, b"last" * 50]
    async with linked(trial.kind, **DEFLATE) as (peer, ws):
        peer.pause()
        outcome = await trial.call(ws.send_many, items, meanwhile=partial(resume, peer))
        sent = messages(await usable(peer, ws))
        assert sent == items[: ws.stats.messages_sent - 1]
        assert not outcome.finished or sent == items


@over("memory-client", "memory-server", "tcp")
async def receive_compressed(trial: Trial) -> None:
    first, second = compressed(b"text " * 50, b"text " * 20)

    async def send() -> None:
        await peer.send_frame(Opcode.TEXT | RSV1, first)
        await peer.send_frame(Opcode.TEXT | RSV1, second)

    async with linked(trial.kind, **DEFLATE) as (peer, ws):
        outcome = await trial.call(ws.receive, meanwhile=send)
        await all_received(ws, outcome.result, ["text " * 50, "text " * 20])
        await usable(peer, ws)


@over("tcp", "tls")
async def receive_what_a_thread_inflates(trial: Trial) -> None:
    payloads = compressed(LARGE, LARGE, b"last")

    async def send() -> None:
        for payload in payloads:
            await peer.send_frame(Opcode.BINARY | RSV1, payload)

    async with linked(trial.kind, **DEFLATE) as (peer, ws), anyio.create_task_group() as group:
        group.start_soon(send)
        outcome = await trial.call(ws.receive)
        await all_received(ws, outcome.result, [LARGE.decode(), LARGE.decode(), "last"])
        await usable(peer, ws)


@over("memory-client", "tcp")
async def send_in_parts_compressed(trial: Trial) -> None:
    async with linked(trial.kind, **DEFLATE) as (peer, ws):
        peer.pause()
        outcome = await trial.call(some_chunks, ws, 20_000, meanwhile=partial(resume, peer))
        peer.resume()
        await whole_or_closed(trial, peer, ws, outcome, [b"%d" % number + bytes(20_000) for number in range(3)])


@over("tcp", "tls")
async def send_in_parts_compressed_by_a_thread(trial: Trial) -> None:
    async with linked(trial.kind, **DEFLATE) as (peer, ws):
        ws._budget.renew()
        outcome = await trial.call(some_chunks, ws, 300_000)
        await whole_or_closed(trial, peer, ws, outcome, [b"%d" % number + bytes(300_000) for number in range(3)])


@over("memory-client", "memory-server", "tcp")
async def receive_in_parts_compressed(trial: Trial) -> None:
    payload, following = compressed(bytes(200_000), b"next")
    async with linked(trial.kind, **DEFLATE) as (peer, ws):
        got: list[Any] = []
        caught: list[bool] = []

        async def fragments() -> None:
            await peer.send_frame(Opcode.BINARY | RSV1, payload[:100], fin=False)
            await settle()
            await peer.send_frame(Opcode.CONT, payload[100:])
            await peer.send_frame(Opcode.BINARY | RSV1, following)  # it may refer to what was left

        async def subject() -> None:
            async with ws.receive_stream() as stream:
                caught.append(True)
                async for chunk in stream:
                    got.append(chunk)

        outcome = await trial.call(subject, meanwhile=fragments)
        assert not outcome.finished or b"".join(got) == bytes(200_000)
        if not caught:
            assert await ws.receive() == bytes(200_000)
        assert await ws.receive() == b"next"
        await usable(peer, ws)


# What else sends and receives


async def _where_messages_are_dropped(trial: Trial, policy: str) -> None:
    expected = [f"{number:0100}" for number in range(20)]
    async with linked(trial.kind, receive_buffer_size=400, overflow=policy) as (peer, ws):
        outcome = await trial.call(ws.receive, meanwhile=partial(say, peer, *map(str.encode, expected)))
        while ws.stats.messages_received < 20:
            await checkpoint()
        got = received_by(outcome.result)
        got += [str(await ws.receive()) for _ in range(len(ws._messages))]
        assert [message for message in expected if message in got] == got
        assert len(got) + ws.stats.messages_dropped == 20
        assert (expected[0] if policy == "drop_newest" else expected[-1]) in got
        await usable(peer, ws)


for policy in ("drop_oldest", "drop_newest", "latest"):
    scenario = partial(_where_messages_are_dropped, policy=policy)
    scenario.__name__ = f"receive_{policy}"
    over("memory-server", "tcp")(scenario)


@over("memory-client", "memory-server", "tcp")
async def send_to_a_byte_stream(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        ws._budget.sends = 1
        stream = ws.as_byte_stream()
        outcome = await trial.call(stream.send, b"subject")
        await stream.send(b"next")
        sent = messages(await usable(peer, ws))
        assert sent in ([b"subject", b"next"], [b"next"])
        assert not outcome.finished or len(sent) == 2


@over("memory-client", "tcp")
async def send_more_to_a_byte_stream_than_there_is_room_for(trial: Trial) -> None:
    item = bytes(range(256)) * 6000
    async with linked(trial.kind) as (peer, ws):
        peer.pause()
        outcome = await trial.call(ws.as_byte_stream().send, item, meanwhile=partial(resume, peer))
        sent = b"".join(messages(await usable(peer, ws)))
        assert sent in (b"", item[: 2**20], item)
        assert not outcome.finished or sent == item


@over("memory-client", "memory-server", "tcp")
async def receive_from_a_byte_stream(trial: Trial) -> None:
    async def send() -> None:
        await peer.send_frame(Opcode.BINARY, b"")
        await peer.send_frame(Opcode.BINARY, b"12345")

    async with linked(trial.kind) as (peer, ws):
        stream = ws.as_byte_stream()
        outcome = await trial.call(stream.receive, 2, meanwhile=send)
        got = outcome.result or b""
        while len(got) < 5:
            got += await stream.receive(2)
        assert got == b"12345"
        await usable(peer, ws)


# Pings


@over(*LINKS)
async def ping(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):

        async def pong() -> None:
            frame = await read_frame(peer)
            assert frame.opcode is Opcode.PING
            await peer.send_frame(Opcode.PONG, bytes(frame.data))

        async def meanwhile() -> None:
            if not trial.called_off:
                await pong()

        ws._budget.renew()  # it does not yield before
        await trial.call(ws.ping, meanwhile=meanwhile)
        assert await usable(peer, ws) == []
        async with anyio.create_task_group() as group:
            group.start_soon(pong)
            await ws.ping()


@over(*LINKS)
async def ping_behind_a_full_outbox(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws), anyio.create_task_group() as group:
        earlier, sent = await stalled(peer, ws, group)
        frames: list[Frame] = []

        async def pong() -> None:
            await resume(peer)
            if not trial.called_off:
                while not frames or frames[-1].opcode is not Opcode.PING:
                    frames.append(await read_frame(peer))
                await peer.send_frame(Opcode.PONG, bytes(frames.pop().data))

        ws._budget.renew()
        await trial.call(ws.ping, meanwhile=pong)
        await earlier.wait()
        frames += await usable(peer, ws)
        assert messages(frames) == sent


# Both at once


@over(*LINKS)
async def run_with_two_functions(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        running: set[str] = set()
        received: list[Any] = []
        released = anyio.Event()

        async def consumer(ws: WebSocket) -> None:
            running.add("consumer")
            try:
                async for message in ws:
                    received.append(message)
            finally:
                running.remove("consumer")

        async def producer(ws: WebSocket) -> None:
            running.add("producer")
            try:
                for number in range(3):
                    await ws.send(b"%d" % number)
                    await checkpoint()
                await released.wait()
            finally:
                running.remove("producer")

        async def go_on() -> None:
            await say(peer, b"1", b"2")
            await settle()
            released.set()

        await trial.call(ws.run, consumer, producer, meanwhile=go_on)
        assert not running
        await all_received(ws, received, ["1", "2"])
        sent = messages(await usable(peer, ws))
        assert sent == [b"0", b"1", b"2"][: ws.stats.messages_sent - 1]


# Closing


@over(*LINKS)
async def wait_closed(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        closed = False

        async def close() -> None:
            nonlocal closed
            if not trial.cancelled:
                closed = True
                await peer.send_close(1001)

        outcome = await trial.call(ws.wait_closed, meanwhile=close)
        if closed:
            info = outcome.result or await ws.wait_closed()
            assert (info.code, info.initiator, info.clean) == (1001, "peer", True)
        else:
            await usable(peer, ws)


@over(*LINKS)
async def aclose_with_a_peer_that_answers(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws):
        ws._budget.renew()  # it does not yield before
        outcome = await trial.call(ws.aclose, meanwhile=partial(soon, trial, read_all, peer, []))
        if trial.called_off:
            await usable(peer, ws)
        else:
            gone(ws, 1000)
            assert not outcome.finished or ws.close_info.clean


@over("memory-client", "memory-server", "tcp", "tls")
async def aclose_with_a_silent_peer(trial: Trial) -> None:
    async with linked(trial.kind, close_timeout=0.01) as (peer, ws):
        ws._budget.renew()  # it does not yield before
        await trial.call(ws.aclose)
        if trial.called_off:
            await usable(peer, ws)
        else:
            gone(ws, 1000)
            assert not ws.close_info.clean


@over(*LINKS)
async def aclose_with_committed_messages(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws), anyio.create_task_group() as group:
        earlier, sent = await stalled(peer, ws, group)
        frames: list[Frame] = []

        async def read() -> None:
            await resume(peer)
            if not trial.called_off:
                await soon(trial, read_all, peer, frames)  # uvloop may lose a reset

        ws._budget.renew()  # it does not yield before
        outcome = await trial.call(ws.aclose, meanwhile=read)
        if trial.called_off:
            await earlier.wait()
            frames += await usable(peer, ws)
            assert messages(frames) == sent
        else:
            gone(ws, 1000)
            expected = [*sent, Close(1000, "").serialize()]
            received = [bytes(frame.data) for frame in frames]
            assert received == expected[: len(received)]
            assert not outcome.finished or not ws.close_info.clean or received == expected
        assert earlier.done


@over("memory-server", "tcp")
async def one_of_two_that_close(trial: Trial) -> None:
    async with linked(trial.kind) as (peer, ws), anyio.create_task_group() as group:
        other = Call(group, ws.aclose, 1001)
        await settle()
        ws._budget.renew()  # it does not yield before
        await trial.call(ws.aclose, meanwhile=partial(soon, trial, read_all, peer, []))
        await other.wait()
        gone(ws, 1001)
        assert ws.close_info.clean


# Blocks of connections


@over("stream", "tcp")
async def leaving_a_block(trial: Trial) -> None:
    async with shaking_hands(trial.kind) as (peer, connecting, answered):
        opened: list[WebSocket] = []
        frames: list[Frame] = []

        async def block() -> None:
            opened.append(await connecting.__aenter__())
            await trial.counted(connecting.__aexit__, None, None, None)

        async def other_side() -> None:
            await answered.wait()
            await read_all(peer, frames)

        outcome = await trial.call(block, counted=False, meanwhile=partial(soon, trial, other_side))
        for ws in opened:
            gone(ws, 1000, 1006)  # the latter if the cancellation comes before the Close
        if outcome.finished:
            assert bytes(frames[-1].data) == b"\x03\xe8"


@over("stream", "tcp")
async def leaving_a_block_by_an_exception(trial: Trial) -> None:
    async with shaking_hands(trial.kind) as (peer, connecting, answered):
        opened: list[WebSocket] = []
        frames: list[Frame] = []
        error = KeyError("the body's own")

        async def block() -> None:
            opened.append(await connecting.__aenter__())
            try:
                raise error
            except KeyError as exc:
                await trial.counted(connecting.__aexit__, KeyError, exc, exc.__traceback__)
                raise

        async def other_side() -> None:
            await answered.wait()
            await read_all(peer, frames)

        outcome = await trial.call(block, counted=False, meanwhile=partial(soon, trial, other_side), raises=KeyError)
        for ws in opened:
            gone(ws, 1011)
            if not trial.way.is_native:  # from which nothing can be shielded
                assert outcome.error is error
                assert frames[-1].data[:2] == b"\x03\xf3"


@over("stream")
async def a_block_whose_peer_is_silent(trial: Trial) -> None:
    trial.bound = 0.05
    async with shaking_hands(trial.kind, close_timeout=trial.bound) as (peer, connecting, answered):
        opened: list[WebSocket] = []

        async def block() -> None:
            async with connecting as ws:
                opened.append(ws)
                await trial.counted(ws.receive)

        async def other_side() -> None:
            await answered.wait()
            if not trial.cancelled:
                await say(peer, b"the message")

        await trial.call(block, counted=False, meanwhile=partial(soon, trial, other_side))
        for ws in opened:
            gone(ws, 1000, 1001, 1006)


@over("memory")
async def a_server_whose_peers_are_silent(trial: Trial) -> None:
    trial.bound = 0.05
    server = serving(trial.kind, keeper()[1], close_timeout=trial.bound)
    started, ready = anyio.Event(), anyio.Event()

    async def block() -> None:
        async with server:
            started.set()
            await ready.wait()
            await trial.counted(anyio.sleep, 0.003)

    async def peers() -> None:
        await started.wait()
        with suppress(OSError, anyio.EndOfStream):  # the server may be gone before
            async with dialled(server, trial.kind), dialled(server, trial.kind):
                ready.set()
                await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(peers)
        await trial.call(block, counted=False)
        group.cancel_scope.cancel()


@over("stream", "tcp")
async def a_block_that_waits(trial: Trial) -> None:
    async with shaking_hands(trial.kind) as (peer, connecting, answered):
        opened: list[WebSocket] = []
        frames: list[Frame] = []

        async def block() -> None:
            async with connecting as ws:
                opened.append(ws)
                await trial.counted(ws.receive)

        async def other_side() -> None:
            await answered.wait()
            if not trial.cancelled:
                await say(peer, b"the message")
            await read_all(peer, frames)

        outcome = await trial.call(block, counted=False, meanwhile=partial(soon, trial, other_side))
        for ws in opened:
            gone(ws, 1000, 1001, 1006)
            assert ws.close_info is not None
            assert outcome.cancelled or ws.close_info.code == 1000
            if ws.close_info.code == 1001:
                assert bytes(frames[-1].data) == b"\x03\xe9"
            elif ws.close_info.code == 1006:  # the cancellation came when the message was here, before the Close
                assert ws.stats.messages_received


# Opening, with a server of ours at the other end


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def in_order(server: Server, kind: str) -> None:
    """It serves, and knows of no other connection."""
    async with dialling(server, kind) as ws:
        await ws.send("hello")
        assert await ws.receive() == "hello"
    await until(lambda: not server.connections)


async def visit(connecting: connect) -> None:
    async with connecting as ws:
        await ws.send("hello")
        assert await ws.receive() == "hello"


@over(*SERVERS)
async def a_whole_block(trial: Trial) -> None:
    async with serving(trial.kind, echo) as server:
        await trial.call(visit, dialling(server, trial.kind))
        await in_order(server, trial.kind)


@over(*SERVERS)
async def a_whole_block_with_compression(trial: Trial) -> None:
    async with serving(trial.kind, echo, **DEFLATE) as server:
        await trial.call(visit, dialling(server, trial.kind, **DEFLATE))
        await in_order(server, trial.kind)
        async with dialling(server, trial.kind, **DEFLATE) as ws:
            assert ws.response.headers["Sec-WebSocket-Extensions"].startswith("permessage-deflate")


@over("tcp", "tls")
async def a_whole_block_without_time_limits(trial: Trial) -> None:
    async with serving(trial.kind, echo) as server:
        await trial.call(visit, dialling(server, trial.kind, open_timeout=None, close_timeout=None))
        await in_order(server, trial.kind)


@over("tcp", "tls")
async def a_whole_block_with_happy_eyeballs(trial: Trial) -> None:
    async with serving(trial.kind, echo) as server:

        async def getaddrinfo(*_: object, **__: object) -> list[Any]:
            await checkpoint()
            hosts = ["127.0.0.2", "127.0.0.1", "127.0.0.3"]  # nobody listens on the first
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, server.port)) for host in hosts]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(anyio_ws.transports.connecting, "getaddrinfo", getaddrinfo)
            await trial.call(visit, dialling(server, trial.kind))
        await in_order(server, trial.kind)


@over("stream")
async def a_whole_block_of_accept(trial: Trial) -> None:
    near, far = pipe()
    async with raw_end(partial(StreamTransport, far), is_client=True) as peer:

        async def block() -> None:
            async with accept(near, **OPTIONS) as ws:
                await ws.send("hello")
                await ws.receive()

        async def client() -> None:
            await peer.send(UPGRADE)
            try:
                await head(peer)
            except anyio.EndOfStream:
                return
            await say(peer, b"hello")
            await read_all(peer, [])

        await trial.call(block, meanwhile=client)
        await peer.receive_eof()


@over("stream")
async def a_whole_block_of_accept_with_compression(trial: Trial) -> None:
    near, far = pipe()
    (payload,) = compressed(b"hello " * 50)
    frames: list[Frame] = []
    async with raw_end(partial(StreamTransport, far), is_client=True) as peer:
        with_extensions(peer, DEFLATE)

        async def block() -> None:
            async with accept(near, **OPTIONS, **DEFLATE) as ws:
                await ws.send(await ws.receive())

        async def client() -> None:
            await peer.send(UPGRADE[:-2] + EXTENSIONS.encode() + b"\r\n\r\n")
            try:
                await head(peer)
            except anyio.EndOfStream:
                return
            await peer.send_frame(Opcode.TEXT | RSV1, payload)
            await read_all(peer, frames)

        outcome = await trial.call(block, meanwhile=client)
        await peer.receive_eof()
        assert not outcome.finished or bytes(frames[0].data) == b"hello " * 50


@over("stream")
async def a_whole_block_of_connect_over_a_stream(trial: Trial) -> None:
    async with shaking_hands(trial.kind) as (peer, connecting, answered):

        async def block() -> None:
            async with connecting as ws:
                await ws.receive()

        async def server() -> None:
            await answered.wait()
            if not trial.cancelled:
                await say(peer, b"hello")
            await read_all(peer, [])

        await trial.call(block, meanwhile=partial(soon, trial, server))
        await peer.receive_eof()


# Servers


class Visitors:
    """Two clients of a server that comes, and may go before they have arrived.

    Attributes:
        arrived: when both have, or cannot.
        left: when they have left, too.
        codes: what the Close said that each got; None if there was none.
        frames: what came before it, for each.
    """

    def __init__(self, kind: str) -> None:
        self.arrived = anyio.Event()
        self.codes: list[int | None] = []
        self.frames: list[list[Frame]] = []
        self._kind = kind
        self.server: Server | None = None
        self._inside = 0
        self.left = anyio.Event()
        self._listening = anyio.Event()
        self._coming = 2

    def started(self, server: Server) -> None:
        """As the task_status of `serve`."""
        self.server = server
        self._listening.set()

    def __len__(self) -> int:
        """How many have arrived."""
        return self._inside

    def never(self) -> None:
        """There is no server, or not any more."""
        self._listening.set()

    async def come(self) -> None:
        await self._listening.wait()
        async with anyio.create_task_group() as group:
            for _ in range(self._coming):
                group.start_soon(self._one)
        self.left.set()

    async def _one(self) -> None:
        frames: list[Frame] = []
        try:
            if self.server is not None:
                async with dialled(self.server, self._kind) as peer:
                    self._inside += 1
                    self._here()
                    await say(peer, b"hello")
                    await read_all(peer, frames)
                    await peer.receive_eof()
                    code = Close.parse(frames.pop().data).code if frames and frames[-1].opcode is Opcode.CLOSE else None
                    self.codes.append(code)
                    self.frames.append(frames)
        except (OSError, anyio.EndOfStream):
            pass  # the server was gone before it had come in
        finally:
            self._here()

    def _here(self) -> None:
        self._coming -= 1
        if self._coming <= 0:
            self.arrived.set()


@over(*SERVERS)
async def a_server_that_is_entered(trial: Trial) -> None:
    server = serving(trial.kind, echo)

    async def block() -> None:
        await trial.counted(server.__aenter__)
        await server.__aexit__(None, None, None)

    await trial.call(block, counted=False)


@over(*SERVERS)
async def a_server_that_is_left(trial: Trial) -> None:
    visitors = Visitors(trial.kind)

    async def block() -> None:
        server = serving(trial.kind, keeper()[1])
        try:
            await server.__aenter__()
            try:
                visitors.started(server)
                await visitors.arrived.wait()
                await until(lambda: len(server.connections) == len(visitors))
            finally:
                await trial.counted(server.__aexit__, None, None, None)
        finally:
            visitors.never()

    await trial.call(block, counted=False, meanwhile=visitors.come)
    assert set(visitors.codes) <= {1001}


@over(*SERVERS)
async def a_server_that_waits(trial: Trial) -> None:
    visitors = Visitors(trial.kind)
    released = anyio.Event()

    async def block() -> None:
        try:
            async with serving(trial.kind, keeper()[1]) as server:
                visitors.started(server)
                await visitors.arrived.wait()
                await trial.counted(released.wait)
        finally:
            visitors.never()

    async def meanwhile() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(visitors.come)
            await visitors.arrived.wait()
            await settle()
            released.set()

    await trial.call(block, counted=False, meanwhile=meanwhile)
    assert set(visitors.codes) <= {1001}


@over(*SERVERS)
async def a_handler(trial: Trial) -> None:
    visitors = Visitors(trial.kind)
    handled: list[WebSocket] = []

    async def converse(ws: WebSocket) -> None:
        await ws.send(await ws.receive())
        await anyio.sleep(0.001)

    async def handler(ws: WebSocket) -> None:
        handled.append(ws)
        await trial.counted(converse, ws)

    async def block() -> None:
        try:
            async with serving(trial.kind, handler) as server:
                visitors.started(server)
                await visitors.left.wait()
        finally:
            visitors.never()

    await trial.call(block, counted=False, meanwhile=visitors.come)
    assert set(visitors.codes) <= {1000, 1001}
    for ws in handled:
        nobody_waits(ws)
        assert ws._core.gone
    for frames in visitors.frames:
        assert messages(frames) in ([b"hello"], [])


@over(*SERVERS)
async def process_request(trial: Trial) -> None:
    visitors = Visitors(trial.kind)

    async def think(_: object) -> None:
        await trial.counted(anyio.sleep, 0.001)

    async def block() -> None:
        try:
            async with serving(trial.kind, echo, process_request=think) as server:
                visitors.started(server)
                await visitors.arrived.wait()
        finally:
            visitors.never()

    await trial.call(block, counted=False, meanwhile=visitors.come)
    assert set(visitors.codes) <= {1001, None}


@over("tcp", "tls")
async def serve_until_drained(trial: Trial) -> None:
    visitors = Visitors(trial.kind)

    async def run() -> None:
        ssl = contexts()[0] if trial.kind == "tls" else None
        try:
            await serve(keeper()[1], "127.0.0.1", 0, task_status=visitors, ssl=ssl, **OPTIONS)
        finally:
            visitors.never()

    async def meanwhile() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(visitors.come)
            await visitors.arrived.wait()
            if visitors.server is not None:
                await visitors.server.drain(grace=0)

    await trial.call(run, meanwhile=meanwhile)
    assert set(visitors.codes) <= {1001}


@over(*SERVERS)
async def drain(trial: Trial) -> None:
    visitors = Visitors(trial.kind)
    async with serving(trial.kind, keeper()[1]) as server, anyio.create_task_group() as group:
        visitors.started(server)
        group.start_soon(visitors.come)
        await visitors.arrived.wait()
        await trial.call(partial(server.drain, 4000, grace=0.002))
        with pytest.raises((HandshakeError, OSError)):
            await visit(dialling(server, trial.kind))
        await server.wait_closed()
        assert not server.connections
    assert visitors.codes == [4000, 4000]


@over(*SERVERS)
async def wait_closed_of_a_server(trial: Trial) -> None:
    async with serving(trial.kind, echo) as server:

        async def end() -> None:
            if not trial.cancelled:
                await server.drain()

        outcome = await trial.call(server.wait_closed, meanwhile=end)
        if outcome.cancelled and not server._attendants.draining:
            await in_order(server, trial.kind)
