"""Programs that users write, from small to large: they run on every loop, and type-check strictly as they stand.

Each program has its name and its comments, then the test that runs it: on port 0 and with short times.
"""

import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, assert_type

import anyio
import anyio.abc
import pytest

from anyio_ws import (
    ConnectionClosed,
    HandshakeError,
    HandshakeRejected,
    Request,
    Response,
    Server,
    WebSocket,
    connect,
    serve,
)
from anyio_ws.testing import MemoryServer, connected_pair


# An echo server
async def echo(ws: WebSocket) -> None:
    async for message in ws:  # a peer that vanishes ends the handler; one INFO line, no traceback
        await ws.send(message)


async def echo_server(*, task_status: anyio.abc.TaskStatus[Server]) -> None:
    await serve(echo, "127.0.0.1", 0, task_status=task_status)


# A client
async def client(url: str) -> None:
    try:
        async with connect(url) as ws:
            await ws.send("hello")
            print((await ws.receive_text()).upper())
    except HandshakeRejected as exc:
        print(exc.response.status_code, exc.response.body)
    except HandshakeError as exc:  # refused, DNS, TLS, timeout, nonsense: it was never open
        print("could not connect:", exc)
    except ConnectionClosed as exc:  # it was open and ended
        print("ended:", exc.close_info)


@pytest.mark.real_time
async def test_echo_server_and_client(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tg:
        server: Server = await tg.start(echo_server)
        await client(server.url)
        assert capsys.readouterr().out == "HELLO\n"
        await server.drain()
        await client(server.url)
        assert capsys.readouterr().out.startswith("could not connect: ")


@pytest.mark.real_time
async def test_client_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    async with Server(echo, "127.0.0.1", 0, process_request=lambda _: Response(404, body="not here")) as server:
        await client(server.url)
    assert capsys.readouterr().out == "404 b'not here'\n"


@pytest.mark.real_time
async def test_client_whose_connection_ends(capsys: pytest.CaptureFixture[str]) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.aclose(3000, "enough")

    async with Server(handler, "127.0.0.1", 0) as server:
        await client(server.url)
    assert capsys.readouterr().out == "ended: 3000 'enough' from the peer\n"


# Producer and consumer, both ends
async def consumer(ws: WebSocket) -> None:
    async for text in ws.iter_text():
        print(text)


async def producer(ws: WebSocket) -> None:
    for i in range(10):
        await ws.send(f"{i}")
        await anyio.sleep(0.001)


async def talk(ws: WebSocket) -> None:
    await ws.run(consumer, producer)


@pytest.mark.real_time
async def test_producer_and_consumer(capsys: pytest.CaptureFixture[str]) -> None:
    async with Server(talk, "127.0.0.1", 0) as server, connect(server.url) as ws:
        await talk(ws)
    numbers = [int(line) for line in capsys.readouterr().out.splitlines()]
    # The first side to be done ends the conversation.
    assert set(numbers) <= set(range(10))
    assert numbers.count(0) == 2


# Request and response over one socket
class Rpc:
    def __init__(self, ws: WebSocket) -> None:
        self._ws = ws
        self._replies: dict[int, tuple[anyio.Event, list[Any]]] = {}
        self._ids = count()

    async def dispatch(self, ws: WebSocket) -> None:
        async for reply in ws.iter_json():
            if waiting := self._replies.pop(reply["id"], None):
                waiting[1].append(reply)
                waiting[0].set()

    async def call(self, method: str, *params: object) -> Any:
        key = next(self._ids)
        event, box = self._replies[key] = anyio.Event(), list[Any]()
        await self._ws.send_json({"id": key, "method": method, "params": params})
        await event.wait()
        return box[0]["result"]


async def rpc_client(url: str) -> None:
    async with connect(url) as ws:
        rpc = Rpc(ws)

        async def work(_: WebSocket) -> None:
            print(await rpc.call("add", 1, 2))

        await ws.run(rpc.dispatch, work)  # the socket ends: work is cancelled, not stuck


@pytest.mark.real_time
async def test_rpc(capsys: pytest.CaptureFixture[str]) -> None:
    async def handler(ws: WebSocket) -> None:
        async for request in ws.iter_json():
            await ws.send_json({"id": request["id"], "result": sum(request["params"])})

    async with Server(handler, "127.0.0.1", 0) as server:
        await rpc_client(server.url)
    assert capsys.readouterr().out == "3\n"


@pytest.mark.real_time
async def test_rpc_whose_socket_ends_is_not_stuck(capsys: pytest.CaptureFixture[str]) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.receive()

    async with Server(handler, "127.0.0.1", 0) as server:
        await rpc_client(server.url)
    assert capsys.readouterr().out == ""


# Auth: header, cookie or query
async def auth(request: Request) -> Response | None:
    if not request.is_websocket:
        return None  # 426
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    token = bearer or request.cookies.get("session") or request.query.get("token")
    user = {"secret": "ann"}.get(token or "")
    if user is None:
        return Response(401, {"WWW-Authenticate": "Bearer"}, "unknown token\n")
    request.state["user"] = user
    return None


async def whoami(ws: WebSocket) -> None:
    await ws.send(ws.request.state["user"])


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/", {"Authorization": "Bearer secret"}),
        ("/", {"Cookie": "theme=dark; session=secret"}),
        ("/?token=secret", {}),
    ],
)
async def test_auth_by_any_of_them(target: str, headers: dict[str, str]) -> None:
    async with (
        MemoryServer(whoami, process_request=auth) as server,
        server.connect(target, additional_headers=headers) as ws,
    ):
        assert await ws.receive() == "ann"


# Health check on the same port
def http(request: Request) -> Response | None:
    if not request.is_websocket and request.path == "/healthz":
        return Response(200, body="ok\n")
    return None


@pytest.mark.real_time
async def test_health_check() -> None:
    async with anyio.create_task_group() as tg:
        server: Server = await tg.start(partial(serve, echo, "127.0.0.1", 0, process_request=http))
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
            answer = b"".join([chunk async for chunk in stream])
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nok\n")
        await client(server.url)
        await server.drain()


# Tests: a function, a whole server, an hour in a millisecond
async def greet(ws: WebSocket) -> None:
    name = ws.request.query.get("name", "anon")
    async for text in ws.iter_text():
        await ws.send(f"{name}: {text}")


@pytest.mark.virtual_time
async def test_greet() -> None:
    async with connected_pair(target="/room?name=ann") as (client, server), anyio.create_task_group() as tg:
        tg.start_soon(greet, server)
        await client.send("hi")
        assert await client.receive() == "ann: hi"
        await client.aclose()


@pytest.mark.virtual_time
async def test_auth() -> None:
    async with MemoryServer(whoami, process_request=auth) as server:
        async with server.connect("/?token=secret") as ws:
            assert await ws.receive() == "ann"
        with pytest.raises(HandshakeRejected, match="401"):
            async with server.connect("/"):
                ...


@pytest.mark.virtual_time
async def test_heartbeat() -> None:
    async with connected_pair(ping_interval=20) as (client, _):
        await anyio.sleep(3600)
        assert client.close_info is None


# SIGTERM
async def until_sigterm(*, task_status: anyio.abc.TaskStatus[Server]) -> None:
    async with Server(echo, "127.0.0.1", 0) as server:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started(server)
            async for _ in signals:
                break
        await server.drain(code=1012, grace=10, jitter=0.01)


@pytest.mark.real_time
async def test_sigterm() -> None:
    async with anyio.create_task_group() as tg:
        server: Server = await tg.start(until_sigterm)
        async with connect(server.url) as ws:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await ws.wait_closed()).code == 1012


# Inside somebody else's program, and types
@asynccontextmanager
async def lifespan(app: object) -> AsyncGenerator[Server]:
    async with Server(echo, "127.0.0.1", 0, ping_interval=None) as server:
        yield server


async def in_a_nursery(tg: anyio.abc.TaskGroup) -> None:
    server: Server = await tg.start(partial(serve, echo, "127.0.0.1", 0, max_size=None))
    print(server.url)


async def typed(ws: WebSocket) -> None:
    assert_type(await ws.receive(), str | bytes)
    assert_type(await ws.receive_text(), str)
    async for raw in ws.iter_bytes():
        assert_type(raw, bytes)
        json.loads(raw)


@pytest.mark.real_time
async def test_lifespan(capsys: pytest.CaptureFixture[str]) -> None:
    async with lifespan(object()) as server:
        await client(server.url)
    assert capsys.readouterr().out == "HELLO\n"


@pytest.mark.real_time
async def test_in_a_nursery(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tg:
        await in_a_nursery(tg)
        assert capsys.readouterr().out.startswith("ws://127.0.0.1:")
        tg.cancel_scope.cancel()


async def test_typed() -> None:
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        tg.start_soon(typed, server)
        await client.send_many([b"any", "text", "1", b'{"a": 2}'])
        await client.aclose()
