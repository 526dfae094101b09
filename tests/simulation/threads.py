"""Worker threads that take virtual time, and nothing but it: the same seed, the same run."""

from collections.abc import Callable
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from .dice import TICK, Dice
from .oracle import Clock


class Threads:
    """Instead of `anyio.to_thread`: what is to run does so at any time between the call and its end."""

    def begin(self, dice: Dice, clock: Clock) -> None:
        self._dice = dice
        self._clock = clock

    async def run_sync(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run it, however the caller is cancelled meanwhile."""
        await checkpoint()
        dice, clock = self._dice, self._clock
        dice.log("a thread begins")
        clock.threads += 1
        try:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(TICK * dice.random.choice((0, 0, 1, 20, 300)))
                try:
                    return function(*args)
                finally:
                    await anyio.sleep(TICK * dice.random.choice((0, 0, 1)))
        finally:
            clock.threads -= 1
            clock.stirred = dice.now()
            dice.log("a thread has ended")
