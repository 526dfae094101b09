"""asyncio and every loop with its interface, such as uvloop.

The loop itself watches the sockets (`add_reader`, `add_writer`), so there are no background tasks.
"""

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .base import Budget, Loop, Readiness, Spawn, Waiter

_current_task = asyncio.current_task


class AsyncioLoop(Loop):
    def __init__(self, native: asyncio.AbstractEventLoop, budget: Budget, spawn: Spawn) -> None:
        # The same clock, but uvloop reads it once per tick, to a millisecond: too coarse for a round-trip time.
        coarse = type(native).__module__.partition(".")[0] == "uvloop"
        super().__init__(
            budget,
            spawn,
            time=monotonic if coarse else native.time,
            checkpoint=checkpoint,
            checkpoint_if_cancelled=checkpoint_if_cancelled,
        )
        self.native = native
        self._timer: asyncio.TimerHandle | None = None

    def waiter(self) -> "AsyncioWaiter":
        return AsyncioWaiter(self.native, self.budget)

    def readiness(
        self, sock: socket.socket, readable: Callable[[], bool], writable: Callable[[], None]
    ) -> "AsyncioReadiness":
        return AsyncioReadiness(self, sock, readable, writable)

    def current_task(self) -> object:
        return _current_task()

    def task_name(self, task: asyncio.Task[Any]) -> str:
        return task.get_name()

    def may_be_cancelled(self) -> int:
        # Non-zero exactly where anyio, or a native cancel(), has delivered a cancellation; anyio's own check costs
        # ten times as much. (A scope that this very task has cancelled is noticed at its next suspension.)
        return _current_task().cancelling()  # type: ignore[union-attr]

    def close(self) -> None:
        self._timers.clear()
        self._soon.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm_soon(self) -> None:
        self.native.call_soon(self._run_soon)

    def _arm_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.native.call_at(when, self._timer_due)

    def _timer_due(self) -> None:
        self._timer = None
        following = self._run_timers()
        if following is not None:
            self._arm_timer(following)


class AsyncioWaiter(Waiter):
    __slots__ = ("_budget", "_future", "_native")

    def __init__(self, native: asyncio.AbstractEventLoop, budget: Budget) -> None:
        self._native = native
        self._budget = budget
        self._future: asyncio.Future[Any] | None = None

    async def wait(self) -> None:
        self._future = self._native.create_future()
        try:
            await self._future
        finally:
            self._future = None
        self._budget.renew()

    def wake(self) -> None:
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)


class AsyncioReadiness(AsyncioWaiter, Readiness):
    """The loop calls `readable` whenever the socket is, unless paused: whoever waits is woken by what was read."""

    __slots__ = ("_reading", "_sock", "_writable", "_writing", "_readable")

    def __init__(
        self, loop: AsyncioLoop, sock: socket.socket, readable: Callable[[], bool], writable: Callable[[], None]
    ) -> None:
        super().__init__(loop.native, loop.budget)
        self._sock = sock
        self._readable = readable
        self._writable = writable
        self._reading = self._writing = False

    def start(self) -> None:
        self.resume()

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._native.remove_reader(self._sock)

    def resume(self) -> None:
        if not self._reading:
            self._reading = True
            self._native.add_reader(self._sock, self._readable)

    def watch(self) -> None:
        pass  # the loop always watches

    def want_write(self) -> None:
        if not self._writing:
            self._writing = True
            self._native.add_writer(self._sock, self._writable)

    def write_done(self) -> None:
        if self._writing:
            self._writing = False
            self._native.remove_writer(self._sock)

    def close(self) -> None:
        self.pause()
        self.write_done()
        self.wake()
