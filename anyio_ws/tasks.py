"""A task group that wraps nothing.

Theory of operation. An ordinary task group raises an ExceptionGroup when its body fails, and cancels its background
tasks in the same breath as the body. Neither will do for a connection: the user's exception has to come out as the
very object that was raised, and the tasks that move bytes have to outlive a cancelled body until the closing handshake
is done. So

- the group is never told of the body's exception, and its tasks never raise into it: they record their error;
- our own cancel scope sits inside the group, around the body only, so that just our own cancellation is removed;
- services (`start_service`) are shielded from the cancellation around them; they end when the owner leaves and the
  last task that is no service has ended.

Known limit: a native `task.cancel()` that arrives while an already failing block joins its tasks gives way to the
block's exception.
"""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NoReturn, cast

from anyio import CancelScope, create_task_group, get_cancelled_exc_class
from anyio.lowlevel import cancel_shielded_checkpoint

SEVERAL = "several tasks failed"


class Tasks:
    """The background tasks of a connect(), an accept(), a server or a `WebSocket.run`.

    Leaving raises what the body raised, the same object; else what a task raised, flat if it was one.
    """

    async def __aenter__(self) -> "Tasks":
        self._group = create_task_group()
        await self._group.__aenter__()
        self._services: set[CancelScope] | None = set()  # None: they are to end
        self._running = 0  # tasks that are no services
        self._leaving = False
        self.errors: list[BaseException] = []
        self.scope: CancelScope = CancelScope()  # around the body only: what a failing task cancels
        self.scope.__enter__()
        return self

    def start(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task that is cancelled with the surroundings."""
        self._running += 1
        self._group.start_soon(self._run, function, *args)

    async def _run(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        try:
            await self._guard(function, *args)
        finally:
            self._running -= 1
            if self._leaving and not self._running:
                self._stop_services()

    def start_service(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task that only leaving cancels."""
        self._group.start_soon(self._guard, self._serve, function, *args)

    async def _serve(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        with CancelScope(shield=True) as scope:
            if self._services is None:
                scope.cancel()  # the owner left before this task first ran
            else:
                self._services.add(scope)
            try:
                await function(*args)
            finally:
                if self._services is not None:
                    self._services.discard(scope)

    def _stop_services(self) -> None:
        services, self._services = self._services, None
        for scope in services or ():
            scope.cancel()

    async def _guard(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        try:
            await function(*args)
        except BaseException as exc:
            self.record(exc)

    def record(self, exc: BaseException) -> None:
        """Note what a task has raised, so that leaving raises it; a cancellation is raised again."""
        if isinstance(exc, get_cancelled_exc_class()):
            raise exc
        error = exc
        if isinstance(exc, BaseExceptionGroup):  # trio: a user's nursery mixes Cancelled in
            stray, rest = cast("BaseExceptionGroup[BaseException]", exc).split(get_cancelled_exc_class())
            if rest is None:
                raise exc
            if stray is not None:
                error = rest
        self.errors.append(error)
        self.scope.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        body = exc
        try:
            if self.scope.__exit__(kind, exc, traceback):
                body = None  # our own cancellation, nobody else's
        except BaseExceptionGroup as rest:
            body = rest  # a mixed group, without our cancellation
        self._leaving = True
        self._group.cancel_scope.cancel()
        if not self._running:
            self._stop_services()
        try:
            await self._group.__aexit__(None, None, None)
        except get_cancelled_exc_class():
            if body is None and not self.errors:
                raise
        cancelled = isinstance(body, get_cancelled_exc_class())
        if body is not None and not (cancelled and self.errors):
            if body is exc:
                return False  # untouched: the same object, the same context
            raise body
        if self.errors:
            await _raise(self.errors[0] if len(self.errors) == 1 else BaseExceptionGroup(SEVERAL, self.errors))
        return True


async def _raise(error: BaseException) -> NoReturn:
    """Raise an error as it was: the body's cancellation, which is being handled here, is not its context."""
    context = error.__context__
    # On asyncio the cancellation may just be thrown into this task: then each coroutine that the error comes out of
    # would make it the context.
    await cancel_shielded_checkpoint()
    try:
        raise error
    finally:
        error.__context__ = context
