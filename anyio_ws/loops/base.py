"""What the library needs from an event loop.

Theory of operation. An *owner* (a server, a connect(), an accept(), a connected_pair()) opens one `Loop`, which is
shared by all its connections. It gives them a clock, one heap of timers, callbacks at the end of the tick, `Waiter`s
to park a task on, and a `Readiness` for each socket. Everything but the methods declared `async` is synchronous and
never suspends, so connections need no locks.

The fairness `Budget` belongs to the event loop itself, not to an owner and not to a connection: only what all calls on
the loop spend together says how long other tasks have been waiting.
"""

import heapq
import logging
import math
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol

SCRATCH_SIZE = 65536
"""Bytes read from a socket at once. Larger blocks make glibc map and unmap memory for each read."""

BUDGET_CALLS = 64
"""Calls in a row that may complete without yielding; a checkpoint for each would be most of its cost."""

BUDGET_SECONDS = 0.001
"""Seconds of such calls, for calls (or handlers) that are slow."""

MAX_CANCELLED = 64
"""Cancelled timers that may stay in the heap until they are due, however few the others are; asyncio allows 100."""

logger: logging.Logger = logging.getLogger("anyio_ws.loops")


class Spawn(Protocol):
    """Starts a background task."""

    def __call__(self, function: Callable[..., Awaitable[object]], *args: Any) -> None: ...


class Budget:
    """How many calls may still complete before one must yield, for all connections of an event loop.

    `send`, `receive` and `ping` do, inline because it is the hottest path:

        budget.calls -= 1
        if not budget.calls & 7 and budget.exhausted(): ...
    """

    __slots__ = ("calls", "scratch", "since", "stall_ended")

    def __init__(self) -> None:
        self.scratch: memoryview = memoryview(bytearray(SCRATCH_SIZE))  # every socket of the loop reads into it
        self.stall_ended: float = -math.inf  # when the event loop was last found to have been blocked
        self.renew()

    def renew(self) -> None:
        """A task that called us was really suspended: the others had their turn."""
        self.calls: int = BUDGET_CALLS
        self.since: float = perf_counter()

    def exhausted(self) -> bool:
        return self.calls <= 0 or perf_counter() - self.since > BUDGET_SECONDS


class Waiter(ABC):
    """One task waits, anyone wakes it. A wake-up without a waiting task is forgotten."""

    __slots__ = ()

    @abstractmethod
    async def wait(self) -> None: ...

    @abstractmethod
    def wake(self) -> None: ...


class Readiness(ABC):
    """Who waits for a socket. At any time at most one party waits for it to become readable.

    It calls `readable() -> bool`, which makes one attempt to read and returns False if it would have blocked, and
    `writable()`, after `want_write()`, until `write_done()`.
    """

    __slots__ = ()

    @abstractmethod
    def start(self) -> None:
        """Read from now on."""

    @abstractmethod
    def pause(self) -> None: ...

    @abstractmethod
    def resume(self) -> None: ...

    @abstractmethod
    async def wait(self) -> None:
        """Wait until something was read, or `wake()`."""

    @abstractmethod
    def wake(self) -> None: ...

    @abstractmethod
    def watch(self) -> None:
        """Make sure that the socket is being read from now on, whether or not a task is in `wait()`."""

    @abstractmethod
    def want_write(self) -> None: ...

    @abstractmethod
    def write_done(self) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Stop everything; the socket is closed right after."""


class Timer:
    """A callback that is due at a time; `cancel()` is idempotent, also when it was called.

    Attributes:
        when: the time.
        callback: None once it was called or cancelled.
    """

    __slots__ = ("_loop", "callback", "when")

    def __init__(self, loop: "Loop", when: float, callback: Callable[[], None]) -> None:
        self._loop = loop
        self.when: float = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._loop.note_cancelled()

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when


class Loop(ABC):
    """An owner's adapter to the running event loop.

    Attributes:
        budget: shared by all owners on the event loop.
        spawn: starts a background task of the owner.
        time: the loop's clock in seconds; virtual in tests.
        checkpoint: yields to the other tasks, and raises if the caller is cancelled.
        checkpoint_if_cancelled: only the latter.
    """

    def __init__(
        self,
        budget: Budget,
        spawn: Spawn,
        *,
        time: Callable[[], float],
        checkpoint: Callable[[], Awaitable[None]],
        checkpoint_if_cancelled: Callable[[], Awaitable[None]],
    ) -> None:
        self.budget = budget
        self.spawn = spawn
        self.time = time
        self.checkpoint = checkpoint
        self.checkpoint_if_cancelled = checkpoint_if_cancelled
        self._timers: list[Timer] = []
        self._cancelled = 0  # of these
        self._soon: list[Callable[[], None]] = []

    @abstractmethod
    def waiter(self) -> Waiter: ...

    @abstractmethod
    def readiness(
        self, sock: socket.socket, readable: Callable[[], bool], writable: Callable[[], None]
    ) -> Readiness: ...

    @abstractmethod
    def current_task(self) -> object: ...

    @abstractmethod
    def task_name(self, task: Any) -> str: ...

    @abstractmethod
    def may_be_cancelled(self) -> int:
        """Zero if `checkpoint_if_cancelled` surely would do nothing. It is called once per message."""

    @abstractmethod
    def close(self) -> None:
        """Forget all timers and callbacks; the owner is leaving."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back at the end of this tick, before a task that slept is woken."""
        self._soon.append(callback)
        if len(self._soon) == 1:
            self._arm_soon()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at a time of `time()`."""
        timer = Timer(self, when, callback)
        heapq.heappush(self._timers, timer)
        if self._timers[0] is timer:
            self._arm_timer(when)
        return timer

    def note_stall(self, due: float, now: float, warn: Callable[[float], None]) -> None:
        """A timer that was due came only now: the event loop was blocked. Warns once for all timers of one stall."""
        if due > self.budget.stall_ended:
            self.budget.stall_ended = now
            warn(now - due)

    @abstractmethod
    def _arm_soon(self) -> None: ...

    @abstractmethod
    def _arm_timer(self, when: float) -> None: ...

    def _run_soon(self) -> None:
        callbacks, self._soon = self._soon, []
        for callback in callbacks:
            _call(callback)

    def _run_timers(self) -> float | None:
        """Run what is due; return when the next timer is, None if there is none."""
        timers = self._timers
        now = self.time()
        while timers and (timers[0].when <= now or timers[0].callback is None):
            timer = heapq.heappop(timers)
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                _call(callback)
        return timers[0].when if timers else None

    def note_cancelled(self) -> None:
        """One more timer in the heap is not to be called: remove them all when they are most of it."""
        self._cancelled += 1
        if self._cancelled > MAX_CANCELLED and self._cancelled > len(self._timers) / 2:
            self._timers[:] = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0


def _call(callback: Callable[[], None]) -> None:
    """A bug in what one connection wants to be called must not stop the timers of all."""
    try:
        callback()
    except Exception:
        logger.exception("a callback failed", extra={"connection_id": "-"})
