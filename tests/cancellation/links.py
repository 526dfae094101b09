"""What scenarios run over: a WebSocket and a peer that speaks frames, or a server and such clients of it.

What we send is read by the decoder of `websockets`: what our encoder gets wrong, our decoder might too.
"""

import math
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from typing import Any

import anyio
import trustme
from anyio.abc import ObjectStream, SocketAttribute
from anyio.streams.stapled import StapledObjectStream
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame

from anyio_ws import Server, WebSocket, connect
from anyio_ws.loops import Loop, open_loop
from anyio_ws.tasks import Tasks
from anyio_ws.testing import MemoryServer, RawPeer, _MemoryConnect, raw_peer
from anyio_ws.transports.base import Transport
from anyio_ws.transports.socket import SocketTransport
from anyio_ws.transports.stream import StreamTransport
from anyio_ws.transports.tls import TLSTransport
from support.peers import UPGRADE, attack, head, switching

OPTIONS: dict[str, Any] = {"ping_interval": None, "close_timeout": 0.5}
"""A scenario whose peer never answers says a shorter time, which passes on the real clock too."""

EXTENSIONS = "Sec-WebSocket-Extensions: permessage-deflate"
"""What a peer offers, or answers with, if our end has the option `compression`."""

BUFFER = 32768
"""Of each socket, so that a peer that does not read is noticed soon."""


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server, and for its clients."""
    ca = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    ca.configure_trust(client)
    return server, client


def pipe(items: float = math.inf) -> tuple[ObjectStream[bytes], ObjectStream[bytes]]:
    """Two ends of a byte stream in memory, on which so many pieces may be on their way."""
    there_in, there_out = anyio.create_memory_object_stream[bytes](items)
    back_in, back_out = anyio.create_memory_object_stream[bytes](items)
    return StapledObjectStream(there_in, back_out), StapledObjectStream(back_in, there_out)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)  # the accepted end inherits it
        near = socket.create_connection(listener.getsockname())
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        return near, listener.accept()[0]


def with_extensions(peer: RawPeer, options: dict[str, Any]) -> RawPeer:
    """Let the peer inflate what we compress, if that is an option of ours."""
    if options.get("compression"):
        setattr(peer, "extensions", [PerMessageDeflate(False, False, 15, 15)])  # noqa: B010
    return peer


async def read_frame(peer: RawPeer) -> Frame:
    """The next frame from us."""

    def read_exact(count: int) -> Generator[Any, Any, bytes]:
        return (yield count)

    extensions = getattr(peer, "extensions", None)
    parser: Any = Frame.parse(read_exact, mask=not peer._is_client, extensions=extensions)
    count = next(parser)
    while True:
        try:
            count = parser.send(await peer.receive(count))
        except StopIteration as stop:
            return stop.value


@asynccontextmanager
async def raw_end(make: Callable[[Loop], Transport], *, is_client: bool) -> AsyncGenerator[RawPeer]:
    """A peer on a transport."""
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        transport = make(loop)
        try:
            peer: Any = RawPeer(transport, loop, is_client=is_client)  # type: ignore[arg-type]  # any transport will do
            if isinstance(transport, TLSTransport):
                await transport.handshake()
            transport.start()
            yield peer
        finally:
            transport.abort()
            loop.close()


# A WebSocket and its peer. The names say what our end is; a stream's and TCP's is a client's, TLS's a server's.


@asynccontextmanager
async def linked(kind: str, **options: Any) -> AsyncGenerator[tuple[RawPeer, WebSocket]]:
    """A peer and our WebSocket, which have shaken hands."""
    options = OPTIONS | options
    if kind in ("memory-client", "memory-server"):
        role: Any = "server" if kind == "memory-client" else "client"
        if not options.get("compression"):
            async with raw_peer(role, **options) as ends:
                yield ends
            return
        async with attack(role, extension=EXTENSIONS.partition(": ")[2], **options) as (peer, ws):
            try:
                yield with_extensions(peer, options), ws
            finally:
                ws.abort()
    elif kind == "tls":
        accepted, handler = keeper()
        async with serving(kind, handler, **options) as server, dialled(server, kind) as peer:
            try:
                yield with_extensions(peer, options), accepted[0]
            finally:
                accepted[0].abort()
    else:
        async with shaking_hands(kind, **options) as (peer, connecting, _), connecting as ws:
            try:
                yield with_extensions(peer, options), ws
            finally:
                ws.abort()


@asynccontextmanager
async def shaking_hands(kind: str, **options: Any) -> AsyncGenerator[tuple[RawPeer, connect, anyio.Event]]:
    """A peer that accepts the opening handshake, the `connect` to it, and what says that the peer is free again."""
    answered = anyio.Event()

    fields = [EXTENSIONS] if options.get("compression") else []

    async def answer() -> None:
        with suppress(anyio.EndOfStream):
            await peer.send(switching(await head(peer), *fields))
        answered.set()

    if kind == "stream":
        near_stream, far_stream = pipe(1)
        connecting = connect("ws://test/", stream=near_stream, **OPTIONS | options)
        make: Callable[[Loop], Transport] = partial(StreamTransport, far_stream)
    else:
        near, far = tcp_pair()
        connecting = _MemoryConnect(partial(SocketTransport, near), "/", **OPTIONS | options)
        make = partial(SocketTransport, far)
    async with raw_end(make, is_client=False) as peer, anyio.create_task_group() as group:
        group.start_soon(answer)
        yield peer, connecting, answered
        group.cancel_scope.cancel()


# A server and its clients


def keeper() -> tuple[list[WebSocket], Callable[[WebSocket], Any]]:
    """A handler that waits for ever, and a list of those it was called with."""
    accepted: list[WebSocket] = []

    async def handler(ws: WebSocket) -> None:
        sock = ws.extra(SocketAttribute.raw_socket, None)
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        accepted.append(ws)
        await anyio.sleep_forever()

    return accepted, handler


def serving(kind: str, handler: Callable[[WebSocket], Any], **options: Any) -> Server:
    """A server in memory, over TCP or over TLS."""
    options = OPTIONS | options
    if kind == "memory":
        return MemoryServer(handler, **options)
    return Server(handler, "127.0.0.1", 0, ssl=contexts()[0] if kind == "tls" else None, **options)


def dialling(server: Server, kind: str, **options: Any) -> connect:
    """What connects to it."""
    options = OPTIONS | options
    if isinstance(server, MemoryServer):
        return server.connect(**options)
    return connect(server.url, ssl=contexts()[1] if kind == "tls" else None, **options)


@asynccontextmanager
async def dialled(server: Server, kind: str) -> AsyncGenerator[RawPeer]:
    """A client that has shaken hands with it, and speaks frames."""
    async with raw_end(partial(_dial, server, kind), is_client=True) as peer:
        # A server without the option does not answer the offer.
        await peer.send(UPGRADE[:-2] + EXTENSIONS.encode() + b"\r\n\r\n")
        response = await head(peer)
        assert response.startswith(b"HTTP/1.1 101 "), response
        yield peer


def _dial(server: Server, kind: str, loop: Loop) -> Transport:
    if isinstance(server, MemoryServer):
        return server._pipe(loop)
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    transport = SocketTransport(sock, loop)
    if kind != "tls":
        return transport
    return TLSTransport(transport, contexts()[1], loop.budget, server_side=False, server_hostname="localhost")
