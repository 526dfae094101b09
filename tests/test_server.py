"""The server: where it listens, what it answers, how its connections end, and how it does."""

import asyncio
import errno
import logging
import re
import socket
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from anyio_ws import (
    CloseInfo,
    ConnectFailed,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeRejected,
    Request,
    Response,
    Server,
    ServerStats,
    WebSocket,
    connect,
    serve,
)
from anyio_ws.loops import open_loop
from anyio_ws.protocol import Opcode, encode_close, encode_frame
from anyio_ws.tasks import Tasks
from anyio_ws.testing import MemoryServer, RawFrame, RawPeer
from anyio_ws.transports.memory import CAPACITY
from anyio_ws.upgrade import REFUSED_SECONDS
from support.peers import dial, head
from support.tools import Call, jump, settle

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def idle(ws: WebSocket) -> None:
    await ws.wait_closed()


async def opened(peer: RawPeer) -> None:
    await peer.send(UPGRADE + b"\r\n")
    assert (await head(peer)).startswith(b"HTTP/1.1 101 ")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Options


def test_handler_must_be_callable() -> None:
    with pytest.raises(TypeError, match="handler must be callable"):
        Server("echo", port=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"port": 0, "uds": "/x"}, {"uds": "/x", "listeners": []}])
def test_a_server_listens_in_exactly_one_way(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one of these options"):
        Server(echo, **options)


def test_host_without_port_is_refused() -> None:
    with pytest.raises(ValueError, match="host goes with port"):
        Server(echo, "localhost", uds="/x")


def test_max_connections_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="max_connections must be at least 1 or None, not 0"):
        Server(echo, port=0, max_connections=0)


def test_process_request_must_be_callable() -> None:
    with pytest.raises(TypeError, match="process_request must be callable"):
        Server(echo, port=0, process_request="no")  # type: ignore[arg-type]


def test_origins_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="origins="):
        Server(echo, port=0, origins="https://example.com")  # type: ignore[arg-type]


def test_a_context_without_a_servers_side_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="ssl"):
        Server(echo, port=0, ssl=ssl.create_default_context())


async def test_a_server_is_for_one_block() -> None:
    server = MemoryServer(echo)
    async with server:
        with pytest.raises(RuntimeError, match="a Server is for one `async with` only"):
            await server.__aenter__()


# Where it listens


@pytest.mark.real_time
async def test_port_0_lets_the_system_choose() -> None:
    async with Server(echo, "127.0.0.1", 0) as server:
        assert server.addresses == (("127.0.0.1", server.port),)
        assert server.url == f"ws://127.0.0.1:{server.port}/"
        async with connect(server.url) as ws:
            await ws.send("hello")
            assert await ws.receive() == "hello"


@pytest.mark.real_time
@pytest.mark.parametrize(("host", "url_host"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")])
async def test_url_is_what_a_client_on_this_machine_dials(host: str, url_host: str) -> None:
    async with Server(echo, host, 0) as server:
        assert server.url == f"ws://{url_host}:{server.port}/"
        async with connect(server.url) as ws:
            await ws.send("hello")
            assert await ws.receive() == "hello"


@pytest.mark.real_time
async def test_all_hosts_have_the_same_port_and_all_are_served() -> None:
    async with Server(echo, ["127.0.0.1", "127.0.0.2", "::1"], 0) as server:
        assert [address[0] for address in server.addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
        assert {address[1] for address in server.addresses} == {server.port}
        for host in "127.0.0.1", "127.0.0.2", "[::1]":
            async with connect(f"ws://{host}:{server.port}/") as ws:
                await ws.send(host)
                assert await ws.receive() == host


@pytest.mark.real_time
async def test_a_port_that_is_taken_raises_on_entering() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}") as info:
            async with Server(echo, "127.0.0.1", port):
                pass
        assert info.value.errno == errno.EADDRINUSE


@pytest.mark.real_time
async def test_uds(tmp_path: Path) -> None:
    path = tmp_path / "ws.sock"
    async with Server(echo, uds=path) as server:
        assert server.addresses == (str(path),)
        assert server.url == "ws://localhost/"
        with pytest.raises(ValueError, match="does not listen on TCP"):
            _ = server.port
        async with connect(server.url, uds=path) as ws:
            await ws.send("hello")
            assert await ws.receive() == "hello"
            (connection,) = server.connections
            assert connection.remote_address is None
            assert connection.local_address == str(path)
    assert not path.exists()


@pytest.mark.real_time
async def test_listeners_are_used_and_closed_with_the_server(tmp_path: Path) -> None:
    tcp = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "ws.sock"))
    unix.listen()
    async with Server(echo, listeners=[unix, tcp]) as server:
        assert server.addresses == (str(tmp_path / "ws.sock"), tcp.getsockname())
        assert server.port == tcp.getsockname()[1]
        for client in connect(server.url), connect("ws://test/", uds=tmp_path / "ws.sock"):
            async with client as ws:
                await ws.send("hello")
                assert await ws.receive() == "hello"
    assert tcp.fileno() == unix.fileno() == -1


@pytest.mark.real_time
async def test_a_listener_that_does_not_listen_is_refused() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="does not listen"):
            async with Server(echo, listeners=[bound]):
                pass


@pytest.mark.real_time
async def test_tls() -> None:
    ca = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    ca.configure_trust(client_context)
    async with Server(echo, "127.0.0.1", 0, ssl=server_context) as server:
        assert server.url == f"wss://127.0.0.1:{server.port}/"
        async with connect(server.url, ssl=client_context) as ws:
            await ws.send("hello")
            assert await ws.receive() == "hello"


# What it is doing


async def test_connections_and_stats_say_what_is_open() -> None:
    async with MemoryServer(echo) as server:
        assert server.connections == frozenset()
        async with server.connect(), server.connect():
            assert len(server.connections) == 2
            assert server.stats == ServerStats(accepted=2, rejected=0, open=2)
        await settle()
        assert server.connections == frozenset()
        with pytest.raises(HandshakeRejected):
            async with server.connect(origin="http://elsewhere"):
                pass
        await settle()
        assert server.stats == ServerStats(accepted=2, rejected=1, open=0)


@pytest.mark.real_time
async def test_a_connection_knows_its_addresses() -> None:
    async with Server(echo, "127.0.0.1", 0) as server, connect(server.url) as ws:
        (connection,) = server.connections
        assert connection.remote_address == connection.request.remote_address == ws.local_address
        assert connection.local_address == ws.remote_address == ("127.0.0.1", server.port)
    assert ws.local_address is None


# serve


@pytest.mark.real_time
async def test_serve_hands_the_server_to_task_group_start() -> None:
    async with anyio.create_task_group() as group:
        server: Server = await group.start(partial(serve, echo, "127.0.0.1", 0, max_size=10))
        async with connect(server.url) as ws:
            await ws.send("12345678901")
            with pytest.raises(ConnectionClosedError, match="max_size=10"):
                await ws.receive()
        await server.drain()  # serve() then returns, so the group ends


@pytest.mark.real_time
async def test_serve_cancelled_says_1001() -> None:
    async with anyio.create_task_group() as group:
        server: Server = await group.start(serve, echo, "127.0.0.1", 0)
        async with connect(server.url) as ws:
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                assert (await ws.wait_closed()).code == 1001


# process_request


def on_state(request: Request) -> None:
    request.state["user"] = "ann"


async def whoami(ws: WebSocket) -> None:
    await ws.send(ws.request.state["user"])


async def test_process_request_accepts_with_none_and_state_reaches_the_handler() -> None:
    async with MemoryServer(whoami, process_request=on_state) as server, server.connect() as ws:
        assert await ws.receive() == "ann"


async def test_process_request_may_be_async() -> None:
    async def process_request(request: Request) -> Response | None:
        await anyio.lowlevel.checkpoint()
        on_state(request)
        return None

    async with MemoryServer(whoami, process_request=process_request) as server, server.connect() as ws:
        assert await ws.receive() == "ann"


async def test_process_request_refuses_with_any_other_response() -> None:
    async with MemoryServer(echo, process_request=lambda _: Response(401, {"WWW-Authenticate": "Bearer"}, "no\n")) as s:
        with pytest.raises(HandshakeRejected, match="401 Unauthorized") as info:
            async with s.connect():
                pass
    response = info.value.response
    assert (response.body, response.headers["WWW-Authenticate"]) == (b"no\n", "Bearer")


async def test_process_request_adds_headers_and_chooses_the_subprotocol_with_101() -> None:
    def process_request(request: Request) -> Response:
        return Response(101, {"X-Room": request.path, "Sec-WebSocket-Protocol": request.subprotocols[1]})

    async with (
        MemoryServer(echo, process_request=process_request, subprotocols=["v1"]) as server,
        server.connect("/lobby", subprotocols=["v1", "v2"]) as ws,
    ):
        assert ws.response.headers["X-Room"] == "/lobby"
        assert ws.subprotocol == "v2"
        (connection,) = server.connections
        assert connection.subprotocol == "v2"
        assert connection.response.headers["X-Room"] == "/lobby"


def raises(request: Request) -> Response:
    raise KeyError("secret")


async def raises_later(request: Request) -> Response:
    await anyio.lowlevel.checkpoint()
    raise OSError("secret")


@pytest.mark.parametrize(
    "process_request",
    [
        pytest.param(raises, id="an exception"),
        pytest.param(raises_later, id="an exception of an async one"),
        pytest.param(lambda _: True, id="something else than a Response"),
        pytest.param(lambda _: Response(101, {"Sec-WebSocket-Protocol": "v9"}), id="a subprotocol not offered"),
        pytest.param(lambda _: Response(101, {"Upgrade": "x"}), id="a header that is ours"),
        pytest.param(lambda _: Response(102), id="an interim status"),
    ],
)
async def test_process_request_that_fails_is_500_and_logged_once(
    process_request: Callable[[Request], Response], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anyio_ws.server")
    async with MemoryServer(echo, process_request=process_request) as server:
        with pytest.raises(HandshakeRejected, match="500 Internal Server Error") as info:
            async with server.connect():
                pass
        await settle()  # until the server has hung up
    assert b"secret" not in info.value.response.body
    assert errors(caplog) == ["process_request failed"]
    assert all(record.connection_id == "-" for record in caplog.records)  # type: ignore[attr-defined]
    assert caplog.messages[-1].endswith("was answered 500 Internal Server Error")


@pytest.mark.parametrize(
    ("attribute", "value"), [("body", "text"), ("headers", {"A": "b"}), ("reason_phrase", "No\r\nEvil: 1")]
)
async def test_a_response_that_was_tampered_with_is_500_and_the_server_lives(attribute: str, value: object) -> None:
    def process_request(request: Request) -> Response:
        response = Response(404)
        setattr(response, attribute, value)
        return response

    async with MemoryServer(echo, process_request=process_request) as server:
        for _ in range(2):
            with pytest.raises(HandshakeRejected, match="500 Internal Server Error"):
                async with server.connect():
                    pass


async def test_process_request_sees_only_what_passed_our_own_checks() -> None:
    seen: list[Request] = []
    async with MemoryServer(echo, process_request=lambda request: seen.append(request)) as server:  # type: ignore[func-returns-value]
        with pytest.raises(HandshakeRejected, match="403"):
            async with server.connect(origin="http://elsewhere"):
                pass
    assert seen == []


# Plain HTTP


async def answer(server: MemoryServer, request: bytes) -> bytes:
    async with dial(server) as peer:
        await peer.send(request)
        return await peer.receive_eof()


async def test_plain_http_is_answered_with_426() -> None:
    async with MemoryServer(echo) as server:
        data = await answer(server, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nUpgrade: websocket\r\n" in data


def health(request: Request) -> Response | None:
    if request.path == "/healthz":
        return Response(200, body=f"{request.method} {request.body.decode()}\n")
    return None


async def test_a_health_check_is_answered_and_the_connection_closed() -> None:
    async with MemoryServer(echo, process_request=health) as server:
        data = await answer(server, b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in data
    assert data.endswith(b"\r\n\r\nGET \n")


async def test_head_gets_the_length_and_no_body() -> None:
    async with MemoryServer(echo, process_request=health) as server:
        data = await answer(server, b"HEAD /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
    assert b"\r\nContent-Length: 6\r\n" in data
    assert data.endswith(b"\r\n\r\n")


async def test_a_request_may_have_a_body() -> None:
    async with MemoryServer(echo, process_request=health) as server, dial(server) as peer:
        await peer.send(b"POST /healthz HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhe")
        await settle()
        await peer.send(b"llo")
        assert (await peer.receive_eof()).endswith(b"\r\n\r\nPOST hello\n")


async def test_101_to_plain_http_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async with MemoryServer(echo, process_request=lambda _: Response(101)) as server:
        data = await answer(server, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 500 ")
    assert errors(caplog) == ["process_request failed"]


async def test_a_malformed_request_is_told_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "anyio_ws.server")
    async with MemoryServer(echo) as server:
        data = await answer(server, b"GET / HTTP/1.1\r\n\r\n")
        await settle()  # until the server has hung up
    assert data.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert data.endswith(b"the request has 0 Host headers; exactly one is expected\n")
    assert errors(caplog) == []
    assert "exactly one is expected" in caplog.messages[0]


@pytest.mark.real_time
@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"])
async def test_a_refusal_arrives_although_more_was_sent_than_was_read(request_: bytes) -> None:
    async with Server(echo, "127.0.0.1", 0) as server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send(request_ + bytes(1_000_000))
        data = b""
        async for chunk in stream:  # a reset would raise
            data += chunk
    assert data.startswith(b"HTTP/1.1 4")
    assert data.endswith(b"\n")


@pytest.mark.virtual_time
async def test_a_client_that_never_reads_its_refusal_is_dropped_after_a_second() -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        await peer.send(b"GET / HTTP/1.1\r\n\r\n")
        started = anyio.current_time()
        peer._transport.pause()
        await server.drain(grace=60)
        assert anyio.current_time() - started == pytest.approx(1, abs=0.1)


async def test_server_header() -> None:
    async with MemoryServer(echo, server_header="tea") as server, server.connect() as ws:
        assert ws.response.headers["Server"] == "tea"
    async with MemoryServer(echo, server_header=None) as server, server.connect() as ws:
        assert "Server" not in ws.response.headers


# Origins


async def test_a_page_from_elsewhere_gets_403_that_names_both_and_the_option() -> None:
    async with MemoryServer(echo) as server:
        with pytest.raises(HandshakeRejected) as info:
            async with server.connect(origin="http://evil.example"):
                pass
    text = info.value.response.body.decode()
    assert info.value.response.status_code == 403
    assert "http://evil.example" in text
    assert "Host 'test'" in text
    assert "origins" in text


@pytest.mark.parametrize(
    ("origins", "origin"),
    [
        ("same-origin", "http://test"),
        ("same-origin", None),
        (["https://a.example", "https://b.example"], "https://b.example"),
        ([re.compile(r"https://.*\.example")], "https://a.example"),
        (None, "http://anywhere"),
    ],
)
async def test_an_allowed_origin_passes(origins: Any, origin: str | None) -> None:
    async with MemoryServer(echo, origins=origins) as server, server.connect(origin=origin) as ws:
        await ws.send("hello")
        assert await ws.receive() == "hello"


# Limits


async def test_more_than_max_connections_get_503() -> None:
    async with MemoryServer(echo, max_connections=1) as server:
        async with server.connect():
            with pytest.raises(HandshakeRejected, match="503") as info:
                async with server.connect():
                    pass
            assert info.value.transient
            assert b"max_connections" in info.value.response.body
        await settle()
        async with server.connect() as ws:
            await ws.send("a place is free again")
            await ws.receive()


def slow_101(request: Request) -> Response:
    """A 101 larger than what a peer that reads nothing takes."""
    return Response(101, {"X-Large": "x" * (CAPACITY + 1)})


async def test_max_connections_holds_while_a_101_waits_to_be_sent() -> None:
    async with MemoryServer(idle, max_connections=1, process_request=slow_101) as server, dial(server) as peer:
        peer.pause()
        await peer.send(UPGRADE + b"\r\n")
        await settle()
        with pytest.raises(HandshakeRejected, match="503"):
            async with server.connect():
                pass
        peer.resume()
        assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
        await settle()
        assert server.stats == ServerStats(accepted=1, rejected=1, open=1)


@pytest.mark.virtual_time
async def test_a_connection_whose_101_waits_when_the_server_is_drained_is_closed_too() -> None:
    async with (
        MemoryServer(idle, process_request=slow_101) as server,
        dial(server) as peer,
        anyio.create_task_group() as group,
    ):
        peer.pause()
        await peer.send(UPGRADE + b"\r\n")
        await settle()
        drained = Call(group, server.drain, 1012, "restart")
        await settle()
        peer.resume()
        assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
        assert await peer.receive_frame() == RawFrame(Opcode.CLOSE, encode_close(1012, "restart"))
        await peer.send_close(1012)
        peer.close()
        await drained.wait()


async def test_max_connections_holds_while_process_request_waits() -> None:
    waiting = anyio.Event()

    async def process_request(request: Request) -> None:
        await waiting.wait()

    results: list[str] = []

    async def client() -> None:
        try:
            async with server.connect() as ws:
                results.append("open")
                await ws.wait_closed()
        except HandshakeRejected as exc:
            results.append(str(exc.response.status_code))

    async with (
        MemoryServer(idle, max_connections=1, process_request=process_request) as server,
        anyio.create_task_group() as group,
    ):
        for _ in range(2):
            group.start_soon(client)
        await settle()
        waiting.set()
        await settle()
        group.cancel_scope.cancel()
    assert sorted(results) == ["503", "open"]


@pytest.mark.virtual_time
async def test_a_slow_handshake_is_dropped_after_open_timeout(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "anyio_ws.server")
    async with MemoryServer(echo, open_timeout=5) as server, dial(server) as peer:
        started = anyio.current_time()
        await peer.send(b"GET / HT")
        assert await peer.receive_eof() == b""
        assert anyio.current_time() - started == pytest.approx(5, abs=0.1)
        await settle()
        assert server.stats.rejected == 1
    assert "open_timeout=5 s" in caplog.messages[0]


@pytest.mark.virtual_time
async def test_a_request_that_waited_while_the_event_loop_was_blocked_is_in_time() -> None:
    async with MemoryServer(echo, open_timeout=5) as server, dial(server) as peer:
        await settle()
        await peer.send(UPGRADE + b"\r\n")
        jump(10)
        assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
        await peer.send_frame(Opcode.TEXT, b"open")
        assert await peer.receive_frame() == RawFrame(Opcode.TEXT, b"open")


@pytest.mark.virtual_time
async def test_a_blocked_event_loop_puts_open_timeout_off_once() -> None:
    async with MemoryServer(echo, open_timeout=5) as server, dial(server) as peer:
        await settle()
        jump(10)
        await settle()
        assert server.stats.rejected == 0
        jump(10)
        assert await peer.receive_eof() == b""
        await settle()
        assert server.stats.rejected == 1


@pytest.mark.virtual_time
async def test_open_timeout_none_waits() -> None:
    async with MemoryServer(echo, open_timeout=None) as server, dial(server) as peer:
        await anyio.sleep(3600)
        await opened(peer)


@pytest.mark.virtual_time
@pytest.mark.parametrize("swallows", [False, True])
async def test_open_timeout_cancels_process_request(swallows: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def process_request(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            if not swallows:
                raise

    caplog.set_level(logging.INFO, "anyio_ws.server")
    async with MemoryServer(echo, process_request=process_request, open_timeout=5) as server, dial(server) as peer:
        started = anyio.current_time()
        await peer.send(UPGRADE + b"\r\n")
        assert await peer.receive_eof() == b""
        assert anyio.current_time() - started == pytest.approx(5, abs=0.1)
        await settle()
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)
    assert "open_timeout=5 s" in caplog.messages[0]
    assert errors(caplog) == []


@pytest.mark.virtual_time
async def test_a_process_request_that_blocks_past_open_timeout_is_too_late() -> None:
    def process_request(request: Request) -> None:
        jump(6)

    async with MemoryServer(echo, process_request=process_request, open_timeout=5) as server, dial(server) as peer:
        await peer.send(UPGRADE + b"\r\n")
        assert await peer.receive_eof() == b""
        await settle()
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


async def test_a_refusal_counts_when_it_is_sent() -> None:
    async with MemoryServer(echo) as server, dial(server) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await head(peer)).startswith(b"HTTP/1.1 426 ")
        assert server.stats.rejected == 1  # although the peer has not hung up


@pytest.mark.virtual_time
async def test_what_process_request_raises_after_open_timeout_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def process_request(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("in the cleanup")

    async with MemoryServer(echo, process_request=process_request, open_timeout=5) as server, dial(server) as peer:
        await peer.send(UPGRADE + b"\r\n")
        assert await peer.receive_eof() == b""
        await settle()
        assert server.stats.rejected == 1
    assert errors(caplog) == ["process_request failed"]


@pytest.mark.virtual_time
async def test_open_timeout_counts_the_refusal_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "anyio_ws.server")
    async with MemoryServer(echo, open_timeout=0.5) as server, dial(server) as peer:
        started = anyio.current_time()
        await peer.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await head(peer)).startswith(b"HTTP/1.1 426 ")
        await anyio.sleep(0.6)  # it does not close
        await settle()
        assert server.stats.rejected == 1
        assert anyio.current_time() - started < REFUSED_SECONDS
    assert caplog.messages[0].endswith("was answered 426 Upgrade Required")


async def test_a_connection_that_dies_before_its_handshake_is_one_info_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "anyio_ws.server")
    async with MemoryServer(echo) as server:
        for end in RawPeer.send_eof, RawPeer.reset:
            async with dial(server) as peer:
                await peer.send(b"GET / HT")
                end(peer)
                assert await peer.receive_eof() == b""
            await settle()
        assert server.stats == ServerStats(accepted=0, rejected=2, open=0)
        async with server.connect() as ws:
            await ws.send("the listener is none the worse")
            await ws.receive()
    assert errors(caplog) == []
    assert [message.partition(": ")[2][:21] for message in caplog.messages[:2]] == [
        "the connection was cl",
        "the connection broke ",
    ]


# How connections end


async def test_the_handlers_return_closes_with_1000() -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.send("bye")

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert [message async for message in ws] == ["bye"]
        assert ws.close_info == CloseInfo(1000, "", "peer", clean=True)


async def test_the_handlers_exception_is_logged_and_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ws: WebSocket) -> None:
        raise KeyError("secret")

    async with MemoryServer(handler) as server, server.connect() as ws:
        info = await ws.wait_closed()
        assert (info.code, info.reason) == (1011, "")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)
    assert len(record.connection_id) == 8  # type: ignore[attr-defined]


async def test_a_handlers_exception_does_not_reach_the_others() -> None:
    async def handler(ws: WebSocket) -> None:
        if ws.request.path == "/fail":
            raise ExceptionGroup("several", [KeyError("a"), OSError("b")])
        await echo(ws)

    async with MemoryServer(handler) as server, server.connect() as other:
        async with server.connect("/fail") as ws:
            assert (await ws.wait_closed()).code == 1011
        await other.send("still here")
        assert await other.receive() == "still here"


async def raise_closed(ws: WebSocket) -> None:
    await ws.receive()


async def raise_closed_in_a_group(ws: WebSocket) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(ws.receive)


@pytest.mark.parametrize("handler", [raise_closed, raise_closed_in_a_group])
async def test_a_handler_that_the_end_of_its_connection_ends_has_not_failed(
    handler: Callable[[WebSocket], Coroutine[Any, Any, None]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anyio_ws.server")
    async with MemoryServer(handler) as server, dial(server) as peer:
        await opened(peer)
        peer.reset()
        await settle()
        assert server.connections == frozenset()
    assert errors(caplog) == []
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("connection ended: 1006")


async def test_the_end_of_another_connection_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with MemoryServer(raise_closed) as other, other.connect() as foreign:
        await foreign.aclose()

        async def handler(ws: WebSocket) -> None:
            await foreign.receive()

        async with MemoryServer(handler) as server, server.connect() as ws:
            assert (await ws.wait_closed()).code == 1011
    assert errors(caplog) == ["handler failed"]


async def test_a_handlers_base_exception_comes_out_of_the_server_as_it_is() -> None:
    async def handler(ws: WebSocket) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with MemoryServer(handler) as server, server.connect() as ws:
            await ws.wait_closed()
            await anyio.sleep_forever()


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
async def test_a_handler_that_ends_the_program_says_1001(exception: type[BaseException]) -> None:
    async def handler(ws: WebSocket) -> None:
        raise exception

    infos: list[CloseInfo] = []

    async def client() -> None:
        async with server.connect() as ws:
            infos.append(await ws.wait_closed())

    server = MemoryServer(handler)
    async with anyio.create_task_group() as group:
        with pytest.raises(exception):
            async with server:
                group.start_soon(client)
                await anyio.sleep_forever()
    assert [(info.code, info.clean) for info in infos] == [(1001, True)]


async def test_a_connection_that_has_ended_is_not_open_though_its_handler_goes_on() -> None:
    done = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await done.wait()

    async with MemoryServer(handler) as server:
        async with server.connect() as ws:
            assert len(server.connections) == server.stats.open == 1
        await ws.wait_closed()
        assert server.connections == frozenset()
        assert server.stats.open == 0
        done.set()


def test_a_server_that_is_not_entered_has_no_port_yet() -> None:
    with pytest.raises(ValueError, match="is not listening yet"):
        _ = Server(echo, port=0).port


# Leaving


async def test_leaving_says_1001_to_everyone() -> None:
    clients: list[WebSocket] = []
    async with anyio.create_task_group() as group:
        opened_ = anyio.Event()
        leave = anyio.Event()
        codes: list[int] = []

        async def client() -> None:
            async with server.connect() as ws:
                clients.append(ws)
                if len(clients) == 3:
                    opened_.set()
                codes.append((await ws.wait_closed()).code)

        async def run() -> None:
            async with server:
                await leave.wait()

        server = MemoryServer(echo)
        group.start_soon(run)
        await settle()
        for _ in range(3):
            group.start_soon(client)
        await opened_.wait()
        leave.set()
    assert codes == [1001, 1001, 1001]


@pytest.mark.virtual_time
async def test_leaving_takes_a_second_with_peers_that_are_stuck() -> None:
    async with Tasks() as tasks:
        server = await MemoryServer(echo).__aenter__()
        peers = []
        for _ in range(20):
            loop = open_loop(tasks.start_service)
            transport = server._pipe(loop)
            peers.append(RawPeer(transport, loop, is_client=True))
            transport.start()
            await opened(peers[-1])
        for peer in peers:
            peer.pause()
        started = anyio.current_time()
        await server.__aexit__(None, None, None)
        assert anyio.current_time() - started == pytest.approx(1, abs=0.1)
        for peer in peers:
            peer.resume()
            assert (await peer.receive_frame()).payload == b"\x03\xe9"


@pytest.mark.virtual_time
async def test_leaving_says_1001_to_hundreds_and_resets_nobody() -> None:
    async def answer(peer: RawPeer) -> None:
        frames.append((await peer.receive_frame()).payload)
        await peer.send_close(1001)
        peer.close()

    frames: list[bytes] = []
    peers: list[RawPeer] = []
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        async with anyio.create_task_group() as group:
            async with MemoryServer(echo) as server:
                for _ in range(500):
                    transport = server._pipe(loop)
                    peers.append(RawPeer(transport, loop, is_client=True))
                    transport.start()
                    await opened(peers[-1])
                prompt, slow = peers[::2], peers[1::2]
                for peer in prompt:
                    group.start_soon(answer, peer)
                started = anyio.current_time()
            assert anyio.current_time() - started == pytest.approx(1, abs=0.1)
        assert frames == [b"\x03\xe9"] * 250
        for peer in slow:
            assert (await peer.receive_frame()).payload == b"\x03\xe9"
            assert await peer.receive_eof() == b""
            assert not peer._transport._broken
        assert server.stats == ServerStats(accepted=500, rejected=0, open=0)
        loop.close()


@pytest.mark.virtual_time
async def test_1001_is_said_although_the_event_loop_is_busy_for_longer_than_the_bound() -> None:
    async def others() -> None:
        await anyio.sleep(5)

    async def handler(ws: WebSocket) -> None:
        try:
            await ws.wait_closed()
        finally:
            ws._budget.sends = 1  # the next call lets the others have their turn
            ws._loop.checkpoint = others

    async with AsyncPeer() as peer:
        async with MemoryServer(handler) as server:
            await opened(await peer.dial(server))
        assert (await peer.raw.receive_frame()).payload == b"\x03\xe9"


@pytest.mark.virtual_time
async def test_leaving_during_a_drain_resets_nobody() -> None:
    async with AsyncPeer() as peer:
        async with MemoryServer(echo) as server:
            await opened(await peer.dial(server))
            with anyio.move_on_after(0.5):
                await server.drain(1012, "restart")
        assert await peer.raw.receive_frame() == RawFrame(Opcode.CLOSE, encode_close(1012, "restart"))
        assert await peer.raw.receive_eof() == b""
        assert not peer.raw._transport._broken


@pytest.mark.virtual_time
async def test_leaving_wakes_the_tasks_outside_a_handler_that_use_its_connection() -> None:
    errors: list[ConnectionClosed] = []

    async def receive(ws: WebSocket) -> None:
        with pytest.raises(ConnectionClosedOK) as caught:
            await ws.receive()
        errors.append(caught.value)

    async with AsyncPeer() as peer:
        with anyio.fail_after(1):
            async with anyio.create_task_group() as group, MemoryServer(idle) as server:
                await opened(await peer.dial(server))
                await settle()
                (ws,) = server.connections
                group.start_soon(receive, ws)
                group.start_soon(ws.wait_closed)
                await settle()
                group.start_soon(ws.aclose, 1008, "kicked")
                await settle()
        info = await ws.wait_closed()
        assert (info.code, info.reason, info.initiator, info.clean) == (1008, "kicked", "local", False)
        assert isinstance(info.cause, ConnectionAbortedError)
        assert [error.close_info for error in errors] == [info]


@pytest.mark.virtual_time
async def test_leaving_takes_a_second_with_a_peer_that_takes_nothing() -> None:
    async def handler(ws: WebSocket) -> None:
        while True:
            await ws.send(bytes(100_000))

    async with Tasks() as tasks:
        server = await MemoryServer(handler).__aenter__()
        loop = open_loop(tasks.start_service)
        transport = server._pipe(loop)
        peer = RawPeer(transport, loop, is_client=True)
        transport.start()
        await opened(peer)
        peer.pause()
        await settle()
        started = anyio.current_time()
        await server.__aexit__(None, None, None)
        assert anyio.current_time() - started == pytest.approx(1, abs=0.1)


async def test_leaving_drops_connections_in_their_handshake() -> None:
    async with AsyncPeer() as peer:
        async with MemoryServer(echo) as server:
            await peer.dial(server)
            await peer.raw.send(b"GET /")
            await settle()
        assert await peer.raw.receive_eof() == b""


async def test_a_handshake_that_leaving_cuts_short_is_counted_as_rejected() -> None:
    async with AsyncPeer() as peer:
        async with MemoryServer(echo) as server:
            await peer.dial(server)
            await peer.raw.send(b"GET /")
            await settle()
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


async def test_a_101_that_leaving_cuts_short_is_counted_as_rejected() -> None:
    async with AsyncPeer() as peer:
        async with MemoryServer(echo, process_request=slow_101) as server:
            await peer.dial(server)
            peer.raw.pause()
            await peer.raw.send(UPGRADE + b"\r\n")
            await settle()
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


async def test_a_handshake_whose_process_request_ends_the_program_is_counted_as_rejected() -> None:
    def process_request(request: Request) -> None:
        raise SystemExit(3)

    async with AsyncPeer() as peer:
        with pytest.raises(SystemExit):
            async with MemoryServer(echo, process_request=process_request) as server:
                await peer.dial(server)
                await peer.raw.send(UPGRADE + b"\r\n")
                await anyio.sleep_forever()
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


async def test_a_refusal_that_leaving_cuts_short_is_counted_once() -> None:
    async with AsyncPeer() as peer:
        async with MemoryServer(echo) as server:
            await peer.dial(server)
            await peer.raw.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            assert (await head(peer.raw)).startswith(b"HTTP/1.1 426 ")
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


async def test_a_connection_that_comes_while_the_server_is_being_left_is_counted_as_rejected() -> None:
    leaving = anyio.Event()
    go = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            leaving.set()
            with anyio.CancelScope(shield=True):
                await go.wait()

    async def late(server: MemoryServer) -> None:
        await leaving.wait()
        await peer.dial(server)
        assert await peer.raw.receive_eof() == b""
        go.set()

    async with AsyncPeer() as first, AsyncPeer() as peer, anyio.create_task_group() as group:
        async with MemoryServer(handler) as server:
            await opened(await first.dial(server))
            group.start_soon(late, server)
            await settle()
        assert server.stats == ServerStats(accepted=1, rejected=1, open=0)


class AsyncPeer:
    """A raw client that outlives the server."""

    async def __aenter__(self) -> "AsyncPeer":
        self._tasks = await Tasks().__aenter__()
        self._loop = open_loop(self._tasks.start_service)
        return self

    async def dial(self, server: MemoryServer) -> RawPeer:
        transport = server._pipe(self._loop)
        self.raw = RawPeer(transport, self._loop, is_client=True)
        transport.start()
        return self.raw

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        self.raw.close()
        self._loop.close()
        return await self._tasks.__aexit__(*exc_info)


@pytest.mark.virtual_time
async def test_a_handler_speaks_in_its_finally_before_1001() -> None:
    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await ws.send("sorry")

    async with AsyncPeer() as peer:
        async with MemoryServer(handler) as server:
            await opened(await peer.dial(server))
        assert (await peer.raw.receive_frame()).payload == b"sorry"
        assert (await peer.raw.receive_frame()).payload == b"\x03\xe9"


@pytest.mark.virtual_time
async def test_a_handler_that_swallows_its_cancellation_gets_1001() -> None:
    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass

    async with AsyncPeer() as peer:
        async with MemoryServer(handler) as server:
            await opened(await peer.dial(server))
        assert (await peer.raw.receive_frame()).payload == b"\x03\xe9"


@pytest.mark.virtual_time
async def test_a_handler_that_fails_while_it_is_cancelled_gets_1011(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("in the cleanup")

    async with AsyncPeer() as peer:
        async with MemoryServer(handler) as server:
            await opened(await peer.dial(server))
        assert (await peer.raw.receive_frame()).payload == b"\x03\xf3"
    assert errors(caplog) == ["handler failed"]


@pytest.mark.virtual_time
async def test_a_task_group_that_fails_beside_a_cancellation_reaches_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A nursery of trio raises both in one group."""

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("in the cleanup")

    async def handler(ws: WebSocket) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await anyio.sleep_forever()

    async with AsyncPeer() as peer:
        async with MemoryServer(handler) as server:
            await opened(await peer.dial(server))
            await settle()
        assert (await peer.raw.receive_frame()).payload == b"\x03\xf3"
    assert errors(caplog) == ["handler failed"]


@pytest.mark.loops("trio")
async def test_a_nursery_that_fails_beside_a_cancellation_reaches_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    import trio

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("in the cleanup")

    async def handler(ws: WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

    async with AsyncPeer() as peer:
        async with MemoryServer(handler) as server:
            await opened(await peer.dial(server))
            await settle()
        assert (await peer.raw.receive_frame()).payload == b"\x03\xf3"
    assert errors(caplog) == ["handler failed"]


async def test_the_bodys_exception_comes_out_as_it_is() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as info:
        async with MemoryServer(echo) as server, server.connect():
            raise error
    assert info.value is error
    assert error.__cause__ is error.__context__ is None


@pytest.mark.virtual_time
async def test_a_cancelled_server_says_1001_and_the_scope_catches_it() -> None:
    async with AsyncPeer() as peer:
        with anyio.CancelScope() as scope:
            async with MemoryServer(echo) as server:
                await opened(await peer.dial(server))
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert (await peer.raw.receive_frame()).payload == b"\x03\xe9"


async def test_wait_closed_returns_when_the_block_is_left() -> None:
    async with anyio.create_task_group() as group, MemoryServer(echo) as server:
        group.start_soon(server.wait_closed)
        await settle()


async def test_a_server_that_was_left_refuses_connections() -> None:
    async with MemoryServer(echo) as server:
        pass
    with pytest.raises(ConnectFailed) as info:
        async with server.connect():
            pass
    assert info.value.errno == errno.ECONNREFUSED


@pytest.mark.virtual_time
async def test_a_cancellation_around_the_server_reaches_the_handlers_although_its_body_goes_on() -> None:
    cancelled = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with AsyncPeer() as peer, AsyncPeer() as newcomer:
        with anyio.CancelScope() as scope:
            async with MemoryServer(handler) as server:
                with anyio.CancelScope(shield=True):
                    await opened(await peer.dial(server))
                    scope.cancel()
                    await cancelled.wait()
                    assert (await peer.raw.receive_frame()).payload == b"\x03\xe9"
                    assert await (await newcomer.dial(server)).receive_eof() == b""
        assert scope.cancelled_caught


@pytest.mark.loops("asyncio", "uvloop")
async def test_a_native_cancellation_of_a_handler_says_1001_and_reaches_nobody_else() -> None:
    import asyncio

    tasks: list[asyncio.Task[Any]] = []

    async def handler(ws: WebSocket) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await anyio.sleep_forever()

    async with MemoryServer(handler) as server, server.connect() as one, server.connect() as other:
        tasks[0].cancel()
        assert (await one.wait_closed()).code == 1001
        await settle()
        assert server.connections
        assert other.close_info is None


async def test_a_handler_may_use_scopes_groups_and_threads() -> None:
    results: list[object] = []

    async def wait(task_status: anyio.abc.TaskStatus[str]) -> None:
        task_status.started("started")
        await anyio.sleep_forever()

    async def handler(ws: WebSocket) -> None:
        async with anyio.create_task_group() as group:
            results.append(await group.start(wait))
            results.append(await anyio.to_thread.run_sync(str, 5))
            group.cancel_scope.cancel()
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        results.append(scope.cancelled_caught)

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert (await ws.wait_closed()).code == 1000
    assert results == ["started", "5", True]


# drain


async def test_drain_closes_everyone_with_its_code_and_returns_after_the_last_handler() -> None:
    ended: list[CloseInfo] = []

    async def handler(ws: WebSocket) -> None:
        async for _ in ws:
            pass
        await anyio.lowlevel.checkpoint()
        assert ws.close_info is not None
        ended.append(ws.close_info)

    async with MemoryServer(handler) as server:
        async with anyio.create_task_group() as group:
            codes: list[CloseInfo] = []

            async def client() -> None:
                async with server.connect() as ws:
                    codes.append(await ws.wait_closed())

            group.start_soon(client)
            group.start_soon(client)
            await settle()
            await server.drain(1012, "restart")
            assert ended == [CloseInfo(1012, "restart", "local", clean=True)] * 2
        assert codes == [CloseInfo(1012, "restart", "peer", clean=True)] * 2


@pytest.mark.virtual_time
async def test_drain_does_not_wait_for_a_client_that_has_not_asked() -> None:
    async with MemoryServer(echo) as server, dial(server) as silent:
        await silent.send(b"GET /")
        started = anyio.current_time()
        await server.drain()
        assert anyio.current_time() - started == pytest.approx(1, abs=0.1)
        assert await silent.receive_eof() == b""
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)


async def test_drain_closes_the_listeners() -> None:
    async with Server(echo, "127.0.0.1", 0) as server:
        await server.drain()
        with pytest.raises(ConnectFailed):
            async with connect(server.url):
                pass
        assert server.addresses[0][1] == server.port


async def test_drain_without_connections_returns_at_once_and_is_idempotent() -> None:
    async with MemoryServer(echo) as server:
        await server.drain()
        await server.drain()
        await server.wait_closed()


async def test_a_handshake_during_drain_gets_503() -> None:
    async with MemoryServer(echo) as server, dial(server) as peer, anyio.create_task_group() as group:
        await settle()
        group.start_soon(server.drain)
        await settle()
        await peer.send(UPGRADE + b"\r\n")
        assert (await head(peer)).startswith(b"HTTP/1.1 503 ")
        peer.close()


@pytest.mark.virtual_time
async def test_drain_cancels_handlers_after_grace() -> None:
    outcome: list[object] = []

    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            outcome.append(ws.close_info)

    async with MemoryServer(handler) as server, server.connect():
        started = anyio.current_time()
        await server.drain(grace=3)
        assert anyio.current_time() - started == pytest.approx(3, abs=0.1)
    assert outcome == [CloseInfo(1001, "", "local", clean=True)]


@pytest.mark.virtual_time
async def test_drain_ends_soon_after_grace_although_peers_are_stuck() -> None:
    async with MemoryServer(echo) as server, dial(server) as silent, dial(server) as stuck:
        await silent.send(b"GET / HT")
        await opened(stuck)
        stuck.pause()
        started = anyio.current_time()
        await server.drain(grace=3)
        assert anyio.current_time() - started <= 4.1


@pytest.mark.virtual_time
async def test_a_closing_handshake_may_go_on_for_a_second_after_grace() -> None:
    ended = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await ended.wait()

    async with MemoryServer(handler) as server, dial(server) as peer, anyio.create_task_group() as group:
        await opened(peer)
        group.start_soon(partial(server.drain, grace=3))
        await settle()
        ended.set()
        await anyio.sleep(3.5)
        assert not server._closed.is_set()
        assert (await peer.receive_frame()).payload == b"\x03\xe9"
        await peer.send(encode_frame(8, b"\x03\xe9", b"mask"))
        assert await peer.receive_eof() == b""
        peer.close()
        await settle()
        assert server._closed.is_set()


@pytest.mark.virtual_time
async def test_drain_spreads_the_closes_over_jitter() -> None:
    times: list[float] = []

    async def client() -> None:
        async with server.connect() as ws:
            await ws.wait_closed()
            times.append(anyio.current_time())

    async with MemoryServer(echo) as server, anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(client)
        await settle()
        started = anyio.current_time()
        await server.drain(jitter=100)
    assert max(times) - started <= 101
    assert max(times) - min(times) > 50


async def test_drain_from_a_handler_of_the_same_server_is_refused() -> None:
    async def handler(ws: WebSocket) -> None:
        with pytest.raises(RuntimeError, match="would wait for itself"):
            await server.drain()
        await ws.send("refused")

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert await ws.receive() == "refused"


async def test_drain_before_the_block_is_refused() -> None:
    with pytest.raises(RuntimeError, match="block was entered"):
        await MemoryServer(echo).drain()


async def test_drain_with_a_code_that_must_not_be_sent_does_nothing() -> None:
    async with MemoryServer(echo) as server:
        with pytest.raises(ValueError, match="close code 1006"):
            await server.drain(1006)
        async with server.connect() as ws:
            await ws.send("still open")
            await ws.receive()


async def test_drain_with_a_reason_that_cannot_be_sent_does_nothing() -> None:
    async with MemoryServer(echo) as server, server.connect() as ws:
        with pytest.raises(ValueError, match=r"close reason '\\ud800' has surrogates"):
            await server.drain(1001, "\ud800")
        await ws.send("still here")
        assert await ws.receive() == "still here"


async def test_a_cancelled_drain_leaves_the_server_closed_to_newcomers() -> None:
    release = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await release.wait()

    async with MemoryServer(handler) as server, server.connect():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(server.drain)
                await settle()
                scope.cancel()
        with pytest.raises(HandshakeRejected, match="503"):
            async with server.connect():
                pass
        release.set()
        await server.wait_closed()


async def test_handlers_see_connection_closed_during_drain_not_a_cancellation() -> None:
    seen: list[BaseException] = []

    async def handler(ws: WebSocket) -> None:
        try:
            await ws.receive()
        except BaseException as exc:
            seen.append(exc)
            raise

    async with MemoryServer(handler) as server, server.connect():
        await server.drain()
    assert [type(exc).__mro__[1] for exc in seen] == [ConnectionClosedOK]


@pytest.mark.virtual_time
async def test_drain_with_unlimited_grace_waits_for_the_handlers() -> None:
    async def handler(ws: WebSocket) -> None:
        await anyio.sleep(3600)

    async with MemoryServer(handler) as server, server.connect():
        started = anyio.current_time()
        await server.drain(grace=None)
        assert anyio.current_time() - started >= 3599


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grace": -1}, "grace must be a number of seconds, 0 or more, or None, not -1"),
        ({"grace": "1"}, "grace must be a number of seconds, 0 or more, or None, not '1'"),
        ({"jitter": None}, "jitter must be a number of seconds, 0 or more, not None"),
        ({"jitter": float("nan")}, "jitter must be a number of seconds, 0 or more, not nan"),
    ],
)
async def test_a_drain_that_is_told_nonsense_has_not_begun(options: Any, message: str) -> None:
    async with MemoryServer(echo) as server:
        with pytest.raises(ValueError, match=message):
            await server.drain(**options)
        async with server.connect() as ws:
            await ws.send("served")
            assert await ws.receive() == "served"


@pytest.mark.real_time
async def test_drain_ends_connections_whose_peer_vanishes() -> None:
    async def handler(ws: WebSocket) -> None:
        with pytest.raises(ConnectionClosed):
            await ws.receive()

    async with Server(handler, "127.0.0.1", 0) as server:
        stream = await anyio.connect_tcp("127.0.0.1", server.port)
        await stream.send(UPGRADE + b"\r\n")
        await stream.receive()
        async with anyio.create_task_group() as group:
            group.start_soon(server.drain)
            await settle()
            await stream.aclose()


@pytest.mark.loops("trio")
async def test_a_base_exception_beside_a_cancellation_comes_out_of_the_server() -> None:
    import trio

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise SystemExit(3)

    async def handler(ws: WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

    async with AsyncPeer() as peer:
        with pytest.raises(BaseExceptionGroup) as info:
            async with MemoryServer(handler) as server:
                await opened(await peer.dial(server))
                await settle()
        assert info.group_contains(SystemExit)


@pytest.mark.loops("trio")
async def test_a_group_of_cancellations_only_is_a_cancellation(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            raise BaseExceptionGroup("as older nurseries did", [exc]) from None

    async with AsyncPeer() as peer:
        async with MemoryServer(handler) as server:
            await opened(await peer.dial(server))
        assert (await peer.raw.receive_frame()).payload == b"\x03\xe9"
    assert errors(caplog) == []


async def test_a_handlers_return_is_a_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "anyio_ws.server")
    async with MemoryServer(raise_nothing) as server, server.connect() as ws:
        await ws.wait_closed()
    assert "the handler has returned, messages received: 0" in caplog.messages


async def raise_nothing(ws: WebSocket) -> None:
    pass


@pytest.mark.loops("asyncio", "uvloop")
async def test_a_native_cancellation_of_everything_lets_no_handler_outlive_the_server() -> None:
    """As asyncio.run() does at its end: no shield stops it."""
    entered, release = anyio.Event(), anyio.Event()

    async def stubborn(ws: WebSocket) -> None:
        entered.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    async def own() -> None:
        async with MemoryServer(stubborn) as server, dial(server) as peer:
            await peer.send(UPGRADE + b"\r\n")
            await anyio.sleep_forever()

    before = asyncio.all_tasks()
    task = asyncio.create_task(own())
    await entered.wait()
    task.cancel()
    await settle()
    for other in asyncio.all_tasks() - before:
        other.cancel()
    await settle()
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before


@pytest.mark.loops("asyncio", "uvloop")
async def test_a_native_cancellation_of_a_connection_that_was_just_accepted_keeps_nobody_waiting() -> None:
    """asyncio ends a task that is cancelled before it first ran without running it."""
    async with AsyncPeer() as peer:
        async with MemoryServer(echo) as server:
            await settle()
            before = asyncio.all_tasks()
            await peer.dial(server)
            (task,) = asyncio.all_tasks() - before
            task.cancel()
            await settle()
        assert await peer.raw.receive_eof() == b""
        assert server.stats == ServerStats(accepted=0, rejected=1, open=0)
