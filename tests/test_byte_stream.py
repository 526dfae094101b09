"""WebSocket.as_byte_stream: anyio's streams, TLS and HTTP on top of binary messages."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import h11
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSStream
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import ConnectionClosedError, ConnectionClosedOK, ProtocolError, Server, WebSocket, connect
from anyio_ws.testing import connected_pair, raw_peer
from support.tools import Call, cancelled_already, settle


@asynccontextmanager
async def streams(**options) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    async with connected_pair(**options) as (client, server):
        yield client.as_byte_stream(), server.as_byte_stream()


async def everything(stream: anyio.abc.ByteReceiveStream) -> bytes:
    return b"".join([data async for data in stream])


# Sending


@pytest.mark.parametrize("data", [b"a", bytearray(b"bytearray"), memoryview(b"view"), bytes(2**20)])
async def test_what_is_sent_is_one_binary_message(data):
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        tg.start_soon(client.as_byte_stream().send, data)
        assert await server.receive() == data


async def test_nothing_is_sent_for_no_bytes():
    async with connected_pair() as (client, server):
        stream = client.as_byte_stream()
        await stream.send(b"")
        await stream.send(b"something")
        assert await server.receive() == b"something"
        assert client.stats.messages_sent == 1
        await client.aclose()
        with pytest.raises(ConnectionClosedOK):
            await stream.send(b"")


async def test_more_than_a_mib_is_sent_in_messages_that_a_peer_accepts_by_default():
    data = bytes(range(256)) * 10_000
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        tg.start_soon(client.as_byte_stream().send, data)
        messages = [await server.receive_bytes() for _ in range(3)]
        assert b"".join(messages) == data
        assert [len(message) for message in messages] == [2**20, 2**20, len(data) - 2**21]


async def test_a_str_is_no_bytes():
    async with streams() as (client, _):
        with pytest.raises(TypeError, match="a byte stream sends bytes-like, not str"):
            await client.send("text")


async def test_two_tasks_cannot_send_at_once():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        peer.pause()
        stream = ws.as_byte_stream()
        tg.start_soon(stream.send, bytes(10**6))
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await stream.send(b"another")
        tg.cancel_scope.cancel()


# Receiving


async def test_a_message_comes_in_pieces_of_max_bytes():
    async with connected_pair() as (client, server):
        stream = server.as_byte_stream()
        await client.send_many([b"abcdefg", b"", b"hi", b""])
        assert [await stream.receive(3) for _ in range(4)] == [b"abc", b"def", b"g", b"hi"]
        await client.send(bytes(65537))
        assert [len(await stream.receive()) for _ in range(2)] == [65536, 1]


async def test_what_is_left_of_a_large_message_is_not_copied_each_time():
    async with connected_pair(max_size=None) as (client, server), anyio.create_task_group() as tg:
        tg.start_soon(client.send, bytes(4 * 10**6))
        stream = server.as_byte_stream()
        total = 0
        while total < 4 * 10**6:  # 80 GB, if each copied the rest
            total += len(await stream.receive(100))
        assert total == 4 * 10**6


@pytest.mark.parametrize("max_bytes", [0, -1])
async def test_max_bytes_must_be_positive(max_bytes):
    async with streams() as (client, _):
        with pytest.raises(ValueError, match=f"^max_bytes must be positive, not {max_bytes}$"):
            await client.receive(max_bytes)


async def test_two_tasks_cannot_receive_at_once():
    async with streams() as (client, server), anyio.create_task_group() as tg:
        call = Call(tg, client.receive)
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await client.receive()
        await server.send(b"for the first")
        assert await call.wait() == b"for the first"


async def test_a_text_message_closes_with_1003_and_says_what_came():
    async with connected_pair() as (client, server):
        stream = server.as_byte_stream()
        await client.send("text")
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await stream.receive()
        assert isinstance(caught.value, ConnectionClosedError)
        assert isinstance(caught.value.__cause__, ProtocolError)
        assert caught.value.close_info.code == 1003
        assert caught.value.close_info.reason == (
            "a text message of 4 characters came, expected binary (as_byte_stream)"
        )


@settings(max_examples=40)
@given(
    sent=st.lists(st.binary(max_size=3000), max_size=12),
    reads=st.lists(st.integers(1, 4000), min_size=1, max_size=20),
)
async def test_any_pieces_give_the_same_bytes(sent, reads):
    async with streams() as (client, server), anyio.create_task_group() as tg:

        async def send() -> None:
            for data in sent:
                await client.send(data)
            await client.aclose()

        tg.start_soon(send)
        received = b""
        with pytest.raises(anyio.EndOfStream):
            while True:
                size = reads[len(received) % len(reads)]
                piece = await server.receive(size)
                assert 1 <= len(piece) <= size
                received += piece
        assert received == b"".join(sent)


@settings(max_examples=40)
@given(steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 50)), max_size=25))
async def test_receivers_cancelled_anywhere_lose_no_byte(steps):
    data = bytes(range(250))
    received = b""
    async with connected_pair(receive_buffer_size=200) as (client, server), anyio.create_task_group() as tg:
        stream = server.as_byte_stream()
        tg.start_soon(client.send_many, [data[start : start + 50] for start in range(0, 250, 50)])

        async def receive(size: int) -> None:
            nonlocal received
            received += await stream.receive(size)

        for wait, size in steps:
            call = Call(tg, receive, size)
            for _ in range(wait):
                await checkpoint()
            call.cancel()
            await settle()
        while len(received) < len(data):
            received += await stream.receive()
    assert received == data


async def test_every_call_looks_for_a_cancellation_first():
    async with connected_pair() as (client, server):
        stream = client.as_byte_stream()
        await server.send(b"abc")
        assert await stream.receive(1) == b"a"
        for call in (
            stream.receive,  # which has something left
            lambda: stream.send(b""),
            lambda: stream.send(b"data"),
            lambda: stream.send(bytes(2**21)),
            stream.aclose,
        ):
            await cancelled_already(call)
        assert await stream.receive() == b"bc"
        assert client.stats.messages_sent == 0
        await server.send(b"more")
        await cancelled_already(stream.receive)
        assert await stream.receive() == b"more"


# The end


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_good_end_is_end_of_stream_behind_all_the_bytes(code):
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        stream = server.as_byte_stream()
        await client.send(b"last words")
        assert await stream.receive(5) == b"last "
        tg.start_soon(client.aclose, code)
        await server.wait_closed()
        assert await stream.receive() == b"words"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()


async def test_any_other_end_is_broken_resource():
    async with raw_peer() as (peer, ws):
        stream = ws.as_byte_stream()
        peer.reset()
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"data")


async def test_closing_closes_the_websocket_with_1000():
    async with connected_pair() as (client, server):
        stream = client.as_byte_stream()
        await server.send(b"unread")
        assert await stream.receive(2) == b"un"
        await stream.aclose()
        assert client.close_info is not None
        assert (client.close_info.code, client.close_info.clean) == (1000, True)
        await stream.aclose()
        for call in stream.receive, lambda: stream.send(b"data"), lambda: stream.send(bytes(2**21)):
            with pytest.raises(anyio.ClosedResourceError) as caught:
                await call()
            assert isinstance(caught.value, ConnectionClosedOK)
        with pytest.raises(anyio.EndOfStream):
            await server.as_byte_stream().receive()


async def test_one_direction_cannot_be_closed():
    async with streams() as (client, _):
        with pytest.raises(NotImplementedError, match="use aclose"):
            await client.send_eof()


@pytest.mark.real_time
async def test_the_attributes_are_the_websockets():
    async def handler(ws: WebSocket) -> None:
        await ws.wait_closed()

    async with Server(handler, "localhost", 0) as server, connect(server.url) as ws:
        assert ws.as_byte_stream().extra(SocketAttribute.remote_port) == server.port


# On top of it


async def test_lines():
    async with streams() as (client, server):
        await client.send(b"one\ntw")
        await client.send(b"o\nthree\n")
        lines = BufferedByteReceiveStream(server)
        assert [await lines.receive_until(b"\n", 100) for _ in range(3)] == [b"one", b"two", b"three"]


async def test_sending_and_receiving_at_once():
    data = bytes(range(256)) * 4000

    async with streams() as (client, server), anyio.create_task_group() as tg:

        async def send(stream: ByteStream) -> None:
            for start in range(0, len(data), 10_000):
                await stream.send(data[start : start + 10_000])

        async def receive(stream: ByteStream) -> None:
            received = b""
            while len(received) < len(data):
                received += await stream.receive(777 * 11)
            assert received == data

        for end in client, server:
            tg.start_soon(send, end)
            tg.start_soon(receive, end)


AUTHORITY = trustme.CA()


@asynccontextmanager
async def over_tls(client: WebSocket, server: WebSocket) -> AsyncIterator[tuple[TLSStream, TLSStream]]:
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("inner.example").configure_cert(server_context)
    client_context = ssl.create_default_context()
    AUTHORITY.configure_trust(client_context)
    async with anyio.create_task_group() as tg:
        wrapping = Call(
            tg, lambda: TLSStream.wrap(server.as_byte_stream(), server_side=True, ssl_context=server_context)
        )
        inner = await TLSStream.wrap(client.as_byte_stream(), hostname="inner.example", ssl_context=client_context)
        yield inner, await wrapping.wait()


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
async def test_tls_both_ways(size):
    data = bytes(range(250)) * (size // 250 + 1)
    async with (
        connected_pair() as (client, server),
        over_tls(client, server) as (inner, outer),
        anyio.create_task_group() as tg,
    ):

        async def answer() -> None:
            received = b""
            while len(received) < len(data):
                received += await outer.receive()
            await outer.send(received[::-1])

        tg.start_soon(answer)
        await inner.send(data)
        answered = b""
        while len(answered) < len(data):
            answered += await inner.receive()
        assert answered == data[::-1]


async def test_the_end_of_tls_is_told_from_a_cut_connection():
    async with connected_pair() as (client, server), over_tls(client, server) as (inner, outer):
        await inner.send(b"all")
        async with anyio.create_task_group() as tg:
            tg.start_soon(inner.aclose)
            assert await everything(outer) == b"all"
            await outer.aclose()
        assert client.close_info is not None
        assert (client.close_info.code, client.close_info.clean) == (1000, True)
    async with connected_pair() as (client, server), over_tls(client, server) as (_, outer):
        await client.aclose()
        with pytest.raises(anyio.BrokenResourceError):
            await outer.receive()


async def test_http_on_top():
    body = bytes(range(256)) * 1000

    async def events(stream: ByteStream, http: h11.Connection) -> list[object]:
        """Receive one message of HTTP."""
        found: list[object] = []
        while not found or not isinstance(found[-1], h11.EndOfMessage):
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive())
            else:
                found.append(event)
        return found

    async def serve(stream: ByteStream) -> None:
        http = h11.Connection(h11.SERVER)
        request, *_ = await events(stream, http)
        assert isinstance(request, h11.Request)
        headers = [("Content-Length", str(len(body))), ("Connection", "close")]
        for event in h11.Response(status_code=200, headers=headers), h11.Data(data=body), h11.EndOfMessage():
            await stream.send(http.send(event) or b"")
        await stream.aclose()

    async with streams() as (client, server), anyio.create_task_group() as tg:
        tg.start_soon(serve, server)
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target="/", headers=[("Host", "inner.example")])
        await client.send((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        response, *parts, _ = await events(client, http)
        assert isinstance(response, h11.Response)
        assert response.status_code == 200
        assert b"".join(bytes(part.data) for part in parts if isinstance(part, h11.Data)) == body
        with pytest.raises(anyio.EndOfStream):
            await client.receive()
