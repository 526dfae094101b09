"""send_stream() and receive_stream(): one message in parts."""

import logging
import tracemalloc
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import (
    ConnectionClosedError,
    ConnectionClosedOK,
    ReceiveStream,
    SendStream,
    WebSocket,
    connect,
    serve,
)
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.receive_stream import DISCARD
from anyio_ws.testing import RawFrame, RawPeer, connected_pair, raw_peer
from support.streams import join, noise, received_in_parts
from support.tools import Call, both_roles, cancelled_already, fill, jump, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode
TEXTS = ["", "a", "é", "€uro", "😀" * 7, "x" * 3000]


async def sent_in_parts(ws: WebSocket, *chunks: Any) -> None:
    async with ws.send_stream(text=isinstance(chunks[0], str)) as stream:
        for chunk in chunks:
            await stream.send(chunk)


async def closing(peer: RawPeer) -> tuple[int, bytes]:
    """The code and the reason of the Close that comes next."""
    frame = await peer.receive_frame()
    assert frame.opcode == CLOSE
    return int.from_bytes(frame.payload[:2]), frame.payload[2:]


# Sending


@both_roles
async def test_each_chunk_is_a_fragment_and_the_end_of_the_block_the_last_one(role: Any) -> None:
    async with raw_peer(role) as (peer, ws):
        async with ws.send_stream() as stream:
            for chunk in b"one", bytearray(b"two"), b"", memoryview(b"three"):
                await stream.send(chunk)
        assert [await peer.receive_frame() for _ in range(4)] == [
            RawFrame(BINARY, b"one", fin=False),
            RawFrame(CONT, b"two", fin=False),
            RawFrame(CONT, b"three", fin=False),
            RawFrame(CONT, b""),
        ]
        assert (ws.stats.messages_sent, ws.stats.frames_sent) == (1, 4)


@both_roles
async def test_a_text_goes_out_in_utf8(role: Any) -> None:
    async with raw_peer(role) as (peer, ws):
        await sent_in_parts(ws, "hé", "😀")
        assert await peer.receive_frame() == RawFrame(TEXT, "hé".encode(), fin=False)
        assert await peer.receive_frame() == RawFrame(CONT, "😀".encode(), fin=False)
        assert await peer.receive_frame() == RawFrame(CONT, b"")


@pytest.mark.parametrize("text", [True, False])
async def test_a_stream_to_which_nothing_was_sent_is_an_empty_message(text: bool) -> None:
    async with raw_peer() as (peer, ws):
        async with ws.send_stream(text=text):
            pass
        assert await peer.receive_frame() == RawFrame(TEXT if text else BINARY, b"")
        assert (ws.stats.messages_sent, ws.stats.frames_sent) == (1, 1)


@both_roles
async def test_a_large_chunk_goes_out_in_several_fragments(role: Any) -> None:
    data = bytes(range(256)) * 2500
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as group:
        group.start_soon(sent_in_parts, ws, data)
        frames = [await peer.receive_frame() for _ in range(4)]
        assert b"".join(frame.payload for frame in frames) == data
        assert [len(frame.payload) for frame in frames] == [2**18, 2**18, 640_000 - 2**19, 0]


@pytest.mark.parametrize(
    ("text", "chunk"), [(True, b"bytes"), (False, "str"), (False, 5), (False, memoryview(b"123456")[::2]), (True, None)]
)
async def test_a_chunk_of_the_wrong_kind_is_a_type_error(text: bool, chunk: Any) -> None:
    async with raw_peer() as (peer, ws):
        async with ws.send_stream(text=text) as stream:
            with pytest.raises(TypeError, match=f"got {type(chunk).__name__}"):
                await stream.send(chunk)
        assert await peer.receive_frame() == RawFrame(TEXT if text else BINARY, b"")


async def test_a_lone_surrogate_is_a_value_error() -> None:
    async with raw_peer() as (_, ws), ws.send_stream(text=True) as stream:
        with pytest.raises(ValueError, match="surrogates"):
            await stream.send("\ud800")


async def test_a_bytearray_may_be_changed_once_send_has_returned() -> None:
    async with raw_peer("server") as (peer, ws), anyio.create_task_group() as group:
        peer.pause()
        chunk = bytearray(b"1" * 20_000)
        async with ws.send_stream() as stream:
            for _ in range(2):
                await stream.send(chunk)
            chunk[:] = b"2" * len(chunk)
        peer.resume()
        frames = [await peer.receive_frame() for _ in range(3)]
        assert {bytes(frame.payload) for frame in frames} == {b"1" * 20_000, b""}
        group.cancel_scope.cancel()


@both_roles
async def test_other_messages_wait_for_the_end_of_the_block(role: Any) -> None:
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as group:
        async with ws.send_stream() as stream:
            await stream.send(b"one")
            calls = [Call(group, ws.send, "other"), Call(group, sent_in_parts, ws, "third"), Call(group, ws.flush)]
            await settle()
            assert [call.done for call in calls] == [False, False, True]
            await stream.send(b"two")
        for call in calls:
            await call.wait()
        frames = [await peer.receive_frame() for _ in range(6)]
        assert [(frame.opcode, frame.payload) for frame in frames[:3]] == [
            (BINARY, b"one"),
            (CONT, b"two"),
            (CONT, b""),
        ]
        # trio starts tasks in any order.
        assert sorted(frame.payload for frame in frames[3:]) == [b"", b"other", b"third"]


async def test_it_waits_for_its_turn() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        calls, sent = await fill(peer, ws, group)
        stream = Call(group, sent_in_parts, ws, b"stream")
        await settle()
        last = Call(group, ws.send, b"last")
        await settle()
        assert not stream.done
        peer.resume()
        for call in (*calls, stream, last):
            await call.wait()
        frames = [await peer.receive_frame() for _ in range(len(sent) + 3)]
        assert [frame.payload for frame in frames] == [*sent, b"stream", b"", b"last"]


@both_roles
async def test_control_frames_pass_between_the_fragments(role: Any) -> None:
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as group:
        async with ws.send_stream() as stream:
            await stream.send(b"one")
            ping = Call(group, ws.ping, b"ours")
            await peer.send_frame(PING, b"theirs")
            await settle()
            await stream.send(b"two")
        frames = [await peer.receive_frame() for _ in range(5)]
        assert {frame.opcode for frame in frames[1:3]} == {PING, PONG}
        assert [frame.payload for frame in frames if frame.opcode in (BINARY, CONT)] == [b"one", b"two", b""]
        await peer.send_frame(PONG, b"ours")
        await ping.wait()


async def test_send_waits_for_room_and_leaving_too() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        peer.pause()
        stream = ws.send_stream()
        await stream.__aenter__()
        await stream.send(bytes(100_000))
        call = Call(group, stream.send, bytes(50_000))
        await settle()
        assert not call.done
        call.cancel()
        await settle()
        again = Call(group, stream.send, b"after the cancellation")
        await settle()
        assert not again.done
        leaving = Call(group, stream.__aexit__, None, None, None)
        await settle()
        assert not leaving.done
        peer.resume()
        await leaving.wait()
        with pytest.raises(RuntimeError, match="inside its `async with` block"):
            await again.wait()
        data = b""
        while not (frame := await peer.receive_frame()).fin:
            data += frame.payload
        assert data == bytes(150_000)  # the chunk had been committed, so it went out whole


@pytest.mark.parametrize(("error", "code"), [(KeyError("x"), 1011), (SystemExit(), 1001)])
@both_roles
async def test_a_message_that_an_exception_cuts_off_closes_the_connection(
    role: Any, error: BaseException, code: int
) -> None:
    async with raw_peer(role) as (peer, ws):
        with pytest.raises(type(error)) as caught:
            async with ws.send_stream() as stream:
                await stream.send(b"half")
                raise error
        assert caught.value is error
        assert await peer.receive_frame() == RawFrame(BINARY, b"half", fin=False)
        assert await closing(peer) == (code, b"")
        with pytest.raises(ConnectionClosedOK):
            await ws.send("more")
        assert ws.stats.messages_sent == 0


async def test_a_message_that_a_cancellation_cuts_off_closes_the_connection() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with ws.send_stream() as stream:
                await stream.send(b"half")
                other = Call(group, ws.send, "other")
                await settle()
                scope.cancel()
                await anyio.sleep_forever()
        assert await peer.receive_frame() == RawFrame(BINARY, b"half", fin=False)
        assert await closing(peer) == (1001, b"")
        with pytest.raises(ConnectionClosedOK):
            await other.wait()


async def test_if_nothing_was_sent_an_exception_changes_nothing() -> None:
    async with raw_peer() as (peer, ws):
        with pytest.raises(KeyError):
            async with ws.send_stream() as stream:
                await stream.send(b"")
                raise KeyError
        await ws.send("next")
        assert await peer.receive_frame() == RawFrame(TEXT, b"next")


async def test_in_a_cancelled_scope_it_does_nothing() -> None:
    async with raw_peer() as (peer, ws):
        await cancelled_already(ws.send_stream().__aenter__)
        async with ws.send_stream() as stream:
            await cancelled_already(partial(stream.send, b"chunk"))
        assert await peer.receive_frame() == RawFrame(BINARY, b"")


@pytest.mark.parametrize("sent", [b"", b"half"])
async def test_when_the_connection_has_closed_send_and_leaving_raise(sent: bytes) -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_close(1000)
        with pytest.raises(ConnectionClosedOK) as caught:  # on leaving
            async with ws.send_stream() as stream:
                await stream.send(sent)
                await ws.wait_closed()
                with pytest.raises(ConnectionClosedOK):
                    await stream.send(b"more")
        assert not isinstance(caught.value, anyio.EndOfStream)
        with pytest.raises(ConnectionClosedOK):
            async with ws.send_stream():
                pytest.fail("it was entered")


async def test_a_task_closes_while_another_waits_for_room() -> None:
    async with raw_peer(close_timeout=1) as (peer, ws), anyio.create_task_group() as group:
        peer.pause()
        call = Call(group, sent_in_parts, ws, *[bytes(60_000)] * 9)
        await settle()
        waiting = Call(group, sent_in_parts, ws, b"next")
        await settle()
        ws.abort()
        for each in call, waiting:
            with pytest.raises(ConnectionClosedError):
                await each.wait()


async def test_a_chunk_that_waits_for_room_is_not_sent_once_we_close() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        peer.pause()
        stream = ws.send_stream()
        await stream.__aenter__()
        call = Call(group, stream.send, bytes(200_000))
        await settle()
        call.cancel()
        again = Call(group, stream.send, b"more")
        await settle()
        ws._core.close(1000, "")
        with pytest.raises(ConnectionClosedOK):
            await again.wait()
        with pytest.raises(ConnectionClosedOK):
            await stream.__aexit__(None, None, None)


async def test_a_send_stream_is_for_one_block() -> None:
    async with raw_peer() as (_, ws):
        stream = ws.send_stream()
        assert isinstance(stream, SendStream)
        with pytest.raises(RuntimeError, match="inside"):
            await stream.send(b"")
        async with stream:
            with pytest.raises(RuntimeError, match="one `async with`"):
                await stream.__aenter__()
        with pytest.raises(RuntimeError, match="inside"):
            await stream.send(b"")


async def test_a_task_that_would_wait_for_itself_is_told() -> None:
    async with raw_peer() as (_, ws), ws.send_stream():
        for call in partial(ws.send, "x"), partial(ws.send_many, ["x"]), ws.send_stream().__aenter__:
            with pytest.raises(RuntimeError, match=r"this task is inside send_stream\(\)"):
                await call()


# Receiving


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_chunks_come_as_they_arrive(role: Any, opcode: Opcode) -> None:
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(opcode, b"on", fin=False)
        async with ws.receive_stream() as stream:
            assert isinstance(stream, ReceiveStream)
            assert stream.text == (opcode == TEXT)
            assert await stream.receive() == ("on" if stream.text else b"on")
            call = Call(group, stream.receive)
            await settle()
            assert not call.done
            await peer.send_frame(PING, b"")
            await peer.send_frame(CONT, b"e", fin=False)
            assert await call.wait() == ("e" if stream.text else b"e")
            await peer.send_frame(CONT, b"!")
            assert [chunk async for chunk in stream] == (["!"] if stream.text else [b"!"])
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        assert ws.stats.messages_received == 1
        assert (await peer.receive_frame()).opcode == PONG


async def test_what_is_in_the_inbox_comes_in_one_chunk() -> None:
    async with raw_peer() as (peer, ws):
        for message in b"one", b"two", b"", b"four":
            await peer.send_frame(TEXT, message)
        await settle()
        assert await received_in_parts(ws) == ["one"]
        assert await ws.receive() == "two"
        assert await received_in_parts(ws) == []
        assert await received_in_parts(ws) == ["four"]
        assert ws._core.inbox.parts is None


async def test_a_full_inbox_has_room_again_when_a_stream_takes_from_it() -> None:
    async with raw_peer(receive_buffer_size=1000) as (peer, ws):
        for number in range(5):
            await peer.send_frame(BINARY, bytes([number]) * 900)
        await settle()
        assert ws._core.inbox.paused
        for number in range(5):
            assert join(await received_in_parts(ws)) == bytes([number]) * 900


async def test_a_message_that_comes_whole_while_it_waits() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        call = Call(group, received_in_parts, ws)
        await settle()
        await peer.send(b"".join(encode_frame(BINARY, data, bytes(4)) for data in (b"one", b"two")))
        assert await call.wait() == [b"one"]
        assert await ws.receive() == b"two"


async def test_the_task_inside_it_is_told_that_it_receives_already() -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream():
            for call in ws.receive, ws.receive_many, ws.receive_stream().__aenter__:
                with pytest.raises(RuntimeError, match=r"this task is inside receive_stream\(\)"):
                    await call()


@pytest.mark.parametrize("max_size", [0, -1, "1", 1.5, True])
async def test_a_limit_that_is_none_is_refused_at_once(max_size: Any) -> None:
    async with raw_peer() as (_, ws):
        expected = rf"max_size of receive_stream\(\) must be a positive number of bytes or None, not {max_size!r}"
        with pytest.raises(ValueError, match=expected):
            ws.receive_stream(max_size)


async def test_while_it_is_on_nobody_else_receives() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        waiting = Call(group, received_in_parts, ws)
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await received_in_parts(ws)
        await peer.send_frame(BINARY, b"1", fin=False)
        await settle()
        for call in ws.receive, ws.receive_many:
            with pytest.raises(anyio.BusyResourceError):
                await call()
        await peer.send_frame(CONT, b"2")
        assert await waiting.wait() == [b"1", b"2"]
        await peer.send_frame(BINARY, b"next")
        assert await ws.receive() == b"next"
        receiver = Call(group, ws.receive)
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await received_in_parts(ws)
        receiver.cancel()


async def test_one_task_at_a_time_waits_for_a_chunk() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"", fin=False)
        stream = ws.receive_stream()
        await stream.__aenter__()
        call = Call(group, stream.receive)
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await stream.receive()
        await stream.__aexit__(None, None, None)
        with pytest.raises(RuntimeError, match="inside"):
            await call.wait()


async def test_a_receive_stream_is_for_one_block() -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"1")
        stream = ws.receive_stream()
        with pytest.raises(RuntimeError, match="inside"):
            await stream.receive()
        async with stream:
            with pytest.raises(RuntimeError, match="one `async with`"):
                await stream.__aenter__()
        with pytest.raises(RuntimeError, match="inside"):
            await stream.receive()


@both_roles
async def test_max_size_does_not_apply(role: Any) -> None:
    async with raw_peer(role, max_size=100) as (peer, ws), anyio.create_task_group() as group:
        for size in 101, 50_000, 300_000:
            call = Call(group, received_in_parts, ws)
            await peer.send_frame(BINARY, bytes(size))
            assert join(await call.wait()) == bytes(size)
        await peer.send_frame(BINARY, bytes(101))
        with pytest.raises(ConnectionClosedError, match="101 bytes exceeds max_size=100"):
            await ws.receive()


async def test_a_message_that_is_held_can_be_streamed() -> None:
    async with raw_peer(max_size=100) as (peer, ws), anyio.create_task_group() as group:
        sending = Call(group, peer.send, encode_frame(BINARY, bytes(200_000), bytes(4)))
        await settle()
        assert ws._core.inbox.stopped
        assert join(await received_in_parts(ws)) == bytes(200_000)
        await sending.wait()


async def test_a_held_message_whose_mask_has_not_come() -> None:
    async with raw_peer(max_size=100) as (peer, ws), anyio.create_task_group() as group:
        data = encode_frame(BINARY, bytes(200), b"1234")
        await peer.send(data[:6])
        await settle()
        call = Call(group, received_in_parts, ws)
        await settle()
        call.cancel()
        await settle()
        call = Call(group, received_in_parts, ws)
        await settle()
        await peer.send(data[6:])
        assert join(await call.wait()) == bytes(200)


async def test_after_a_cancellation_max_size_applies_again() -> None:
    async with raw_peer(max_size=100) as (peer, ws), anyio.create_task_group() as group:
        data = encode_frame(BINARY, bytes(200), b"1234")
        await peer.send(data[:6])
        await settle()
        call = Call(group, received_in_parts, ws)
        await settle()
        call.cancel()
        await settle()
        await peer.send(data[6:])
        with pytest.raises(ConnectionClosedError, match="200 bytes exceeds max_size=100"):
            await ws.receive()


FRAGMENTED = b"".join(encode_frame(code, bytes(40), bytes(4), code == CONT) for code in (BINARY, CONT))


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(BINARY, bytes(51), bytes(4)),
        encode_frame(TEXT, "é".encode() * 26, bytes(4)),
        encode_frame(BINARY, bytes(200_000), bytes(4)),
        FRAGMENTED,
    ],
)
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("max_size", [45, 10**6])
async def test_its_own_limit_does(data: bytes, early: bool, max_size: int) -> None:
    async with raw_peer(max_size=max_size) as (peer, ws), anyio.create_task_group() as group:
        call = Call(group, received_in_parts, ws, 50)
        if not early:
            await settle()
        group.start_soon(peer.send, data)
        with pytest.raises(ConnectionClosedError, match=r"1009.*exceeds max_size=50") as caught:
            await call.wait()
        assert str(caught.value.__cause__).endswith("max_size=50")
        assert (await closing(peer))[0] == 1009
        group.cancel_scope.cancel()


async def test_its_own_limit_also_after_the_peers_close() -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, bytes(51))
        await peer.send_close()
        await settle()
        with pytest.raises(ConnectionClosedError):
            await received_in_parts(ws, 50)


async def test_its_own_limit_within_a_frame_that_was_allowed() -> None:
    async with raw_peer() as (peer, ws):
        data = encode_frame(BINARY, bytes(100), bytes(4))
        await peer.send(data[:50])
        await settle()
        async with ws.receive_stream(60) as stream:
            assert await stream.receive() == bytes(44)
            await peer.send(data[50:70])
            with pytest.raises(ConnectionClosedError, match="max_size=60"):
                await stream.receive()
            with pytest.raises(ConnectionClosedError, match="max_size=60"):
                await stream.receive()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("close", ConnectionClosedOK),
        ("eof", ConnectionClosedError),
        ("reset", ConnectionClosedError),
        ("violation", ConnectionClosedError),
        ("ours", ConnectionClosedOK),
    ],
)
async def test_an_end_inside_a_message_is_never_silent(end: str, error: type[Exception]) -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"half", fin=False)
        async with ws.receive_stream() as stream:
            if end == "close":
                await peer.send_close(1000)
            elif end == "eof":
                peer.send_eof()
            elif end == "reset":
                peer.reset()
            elif end == "violation":
                await peer.send_frame(TEXT, b"")
            else:
                ws._core.close(1000, "")
                await peer.send_frame(CONT, b"the end")
                await peer.send_close()
            await settle()
            assert await stream.receive() == b"half"
            for _ in range(2):
                with pytest.raises(error) as caught:
                    await stream.receive()
                assert not isinstance(caught.value, anyio.EndOfStream)
            with pytest.raises(error):
                [chunk async for chunk in stream]


async def test_before_a_message_the_end_is_that_of_receive() -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"whole")
        await peer.send_close()
        await settle()
        assert await received_in_parts(ws) == [b"whole"]
        with pytest.raises(anyio.EndOfStream) as caught:
            await received_in_parts(ws)
        assert isinstance(caught.value, ConnectionClosedOK)
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        call = Call(group, received_in_parts, ws)
        await settle()
        peer.reset()
        with pytest.raises(ConnectionClosedError):
            await call.wait()


async def test_a_violation_behind_the_message_comes_after_it() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"1", fin=False)
        call = Call(group, received_in_parts, ws)
        await settle()
        await peer.send(encode_frame(CONT, b"2", bytes(4)) + encode_frame(CONT, b"", bytes(4)))
        assert await call.wait() == [b"1", b"2"]
        with pytest.raises(ConnectionClosedError, match="1002"):
            await ws.receive()


async def test_a_close_behind_the_message_comes_after_it() -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream() as stream:
            await peer.send(encode_frame(CONT, b"2", bytes(4)) + encode_frame(CLOSE, b"", bytes(4)))
            await settle()
            assert ws.close_info is not None
            assert join([chunk async for chunk in stream]) == b"12"


async def test_reading_pauses_while_nobody_takes_the_chunks() -> None:
    data = bytes(range(256)) * 4000
    async with raw_peer(receive_buffer_size=100_000) as (peer, ws), anyio.create_task_group() as group:
        call = Call(group, peer.send, encode_frame(BINARY, data, bytes(4)))
        async with ws.receive_stream() as stream:
            await settle()
            assert ws._core.inbox.paused
            assert ws._core.inbox.parts_size < 300_000
            assert not call.done
            assert join([chunk async for chunk in stream]) == data
        await call.wait()
        assert ws._core.inbox.parts_size == 0


async def test_many_small_chunks_count_more_than_their_length() -> None:
    async with raw_peer(receive_buffer_size=1000) as (peer, ws):
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream() as stream:
            count = 1
            while not ws._core.inbox.paused:
                await peer.send_frame(CONT, b"1", fin=False)
                await settle()
                count += 1
            assert count < 20
            await peer.send_frame(CONT, b"")
            assert join([chunk async for chunk in stream]) == b"1" * count


# Leaving early


@both_roles
@pytest.mark.parametrize("size", [10, 5000, 900_000])
async def test_leaving_early_discards_the_rest(role: Any, size: int) -> None:
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(TEXT, b"1", fin=False)
        async with ws.receive_stream() as stream:
            assert await stream.receive() == "1"
        call = Call(group, ws.receive)
        await settle()
        await peer.send_frame(CONT, b"-" * size, fin=False)
        await peer.send_frame(CONT, b"end")
        await peer.send_frame(TEXT, b"next")
        assert await call.wait() == "next"
        assert ws._core.inbox.parts is None
        assert ws.stats.messages_received == 2


async def test_leaving_early_lets_reading_go_on() -> None:
    async with raw_peer(receive_buffer_size=1000) as (peer, ws), anyio.create_task_group() as group:
        call = Call(group, peer.send_frame, BINARY, bytes(500_000))
        with pytest.raises(KeyError):
            async with ws.receive_stream():
                await settle()
                assert ws._core.inbox.paused
                raise KeyError
        await call.wait()
        await peer.send_frame(TEXT, b"next")
        assert await ws.receive() == "next"


async def test_a_stream_after_one_that_was_left() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream():
            pass
        call = Call(group, received_in_parts, ws)
        await settle()
        await peer.send_frame(CONT, b"rest", fin=False)
        await settle()
        await peer.send(encode_frame(CONT, b"rest", bytes(4)) + encode_frame(TEXT, b"2", bytes(4), False))
        await settle()
        await peer.send_frame(CONT, b"3")
        assert await call.wait() == ["2", "3"]


async def test_a_stream_that_is_cancelled_while_it_waits_for_the_rest_leaves_that_its_limit() -> None:
    async with raw_peer(max_size=1000) as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"begin", fin=False)
        async with ws.receive_stream():
            pass
        call = Call(group, ws.receive_stream().__aenter__)
        await settle()
        call.cancel()
        await settle()
        await peer.send_frame(CONT, bytes(5000))
        await peer.send_frame(BINARY, b"next")
        assert await ws.receive() == b"next"


async def test_too_long_a_rest_ends_the_connection() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream():
            pass
        group.start_soon(peer.send_frame, CONT, bytes(DISCARD + 100_000))
        with pytest.raises(ConnectionClosedError, match=r"1009.*whose receiver had left"):
            await ws.receive()
        assert (await closing(peer))[0] == 1009
        group.cancel_scope.cancel()


async def test_leaving_a_message_over_its_limit_early() -> None:
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream(10):
            await peer.send_frame(CONT, bytes(100))
            await settle()
            assert ws._core.inbox.stopped
        await peer.send_frame(TEXT, b"next")
        assert await ws.receive() == "next"


async def test_leaving_while_closing_does_no_harm() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream():
            call = Call(group, ws.aclose)
            await settle()
        await peer.send_frame(CONT, bytes(100_000))
        await peer.send_frame(BINARY, b"another")
        await peer.send_close()
        peer.send_eof()
        await call.wait()
        assert ws.stats.messages_received == 0
        assert ws.close_info is not None
        assert ws.close_info.clean


async def test_a_cancelled_wait_for_a_message_loses_nothing() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        await cancelled_already(partial(received_in_parts, ws))
        for data in (
            encode_frame(TEXT, b"whole", bytes(4)),
            encode_frame(TEXT, b"wh", bytes(4), False) + encode_frame(CONT, b"ole", bytes(4)),
        ):
            call = Call(group, received_in_parts, ws)
            await settle()
            await peer.send(data)
            call.cancel()
            await settle()
            result = join(call.result) if call.result else await ws.receive()
            assert result == "whole"


async def test_no_chunk_is_lost_to_a_cancellation() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream() as stream:
            await cancelled_already(stream.receive)
            got: Any = await stream.receive()
            call = Call(group, stream.receive)
            await settle()
            await peer.send_frame(CONT, b"2", fin=False)
            call.cancel()
            await settle()
            got += call.result or await stream.receive()
            assert got == b"12"


# Timers


@pytest.mark.virtual_time
async def test_parts_are_messages_for_idle_timeout() -> None:
    async with raw_peer(idle_timeout=10, ping_interval=None) as (peer, ws):
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream() as stream:
            assert await stream.receive() == b"1"
            for _ in range(5):
                await anyio.sleep(9)
                await peer.send_frame(CONT, b"2", fin=False)
                assert await stream.receive() == b"2"
            await peer.send_frame(CONT, b"3", fin=False)
            await anyio.sleep(100)  # it is we who do not take it
            assert await stream.receive() == b"3"
            await anyio.sleep(100)
            with pytest.raises(ConnectionClosedError, match="idle_timeout"):
                await stream.receive()


@pytest.mark.virtual_time
async def test_keepalive_goes_on_inside_both() -> None:
    async with connected_pair(ping_interval=5, ping_timeout=5) as (client, server), anyio.create_task_group() as group:

        async def slowly() -> None:
            async with client.send_stream() as stream:
                for _ in range(5):
                    await stream.send(b"chunk")
                    await anyio.sleep(20)

        group.start_soon(slowly)
        assert join(await received_in_parts(server)) == b"chunk" * 5
        assert server.stats.pings_sent


@pytest.mark.virtual_time
async def test_a_blocked_loop_ends_no_stream() -> None:
    async with connected_pair() as (client, server), anyio.create_task_group() as group:
        async with client.send_stream() as stream:
            await stream.send(b"1")
            call = Call(group, received_in_parts, server)
            await settle()
            jump(100)
            await anyio.sleep(1)
            await stream.send(b"2")
        assert join(await call.wait()) == b"12"


@pytest.mark.parametrize("begun", [True, False])
async def test_replies_that_were_joined_leave_when_a_stream_waits(begun: bool) -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        data = encode_frame(TEXT, b"1", bytes(4)) + encode_frame(TEXT, b"2", bytes(4))
        await peer.send(data + encode_frame(TEXT, b"3", bytes(4), False) * begun)
        await settle()

        async def subject() -> list[Any]:
            assert await ws.receive() == "1"
            await ws.send("reply")
            assert await ws.receive() == "2"
            assert ws._outbox.size
            return await received_in_parts(ws)

        call = Call(group, subject)
        assert await peer.receive_frame() == RawFrame(TEXT, b"reply")
        await peer.send_frame(CONT if begun else TEXT, b"4")
        assert await call.wait() == (["3", "4"] if begun else ["4"])


# The log


async def test_the_log_has_one_line_for_the_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "anyio_ws")
    async with connected_pair() as (client, server), anyio.create_task_group() as group:
        for chunks in ["hé", "llo"], ["x" * 50, "y" * 50], [b"1", b"2" * 30]:
            call = Call(group, received_in_parts, server)
            async with client.send_stream(text=isinstance(chunks[0], str)) as stream:
                for chunk in chunks:
                    await stream.send(chunk)
                    await settle()
            assert len(await call.wait()) == 2
        await client.send("in the inbox")
        await settle()
        await received_in_parts(server)
    lines = [record.getMessage() for record in caplog.records if " B " in record.getMessage()]
    described = [
        "TEXT 6 B 'héllo'",
        f"TEXT 100 B '{'x' * 50}{'y' * 14}' …",
        "BINARY 31 B 31" + " 32" * 15 + " …",
        "TEXT 12 B 'in the inbox'",
    ]
    assert [line for line in lines if line[0] == ">"] == [f"> {each}" for each in described]
    assert [line for line in lines if line[0] == "<"] == [f"< {each}" for each in described]


# Anything


@settings(max_examples=50)
@given(
    chunks=st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)), min_size=1, max_size=6),
    text=st.booleans(),
    before=st.booleans(),
)
async def test_what_is_sent_in_parts_is_one_message(chunks: list[str], text: bool, before: bool) -> None:
    parts: list[Any] = [chunk if text else chunk.encode() for chunk in chunks]
    async with connected_pair() as (client, server), anyio.create_task_group() as group:
        if before:
            await client.send("before")
        sending = Call(group, sent_in_parts, client, *parts)
        if before:
            assert await server.receive() == "before"
        assert await server.receive() == join(parts)
        sending = Call(group, sent_in_parts, client, *parts)
        received = await received_in_parts(server)
        assert join(received) == (join(parts) if received else join([])), (received, parts)
        assert received or not join(parts)
        assert all(received)
        await sending.wait()


@settings(max_examples=50)
@given(
    payload=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    splits=st.lists(st.integers(1, 50), max_size=10),
    leave_after=st.one_of(st.none(), st.integers(0, 2)),
    is_text=st.booleans(),
    room=st.sampled_from([1, 20, 65536]),
)
async def test_any_fragments_in_any_pieces_are_the_message(
    payload: str, cuts: list[int], splits: list[int], leave_after: int | None, is_text: bool, room: int
) -> None:
    data, rest = [], payload.encode()
    for cut in cuts:
        data.append(rest[:cut])
        rest = rest[cut:]
    data.append(rest)
    stream_bytes = b"".join(
        encode_frame((TEXT if is_text else BINARY) if number == 0 else CONT, part, b"key!", number == len(data) - 1)
        + encode_frame(PING, b"p", b"1234")
        for number, part in enumerate(data)
    ) + encode_frame(TEXT, b"next", b"1234")
    async with raw_peer(max_size=100, receive_buffer_size=room) as (peer, ws), anyio.create_task_group() as group:

        async def send() -> None:
            nonlocal stream_bytes
            for split in splits:
                await peer.send(stream_bytes[:split])
                stream_bytes = stream_bytes[split:]
                await checkpoint()
            await peer.send(stream_bytes)

        group.start_soon(send)
        got: list[Any] = []
        async with ws.receive_stream() as stream:
            assert stream.text == is_text
            async for chunk in stream:
                got.append(chunk)
                if len(got) == leave_after:
                    break
        whole: Any = payload if is_text else payload.encode()
        assert whole.startswith(join(got) or whole[:0])
        assert leave_after is not None or (join(got) or whole[:0]) == whole
        assert await ws.receive() == "next"


async def test_both_ways_at_once_with_everything_else() -> None:
    async with connected_pair() as (client, server):

        async def echo(ws: WebSocket) -> None:
            while True:
                async with ws.receive_stream() as incoming, ws.send_stream(text=incoming.text) as outgoing:
                    async for chunk in incoming:
                        await outgoing.send(chunk)

        async def ask(ws: WebSocket) -> None:
            for size in 0, 10, 70_000, 300_000:
                for message in "é" * size, bytes(size):
                    await ws.send(message)
                    assert await ws.receive() == message
                    await ws.ping()

        async with anyio.create_task_group() as group:
            group.start_soon(echo, server)
            await ask(client)
            group.cancel_scope.cancel()


# Memory


@pytest.mark.real_time
@pytest.mark.parametrize(("compression", "mebibytes"), [(None, 64), ("deflate", 16)])
async def test_a_large_message_takes_little_memory(compression: Any, mebibytes: int) -> None:
    """There and back over real sockets; benchmarks say the same of 1 GiB and of resident memory."""
    chunk = noise(2**13) * 2  # half of it is left when it is compressed
    count = mebibytes * 64

    async def echo(ws: WebSocket) -> None:
        async with ws.receive_stream() as incoming, ws.send_stream() as outgoing:
            async for part in incoming:
                await outgoing.send(part)

    async def produce(ws: WebSocket) -> None:
        async with ws.send_stream() as stream:
            for _ in range(count):
                await stream.send(chunk)

    async with anyio.create_task_group() as group:
        server = await group.start(partial(serve, echo, "127.0.0.1", 0, compression=compression))
        async with connect(server.url, ping_interval=None, compression=compression) as ws:
            tracemalloc.start()
            try:
                group.start_soon(produce, ws)
                received = 0
                async with ws.receive_stream() as stream:
                    async for part in stream:
                        received += len(part)
                assert received == count * len(chunk)
                assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
            finally:
                tracemalloc.stop()
        group.cancel_scope.cancel()
