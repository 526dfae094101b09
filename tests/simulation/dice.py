"""What chance decides in one run, and when what it decided happens."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from anyio_ws.loops import Loop

TICK = 1 / 1024
"""Seconds. All times are multiples of it: sums of them are exact, whatever the clock showed when a run began."""


@dataclass
class Plan:
    """What kind of network this run has.

    Attributes:
        capacity: bytes that may be on their way in each direction.
        short: how often a write takes less than it could.
        split: how often a read returns less than it could.
        lag: how often what could happen now happens later in the same moment.
        delay: how often it takes time.
        delays: what it may take then, in ticks.
        strike: how often an event at one end cancels a call there, in the same tick.
        block: how often the event loop is blocked when a Ping or a Pong is on its way.
    """

    capacity: int = 65536
    short: float = 0.0
    split: float = 0.0
    lag: float = 0.0
    delay: float = 0.0
    delays: tuple[int, ...] = (1,)
    strike: float = 0.0
    block: float = 0.0


@dataclass
class Dice:
    """The only source of randomness and of time for a run.

    Attributes:
        loop: an adapter of its own, for what the network does.
        events: the trace.
        strike: called with the name of the pipe that an end writes to, whenever something has happened to that end.
        ends_in_order: called with the name of a pipe when its writer half-closes.
        pinged: called when a Ping or a Pong was written.
        happened: called after each thing that has happened.
        steps: how many things have.
    """

    seed: str
    plan: Plan = field(default_factory=Plan)
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.chance_of = self.random.random
        self.steps = 0
        self.loop: Loop
        self.strike: Callable[[str], None]
        self.ends_in_order: Callable[[str], None]
        self.pinged: Callable[[], None]
        self.happened: Callable[[], None]
        self._began = 0.0
        self._soon: list[Callable[[], None]] = []
        self._armed = False

    def begin(self, loop: Loop) -> None:
        self.loop = loop
        self._began = loop.time()

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.chance_of() < probability

    def below(self, limit: int) -> int:
        return int(self.chance_of() * limit)

    def log(self, *event: Any) -> None:
        self.events.append((self.loop.time() - self._began, *event))

    def now(self) -> float:
        return self.loop.time()

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back in this moment, in any order."""
        self._soon.append(callback)
        if not self._armed:
            self._armed = True
            self.loop.call_soon(self._tick)

    def later(self, callback: Callable[[], None]) -> float:
        """Call back after the time that the network takes; return when."""
        if not self.chance(self.plan.delay):
            self.soon(callback)
            return self.now()
        delays = self.plan.delays
        when = self.now() + TICK * delays[self.below(len(delays))]
        self.at(when, callback)
        return when

    def at(self, when: float, callback: Callable[[], None]) -> None:
        def due() -> None:
            self._happen(callback)

        self.loop.call_at(when, due)

    def _tick(self) -> None:
        batch, self._soon = self._soon, []
        self._armed = False
        if len(batch) > 1:
            self.random.shuffle(batch)
        for callback in batch:
            if self.chance(self.plan.lag):
                self.soon(callback)
            else:
                self._happen(callback)

    def _happen(self, callback: Callable[[], None]) -> None:
        self.steps += 1
        callback()
        self.happened()
