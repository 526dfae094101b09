"""trio.

Theory of operation. A task inside `receive()` waits for its socket itself, which is a third cheaper than being handed
what another task has read. When no task does, somebody else must read, so that pings are answered and a Close or a
reset is noticed: a *watcher*, a task of its own. At most one of the two waits for the socket at any time.

To start a watcher whenever a receiver leaves would cost more than the reading. Instead the leaving receiver *flags*
its connection, and one *caretaker* task per owner, 20 ms later, starts a watcher for each flagged connection that
still has no reader. The invariant, everywhere outside this module: a connection has a reader, or is flagged, or is not
to be read (paused, closed). `TrioReadiness._left` restores it and is called wherever a reader ends.

The caretaker also runs the timers and the end-of-tick callbacks. It parks without a deadline when nothing is due, so
that a clock with autojump can settle.
"""

import math
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import trio
from trio.lowlevel import (
    Abort,
    Task,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    notify_closing,
    reschedule,
    wait_readable,
    wait_task_rescheduled,
    wait_writable,
)

from .base import SCRATCH_SIZE, UNINTERRUPTIBLE, Budget, Loop, Readiness, Spawn, Waiter, uninterruptible

WATCH_DELAY = 0.02
"""Seconds without a reader before a watcher starts: handlers that are only busy for a moment do not need one."""


class TrioWaiter(Waiter):
    __slots__ = ("_budget", "_task")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._task: Task | None = None

    async def wait(self) -> None:
        self._task = current_task()
        await wait_task_rescheduled(self._abort)
        self._budget.renew()

    def _abort(self, raise_cancel: Any) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    def wake(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            reschedule(task)


class TrioLoop(Loop):
    tasks_tell = False

    def __init__(self, budget: Budget, spawn: Spawn) -> None:
        super().__init__(
            budget,
            spawn,
            time=trio.current_time,
            current_task=current_task,
            checkpoint=checkpoint,
            checkpoint_if_cancelled=checkpoint_if_cancelled,
        )
        self._flagged: list[TrioReadiness] = []
        self._flags_due = math.inf
        self._timers_due = math.inf
        self._alarm = trio.CancelScope()  # its deadline ends the caretaker's sleep
        self._parking = TrioWaiter(budget)
        self._hosting = False  # a task is there, or is about to be, for
        self._nursery: trio.Nursery | None = None  # of the tasks of which there are many
        spawn(self._caretake)

    def waiter(self) -> TrioWaiter:
        return TrioWaiter(self.budget)

    def readiness(
        self, sock: socket.socket, readable: Callable[[], int], writable: Callable[[], None]
    ) -> "TrioReadiness":
        return TrioReadiness(self, sock, readable, writable)

    def task_name(self, task: Task) -> str:
        return task.name

    def start_task(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        if not self._hosting:
            self._hosting = True
            self.spawn(self._host)
        # The first tick's tasks come before the nursery.
        start = self.spawn if self._nursery is None else self._nursery.start_soon
        start(function, *args)

    async def _host(self) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def start_io(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start a watcher or a writer: as `spawn` does, but where there are many it costs a third of that."""
        if self._nursery is None:
            self.spawn(function)
        else:
            self._nursery.start_soon(self._guard, function)

    @uninterruptible
    async def _guard(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """What a task raises comes out of the owner as it is: from our nursery it would come out in a group."""
        try:
            await function()
        except trio.Cancelled:
            raise
        except BaseException as exc:
            self.spawn(_fail, exc)

    def close(self) -> None:
        self._timers.clear()
        self._soon.clear()
        self._flagged.clear()

    def flag(self, readiness: "TrioReadiness") -> None:
        if not self._flagged:
            self._flags_due = self.time() + WATCH_DELAY
            self._alarm.deadline = min(self._flags_due, self._timers_due)
        self._flagged.append(readiness)

    def _arm_soon(self) -> None:
        self._parking.wake()

    def _arm_timer(self, when: float) -> None:
        self._timers_due = when
        self._alarm.deadline = min(self._flags_due, when)

    @uninterruptible
    async def _caretake(self) -> None:
        while True:
            with trio.CancelScope(deadline=min(self._flags_due, self._timers_due)) as self._alarm:
                while True:
                    if self._soon:
                        await checkpoint()
                    else:
                        await self._parking.wait()
                    self._run_soon()
            self._ring()

    def _ring(self) -> None:
        """The alarm went off: timers, and connections that nobody reads."""
        if self._timers_due <= self.time():
            following = self._run_timers()
            self._timers_due = math.inf if following is None else following
        if self._flags_due <= self.time():
            flagged, self._flagged, self._flags_due = self._flagged, [], math.inf
            for readiness in flagged:
                readiness.start_watcher()


async def _fail(exc: BaseException) -> None:
    raise exc


class TrioReadiness(Readiness):
    __slots__ = (
        "_fd",
        "_flagged",
        "_handover",
        "_loop",
        "_more",
        "_readable",
        "_reader",
        "_reading",
        "_waiting",
        "_wanted",
        "_writable",
        "_writer",
        "_writing",
    )

    def __init__(
        self, loop: TrioLoop, sock: socket.socket, readable: Callable[[], int], writable: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._fd = sock.fileno()
        self._readable = readable
        self._writable = writable
        self._handover = TrioWaiter(loop.budget)  # a receiver that waits for the watcher to hand over
        self._wanted = 0  # tasks that are parked there
        self._reading = False  # not before start(), not while paused, not after close()
        self._reader = False  # a receiver or a watcher waits for the socket, or a watcher is about to
        self._waiting = False  # the receiver does
        self._flagged = False
        self._more = False  # the last read left something in the socket
        self._writing = False
        self._writer = False  # its task is there; it may still be on its way out when it is wanted again

    def start(self) -> None:
        self.resume()

    def pause(self) -> None:
        self._reading = False

    def resume(self) -> None:
        self._reading = True
        self._left()

    def close(self) -> None:
        self._reading = self._writing = self._waiting = False
        notify_closing(self._fd)
        self._handover.wake()

    async def wait(self) -> None:
        if self._reader or not self._reading:
            self._wanted += 1
            try:
                await self._handover.wait()
            finally:
                self._wanted -= 1
            return
        budget = self._loop.budget
        if self._more:
            budget.receives -= 1
            if budget.exhausted():  # a peer that sends, perhaps only control frames, as fast as it can
                await checkpoint()
                budget.renew()
        else:
            # Most of the time nothing can be here yet: an attempt would cost a system call and an exception.
            self._reader = self._waiting = True
            try:
                await wait_readable(self._fd)
            except trio.ClosedResourceError:
                return  # wake() or close() was called meanwhile
            finally:
                self._reader = self._waiting = False
                self._left()
            budget.renew()
        if self._reading:
            self._more = self._readable() >= SCRATCH_SIZE

    def wake(self) -> None:
        if self._waiting:
            notify_closing(self._fd)  # makes wait_readable return; a writer that it disturbs waits again
        else:
            self._handover.wake()

    def watch(self) -> None:
        if self._reading and not self._reader:
            self._reader = True
            self._loop.start_io(self._watch)

    def start_watcher(self) -> None:
        self._flagged = False
        self.watch()

    def _left(self) -> None:
        if self._reading and not self._flagged and not self._reader:
            self._flagged = True
            self._loop.flag(self)

    @uninterruptible
    async def _watch(self) -> None:
        try:
            while self._reading:
                await wait_readable(self._fd)
                if self._reading:
                    self._readable()
                if self._wanted:
                    break  # a receiver is back: it reads from now on
        except trio.ClosedResourceError:
            pass  # close() was called meanwhile
        finally:
            self._reader = False
            self._left()
            self._handover.wake()

    def want_write(self) -> None:
        self._writing = True
        if not self._writer:
            self._writer = True
            self._loop.start_io(self._write)

    def write_done(self) -> None:
        self._writing = False

    @uninterruptible
    async def _write(self) -> None:
        try:
            while self._writing:
                try:
                    await wait_writable(self._fd)
                except trio.ClosedResourceError:
                    continue  # close() or wake() was called meanwhile
                if self._writing:
                    self._writable()
        finally:
            self._writer = False


# This module is imported where a loop is first opened, when all others that mark functions have been.
for _function in UNINTERRUPTIBLE:
    enable_ki_protection(_function)
