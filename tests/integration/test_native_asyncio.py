"""In a program that asyncio runs itself, callbacks of its loop do not know what anyio.run() would have told them."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

import anyio
import pytest

from anyio_ws import Deflate, Server, WebSocket, connect
from anyio_ws.protocol.handshake_fields import accept_key
from anyio_ws.protocol.inflating import INLINE_INPUT
from support.streams import noise

pytestmark = pytest.mark.real_time

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(coroutine, context=Context())

    return run


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


def test_large_messages_are_inflated_in_threads(run: Run) -> None:
    async def main() -> None:
        message = noise(2 * INLINE_INPUT)
        async with (
            Server(echo, "127.0.0.1", 0, compression=Deflate()) as server,
            connect(server.url, compression=Deflate()) as ws,
        ):
            await ws.send(message)
            assert await ws.receive() == message

    run(main())


async def fall_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Open the connection, and say nothing more."""
    head = await reader.readuntil(b"\r\n\r\n")
    key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept_key(key).encode()
    )
    await reader.read()
    writer.close()


def test_a_timer_closes_a_stream(run: Run) -> None:
    async def main() -> None:
        async with await asyncio.start_server(fall_silent, "127.0.0.1", 0) as server:
            stream = await anyio.connect_tcp(*server.sockets[0].getsockname())
            async with connect("ws://localhost", stream=stream, ping_interval=0.05, ping_timeout=0.05) as ws:
                info = await ws.wait_closed()
                assert isinstance(info.cause, TimeoutError)

    run(main())
