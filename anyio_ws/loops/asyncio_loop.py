"""asyncio and every loop with its interface, such as uvloop.

The loop itself watches the sockets (`add_reader`, `add_writer`), so there are no background tasks.
"""

import asyncio
import importlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from time import monotonic, perf_counter
from typing import Any

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .base import BUDGET_CALLS, Budget, Loop, Readiness, Spawn, Waiter

# anyio asks sniffio, where it is installed, which library runs. anyio.run() has told it. In a program that asyncio runs
# itself it asks for the current task, and in a callback of the loop there is none.
_library: ContextVar[str | None]
try:
    _library = importlib.import_module("sniffio").current_async_library_cvar
except ImportError:
    _library = ContextVar("nobody asks")


class AsyncioLoop(Loop):
    # Non-zero exactly where anyio, or a native cancel(), has delivered a cancellation. (A scope that this very task has
    # cancelled is noticed at its next suspension.)
    tasks_tell = True

    def __init__(self, native: asyncio.AbstractEventLoop, budget: Budget, spawn: Spawn) -> None:
        # Most loops only call it. uvloop reads it once per tick, to a millisecond: too coarse for a round-trip time.
        is_monotonic = (
            type(native).time is asyncio.BaseEventLoop.time or type(native).__module__.partition(".")[0] == "uvloop"
        )
        super().__init__(
            budget,
            partial(_spawn, spawn),
            time=monotonic if is_monotonic else native.time,
            current_task=asyncio.current_task,
            checkpoint=checkpoint,
            checkpoint_if_cancelled=checkpoint_if_cancelled,
        )
        self.native = native
        self._timer: asyncio.TimerHandle | None = None

    def waiter(self) -> "AsyncioWaiter":
        return AsyncioWaiter(self.native, self.budget)

    def readiness(
        self, sock: socket.socket, readable: Callable[[], int], writable: Callable[[], None]
    ) -> "AsyncioReadiness":
        return AsyncioReadiness(self, sock, readable, writable)

    def task_name(self, task: asyncio.Task[Any]) -> str:
        return task.get_name()

    def start_task(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        self.native.create_task(function(*args))  # asyncio keeps no task alive that waits; the owner does

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


def _spawn(spawn: Spawn, function: Callable[..., Awaitable[object]], *args: Any) -> None:
    """Start a background task, also from a callback of the loop."""
    token = _library.set("asyncio")
    try:
        spawn(function, *args)
    finally:
        _library.reset(token)


class AsyncioWaiter(Waiter):
    __slots__ = ("_budget", "_future", "_native")

    def __init__(self, native: asyncio.AbstractEventLoop, budget: Budget) -> None:
        self._native = native
        self._budget = budget
        self._future: asyncio.Future[Any] | None = None

    def wait(self) -> "asyncio.Future[None]":
        future = self._future = self._native.create_future()
        return future

    def wake(self) -> None:
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)
            # The budget is renewed when the task is to go on, so that `wait` needs no coroutine of its own; field by
            # field, because this is once per read.
            budget = self._budget
            budget.receives = budget.sends = BUDGET_CALLS
            budget.since = perf_counter()


class AsyncioReadiness(AsyncioWaiter, Readiness):
    """The loop calls `readable` whenever the socket is, unless paused: whoever waits is woken by what was read."""

    __slots__ = ("_fd", "_readable", "_reading", "_writable", "_writing")

    def __init__(
        self, loop: AsyncioLoop, sock: socket.socket, readable: Callable[[], int], writable: Callable[[], None]
    ) -> None:
        super().__init__(loop.native, loop.budget)
        # Given the socket itself, asyncio makes a KeyError with its repr, which asks the system for both addresses.
        self._fd = sock.fileno()
        self._readable = readable
        self._writable = writable
        self._reading = self._writing = False

    def start(self) -> None:
        self.resume()

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._native.remove_reader(self._fd)

    def resume(self) -> None:
        if not self._reading:
            self._reading = True
            self._native.add_reader(self._fd, self._readable)

    def watch(self) -> None:
        pass  # the loop always watches

    def want_write(self) -> None:
        if not self._writing:
            self._writing = True
            self._native.add_writer(self._fd, self._writable)

    def write_done(self) -> None:
        if self._writing:
            self._writing = False
            self._native.remove_writer(self._fd)

    def close(self) -> None:
        self.pause()
        self.write_done()
        self.wake()
