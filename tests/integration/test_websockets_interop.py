"""Our server with the client of `websockets`, and our client with its server, over TCP and TLS.

The peer is its asyncio flavour with a loop of its own in a thread, so that the same peer meets all three event loops.
(Not its threaded flavour: two threads that use one SSLSocket fail now and then before Python 3.14.) It offers
permessage-deflate, as it does by default; ours takes it up in the last two classes.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, TypeVar

import anyio.to_thread
import pytest
import websockets
from anyio.from_thread import start_blocking_portal
from websockets.asyncio import client as peer_client
from websockets.asyncio import server as peer_server
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory

import anyio_ws
from anyio_ws import CloseInfo, Deflate, Request, Response, Server, WebSocket, connect

from .conftest import Wire, echo_in_parts

pytestmark = pytest.mark.real_time

T = TypeVar("T")

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


def dial(server: Server, wire: Wire, **options: Any) -> peer_client.connect:
    return peer_client.connect(server.url, ssl=wire.client_ssl, proxy=None, max_size=None, **options)


async def beside(talk: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a peer on an event loop of its own; a test that fails does not wait for it."""
    return await anyio.to_thread.run_sync(lambda: asyncio.run(talk()), abandon_on_cancel=True)


class TestOurServer:
    @pytest.mark.parametrize("message", MESSAGES)
    async def test_echoes(self, wire: Wire, message: str | bytes) -> None:
        async def talk() -> str | bytes:
            async with dial(server, wire) as ws:
                await ws.send(message)
                return await ws.recv()

        async with serve(echo, wire, max_size=2**24) as server:
            assert await beside(talk) == message

    async def test_keeps_the_order_of_many_messages(self, wire: Wire) -> None:
        messages = [f"message {i}" for i in range(2000)]

        async def talk() -> list[str | bytes]:
            async with dial(server, wire) as ws:
                for message in messages:
                    await ws.send(message)
                return [await ws.recv() for _ in messages]

        async with serve(echo, wire) as server:
            assert await beside(talk) == messages

    @pytest.mark.parametrize("fragments", [["κ", "", "όσμε"], [b"\x00", b"\x01\x02", b""]], ids=["text", "binary"])
    async def test_joins_fragments(self, wire: Wire, fragments: list[Any]) -> None:
        async def talk() -> str | bytes:
            async with dial(server, wire) as ws:
                await ws.send(fragments)
                return await ws.recv()

        async with serve(echo, wire) as server:
            assert await beside(talk) == fragments[0][:0].join(fragments)

    async def test_answers_a_ping(self, wire: Wire) -> None:
        async def talk() -> float:
            async with dial(server, wire) as ws:
                return await (await ws.ping(b"payload"))

        async with serve(echo, wire) as server:
            assert 0 <= await beside(talk) < 10

    async def test_answers_a_ping_while_the_handler_does_not_read(self, wire: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.wait_closed()

        async def talk() -> float:
            async with dial(server, wire) as ws:
                return await (await ws.ping())

        async with serve(handler, wire) as server:
            assert 0 <= await beside(talk) < 10

    async def test_pings(self, wire: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send(f"{await ws.ping()}")

        async def talk() -> str | bytes:
            async with dial(server, wire) as ws:
                return await ws.recv()

        async with serve(handler, wire) as server:
            assert 0 <= float(await beside(talk)) < 10

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_sees_how_the_client_closes(self, wire: Wire, code: int, reason: str) -> None:
        ends: list[CloseInfo] = []

        async def handler(ws: WebSocket) -> None:
            ends.append(await ws.wait_closed())

        async def talk() -> None:
            async with dial(server, wire) as ws:
                await ws.close(code, reason)

        async with serve(handler, wire) as server:
            await beside(talk)
        assert [(end.code, end.reason, end.initiator, end.clean) for end in ends] == [(code, reason, "peer", True)]

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_tells_the_client_how_it_closes(self, wire: Wire, code: int, reason: str) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.aclose(code, reason)

        async def talk() -> tuple[int | None, str | None]:
            async with dial(server, wire) as ws:
                with pytest.raises(websockets.ConnectionClosed):
                    await ws.recv()
                return ws.close_code, ws.close_reason

        async with serve(handler, wire) as server:
            assert await beside(talk) == (code, reason)

    async def test_closes_with_1000_when_the_handler_returns(self, wire: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send("bye")

        async def talk() -> tuple[list[str | bytes], int | None]:
            async with dial(server, wire) as ws:
                return [message async for message in ws], ws.close_code

        async with serve(handler, wire) as server:
            assert await beside(talk) == (["bye"], 1000)

    async def test_closes_with_1011_when_the_handler_fails(self, wire: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            raise RuntimeError("secret")

        async def talk() -> str:
            async with dial(server, wire) as ws:
                with pytest.raises(ConnectionClosedError) as caught:
                    await ws.recv()
            return f"{caught.value}"

        async with serve(handler, wire) as server:
            text = await beside(talk)
        assert "received 1011" in text
        assert "secret" not in text

    async def test_closes_with_1001_when_it_goes_away(self, wire: Wire) -> None:
        connected = anyio.Event()
        codes: list[int | None] = []

        async def handler(ws: WebSocket) -> None:
            connected.set()
            await ws.wait_closed()

        async def talk() -> None:
            async with dial(server, wire) as ws:
                assert [message async for message in ws] == []
                codes.append(ws.close_code)

        async with anyio.create_task_group() as tg, serve(handler, wire) as server:
            tg.start_soon(beside, talk)
            await connected.wait()
        assert codes == [1001]

    async def test_negotiates_a_subprotocol(self, wire: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send(f"{ws.subprotocol}")

        async def talk() -> tuple[str | None, str | bytes]:
            async with dial(server, wire, subprotocols=["v3", "v1"]) as ws:
                return ws.subprotocol, await ws.recv()

        async with serve(handler, wire, subprotocols=["v2", "v1"]) as server:
            assert await beside(talk) == ("v1", "v1")

    async def test_exchanges_headers(self, wire: Wire) -> None:
        async def process_request(request: Request) -> Response:
            return Response(101, {"X-Answer": request.headers["x-question"]})

        async def handler(ws: WebSocket) -> None:
            await ws.send(ws.request.headers["User-Agent"])

        async def talk() -> tuple[str, str | bytes]:
            headers = {"X-Question": "six times seven"}
            async with dial(server, wire, additional_headers=headers, user_agent_header="test/1") as ws:
                assert ws.response is not None
                return ws.response.headers["X-Answer"], await ws.recv()

        async with serve(handler, wire, process_request=process_request) as server:
            assert await beside(talk) == ("six times seven", "test/1")

    async def test_refuses(self, wire: Wire) -> None:
        def process_request(request: Request) -> Response:
            return Response(401, {"WWW-Authenticate": "Bearer"}, "who are you?\n")

        async def talk() -> tuple[int, str, bytes]:
            with pytest.raises(InvalidStatus) as caught:
                async with dial(server, wire):
                    pass
            response = caught.value.response
            return response.status_code, response.headers["WWW-Authenticate"], bytes(response.body)

        async with serve(echo, wire, process_request=process_request) as server:
            assert await beside(talk) == (401, "Bearer", b"who are you?\n")

    async def test_refuses_an_origin_from_elsewhere(self, wire: Wire) -> None:
        async def talk() -> int:
            with pytest.raises(InvalidStatus) as caught:
                async with dial(server, wire, origin="https://elsewhere.example"):
                    pass
            return caught.value.response.status_code

        async with serve(echo, wire) as server:
            assert await beside(talk) == 403

    async def test_closes_with_1009_when_a_message_is_too_big(self, wire: Wire) -> None:
        async def talk() -> int | None:
            async with dial(server, wire) as ws:
                await ws.send(b"x" * 1001)
                await ws.wait_closed()
                return ws.close_code

        async with serve(echo, wire, max_size=1000) as server:
            assert await beside(talk) == 1009


@contextmanager
def serve_as_peer(
    handler: Callable[[peer_server.ServerConnection], Awaitable[None]], wire: Wire, **options: Any
) -> Iterator[str]:
    async def start() -> peer_server.Server:
        return await peer_server.serve(handler, "127.0.0.1", 0, ssl=wire.server_ssl, max_size=None, **options)

    async def stop(server: peer_server.Server) -> None:
        server.close()
        await server.wait_closed()

    with start_blocking_portal() as portal:
        server = portal.call(start)
        yield f"{wire.scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/path?query=1"
        portal.call(stop, server)


async def peer_echo(ws: peer_server.ServerConnection) -> None:
    async for message in ws:
        await ws.send(message)


class TestOurClient:
    @pytest.mark.parametrize("message", MESSAGES)
    async def test_is_echoed(self, wire: Wire, message: str | bytes) -> None:
        with serve_as_peer(peer_echo, wire) as url:
            async with connect(url, ssl=wire.client_ssl, max_size=2**24) as ws:
                await ws.send(message)
                assert await ws.receive() == message

    async def test_keeps_the_order_of_many_messages(self, wire: Wire) -> None:
        messages = [f"message {i}" for i in range(2000)]

        async def produce() -> None:
            for message in messages:
                await ws.send(message)

        with serve_as_peer(peer_echo, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws, anyio.create_task_group() as tg:
                tg.start_soon(produce)
                assert [await ws.receive() for _ in messages] == messages

    @pytest.mark.parametrize("fragments", [["κ", "", "όσμε"], [b"\x00", b"\x01\x02", b""]], ids=["text", "binary"])
    async def test_joins_fragments(self, wire: Wire, fragments: list[Any]) -> None:
        with serve_as_peer(lambda ws: ws.send(fragments), wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert await ws.receive() == fragments[0][:0].join(fragments)

    async def test_answers_a_ping(self, wire: Wire) -> None:
        async def handler(ws: peer_server.ServerConnection) -> None:
            await ws.send(f"{await (await ws.ping(b'payload'))}")

        with serve_as_peer(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert 0 <= float(await ws.receive_text()) < 10

    async def test_pings(self, wire: Wire) -> None:
        with serve_as_peer(peer_echo, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert 0 <= await ws.ping(b"payload") < 10

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_sees_how_the_server_closes(self, wire: Wire, code: int, reason: str) -> None:
        with serve_as_peer(lambda ws: ws.close(code, reason), wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                with pytest.raises(anyio_ws.ConnectionClosed) as caught:
                    await ws.receive()
        end = caught.value.close_info
        assert (end.code, end.reason, end.initiator, end.clean) == (code, reason, "peer", True)
        assert isinstance(caught.value, anyio_ws.ConnectionClosedOK) == (code < 3000)

    @pytest.mark.parametrize(("code", "reason"), CLOSES)
    async def test_tells_the_server_how_it_closes(self, wire: Wire, code: int, reason: str) -> None:
        ends: list[tuple[int | None, str | None]] = []

        async def handler(ws: peer_server.ServerConnection) -> None:
            await ws.wait_closed()
            ends.append((ws.close_code, ws.close_reason))

        with serve_as_peer(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                await ws.aclose(code, reason)
            assert ws.close_info is not None
            assert (ws.close_info.code, ws.close_info.initiator, ws.close_info.clean) == (code, "local", True)
        assert ends == [(code, reason)]

    async def test_iterates_to_the_end(self, wire: Wire) -> None:
        async def handler(ws: peer_server.ServerConnection) -> None:
            await ws.send("one")
            await ws.send(b"two")

        with serve_as_peer(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                assert [message async for message in ws] == ["one", b"two"]

    async def test_says_1006_when_the_server_vanishes(self, wire: Wire) -> None:
        async def vanish(ws: peer_server.ServerConnection) -> None:
            ws.transport.abort()

        with serve_as_peer(vanish, wire) as url:
            async with connect(url, ssl=wire.client_ssl) as ws:
                with pytest.raises(anyio_ws.ConnectionClosedError) as caught:
                    await ws.receive()
        assert (caught.value.close_info.code, caught.value.close_info.clean) == (1006, False)

    async def test_negotiates_a_subprotocol(self, wire: Wire) -> None:
        with serve_as_peer(peer_echo, wire, subprotocols=["v2", "v1"]) as url:
            async with connect(url, ssl=wire.client_ssl, subprotocols=["v3", "v1"]) as ws:
                assert ws.subprotocol == "v1"

    async def test_exchanges_headers(self, wire: Wire) -> None:
        def process_response(ws: Any, request: Any, response: Any) -> None:
            response.headers["X-Answer"] = request.headers["X-Question"]

        async def handler(ws: peer_server.ServerConnection) -> None:
            assert ws.request is not None
            for name in ("Origin", "User-Agent"):
                await ws.send(ws.request.headers[name])
            await ws.send(ws.request.path)

        with serve_as_peer(handler, wire, process_response=process_response) as url:
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
        login = peer_server.basic_auth(credentials=("ann", "s3cr:t"))
        with serve_as_peer(peer_echo, wire, process_request=login) as url:
            with pytest.raises(anyio_ws.HandshakeRejected) as caught:
                async with connect(url, ssl=wire.client_ssl):
                    pass
            assert caught.value.response.status_code == 401
            async with connect(url.replace("://", "://ann:s3cr%3At@"), ssl=wire.client_ssl) as ws:
                await ws.send("in")
                assert await ws.receive() == "in"

    async def test_closes_with_1009_when_a_message_is_too_big(self, wire: Wire) -> None:
        codes: list[int | None] = []

        async def handler(ws: peer_server.ServerConnection) -> None:
            await ws.send(b"x" * 1001)
            await ws.wait_closed()
            codes.append(ws.close_code)

        with serve_as_peer(handler, wire) as url:
            async with connect(url, ssl=wire.client_ssl, max_size=1000) as ws:
                with pytest.raises(anyio_ws.ConnectionClosedError) as caught:
                    await ws.receive()
        assert caught.value.close_info.code == 1009
        assert codes == [1009]

    async def test_does_not_trust_an_unknown_authority(self, tls: Wire) -> None:
        with serve_as_peer(peer_echo, tls) as url, pytest.raises(anyio_ws.ConnectFailed, match=r"127\.0\.0\.1"):
            async with connect(url):
                pass

    async def test_does_not_trust_a_certificate_for_another_host(self, tls: Wire) -> None:
        with serve_as_peer(peer_echo, tls) as url, pytest.raises(anyio_ws.ConnectFailed, match=r"other\.example"):
            async with connect(url, ssl=tls.client_ssl, server_hostname="other.example"):
                pass


Windows = list[tuple[int | None, int | None]]
SOME_WINDOWS: Windows = [(None, None), (9, 12), (12, 15), (15, 9)]
ALL_WINDOWS: Windows = list(product([None, 9, 12, 15], repeat=2))
TEXT = "".join(f'{{"id": {i}, "name": "name {i % 97}"}}, ' for i in range(3000))
# Small and large, each twice: the second refers to the first, where the context is taken over.
COMPRESSIBLE = [TEXT[:200], TEXT[:200].encode(), TEXT[:100_000], TEXT[:200], TEXT[:100_000].encode()]


async def exchange(send: Callable[[Any], Awaitable[object]], receive: Callable[[], Awaitable[Any]]) -> list[Any]:
    received = []
    for message in COMPRESSIBLE:
        await send(message)
        received.append(await receive())
    return received


def agreements(server_single: bool, client_single: bool, windows: Windows) -> Iterator[dict[str, Any]]:
    for server_bits, client_bits in windows:
        yield {
            "server_no_context_takeover": server_single,
            "client_no_context_takeover": client_single,
            "server_max_window_bits": server_bits,
            "client_max_window_bits": client_bits,
        }


def check_agreement(header: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is True:
            assert name in header
        elif value:
            assert f"{name}={value}" in header


def check_counters(ws: WebSocket) -> None:
    size = sum(map(len, COMPRESSIBLE))
    assert ws.stats.bytes_sent < size / 2
    assert ws.stats.bytes_received < size / 2


@pytest.mark.usefixtures("deflate_libraries")
@pytest.mark.parametrize(
    ("wish", "windows"),
    [
        pytest.param("of-both", SOME_WINDOWS, id="of-both"),
        pytest.param("ours", SOME_WINDOWS, id="ours"),
        pytest.param("theirs", SOME_WINDOWS, id="theirs"),
        pytest.param("of-both", ALL_WINDOWS, id="of-both-all-windows", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("server_single", [False, True], ids=["server-takes-over", "server-single"])
@pytest.mark.parametrize("client_single", [False, True], ids=["client-takes-over", "client-single"])
class TestCompression:
    async def test_of_our_server(
        self, tcp: Wire, wish: str, windows: Windows, server_single: bool, client_single: bool
    ) -> None:
        async def handler(ws: WebSocket) -> None:
            await echo(ws)
            check_counters(ws)
            checked.set()

        async def talk() -> tuple[str, list[str | bytes]]:
            theirs = {} if wish == "ours" else options
            offer = {**theirs, "client_max_window_bits": theirs.get("client_max_window_bits") or True}
            extension = ClientPerMessageDeflateFactory(**offer)
            async with dial(server, tcp, compression=None, extensions=[extension]) as ws:
                assert ws.response is not None
                return ws.response.headers["Sec-WebSocket-Extensions"], await exchange(ws.send, ws.recv)

        for options in agreements(server_single, client_single, windows):
            ours = Deflate(**({} if wish == "theirs" else options))
            checked = anyio.Event()
            async with serve(handler, tcp, compression=ours) as server:
                header, received = await beside(talk)
                await checked.wait()
            assert received == COMPRESSIBLE
            check_agreement(header, options)

    async def test_of_our_client(
        self, tcp: Wire, wish: str, windows: Windows, server_single: bool, client_single: bool
    ) -> None:
        for options in agreements(server_single, client_single, windows):
            ours = Deflate(**({} if wish == "theirs" else options))
            extension = ServerPerMessageDeflateFactory(**({} if wish == "ours" else options))
            with serve_as_peer(peer_echo, tcp, compression=None, extensions=[extension]) as url:
                async with connect(url, compression=ours) as ws:
                    assert await exchange(ws.send, ws.receive) == COMPRESSIBLE
                    check_counters(ws)
                check_agreement(ws.response.headers["Sec-WebSocket-Extensions"], options)


LARGE = [TEXT * 30, random.Random(7692).randbytes(3 << 19), TEXT * 10]


@pytest.mark.usefixtures("deflate_libraries")
@pytest.mark.parametrize("single", [False, True], ids=["taking-over", "single"])
class TestCompressionOfLargeMessages:
    @pytest.mark.parametrize("handler", [echo, echo_in_parts])
    async def test_of_our_server(
        self, tcp: Wire, single: bool, handler: Callable[[WebSocket], Awaitable[None]]
    ) -> None:
        async def talk() -> None:
            async with dial(server, tcp) as ws:
                for message in LARGE:
                    await ws.send(message)
                    assert await ws.recv() == message

        ours = Deflate(server_no_context_takeover=single, client_no_context_takeover=single)
        async with serve(handler, tcp, compression=ours, max_size=2**22) as server:
            await beside(talk)

    async def test_of_our_client(self, tcp: Wire, single: bool) -> None:
        ours = Deflate(server_no_context_takeover=single, client_no_context_takeover=single)
        with serve_as_peer(peer_echo, tcp) as url:
            async with connect(url, compression=ours, max_size=2**22) as ws:
                for message in LARGE:
                    await ws.send(message)
                    assert await ws.receive() == message

    async def test_in_parts_of_our_client(self, tcp: Wire, single: bool) -> None:
        ours = Deflate(server_no_context_takeover=single, client_no_context_takeover=single)

        async def produce(ws: WebSocket) -> None:
            for message in LARGE:
                async with ws.send_stream(text=isinstance(message, str)) as stream:
                    for start in range(0, len(message), 100_000):
                        await stream.send(message[start : start + 100_000])

        with serve_as_peer(peer_echo, tcp) as url:
            async with connect(url, compression=ours) as ws, anyio.create_task_group() as tg:
                tg.start_soon(produce, ws)
                for message in LARGE:
                    async with ws.receive_stream() as stream:
                        assert message[:0].join([chunk async for chunk in stream]) == message
