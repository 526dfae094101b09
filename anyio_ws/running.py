"""`WebSocket.run`: several functions over one connection, none of which outlives the others."""

from collections.abc import Awaitable, Callable
from inspect import iscoroutine
from typing import TYPE_CHECKING, cast

from anyio import sleep, sleep_forever
from anyio.lowlevel import checkpoint

from .core import Core
from .exceptions import ConnectionClosed, ConnectionClosedError
from .tasks import Tasks

if TYPE_CHECKING:
    from .websocket import WebSocket


def is_own_closing(exc: BaseException, core: Core) -> bool:
    """Whether an exception says nothing but that this connection has ended, alone or in a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exc)
        return all(is_own_closing(inner, core) for inner in group.exceptions)
    return isinstance(exc, ConnectionClosed) and core.is_own(exc.close_info)


async def run(ws: "WebSocket", core: Core, functions: tuple[Callable[["WebSocket"], Awaitable[object]], ...]) -> None:
    """See `WebSocket.run`."""
    if not functions:
        raise TypeError("run() takes at least one function, which is called with the WebSocket")
    for given in cast("tuple[object, ...]", functions):
        if not callable(given):
            if iscoroutine(given):
                given.close()  # or Python would warn that it was never awaited
            raise TypeError(f"run() takes functions and calls them with the WebSocket itself; got {given!r}")
    before = core.inbox.receiving_done
    cut = False  # the end of the connection came to a function, or cut it short

    async def one(function: Callable[["WebSocket"], Awaitable[object]]) -> None:
        nonlocal cut
        try:
            await function(ws)
        except Exception as exc:
            if not is_own_closing(exc, core):
                raise
            cut = True
        tasks.scope.cancel()

    async def end() -> None:
        nonlocal cut
        await checkpoint()  # if the connection has ended already, a function gets as far as its first receive
        await ws.wait_closed()
        if core.inbox.receiving_done != before:
            timeout = core.options.close_timeout
            if timeout is None:
                return
            await sleep(timeout)
        cut = True
        tasks.scope.cancel()

    async with Tasks() as tasks:
        for function in functions:
            tasks.start(one, function)
        tasks.start(end)
        await sleep_forever()
    if cut:
        exc = core.exception()
        if isinstance(exc, ConnectionClosedError):
            raise exc
