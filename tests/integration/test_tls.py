"""TLS records that arrive together, or in pieces, at the seams of the opening: what peers' kernels do now and then."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from anyio_ws import Server, WebSocket

from .conftest import Wire

pytestmark = pytest.mark.real_time

InThread = Callable[..., Awaitable[Any]]

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
# "Hello" masked, of RFC 6455 §5.7, and its echo.
FRAME = bytes.fromhex("818537fa213d7f9f4d5158")
ECHO = bytes.fromhex("810548656c6c6f")


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["tls1.2", "tls1.3"])
@pytest.mark.parametrize("by_bytes", [False, True], ids=["one-packet", "byte-by-byte"])
async def test_server_reads_what_came_with_the_end_of_the_tls_handshake(
    tls: Wire, in_thread: InThread, version: ssl.TLSVersion, by_bytes: bool
) -> None:
    assert tls.client_ssl is not None
    context = tls.client_ssl

    def talk() -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

            def flush() -> None:
                data = outgoing.read()
                for piece in [data[i : i + 1] for i in range(len(data))] if by_bytes else [data]:
                    sock.sendall(piece)

            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    flush()
                    incoming.write(sock.recv(65536))
            # In TLS 1.3 the client's Finished is still in `outgoing`: it goes out with the request and the first frame.
            client.write(REQUEST + FRAME)
            flush()
            received = b""
            while not received.endswith(ECHO):
                try:
                    received += client.read(65536)
                except ssl.SSLWantReadError:
                    data = sock.recv(65536)
                    assert data, received
                    incoming.write(data)
            return received

    context.maximum_version = version
    try:
        async with Server(echo, "127.0.0.1", 0, ssl=tls.server_ssl) as server:
            received = await in_thread(talk)
    finally:
        context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert received.startswith(b"HTTP/1.1 101 ")
