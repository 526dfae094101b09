"""What several test files share."""

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, current_token

from anyio_ws import Headers, Request, Response, WebSocket
from anyio_ws.core import Core
from anyio_ws.loops import Waiter, open_loop
from anyio_ws.options import Options
from anyio_ws.tasks import Tasks
from anyio_ws.testing import RawFrame, RawPeer
from anyio_ws.transports.socket import SocketTransport

ROLES = ["client", "server"]

both_roles = pytest.mark.parametrize("role", ROLES, ids=[f"peer-is-{role}" for role in ROLES])
"""Runs a test with a raw peer of either role."""


async def settle() -> None:
    """Let everything happen that happens without time passing."""
    for _ in range(50):
        await checkpoint()


async def wait(waiter: Waiter) -> None:
    """What a task can be started with; on asyncio `Waiter.wait` is no coroutine function."""
    await waiter.wait()


class Call:
    """A call that runs in the background.

    Attributes:
        done: it has ended, in whatever way.
        result: what it returned.
        error: the Exception it raised.
        cancelled: it was cancelled.
    """

    def __init__(self, group: TaskGroup, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self.done = self.cancelled = False
        self.result: Any = None
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self._function = function
        self._args = args
        self._ended = anyio.Event()
        group.start_soon(self._run, name=f"call of {getattr(function, '__name__', function)}")

    async def _run(self) -> None:
        with self.scope:
            try:
                self.result = await self._function(*self._args)
            except Exception as exc:
                self.error = exc
            except anyio.get_cancelled_exc_class():
                self.cancelled = True
                raise
            finally:
                self.done = True
                self._ended.set()

    def cancel(self) -> None:
        self.scope.cancel()

    async def wait(self) -> Any:
        """Wait for its end; return or raise what it did."""
        await self._ended.wait()
        if self.error is not None:
            raise self.error
        return self.result


async def cancelled_already(call: Callable[[], Awaitable[object]]) -> None:
    """Call in a scope whose cancellation has been delivered."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        finally:
            await call()
            pytest.fail("the call ignored the cancellation")


async def fill(peer: RawPeer, ws: WebSocket, group: TaskGroup, size: int = 30000) -> tuple[list[Call], list[bytes]]:
    """Let the peer hang, and send until a sender waits for room. Returns all calls, and what was sent."""
    peer.pause()
    calls: list[Call] = []
    sent: list[bytes] = []
    while not calls or calls[-1].done:
        sent.append(bytes([len(sent)]) * size)
        calls.append(Call(group, ws.send, sent[-1]))
        await settle()
    return calls, sent


async def receive_messages(peer: RawPeer) -> list[bytes]:
    """Receive data frames until something else comes, or the end."""
    messages: list[bytes] = []
    while True:
        frame: RawFrame = await peer.receive_frame()
        if frame.opcode not in (0, 1, 2):
            return messages
        messages.append(frame.payload)


def jump(seconds: float) -> None:
    """Block the event loop for so long, on the virtual clock."""
    native: Any = current_token().native_token
    if hasattr(native, "advance"):
        native.advance(seconds)
    else:
        from trio.lowlevel import current_clock

        current_clock().jump(seconds)  # type: ignore[attr-defined]


@asynccontextmanager
async def connected_socket(role: str, **options: Any) -> AsyncGenerator[tuple[socket.socket, WebSocket]]:
    """A WebSocket over a socket of the kernel, and the other end, of this role, which does not block."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        core = Core(SocketTransport(near, loop), loop, Options(**options), is_client=role == "server")
        core.start(b"")
        with far:
            yield far, WebSocket(core, Request("GET", "/", Headers()), Response(101), None)
            core.abort()
        loop.close()
