"""permessage-deflate over connections: what is compressed, what it costs, and in what order things happen.

Most of it in real time: a virtual clock would run while a worker thread is at work.
"""

import gc
import json
import random
import tracemalloc
import zlib
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws import ConnectionClosedError, ConnectionClosedOK, Deflate, Server, WebSocket, connect
from anyio_ws.protocol import Opcode, PerMessageDeflate, encode_close, encode_frame
from anyio_ws.testing import RawFrame, RawPeer, connected_pair
from support.peers import attack
from support.tools import Call, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode
RSV1 = 0x40
MIB = 2**20

PRESETS = {"small": Deflate.small(), "balanced": Deflate.balanced(), "best": Deflate.best()}
every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
both_roles = pytest.mark.parametrize("role", ["client", "server"], ids=["peer-is-client", "peer-is-server"])


def compressed(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def peer_with(role: str, **options: Any) -> Any:
    """A raw peer that has agreed on permessage-deflate, and our end."""
    return attack(role, extension="permessage-deflate", **{"compression": Deflate(), **options})


async def send_compressed(peer: RawPeer, data: bytes, opcode: int = BINARY, **options: Any) -> None:
    await peer.send_frame(opcode | RSV1, compressed(data), **options)


@cache
def bomb(mebibytes: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    mebibyte = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return (mebibyte * mebibytes)[:-4]


# Round trips

messages = st.lists(st.text(max_size=300) | st.binary(max_size=300) | st.sampled_from(["abc" * 5000, b"x" * 100_000]))


@pytest.mark.real_time
@every_preset
@given(there=messages, back=messages)
async def test_messages_arrive_as_they_were_sent(preset: Deflate, there: list[Any], back: list[Any]) -> None:
    async with connected_pair(compression=preset, receive_buffer_size=MIB) as ends:
        for sender, receiver, sent in ((*ends, there), (*ends[::-1], back)):
            for message in sent:
                await sender.send(message)
            assert [await receiver.receive() for _ in sent] == sent


@pytest.mark.real_time
@every_preset
async def test_an_echo_over_a_socket_whatever_the_size(preset: Deflate) -> None:
    async def echo(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(message)

    document = json.dumps([{"id": i, "name": f"name {i % 97}"} for i in range(40_000)])
    sent = ["", b"", "text" * 50, document, random.randbytes(3 * MIB), b"ab" * MIB, "é" * 700_000, "after"]
    async with (
        Server(echo, "127.0.0.1", 0, compression=preset, max_size=None) as server,
        connect(server.url, compression=preset, max_size=None) as ws,
        anyio.create_task_group() as group,
    ):
        group.start_soon(ws.send_many, sent)
        for message in sent:
            assert await ws.receive() == message
        assert ws.stats.messages_received == ws.stats.messages_sent == len(sent)


@pytest.mark.real_time
async def test_without_it_on_both_sides_nothing_is_compressed() -> None:
    async def echo(ws: WebSocket) -> None:
        await ws.send(await ws.receive(), compress=True)

    for server_has, client_has in ((None, "deflate"), ("deflate", None)):
        async with (
            Server(echo, "127.0.0.1", 0, compression=server_has) as server,
            connect(server.url, compression=client_has) as ws,
        ):
            assert "Sec-WebSocket-Extensions" not in ws.response.headers
            await ws.send("x" * 1000, compress=True)
            assert await ws.receive() == "x" * 1000
            assert ws.stats.bytes_received > 1000


# What is compressed


@pytest.mark.real_time
@both_roles
async def test_what_is_compressed(role: str) -> None:
    async with peer_with(role, compression=Deflate(threshold=100)) as (peer, ws):
        inflater = zlib.decompressobj(-15)
        cases = [(99, None, 0), (100, None, 4), (99, True, 4), (1, True, 4), (5000, False, 0), (0, None, 0)]
        for size, compress, rsv in cases:
            for item in ("x" * size, b"x" * size):
                await ws.send(item, compress=compress)
                frame = await peer.receive_frame()
                assert frame.rsv == rsv
                payload = inflater.decompress(frame.payload + b"\0\0\xff\xff") if rsv else frame.payload
                assert payload == b"x" * size
                assert frame.opcode == (TEXT if isinstance(item, str) else BINARY)
        await ws.send_many(["x" * 200, "y"])
        assert [(await peer.receive_frame()).rsv for _ in range(2)] == [4, 0]
        await ws.send_json(["x" * 200])
        assert (await peer.receive_frame()).rsv == 4


@pytest.mark.real_time
@both_roles
async def test_a_large_message_leaves_in_fragments_of_which_the_first_has_the_bit(role: str) -> None:
    message = random.randbytes(3 * MIB)
    async with peer_with(role) as (peer, ws), anyio.create_task_group() as group:
        group.start_soon(ws.send, message)
        frames = [await peer.receive_frame()]
        while not frames[-1].fin:
            frames.append(await peer.receive_frame())
        assert [frame.rsv for frame in frames] == [4, *[0] * (len(frames) - 1)]
        payload = b"".join(frame.payload for frame in frames)
        assert zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff") == message


# Large messages: worker threads


@pytest.mark.real_time
@both_roles
async def test_messages_keep_their_order_around_one_that_a_thread_compresses(role: str) -> None:
    async with peer_with(role) as (peer, ws), anyio.create_task_group() as group:
        for item in ("first" * 50, b"large" * MIB, "then" * 50, "last"):
            group.start_soon(ws.send, item)
            await anyio.lowlevel.checkpoint()
        inflater = zlib.decompressobj(-15)
        received: list[bytes] = []
        while len(received) < 4:
            frame = await peer.receive_frame()
            payload = inflater.decompress(frame.payload + b"\0\0\xff\xff") if frame.rsv else frame.payload
            received.append(payload)
        assert sorted(received) == sorted([b"first" * 50, b"large" * MIB, b"then" * 50, b"last"])
        assert ws.stats.messages_sent == 4


@pytest.mark.real_time
@both_roles
async def test_a_send_that_is_cancelled_while_a_thread_compresses_is_sent_whole(role: str) -> None:
    async with peer_with(role) as (peer, ws), anyio.create_task_group() as group:
        sending = Call(group, ws.send, b"large" * MIB)
        while not ws._outbox.held:
            await anyio.lowlevel.checkpoint()
        sending.cancel()
        await sending._ended.wait()
        assert sending.cancelled
        await ws.send("next" * 100)
        inflater = zlib.decompressobj(-15)
        for expected in (b"large" * MIB, b"next" * 100):
            frame = await peer.receive_frame()
            assert inflater.decompress(frame.payload + b"\0\0\xff\xff") == expected


@pytest.mark.real_time
@both_roles
async def test_a_close_while_a_thread_compresses_comes_first_and_the_send_raises(role: str) -> None:
    async with peer_with(role) as (peer, ws), anyio.create_task_group() as group:
        sending = Call(group, ws.send, b"large" * MIB)
        while not ws._outbox.held:
            await anyio.lowlevel.checkpoint()
        group.start_soon(ws.aclose)
        assert (await peer.receive_frame()).opcode == CLOSE
        with pytest.raises(ConnectionClosedOK):
            await sending.wait()
        peer.close()


@pytest.mark.real_time
async def test_an_error_in_the_thread_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    async with connected_pair(compression="deflate") as (client, _server):
        monkeypatch.setattr(PerMessageDeflate, "encode", broken)
        with pytest.raises(ConnectionClosedError) as caught:
            await client.send(b"large" * MIB)
        assert isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.real_time
@both_roles
async def test_messages_keep_their_order_around_one_that_a_thread_inflates(role: str) -> None:
    text = "é" * MIB
    async with peer_with(role, max_size=None) as (peer, ws):
        await peer.send_frame(TEXT, b"first")
        await send_compressed(peer, text.encode(), TEXT)
        await peer.send_frame(TEXT, b"then")
        await peer.send_frame(PING, b"after")
        await send_compressed(peer, bytes(2 * MIB))
        await peer.send_close(1000)
        assert [await ws.receive() for _ in range(4)] == ["first", text, "then", bytes(2 * MIB)]
        with pytest.raises(ConnectionClosedOK):
            await ws.receive()
        assert ws.stats.messages_received == 4
        assert await peer.receive_frame() == RawFrame(PONG, b"after")


@pytest.mark.real_time
@both_roles
async def test_what_comes_behind_a_message_in_a_thread_counts_for_the_buffer(role: str) -> None:
    async with peer_with(role, max_size=None, receive_buffer_size=1000) as (peer, ws):
        await send_compressed(peer, bytes(2 * MIB))
        for _ in range(3):
            await peer.send_frame(BINARY, bytes(800))
        while not ws._messages:
            await anyio.lowlevel.checkpoint()
        await settle()
        assert len(ws._messages) == 1
        assert [len(await ws.receive()) for _ in range(4)] == [2 * MIB, 800, 800, 800]


@pytest.mark.real_time
@both_roles
async def test_an_end_behind_a_message_in_a_thread_waits_for_it(role: str) -> None:
    async with peer_with(role, max_size=None) as (peer, ws):
        await send_compressed(peer, bytes(2 * MIB))
        peer.send_eof()
        assert len(await ws.receive()) == 2 * MIB
        with pytest.raises(ConnectionClosedError):
            await ws.receive()


@pytest.mark.real_time
@both_roles
async def test_a_connection_that_breaks_behind_a_message_in_a_thread_loses_none(role: str) -> None:
    compressor = zlib.compressobj(wbits=-15)
    async with peer_with(role, max_size=None) as (peer, ws), anyio.create_task_group() as group:
        receiving = Call(group, ws.receive)
        frames = b""
        for message in (bytes(2 * MIB), bytes(3 * MIB), b"last"):
            payload = (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            frames += encode_frame(BINARY | RSV1, payload, bytes(4) if role == "client" else None)
        await peer.send(frames)
        while ws._core.inbox._behind is None:
            await anyio.lowlevel.checkpoint()
        peer.reset()
        ws._core.poll()  # as keepalive does, which looks at the transport also while reading is paused
        assert ws.close_info is not None
        assert await receiving.wait() == bytes(2 * MIB)
        assert [await ws.receive() for _ in range(2)] == [bytes(3 * MIB), b"last"]
        with pytest.raises(ConnectionClosedError, match="1006"):
            await ws.receive()


@pytest.mark.real_time
@both_roles
@pytest.mark.parametrize("payload", [b"\xff" * 100_000, compressed(bytes(2 * MIB))], ids=["invalid", "large"])
async def test_an_end_behind_a_message_in_a_thread_that_is_refused(role: str, payload: bytes) -> None:
    async with peer_with(role) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, payload)
        while ws._core.inbox._behind is None:
            await anyio.lowlevel.checkpoint()
        peer.reset()
        ws._core.poll()
        with pytest.raises(ConnectionClosedError, match="1006"):
            await ws.receive()


@pytest.mark.real_time
@both_roles
async def test_an_end_behind_a_message_that_a_thread_found_too_large(role: str) -> None:
    async with peer_with(role) as (peer, ws):
        await send_compressed(peer, bytes(2 * MIB))
        while not ws._core.inbox.stopped:
            await anyio.lowlevel.checkpoint()
        peer.reset()
        ws._core.poll()
        with anyio.fail_after(5):
            with pytest.raises(ConnectionClosedError, match="1006"):
                await ws.receive()
            with pytest.raises(ConnectionClosedError, match="1006"):
                await ws.receive_stream().__aenter__()


@pytest.mark.real_time
@both_roles
async def test_what_was_held_back_refers_to_what_was_received_also_after_the_end(role: str) -> None:
    compressor = zlib.compressobj(wbits=-15)
    message = random.randbytes(800)
    async with peer_with(role, receive_buffer_size=1000) as (peer, ws):
        frames = b""
        for _ in range(5):
            payload = (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            frames += encode_frame(BINARY | RSV1, payload, bytes(4) if role == "client" else None)
        await peer.send(frames)
        await settle()
        assert ws._core.inbox.paused
        peer.reset()
        ws._core.poll()
        assert ws.close_info is not None
        assert [await ws.receive() for _ in range(5)] == [message] * 5


@pytest.mark.real_time
@both_roles
async def test_what_was_held_back_takes_no_more_room_after_the_end(role: str) -> None:
    frame = encode_frame(BINARY | RSV1, compressed(bytes(100_000)), bytes(4) if role == "client" else None)
    async with peer_with(role, receive_buffer_size=1000) as (peer, ws):
        await peer.send(frame * 100)
        await settle()
        peer.reset()
        ws._core.poll()
        for _ in range(100):
            assert len(ws._messages) <= 1
            assert await ws.receive() == bytes(100_000)
        with pytest.raises(ConnectionClosedError, match="1006"):
            await ws.receive()


@pytest.mark.real_time
@both_roles
async def test_a_close_of_ours_does_not_wait_for_a_message_in_a_thread(role: str) -> None:
    async with peer_with(role, max_size=None) as (peer, ws), anyio.create_task_group() as group:
        await send_compressed(peer, bytes(4 * MIB))
        while ws._core.inbox._behind is None:
            await anyio.lowlevel.checkpoint()
        closing = Call(group, ws.aclose)
        assert (await peer.receive_frame()).opcode == CLOSE
        await send_compressed(peer, b"ignored")  # and not inflated
        await peer.send_close()
        peer.close()
        await closing.wait()
        assert ws.close_info is not None
        assert ws.close_info.clean


# Errors


@pytest.mark.real_time
@both_roles
@pytest.mark.parametrize("mebibytes", [2, 900])
async def test_a_bomb_is_refused_at_max_size(role: str, mebibytes: int) -> None:
    async with peer_with(role) as (peer, ws):
        tracemalloc.start()
        try:
            await peer.send_frame(BINARY | RSV1, bomb(mebibytes))
            with pytest.raises(ConnectionClosedError, match=r"after inflating exceeds max_size=1,048,576"):
                await ws.receive()
            assert tracemalloc.get_traced_memory()[1] < 5 * MIB + 4 * len(bomb(mebibytes))
        finally:
            tracemalloc.stop()
        assert (await peer.receive_frame()).payload[:2] == (1009).to_bytes(2)


@pytest.mark.real_time
@both_roles
@pytest.mark.parametrize(
    ("opcode", "payload", "code"),
    [
        (BINARY, b"\xff\xff\xff", 1002),
        (BINARY, b"\xff" * 100_000, 1002),  # in a thread
        (TEXT, compressed(b"\xff"), 1007),
        (TEXT, compressed(b"x" * 300_000 + b"\xff"), 1007),  # in a thread
    ],
)
async def test_what_cannot_be_inflated_fails_behind_what_came_before(
    role: str, opcode: int, payload: bytes, code: int
) -> None:
    async with peer_with(role) as (peer, ws):
        await peer.send_frame(TEXT, b"before")
        await peer.send_frame(opcode | RSV1, payload)
        assert await ws.receive() == "before"
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.close_info.code == code
        assert (await peer.receive_frame()).payload[:2] == code.to_bytes(2)


@pytest.mark.real_time
@pytest.mark.parametrize("role", ["client", "server"])
async def test_without_agreement_the_bit_is_a_violation(role: str) -> None:
    async with attack(role, compression="deflate" if role == "client" else None) as (peer, ws):
        await send_compressed(peer, b"data")
        with pytest.raises(ConnectionClosedError, match="RSV bits 100"):
            await ws.receive()


# Memory


@pytest.mark.virtual_time
async def test_an_idle_connection_gives_its_compressor_back_and_goes_on() -> None:
    async with connected_pair(compression="deflate") as (client, server):
        (extension,) = client._core.connection.extensions
        assert isinstance(extension, PerMessageDeflate)
        for round_number in range(3):
            await client.send(f"some text of round {round_number}" * 10)
            assert extension._compressing.compressor is not None
            await anyio.sleep(100)
            assert extension._compressing.compressor is None
            assert await server.receive() == f"some text of round {round_number}" * 10


async def test_with_the_small_preset_idle_connections_take_hardly_more_memory() -> None:
    async def idle_size(**options: Any) -> float:
        async with AsyncExitStack() as stack:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(50):
                client, server = await stack.enter_async_context(connected_pair(**options))
                await client.send("hello " * 100)
                await server.send(await server.receive())
                await client.receive()
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        await idle_size(compression=Deflate.small())
        with_it = await idle_size(compression=Deflate.small())
        assert with_it < 1.3 * await idle_size()
    finally:
        tracemalloc.stop()


def test_a_close_payload_is_never_compressed() -> None:
    from anyio_ws.protocol import Connection

    connection = Connection(is_client=False, extensions=[PerMessageDeflate(is_client=False)])
    assert connection.send_close(1000, "x" * 120)[:1] == bytes([0x80 | CLOSE])
    assert connection.encode(CLOSE, encode_close(1000, ""))[:1] == bytes([0x80 | CLOSE])
