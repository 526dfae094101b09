"""What either side does to the other once both have agreed on permessage-deflate, and to a stream of its messages."""

import time
import zlib
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import cache
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_ws import ConnectionClosedError, Deflate, WebSocket
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.testing import RawPeer
from support.peers import attack, both_attackers, growth
from support.tools import Call, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode
RSV1 = 0x40
KEY = b"\x37\xfa\x21\x3d"
MIB = 2**20

# Large messages are inflated in worker threads, which take real time.
pytestmark = pytest.mark.real_time


def frame(role: str, opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return encode_frame(opcode, payload, KEY if role == "client" else None, fin)


def deflating(
    role: str, parameters: str = "", **options: Any
) -> AbstractAsyncContextManager[tuple[RawPeer, WebSocket]]:
    """An attacker with whom permessage-deflate was agreed on."""
    return attack(role, extension=f"permessage-deflate{parameters}", **{"compression": Deflate(), **options})


def compressed(*messages: bytes, level: int = 6, bits: int = 15) -> list[bytes]:
    compressor = zlib.compressobj(level, wbits=-bits)
    return [(compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for message in messages]


@cache
def bomb(mebibytes: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    mebibyte = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)  # refers to nothing before it
    return (mebibyte * mebibytes)[:-4]


@contextmanager
def within(seconds: float) -> Generator[None]:
    """Bound the time that all of it takes of the processor."""
    before = time.process_time()
    yield
    assert time.process_time() - before < seconds


async def refused(peer: RawPeer, ws: WebSocket, code: int, match: str) -> None:
    """The next receiver learns why, and so does the peer."""
    with pytest.raises(ConnectionClosedError, match=match) as caught:
        await ws.receive()
    assert (caught.value.close_info.code, caught.value.close_info.initiator) == (code, "local")
    while (received := await peer.receive_frame()).opcode != CLOSE:
        pass
    assert received.payload[:2] == code.to_bytes(2)


# Bombs


@both_attackers
async def test_a_bomb_in_fragments_is_refused_at_max_size(role: str) -> None:
    payload = bomb(900)
    fragments = [payload[start : start + 1000] for start in range(0, len(payload), 1000)]
    async with deflating(role) as (peer, ws), anyio.create_task_group() as group:
        received = Call(group, ws.receive)
        with within(5), growth() as memory:
            await peer.send(frame(role, BINARY | RSV1, b"", False))
            for fragment in fragments:
                await peer.send(frame(role, CONT, fragment, False))
            await peer.send(frame(role, CONT))
            with pytest.raises(ConnectionClosedError, match=r"1009.* after inflating exceeds max_size=1,048,576"):
                await received.wait()
            assert memory.peak < 6 * MIB


@both_attackers
async def test_a_compressed_message_in_fragments_without_end_is_refused_at_what_max_size_can_have_become(
    role: str,
) -> None:
    fragments = frame(role, CONT, bytes(100), False) * 1000
    async with deflating(role) as (peer, ws), anyio.create_task_group() as group:
        received = Call(group, ws.receive)
        await peer.send(frame(role, BINARY | RSV1, b"", False))
        with within(5), growth() as memory:
            for _ in range(30):
                await peer.send(fragments)
            with pytest.raises(ConnectionClosedError, match="1009"):
                await received.wait()
            assert memory.peak < 4 * MIB


@both_attackers
async def test_a_bomb_for_a_stream_is_refused_at_the_limit_of_the_stream(role: str) -> None:
    payload = bomb(900)
    async with deflating(role) as (peer, ws), anyio.create_task_group() as group:
        size = 0
        with within(5), growth() as memory:
            group.start_soon(peer.send_frame, BINARY | RSV1, payload)
            with pytest.raises(ConnectionClosedError, match=r"1009.*exceeds max_size=1,048,576"):
                async with ws.receive_stream(MIB) as stream:
                    async for chunk in stream:
                        size += len(chunk)
            assert memory.peak < 6 * MIB + 2 * len(payload)
        assert size <= MIB
        group.cancel_scope.cancel()


@both_attackers
@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize(
    "block", [b"\x00\x00\x00\xff\xff", b"\x02\x08\x20\x80\x00"], ids=["stored", "four-with-fixed-codes"]
)
async def test_a_mebibyte_of_empty_blocks_costs_its_bytes(role: str, takeover: bool, block: bytes) -> None:
    flag = "" if takeover else f"; {role}_no_context_takeover"
    payload = block * (MIB // len(block)) + b"\x00"
    async with deflating(role, flag) as (peer, ws):
        with within(3), growth() as memory:
            await peer.send_frame(BINARY | RSV1, payload)
            assert await ws.receive() == b""
            assert memory.peak < 5 * MIB
        assert ws.close_info is None


@both_attackers
@pytest.mark.parametrize("in_fragments", [False, True])
async def test_streams_of_two_bytes_are_refused_also_byte_by_byte(role: str, in_fragments: bool) -> None:
    payload = b"\x03\x00" * 10_000
    data = frame(role, BINARY | RSV1, payload)
    if in_fragments:
        fragments = b"".join(frame(role, CONT, bytes([byte]), False) for byte in payload)
        data = frame(role, BINARY | RSV1, b"", False) + fragments + frame(role, CONT)
    async with deflating(role) as (peer, ws), anyio.create_task_group() as group:
        with within(3), growth() as memory:
            group.start_soon(peer.send, data)
            await refused(peer, ws, 1002, "too many DEFLATE blocks that have BFINAL set")
            assert memory.peak < 2 * MIB
        group.cancel_scope.cancel()


@both_attackers
@pytest.mark.parametrize("policy", ["backpressure", "drop_oldest", "drop_newest", "latest", "close"])
@pytest.mark.parametrize("size", [100_000, 900_000], ids=["inline", "in-threads"])
async def test_what_expands_a_thousandfold_is_bounded_while_nobody_receives(role: str, policy: Any, size: int) -> None:
    (payload,) = compressed(bytes(size), level=9)
    chunk = frame(role, BINARY | RSV1, payload) * 20  # each message begins with an empty window, and refers to no other
    async with deflating(role, overflow=policy) as (peer, ws), anyio.create_task_group() as group:
        with within(5), growth() as memory, anyio.fail_after(20):
            group.start_soon(peer.send, chunk * 2 + frame(role, PING))
            if policy == "backpressure":
                while not (ws._messages and ws._core.inbox.paused):
                    await checkpoint()
                await settle()
            else:
                answer = await peer.receive_frame()
                assert answer.opcode == (CLOSE if policy == "close" else PONG)
                assert policy == "close" or ws.stats.messages_received == 40
            # The inbox, a message that is being inflated, and what was decoded before the policy looked at it.
            assert sum(map(len, ws._messages)) <= 2 * size
            assert memory.peak < 6 * size + MIB
        assert (ws.close_info is not None and ws.close_info.code == 1008) == (policy == "close")
        group.cancel_scope.cancel()


# What is not as RFC 7692 has it


@both_attackers
@pytest.mark.parametrize("number", [0, 1], ids=["at-once", "behind-another"])
async def test_a_window_that_was_to_be_empty_is(role: str, number: int) -> None:
    messages = [*(f"{n} ".encode() * 300 for n in range(number)), bytes(range(256)) * 2, bytes(range(256)) * 2]
    payloads = compressed(*messages)
    async with deflating(role, f"; {role}_no_context_takeover") as (peer, ws):
        with within(2):
            await peer.send_frame(BINARY | RSV1, payloads[0])
            assert await ws.receive() == messages[0]
            await peer.send_frame(BINARY | RSV1, payloads[-1])
            await refused(peer, ws, 1002, "invalid distance too far back")


@both_attackers
async def test_a_window_is_no_larger_than_was_agreed(role: str) -> None:
    noise = bytes(zlib.crc32(bytes([number % 251, number // 251])) & 0xFF for number in range(2000))
    first, second = compressed(noise, noise)
    async with deflating(role, f"; {role}_max_window_bits=9") as (peer, ws):
        with within(2):
            await peer.send_frame(BINARY | RSV1, first)
            assert await ws.receive() == noise
            await peer.send_frame(BINARY | RSV1, second)
            await refused(peer, ws, 1002, "invalid distance too far back")


INVALID = {"a reserved block type": b"\x07", "wrong length": b"\x00\x05\x00\xff\xff", "noise": b"\xff" * 20}


@both_attackers
@pytest.mark.parametrize("payload", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize("in_fragments", [False, True])
async def test_what_is_not_deflate_is_refused(role: str, payload: bytes, as_stream: bool, in_fragments: bool) -> None:
    data = frame(role, TEXT | RSV1, payload)
    if in_fragments:
        fragments = [frame(role, CONT, bytes([byte]), False) for byte in payload]
        data = b"".join([frame(role, TEXT | RSV1, b"", False), *fragments, frame(role, CONT)])
    async with deflating(role) as (peer, ws):
        await peer.send(frame(role, TEXT, b"before") + data)
        assert await ws.receive() == "before"
        if as_stream:
            with pytest.raises(ConnectionClosedError, match=r"1002.*not valid DEFLATE"):
                async with ws.receive_stream() as stream:
                    assert [chunk async for chunk in stream] == []
        else:
            await refused(peer, ws, 1002, "not valid DEFLATE")


@both_attackers
@pytest.mark.parametrize("takeover", [True, False])
async def test_a_tail_that_was_to_be_cut_off_is_found_in_the_next_message_if_not_in_this_one(
    role: str, takeover: bool
) -> None:
    flag = "" if takeover else f"; {role}_no_context_takeover"
    first, second = compressed(b"one " * 100, b"two " * 100)
    async with deflating(role, flag) as (peer, ws):
        await peer.send_frame(TEXT | RSV1, first + b"\x00\x00\xff\xff")
        if takeover:  # the inflater is in the middle of a block, for all that anybody can see
            assert await ws.receive() == "one " * 100
            await peer.send_frame(TEXT | RSV1, second)
        await refused(peer, ws, 1002, "invalid stored block lengths")


@both_attackers
@pytest.mark.parametrize("missing", [1, 2, 3])
async def test_a_message_that_is_cut_off_is_refused(role: str, missing: int) -> None:
    (payload,) = compressed(b"".join(b"%d " % number for number in range(200)))
    async with deflating(role, f"; {role}_no_context_takeover") as (peer, ws):
        await peer.send_frame(BINARY | RSV1, payload[: -1 - missing])
        await refused(peer, ws, 1002, "DEFLATE")


@both_attackers
@pytest.mark.parametrize("opcode", [CONT, CLOSE, PING, PONG])
@pytest.mark.parametrize("agreed", [True, False])
async def test_the_bit_is_for_the_first_frame_of_a_message(role: str, opcode: int, agreed: bool) -> None:
    (payload,) = compressed(b"message")
    async with deflating(role) if agreed else attack(role) as (peer, ws):
        await peer.send_frame(BINARY | RSV1 if agreed else BINARY, payload, fin=False)
        await peer.send_frame(opcode | RSV1, b"")
        await refused(peer, ws, 1002, "RSV")


@both_attackers
@pytest.mark.parametrize("bits", [0x20, 0x10, 0x60, 0x50, 0x70])
async def test_no_other_bit_was_agreed_on(role: str, bits: int) -> None:
    async with deflating(role) as (peer, ws):
        await peer.send_frame(BINARY | bits, b"\x00")
        await refused(peer, ws, 1002, "RSV bits")


# Streams

BAD_TEXTS = {
    "no-lead": b"ok\x80",
    "overlong": b"ok\xc0\xaf",
    "overlong-of-three": b"ok\xe0\x80\xaf",
    "surrogate": b"ok\xed\xa0\x80",
    "beyond-unicode": b"ok\xf4\x90\x80\x80",
    "cut-off": "ok☃".encode()[:-1],
    "cut-off-by-ascii": b"ok\xf0\x9f\x98.",
    "never": b"ok\xff",
}


@both_attackers
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
async def test_a_stream_that_is_no_text_is_refused_wherever_it_is_split(role: str, text: bytes, compress: bool) -> None:
    payload = compressed(text)[0] if compress else text
    opcode = TEXT | RSV1 if compress else TEXT
    for cuts in [[cut] for cut in range(len(payload) + 1)] + [list(range(len(payload) + 1))]:
        pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        async with deflating(role) as (peer, ws), anyio.create_task_group() as group:
            chunks: list[Any] = []

            async def receive(ws: WebSocket = ws, chunks: list[Any] = chunks) -> None:
                async with ws.receive_stream() as stream:
                    async for chunk in stream:
                        chunks.append(chunk)

            receiving = Call(group, receive)
            for number, piece in enumerate(pieces):
                fin = number == len(pieces) - 1
                await peer.send_frame(CONT if number else opcode, piece, fin=fin)
                await settle()
            with pytest.raises(ConnectionClosedError, match=r"1007.*UTF-8"):
                await receiving.wait()
            assert "ok".startswith("".join(chunks))
            assert (await peer.receive_frame()).payload[:2] == (1007).to_bytes(2)


@both_attackers
async def test_a_stream_whose_receiver_does_not_take_it_stops_the_sender(role: str) -> None:
    async with attack(role, receive_buffer_size=10_000) as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"1", fin=False)

        async def flood() -> None:
            for _ in range(1000):
                await peer.send_frame(CONT, bytes(10_000), fin=False)

        async with ws.receive_stream():
            with growth() as memory:
                group.start_soon(flood)
                for _ in range(20):
                    await settle()
                assert memory.peak < MIB
        with pytest.raises(ConnectionClosedError, match=r"1009.*whose receiver had left"):
            await ws.receive()
        group.cancel_scope.cancel()


@both_attackers
async def test_fragments_of_a_byte_for_a_stream_that_nobody_takes_count_what_they_cost(role: str) -> None:
    fragments = frame(role, CONT, b"x", False) * 1000
    async with attack(role) as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"1", fin=False)

        async def flood() -> None:
            for _ in range(300):
                await peer.send(fragments)

        async with ws.receive_stream():
            with growth() as memory:
                group.start_soon(flood)
                for _ in range(20):
                    await settle()
                assert memory.peak < MIB
        group.cancel_scope.cancel()
