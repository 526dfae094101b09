"""Our server with the client of npm's `ws`, and our client with its server, over TCP and TLS.

ANYIO_WS_NODE_MODULES names a node_modules folder that holds `ws`: `npm install --prefix DIR ws` makes DIR/node_modules,
and `nox` does so by itself. Without it, or without node, these tests are skipped. The peer's side is ws_peer.cjs. It
offers permessage-deflate, as it does by default; ours takes it up in the last class.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

import anyio_ws
from anyio_ws import CloseInfo, Deflate, Request, Response, Server, WebSocket, connect

from .conftest import CertificateFiles, Wire

NODE_MODULES = Path(os.environ.get("ANYIO_WS_NODE_MODULES", ""))

if not (shutil.which("node") and (NODE_MODULES / "ws").is_dir()):
    pytest.skip(
        "needs node, and the npm package ws in the folder that ANYIO_WS_NODE_MODULES names", allow_module_level=True
    )

pytestmark = [pytest.mark.real_time, pytest.mark.npm]

InThread = Callable[..., Awaitable[Any]]
PEER = ["node", str(Path(__file__).with_name("ws_peer.cjs"))]
ENVIRONMENT = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
# The client of ws_peer.cjs offers v3 and v1, and insists on one of them.
SUBPROTOCOLS = ["v2", "v1"]


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


class TestOurServer:
    @pytest.fixture
    def talk(self, wire: Wire, certificate_files: CertificateFiles, in_thread: InThread) -> Callable[..., Any]:
        """Serve a handler, let ws run a scenario, and return what it reports."""

        async def talk(scenario: str, handler: Callable[[WebSocket], Awaitable[None]], **options: Any) -> Any:
            async with Server(
                handler, "127.0.0.1", 0, ssl=wire.server_ssl, subprotocols=SUBPROTOCOLS, **options
            ) as server:
                command = [*PEER, "client", scenario, server.url]
                if wire.client_ssl:
                    command.append(str(certificate_files.ca))
                done = await in_thread(
                    subprocess.run, command, env=ENVIRONMENT, capture_output=True, text=True, timeout=15
                )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        return talk

    async def test_echoes(self, talk: Any) -> None:
        assert await talk("echo", echo, max_size=2**23) == [True] * 8

    async def test_joins_fragments_around_a_ping(self, talk: Any) -> None:
        assert await talk("fragments", echo) == ["κόσμε", False]

    async def test_answers_a_ping(self, talk: Any) -> None:
        assert await talk("ping", echo) == "are you there"

    async def test_pings(self, talk: Any) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send(f"{await ws.ping()}")
            await ws.wait_closed()

        assert 0 <= float(await talk("be-pinged", handler)) < 10

    @pytest.mark.parametrize(
        ("scenario", "code", "reason"), [("close", 3001, "ünïcödé"), ("close-without-code", 1005, "")]
    )
    async def test_sees_how_the_client_closes(self, talk: Any, scenario: str, code: int, reason: str) -> None:
        ends: list[CloseInfo] = []

        async def handler(ws: WebSocket) -> None:
            ends.append(await ws.wait_closed())

        # RFC 6455 §5.5.1: the reply "typically echos the status code"; a reason is its sender's own.
        assert (await talk(scenario, handler))["code"] == code
        assert [(end.code, end.reason, end.initiator, end.clean) for end in ends] == [(code, reason, "peer", True)]

    async def test_tells_the_client_how_it_closes(self, talk: Any) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.aclose(4001, "ünïcödé")

        assert await talk("be-closed", handler) == {"code": 4001, "reason": "ünïcödé"}

    async def test_closes_with_1011_when_the_handler_fails(self, talk: Any) -> None:
        async def handler(ws: WebSocket) -> None:
            raise RuntimeError("secret")

        report = await talk("be-closed", handler)
        assert report["code"] == 1011
        assert "secret" not in report["reason"]

    async def test_says_1006_when_the_client_vanishes(self, talk: Any) -> None:
        ended = anyio.Event()
        ends: list[CloseInfo] = []

        async def handler(ws: WebSocket) -> None:
            ends.append(await ws.wait_closed())
            ended.set()

        assert await talk("terminate", handler) == 1006
        await ended.wait()
        assert [(end.code, end.clean) for end in ends] == [(1006, False)]

    async def test_exchanges_headers_and_a_subprotocol(self, talk: Any) -> None:
        def process_request(request: Request) -> Response:
            return Response(101, {"X-Answer": request.headers["x-question"]})

        async def handler(ws: WebSocket) -> None:
            await ws.send(f"{ws.subprotocol}")
            await ws.wait_closed()

        assert await talk("handshake", handler, process_request=process_request) == {
            "answer": "six times seven",
            "protocol": "v1",
            "data": "v1",
        }

    async def test_refuses(self, talk: Any) -> None:
        def process_request(request: Request) -> Response:
            return Response(401, {"WWW-Authenticate": "Bearer"}, "who are you?\n")

        report = await talk("refused", echo, process_request=process_request)
        assert report == {"status": 401, "body": "who are you?\n"}


@dataclass(frozen=True)
class Peer:
    """A running server of ws."""

    url: str
    process: subprocess.Popen[str]

    def next_close(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def peer_server(wire: Wire, files: CertificateFiles) -> Iterator[Peer]:
    command = [*PEER, "server"]
    if wire.server_ssl:
        command += [str(files.certificate), str(files.key)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Peer(f"{wire.scheme}://127.0.0.1:{int(process.stdout.readline())}", process)
        finally:
            process.stdin.close()
            process.wait()


class TestOurClient:
    @pytest.fixture
    def peer(self, wire: Wire, certificate_files: CertificateFiles) -> Iterator[Peer]:
        with peer_server(wire, certificate_files) as peer:
            yield peer

    @pytest.mark.parametrize(
        "message",
        ["", b"", "hello", "κόσμε 🐍", bytes(range(256)), "€" * 100_000, b"y" * (4 << 20)],
        ids=["empty-text", "empty-binary", "text", "unicode", "binary", "300kB-text", "4MiB-binary"],
    )
    async def test_is_echoed(self, peer: Peer, wire: Wire, message: str | bytes) -> None:
        async with connect(f"{peer.url}/echo", ssl=wire.client_ssl, max_size=2**23) as ws:
            await ws.send(message)
            assert await ws.receive() == message

    async def test_joins_fragments(self, peer: Peer, wire: Wire) -> None:
        async with connect(f"{peer.url}/fragments", ssl=wire.client_ssl) as ws:
            assert [message async for message in ws] == ["κόσμε", b"\x00\x01\x02"]

    async def test_answers_a_ping(self, peer: Peer, wire: Wire) -> None:
        async with connect(f"{peer.url}/ping", ssl=wire.client_ssl) as ws:
            assert await ws.receive() == "pong: are you there"

    async def test_pings(self, peer: Peer, wire: Wire) -> None:
        async with connect(f"{peer.url}/wait", ssl=wire.client_ssl) as ws:
            assert 0 <= await ws.ping() < 10

    @pytest.mark.parametrize(("path", "code", "reason"), [("close", 4001, "ünïcödé"), ("close-without-code", 1005, "")])
    async def test_sees_how_the_server_closes(self, peer: Peer, wire: Wire, path: str, code: int, reason: str) -> None:
        async with connect(f"{peer.url}/{path}", ssl=wire.client_ssl) as ws:
            with pytest.raises(anyio_ws.ConnectionClosed) as caught:
                await ws.receive()
        end = caught.value.close_info
        assert (end.code, end.reason, end.initiator, end.clean) == (code, reason, "peer", True)

    @pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3001, "ünïcödé")])
    async def test_tells_the_server_how_it_closes(
        self, peer: Peer, wire: Wire, in_thread: InThread, code: int, reason: str
    ) -> None:
        async with connect(f"{peer.url}/wait", ssl=wire.client_ssl) as ws:
            await ws.aclose(code, reason)
        assert await in_thread(peer.next_close) == {"code": code, "reason": reason}
        assert ws.close_info is not None
        assert (ws.close_info.code, ws.close_info.initiator, ws.close_info.clean) == (code, "local", True)

    async def test_closes_with_1001_when_it_is_cancelled(self, peer: Peer, wire: Wire, in_thread: InThread) -> None:
        with anyio.CancelScope() as scope:
            async with connect(f"{peer.url}/wait", ssl=wire.client_ssl) as ws:
                scope.cancel()
                await ws.receive()
        assert await in_thread(peer.next_close) == {"code": 1001, "reason": ""}

    async def test_says_1006_when_the_server_vanishes(self, peer: Peer, wire: Wire) -> None:
        async with connect(f"{peer.url}/terminate", ssl=wire.client_ssl) as ws:
            with pytest.raises(anyio_ws.ConnectionClosedError) as caught:
                await ws.receive()
        assert (caught.value.close_info.code, caught.value.close_info.clean) == (1006, False)

    async def test_exchanges_headers_and_a_subprotocol(self, peer: Peer, wire: Wire) -> None:
        async with connect(
            f"{peer.url}/headers",
            ssl=wire.client_ssl,
            subprotocols=["v3", "v1"],
            additional_headers={"X-Question": "six times seven"},
            origin="https://here.example",
        ) as ws:
            assert ws.subprotocol == "v1"
            assert ws.response.headers["x-answer"] == "six times seven"
            sent = json.loads(await ws.receive_text())
        assert sent["origin"] == "https://here.example"

    async def test_is_refused(self, peer: Peer, wire: Wire) -> None:
        with pytest.raises(anyio_ws.HandshakeRejected) as caught:
            async with connect(f"{peer.url}/refuse", ssl=wire.client_ssl):
                pass
        assert (caught.value.response.status_code, caught.value.response.body) == (401, b"who are you?\n")


OURS = {"default": Deflate(), "small": Deflate.small(), "best": Deflate.best()}
# As a server, ws answers 400 to an offer of fewer window bits than its own option says: the presets have 11 or more.
THEIRS: list[Any] = [
    True,
    {"threshold": 0},
    {"serverNoContextTakeover": True},
    {"clientNoContextTakeover": True},
    {"serverNoContextTakeover": True, "clientNoContextTakeover": True, "threshold": 0},
    {"serverMaxWindowBits": 9, "clientMaxWindowBits": 9, "threshold": 0},
    {"serverMaxWindowBits": 10, "clientMaxWindowBits": 10, "threshold": 0},
]
TEXT = "".join(f'{{"id": {i}, "name": "name {i % 97}"}}, ' for i in range(3000))


@pytest.mark.parametrize("ours", OURS.values(), ids=list(OURS))
class TestCompression:
    async def test_of_our_server(self, in_thread: InThread, ours: Deflate) -> None:
        environment = {**ENVIRONMENT, "DEFLATE": json.dumps(THEIRS)}
        options: dict[str, Any] = {"compression": ours, "subprotocols": SUBPROTOCOLS, "max_size": 2**23}
        async with Server(echo, "127.0.0.1", 0, **options) as server:
            command = [*PEER, "client", "compression", server.url]
            done = await in_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=15)
        assert done.stderr == ""
        reports = json.loads(done.stdout)
        assert len(reports) == len(THEIRS)
        assert all("permessage-deflate" in extensions and is_same for extensions, is_same in reports)

    async def test_of_our_client(
        self, wires: dict[str, Wire], certificate_files: CertificateFiles, ours: Deflate
    ) -> None:
        with peer_server(wires["tcp"], certificate_files) as peer:
            for theirs in THEIRS:
                async with connect(f"{peer.url}/echo?{quote(json.dumps(theirs))}", compression=ours) as ws:
                    for message in (TEXT[:2000], TEXT[:200].encode(), TEXT[:100_000], TEXT[:2000], "", b""):
                        await ws.send(message)
                        assert await ws.receive() == message
                    assert "permessage-deflate" in ws.response.headers["Sec-WebSocket-Extensions"]
                    assert ws.stats.bytes_received < 50_000
                    assert ws.stats.bytes_sent < 50_000
