"""Two connected ends in memory, for tests: no sockets, no tasks, and back-pressure like theirs."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from anyio_ws.loops import Loop

from .base import Buffer, Transport

CAPACITY = 65536
"""Bytes that may be on their way, as in a socket's buffer."""


def memory_pipe(first: Loop, second: Loop) -> tuple["MemoryTransport", "MemoryTransport"]:
    """Make the two ends.

    Args:
        first: the adapter of the first end's owner.
        second: that of the second end's.
    """
    one, two = MemoryTransport(first), MemoryTransport(second)
    one.peer, two.peer = two, one
    return one, two


class MemoryTransport(Transport):
    """One end. What is written is delivered to the other in the next tick."""

    __slots__ = ("_arrived", "_broken", "_eof", "_loop", "_paused", "_scheduled", "_short", "_size", "peer")

    peer: "MemoryTransport"

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop.waiter())
        self._loop = loop
        self._arrived: deque[bytes] = deque()
        self._size = 0
        self._eof = False  # no more will arrive
        self._broken = False  # the other end was aborted, or closed with unread bytes
        self._paused = True
        self._short = False
        self._scheduled = False

    def start(self) -> None:
        self.resume()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._schedule()

    def watch(self) -> None:
        pass  # the next tick always delivers

    def poll(self) -> bool:
        if self.closed:
            return True
        if self._paused and self._broken:
            self.receiver.fail(ConnectionResetError("the other end was reset"))
        else:
            self._deliver()
        return True

    def write(self, data: Buffer) -> int:
        if self.peer.closed or self._broken:
            self.receiver.fail(BrokenPipeError("the other end is closed"))
            return 0
        part = bytes(memoryview(data)[: CAPACITY - self.peer._size])
        self.peer._arrived.append(part)
        self.peer._size += len(part)
        if len(part) < len(data):
            self._short = True
        self.peer._schedule()
        return len(part)

    def shutdown(self) -> None:
        self.peer._eof = True
        self.peer._schedule()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.peer._eof = True
            self.peer._broken = bool(self._arrived)  # as a socket resets when it is closed with unread bytes
            self.peer._schedule()
            self.waiter.wake()

    def abort(self) -> None:
        if not self.closed:
            self.close()
            self.peer._broken = True

    @property
    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}

    def _schedule(self) -> None:
        if not self._scheduled and not self.closed:
            self._scheduled = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived and not self._paused and not self.closed:
            part = self._arrived.popleft()
            buffer = self.receiver.get_buffer()
            count = min(len(part), len(buffer))
            buffer[:count] = part[:count]
            if count < len(part):
                self._arrived.appendleft(part[count:])
            if count:
                self._size -= count
                self.receiver.received(count)
        if self.peer._short and self._size < CAPACITY and not self.peer.closed:
            self.peer._short = False
            self.peer.receiver.writable()
        if not self._arrived and not self._paused and not self.closed:
            if self._broken:
                self._paused = True
                self.receiver.fail(ConnectionResetError("the other end was reset"))
            elif self._eof:
                self._paused = True
                self.receiver.eof()
