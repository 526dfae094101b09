"""Promise 5: a violation of the protocol is an event in order, and what the peer is told about each."""

import anyio
import pytest

from anyio_ws import ConnectionClosedError, ProtocolError
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.testing import RawFrame, raw_peer
from support.tools import Call, both_roles, fill, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

KEY = b"\x37\xfa\x21\x3d"


def raw(role: str, first: int, payload: bytes = b"", length: bytes | None = None, masked: bool | None = None) -> bytes:
    """A frame from this role with any first byte, any encoding of the length, masked as it should be unless told."""
    if length is None:
        length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2)
    if role == "client" if masked is None else masked:
        payload = bytes(byte ^ KEY[i & 3] for i, byte in enumerate(payload))
        return bytes([first, length[0] | 0x80]) + length[1:] + KEY + payload
    return bytes([first]) + length + payload


RSV = "frame with RSV bits {}, expected 000 as no extension defines them"
RESERVED = "frame with reserved opcode {}, expected 0x0 to 0x2 or 0x8 to 0xa"
CODE = "Close frame with code {}, expected 1000-1003, 1007-1014 or 3000-4999"
LONG = "{} frame with a payload of more than 125 bytes, expected at most 125"
WHOLE = "fragmented {} frame, expected control frames to be whole"
INSIDE = "{} frame inside a fragmented message, expected continuation"
ORPHAN = "continuation frame outside a message, expected text or binary"
SHORTEST = "payload length {} encoded in {} bits, expected the shortest encoding"
START = "text message is not UTF-8: invalid start byte at byte {}"
CONTINUATION_BYTE = "text message is not UTF-8: invalid continuation byte at byte {}"
BIG = "message of {} bytes exceeds max_size=1,000"

# What the peer sends after a fragmented message of "ok" has been received; max_size is 1000.
# Each: what it is, the frames as arguments of raw(), the close code and the reason.
VECTORS = [
    ("rsv1", [(0xC1, b"x")], 1002, RSV.format("100")),
    ("rsv2", [(0xA1, b"x")], 1002, RSV.format("010")),
    ("rsv3", [(0x91, b"x")], 1002, RSV.format("001")),
    ("all rsv bits on a ping", [(0xF9, b"x")], 1002, RSV.format("111")),
    ("rsv1 on a continuation", [(0x01, b"x"), (0xC0, b"x")], 1002, RSV.format("100")),
    ("reserved data opcode 3", [(0x83, b"x")], 1002, RESERVED.format("0x3")),
    ("reserved data opcode 7", [(0x87, b"")], 1002, RESERVED.format("0x7")),
    ("reserved control opcode 11", [(0x8B, b"")], 1002, RESERVED.format("0xb")),
    ("reserved control opcode 15", [(0x8F, b"x")], 1002, RESERVED.format("0xf")),
    ("fragmented ping", [(0x09, b"x")], 1002, WHOLE.format("ping")),
    ("fragmented pong", [(0x0A, b"x")], 1002, WHOLE.format("pong")),
    ("fragmented close", [(0x08, b"\x03\xe8")], 1002, WHOLE.format("close")),
    ("ping of 126 bytes", [(0x89, b"x" * 126)], 1002, LONG.format("ping")),
    ("pong of 126 bytes", [(0x8A, b"x" * 126)], 1002, LONG.format("pong")),
    ("close of 126 bytes", [(0x88, b"\x03\xe8" + b"x" * 124)], 1002, LONG.format("close")),
    ("continuation without a start", [(0x80, b"x")], 1002, ORPHAN),
    ("unfinished continuation without a start", [(0x00, b"x")], 1002, ORPHAN),
    ("text inside a message", [(0x01, b"a"), (0x81, b"b")], 1002, INSIDE.format("text")),
    ("binary inside a message", [(0x02, b"a"), (0x82, b"b")], 1002, INSIDE.format("binary")),
    ("a start inside a message", [(0x01, b"a"), (0x01, b"b")], 1002, INSIDE.format("text")),
    ("length 125 in 16 bits", [(0x82, b"x" * 125, b"\x7e\x00\x7d")], 1002, SHORTEST.format(125, 16)),
    ("length 0 in 16 bits", [(0x82, b"", b"\x7e\x00\x00")], 1002, SHORTEST.format(0, 16)),
    ("length 5 in 64 bits", [(0x82, b"x" * 5, b"\x7f" + (5).to_bytes(8))], 1002, SHORTEST.format(5, 64)),
    ("length 65535 in 64 bits", [(0x82, b"", b"\x7f" + (65535).to_bytes(8))], 1002, SHORTEST.format("65,535", 64)),
    (
        "length of 64 bits",
        [(0x82, b"", b"\x7f" + b"\x80" + bytes(7))],
        1002,
        "payload length 9,223,372,036,854,775,808, expected less than 2**63",
    ),
    (
        "close of one byte",
        [(0x88, b"\x03")],
        1002,
        "Close frame with a payload of 1 byte, expected none or a close code of 2 bytes",
    ),
    ("close code 0", [(0x88, b"\x00\x00")], 1002, CODE.format(0)),
    ("close code 999", [(0x88, b"\x03\xe7")], 1002, CODE.format(999)),
    ("close code 1004", [(0x88, b"\x03\xec")], 1002, CODE.format(1004)),
    ("close code 1005", [(0x88, b"\x03\xed")], 1002, CODE.format(1005)),
    ("close code 1006", [(0x88, b"\x03\xee")], 1002, CODE.format(1006)),
    ("close code 1015", [(0x88, b"\x03\xf7")], 1002, CODE.format(1015)),
    ("close code 2999", [(0x88, b"\x0b\xb7")], 1002, CODE.format(2999)),
    ("close code 5000", [(0x88, b"\x13\x88")], 1002, CODE.format(5000)),
    (
        "close reason not UTF-8",
        [(0x88, b"\x03\xe8\xff")],
        1007,
        "close reason is not UTF-8: invalid start byte at byte 0",
    ),
    ("text not UTF-8", [(0x81, b"abc\xff")], 1007, START.format(3)),
    ("text with a surrogate", [(0x81, b"\xed\xa0\x80")], 1007, CONTINUATION_BYTE.format(0)),
    ("overlong text", [(0x81, b"\xc0\xaf")], 1007, START.format(0)),
    ("text beyond U+10FFFF", [(0x81, b"\xf4\x90\x80\x80")], 1007, CONTINUATION_BYTE.format(0)),
    (
        "text cut in a character",
        [(0x81, b"\xe2\x82")],
        1007,
        "text message is not UTF-8: unexpected end of data at byte 0",
    ),
    ("fragmented text not UTF-8", [(0x01, b"ab\xe2"), (0x00, b"\x28")], 1007, CONTINUATION_BYTE.format(2)),
    (
        "fragmented text cut in a character",
        [(0x01, b"ab\xe2"), (0x80, b"")],
        1007,
        "text message is not UTF-8: unexpected end of data at byte 2",
    ),
    ("message too big", [(0x82, b"x" * 1001)], 1009, BIG.format("1,001")),
    ("announced too big", [(0x82, b"", b"\x7f" + (2**40).to_bytes(8))], 1009, BIG.format(f"{2**40:,}")),
    ("fragments too big", [(0x02, b"x" * 600), (0x00, b"x" * 401)], 1009, BIG.format("at least 1,001")),
]


def close_frame(code: int, reason: str) -> RawFrame:
    return RawFrame(CLOSE, code.to_bytes(2) + reason.encode()[:123])


@both_roles
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize(("frames", "code", "reason"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
async def test_the_close_that_a_violation_gets(role, frames, code, reason, split):
    data = b"".join(raw(role, *frame) for frame in frames)
    async with raw_peer(role, max_size=1000) as (peer, ws):
        await peer.send(raw(role, 0x01, b"o") + raw(role, 0x80, b"k"))
        assert await ws.receive() == "ok"
        size = 1 + len(data) // 50 if split else len(data)
        for i in range(0, len(data), size):
            await peer.send(data[i : i + size])
            if split:
                await settle()
        await peer.send(raw(role, 0x81, b"never read"))
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        info = ws.close_info
        assert caught.value.close_info is info
        assert isinstance(info.cause, ProtocolError)
        assert (str(info.cause), info.cause.close_code) == (reason, code)
        assert caught.value.__cause__ is info.cause
        assert (info.code, info.initiator, info.clean) == (code, "local", False)
        assert reason.startswith(info.reason)
        assert await peer.receive_frame() == close_frame(code, reason)
        assert await peer.receive_eof() == b""


@pytest.mark.parametrize("opcode", [CONT, TEXT, BINARY, CLOSE, PING, PONG])
async def test_an_unmasked_frame_from_a_client(opcode):
    async with raw_peer("client") as (peer, ws):
        await peer.send_frame(opcode, b"", masked=False)
        name = opcode.name.lower()
        reason = f"unmasked {name} frame from the client, expected a masked one"
        assert await peer.receive_frame() == close_frame(1002, reason)
        assert ws.close_info.code == 1002


@pytest.mark.parametrize("opcode", [CONT, TEXT, BINARY, CLOSE, PING, PONG])
async def test_a_masked_frame_from_a_server(opcode):
    async with raw_peer("server") as (peer, ws):
        await peer.send_frame(opcode, b"", masked=True)
        name = opcode.name.lower()
        reason = f"masked {name} frame from the server, expected an unmasked one"
        assert await peer.receive_frame() == close_frame(1002, reason)
        assert ws.close_info.code == 1002


@both_roles
async def test_without_a_limit_a_large_message_passes(role):
    async with raw_peer(role, max_size=None) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, peer.send_frame, BINARY, b"x" * 2_000_000)
        assert len(await ws.receive()) == 2_000_000
        await call.wait()


async def test_a_message_of_exactly_max_size_passes():
    async with raw_peer(max_size=1000) as (peer, ws):
        await peer.send_frame(BINARY, b"x" * 1000)
        assert await ws.receive() == b"x" * 1000


# The order of events

VIOLATION = encode_frame(3, b"", KEY)


def text(message: str) -> bytes:
    return encode_frame(TEXT, message, KEY)


async def test_messages_before_a_violation_are_delivered_their_replies_go_out_then_the_close():
    async with raw_peer() as (peer, ws):
        await peer.send(text("1") + text("2") + VIOLATION + text("never read"))
        for i in ("1", "2"):
            assert await ws.receive() == i
            await ws.send(f"reply {i}")
        with pytest.raises(ConnectionClosedError):
            await ws.receive()
        assert await peer.receive_frame() == RawFrame(TEXT, b"reply 1")
        assert await peer.receive_frame() == RawFrame(TEXT, b"reply 2")
        assert await peer.receive_frame() == close_frame(1002, RESERVED.format("0x3"))


async def test_with_an_empty_inbox_the_close_goes_out_at_once():
    async with raw_peer() as (peer, ws):
        await peer.send(VIOLATION)
        await settle()
        assert ws.close_info.code == 1002
        assert (await peer.receive_frame()).opcode == CLOSE
        with pytest.raises(ConnectionClosedError):
            await ws.send("late")


async def test_a_waiting_receiver_wakes_at_once():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.receive)
        await settle()
        await peer.send(VIOLATION)
        with pytest.raises(ConnectionClosedError):
            await call.wait()


async def test_a_message_and_a_violation_in_one_chunk_reach_a_waiting_receiver_in_order():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.receive)
        await settle()
        await peer.send(text("1") + VIOLATION)
        assert await call.wait() == "1"
        await ws.send("reply")
        with pytest.raises(ConnectionClosedError):
            await ws.receive()
        assert await peer.receive_frame() == RawFrame(TEXT, b"reply")
        assert (await peer.receive_frame()).opcode == CLOSE


async def test_a_ping_before_a_violation_is_answered():
    async with raw_peer() as (peer, _ws):
        await peer.send(encode_frame(PING, b"1", KEY) + VIOLATION + encode_frame(PING, b"2", KEY))
        assert await peer.receive_frame() == RawFrame(PONG, b"1")
        assert (await peer.receive_frame()).opcode == CLOSE
        assert await peer.receive_eof() == b""


@pytest.mark.virtual_time
@pytest.mark.parametrize(("close_timeout", "bound"), [(10, 1), (None, 1), (0.5, 0.5)])
async def test_if_nobody_receives_the_close_goes_out_after_a_bound(close_timeout, bound):
    async with raw_peer(close_timeout=close_timeout) as (peer, ws):
        await peer.send(text("1") + VIOLATION)
        start = anyio.current_time()
        assert (await peer.receive_frame()).opcode == CLOSE
        assert anyio.current_time() - start == pytest.approx(bound)
        assert await ws.receive() == "1"
        with pytest.raises(ConnectionClosedError):
            await ws.receive()


@pytest.mark.virtual_time
async def test_while_messages_before_a_violation_wait_nothing_is_read():
    async with raw_peer() as (peer, ws):
        await peer.send(text("1") + VIOLATION)
        await settle()
        received = ws.stats.bytes_received
        await peer.send(text("more"))
        await settle()
        assert ws.stats.bytes_received == received
        assert await ws.receive() == "1"
        await settle()
        assert ws.stats.bytes_received == received


@pytest.mark.virtual_time
async def test_a_peer_that_does_not_hang_up_after_a_violation_is_dropped_after_a_bound():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        await peer.send(VIOLATION)
        await settle()
        start = anyio.current_time()
        await ws.aclose()
        assert anyio.current_time() - start == pytest.approx(1)
        tg.cancel_scope.cancel()


async def test_aclose_while_messages_before_a_violation_wait_says_what_was_wrong():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        await peer.send(text("1") + VIOLATION)
        await settle()
        call = Call(tg, ws.aclose)
        assert await peer.receive_frame() == close_frame(1002, RESERVED.format("0x3"))
        peer.send_eof()
        await call.wait()
        assert ws.close_info.code == 1002
        with pytest.raises(ConnectionClosedError):
            await ws.receive()  # the inbox was discarded


async def test_an_abort_while_messages_before_a_violation_wait_keeps_the_cause():
    async with raw_peer() as (peer, ws):
        await peer.send(text("1") + VIOLATION)
        await settle()
        ws.abort()
        assert (ws.close_info.code, ws.close_info.initiator) == (1002, "local")
        assert isinstance(ws.close_info.cause, ProtocolError)
        assert await ws.receive() == "1"


async def test_a_violation_behind_a_full_inbox_comes_after_all_messages():
    async with raw_peer(receive_buffer_size=100) as (peer, ws):
        await peer.send(b"".join(text(str(i)) for i in range(20)) + VIOLATION)
        for i in range(20):
            assert await ws.receive() == str(i)
            await ws.send(f"{i}")
        with pytest.raises(ConnectionClosedError):
            await ws.receive()
        for i in range(20):
            assert (await peer.receive_frame()).payload == b"%d" % i
        assert (await peer.receive_frame()).opcode == CLOSE


async def test_a_violation_that_cannot_be_reported_ends_the_connection_all_the_same():
    async with raw_peer() as (peer, ws):
        await peer.send(text("1") + VIOLATION)
        await settle()
        peer._transport.closed = True  # nobody has noticed yet
        assert await ws.receive() == "1"
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.close_info.code == 1002


async def test_a_violation_behind_a_blocked_outbox_is_reported_after_what_is_committed():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _, sent = await fill(peer, ws, tg)
        await peer.send(VIOLATION)
        await settle()
        peer.resume()
        for message in sent:
            assert (await peer.receive_frame()).payload == message
        assert (await peer.receive_frame()).opcode == CLOSE
        peer.send_eof()
