"""What an evil client does to our server before the connection is open, and at its very beginning."""

import logging
import socket
from collections.abc import Callable

import anyio
import pytest

from anyio_ws import ConnectionClosedError, Request, Response, Server, ServerStats, WebSocket, connect
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.testing import MemoryServer
from support.peers import UPGRADE, dial, growth, head, lost_by_uvloop, read_head, reset, sockets, until
from support.tools import settle

KEY = b"\x37\xfa\x21\x3d"


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Slow


@pytest.mark.virtual_time
async def test_a_request_byte_by_byte_does_not_extend_open_timeout() -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        start = anyio.current_time()
        for i in range(len(UPGRADE)):
            await peer.send(UPGRADE[i : i + 1])
            await anyio.sleep(0.1)
            if peer._eof:
                break
        assert anyio.current_time() - start == pytest.approx(10, abs=0.2)
        assert await peer.receive_eof() == b""
        await settle()
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


@pytest.mark.virtual_time
async def test_a_body_byte_by_byte_does_not_extend_open_timeout() -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        start = anyio.current_time()
        await peer.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 65536\r\n\r\n")
        while not peer._eof:
            await peer.send(b"x")
            await anyio.sleep(0.1)
        assert anyio.current_time() - start == pytest.approx(10, abs=0.2)
        assert await peer.receive_eof() == b""


@pytest.mark.virtual_time
async def test_a_client_that_says_nothing_is_dropped_after_open_timeout() -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        start = anyio.current_time()
        assert await peer.receive_eof() == b""
        assert anyio.current_time() - start == pytest.approx(10)


# Large


@pytest.mark.parametrize(
    ("start", "bomb", "answer"),
    [
        (b"GET / HTTP/1.1\r\n", b"A:b\r\n" * 12_000, b"HTTP/1.1 431 "),
        (b"GET / HTTP/1.1\r\nA: ", b"x" * 60_000, b"HTTP/1.1 431 "),
        (b"GET / HTTP/1.1\r\nA: b", b"\r\n b" * 15_000, b"HTTP/1.1 400 "),
        (b"GET /", b"x" * 60_000, b"HTTP/1.1 414 "),
        (b"", b"x" * 60_000, b"HTTP/1.1 414 "),
        (b"", b"\r\n" * 30_000, b"HTTP/1.1 400 "),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 60_000, b"HTTP/1.1 413 "),
        (b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9999, b"HTTP/1.1 411 "),
    ],
    ids=["count", "size", "folds", "target", "line", "empty lines", "body", "chunks"],
)
async def test_a_bomb_before_the_handshake_is_refused_and_takes_no_memory(
    start: bytes, bomb: bytes, answer: bytes
) -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        with growth() as memory:
            await peer.send(start)
            for _ in range(50):
                await peer.send(bomb)
            data = await peer.receive_eof()
            assert memory.peak < 512 * 1024
        assert data.startswith(answer)
        assert data.count(b"HTTP/1.1 ") == 1


async def test_what_comes_while_process_request_waits_is_bounded_and_not_lost() -> None:
    decided, sent = anyio.Event(), anyio.Event()

    async def process_request(request: Request) -> None:
        await decided.wait()

    message = encode_frame(Opcode.BINARY, bytes(1000), KEY)
    async with (
        MemoryServer(echo, process_request=process_request) as server,
        dial(server) as peer,
        anyio.create_task_group() as group,
    ):

        async def flood() -> None:
            await peer.send(UPGRADE)
            for _ in range(1000):
                await peer.send(message)
            sent.set()

        with growth() as memory:
            group.start_soon(flood)
            for _ in range(20):
                await settle()
            assert memory.peak < 512 * 1024
        assert not sent.is_set()
        decided.set()
        await sent.wait()
        assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
        for _ in range(1000):
            assert (await peer.receive_frame()).payload == bytes(1000)


# Too much at once


def refuses(request: Request) -> Response:
    return Response(403)


@pytest.mark.parametrize(
    ("first", "process_request", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", None, b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", None, b"HTTP/1.1 426 "),
        (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc", None, b"HTTP/1.1 426 "),
        (UPGRADE.replace(b"Host: test", b"Host: test\r\nContent-Length: 3"), None, b"HTTP/1.1 400 "),
        (UPGRADE.replace(b"Host: test", b"Host: test\r\nOrigin: http://evil.example"), None, b"HTTP/1.1 403 "),
        (UPGRADE, refuses, b"HTTP/1.1 403 "),
    ],
    ids=["malformed", "plain", "a body", "an upgrade with a body", "another origin", "refused"],
)
@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "whole"])
async def test_a_request_behind_a_refused_one_is_not_looked_at(
    first: bytes, process_request: Callable[[Request], Response] | None, answer: bytes, size: int
) -> None:
    async with MemoryServer(echo, process_request=process_request) as server:
        async with dial(server) as peer:
            data = first + UPGRADE
            for i in range(0, len(data), size):
                await peer.send(data[i : i + size])
            received = await peer.receive_eof()
        assert received.startswith(answer)
        assert received.count(b"HTTP/1.1 ") == 1
        await settle()
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


async def test_a_request_behind_the_upgrade_is_a_violation_of_the_protocol() -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        await peer.send(UPGRADE + UPGRADE)
        assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
        frame = await peer.receive_frame()
        assert (frame.opcode, frame.payload[:2]) == (Opcode.CLOSE, (1002).to_bytes(2))
        assert await peer.receive_eof() == b""


@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "whole"])
async def test_frames_in_the_segment_of_the_request_are_received_and_a_violation_among_them_is_found(size: int) -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        data = UPGRADE + encode_frame(Opcode.TEXT, "hello", KEY) + encode_frame(Opcode.TEXT, "unmasked")
        for i in range(0, len(data), size):
            await peer.send(data[i : i + size])
        assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
        assert (await peer.receive_frame()).payload == b"hello"
        assert (await peer.receive_frame()).payload[:2] == (1002).to_bytes(2)
        assert await peer.receive_eof() == b""


# Injection


@pytest.mark.parametrize("status_code", [101, 302, 404])
async def test_what_a_client_says_cannot_become_a_header_of_ours(
    status_code: int, caplog: pytest.LogCaptureFixture
) -> None:
    def process_request(request: Request) -> Response:
        return Response(status_code, {"X-Path": request.path})

    async with MemoryServer(echo, process_request=process_request) as server, dial(server) as peer:
        await peer.send(UPGRADE.replace(b"/chat", b"/%0d%0aSet-Cookie:%20evil=1"))
        received = await peer.receive_eof()
    assert received.startswith(b"HTTP/1.1 500 ")
    assert b"evil" not in received
    assert errors(caplog) == ["process_request failed"]


@pytest.mark.parametrize("bad", ["\r\nX: y", "\r", "\n", "\0", "\x7f", "\u2028"])
def test_no_option_of_the_server_lets_a_line_end_into_a_header(bad: str) -> None:
    for name, value in ("X", f"a{bad}b"), (f"X{bad}", "a"), ("Set-Cookie", bad + "a"), ("Location", "/" + bad):
        with pytest.raises(ValueError, match="headers: "):
            Response(101, {name: value})
        with pytest.raises(ValueError, match="headers: "):
            Response(302, [(name, value)])
    with pytest.raises(ValueError, match="server_header"):
        Server(echo, port=0, server_header=f"a{bad}b")
    with pytest.raises(ValueError, match="subprotocols"):
        Server(echo, port=0, subprotocols=[f"a{bad}b"])


# With a kernel


PARTS = {"nothing": b"", "all but a byte": UPGRADE[:-1]}


@pytest.mark.real_time
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["end", "reset"])
async def test_a_connection_that_dies_before_its_handshake_frees_its_descriptor_at_once(
    part: str,
    end: Callable[[socket.socket], None],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    if part != "nothing" and end is reset:
        lost_by_uvloop(request)
    async with Server(echo, "127.0.0.1", 0, open_timeout=None, ping_interval=None) as server:
        before = sockets()
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        await until(lambda: len(sockets() - before) == 20)
        for client in clients:
            client.send(PARTS[part])
            end(client)
        await until(lambda: not sockets() - before)
        await until(lambda: server.stats.rejected == 10)
    assert errors(caplog) == []


@pytest.mark.real_time
async def test_a_reset_while_process_request_waits_is_found_when_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    asked, decided = anyio.Event(), anyio.Event()

    async def process_request(request: Request) -> None:
        asked.set()
        await decided.wait()

    async with Server(echo, "127.0.0.1", 0, process_request=process_request, open_timeout=None) as server:
        before = sockets()
        client = socket.create_connection(("127.0.0.1", server.port))
        client.send(UPGRADE)
        await asked.wait()
        reset(client)
        decided.set()
        await until(lambda: not sockets() - before)
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)
    assert errors(caplog) == []


@pytest.mark.real_time
async def test_resets_of_others_reach_neither_the_handler_of_one_nor_the_listener(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes: list[int] = []

    async def handler(ws: WebSocket) -> None:
        if ws.request.path == "/":
            await echo(ws)
        else:
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.receive()
            outcomes.append(caught.value.close_info.code)

    async with Server(handler, "127.0.0.1", 0) as server, connect(server.url) as ws:
        before = sockets()
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.setblocking(False)
                client.send(UPGRADE)
                await read_head(client)
                reset(client)
        await until(lambda: not sockets() - before and len(outcomes) == 10)
        assert outcomes == [1006] * 10
        await ws.send("still here")
        assert await ws.receive() == "still here"
        async with connect(server.url) as another:
            await another.send("hello")
            assert await another.receive() == "hello"
    assert errors(caplog) == []
