"""Any byte stream as a transport: anyio's ByteStream, an object stream of bytes, trio's Stream."""

import math
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, ObjectStream
from anyio.streams.stapled import StapledObjectStream
from anyio.streams.tls import TLSAttribute

from anyio_ws import CloseInfo, WebSocket, accept, connect
from anyio_ws.core import Core
from anyio_ws.loops import Loop, open_loop
from anyio_ws.options import Options
from anyio_ws.protocol import ClientHandshake, encode_frame, parse_url
from anyio_ws.tasks import Tasks
from anyio_ws.transports.stream import CHUNK, CLOSE_SECONDS, StreamTransport
from support.tools import settle, wait


def objects(capacity: float = math.inf) -> tuple[ObjectStream[bytes], ObjectStream[bytes]]:
    there_in, there_out = anyio.create_memory_object_stream[bytes](capacity)
    back_in, back_out = anyio.create_memory_object_stream[bytes](capacity)
    return StapledObjectStream(there_in, back_out), StapledObjectStream(back_in, there_out)


class Bytes(ByteStream):
    """A ByteStream over a stream of objects."""

    def __init__(self, inner: ObjectStream[bytes]) -> None:
        self.inner = inner
        self.rest = b""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = self.rest or await self.inner.receive()
        self.rest = data[max_bytes:]
        return data[:max_bytes]

    async def send(self, item: bytes) -> None:
        await self.inner.send(item)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()


class TrioStream:
    """The part of trio.abc.Stream that every one has: no send_eof."""

    def __init__(self, inner: Any) -> None:
        self.send_all = inner.send_all
        self.receive_some = inner.receive_some
        self.aclose = inner.aclose


def pair(kind: str) -> tuple[Any, Any]:
    if kind == "objects":
        return objects()
    if kind == "bytes":
        near, far = objects()
        return Bytes(near), Bytes(far)
    from trio.testing import memory_stream_pair

    near, far = memory_stream_pair()
    return (TrioStream(near), TrioStream(far)) if kind == "trio without send_eof" else (near, far)


KINDS = ["objects", "bytes", "trio", "trio without send_eof"]


def kinds(kind: str, loop_name: str) -> None:
    if kind.startswith("trio") and loop_name != "trio":
        pytest.skip("a stream of trio's")


class Recorder:
    """A receiver that notes what it is told."""

    def __init__(self, transport: StreamTransport) -> None:
        self.transport = transport
        self.data = bytearray()
        self.ended = 0
        self.errors: list[Exception] = []
        self.buffer = memoryview(bytearray(1000))
        self.unsent = memoryview(b"")
        self.on_received: Callable[[], None] = lambda: None
        transport.receiver = self

    def get_buffer(self) -> memoryview:
        return self.buffer

    def received(self, count: int) -> None:
        assert not self.transport.closed
        self.data += self.buffer[:count]
        self.on_received()
        self.transport.waiter.wake()

    def eof(self) -> None:
        self.ended += 1
        self.transport.waiter.wake()

    def send(self, data: bytes) -> None:
        self.unsent = memoryview(data)
        self.writable()

    def writable(self) -> None:
        assert not self.transport.closed
        self.unsent = self.unsent[self.transport.write(self.unsent) :]

    def fail(self, exc: Exception) -> None:
        self.errors.append(exc)
        self.transport.abort()


@asynccontextmanager
async def owner() -> AsyncGenerator[Loop]:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        yield loop
        loop.close()


End = tuple[StreamTransport, Recorder, ObjectStream[bytes]]


@asynccontextmanager
async def end_of(near: Any) -> AsyncGenerator[tuple[StreamTransport, Recorder]]:
    async with owner() as loop:
        transport = StreamTransport(near, loop)
        yield transport, Recorder(transport)
        transport.abort()


@pytest.fixture
async def end() -> AsyncGenerator[End]:
    """A transport over a stream of objects, started; what it reports; the other end of the stream."""
    near, far = objects()
    async with far, end_of(near) as (transport, recorder):
        transport.start()
        yield transport, recorder, far


# Whole connections


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_over_any_stream(kind: str, loop_name: str) -> None:
    kinds(kind, loop_name)
    near, far = pair(kind)
    ends: list[CloseInfo | None] = []
    async with anyio.create_task_group() as group:

        async def serve_one() -> None:
            async with accept(far) as ws:
                async for message in ws:
                    await ws.send(message)
            ends.append(ws.close_info)

        group.start_soon(serve_one)
        async with connect("ws://host/", stream=near, max_size=None) as ws:
            await ws.send("hello")
            assert await ws.receive() == "hello"
            big = bytes(range(256)) * 2000
            async with anyio.create_task_group() as both:
                both.start_soon(ws.send, big)
                assert await ws.receive() == big
        ends.append(ws.close_info)
    assert ends == [CloseInfo(1000, "", "peer", clean=True), CloseInfo(1000, "", "local", clean=True)] or ends == [
        CloseInfo(1000, "", "local", clean=True),
        CloseInfo(1000, "", "peer", clean=True),
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_closes_over_any_stream(kind: str, loop_name: str) -> None:
    kinds(kind, loop_name)
    near, far = pair(kind)
    async with anyio.create_task_group() as group:

        async def serve_one() -> None:
            async with accept(far) as ws:
                await ws.send("bye")

        group.start_soon(serve_one)
        started = anyio.current_time()
        async with connect("ws://host/", stream=near) as ws:
            assert [message async for message in ws] == ["bye"]
        assert anyio.current_time() - started < 0.9
        assert ws.close_info == CloseInfo(1000, "", "peer", clean=True)


async def test_tls_over_a_stream() -> None:
    ca = trustme.CA()
    client_context, server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.configure_trust(client_context)
    ca.issue_cert("host").configure_cert(server_context)
    near, far = objects()
    async with anyio.create_task_group() as group:

        async def serve_one() -> None:
            async with accept(far, ssl=server_context) as ws:
                assert ws.extra(TLSAttribute.server_side)
                async for message in ws:
                    await ws.send(message)

        group.start_soon(serve_one)
        async with connect("wss://host/", stream=near, ssl=client_context) as ws:
            await ws.send("hello")
            assert await ws.receive() == "hello"


# Reading


async def test_what_arrives_is_received_in_pieces_of_the_buffer(end: End) -> None:
    transport, recorder, far = end
    await far.send(bytes(range(256)) * 10)
    while len(recorder.data) < 2560:
        await transport.waiter.wait()
    assert recorder.data == bytes(range(256)) * 10


async def test_while_paused_nothing_is_received(end: End) -> None:
    transport, recorder, far = end
    recorder.on_received = transport.pause
    await far.send(bytes(2500))
    await settle()
    assert len(recorder.data) == 1000
    transport.poll()
    transport.watch()
    await settle()
    assert len(recorder.data) == 1000
    transport.resume()
    await settle()
    assert len(recorder.data) == 2000


async def test_while_paused_no_end_is_told(end: End) -> None:
    transport, recorder, far = end
    transport.pause()
    await far.send_eof()
    await settle()
    assert recorder.ended == 0
    transport.resume()
    await settle()
    assert recorder.ended == 1


async def test_while_paused_an_error_is_told_by_poll_alone() -> None:
    near, far = objects()
    async with far, end_of(Broken(near, receive=OSError("reset"))) as (transport, recorder):
        transport.start()
        transport.pause()
        await settle()
        assert recorder.errors == []
        transport.poll()
        assert [str(exc) for exc in recorder.errors] == ["reset"]
        transport.resume()
        await settle()
        assert len(recorder.errors) == 1


async def test_while_paused_an_error_comes_after_what_came_before_it() -> None:
    near, far = objects()
    async with far, end_of(Broken(near, receive=OSError("reset"))) as (transport, recorder):
        transport.start()
        transport.pause()
        await settle()
        transport.resume()
        await settle()
        assert [str(exc) for exc in recorder.errors] == ["reset"]


async def test_a_poll_says_that_it_cannot_look(end: End) -> None:
    transport, _, _ = end
    assert not transport.poll()


async def test_a_close_and_an_end_behind_a_full_inbox_are_a_clean_end() -> None:
    near, far = objects()
    got: list[str | bytes] = []
    async with far, anyio.create_task_group() as group:

        async def serve_one() -> None:
            async with accept(near, receive_buffer_size=100) as ws:
                await settle()
                got.extend([message async for message in ws])
                assert ws.close_info == CloseInfo(1000, "", "peer", clean=True)

        group.start_soon(serve_one)
        await far.send(ClientHandshake(parse_url("ws://host/")).request_bytes())
        await far.receive()
        await far.send(encode_frame(1, "message", b"mask") * 50 + encode_frame(8, b"\x03\xe8", b"mask"))
        await far.send_eof()
    assert got == ["message"] * 50


@pytest.mark.virtual_time
async def test_a_peer_that_said_close_and_ended_its_side_may_read_slowly() -> None:
    near, far = objects(0)
    async with far, owner() as loop:
        transport = StreamTransport(near, loop)
        core = Core(transport, loop, Options(ping_interval=None), is_client=False)
        core.start(b"")
        core.send_batch([(2, bytes(1000))], 0)
        await far.send(encode_frame(8, b"\x03\xe8", b"mask"))
        await far.send_eof()
        await anyio.sleep(2 * CLOSE_SECONDS)
        assert not core.gone
        assert len(await far.receive()) == 1004
        await anyio.sleep(2 * CLOSE_SECONDS)
        assert await far.receive() == b"\x88\x02\x03\xe8"
        await settle()
        assert core.gone


async def test_an_empty_object_is_no_end(end: End) -> None:
    _, recorder, far = end
    await far.send(b"")
    await far.send(b"more")
    await settle()
    assert recorder.data == b"more"
    assert not recorder.ended


async def test_the_end_is_told_and_writing_goes_on(end: End) -> None:
    transport, recorder, far = end
    await far.send_eof()
    await settle()
    assert recorder.ended == 1
    transport.write(b"still")
    assert await far.receive() == b"still"


@pytest.mark.loops("trio")
async def test_the_end_of_a_trio_stream_is_told() -> None:
    near, far = pair("trio")
    async with end_of(near) as (transport, recorder):
        transport.start()
        await far.send_eof()
        await settle()
        assert recorder.ended == 1


class Broken(Bytes):
    """A stream each of whose methods fails on demand."""

    def __init__(self, inner: ObjectStream[bytes], **errors: Exception) -> None:
        super().__init__(inner)
        self.errors = errors

    def __getattribute__(self, name: str) -> Any:
        if name in ("receive", "send", "send_eof", "aclose") and name in self.errors:
            error = self.errors[name]

            async def fail(*args: Any) -> Any:
                await anyio.lowlevel.checkpoint()
                raise error

            return fail
        return super().__getattribute__(name)


@pytest.mark.parametrize("method", ["receive", "send", "send_eof"])
async def test_a_broken_stream_fails_as_an_oserror_with_its_cause(method: str) -> None:
    near, far = objects()
    error = anyio.BrokenResourceError()
    async with far, end_of(Broken(near, **{method: error})) as (transport, recorder):
        transport.start()
        transport.write(b"lost")
        transport.shutdown()
        await settle()
        assert [str(exc) for exc in recorder.errors] == ["the stream broke: BrokenResourceError"]
        assert isinstance(recorder.errors[0], OSError)
        assert recorder.errors[0].__cause__ is error
    await near.aclose()


async def test_an_oserror_of_the_stream_is_told_as_it_is() -> None:
    near, far = objects()
    error = OSError("as it is")
    async with far, end_of(Broken(near, receive=error)) as (transport, recorder):
        transport.start()
        await settle()
        assert recorder.errors == [error]


async def test_a_stream_that_cannot_even_be_closed_changes_nothing() -> None:
    near, far = objects()
    async with far, end_of(Broken(near, aclose=OSError("no"))) as (transport, _):
        transport.start()
        transport.close()
    await near.aclose()


# Writing


async def test_no_more_is_taken_than_a_chunk_ahead(end: End) -> None:
    near, far = objects(0)
    async with far, end_of(near) as (transport, recorder):
        transport.start()
        data = bytes(range(256)) * 1000
        recorder.send(data)
        assert len(recorder.unsent) == len(data) - CHUNK
        assert transport.write(b"no more") == 0
        got = b""
        while len(got) < len(data):
            got += await far.receive()
        assert got == data


async def test_several_buffers_are_sent_in_order(end: End) -> None:
    transport, _, far = end
    assert transport.write_vector((b"one", bytearray(b"two"), memoryview(b"three"))) == 11
    await settle()
    assert b"".join([await far.receive() for _ in range(3)]) == b"onetwothree"


async def test_shutdown_ends_our_direction_after_what_was_taken(end: End) -> None:
    transport, recorder, far = end
    transport.write(b"bye")
    transport.shutdown()
    assert await far.receive() == b"bye"
    with pytest.raises(anyio.EndOfStream):
        await far.receive()
    await far.send(b"answer")
    await settle()
    assert recorder.data == b"answer"


# Ending


async def test_close_sends_what_was_taken_then_closes_the_stream_even_if_the_owner_leaves() -> None:
    near, far = objects(0)
    got: list[bytes] = []

    async def read() -> None:
        got.extend([item async for item in far])

    async with far, anyio.create_task_group() as group:
        async with owner() as loop:
            transport = StreamTransport(near, loop)
            Recorder(transport)
            transport.start()
            transport.write_vector((b"one", b"two"))
            await settle()
            transport.close()
            transport.close()
            group.start_soon(read)
        await settle()
        group.cancel_scope.cancel()
    assert got == [b"one", b"two"]
    with pytest.raises(anyio.ClosedResourceError):
        await near.receive()


@pytest.mark.virtual_time
async def test_close_gives_a_peer_that_takes_nothing_a_second() -> None:
    near, far = objects(0)
    started = anyio.current_time()
    async with far:
        async with owner() as loop:
            transport = StreamTransport(near, loop)
            Recorder(transport)
            transport.start()
            transport.write(b"lost")
            await settle()
            transport.close()
        assert anyio.current_time() - started == pytest.approx(CLOSE_SECONDS)
        with pytest.raises(anyio.EndOfStream):
            await far.receive()


async def test_abort_sends_nothing_more() -> None:
    near, far = objects(0)
    async with far:
        async with owner() as loop:
            transport = StreamTransport(near, loop)
            Recorder(transport)
            transport.start()
            transport.write(b"lost")
            await settle()
            transport.abort()
            transport.abort()
        with pytest.raises(anyio.EndOfStream):
            await far.receive()


@pytest.mark.parametrize("end", [StreamTransport.close, StreamTransport.abort])
async def test_a_transport_that_was_never_started_closes_its_stream(end: Callable[[StreamTransport], None]) -> None:
    near, far = objects()
    async with far:
        async with owner() as loop:
            end(StreamTransport(near, loop))
        with pytest.raises(anyio.ClosedResourceError):
            await near.receive()


async def test_close_lets_wait_return(end: End) -> None:
    transport, _, _ = end
    async with anyio.create_task_group() as group:
        group.start_soon(wait, transport.waiter)
        await settle()
        transport.close()


async def test_nothing_is_received_after_close(end: End) -> None:
    transport, recorder, far = end
    recorder.on_received = transport.close
    await far.send(bytes(2500))
    await settle()
    assert len(recorder.data) == 1000
    assert not recorder.ended


async def test_attributes_are_those_of_the_stream(loop_name: str) -> None:
    async with owner() as loop:
        near, far = objects()
        async with far:
            transport = StreamTransport(near, loop)
            assert transport.attributes == near.extra_attributes
            transport.close()
        if loop_name == "trio":
            trio_near, trio_far = pair("trio")
            transport = StreamTransport(trio_near, loop)
            assert transport.attributes == {}
            transport.close()
            await trio_far.aclose()


@pytest.mark.virtual_time
async def test_leaving_a_block_whose_stream_takes_nothing_is_bounded() -> None:
    near, far = objects(0)
    started = anyio.current_time()

    async def body(ws: WebSocket) -> None:
        await ws.send(bytes(1_000_000))

    async with far, anyio.create_task_group() as group:

        async def answer() -> None:
            from anyio_ws.protocol import ServerHandshake

            handshake = ServerHandshake()
            handshake.feed(await far.receive())
            await far.send(handshake.accept()[1])

        group.start_soon(answer)
        with anyio.move_on_after(5):
            async with connect("ws://host/", stream=near) as ws:
                await body(ws)
    assert anyio.current_time() - started <= 6.1


@pytest.mark.parametrize("error", [anyio.EndOfStream(), anyio.BrokenResourceError()])
async def test_an_end_or_error_after_close_is_not_told(error: Exception) -> None:
    near, far = objects()
    release = anyio.Event()

    class Stubborn(Bytes):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            with anyio.CancelScope(shield=True):
                await release.wait()
            raise error

    async with far, end_of(Stubborn(near)) as (transport, recorder):
        transport.start()
        await settle()
        transport.close()
        release.set()
        await settle()
        assert (recorder.ended, recorder.errors) == (0, [])
