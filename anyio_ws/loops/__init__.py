"""The event loops: the few things the library needs from one, the same on each.

`base` is the interface, `asyncio_loop` (with uvloop) and `trio_loop` its two implementations. Nothing outside this
package asks which loop is running.
"""

import asyncio

from anyio.lowlevel import RunVar, current_token

from .asyncio_loop import AsyncioLoop
from .base import Budget, Loop, Readiness, Spawn, Timer, Waiter, uninterruptible

__all__ = ["Budget", "Loop", "Readiness", "Spawn", "Timer", "Waiter", "open_loop", "uninterruptible"]

_budget: RunVar[Budget] = RunVar("anyio_ws.budget")


def open_loop(spawn: Spawn) -> Loop:
    """Make the adapter to the running event loop for one owner: a server, a connect(), an accept().

    Args:
        spawn: starts a background task of the owner; it must outlive every connection that uses the adapter.
    """
    try:
        budget = _budget.get()
    except LookupError:
        budget = Budget()
        _budget.set(budget)
    native = current_token().native_token
    if isinstance(native, asyncio.AbstractEventLoop):
        return AsyncioLoop(native, budget, spawn)
    from .trio_loop import TrioLoop  # trio is optional: it is imported only where it already runs

    return TrioLoop(budget, spawn)
