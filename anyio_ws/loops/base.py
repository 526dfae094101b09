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
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import Any, Protocol, TypeVar

SCRATCH_SIZE = 131072
"""Bytes read from a socket at once, into memory that all sockets share: new memory of this size would be mapped and
unmapped for each read. A message of 64 KiB, the most usual size of large ones, fits in with its header."""

BUDGET_CALLS = 64
"""Calls of a kind in a row that may complete without yielding; a checkpoint for each would be most of its cost."""

BUDGET_SECONDS = 0.001
"""Seconds of such calls, for calls (or handlers) that are slow."""

MAX_CANCELLED = 64
"""Cancelled timers that may stay in the heap until they are due, however few the others are; asyncio allows 100."""

logger: logging.Logger = logging.getLogger("anyio_ws.loops")


UNINTERRUPTIBLE: list[Callable[..., object]] = []
"""The functions marked with `uninterruptible`."""

F = TypeVar("F", bound=Callable[..., object])


def uninterruptible(function: F) -> F:
    """Mark a function, also an async one, in which KeyboardInterrupt has to wait for the next checkpoint.

    asyncio turns Ctrl-C into a cancellation. trio raises it between any two bytecodes, so also after a part of a frame
    was written and before the rest is kept, unless a function up the stack is marked. It costs nothing at run time.
    """
    UNINTERRUPTIBLE.append(function)
    return function


class Spawn(Protocol):
    """Starts a background task."""

    def __call__(self, function: Callable[..., Awaitable[object]], *args: Any) -> None: ...


class Budget:
    """How many calls may still complete before one must yield, for all connections of an event loop.

    Whoever sends or pings does, inline because it is the hottest path (and whoever receives likewise):

        budget.sends -= 1
        if not budget.sends & 7 and budget.exhausted(): ...

    The two are counted apart, so that an echo of as many messages as there may be calls is not cut in two.
    """

    __slots__ = ("receives", "scratch", "sends", "since", "stall_ended")

    def __init__(self) -> None:
        self.scratch: memoryview = memoryview(bytearray(SCRATCH_SIZE))  # every socket of the loop reads into it
        self.stall_ended: float = -math.inf  # when the event loop was last found to have been blocked
        self.renew()

    def renew(self) -> None:
        """A task that called us was really suspended: the others had their turn."""
        self.receives: int = BUDGET_CALLS
        self.sends: int = BUDGET_CALLS
        self.since: float = perf_counter()

    def exhausted(self) -> bool:
        return self.receives <= 0 or self.sends <= 0 or perf_counter() - self.since > BUDGET_SECONDS


class Waiter(ABC):
    """One task waits, anyone wakes it. A wake-up without a waiting task is forgotten."""

    __slots__ = ()

    @abstractmethod
    def wait(self) -> Awaitable[None]:
        """Wait for `wake()`; to be awaited at once. The budget is renewed if the task was suspended."""

    @abstractmethod
    def wake(self) -> None: ...


class Readiness(Waiter):
    """Who waits for a socket. At any time at most one party waits for it to become readable.

    It calls `readable() -> int`, which makes one attempt to read and returns how many bytes there were, and
    `writable()`, after `want_write()`, until `write_done()`. `wait()` also returns when something was read.
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
        current_task: the running task.
        checkpoint: yields to the other tasks, and raises if the caller is cancelled.
        checkpoint_if_cancelled: only the latter.
        tasks_tell: whether `current_task().cancelling()` being zero means that `checkpoint_if_cancelled` would do
            nothing. It costs a tenth of that, and is looked at once per message.
    """

    tasks_tell: bool

    def __init__(
        self,
        budget: Budget,
        spawn: Spawn,
        *,
        time: Callable[[], float],
        current_task: Callable[[], Any],
        checkpoint: Callable[[], Awaitable[None]],
        checkpoint_if_cancelled: Callable[[], Awaitable[None]],
    ) -> None:
        self.budget = budget
        self.spawn = spawn
        self.time = time
        self.current_task = current_task
        self.checkpoint = checkpoint
        self.checkpoint_if_cancelled = checkpoint_if_cancelled
        self._timers: list[Timer] = []
        self._cancelled = 0  # of these
        self._soon: list[Callable[[], None]] = []

    @abstractmethod
    def waiter(self) -> Waiter: ...

    @abstractmethod
    def readiness(
        self, sock: socket.socket, readable: Callable[[], int], writable: Callable[[], None]
    ) -> Readiness: ...

    @abstractmethod
    def task_name(self, task: Any) -> str: ...

    @abstractmethod
    def start_task(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        """Start a task that costs as little as can be, for those of which there are many.

        It is no child of a task group: no cancellation around the owner reaches it, and nobody waits for its end. The
        owner sees to both before it leaves, and keeps a reference to the task (`current_task`) until then. The function
        raises nothing but a cancellation.
        """

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
