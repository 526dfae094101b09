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
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

import anyio_ws
from anyio_ws import CloseInfo, Deflate, Request, Response, Server, Stats, WebSocket, connect

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


BITS = [None, 9, 12, 15]
AGREEMENTS = list(product([False, True], [False, True], BITS, BITS))
"""Two flags and two sizes: each for the server's messages, and for the client's."""


def deflate_as_ours(
    server_single: bool, client_single: bool, server_bits: int | None, client_bits: int | None
) -> Deflate:
    return Deflate(
        server_no_context_takeover=server_single,
        client_no_context_takeover=client_single,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
    )


def deflate_as_theirs(
    server_single: bool, client_single: bool, server_bits: int | None, client_bits: int | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"threshold": 0}
    if server_single:
        options["serverNoContextTakeover"] = True
    if client_single:
        options["clientNoContextTakeover"] = True
    if server_bits:
        options["serverMaxWindowBits"] = server_bits
    if client_bits:
        options["clientMaxWindowBits"] = client_bits
    return options


@pytest.fixture
def peer(tcp: Wire, certificate_files: CertificateFiles) -> Iterator[Peer]:
    with peer_server(tcp, certificate_files) as peer:
        yield peer


@pytest.mark.usefixtures("deflate_libraries")
class TestCompression:
    async def run(
        self, in_thread: InThread, scenario: str, connections: list[tuple[str, Any]]
    ) -> list[tuple[str, bool]]:
        """Let clients of ws, each to a server of ours and with these options, send what they send in a scenario."""
        command = [*PEER, "client", scenario, ""]
        environment = {**ENVIRONMENT, "DEFLATE": json.dumps(connections)}
        done = await in_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=15)
        assert done.stderr == ""
        return json.loads(done.stdout)

    @pytest.mark.parametrize("ours", OURS.values(), ids=list(OURS))
    async def test_of_our_server(self, in_thread: InThread, ours: Deflate) -> None:
        options: dict[str, Any] = {"compression": ours, "subprotocols": SUBPROTOCOLS, "max_size": 2**23}
        async with Server(echo, "127.0.0.1", 0, **options) as server:
            reports = await self.run(in_thread, "compression", [(server.url, theirs) for theirs in THEIRS])
        assert reports == [["permessage-deflate", True]] * len(THEIRS)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("wish", ["ours", "theirs", "of-both"])
    async def test_of_our_server_with_all_parameters(self, in_thread: InThread, wish: str) -> None:
        stats: list[Stats] = []

        async def handler(ws: WebSocket) -> None:
            await echo(ws)
            stats.append(ws.stats)

        async with AsyncExitStack() as servers:
            connections: list[tuple[str, Any]] = []
            for agreement in AGREEMENTS:
                ours = Deflate() if wish == "theirs" else deflate_as_ours(*agreement)
                theirs = {"threshold": 0} if wish == "ours" else deflate_as_theirs(*agreement)
                server = Server(handler, "127.0.0.1", 0, compression=ours, subprotocols=SUBPROTOCOLS)
                await servers.enter_async_context(server)
                connections.append((server.url, theirs))
            reports = await self.run(in_thread, "compressible", connections)
        assert reports == [["permessage-deflate", True]] * len(AGREEMENTS)
        assert len(stats) == len(AGREEMENTS)
        assert all(counters.bytes_received < 50_000 and counters.bytes_sent < 50_000 for counters in stats)

    @pytest.mark.parametrize("ours", OURS.values(), ids=list(OURS))
    async def test_of_our_client(self, peer: Peer, ours: Deflate) -> None:
        for theirs in THEIRS:
            await self.check_client(peer, ours, theirs)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("wish", ["ours", "theirs", "of-both"])
    async def test_of_our_client_with_all_parameters(self, peer: Peer, wish: str) -> None:
        for agreement in AGREEMENTS:
            ours = Deflate() if wish == "theirs" else deflate_as_ours(*agreement)
            theirs = {"threshold": 0} if wish == "ours" else deflate_as_theirs(*agreement)
            await self.check_client(peer, ours, theirs)

    async def check_client(self, peer: Peer, ours: Deflate, theirs: Any) -> None:
        async with connect(f"{peer.url}/echo?{quote(json.dumps(theirs))}", compression=ours) as ws:
            for message in (TEXT[:2000], TEXT[:200].encode(), TEXT, TEXT[:2000], "", b""):
                await ws.send(message)
                assert await ws.receive() == message
            assert "permessage-deflate" in ws.response.headers["Sec-WebSocket-Extensions"]
            assert ws.stats.bytes_received < 50_000
            assert ws.stats.bytes_sent < 50_000

    async def test_of_a_large_message_by_our_client(self, peer: Peer) -> None:
        message = TEXT * 30
        async with connect(f"{peer.url}/echo", compression="deflate", max_size=2**22) as ws:
            for _ in range(2):
                await ws.send(message)
                assert await ws.receive() == message
