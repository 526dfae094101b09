"""What other libraries get wrong under cancellation, over real sockets and TLS; read with the standard library only."""

import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import to_thread
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from anyio_ws import Server, WebSocket
from support.peers import UPGRADE

from .links import contexts

over_both = pytest.mark.parametrize("scheme", ["ws", "wss"])

pytestmark = pytest.mark.real_time


class Client:
    """A client in blocking calls, each to be made in a thread."""

    def __init__(self, port: int, scheme: str) -> None:
        self._sock: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        if scheme == "wss":
            self._sock = contexts()[1].wrap_socket(self._sock, server_hostname="localhost")
        self._sock.sendall(UPGRADE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._sock.recv(1)
        self._reader = StreamReader()

    def frame(self) -> Frame:
        parser = Frame.parse(self._reader.read_exact, mask=False)
        while True:
            try:
                next(parser)
            except StopIteration as stop:
                return stop.value
            self._reader.feed_data(self._sock.recv(2**20))

    def message(self) -> bytes:
        """The next message, whose fragments come one after the other."""
        frames = [self.frame()]
        while not frames[-1].fin:
            frames.append(self.frame())
            assert frames[-1].opcode is Opcode.CONT
        return b"".join(frame.data for frame in frames)

    def answer(self, close: Frame) -> int:
        """Answer a Close; return its code."""
        assert close.opcode is Opcode.CLOSE
        self._sock.sendall(bytes([0x88, 0x82, 0, 0, 0, 0, *close.data[:2]]))
        return Close.parse(close.data).code

    def close(self) -> None:
        self._sock.close()


@asynccontextmanager
async def client_of(server: Server, scheme: str) -> AsyncGenerator[Client]:
    client = await to_thread.run_sync(Client, server.port, scheme)
    try:
        yield client
    finally:
        client.close()


def tls(scheme: str) -> ssl.SSLContext | None:
    return contexts()[0] if scheme == "wss" else None


@over_both
async def test_a_send_of_20_mb_cancelled_at_a_stalled_reader_does_not_tear_the_next_message(scheme: str) -> None:
    large = struct.pack("!I", 0xDEADBEEF) * 5_000_000
    cancelled = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        with anyio.move_on_after(0.05) as scope:
            await ws.send(large)
        assert scope.cancelled_caught
        cancelled.set()
        await ws.send("next")

    async with (
        Server(handler, "127.0.0.1", 0, ssl=tls(scheme)) as server,
        client_of(server, scheme) as client,
    ):
        await cancelled.wait()
        assert await to_thread.run_sync(client.message) == large
        assert await to_thread.run_sync(client.message) == b"next"
        assert client.answer(await to_thread.run_sync(client.frame)) == 1000


@over_both
async def test_a_cancelled_server_says_1001_to_everyone(scheme: str) -> None:
    async def handler(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(message)

    async with anyio.create_task_group() as group:
        listening = anyio.Event()
        servers: list[Server] = []

        async def serve() -> None:
            with anyio.CancelScope() as scope:
                async with Server(handler, "127.0.0.1", 0, ssl=tls(scheme)) as server:
                    servers.append(server)
                    scopes.append(scope)
                    listening.set()
                    await anyio.sleep_forever()

        scopes: list[anyio.CancelScope] = []
        codes: list[int] = []

        async def visit(client: Client) -> None:
            codes.append(client.answer(await to_thread.run_sync(client.frame)))

        group.start_soon(serve)
        await listening.wait()
        async with (
            client_of(servers[0], scheme) as one,
            client_of(servers[0], scheme) as two,
            anyio.create_task_group() as visits,
        ):
            visits.start_soon(visit, one)
            visits.start_soon(visit, two)
            scopes[0].cancel()
        assert codes == [1001, 1001]
