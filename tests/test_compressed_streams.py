"""send_stream() and receive_stream() where messages are compressed."""

import logging
import zlib
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import ConnectionClosedError, ConnectionClosedOK, Deflate, WebSocket
from anyio_ws.protocol import Opcode, PerMessageDeflate, encode_frame
from anyio_ws.protocol.compressing import MessageEncoder
from anyio_ws.protocol.extensions import Extension
from anyio_ws.protocol.restoring import Deferred
from anyio_ws.receive_stream import CHUNK, DISCARD
from anyio_ws.testing import RawPeer, connected_pair, raw_peer
from anyio_ws.transports.memory import MemoryTransport
from support.peers import attack, both_attackers, growth
from support.streams import join, noise, received_in_parts
from support.tools import Call, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode
RSV1 = 0x40
TAIL = b"\x00\x00\xff\xff"
NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
both_ways = pytest.mark.parametrize("extension", ["permessage-deflate", NO_TAKEOVER], ids=["takeover", "single"])


class Peer:
    """The compressor and the inflater of a raw peer."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(wbits=-15)
        self._inflater = zlib.decompressobj(wbits=-15)

    def compressed(self, data: bytes) -> bytes:
        return (self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def inflated(self, payload: bytes) -> bytes:
        return self._inflater.decompress(payload)


async def fragments(peer: RawPeer, payload: bytes, size: int, opcode: int = BINARY) -> None:
    """Send a compressed message in fragments of this size."""
    for start in range(0, len(payload), size):
        head = CONT if start else opcode | RSV1
        await peer.send_frame(head, payload[start : start + size], fin=start + size >= len(payload))


# Sending


@both_attackers
@both_ways
async def test_each_chunk_is_a_fragment_that_can_be_inflated_at_once(role: str, extension: str) -> None:
    async with attack(role, extension=extension, compression=Deflate()) as (peer, ws):
        theirs = Peer()
        for first, second in (b"one " * 20, b"two" * 20), (b"one " * 20, b"four"):
            if extension == NO_TAKEOVER:
                theirs = Peer()
            async with ws.send_stream() as stream:
                for chunk in first, b"", second:
                    await stream.send(chunk)
            frames = [await peer.receive_frame() for _ in range(3)]
            assert [(frame.opcode, frame.rsv, frame.fin) for frame in frames] == [
                (BINARY, 4, False),
                (CONT, 0, False),
                (CONT, 0, True),
            ]
            assert [theirs.inflated(frame.payload) for frame in frames[:2]] == [first, second]
            assert theirs.inflated(frames[2].payload + TAIL) == b""
        assert (ws.stats.messages_sent, ws.stats.frames_sent) == (2, 6)


@pytest.mark.parametrize("compress", [True, None])
async def test_the_threshold_does_not_apply(compress: bool | None) -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        async with ws.send_stream(text=True, compress=compress) as stream:
            await stream.send("é")
        frame = await peer.receive_frame()
        assert (frame.opcode, frame.rsv) == (TEXT, 4)
        assert Peer().inflated(frame.payload) == "é".encode()


@pytest.mark.parametrize(
    ("offered", "compress"),
    [("permessage-deflate", False), ("", True), ("permessage-deflate; client_max_window_bits=8", False)],
)
async def test_it_is_sent_as_it_is_if_that_is_wanted_or_nothing_was_agreed(offered: str, compress: bool) -> None:
    async with attack("client", extension=offered, compression=Deflate()) as (peer, ws):
        async with ws.send_stream(compress=compress) as stream:
            await stream.send(b"part")
        frames = [await peer.receive_frame() for _ in range(2)]
        assert [(frame.rsv, frame.payload) for frame in frames] == [(0, b"part"), (0, b"")]


async def test_a_window_that_zlib_lacks_is_not_compressed_for() -> None:
    async with attack("server", extension="permessage-deflate; client_max_window_bits=8", compression=Deflate()) as (
        peer,
        ws,
    ):
        async with ws.send_stream(compress=True) as stream:
            await stream.send(b"part")
        assert (await peer.receive_frame()).payload == b"part"


async def test_a_stream_to_which_nothing_was_sent_is_an_empty_message() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        async with ws.send_stream():
            pass
        frame = await peer.receive_frame()
        assert (frame.opcode, frame.rsv, frame.payload) == (BINARY, 0, b"")


@both_attackers
async def test_a_large_chunk_is_compressed_in_a_thread_and_leaves_in_fragments(role: str) -> None:
    data = noise(300_000) + bytes(300_000)
    async with (
        attack(role, extension="permessage-deflate", compression=Deflate(), ping_interval=None) as (peer, ws),
        anyio.create_task_group() as group,
    ):

        async def send() -> None:
            async with ws.send_stream() as stream:
                await stream.send(bytearray(data))
                await stream.send(b"small")

        group.start_soon(send)
        theirs = Peer()
        received = b""
        opcodes = []
        while not (frame := await peer.receive_frame()).fin:
            received += theirs.inflated(frame.payload)
            opcodes.append((frame.opcode, frame.rsv))
        assert received == data + b"small"
        assert opcodes == [(BINARY, 4), (CONT, 0), (CONT, 0), (CONT, 0)]


class Held:
    """Lets the worker threads' results wait for the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = anyio.Event()
        self.release = anyio.Event()
        monkeypatch.setattr("anyio_ws.workers.to_thread.run_sync", self._run)

    async def _run(self, function: Any, *args: Any) -> Any:
        self.begun.set()
        await self.release.wait()
        return function(*args)


async def inflate_message(peer: RawPeer) -> bytes:
    theirs = Peer()
    received = b""
    while True:
        frame = await peer.receive_frame()
        received += theirs.inflated(frame.payload)
        if frame.fin:
            return received


@both_attackers
@pytest.mark.parametrize("wait", [True, False])
async def test_a_send_that_is_cancelled_while_a_thread_compresses_is_sent_whole(
    role: str, wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with attack(role, extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        async with anyio.create_task_group() as group:
            stream = ws.send_stream()
            await stream.__aenter__()
            await stream.send(b"first")
            large = Call(group, stream.send, bytes(300_000))
            await held.begun.wait()
            large.cancel()
            other = Call(group, ws.send, "other")
            await settle()
            assert large.cancelled
            if wait:
                held.release.set()
                await stream.send(b"last")
            leaving = Call(group, stream.__aexit__, None, None, None)
            await settle()
            assert leaving.done == wait
            leaving.cancel()
            await settle()
            assert leaving.cancelled != wait
            held.release.set()
            assert await inflate_message(peer) == b"first" + bytes(300_000) + b"last" * wait
            assert (await peer.receive_frame()).payload == b"other"
            await other.wait()
        assert ws.stats.messages_sent == 2


async def test_the_next_stream_may_begin_before_the_one_that_a_thread_completes_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Held(monkeypatch)
    async with (
        attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws),
        anyio.create_task_group() as group,
    ):
        stream, following = ws.send_stream(), ws.send_stream()
        await stream.__aenter__()
        large = Call(group, stream.send, bytes(300_000))
        await held.begun.wait()
        large.cancel()
        await settle()
        entering = Call(group, following.__aenter__)
        await settle()
        leaving = Call(group, stream.__aexit__, None, None, None)
        await settle()
        assert not leaving.done
        held.release.set()
        await entering.wait()
        await leaving.wait()
        await following.__aexit__(None, None, None)
        assert await inflate_message(peer) == bytes(300_000)
        assert (await peer.receive_frame()).payload == b""


async def test_an_exception_while_a_thread_compresses_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        async with anyio.create_task_group() as group:
            with pytest.raises(KeyError):
                async with ws.send_stream() as stream:
                    large = Call(group, stream.send, bytes(300_000))
                    await held.begun.wait()
                    large.cancel()
                    await settle()
                    raise KeyError
        frame = await peer.receive_frame()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, (1011).to_bytes(2))
        held.release.set()
        await settle()
        await peer.send_close()
        peer.send_eof()
        assert await peer.receive_eof() == b""


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_close_while_a_thread_compresses_ends_the_stream(
    cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        async with anyio.create_task_group() as group:
            stream = ws.send_stream()
            await stream.__aenter__()
            large = Call(group, stream.send, bytes(300_000))
            await held.begun.wait()
            if cancelled:
                large.cancel()
                await settle()
            leaving = Call(group, stream.__aexit__, None, None, None)
            await settle()
            assert not leaving.done
            await peer.send_close(1000)
            await settle()
            held.release.set()
            with pytest.raises(ConnectionClosedOK):
                await leaving.wait()
            if not cancelled:
                with pytest.raises(ConnectionClosedOK):
                    await large.wait()
        assert ws.stats.messages_sent == 0


async def test_an_error_in_the_thread_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(function: Any, *args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("anyio_ws.workers.to_thread.run_sync", fail)
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (_, ws):
        with pytest.raises(ConnectionClosedError) as caught:
            async with ws.send_stream() as stream:
                await stream.send(bytes(300_000))
        assert isinstance(caught.value.__cause__, MemoryError)
        assert caught.value.close_info.initiator == "local"


def failing_at(monkeypatch: pytest.MonkeyPatch, fin: bool) -> None:
    """Have memory run out when the end of a message is compressed, or anything else of it."""
    encode = MessageEncoder.encode

    def fail(encoder: MessageEncoder, chunk: Any, *, fin: bool = False) -> bytes:
        if fin == failing:
            raise MemoryError
        return encode(encoder, chunk, fin=fin)

    failing = fin
    monkeypatch.setattr(MessageEncoder, "encode", fail)


async def test_a_message_of_which_a_part_could_not_be_compressed_does_not_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing_at(monkeypatch, fin=False)
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        stream = await ws.send_stream().__aenter__()
        for _ in range(2):
            with pytest.raises(ConnectionClosedError) as caught:
                await stream.send(b"part")
            assert isinstance(caught.value.__cause__, MemoryError)
        with pytest.raises(ConnectionClosedError):
            await stream.__aexit__(None, None, None)
        assert await peer.receive_eof() == b""


@pytest.mark.parametrize("in_thread", [True, False])
async def test_nobody_waits_for_a_message_whose_end_could_not_be_compressed(
    in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(monkeypatch, fin=True)
    held = Held(monkeypatch)
    async with (
        attack("client", extension="permessage-deflate", compression=Deflate()) as (_, ws),
        anyio.create_task_group() as group,
    ):
        stream = ws.send_stream()
        await stream.__aenter__()
        large = Call(group, stream.send, bytes(300_000 if in_thread else 3))
        await settle()
        large.cancel()
        other = Call(group, ws.send, "other")
        leaving = Call(group, stream.__aexit__, None, None, None)
        await settle()
        held.release.set()
        for call in leaving, other:
            with pytest.raises(ConnectionClosedError) as caught:
                await call.wait()
            assert isinstance(caught.value.__cause__, MemoryError)
            assert caught.value.close_info.initiator == "local"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("aborted", [True, False])
async def test_nobody_waits_for_a_message_that_a_thread_could_not_inflate(
    streamed: bool, aborted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Deferred) -> bytes:
        raise MemoryError

    held = Held(monkeypatch)
    monkeypatch.setattr(Deferred, "finish", fail)
    async with (
        attack("client", extension="permessage-deflate", compression=Deflate(), max_size=2**22) as (peer, ws),
        anyio.create_task_group() as group,
    ):
        call = Call(group, received_in_parts if streamed else WebSocket.receive, ws)
        await peer.send_frame(BINARY | RSV1, Peer().compressed(bytes(2**20)))
        await held.begun.wait()
        if aborted:
            ws.abort()
            await settle()
            assert not call.done  # it had arrived before
        held.release.set()
        with pytest.raises(ConnectionClosedError) as caught:
            await call.wait()
        assert isinstance(caught.value.__cause__, ConnectionAbortedError if aborted else MemoryError)


async def test_nobody_waits_for_a_message_that_is_not_inflated_because_its_owner_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Held(monkeypatch)
    async with anyio.create_task_group() as group:
        async with raw_peer() as (peer, ws):
            with_extensions(ws, PerMessageDeflate(is_client=False))
            call = Call(group, ws.receive)
            await peer.send_frame(BINARY | RSV1, Peer().compressed(bytes(2**20)))
            await held.begun.wait()
        with pytest.raises(ConnectionClosedError):
            await call.wait()


# Receiving


@both_attackers
@both_ways
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_chunks_come_as_they_arrive(role: str, extension: str, opcode: Opcode) -> None:
    async with attack(role, extension=extension, compression=Deflate()) as (peer, ws):
        for _ in range(2):
            theirs = Peer()
            first, second = theirs.compressed("hé".encode()) + TAIL, theirs.compressed(b"llo")
            await peer.send_frame(opcode | RSV1, first[:3], fin=False)
            async with ws.receive_stream() as stream, anyio.create_task_group() as group:
                assert stream.text == (opcode == TEXT)
                await peer.send_frame(CONT, first[3:], fin=False)
                await peer.send_frame(PING, b"")
                got: Any = await stream.receive()
                while len(got) < len("hé" if stream.text else "hé".encode()):
                    got += await stream.receive()
                assert got == ("hé" if stream.text else "hé".encode())
                call = Call(group, stream.receive)
                await settle()
                assert not call.done
                await peer.send_frame(CONT, second)
                assert await call.wait() == ("llo" if stream.text else b"llo")
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            assert (await peer.receive_frame()).opcode == PONG
            if extension != NO_TAKEOVER:
                break
        assert ws.stats.messages_received == (2 if extension == NO_TAKEOVER else 1)


@both_ways
async def test_the_messages_behind_it_come_after_it(extension: str) -> None:
    """They may refer to it, and so are not inflated before it."""
    async with attack("client", extension=extension, compression=Deflate(), max_size=2**22) as (peer, ws):
        theirs = Peer()
        data = b"abcdefgh" * 100_000
        payload = theirs.compressed(data)
        if extension == NO_TAKEOVER:
            theirs = Peer()
        behind = theirs.compressed(b"abcdefgh" * 50)
        await peer.send_frame(BINARY | RSV1, payload[:10], fin=False)
        async with ws.receive_stream() as stream:
            await peer.send_frame(CONT, payload[10:])
            await peer.send_frame(BINARY | RSV1, behind)
            await peer.send_frame(TEXT, b"plain")
            await settle()
            assert not ws._core.inbox.messages
            assert join([chunk async for chunk in stream]) == data
        assert await ws.receive() == b"abcdefgh" * 50
        assert await ws.receive() == "plain"
        assert ws.stats.messages_received == 3


@pytest.mark.parametrize("end", ["close", "eof", "violation"])
async def test_an_end_behind_it_comes_after_it(end: str) -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        data = bytes(500_000)
        payload = Peer().compressed(data)
        await peer.send_frame(BINARY | RSV1, payload[:10], fin=False)
        async with ws.receive_stream() as stream:
            await peer.send_frame(CONT, payload[10:])
            if end == "close":
                await peer.send_close(1000)
            elif end == "eof":
                peer.send_eof()
            else:
                await peer.send_frame(CONT, b"")
            await settle()
            assert ws.close_info is None
            assert join([chunk async for chunk in stream]) == data
        with pytest.raises(ConnectionClosedOK if end == "close" else ConnectionClosedError):
            await ws.receive()


async def test_an_end_inside_it_comes_after_what_had_come() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        payload = Peer().compressed(bytes(200_000)) + TAIL
        await peer.send_frame(BINARY | RSV1, payload, fin=False)
        async with ws.receive_stream() as stream:
            peer.reset()
            await settle()
            got = b""
            with pytest.raises(ConnectionClosedError):
                while True:
                    got += await stream.receive()  # type: ignore[operator]
            assert got == bytes(200_000)


async def test_reading_pauses_while_nobody_takes_the_chunks() -> None:
    data = noise(800_000)
    async with (
        attack("client", extension="permessage-deflate", compression=Deflate(), receive_buffer_size=100_000) as (
            peer,
            ws,
        ),
        anyio.create_task_group() as group,
    ):
        call = Call(group, fragments, peer, Peer().compressed(data), 10_000)
        async with ws.receive_stream() as stream:
            await settle()
            assert ws._core.inbox.paused
            assert ws._core.inbox.parts_size < 300_000
            assert not call.done
            assert join([chunk async for chunk in stream]) == data
        await call.wait()
        assert ws._core.inbox.parts_size == 0


async def test_what_restores_nothing_by_itself_does_not_stop_reading() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), receive_buffer_size=1) as (
        peer,
        ws,
    ):
        payload = Peer().compressed(b"message")
        await peer.send_frame(BINARY | RSV1, payload[:1], fin=False)
        async with anyio.create_task_group() as group:
            call = Call(group, received_in_parts, ws)
            await settle()
            await peer.send_frame(CONT, payload[1:])
            await settle()
            assert join(await call.wait()) == b"message"


async def test_what_comes_at_once_when_reading_goes_on_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    def resume(self: MemoryTransport) -> None:
        resume_later(self)
        self._deliver()  # as TLSTransport does with what is decrypted already

    async with attack("client", extension="permessage-deflate", compression=Deflate(), receive_buffer_size=1) as (
        peer,
        ws,
    ):
        resume_later = MemoryTransport.resume
        monkeypatch.setattr(MemoryTransport, "resume", resume)
        async with anyio.create_task_group() as group:
            call = Call(group, received_in_parts, ws)
            payload = Peer().compressed(b"message")
            await peer.send_frame(BINARY | RSV1, payload[:1], fin=False)
            await settle()
            for byte in payload[1:]:
                await peer.send_frame(CONT, bytes([byte]), fin=False)
            await peer.send_frame(CONT, b"")
            assert join(await call.wait()) == b"message"


async def test_what_has_come_whole_and_is_small_is_one_chunk() -> None:
    async with connected_pair(compression=Deflate()) as (client, server):
        await client.send("compressed " * 100)
        assert await received_in_parts(server) == ["compressed " * 100]


# Limits


@pytest.mark.parametrize("size", [1_001, 200_000, 3_000_000])
@pytest.mark.parametrize("text", [True, False])
async def test_a_message_that_has_come_and_inflates_to_more_than_max_size_can_be_streamed(
    size: int, text: bool
) -> None:
    data = (b"x" * size)[:-3] + b"end"
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=1000) as (peer, ws):
        theirs = Peer()
        await peer.send_frame((TEXT if text else BINARY) | RSV1, theirs.compressed(data))
        await peer.send_frame(BINARY | RSV1, theirs.compressed(data[-500:]))
        await ws._core.loop.checkpoint()
        async with ws.receive_stream() as stream:
            assert stream.text == text
            got = join([chunk async for chunk in stream])
        assert got == (data.decode() if text else data)
        assert await ws.receive() == data[-500:]
        assert ws.stats.messages_received == 2


async def test_it_comes_in_chunks_although_more_of_it_is_inflated() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=150_000) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, Peer().compressed(bytes(200_000)))
        async with ws.receive_stream() as stream:
            sizes = [len(chunk) async for chunk in stream]
        assert sum(sizes) == 200_000
        assert max(sizes) == CHUNK


@pytest.mark.parametrize("size", [1_001, 200_000])
async def test_receive_refuses_it(size: int) -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=1000) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, Peer().compressed(bytes(size)))
        with pytest.raises(ConnectionClosedError, match="at least 1,001 bytes after inflating exceeds max_size=1,000"):
            await ws.receive()


@pytest.mark.parametrize("streamed", [True, False])
async def test_nobody_waits_for_it_if_the_connection_has_ended(streamed: bool) -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=1000) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, Peer().compressed(bytes(2000)))
        with anyio.fail_after(5):
            while ws._core.inbox.held is None:
                await checkpoint()
        ws.abort()
        with pytest.raises(ConnectionClosedError):
            await (received_in_parts(ws) if streamed else ws.receive())


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_is_inflated_after_the_end_leaves_nothing_behind(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = Held(monkeypatch)
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        theirs = Peer()
        payload = theirs.compressed(bytes(300_000))
        await peer.send_frame(BINARY | RSV1, payload[:5], fin=False)
        stream = await ws.receive_stream().__aenter__() if streamed else None
        behind = encode_frame(BINARY | RSV1, theirs.compressed(b"behind it"), bytes(4))
        await peer.send(encode_frame(CONT, payload[5:], bytes(4)) + behind)
        await settle()
        ws.abort()
        threads.release.set()
        if stream is None:
            assert await ws.receive() == bytes(300_000)
        else:
            assert join([chunk async for chunk in stream]) == bytes(300_000)
            await stream.__aexit__(None, None, None)
        assert await ws.receive() == b"behind it"
        extension: Any = ws._core.connection.extensions[0]
        assert extension._inflating.inflater is None


async def test_our_close_does_not_wait_for_somebody_to_take_it() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=1000) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, Peer().compressed(bytes(2000)))
        with anyio.fail_after(5):
            while ws._core.inbox.held is None:
                await checkpoint()
        async with anyio.create_task_group() as group:
            call = Call(group, ws.aclose)
            assert (await peer.receive_frame()).payload[:2] == (1009).to_bytes(2)
            peer.send_eof()
            await call.wait()


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("text", ["", "é"])
async def test_its_own_limit_counts_inflated_bytes(early: bool, whole: bool, text: str) -> None:
    data = text.encode() * 1000 or bytes(2000)
    opcode = (TEXT if text else BINARY) | RSV1
    for limit, fits in (2000, True), (1999, False):
        async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
            payload = Peer().compressed(data)
            async with anyio.create_task_group() as group:
                call = Call(group, received_in_parts, ws, limit)
                if not early:
                    await settle()
                if whole:
                    await peer.send_frame(opcode, payload)
                else:
                    await fragments(peer, payload, 3, opcode)
                if fits:
                    assert join(await call.wait()) == (data.decode() if text else data)
                    continue
                with pytest.raises(ConnectionClosedError, match=r"1009.*exceeds max_size=1,999"):
                    await call.wait()
                frame = await peer.receive_frame()
                assert (frame.opcode, frame.payload[:2]) == (CLOSE, (1009).to_bytes(2))


async def test_a_frame_that_cannot_be_within_its_limit_is_refused_when_it_begins() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, Peer().compressed(b"begun") + TAIL, fin=False)
        async with ws.receive_stream(100) as stream:
            await peer.send(encode_frame(CONT, bytes(1000), bytes(4))[:8])
            assert await stream.receive() == b"begun"
            with pytest.raises(ConnectionClosedError, match=r"1009.*exceeds max_size=100"):
                await stream.receive()


async def test_a_bomb_takes_little_memory_and_stops_at_the_limit() -> None:
    payload = zlib.compressobj(9, wbits=-15)
    mebibyte = payload.compress(bytes(2**20)) + payload.flush(zlib.Z_FULL_FLUSH)
    bomb = mebibyte * 300
    async with (
        attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws),
        anyio.create_task_group() as group,
    ):
        call = Call(group, fragments, peer, bomb, 10_000)
        async with ws.receive_stream(200 * 2**20) as stream:
            received = 0
            with growth() as grown, pytest.raises(ConnectionClosedError, match="1009"):
                while True:
                    received += len(await stream.receive())
            assert grown.peak < 2**20
        assert 0 <= 200 * 2**20 - received <= CHUNK
        call.cancel()


# What is wrong with it


@pytest.mark.parametrize(
    ("opcode", "payload", "code", "text"),
    [
        (BINARY, b"\xff\xff\xff", 1002, "not valid DEFLATE"),
        (TEXT, Peer().compressed(b"ab\xff"), 1007, "not UTF-8: invalid start byte at byte 2"),
        (
            TEXT,
            Peer().compressed("ab€".encode()[:-1]),
            1007,
            "not UTF-8: unexpected end of data at byte 2",
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_what_cannot_be_restored_fails_the_connection(
    opcode: Opcode, payload: bytes, code: int, text: str, size: int
) -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        beginning = Peer()
        await peer.send_frame(opcode | RSV1, beginning.compressed(b"") + TAIL, fin=False)
        async with ws.receive_stream() as stream:
            for start in range(0, len(payload), size):
                await peer.send_frame(CONT, payload[start : start + size], fin=start + size >= len(payload))
            with pytest.raises(ConnectionClosedError, match=text) as caught:
                while True:
                    await stream.receive()
            with pytest.raises(ConnectionClosedError, match=text):
                await stream.receive()
            assert caught.value.close_info.code == code
        frame = await peer.receive_frame()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, code.to_bytes(2))


async def test_what_is_wrong_with_it_is_said_also_after_the_peers_close() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, b"\xff\xff", fin=False)
        async with ws.receive_stream() as stream:
            await peer.send_close(1000)
            await settle()
            with pytest.raises(ConnectionClosedError) as caught:
                await stream.receive()
            assert "not valid DEFLATE" in str(caught.value.__cause__)


# Leaving early


@both_ways
@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("come", [0, 10, 10_000])
async def test_leaving_early_discards_the_rest(extension: str, taken: int, come: int) -> None:
    """And inflates it, because the next message may refer to it."""
    async with attack("client", extension=extension, compression=Deflate()) as (peer, ws):
        theirs = Peer()
        beginning, rest = theirs.compressed(b"begin " * 100) + TAIL, theirs.compressed(noise(5000))
        theirs = theirs if extension != NO_TAKEOVER else Peer()
        await peer.send_frame(BINARY | RSV1, beginning, fin=False)
        async with ws.receive_stream() as stream:
            for _ in range(taken):
                await stream.receive()
            if come:
                await peer.send_frame(CONT, rest[:come], fin=come > len(rest))
                await settle()
        if come < len(rest):
            await peer.send_frame(CONT, rest[come:])
        await peer.send_frame(BINARY | RSV1, theirs.compressed(b"begin " * 10))
        assert await ws.receive() == b"begin " * 10
        assert ws._core.inbox.parts is None
        assert ws._core.inbox.parts_size == 0
        assert ws.stats.messages_received == 2


@pytest.mark.parametrize("has_come", [True, False])
async def test_too_long_a_rest_ends_the_connection(has_come: bool) -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        theirs = Peer()
        beginning, rest = theirs.compressed(b"begin") + TAIL, theirs.compressed(bytes(DISCARD + 1))
        await peer.send_frame(BINARY | RSV1, beginning, fin=False)
        async with ws.receive_stream() as stream:
            await stream.receive()
            if has_come:
                await peer.send_frame(CONT, rest)
                await settle()
        if not has_come:
            await peer.send_frame(CONT, rest)
        with pytest.raises(ConnectionClosedError, match=r"1009.*whose receiver had left"):
            await ws.receive()


async def test_a_message_behind_a_rest_that_is_refused_is_not_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_ws.receive_stream.DISCARD", 10)
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        await peer.send_frame(BINARY, b"1", fin=False)
        async with ws.receive_stream():
            pass
        large = encode_frame(BINARY | RSV1, Peer().compressed(bytes(300_000)), bytes(4))
        await peer.send(encode_frame(CONT, bytes(100), bytes(4)) + large)
        with pytest.raises(ConnectionClosedError, match=r"1009.*whose receiver had left"):
            await ws.receive()


async def test_a_rest_that_is_not_deflate_ends_the_connection() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        await peer.send_frame(BINARY | RSV1, Peer().compressed(b"begin") + TAIL, fin=False)
        async with ws.receive_stream() as stream:
            await stream.receive()
        await peer.send_frame(CONT, b"\xff\xff")
        with pytest.raises(ConnectionClosedError, match="not valid DEFLATE"):
            await ws.receive()


async def test_leaving_while_closing_does_no_harm() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        payload = Peer().compressed(bytes(100_000))
        await peer.send_frame(BINARY | RSV1, payload[:10], fin=False)
        async with anyio.create_task_group() as group:
            async with ws.receive_stream():
                await peer.send_frame(CONT, payload[10:20], fin=False)
                call = Call(group, ws.aclose)
                await settle()
            await peer.send_frame(CONT, payload[20:])
            await peer.send_close()
            peer.send_eof()
            await call.wait()
        assert ws.close_info is not None
        assert ws.close_info.clean


@pytest.mark.parametrize("has_come", [True, False])
async def test_after_our_close_the_rest_is_nobodys_concern(has_come: bool) -> None:
    async with (
        attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws),
        anyio.create_task_group() as group,
    ):
        payload = Peer().compressed(bytes(3 * DISCARD)) + TAIL
        await peer.send_frame(BINARY | RSV1, payload, fin=False)
        async with ws.receive_stream():
            if has_come:
                await peer.send_frame(CONT, b"\x00")
                await settle()
            call = Call(group, ws.aclose)
            await settle()
        await peer.send_close()
        peer.send_eof()
        await call.wait()
        assert ws.close_info is not None
        assert ws.close_info.clean
        assert ws.stats.messages_received == has_come


# Several extensions


class Reversing:
    """An extension that sends messages backwards, and has the bit RSV2."""

    name = "x-reversing"
    rsv = 0x20
    inline_limit = 2**20

    def encode(self, opcode: int, payload: Any, wanted: bool | None = None) -> bytes | None:
        return bytes(payload)[::-1]

    def start_decode(self, payload: Any, max_size: int | None) -> bytes:
        return bytes(payload)[::-1]

    def encoder(self, opcode: int, wanted: bool | None = None) -> None:
        return None

    def decoder(self) -> Any:
        raise NotImplementedError

    def rest(self) -> None: ...

    def release(self) -> None: ...


def with_extensions(ws: WebSocket, *extensions: Extension) -> None:
    """Have these extensions in use, as if they had been agreed on."""
    core = ws._core
    connection = type(core.connection)(
        is_client=core.is_client,
        max_size=core.options.max_size,
        scratch=core.loop.budget.scratch,
        extensions=extensions,
        holds=True,
    )
    core.connection = core.inbox._connection = connection
    core.inbox._decoder = connection.decoder
    core.get_buffer = connection.get_buffer  # type: ignore[assignment]
    core.encode = connection.encode


async def test_what_several_extensions_restore_comes_as_a_whole() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=1000) as (peer, ws):
        with_extensions(ws, Reversing(), *ws._core.connection.extensions)
        payload = Peer().compressed(b"olleh")
        await peer.send_frame(BINARY | 0x60, payload[:3], fin=False)
        async with anyio.create_task_group() as group:
            call = Call(group, received_in_parts, ws)
            await settle()
            await peer.send_frame(CONT, payload[3:])
            assert await call.wait() == [b"hello"]
        async with ws.send_stream() as stream:
            await stream.send(b"one of them takes parts")
        frame = await peer.receive_frame()
        assert (frame.rsv, Peer().inflated(frame.payload)) == (4, b"one of them takes parts")


async def test_what_several_extensions_restore_in_a_thread() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate()) as (peer, ws):
        with_extensions(ws, Reversing(), *ws._core.connection.extensions)
        await peer.send_frame(BINARY | 0x60, Peer().compressed(b"e" + bytes(300_000)))
        assert await ws.receive() == bytes(300_000) + b"e"


@pytest.mark.parametrize("inflated", [1001, 300_000])
async def test_what_several_extensions_restore_keeps_to_max_size(inflated: int) -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=1000) as (peer, ws):
        with_extensions(ws, Reversing(), *ws._core.connection.extensions)
        await peer.send_frame(BINARY | 0x60, Peer().compressed(bytes(inflated)))
        with pytest.raises(ConnectionClosedError, match=r"1009.*max_size=1,000"):
            await received_in_parts(ws)


async def test_a_message_for_several_extensions_that_is_too_long_as_it_is() -> None:
    async with attack("client", extension="permessage-deflate", compression=Deflate(), max_size=1000) as (peer, ws):
        with_extensions(ws, Reversing(), *ws._core.connection.extensions)
        await peer.send(encode_frame(BINARY | 0x60, Peer().compressed(noise(5000)), bytes(4))[:2000])
        with pytest.raises(ConnectionClosedError, match=r"1009.*max_size=1,000"):
            await received_in_parts(ws)


# The log


async def test_the_log_has_one_line_for_the_message_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "anyio_ws")
    async with connected_pair(compression=Deflate()) as (client, server), anyio.create_task_group() as group:
        call = Call(group, received_in_parts, server)
        async with client.send_stream(text=True) as stream:
            for chunk in "hé", "llo":
                await stream.send(chunk)
                await settle()
        assert await call.wait() == ["hé", "llo"]
    lines = [record.getMessage() for record in caplog.records if " B " in record.getMessage()]
    assert lines == ["> TEXT 6 B 'héllo'", "< TEXT 6 B 'héllo'"]


async def test_the_log_has_messages_that_threads_compress_and_inflate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "anyio_ws")
    async with (
        connected_pair(compression=Deflate(), ping_interval=None) as (client, server),
        anyio.create_task_group() as group,
    ):
        group.start_soon(client.send, bytes(400_000))
        await server.receive()
    lines = [record.getMessage() for record in caplog.records if " B " in record.getMessage()]
    assert lines == [f"{way} BINARY 400000 B {' '.join(['00'] * 16)} …" for way in "><"]


# Anything


@settings(max_examples=80)
@given(
    messages=st.lists(
        st.tuples(st.sampled_from(["", "a", "é€😀" * 9, "abc" * 500]), st.booleans(), st.sampled_from("spr")),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(1, 60),
    splits=st.lists(st.integers(1, 50), max_size=10),
    leave_after=st.one_of(st.none(), st.integers(0, 2)),
    takeover=st.booleans(),
    room=st.sampled_from([1, 20, 65536]),
)
async def test_any_messages_in_any_fragments_and_pieces(
    messages: list[tuple[str, bool, str]],
    cut: int,
    splits: list[int],
    leave_after: int | None,
    takeover: bool,
    room: int,
) -> None:
    theirs = Peer()
    wire = b""
    for text, is_text, how in messages:
        if not takeover:
            theirs = Peer()
        payload = text.encode() if how == "p" else theirs.compressed(text.encode())
        rsv = 0 if how == "p" else RSV1
        starts = range(0, max(len(payload), 1), cut)
        for start in starts:
            head = CONT if start else (TEXT if is_text else BINARY) | rsv
            wire += encode_frame(head, payload[start : start + cut], b"key!", start == starts[-1])
            wire += encode_frame(PING, b"p", b"1234")
    wire += encode_frame(TEXT, b"end", b"1234")
    async with attack(
        "client",
        extension="permessage-deflate" if takeover else NO_TAKEOVER,
        compression=Deflate(),
        receive_buffer_size=room,
        max_size=2000,
    ) as (peer, ws):

        async def send(data: bytes) -> None:
            for split in splits:
                await peer.send(data[:split])
                data = data[split:]
                await checkpoint()
            await peer.send(data)

        async with anyio.create_task_group() as group:
            group.start_soon(send, wire)
            for text, is_text, how in messages:
                whole: Any = text if is_text else text.encode()
                if how == "r":
                    assert await ws.receive() == whole
                    continue
                got: list[Any] = []
                async with ws.receive_stream() as stream:
                    assert stream.text == is_text
                    async for chunk in stream:
                        got.append(chunk)
                        if len(got) == leave_after:
                            break
                assert whole.startswith(join(got) or whole[:0])
                assert leave_after is not None or (join(got) or whole[:0]) == whole
            assert await ws.receive() == "end"
            assert ws.stats.messages_received == len(messages) + 1


@settings(max_examples=30)
@given(
    chunks=st.lists(st.one_of(st.sampled_from(["é" * 70_000, ""]), st.text(max_size=20)), max_size=5),
    text=st.booleans(),
    preset=st.sampled_from([Deflate(), Deflate.small(), Deflate.best()]),
    streamed=st.booleans(),
)
async def test_what_is_sent_in_parts_is_one_message(
    chunks: list[str], text: bool, preset: Deflate, streamed: bool
) -> None:
    parts: list[Any] = [chunk if text else chunk.encode() for chunk in chunks]
    whole = ("" if text else b"").join(parts)  # type: ignore[arg-type]
    async with connected_pair(compression=preset, ping_interval=None) as (client, server):
        for _ in range(2):
            async with anyio.create_task_group() as group:
                call = Call(group, received_in_parts if streamed else WebSocket.receive, server)
                async with client.send_stream(text=text) as stream:
                    for part in parts:
                        await stream.send(part)
                received = await call.wait()
                assert (join(received) or whole[:0] if streamed else received) == whole
