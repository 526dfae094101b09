"""The same seed, the same run: what would differ between two runs is replaced, in tests only."""

import logging
import os
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import anyio

import anyio_ws.loops
from anyio_ws import byte_stream, core, inbox, outbox, overflow, receive_stream, send_stream, websocket, workers
from anyio_ws.loops import asyncio_loop, base
from anyio_ws.protocol import deflate_backends, inflating
from anyio_ws.testing import virtual_clock

from . import oracle, sockets
from .threads import Threads
from .world import World


class Surroundings(logging.Handler):
    """What a run has around it.

    Attributes:
        errors: what the library logged as an error: it has none to log.
        entropy: instead of the system's.
        threads: instead of anyio's.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self.entropy = random.Random()
        self.threads = Threads()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.errors.append(self.format(record))


@contextmanager
def deterministic(backend: str) -> Generator[Surroundings]:
    """Take real time and real randomness away."""
    around = Surroundings()
    logger = logging.getLogger("anyio_ws")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(around)
    try:
        with (
            patch.object(base, "perf_counter", lambda: 0.0),
            patch.object(asyncio_loop, "perf_counter", lambda: 0.0),
            patch.object(os, "urandom", around.entropy.randbytes),
            patch.object(workers, "to_thread", around.threads),
            patch.object(inbox.Inbox, "received", oracle.watch(inbox.Inbox.received)),
            patch.object(inbox.Inbox, "file", oracle.watch(inbox.Inbox.file)),
            patch.object(inbox.Inbox, "restored", oracle.watch(inbox.Inbox.restored, ends_parts=True)),
        ):
            if backend == "trio":
                # Private names, as pytest-trio and trio's own support for Hypothesis: a batch of tasks runs in an order
                # that is drawn from _r, and is sorted before, so that nothing depends on where objects lie in memory.
                import trio._core._run as run

                from anyio_ws.loops import trio_loop

                with (
                    patch.object(run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
                    patch.object(trio_loop, "WATCH_DELAY", 1 / 64),
                    patch.object(trio_loop, "wait_readable", sockets.wait_readable),
                    patch.object(trio_loop, "wait_writable", sockets.wait_writable),
                    patch.object(trio_loop, "notify_closing", sockets.notify_closing),
                ):
                    yield around
            else:
                yield around
    finally:
        rescale({}, None)
        logger.propagate = propagates
        logger.removeHandler(around)


class Failure(AssertionError):
    """A run in which something was untrue."""

    def __init__(self, world: World, backend: str, error: BaseException | None = None) -> None:
        pure = "ANYIO_WS_PURE=1 " if anyio_ws.protocol.IMPLEMENTATION == "python" else ""
        command = (
            f"{pure}PYTHONPATH=tests python -m simulation --loop {backend} --kind {world.kind} --seed {world.seed}"
        )
        broken = "\n  ".join(world.clock.broken[:5]) or repr(error)
        libraries = ", ".join(BACKENDS)
        super().__init__(f"seed {world.seed}:\n  {broken}\nreplay, with {libraries}: {command} --trace")
        self.world = world


def simulate(
    backend: str, seeds: Any, kind: str = "direct", *, done: Callable[[World], object] = lambda world: None
) -> None:
    """Run one world after the other in one event loop.

    Raises:
        Failure: the first in which something was untrue.
    """
    with deterministic(backend) as around:

        async def main() -> None:
            for seed in seeds:
                world = World(seed, kind)
                reseed(backend, seed)
                rescale(world.scale, world.library)
                around.threads.begin(world.dice, world.clock)
                around.entropy.seed(seed)
                before = tasks_living(backend)
                error: BaseException | None = None
                try:
                    await world.run()
                except Exception as exc:
                    error = exc
                world.clock.broken += around.errors
                around.errors.clear()
                if not world.clock.broken and tasks_living(backend) != before:
                    world.clock.broken.append(f"{tasks_living(backend) - before} tasks were left")
                done(world)
                if world.clock.broken or error is not None:
                    raise Failure(world, backend, error) from error

        name, options = virtual_clock(backend)
        anyio.run(main, backend=name, backend_options=options)


SIZES = {
    "JOIN_SIZE": (outbox,),
    "FRAME_PARTS": (core, websocket),
    "FRAGMENT": (core, send_stream),
    "UNFRAGMENTED": (core,),
    "ROUND": (overflow,),
    "DISCARD": (receive_stream,),
    "CHUNK": (receive_stream,),
    "LARGEST": (byte_stream,),
    "INLINE_INPUT": (inflating,),
    "INLINE_OUTPUT": (inflating,),
}
"""Where the library's sizes are."""

USUAL = {name: getattr(modules[0], name) for name, modules in SIZES.items()}
BACKENDS = dict(deflate_backends._backends)


def rescale(scale: dict[str, int], library: str | None) -> None:
    """Set the library's sizes, those that are not given to what they are, and the library that compresses."""
    for name, modules in SIZES.items():
        for module in modules:
            setattr(module, name, scale.get(name, USUAL[name]))
    limits = dict.fromkeys(("fast_limit", "slow_limit"), scale["INLINE"]) if "INLINE" in scale else {}
    names = [name for name in BACKENDS if name in (library, "zlib") or library is None]
    deflate_backends._backends = {name: replace(BACKENDS[name], **limits) for name in names}
    deflate_backends.compressor_pool.cache_clear()


def reseed(backend: str, seed: int) -> None:
    """Let nothing of the runs before be left."""
    sockets.sockets.clear()
    oracle.watched.clear()
    anyio_ws.loops._budget.set(base.Budget())
    if backend == "trio":
        import trio._core._run as run

        run._r.seed(seed)


def tasks_living(backend: str) -> int:
    if backend == "trio":
        import trio

        return trio.lowlevel.current_statistics().tasks_living
    import asyncio

    return len(asyncio.all_tasks())
