"""Run many seeds, or one with its trace: `PYTHONPATH=tests python -m simulation --help`."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator

from anyio_ws.protocol import IMPLEMENTATION

from .harness import Failure, simulate
from .world import KINDS, World


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m simulation")
    parser.add_argument("--loop", choices=["asyncio", "trio", "both"], default="both")
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--seed", type=int, help="the first seed, or the only one if nothing says how many")
    parser.add_argument("--seeds", type=int, help="how many, of each kind on each loop")
    parser.add_argument("--seconds", type=float, help="how long, for each kind on each loop")
    parser.add_argument("--trace", action="store_true", help="print what happened in the last run")
    args = parser.parse_args()
    first = int(time.time()) * 1000 if args.seed is None else args.seed
    many = args.seeds or (10**9 if args.seconds else 1 if args.seed is not None else 500)
    kinds = KINDS if args.kind == "all" else [args.kind]
    failed = False
    for loop in ["asyncio", "trio"] if args.loop == "both" else [args.loop]:
        for kind in kinds:
            failed |= not run(loop, kind, first, many, args.seconds, args.trace)
    sys.exit(failed)


def run(loop: str, kind: str, first: int, many: int, seconds: float | None, trace: bool) -> bool:
    """Run the seeds; say how it went."""
    began = time.perf_counter()
    steps = count = 0
    world: World | None = None

    def seeds() -> Iterator[int]:
        for seed in itertools.islice(itertools.count(first), many):
            if seconds is not None and time.perf_counter() - began > seconds:
                return
            yield seed

    def done(ended: World) -> None:
        nonlocal steps, count, world
        steps += len(ended.dice.events)
        count += 1
        world = ended

    failure: Failure | None = None
    try:
        simulate(loop, seeds(), kind, done=done)
    except Failure as exc:
        failure = exc
    except ExceptionGroup as group:
        failure = group.exceptions[0]
    if trace and world is not None:
        for when, *event in world.dice.events:
            print(f"{when:12.6f}", *event)
    took = time.perf_counter() - began
    print(
        f"{loop}, {kind}, codec in {IMPLEMENTATION}: {count:,} seeds from {first}, {steps:,} steps in {took:.1f} s, "
        f"{steps / took:,.0f} a second, {1000 * took / max(count, 1):.1f} ms a seed",
        flush=True,
    )
    if failure is not None:
        print(failure)
    return failure is None


if __name__ == "__main__":
    main()
