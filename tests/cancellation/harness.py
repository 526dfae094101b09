"""Cancels a call at each point where it waits, and looks at what is left.

Theory of operation. A scenario is a function that sets a stage, makes one call through `Trial.call`, and says what must
be true afterwards, whether the call was cancelled or not. `at_every_point` runs it again and again: at the first run
the cancellation comes at the first suspension of the call, then at the second, until a run is over before its turn.

To know the suspensions, the harness stands between the call and the event loop: it drives the call's coroutine by hand
and passes on all that the two tell each other. That works alike on asyncio, uvloop and trio.

Each `Way` cancels at another moment. That matters: at a suspension, a call may wait for something that is not there
yet, or be about to go on because it is there, and in between the event loop has had its turn, or not.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import anyio
from anyio.lowlevel import checkpoint, current_token

from anyio_ws.testing import _VirtualLoop
from support.peers import sockets

MAX_POINTS = 300
"""A scenario with more suspensions than this does not end."""

TICKS = [0, 1, 2, 4, 8]
"""Where time passes, ticks do not end. What happens meanwhile begins at the third."""

PATIENCE = 10
"""Seconds for one run; most take some milliseconds."""

ENDING = 1.0
"""Seconds for which the closing of a block is shielded at most, min(close_timeout, 1 s). Nothing else is."""

ROUNDING, SLACK = 1e-6, 3
"""Seconds more, the latter where the clock is real: the machine may be busy."""

LATER = 0.002
"""Seconds until what a scenario says is to happen meanwhile: all that needs no time has happened before."""

REASON = "cancelled by the harness"


class Way(Enum):
    """When the cancellation comes, and what is cancelled."""

    ALREADY = "already"  # the scope, before the call begins
    BEFORE = "before"  # the scope, before the event loop hears of the suspension
    WAKING = "waking"  # the scope, when the call is to go on, but has not yet
    DEADLINE = "deadline"  # the scope, by its deadline, when nothing else is left to do
    TICKS = "ticks"  # the scope, so many ticks after the beginning: also while other tasks of the call wait
    NATIVE_BEFORE = "native-before"  # asyncio's task
    NATIVE_WAKING = "native-waking"

    @property
    def is_native(self) -> bool:
        return self in (Way.NATIVE_BEFORE, Way.NATIVE_WAKING)


class Outcome:
    """How a call ended: exactly one of the three.

    Attributes:
        finished: it returned `result`.
        cancelled: it raised the cancellation.
        error: it raised this.
    """

    def __init__(self) -> None:
        self.finished = self.cancelled = False
        self.result: Any = None
        self.error: BaseException | None = None

    async def of(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.result = await call()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        except BaseException as exc:
            self.error = exc
        else:
            self.finished = True


class Trial:
    """One run of a scenario.

    Attributes:
        way: how to cancel.
        point: at which suspension, from 0.
        kind: what the scenario is to run over.
        reached: the call came as far as that; if not, nothing was cancelled.
        bound: seconds that the call may still take when it is cancelled.
        over: the call has ended.
    """

    def __init__(self, way: Way, point: int, kind: str) -> None:
        self.way = way
        self.point = point
        self.kind = kind
        self.reached = False
        self.bound = ENDING
        self._passed = 0
        self._scope = anyio.CancelScope()
        self._cancel: Callable[[], object] = partial(self._scope.cancel, REASON)
        self._fired = False
        self._fired_at = math.inf
        self._delivered = False
        self.over = anyio.Event()
        self._stop_listening: Callable[[], object] | None = None

    async def call(
        self,
        function: Callable[..., Awaitable[Any]],
        *args: Any,
        counted: bool = True,
        meanwhile: Callable[[], Awaitable[object]] | None = None,
        raises: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> Outcome:
        """Make the call that is to be cancelled, check how it ended, and return that.

        Args:
            function: the call.
            args: its arguments.
            counted: its suspensions are the points; else the scenario says with `counted` where they are.
            meanwhile: what is to happen while the call waits; it has happened when this returns.
            raises: what it may raise besides the cancellation.
        """
        outcome = Outcome()
        subject = partial(outcome.of, partial(self.counted, function, *args) if counted else partial(function, *args))
        async with anyio.create_task_group() as group:
            if meanwhile is not None:
                group.start_soon(self._later, meanwhile)
            if self.way is Way.TICKS:
                group.start_soon(self._tick)
            try:
                await (self._as_a_task(subject) if self.way.is_native else self._in_a_scope(subject))
            finally:
                took = anyio.current_time() - min(self._fired_at, self._scope.deadline)
                self.over.set()
                if self._stop_listening is not None:
                    self._stop_listening()
        if outcome.error is not None and not isinstance(outcome.error, raises):
            raise AssertionError(f"the call raised {outcome.error!r}") from outcome.error
        assert outcome.finished + outcome.cancelled + (outcome.error is not None) == 1
        if not self.way.is_native:
            assert self._scope.cancelled_caught == outcome.cancelled, "its scope says otherwise"
        slack = ROUNDING if is_virtual() else SLACK
        assert took <= self.bound + slack, f"it took {took} s to be cancelled, expected {self.bound}"
        if self._delivered or (self.way is Way.ALREADY and self._fired):
            assert not outcome.finished, "it swallowed the cancellation"
        return outcome

    async def counted(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Make a call whose suspensions are the points."""

        async def subject() -> Any:
            return await function(*args)

        return await _Driven(subject(), self)

    @property
    def cancelled(self) -> bool:
        """The cancellation has come."""
        return self._fired or self._scope.cancel_called

    @property
    def called_off(self) -> bool:
        """The cancellation came before the call began."""
        return self.way is Way.ALREADY and self._fired

    # How it is cancelled

    async def _in_a_scope(self, subject: Callable[[], Awaitable[None]]) -> None:
        before = _cancelling()
        with self._scope:
            if self.way is Way.ALREADY and self.point == 0:
                self._fire()
                with suppress(anyio.get_cancelled_exc_class()):
                    await checkpoint()
            await subject()
        assert _cancelling() == before, "asyncio counts more cancellations of the task than before"

    async def _as_a_task(self, subject: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(subject())
        self._cancel = partial(task.cancel, REASON)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        if not task.cancelled():
            task.result()
        assert task.cancelling() == self._fired, "the task does not know how often it was cancelled"

    async def _later(self, function: Callable[[], Awaitable[object]]) -> None:
        if self.way is Way.TICKS:
            for _ in range(TICKS[2]):
                await checkpoint()
        else:
            await anyio.sleep(LATER)
        await function()

    async def _tick(self) -> None:
        for _ in range(self.point):
            await checkpoint()
        self._fire()

    def _fire(self, *_: object) -> None:
        if not self.over.is_set():
            self.reached = self._fired = True
            self._fired_at = anyio.current_time()
            self._cancel()

    # What `_Driven` sees

    def suspending(self, yielded: Any) -> None:
        """The call is about to wait; this is what it tells the event loop."""
        if self._passed == self.point:
            if self.way in (Way.BEFORE, Way.NATIVE_BEFORE):
                self._fire()
            elif self.way in (Way.WAKING, Way.NATIVE_WAKING):
                self.reached = True
                self._stop_listening = _when_woken(yielded, self._fire)
            elif self.way is Way.DEADLINE:
                self.reached = True
                self._scope.deadline = anyio.current_time() + LATER / 2
        self._passed += 1

    def interrupted(self, exc: BaseException) -> None:
        """This was raised where the call waited."""
        if REASON in f"{exc} {getattr(exc, 'reason', '')}":
            self._delivered = True


class _Driven:
    """Awaits a coroutine, and tells the trial of each suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], trial: Trial) -> None:
        self._coroutine = coroutine
        self._trial = trial

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                yielded = step(value)
            except StopIteration as stop:
                return stop.value
            self._trial.suspending(yielded)
            try:
                step, value = self._coroutine.send, (yield yielded)
            except BaseException as exc:
                self._trial.interrupted(exc)
                step, value = self._coroutine.throw, exc


class _Listener:
    """An instrument of trio that calls back once a task is to go on."""

    def __init__(self, callback: Callable[[], object]) -> None:
        from trio.lowlevel import current_task

        self._task = current_task()
        self._callback: Callable[[], object] | None = callback

    def task_scheduled(self, task: object) -> None:
        if task is self._task and self._callback is not None:
            callback, self._callback = self._callback, None
            callback()


def _when_woken(yielded: Any, callback: Callable[..., object]) -> Callable[[], object]:
    """Call back once the current task, which is about to wait, is to go on. Returns what calls that off."""
    native = current_token().native_token
    if isinstance(native, asyncio.AbstractEventLoop):
        if yielded is None:  # it goes on in the next tick, after what was called for earlier
            return native.call_soon(callback).cancel
        yielded.add_done_callback(callback)
        return partial(yielded.remove_done_callback, callback)
    from trio.lowlevel import add_instrument, remove_instrument

    listener: Any = _Listener(callback)
    add_instrument(listener)
    return partial(remove_instrument, listener)


def is_virtual() -> bool:
    """Whether time passes only when nothing else is left to do."""
    native = current_token().native_token
    if isinstance(native, asyncio.AbstractEventLoop):
        return isinstance(native, _VirtualLoop)
    from trio.lowlevel import current_clock
    from trio.testing import MockClock

    return isinstance(current_clock(), MockClock)


def _cancelling() -> int:
    """How often asyncio has been asked to cancel the current task; 0 on trio."""
    if isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()
    return 0


class Footprint(NamedTuple):
    """What is there now, of what a call might leave behind."""

    tasks: object
    sockets: set[str]
    watched: int


def footprint() -> Footprint:
    native: Any = current_token().native_token
    if isinstance(native, asyncio.AbstractEventLoop):
        selector = getattr(native, "_selector", None)  # uvloop does not tell
        return Footprint(asyncio.all_tasks(), sockets(), 0 if selector is None else len(selector.get_map()))
    from trio.lowlevel import current_statistics

    statistics = current_statistics()
    io: Any = statistics.io_statistics
    return Footprint(statistics.tasks_living, sockets(), getattr(io, "tasks_waiting_read", 0))


async def at_every_point(scenario: Callable[[Trial], Awaitable[None]], kind: str, ways: Sequence[Way]) -> None:
    """Run a scenario for each way once for each suspension of its call, with the cancellation there, and once without.

    asyncio's own ways are left out on trio.
    """
    on_asyncio = isinstance(current_token().native_token, asyncio.AbstractEventLoop)
    for way in ways:
        if on_asyncio or not way.is_native:
            ticks = TICKS if is_virtual() else TICKS[::2]
            for point in ticks if way is Way.TICKS else range(MAX_POINTS):
                if not await _reaches(scenario, Trial(way, point, kind)):
                    break
            else:
                assert way is Way.TICKS, f"{scenario.__name__} does not end"


async def _reaches(scenario: Callable[[Trial], Awaitable[None]], trial: Trial) -> bool:
    """Run a scenario. Returns whether its call came as far as the point."""
    before = footprint()
    try:
        with anyio.fail_after(PATIENCE):
            await scenario(trial)
        assert footprint() == before, "something was left behind"
    except Exception as exc:
        exc.add_note(f"{scenario.__name__} over {trial.kind}, cancelled at point {trial.point}, {trial.way.value}")
        raise
    return trial.reached
