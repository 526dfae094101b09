"""The programs under test: one server and one client for each library, as their users would write them.

All do the same. They send each message back where it came from, also the clients: the load generator begins. On the
path /burst each message that a server receives is a number, and it answers with so many small messages.

Compression is off, messages may have 16 MiB, and everything else is as the library has it by default.
measured.py runs them.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

MAX_SIZE = 2**24
BURST_PAYLOAD = bytes(range(16))

# Each program imports its library and no other. The peers are imported as Any: whoever checks the types of this file
# need not have them.


# anyio_ws, on every loop


async def serve_anyio_ws(listener: socket.socket) -> None:
    from anyio_ws import WebSocket, serve

    async def handler(ws: WebSocket) -> None:
        if ws.request.path == "/burst":
            async for count in ws:
                await ws.send_many([BURST_PAYLOAD] * int(count))
        else:
            await echo(ws)

    await serve(handler, listeners=[listener], max_size=MAX_SIZE)


async def connect_anyio_ws(url: str) -> None:
    from anyio_ws import connect

    async with connect(url, max_size=MAX_SIZE) as ws:
        await echo(ws)


# websockets and picows.websockets, whose interfaces are alike


async def echo(ws: Any) -> None:
    async for message in ws:
        await ws.send(message)


async def echo_or_burst(ws: Any) -> None:
    if ws.request.path == "/burst":
        async for count in ws:
            for _ in range(int(count)):
                await ws.send(BURST_PAYLOAD)
    else:
        await echo(ws)


async def serve_websockets(listener: socket.socket) -> None:
    websockets: Any = import_module("websockets.asyncio.server")
    async with websockets.serve(echo_or_burst, sock=listener, compression=None, max_size=MAX_SIZE) as server:
        await server.serve_forever()


async def connect_websockets(url: str) -> None:
    websockets: Any = import_module("websockets.asyncio.client")
    async with websockets.connect(url, compression=None, max_size=MAX_SIZE, proxy=None) as ws:
        await echo(ws)


async def serve_websockets_trio(listener: socket.socket) -> None:
    websockets: Any = import_module("websockets.trio.server")
    await websockets.serve(echo_or_burst, listeners=[trio_listener(listener)], compression=None, max_size=MAX_SIZE)


async def connect_websockets_trio(url: str) -> None:
    websockets: Any = import_module("websockets.trio.client")
    async with websockets.connect(url, compression=None, max_size=MAX_SIZE, proxy=None) as ws:
        await echo(ws)


async def serve_picows_websockets(listener: socket.socket) -> None:
    websockets: Any = import_module("picows.websockets.asyncio.server")
    async with websockets.serve(echo_or_burst, sock=listener, compression=None, max_size=MAX_SIZE) as server:
        await server.serve_forever()


async def connect_picows_websockets(url: str) -> None:
    websockets: Any = import_module("picows.websockets.asyncio.client")
    async with websockets.connect(url, compression=None, max_size=MAX_SIZE) as ws:
        await echo(ws)


# picows itself: callbacks instead of coroutines


def picows_listeners() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What echoes, and what answers with a burst."""
    picows: Any = import_module("picows")
    binary, close = picows.WSMsgType.BINARY, picows.WSMsgType.CLOSE

    class Listener(picows.WSListener):  # type: ignore[misc]  # of type Any
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == close:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            else:
                self.answer(transport, frame)

    class Echo(Listener):
        def answer(self, transport: Any, frame: Any) -> None:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)

    class Burst(Listener):
        def answer(self, transport: Any, frame: Any) -> None:
            for _ in range(int(frame.get_payload_as_bytes())):
                transport.send(binary, BURST_PAYLOAD)

    return Echo, Burst


async def serve_picows(listener: socket.socket) -> None:
    picows: Any = import_module("picows")
    echo, burst = picows_listeners()

    def choose(request: Any) -> Any:
        return burst() if request.path == b"/burst" else echo()

    server = await picows.ws_create_server(choose, sock=listener, max_frame_size=MAX_SIZE)
    await server.serve_forever()


async def connect_picows(url: str) -> None:
    picows: Any = import_module("picows")
    echo, _ = picows_listeners()
    transport, _ = await picows.ws_connect(echo, url, max_frame_size=MAX_SIZE)
    await transport.wait_disconnected()


# aiohttp


async def serve_aiohttp(listener: socket.socket) -> None:
    web: Any = import_module("aiohttp.web")

    async def echo(request: Any) -> Any:
        ws = web.WebSocketResponse(compress=False, max_msg_size=MAX_SIZE)
        await ws.prepare(request)
        async for message in ws:
            await ws.send_bytes(message.data)
        return ws

    async def burst(request: Any) -> Any:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        async for message in ws:
            for _ in range(int(message.data)):
                await ws.send_bytes(BURST_PAYLOAD)
        return ws

    app = web.Application()
    app.router.add_get("/", echo)
    app.router.add_get("/burst", burst)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    await asyncio.Event().wait()


async def connect_aiohttp(url: str) -> None:
    aiohttp: Any = import_module("aiohttp")
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=MAX_SIZE) as ws:
        async for message in ws:
            await ws.send_bytes(message.data)


# trio-websocket


async def serve_trio_websocket(listener: socket.socket) -> None:
    trio_websocket: Any = import_module("trio_websocket")

    async def handler(request: Any) -> None:
        ws = await request.accept()
        with suppress(trio_websocket.ConnectionClosed):
            while request.path == "/burst":
                for _ in range(int(await ws.get_message())):
                    await ws.send_message(BURST_PAYLOAD)
            while True:
                await ws.send_message(await ws.get_message())

    await trio_websocket.WebSocketServer(handler, [trio_listener(listener)], max_message_size=MAX_SIZE).run()


async def connect_trio_websocket(url: str) -> None:
    trio_websocket: Any = import_module("trio_websocket")
    async with trio_websocket.open_websocket_url(url, max_message_size=MAX_SIZE) as ws:
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                await ws.send_message(await ws.get_message())


def trio_listener(listener: socket.socket) -> Any:
    trio: Any = import_module("trio")
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


# The list


@dataclass(frozen=True)
class Program:
    """A library on an event loop.

    Attributes:
        name: what the tables call it.
        loop: the module of the event loop.
        serve: serve for ever on a listening socket.
        connect: connect to a URL, and return when the connection has ended.
        needs: the module without which there is no such program.
        environment: variables it runs with.
    """

    name: str
    loop: str
    serve: Callable[[socket.socket], Awaitable[None]]
    connect: Callable[[str], Awaitable[None]]
    needs: str
    environment: dict[str, str]

    def missing(self) -> str | None:
        """The module that is not installed, if there is one."""
        for module in self.loop, self.package, self.needs:
            if find_spec(module) is None:
                return module
        return None

    @property
    def package(self) -> str:
        return self.needs.partition(".")[0]


LOOPS = ["asyncio", "uvloop", "trio"]
PURE = {"ANYIO_WS_PURE": "1"}

PROGRAMS = [
    Program(name, loop, serve, connect, needs, environment)
    for name, loops, serve, connect, needs, environment in [
        ("anyio_ws", LOOPS, serve_anyio_ws, connect_anyio_ws, "anyio_ws.protocol._codec", {}),
        ("anyio_ws-pure", LOOPS, serve_anyio_ws, connect_anyio_ws, "anyio_ws", PURE),
        ("websockets", LOOPS[:2], serve_websockets, connect_websockets, "websockets", {}),
        ("websockets", LOOPS[2:], serve_websockets_trio, connect_websockets_trio, "websockets.trio", {}),
        ("picows", LOOPS[:2], serve_picows, connect_picows, "picows", {}),
        ("picows.websockets", LOOPS[:2], serve_picows_websockets, connect_picows_websockets, "picows.websockets", {}),
        ("aiohttp", LOOPS[:2], serve_aiohttp, connect_aiohttp, "aiohttp", {}),
        ("trio-websocket", LOOPS[2:], serve_trio_websocket, connect_trio_websocket, "trio_websocket", {}),
    ]
    for loop in loops
]
