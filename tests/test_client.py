"""connect(): what it says, what it raises, how it is left, and that nothing stays open."""

import base64
import contextlib
import errno
import math
import pickle
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ObjectStream, SocketStream
from anyio.streams.stapled import StapledObjectStream
from anyio.streams.tls import TLSAttribute

import anyio_ws.client
import anyio_ws.transports.connecting
from anyio_ws import (
    CloseInfo,
    ConnectFailed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeError,
    HandshakeRejected,
    InvalidHandshake,
    InvalidURL,
    OpenTimeout,
    Server,
    WebSocket,
    WebSocketError,
    accept,
    connect,
)
from anyio_ws.client import default_context
from anyio_ws.testing import MemoryServer
from support.peers import sockets
from support.tools import settle


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


def pipe() -> tuple[StapledObjectStream[bytes], StapledObjectStream[bytes]]:
    """Two ends of a byte stream in memory."""
    there_in, there_out = anyio.create_memory_object_stream[bytes](math.inf)
    back_in, back_out = anyio.create_memory_object_stream[bytes](math.inf)
    return StapledObjectStream(there_in, back_out), StapledObjectStream(back_in, there_out)


@asynccontextmanager
async def tcp_peer(handle: Callable[[SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """A TCP server that does anything; gives its host:port."""

    async def serve_one(stream: SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                await handle(stream)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve_one)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def cert(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert("localhost", "127.0.0.1")


@pytest.fixture
def server_context(cert: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    return context


@pytest.fixture
def client_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    return context


@pytest.fixture
async def descriptors() -> Callable[[], int]:
    """How many TCP sockets this process has open now, beyond those at the beginning."""

    before = sockets()
    return lambda: len(sockets() - before)


# At once, before anything happens


@pytest.mark.parametrize("url", ["http://example.com/", "ws://", "ws://example.com/#here", "example.com"])
def test_a_url_that_is_none_raises_at_once(url: str) -> None:
    with pytest.raises(InvalidURL) as info:
        connect(url)
    assert isinstance(info.value, ValueError)
    assert isinstance(info.value, WebSocketError)
    assert not isinstance(info.value, HandshakeError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"open_timeout": 0}, "open_timeout must be a positive number"),
        ({"ping_interval": math.nan}, "ping_interval must be a positive number"),
        ({"max_size": 0}, "max_size must be a positive number"),
        ({"compression": "gzip"}, 'compression must be "deflate"'),
        ({"uds": "/x", "stream": object()}, "uds and stream exclude each other"),
        ({"ssl": ssl.create_default_context()}, "ssl and server_hostname are for wss"),
        ({"server_hostname": "example.com"}, "ssl and server_hostname are for wss"),
        ({"additional_headers": {"Upgrade": "x"}}, "additional_headers has Upgrade"),
        ({"additional_headers": {"X": "a\r\nb"}}, "U\\+000D"),
        ({"origin": "a\nb"}, "origin"),
        ({"subprotocols": ["a b"]}, "subprotocols"),
    ],
)
def test_an_option_that_cannot_be_raises_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        connect("ws://example.com/", **options)


def test_a_context_for_the_other_side_raises_at_once(server_context: ssl.SSLContext) -> None:
    with pytest.raises(ValueError, match="option ssl is for the other side"):
        connect("wss://example.com/", ssl=server_context)


@pytest.mark.parametrize("name", ["", ".example", "x" * 64, "a\0b"])
def test_a_server_hostname_that_cannot_be_raises_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        connect("wss://example.com/", server_hostname=name)


def test_a_context_that_is_none_raises_at_once() -> None:
    with pytest.raises(TypeError, match=r"ssl must be an ssl\.SSLContext, not True"):
        connect("wss://example.com/", ssl=True)  # type: ignore[arg-type]


async def test_nothing_happens_before_the_block_is_entered() -> None:
    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    connect("ws://127.0.0.1:1/", stream=Untouchable())  # type: ignore[arg-type]


async def test_each_object_is_for_one_block() -> None:
    async with MemoryServer(echo) as server:
        client = server.connect()
        async with client:
            pass
        with pytest.raises(RuntimeError, match="is for one `async with` only"):
            async with client:
                pass


async def test_a_block_is_left_by_the_task_that_entered_it() -> None:
    async with MemoryServer(echo) as server:
        client = server.connect()
        await client.__aenter__()
        async with anyio.create_task_group() as group:

            async def leave() -> None:
                with pytest.raises(RuntimeError, match="must be left by the task that entered it"):
                    await client.__aexit__(None, None, None)

            group.start_soon(leave)
        await client.__aexit__(None, None, None)


# What it says


async def test_what_the_server_is_told() -> None:
    async with (
        MemoryServer(echo, origins=None, subprotocols=["v2"]) as server,
        server.connect(
            "/chat?room=1",
            additional_headers={"Cookie": "a=b"},
            origin="https://page.example",
            user_agent_header="tea/1",
            subprotocols=["v1", "v2"],
        ) as ws,
    ):
        (connection,) = server.connections
        request = connection.request
    assert (request.method, request.target) == ("GET", "/chat?room=1")
    assert request.headers["Host"] == "test"
    assert request.cookies == {"a": "b"}
    assert request.headers["Origin"] == "https://page.example"
    assert request.headers["User-Agent"] == "tea/1"
    assert request.subprotocols == ("v1", "v2")
    assert ws.subprotocol == "v2"
    assert ws.request.target == "/chat?room=1"
    assert ws.response.status_code == 101


async def test_user_agent_can_be_left_out() -> None:
    async with MemoryServer(echo) as server, server.connect(user_agent_header=None):
        (connection,) = server.connections
        assert "User-Agent" not in connection.request.headers


@pytest.mark.real_time
async def test_userinfo_becomes_an_authorization_header() -> None:
    async with Server(echo, "127.0.0.1", 0) as server, connect(server.url.replace("//", "//ann:s%20cret@")):
        (connection,) = server.connections
    expected = "Basic " + base64.b64encode(b"ann:s cret").decode()
    assert connection.request.headers["Authorization"] == expected


@pytest.mark.real_time
async def test_uds(tmp_path: Path) -> None:
    async with Server(echo, uds=tmp_path / "ws") as server, connect(server.url, uds=tmp_path / "ws") as ws:
        assert ws.remote_address == str(tmp_path / "ws")
        await ws.send("hello")
        assert await ws.receive() == "hello"


async def test_a_stream_is_used_and_closed_with_the_connection() -> None:
    near, far = pipe()
    async with anyio.create_task_group() as group:

        async def serve_one() -> None:
            async with accept(far) as ws:
                await echo(ws)

        group.start_soon(serve_one)
        async with connect("ws://host/", stream=near) as ws:
            assert ws.remote_address is None
            await ws.send("hello")
            assert await ws.receive() == "hello"
    with pytest.raises(anyio.ClosedResourceError):
        await near.send(b"")
    with pytest.raises(anyio.ClosedResourceError):
        await far.send(b"")


async def test_accept_raises_what_was_wrong_with_the_request() -> None:
    near, far = pipe()
    async with near:
        await near.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        with pytest.raises(HandshakeRejected, match="426"):
            async with accept(far):
                pytest.fail("it was accepted")


async def test_accept_raises_that_the_stream_broke() -> None:
    class Broken(StapledObjectStream[bytes]):
        async def receive(self) -> bytes:
            raise anyio.BrokenResourceError

    near, far = pipe()
    async with near:
        with pytest.raises(ConnectFailed, match="the connection broke during the handshake"):
            async with accept(Broken(far.send_stream, far.receive_stream)):
                pytest.fail("it was accepted")


@pytest.mark.real_time
async def test_frames_that_come_with_the_answer_are_received() -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.send_many(["one", "two"])

    async with Server(handler, "127.0.0.1", 0) as server, connect(server.url) as ws:
        assert [message async for message in ws] == ["one", "two"]


async def answer(far: ObjectStream[bytes], tail: bytes) -> None:
    """Accept the opening handshake on the other end of a pipe; the tail goes out with the answer."""
    from anyio_ws.protocol import ServerHandshake

    handshake = ServerHandshake()
    request = None
    while request is None:
        request = handshake.feed(await far.receive())
    await far.send(handshake.accept()[1] + tail)


async def test_a_close_and_an_end_that_come_with_the_answer_are_an_orderly_end() -> None:
    near, far = pipe()
    async with anyio.create_task_group() as group:

        async def peer() -> None:
            await answer(far, b"\x81\x02hi\x88\x02\x03\xe8")
            await far.send_eof()

        group.start_soon(peer)
        async with connect("ws://host/", stream=near) as ws:
            assert await ws.receive() == "hi"
            with pytest.raises(ConnectionClosedOK):
                await ws.receive()
            started = anyio.current_time()
        assert anyio.current_time() - started < 1
        assert ws.close_info == CloseInfo(1000, "", "peer", clean=True)
        await far.aclose()


# It was never open


def assert_transient(exc: HandshakeError, transient: bool) -> None:
    assert exc.transient is transient
    assert str(pickle.loads(pickle.dumps(exc))) == str(exc)


@pytest.mark.real_time
async def test_refused_is_connect_failed(descriptors: Callable[[], int]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ConnectFailed) as info:
            async with connect(f"ws://ann:secret@127.0.0.1:{port}/?token=secret"):
                pass
    exc = info.value
    assert isinstance(exc, OSError)
    assert isinstance(exc, anyio.ConnectionFailed)
    assert exc.errno == errno.ECONNREFUSED
    assert isinstance(exc.__cause__, ConnectionRefusedError)
    assert f"127.0.0.1:{port}" in str(exc)
    assert "refused" in str(exc)
    assert "secret" not in str(exc)
    assert_transient(exc, True)
    assert descriptors() == 0


async def test_a_name_without_address_is_connect_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(anyio_ws.transports.connecting, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectFailed, match=r"nowhere\.example.*Name or service not known") as info:
        async with connect("ws://nowhere.example/"):
            pass
    assert info.value.errno == socket.EAI_NONAME


@pytest.mark.real_time
@pytest.mark.parametrize("name", ["nobody", "x" * 200])
async def test_uds_where_nobody_listens_is_connect_failed(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConnectFailed) as info:
        async with connect("ws://host/", uds=tmp_path / name):
            pass
    assert name in str(info.value)
    assert "None" not in str(info.value)


@pytest.mark.real_time
async def test_a_reset_during_the_handshake_is_connect_failed(descriptors: Callable[[], int]) -> None:
    async def reset() -> None:
        await anyio.wait_readable(listener)
        sock, _ = listener.accept()
        with sock:
            await anyio.wait_readable(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with anyio.create_task_group() as group:
            group.start_soon(reset)
            with pytest.raises(ConnectFailed, match="broke the connection during the handshake") as info:
                async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/"):
                    pass
    assert info.value.errno == errno.ECONNRESET
    assert descriptors() == 0


async def test_a_stream_that_breaks_during_the_handshake_is_connect_failed() -> None:
    near, far = pipe()
    async with anyio.create_task_group() as group:

        async def peer() -> None:
            await far.receive()
            await far.aclose()

        group.start_soon(peer)
        with pytest.raises(HandshakeError):
            async with connect("ws://host/", stream=near):
                pass

    class Broken(StapledObjectStream[bytes]):
        async def receive(self) -> bytes:
            raise anyio.BrokenResourceError

    near, far = pipe()
    async with far:
        with pytest.raises(ConnectFailed, match="the stream broke: BrokenResourceError") as info:
            async with connect("ws://host/", stream=Broken(near.send_stream, near.receive_stream)):  # type: ignore[attr-defined]
                pass
    assert info.value.__cause__ is not None
    assert isinstance(info.value.__cause__.__cause__, anyio.BrokenResourceError)


@pytest.mark.real_time
async def test_an_end_before_the_answer_is_invalid_handshake(descriptors: Callable[[], int]) -> None:
    async def handle(stream: SocketStream) -> None:
        await stream.receive()

    async with tcp_peer(handle) as address:
        with pytest.raises(InvalidHandshake, match="closed after 0 bytes"):
            async with connect(f"ws://{address}/"):
                pass
    assert descriptors() == 0


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not a valid HTTP response"),
        (b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "no Sec-WebSocket-Accept"),
    ],
)
async def test_an_answer_against_the_rules_is_invalid_handshake(
    data: bytes, message: str, descriptors: Callable[[], int]
) -> None:
    async def handle(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(data)
        await stream.receive()

    async with tcp_peer(handle) as address:
        with pytest.raises(InvalidHandshake, match=message) as info:
            async with connect(f"ws://{address}/"):
                pass
    assert_transient(info.value, False)
    assert descriptors() == 0


@pytest.mark.real_time
@pytest.mark.parametrize(("status", "transient"), [("404 Not Found", False), ("503 Busy", True)])
async def test_any_other_answer_is_handshake_rejected(
    status: str, transient: bool, descriptors: Callable[[], int]
) -> None:
    async def handle(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(f"HTTP/1.1 {status}\r\nX-Why: tea\r\nContent-Length: 6\r\n\r\nsorry\n".encode())
        await stream.receive()

    async with tcp_peer(handle) as address:
        with pytest.raises(HandshakeRejected, match=f"the server answered {status}") as info:
            async with connect(f"ws://{address}/"):
                pass
    response = info.value.response
    assert (response.headers["X-Why"], response.body) == ("tea", b"sorry\n")
    assert info.value.transient is transient
    assert descriptors() == 0


@pytest.mark.virtual_time
async def test_open_timeout_says_that_it_was_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect_tcp(host: str, port: int) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio_ws.client, "connect_tcp", connect_tcp)
    started = anyio.current_time()
    with pytest.raises(OpenTimeout, match=r"open_timeout=3 s: connecting to example\.com port 80") as info:
        async with connect("ws://ann:secret@example.com/", open_timeout=3):
            pass
    assert anyio.current_time() - started == pytest.approx(3)
    assert isinstance(info.value, TimeoutError)
    assert "secret" not in str(info.value)
    assert_transient(info.value, True)


@pytest.mark.virtual_time
async def test_open_timeout_says_that_it_was_connecting_to_a_unix_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect_unix(path: str) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio_ws.client, "connect_unix", connect_unix)
    with pytest.raises(OpenTimeout, match="connecting to /x"):
        async with connect("ws://example.com/", uds="/x"):
            pass


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("url", "phase"),
    [("ws://host/", "waiting for the answer to the opening handshake"), ("wss://host/", "the TLS handshake with host")],
)
async def test_open_timeout_says_in_which_handshake_it_was(url: str, phase: str) -> None:
    near, far = pipe()
    async with far:
        with pytest.raises(OpenTimeout, match=f"open_timeout=10 s: {phase}"):
            async with connect(url, stream=near):
                pass
        with pytest.raises(anyio.ClosedResourceError):
            await near.receive()


@pytest.mark.virtual_time
async def test_without_open_timeout_it_waits() -> None:
    near, far = pipe()
    async with far:
        with anyio.move_on_after(100_000) as scope:
            async with connect("ws://host/", stream=near, open_timeout=None):
                pass
        assert scope.cancelled_caught


@pytest.mark.virtual_time
async def test_a_users_own_timeout_is_not_wrapped() -> None:
    near, far = pipe()
    async with far:
        with pytest.raises(TimeoutError) as info, anyio.fail_after(3):
            async with connect("ws://host/", stream=near):
                pass
        assert type(info.value) is TimeoutError


@pytest.mark.real_time
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_cancelled_while_entering_nothing_stays_open(scheme: str, descriptors: Callable[[], int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with anyio.create_task_group() as group:

            async def client() -> None:
                async with connect(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/"):
                    raise AssertionError

            group.start_soon(client)
            await anyio.wait_readable(listener)
            await settle()
            group.cancel_scope.cancel()
        assert descriptors() == 1  # the listener


@pytest.mark.real_time
async def test_a_reset_right_after_connecting_is_connect_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    socks: list[socket.socket] = []

    async def connect_tcp(host: str, port: int) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            socks.append(socket.create_connection(listener.getsockname()))
            peer, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.close()
        return socks[0]

    monkeypatch.setattr(anyio_ws.client, "connect_tcp", connect_tcp)
    with pytest.raises(ConnectFailed, match="cannot connect to ws://host/"):
        async with connect("ws://host/"):
            pass
    assert socks[0].fileno() == -1


# TLS


@pytest.mark.real_time
async def test_a_certificate_of_an_unknown_authority(
    server_context: ssl.SSLContext, descriptors: Callable[[], int]
) -> None:
    async with Server(echo, "127.0.0.1", 0, ssl=server_context) as server:
        with pytest.raises(ConnectFailed) as info:
            async with connect(server.url):
                pass
    text = str(info.value)
    assert "127.0.0.1" in text
    assert "unable to get local issuer certificate" in text
    assert "options ssl and server_hostname" in text
    assert isinstance(info.value.__cause__, ssl.SSLCertVerificationError)
    assert descriptors() == 0


@pytest.mark.real_time
async def test_a_certificate_for_another_name(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async with Server(echo, "127.0.0.1", 0, ssl=server_context) as server:
        with pytest.raises(ConnectFailed, match=r"certificate of other\.example .*[Hh]ostname mismatch"):
            async with connect(server.url, ssl=client_context, server_hostname="other.example"):
                pass


@pytest.mark.real_time
async def test_server_hostname_is_what_is_verified(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    names: list[str | None] = []
    server_context.sni_callback = lambda _, name, __: names.append(name)
    async with (
        Server(echo, "127.0.0.1", 0, ssl=server_context) as server,
        connect(server.url, ssl=client_context, server_hostname="localhost") as ws,
    ):
        await ws.send("hello")
        assert await ws.receive() == "hello"
        assert ws.extra(TLSAttribute.tls_version) == "TLSv1.3"
    assert names == ["localhost"]


@pytest.mark.real_time
async def test_a_server_without_tls(client_context: ssl.SSLContext, descriptors: Callable[[], int]) -> None:
    async with Server(echo, "127.0.0.1", 0) as server:
        with pytest.raises(ConnectFailed, match=r"the TLS handshake with 127\.0\.0\.1 failed"):
            async with connect(f"wss://127.0.0.1:{server.port}/", ssl=client_context):
                pass
    assert descriptors() == 0


@pytest.mark.real_time
async def test_a_server_that_ends_during_the_tls_handshake(client_context: ssl.SSLContext) -> None:
    async def handle(stream: SocketStream) -> None:
        await stream.receive()

    async with tcp_peer(handle) as address:
        with pytest.raises(ConnectFailed, match="the connection ended during the TLS handshake"):
            async with connect(f"wss://{address}/", ssl=client_context):
                pass


@pytest.mark.real_time
async def test_a_server_that_wants_a_certificate(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, ca: trustme.CA
) -> None:
    server_context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(server_context)
    async with Server(echo, "127.0.0.1", 0, ssl=server_context) as server:
        with pytest.raises(ConnectFailed, match=r"(?i)certificate.required"):
            async with connect(server.url, ssl=client_context):
                pass


def test_the_default_context_verifies_and_is_made_once() -> None:
    context = default_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert default_context() is context


# Leaving


@asynccontextmanager
async def one_client() -> AsyncGenerator[tuple[connect, list[CloseInfo]]]:
    """A client to be, and what the server will have seen of its end."""
    seen: list[CloseInfo] = []

    async def handler(ws: WebSocket) -> None:
        seen.append(await ws.wait_closed())

    async with MemoryServer(handler) as server:
        yield server.connect(), seen
        await server.drain()


async def test_leaving_says_1000() -> None:
    async with one_client() as (client, seen):
        async with client as ws:
            pass
        assert ws.close_info == CloseInfo(1000, "", "local", clean=True)
    assert seen == [CloseInfo(1000, "", "peer", clean=True)]


async def test_leaving_on_an_exception_says_1011_and_raises_that_very_object() -> None:
    error = ValueError("mine")
    async with one_client() as (client, seen):
        with pytest.raises(ValueError, match="mine") as info:
            async with client:
                raise error
        assert info.value is error
        assert error.__cause__ is error.__context__ is None
    assert [closed.code for closed in seen] == [1011]


async def test_leaving_on_a_group_raises_that_very_object() -> None:
    error = ExceptionGroup("mine", [KeyError("a")])
    async with one_client() as (client, seen):
        with pytest.raises(ExceptionGroup) as info:
            async with client:
                raise error
        assert info.value is error
    assert [closed.code for closed in seen] == [1011]


async def test_leaving_on_cancellation_says_1001() -> None:
    async with one_client() as (client, seen):
        with anyio.CancelScope() as scope:
            async with client:
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
    assert [closed.code for closed in seen] == [1001]


@pytest.mark.virtual_time
async def test_leaving_says_why_although_the_event_loop_is_busy_for_longer_than_the_bound() -> None:
    async def others() -> None:
        await anyio.sleep(5)

    async with one_client() as (client, seen):
        with pytest.raises(ValueError, match="mine"):
            async with client as ws:
                ws._budget.sends = 1  # the next call lets the others have their turn
                ws._loop.checkpoint = others
                raise ValueError("mine")
    assert [closed.code for closed in seen] == [1011]


async def test_an_exception_in_a_cancelled_block_comes_out() -> None:
    error = ValueError("mine")
    async with one_client() as (client, seen):
        with pytest.raises(ValueError, match="mine") as info, anyio.CancelScope() as scope:
            async with client:
                scope.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    raise error
        assert info.value is error
    assert [closed.code for closed in seen] == [1011]


@pytest.mark.loops("trio")
async def test_a_nursery_that_is_cancelled_says_1001() -> None:
    import trio

    async with one_client() as (client, seen):
        with trio.CancelScope() as scope:
            async with client, trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
                await trio.sleep_forever()
    assert [closed.code for closed in seen] == [1001]


async def stuck(
    near: ObjectStream[bytes], far: ObjectStream[bytes], body: Callable[[WebSocket], Awaitable[None]]
) -> float:
    """Leave a block whose peer says nothing after the handshake; return how long that took."""
    async with anyio.create_task_group() as group:
        group.start_soon(answer, far, b"")
        try:
            async with connect("ws://host/", stream=near) as ws:
                started = anyio.current_time()
                await body(ws)
        except ValueError:
            pass
    assert ws.close_info is not None
    assert not ws.close_info.clean
    await far.aclose()
    return anyio.current_time() - started


@pytest.mark.virtual_time
async def test_leaving_a_stuck_peer_takes_close_timeout() -> None:
    async def body(ws: WebSocket) -> None:
        pass

    assert await stuck(*pipe(), body) == pytest.approx(10, abs=0.1)


@pytest.mark.virtual_time
async def test_leaving_a_stuck_peer_on_an_exception_takes_a_second() -> None:
    async def body(ws: WebSocket) -> None:
        raise ValueError

    assert await stuck(*pipe(), body) == pytest.approx(1, abs=0.1)


@pytest.mark.virtual_time
async def test_cancelled_while_leaving_the_connection_is_dropped() -> None:
    near, far = pipe()
    async with anyio.create_task_group() as group:
        group.start_soon(answer, far, b"")
        with anyio.move_on_after(2) as scope:
            async with connect("ws://host/", stream=near) as ws:
                pass
        assert scope.cancelled_caught
        assert ws.close_info is not None
        assert (ws.close_info.code, ws.close_info.clean) == (1000, False)
    await far.aclose()


async def test_leaving_never_raises_that_the_connection_failed() -> None:
    near, far = pipe()
    async with anyio.create_task_group() as group:

        async def peer() -> None:
            await answer(far, b"\xff\xff")
            async for _ in far:
                pass
            await far.aclose()

        group.start_soon(peer)
        async with connect("ws://host/", stream=near) as ws:
            with pytest.raises(ConnectionClosedError):
                await ws.receive()
        assert ws.close_info is not None
        assert ws.close_info.code == 1002


@pytest.mark.real_time
async def test_leaving_in_any_way_closes_the_socket(descriptors: Callable[[], int]) -> None:
    async with Server(echo, "127.0.0.1", 0) as server:
        server_side = descriptors()
        async with connect(server.url):
            pass
        with contextlib.suppress(ValueError):
            async with connect(server.url):
                raise ValueError
        with anyio.CancelScope() as scope:
            async with connect(server.url):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        async with connect(server.url) as ws:
            ws.abort()
        await server.drain()
        assert descriptors() < server_side  # the listener is closed too
