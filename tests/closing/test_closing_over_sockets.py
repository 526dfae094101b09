"""The endings in which a kernel has a say: resets, half-closed connections, unread data. Each frees the socket."""

import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_ws import CloseInfo, ConnectionClosed, Server, WebSocket, connect
from anyio_ws.core import FRAGMENT
from anyio_ws.protocol import Opcode, encode_frame
from support.peers import UPGRADE, lost_by_uvloop, read_head, reset, switching, until
from support.tools import Call

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

pytestmark = pytest.mark.real_time

we_are = pytest.mark.parametrize("role", ["client", "server"], ids=["we-are-client", "we-are-server"])

PROMPT = 0.9
"""Seconds; no timer of the library is so short, so what happens within them happens because of what the peer did."""


class Peer:
    """The other end: a socket that does not block, and a role, which says whether it masks."""

    def __init__(self, sock: socket.socket, role: str) -> None:
        self.sock = sock
        self._key = b"mask" if role == "client" else None

    def send(self, opcode: int, payload: bytes = b"") -> None:
        """Send what the kernel has room for."""
        frame = encode_frame(opcode, payload, self._key)
        assert self.sock.send(frame) == len(frame)

    async def hear_close(self) -> None:
        """Read up to a Close without a reason."""
        data = b""
        while data[-4 - 4 * (self._key is None) :][:1] != b"\x88":
            await anyio.wait_readable(self.sock)
            chunk = self.sock.recv(65536)
            assert chunk
            data += chunk

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def link(role: str, **options: Any) -> AsyncGenerator[tuple[Peer, WebSocket]]:
    """A peer, and the WebSocket of a real connect() or of a real Server."""
    options = {"ping_interval": None, **options}
    if role == "server":
        opened: list[WebSocket] = []

        async def handler(ws: WebSocket) -> None:
            opened.append(ws)
            await anyio.sleep_forever()

        async with Server(handler, "127.0.0.1", 0, **options) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.setblocking(False)
                sock.send(UPGRADE)
                await read_head(sock)
                await until(lambda: opened)
                yield Peer(sock, "client"), opened[0]
                opened[0].abort()
    else:
        accepted: list[socket.socket] = []

        async def answer() -> None:
            await anyio.wait_readable(listener)
            sock = listener.accept()[0]
            sock.setblocking(False)
            sock.send(switching(await read_head(sock)))
            accepted.append(sock)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with anyio.create_task_group() as group:
                group.start_soon(answer)
                async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/", **options) as ws:
                    with accepted[0] as sock:
                        yield Peer(sock, "server"), ws
                        ws.abort()


@contextmanager
def freed(ws: WebSocket) -> Generator[None]:
    """Our socket is open, and after the block it is not."""
    fd = ws.extra(SocketAttribute.raw_socket).fileno()
    name = os.readlink(f"/proc/self/fd/{fd}")
    yield
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") != name
    except FileNotFoundError:
        pass


# We close, and the peer has read our Close


class Answer(NamedTuple):
    """What a peer does then, and what comes of it."""

    do: Callable[[Peer], None]
    clean: bool
    cause: type[Exception] | None


def close(peer: Peer) -> None:
    peer.send(CLOSE, b"\x03\xe8")
    peer.sock.close()


def close_and_half_close(peer: Peer) -> None:
    peer.send(CLOSE, b"\x03\xe8")
    peer.half_close()


def close_and_reset(peer: Peer) -> None:
    peer.send(CLOSE, b"\x03\xe8")
    reset(peer.sock)


ANSWERS = {
    "answers": Answer(close, True, None),
    "answers-and-half-closes": Answer(close_and_half_close, True, None),
    "answers-and-resets": Answer(close_and_reset, True, None),
    "half-closes": Answer(Peer.half_close, False, EOFError),
    "resets": Answer(lambda peer: reset(peer.sock), False, ConnectionResetError),
}


@we_are
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=list(ANSWERS))
async def test_our_close_ends_at_once_and_the_socket_is_freed(
    role: str, answer: Answer, request: pytest.FixtureRequest
) -> None:
    if answer.do is close_and_reset:
        lost_by_uvloop(request)  # until close_timeout
    async with link(role) as (peer, ws), anyio.create_task_group() as group:
        receiving = Call(group, ws.receive)
        with freed(ws), anyio.fail_after(PROMPT):
            closing = Call(group, ws.aclose)
            await peer.hear_close()
            answer.do(peer)
            await closing.wait()
            with pytest.raises(ConnectionClosed):
                await receiving.wait()
    info = ws.close_info
    assert info is not None
    assert (info.code, info.initiator, info.clean) == (1000, "local", answer.clean)
    assert type(info.cause) is (answer.cause or type(None))


@we_are
async def test_a_peer_that_closes_its_socket_with_our_messages_unread_resets(role: str) -> None:
    async with link(role) as (peer, ws), anyio.create_task_group() as group:
        await ws.send(bytes(10_000))
        with freed(ws), anyio.fail_after(PROMPT):
            closing = Call(group, ws.aclose)
            await until(lambda: ws._core.closing)
            peer.sock.close()
            await closing.wait()
    info = ws.close_info
    assert info is not None
    assert (info.code, info.initiator, info.clean) == (1000, "local", False)
    assert isinstance(info.cause, ConnectionResetError)


@we_are
async def test_our_close_reaches_a_peer_whose_messages_nobody_received(role: str) -> None:
    # To close a socket with unread data is to send a RST, which would destroy our Close on its way.
    async with link(role, receive_buffer_size=100) as (peer, ws), anyio.create_task_group() as group:
        for _ in range(10):
            peer.send(BINARY, bytes(5000))
        await until(lambda: ws._core.inbox.paused)
        with freed(ws), anyio.fail_after(PROMPT):
            closing = Call(group, ws.aclose)
            await peer.hear_close()
            for _ in range(10):
                peer.send(BINARY, bytes(5000))
            close_and_half_close(peer)
            await closing.wait()
        assert peer.sock.recv(1) == b""
    assert ws.close_info == CloseInfo(1000, "", "local", clean=True)


@pytest.mark.parametrize("end", [Peer.half_close, lambda peer: reset(peer.sock)], ids=["half-closes", "resets"])
@we_are
async def test_a_sender_who_is_blocked_while_we_close_is_let_go(role: str, end: Callable[[Peer], None]) -> None:
    async with link(role) as (peer, ws), anyio.create_task_group() as group:
        committed = Call(group, ws.send, bytes(2**24))
        await until(lambda: ws._core.outbox.blocked)
        waiting = Call(group, ws.send, b"its turn never comes")
        with freed(ws), anyio.fail_after(PROMPT):
            closing = Call(group, ws.aclose)
            await committed.wait()
            with pytest.raises(ConnectionClosed):
                await waiting.wait()
            end(peer)
            await closing.wait()
    info = ws.close_info
    assert info is not None
    assert (info.code, info.initiator, info.clean) == (1000, "local", False)


@we_are
async def test_a_close_that_is_given_up_can_still_be_read(role: str) -> None:
    # A RST would tell a peer that is only slow of a failure, and on some systems destroy the Close on its way.
    async with link(role) as (peer, ws), anyio.create_task_group() as group:
        with freed(ws), anyio.fail_after(PROMPT):
            closing = Call(group, ws.aclose)
            await until(lambda: ws._core.closing)
            closing.cancel()
            await ws.wait_closed()
        await peer.hear_close()
        assert await some(peer.sock) == b""
    info = ws.close_info
    assert info is not None
    assert (info.code, info.initiator, info.clean) == (1000, "local", False)
    assert isinstance(info.cause, ConnectionAbortedError)


@we_are
async def test_a_close_that_is_given_up_while_the_peer_takes_nothing_resets(role: str) -> None:
    # Else the kernel would keep for minutes what nobody may ever read.
    async with link(role) as (peer, ws), anyio.create_task_group() as group:
        Call(group, ws.send, bytes(2**24))
        await until(lambda: ws._core.outbox.blocked)
        with freed(ws), anyio.fail_after(PROMPT):
            closing = Call(group, ws.aclose)
            await until(lambda: ws._core.closing)
            closing.cancel()
            await ws.wait_closed()
        with pytest.raises(ConnectionResetError):
            while await some(peer.sock):
                pass


# The peer ends an open connection


@we_are
async def test_a_half_closed_connection_is_freed_at_once(role: str) -> None:
    async with link(role) as (peer, ws):
        with freed(ws), anyio.fail_after(PROMPT):
            peer.half_close()
            info = await ws.wait_closed()
    assert (info.code, info.initiator, info.clean) == (1006, "peer", False)
    assert isinstance(info.cause, EOFError)


@we_are
async def test_a_peer_that_closes_and_half_closes_gets_our_answer_and_all_that_was_committed(role: str) -> None:
    async with link(role) as (peer, ws), anyio.create_task_group() as group:
        Call(group, ws.send, bytes(2**22))
        await until(lambda: ws._core.outbox.blocked)
        with freed(ws), anyio.fail_after(5):
            close_and_half_close(peer)
            info = await ws.wait_closed()
            assert not ws._core.gone
            count = 0
            while chunk := await some(peer.sock):
                count += len(chunk)
            await ws.aclose()
    mask = 4 if role == "client" else 0
    assert count == 2**22 + 2**22 // FRAGMENT * (10 + mask) + 4 + mask
    assert info == CloseInfo(1000, "", "peer", clean=True)


async def some(sock: socket.socket) -> bytes:
    await anyio.wait_readable(sock)
    return sock.recv(2**20)
