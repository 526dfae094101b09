"""A socket over the simulated network, for SocketTransport, and who waits for it, for the event loops' Readiness.

What is ours runs as it is: `SocketTransport`, `AsyncioReadiness`, `TrioReadiness`. Only the system is simulated.
"""

import errno
import os
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

from anyio_ws.loops import Loop, Readiness
from anyio_ws.loops.asyncio_loop import AsyncioLoop
from anyio_ws.transports.base import Buffer
from anyio_ws.transports.socket import SocketTransport

from .dice import Dice
from .link import Pipe

FIRST = 1_000_000
"""Descriptors of simulated sockets begin here."""


class SimSocket:
    """One end of a link. A callback, or a trio task, may wait for each direction, as with epoll."""

    family = getattr(socket, "AF_UNIX", None)  # so that it is given no options of TCP

    def __init__(self, dice: Dice, incoming: Pipe, outgoing: Pipe, fd: int) -> None:
        self._dice = dice
        self._incoming = incoming
        self._outgoing = outgoing
        self._fd = fd
        self._linger = True
        self._closed = False
        self._waits: dict[str, Callable[[], None]] = {}
        self._scheduled: set[str] = set()
        incoming.reader = outgoing.writer = self

    # What SocketTransport calls

    def setblocking(self, _: bool) -> None:
        pass

    def fileno(self) -> int:
        return self._fd

    def recv_into(self, buffer: memoryview) -> int:
        self._check()
        incoming = self._incoming
        incoming.hurry()
        if incoming.arrived:
            data = incoming.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        if incoming.was_reset:
            raise ConnectionResetError(errno.ECONNRESET, "simulated: reset")
        if incoming.end_arrived:
            return 0
        raise BlockingIOError

    def send(self, data: Buffer) -> int:
        self._check()
        taken = self._outgoing.write(data)
        if not taken and len(data):
            raise BlockingIOError
        return taken

    def sendmsg(self, vector: tuple[Buffer, ...]) -> int:
        return self.send(b"".join(vector))

    def getsockopt(self, level: int, option: int) -> int:
        return errno.ECONNRESET if self._incoming.was_reset else 0

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self._linger = option != socket.SO_LINGER

    def shutdown(self, _: int) -> None:
        self._check()
        self._outgoing.end_in_order()

    def close(self) -> None:
        assert not self._waits, "closed while somebody waits for it"
        self._closed = True
        self._dice.log(self._outgoing.name, "closed" if self._linger else "aborted")
        self._incoming.abandon(abort=not self._linger)
        self._outgoing.end()

    def getsockname(self) -> str:
        return ""

    getpeername = getsockname

    def _check(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    # Who waits

    def add(self, way: str, callback: Callable[[], None]) -> None:
        """Call back while it is ready: as long as nobody says `remove`."""
        assert not self._closed
        self._waits[way] = callback
        if way == "write" and not self._outgoing.is_writable:
            self._outgoing.short = True
        self._wake(way)

    def remove(self, way: str) -> Callable[[], None] | None:
        return self._waits.pop(way, None)

    def is_waited_for(self, way: str) -> bool:
        return way in self._waits

    def on_readable(self) -> None:
        self._wake("read")

    def on_writable(self) -> None:
        if self._outgoing.is_writable:
            self._wake("write")
        else:
            self._outgoing.short = True  # nobody was told: tell us again

    def _is_ready(self, way: str) -> bool:
        return self._incoming.is_readable if way == "read" else self._outgoing.is_writable

    def _wake(self, way: str) -> None:
        if way in self._waits and way not in self._scheduled and self._is_ready(way):
            self._scheduled.add(way)
            self._dice.soon(lambda: self._tick(way))

    def _tick(self, way: str) -> None:
        self._scheduled.remove(way)
        if way in self._waits and self._is_ready(way):
            self._waits[way]()
            self._dice.strike(self._outgoing.name)
            self._wake(way)


class SimNative:
    """What AsyncioReadiness asks of an event loop."""

    def __init__(self, native: Any, sock: SimSocket) -> None:
        self.create_future = native.create_future
        self._sock = sock

    def add_reader(self, _: int, callback: Callable[[], object]) -> None:
        self._sock.add("read", callback)  # type: ignore[arg-type]

    def remove_reader(self, _: int) -> None:
        self._sock.remove("read")

    def add_writer(self, _: int, callback: Callable[[], object]) -> None:
        self._sock.add("write", callback)  # type: ignore[arg-type]

    def remove_writer(self, _: int) -> None:
        self._sock.remove("write")


sockets: dict[int, SimSocket] = {}
"""What the descriptors of the present run mean; trio's functions know nothing else."""


def socket_transport(dice: Dice, incoming: Pipe, outgoing: Pipe, loop: Loop) -> SocketTransport:
    """Make a transport over a simulated socket."""
    fd = next(fd for fd in count(FIRST) if fd not in sockets)
    sock: Any = SimSocket(dice, incoming, outgoing, fd)
    sockets[fd] = sock
    transport = SocketTransport(sock, loop)
    if isinstance(loop, AsyncioLoop):
        readiness: Any = transport.waiter
        assert isinstance(readiness, Readiness)
        readiness._native = SimNative(readiness._native, sock)
    return transport


# What trio_loop imports from trio, for these descriptors


async def wait_readable(fd: int) -> None:
    await _wait(sockets[fd], "read")


async def wait_writable(fd: int) -> None:
    await _wait(sockets[fd], "write")


async def _wait(sock: SimSocket, way: str) -> None:
    import trio
    from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

    if sock.is_waited_for(way):
        raise trio.BusyResourceError("another task waits for this socket")
    task = current_task()

    def wake() -> None:
        sock.remove(way)
        reschedule(task)

    def abort(_: Any) -> Abort:
        sock.remove(way)
        return Abort.SUCCEEDED

    wake.task = task  # type: ignore[attr-defined]
    sock.add(way, wake)
    await wait_task_rescheduled(abort)


def notify_closing(fd: int) -> None:
    import outcome
    import trio

    for way in ("read", "write"):
        wake: Any = sockets[fd].remove(way)
        if wake is not None:
            trio.lowlevel.reschedule(wake.task, outcome.Error(trio.ClosedResourceError("another task closed this fd")))
