"""The attackers: peers of a real Server and of a real connect() that say what a test says, in bytes."""

import gc
import os
import re
import socket
import struct
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_ws import WebSocket, connect
from anyio_ws.loops import open_loop
from anyio_ws.protocol.handshake_fields import accept_key
from anyio_ws.tasks import Tasks
from anyio_ws.testing import MemoryServer, RawPeer, _MemoryConnect
from anyio_ws.transports.memory import memory_pipe

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

both_attackers = pytest.mark.parametrize("role", ["client", "server"], ids=["evil-client", "evil-server"])
"""Runs a test with an attacker of either role."""


async def head(peer: RawPeer) -> bytes:
    """The head of an HTTP message."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await peer.receive(1)
    return data


@asynccontextmanager
async def dial(server: MemoryServer) -> AsyncGenerator[RawPeer]:
    """An evil client of a MemoryServer."""
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        transport = server._pipe(loop)
        peer = RawPeer(transport, loop, is_client=True)
        transport.start()
        try:
            yield peer
        finally:
            transport.abort()
            loop.close()


@asynccontextmanager
async def evil_server() -> AsyncGenerator[tuple[RawPeer, Callable[..., connect]]]:
    """An evil server, and what makes the `connect` to it."""
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        near, far = memory_pipe(loop, loop)
        peer = RawPeer(far, loop, is_client=False)
        far.start()

        def dialled(**options: Any) -> connect:
            return _MemoryConnect(lambda _: near, "/", **options)

        try:
            yield peer, dialled
        finally:
            far.abort()
            loop.close()


def switching(request: bytes, *fields: str, accept: str | None = None) -> bytes:
    """A 101 that answers a request, with fields added, or with another Sec-WebSocket-Accept."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert key is not None
    accept = accept_key(key[1].decode()) if accept is None else accept
    lines = ["HTTP/1.1 101 Yes", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
    return "\r\n".join([*lines, *fields, "", ""]).encode()


@asynccontextmanager
async def attack(role: str, *, extension: str = "", **options: Any) -> AsyncGenerator[tuple[RawPeer, WebSocket]]:
    """An attacker of this role, and the WebSocket of a real Server or of a real connect(), which have shaken hands.

    The attacker offers the extension, or answers with it.
    """
    fields = [f"Sec-WebSocket-Extensions: {extension}"] if extension else []
    if role == "client":
        victims: list[WebSocket] = []
        arrived = anyio.Event()

        async def handler(ws: WebSocket) -> None:
            victims.append(ws)
            arrived.set()
            await anyio.sleep_forever()

        async with MemoryServer(handler, **options) as server, dial(server) as peer:
            await peer.send(UPGRADE[:-2] + "".join(f"{field}\r\n" for field in fields).encode() + b"\r\n")
            await arrived.wait()
            assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
            yield peer, victims[0]
    else:
        async with evil_server() as (peer, dialled), anyio.create_task_group() as group:

            async def answer() -> None:
                await peer.send(switching(await head(peer), *fields))

            group.start_soon(answer)
            async with dialled(**options) as ws:
                try:
                    yield peer, ws
                finally:
                    ws.abort()


class Growth:
    """How much memory Python has taken since the beginning."""

    def __init__(self) -> None:
        gc.collect()
        self._before = tracemalloc.get_traced_memory()[0]

    @property
    def now(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before

    @property
    def peak(self) -> int:
        return tracemalloc.get_traced_memory()[1] - self._before


@contextmanager
def growth() -> Generator[Growth]:
    tracemalloc.start()
    try:
        yield Growth()
    finally:
        tracemalloc.stop()


# Where a kernel matters


def lost_by_uvloop(request: pytest.FixtureRequest) -> None:
    """Expect a test to fail on uvloop, in which a RST comes right behind data."""
    if request.node.callspec.params["anyio_backend"] == "uvloop":
        reason = "when data and a RST are found at once, uvloop calls the reader once and then stops watching"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))


def sockets() -> set[str]:
    """The TCP sockets that this process has open."""
    found: set[str] = set()
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry))) as sock:
                    if sock.family != socket.AF_UNIX:  # uvloop makes some for itself
                        found.add(target)
    return found


async def until(condition: Callable[[], object]) -> None:
    """Let everything happen until this is so; no timer of the library is so short."""
    with anyio.fail_after(0.9):
        while not condition():
            await checkpoint()


def reset(sock: socket.socket) -> None:
    """Close with a RST, if it is open."""
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


async def read_head(sock: socket.socket) -> bytes:
    """The head of an HTTP message, from a socket that does not block."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        await anyio.wait_readable(sock)
        data += sock.recv(1)
    return data
