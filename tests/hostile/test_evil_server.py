"""What an evil server does to our client before the connection is open, and at its very beginning."""

import base64
import socket
from typing import Any

import anyio
import pytest

from anyio_ws import (
    ConnectFailed,
    ConnectionClosedError,
    HandshakeRejected,
    InvalidHandshake,
    OpenTimeout,
    connect,
)
from anyio_ws.protocol import Opcode, encode_frame
from support.peers import evil_server, growth, head, lost_by_uvloop, read_head, reset, sockets, switching
from support.tools import settle

# Slow


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 404 No\r\n\r\n"],
    ids=["status line", "reason", "header", "body"],
)
async def test_an_answer_byte_by_byte_does_not_extend_open_timeout(start: bytes) -> None:
    async with evil_server() as (peer, dialled), anyio.create_task_group() as group:

        async def trickle() -> None:
            await head(peer)
            await peer.send(start)
            for byte in b"" if start else b"HTTP/1.1 ":
                await anyio.sleep(1)
                await peer.send(bytes([byte]))
            while True:
                await anyio.sleep(1)
                await peer.send(b"2")

        group.start_soon(trickle)
        begun = anyio.current_time()
        with pytest.raises(OpenTimeout, match="open_timeout=10 s"):
            async with dialled():
                ...
        assert anyio.current_time() - begun == pytest.approx(10)
        assert await peer.receive_eof() == b""
        group.cancel_scope.cancel()


# Large


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"HTTP/1.1 404 No\r\n\r\n", b"x" * 60_000),
        (b"HTTP/1.1 404 No\r\nContent-Length: 999999999999\r\n\r\n", b"x" * 60_000),
        (b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9999),
        (b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", b"x" * 60_000),
    ],
    ids=["until the end", "length", "small chunks", "a large chunk"],
)
async def test_the_endless_body_of_a_refusal_is_cut(start: bytes, endless: bytes) -> None:
    async with evil_server() as (peer, dialled), anyio.create_task_group() as group:

        async def flood() -> None:
            await head(peer)
            await peer.send(start)
            while not peer._eof:
                await peer.send(endless)

        group.start_soon(flood)
        with growth() as memory:
            with pytest.raises(HandshakeRejected, match="404") as caught:
                async with dialled():
                    ...
            assert memory.peak < 1024 * 1024
        assert set(caught.value.response.body) == set(b"x")
        assert len(caught.value.response.body) <= 65536


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\n" + b"A:b\r\n" * 12_000,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 60_000,
        b"HTTP/1.1 200 OK\r\nA: b" + b"\r\n b" * 15_000,
        b"HTTP/1.1 200 " + b"x" * 60_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2000,
    ],
    ids=["count", "size", "folds", "line", "interim answers"],
)
async def test_an_endless_head_is_refused(endless: bytes) -> None:
    async with evil_server() as (peer, dialled), anyio.create_task_group() as group:

        async def flood() -> None:
            await head(peer)
            await peer.send(endless)

        group.start_soon(flood)
        with growth() as memory:
            with pytest.raises(InvalidHandshake, match="the most accepted"):
                async with dialled():
                    ...
            assert memory.peak < 512 * 1024
        assert await peer.receive_eof() == b""


# Lies


@pytest.mark.parametrize(
    ("fields", "accept", "message"),
    [
        (["Content-Length: 5"], None, "a 101 with a body"),
        (["Transfer-Encoding: chunked"], None, "a 101 with a body"),
        (["Sec-WebSocket-Extensions: permessage-deflate"], None, "expected none, for none was offered"),
        (["Sec-WebSocket-Protocol: chat"], None, "the option subprotocols offers: none"),
        ([], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the 101 has Sec-WebSocket-Accept"),
        ([], "", "the 101 has Sec-WebSocket-Accept"),
    ],
    ids=["a body", "a chunked body", "an extension", "a subprotocol", "another accept", "an empty accept"],
)
async def test_a_101_that_lies_is_hung_up_on_without_a_frame(
    fields: list[str], accept: str | None, message: str
) -> None:
    async with evil_server() as (peer, dialled), anyio.create_task_group() as group:

        async def answer() -> None:
            await peer.send(switching(await head(peer), *fields, accept=accept) + b"\x81\x05hello")

        group.start_soon(answer)
        with pytest.raises(InvalidHandshake, match=message):
            async with dialled():
                ...
        assert await peer.receive_eof() == b""


@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "whole"])
async def test_frames_in_the_segment_of_the_101_are_received_and_a_violation_among_them_is_found(size: int) -> None:
    frames = encode_frame(Opcode.TEXT, "hello") + encode_frame(Opcode.TEXT, "masked", b"abcd")
    async with evil_server() as (peer, dialled), anyio.create_task_group() as group:

        async def answer() -> None:
            data = switching(await head(peer)) + frames
            for i in range(0, len(data), size):
                await peer.send(data[i : i + size])

        group.start_soon(answer)
        async with dialled() as ws:
            assert await ws.receive() == "hello"
            with pytest.raises(ConnectionClosedError, match="1002"):
                await ws.receive()
            assert (await peer.receive_frame()).payload[:2] == (1002).to_bytes(2)
            peer.send_eof()


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "401 Unauthorized"])
@pytest.mark.real_time
async def test_no_answer_makes_the_client_ask_again_or_elsewhere(status: str) -> None:
    requests: list[bytes] = []

    async def serve() -> None:
        while True:
            await anyio.wait_readable(listener)
            sock = listener.accept()[0]
            with sock:
                sock.setblocking(False)
                requests.append(await read_head(sock))
                where = f"ws://127.0.0.1:{listener.getsockname()[1]}/again"
                sock.send(f"HTTP/1.1 {status}\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            with pytest.raises(HandshakeRejected, match=status) as caught:
                async with connect(f"ws://ann:secret@127.0.0.1:{listener.getsockname()[1]}/"):
                    ...
            await settle()
            group.cancel_scope.cancel()
    assert caught.value.response.headers["Location"].endswith("/again")
    assert len(requests) == 1
    assert base64.b64encode(b"ann:secret") in requests[0]


# Injection


@pytest.mark.parametrize("bad", ["\r\nX: y", "\r", "\n", "\0", "\x7f", "\u2028"])
@pytest.mark.parametrize(
    "option",
    [
        *("a header's value", "a header's name", "origin", "user_agent_header", "subprotocols", "path", "query"),
        *("host", "username", "password", "encoded username", "encoded password"),
    ],
)
def test_no_option_of_connect_lets_a_line_end_into_the_request(option: str, bad: str) -> None:
    encoded = "".join(f"%{byte:02x}" for byte in bad.encode())
    url, options = {
        "a header's value": ("ws://h/", {"additional_headers": {"X": f"a{bad}b"}}),
        "a header's name": ("ws://h/", {"additional_headers": [(f"X{bad}", "b")]}),
        "origin": ("ws://h/", {"origin": f"http://a{bad}b"}),
        "user_agent_header": ("ws://h/", {"user_agent_header": f"a{bad}b"}),
        "subprotocols": ("ws://h/", {"subprotocols": [f"a{bad}b"]}),
        "path": (f"ws://h/a{bad}b", {}),
        "query": (f"ws://h/?a{bad}b", {}),
        "host": (f"ws://h{bad}h/", {}),
        "username": (f"ws://a{bad}b@h/", {}),
        "password": (f"ws://a:b{bad}c@h/", {}),
        "encoded username": (f"ws://a{encoded}b@h/", {}),
        "encoded password": (f"ws://a:b{encoded}c@h/", {}),
    }[option]
    arguments: dict[str, Any] = options  # type: ignore[assignment]
    if option.startswith("encoded") and bad == "\u2028":
        url = "ws://a%0ab@h/"  # in base64 no character does harm; what RFC 7617 forbids are controls
    with pytest.raises(ValueError, match=r"character|not a token|control"):
        connect(url, **arguments)


async def test_an_encoded_line_end_in_the_url_stays_encoded() -> None:
    ws = connect("ws://h/a%0d%0aX:%20y?b%0d%0aZ:%20z")
    request = ws._handshake.request_bytes()
    assert request.startswith(b"GET /a%0d%0aX:%20y?b%0d%0aZ:%20z HTTP/1.1\r\n")
    assert b"\r\nX:" not in request
    assert b"\r\nZ:" not in request


# With a kernel


@pytest.mark.real_time
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101 Yes\r\nUpgrade: web"], ids=["nothing", "half a 101"])
async def test_a_reset_in_the_answer_is_connect_failed_and_frees_the_descriptor(
    said: bytes, request: pytest.FixtureRequest
) -> None:
    if said:
        lost_by_uvloop(request)

    async def serve() -> None:
        await anyio.wait_readable(listener)
        sock = listener.accept()[0]
        sock.setblocking(False)
        await read_head(sock)
        sock.send(said)
        reset(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = sockets()
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            with pytest.raises(ConnectFailed), anyio.fail_after(0.9):
                async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/", open_timeout=None):
                    ...
        assert sockets() - before == set()


@pytest.mark.real_time
async def test_a_reset_right_behind_the_101_ends_the_connection_at_once(request: pytest.FixtureRequest) -> None:
    lost_by_uvloop(request)

    async def serve() -> None:
        await anyio.wait_readable(listener)
        sock = listener.accept()[0]
        sock.setblocking(False)
        sock.send(switching(await read_head(sock)) + encode_frame(Opcode.TEXT, "hello"))
        reset(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = sockets()
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            with anyio.fail_after(0.9):
                async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/", ping_interval=None) as ws:
                    assert await ws.receive() == "hello"
                    with pytest.raises(ConnectionClosedError, match="1006"):
                        await ws.receive()
        assert sockets() - before == set()
