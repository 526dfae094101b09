"""Our server with the client of `websockets`, and our client with its server, over TCP and TLS.

The peer is its synchronous flavour, in a thread, so that the same peer meets all three event loops. It offers
permessage-deflate, as it does by default.
"""

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import websockets
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync import client as sync_client
from websockets.sync import server as sync_server

import anyio_ws
from anyio_ws import CloseInfo, Request, Response, Server, WebSocket, connect

from .conftest import Wire

pytestmark = pytest.mark.real_time

InThread = Callable[..., Awaitable[Any]]

MESSAGES = [
    pytest.param("", id="empty-text"),
    pytest.param(b"", id="empty-binary"),
    pytest.param("hello", id="text"),
    pytest.param("κόσμε 🐍", id="unicode"),
    pytest.param(bytes(range(256)), id="binary"),
    pytest.param(b"x" * 125, id="125-bytes"),
    pytest.param(b"x" * 126, id="126-bytes"),
    pytest.param(b"x" * 65535, id="65535-bytes"),
    pytest.param(b"x" * 65536, id="65536-bytes"),
    pytest.param("€" * 1_000_000, id="3MB-text"),
    pytest.param(bytes(range(256)) * 32768, id="8MiB-binary"),
]
CLOSES = [(1000, ""), (1001, "going"), (3001, "registered"), (4999, "ünïcödé")]


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


def serve(handler: Callable[[WebSocket], Awaitable[None]], wire: Wire, **options: Any) -> Server:
    return Server(handler, "127.0.0.1", 0, ssl=wire.server_ssl, **options)


def peer(server: Server, wire: Wire, **options: Any) -> sync_client.ClientConnection:
    return sync_client.connect(server.url, ssl=wire.client_ssl, proxy=None, max_size=None, **options)


class TestOurServer:
    @pytest.mark.parametrize("message", MESSAGES)
    async def test_echoes(self, wire: Wire, in_thread: InThread, message: str | bytes) -> None:
        def talk() -> str | bytes:
            with peer(server, wire) as ws:
                ws.send(message)
                return ws.recv()

        async with serve(echo, wire, max_size=2**24) as server:
            assert await in_thread(talk) == message

    async def test_keeps_the_order_of_many_messages(self, wire: Wire, in_thread: InThread) -> None:
        messages = [f"message {i}" for i in range(2000)]

        def talk() -> list[str | bytes]:
            with peer(server, wire) as ws:
                for message in messages:
                    ws.send(message)
                return [ws.recv() for _ in messages]

        async with serve(echo, wire) as server:
            assert await in_thread(talk) == messages

    @pytest.mark.parametrize("fragments", [["κ", "", "όσμε"], [b"\x00", b"\x01\x02", b""]], ids=["text", "binary"])
    async def test_joins_fragments(self, wire: Wire, in_thread: InThread, fragments: list[Any]) -> None:
        def talk() -> str | bytes:
            with peer(server, wire) as ws:
                ws.send(fragments)
                return ws.recv()

        async with serve(echo, wire) as server:
            assert await in_thread(talk) == fragments[0][:0].join(fragments)

    async def test_answers_a_ping(self, wire: Wire, in_thread: InThread) -> None:
        def talk() -> bool:
            with peer(server, wire) as ws:
                return ws.ping(b"payload").wait(10)

        async with serve(echo, wire) as server:
            assert await in_thread(talk)

    async def test_answers_a_ping_while_the_handler_does_not_read(self, wire: Wire, in_thread: InThread) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.wait_closed()

        def talk() -> bool:
            with peer(server, wire) as ws:
                return ws.ping().wait(10)

        async with serve(handler, wire) as server:
            assert await in_thread(talk)

    async def test_pings(self, wire: Wire, in_thread: InThread) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send(f"{await ws.ping()}")

        def talk() -> str | bytes:
            with peer(server, wire) as ws:
                return ws.recv()

        async with serve(handler, wire) as server:
            assert 0 <= float(await in_thread(talk)) < 10

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_sees_how_the_client_closes(self, wire: Wire, in_thread: InThread, code: int, reason: str) -> None:
        ends: list[CloseInfo] = []

        async def handler(ws: WebSocket) -> None:
            ends.append(await ws.wait_closed())

        def talk() -> None:
            with peer(server, wire) as ws:
                ws.close(code, reason)

        async with serve(handler, wire) as server:
            await in_thread(talk)
        assert [(end.code, end.reason, end.initiator, end.clean) for end in ends] == [(code, reason, "peer", True)]

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_tells_the_client_how_it_closes(
        self, wire: Wire, in_thread: InThread, code: int, reason: str
    ) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.aclose(code, reason)

        def talk() -> tuple[int | None, str | None]:
            with peer(server, wire) as ws:
                with pytest.raises(websockets.ConnectionClosed):
                    ws.recv()
                return ws.close_code, ws.close_reason

        async with serve(handler, wire) as server:
            assert await in_thread(talk) == (code, reason)

    async def test_closes_with_1000_when_the_handler_returns(self, wire: Wire, in_thread: InThread) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send("bye")

        def talk() -> tuple[list[str | bytes], int | None]:
            with peer(server, wire) as ws:
                return list(ws), ws.close_code

        async with serve(handler, wire) as server:
            assert await in_thread(talk) == (["bye"], 1000)

    async def test_closes_with_1011_when_the_handler_fails(self, wire: Wire, in_thread: InThread) -> None:
        async def handler(ws: WebSocket) -> None:
            raise RuntimeError("secret")

        def talk() -> str:
            with peer(server, wire) as ws, pytest.raises(ConnectionClosedError) as caught:
                ws.recv()
            return f"{caught.value}"

        async with serve(handler, wire) as server:
            text = await in_thread(talk)
        assert "received 1011" in text
        assert "secret" not in text

    async def test_closes_with_1001_when_it_goes_away(self, wire: Wire, in_thread: InThread) -> None:
        connected = anyio.Event()
        codes: list[int | None] = []

        async def handler(ws: WebSocket) -> None:
            connected.set()
            await ws.wait_closed()

        def talk() -> None:
            with peer(server, wire) as ws:
                assert list(ws) == []
                codes.append(ws.close_code)

        async with anyio.create_task_group() as tg, serve(handler, wire) as server:
            tg.start_soon(in_thread, talk)
            await connected.wait()
        assert codes == [1001]

    async def test_negotiates_a_subprotocol(self, wire: Wire, in_thread: InThread) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send(f"{ws.subprotocol}")

        def talk() -> tuple[str | None, str | bytes]:
            with peer(server, wire, subprotocols=["v3", "v1"]) as ws:
                return ws.subprotocol, ws.recv()

        async with serve(handler, wire, subprotocols=["v2", "v1"]) as server:
            assert await in_thread(talk) == ("v1", "v1")

    async def test_exchanges_headers(self, wire: Wire, in_thread: InThread) -> None:
        async def process_request(request: Request) -> Response:
            return Response(101, {"X-Answer": request.headers["x-question"]})

        async def handler(ws: WebSocket) -> None:
            await ws.send(ws.request.headers["User-Agent"])

        def talk() -> tuple[str, str | bytes]:
            headers = {"X-Question": "six times seven"}
            with peer(server, wire, additional_headers=headers, user_agent_header="test/1") as ws:
                assert ws.response is not None
                return ws.response.headers["X-Answer"], ws.recv()

        async with serve(handler, wire, process_request=process_request) as server:
            assert await in_thread(talk) == ("six times seven", "test/1")

    async def test_refuses(self, wire: Wire, in_thread: InThread) -> None:
        def process_request(request: Request) -> Response:
            return Response(401, {"WWW-Authenticate": "Bearer"}, "who are you?\n")

        def talk() -> tuple[int, str, bytes]:
            with pytest.raises(InvalidStatus) as caught, peer(server, wire):
                pass
            response = caught.value.response
            return response.status_code, response.headers["WWW-Authenticate"], bytes(response.body)

        async with serve(echo, wire, process_request=process_request) as server:
            assert await in_thread(talk) == (401, "Bearer", b"who are you?\n")

    async def test_refuses_an_origin_from_elsewhere(self, wire: Wire, in_thread: InThread) -> None:
        def talk() -> int:
            with pytest.raises(InvalidStatus) as caught, peer(server, wire, origin="https://elsewhere.example"):
                pass
            return caught.value.response.status_code

        async with serve(echo, wire) as server:
            assert await in_thread(talk) == 403

    async def test_closes_with_1009_when_a_message_is_too_big(self, wire: Wire, in_thread: InThread) -> None:
        def talk() -> int | None:
            with peer(server, wire) as ws:
                ws.send(b"x" * 1001)
                assert ws.wait_closed(10)
                return ws.close_code

        async with serve(echo, wire, max_size=1000) as server:
            assert await in_thread(talk) == 1009


@contextmanager
def peer_server(handler: Callable[[sync_server.ServerConnection], None], wire: Wire, **options: Any) -> Iterator[str]:
    server = sync_server.serve(handler, "127.0.0.1", 0, ssl=wire.server_ssl, max_size=None, **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{wire.scheme}://127.0.0.1:{server.socket.getsockname()[1]}/path?query=1"
    finally:
        server.shutdown()
        thread.join()


def peer_echo(ws: sync_server.ServerConnection) -> None:
    for message in ws:
        ws.send(message)


class TestOurClient:
    @pytest.mark.parametrize("message", MESSAGES)
    async def test_is_echoed(self, wire: Wire, message: str | bytes) -> None:
        with peer_server(peer_echo, wire) as url:
            async with connect(url, ssl=wire.client_ssl, max_size=2**24) as ws:
                await ws.send(message)
                assert await ws.receive() == message

    async def test_keeps_the_order_of_many_messages(self, wire: Wire) -> None:
        messages = [f"message {i}" for i in range(2000)]

        async def produce() -> None:
            for message in messages:
                await ws.send(message)

        with peer_server(peer_echo, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws, anyio.create_task_group() as tg:
                tg.start_soon(produce)
                assert [await ws.receive() for _ in messages] == messages

    @pytest.mark.parametrize("fragments", [["κ", "", "όσμε"], [b"\x00", b"\x01\x02", b""]], ids=["text", "binary"])
    async def test_joins_fragments(self, wire: Wire, fragments: list[Any]) -> None:
        with peer_server(lambda ws: ws.send(fragments), wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert await ws.receive() == fragments[0][:0].join(fragments)

    async def test_answers_a_ping(self, wire: Wire) -> None:
        def handler(ws: sync_server.ServerConnection) -> None:
            ws.send(f"{ws.ping(b'payload').wait(10)}")

        with peer_server(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert await ws.receive() == "True"

    async def test_pings(self, wire: Wire) -> None:
        with peer_server(peer_echo, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert 0 <= await ws.ping(b"payload") < 10

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_sees_how_the_server_closes(self, wire: Wire, code: int, reason: str) -> None:
        with peer_server(lambda ws: ws.close(code, reason), wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                with pytest.raises(anyio_ws.ConnectionClosed) as caught:
                    await ws.receive()
        end = caught.value.close_info
        assert (end.code, end.reason, end.initiator, end.clean) == (code, reason, "peer", True)
        assert isinstance(caught.value, anyio_ws.ConnectionClosedOK) == (code < 3000)

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_tells_the_server_how_it_closes(self, wire: Wire, code: int, reason: str) -> None:
        ends: list[tuple[int | None, str | None]] = []

        def handler(ws: sync_server.ServerConnection) -> None:
            ws.wait_closed()
            ends.append((ws.close_code, ws.close_reason))

        with peer_server(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                await ws.aclose(code, reason)
            assert ws.close_info is not None
            assert (ws.close_info.code, ws.close_info.initiator, ws.close_info.clean) == (code, "local", True)
        assert ends == [(code, reason)]

    async def test_iterates_to_the_end(self, wire: Wire) -> None:
        def handler(ws: sync_server.ServerConnection) -> None:
            ws.send("one")
            ws.send(b"two")

        with peer_server(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert [message async for message in ws] == ["one", b"two"]

    async def test_says_1006_when_the_server_vanishes(self, wire: Wire) -> None:
        with peer_server(lambda ws: ws.socket.shutdown(socket.SHUT_RDWR), wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                with pytest.raises(anyio_ws.ConnectionClosedError) as caught:
                    await ws.receive()
        assert (caught.value.close_info.code, caught.value.close_info.clean) == (1006, False)

    async def test_negotiates_a_subprotocol(self, wire: Wire) -> None:
        with peer_server(peer_echo, wire, subprotocols=["v2", "v1"]) as url:
            async with connect(url, ssl=wire.client_ssl, subprotocols=["v3", "v1"]) as ws:
                assert ws.subprotocol == "v1"

    async def test_exchanges_headers(self, wire: Wire) -> None:
        def process_response(ws: Any, request: Any, response: Any) -> None:
            response.headers["X-Answer"] = request.headers["X-Question"]

        def handler(ws: sync_server.ServerConnection) -> None:
            assert ws.request is not None
            for name in ("Origin", "User-Agent"):
                ws.send(ws.request.headers[name])
            ws.send(ws.request.path)

        with peer_server(handler, wire, process_response=process_response) as url:
            async with connect(
                url,
                ssl=wire.client_ssl,
                additional_headers={"X-Question": "six times seven"},
                origin="https://here.example",
                user_agent_header="test/1",
            ) as ws:
                assert ws.response.headers["x-answer"] == "six times seven"
                assert [message async for message in ws] == ["https://here.example", "test/1", "/path?query=1"]

    async def test_logs_in_with_the_userinfo_of_the_url(self, wire: Wire) -> None:
        login = sync_server.basic_auth(credentials=("ann", "s3cr:t"))
        with peer_server(peer_echo, wire, process_request=login) as url:
            with pytest.raises(anyio_ws.HandshakeRejected) as caught:
                async with connect(url, ssl=wire.client_ssl):
                    pass
            assert caught.value.response.status_code == 401
            async with connect(url.replace("://", "://ann:s3cr%3At@"), ssl=wire.client_ssl) as ws:
                await ws.send("in")
                assert await ws.receive() == "in"

    async def test_closes_with_1009_when_a_message_is_too_big(self, wire: Wire) -> None:
        codes: list[int | None] = []

        def handler(ws: sync_server.ServerConnection) -> None:
            ws.send(b"x" * 1001)
            ws.wait_closed()
            codes.append(ws.close_code)

        with peer_server(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl, max_size=1000) as ws:
                with pytest.raises(anyio_ws.ConnectionClosedError) as caught:
                    await ws.receive()
        assert caught.value.close_info.code == 1009
        assert codes == [1009]

    async def test_does_not_trust_an_unknown_authority(self, tls: Wire) -> None:
        with peer_server(peer_echo, tls) as url, pytest.raises(anyio_ws.ConnectFailed, match=r"127\.0\.0\.1"):
            async with connect(url):
                pass

    async def test_does_not_trust_a_certificate_for_another_host(self, tls: Wire) -> None:
        with peer_server(peer_echo, tls) as url, pytest.raises(anyio_ws.ConnectFailed, match=r"other\.example"):
            async with connect(url, ssl=tls.client_ssl, server_hostname="other.example"):
                pass
