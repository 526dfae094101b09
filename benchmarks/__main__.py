"""`python -m benchmarks` measures everything that is installed, in about three minutes; `-h` says how to do less."""

import argparse
import platform
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from . import codec, load
from .measured import Failed, Measured, pin
from .programs import LOOPS, PROGRAMS, Program
from .report import Table


@dataclass(frozen=True)
class Scenario:
    """Messages that go back and forth.

    Attributes:
        name: what the tables call it.
        exchange: what is sent, and what comes back.
        window: requests in flight on each connection.
        connections: how many at once.
        path: where the server does this.
    """

    name: str
    exchange: load.Exchange
    window: int = 1
    connections: int = 1
    path: str = "/"


PING_PONG = Scenario("16 B", load.echo(16))
ON_ONE_CONNECTION = [
    PING_PONG,
    Scenario("1 KiB", load.echo(1024)),
    Scenario("16 B, 32 in flight", load.echo(16), window=32),
    Scenario("1 KiB, 32 in flight", load.echo(1024), window=32),
    Scenario("64 KiB", load.echo(2**16)),
    Scenario("1 MiB", load.echo(2**20)),
]
ON_SERVERS = [
    *ON_ONE_CONNECTION,
    Scenario("16 B, 100 connections", load.echo(16), connections=100),
    Scenario("16 B, sent in bursts", load.burst(1000), path="/burst"),
]


def measure_run(
    process: Measured, connections: Sequence[load.Connection], scenario: Scenario, seconds: float
) -> tuple[float, load.Run]:
    """Return the microseconds of CPU time a message, and the run."""
    load.check(connections[0], scenario.exchange)
    load.run(connections, scenario.exchange, scenario.window, seconds / 4)  # to warm up
    before = process.cpu()
    run = load.run(connections, scenario.exchange, scenario.window, seconds)
    return (process.cpu() - before) / run.messages * 1e6, run


def measure_server(table: Table, seconds: float, program: Program) -> None:
    """Echo and bursts; opening and closing connections."""
    with Measured(program, "server", limit=30 + 30 * seconds) as server:
        for scenario in ON_SERVERS:
            connections = [load.connect(server.port, scenario.path) for _ in range(scenario.connections)]
            cost, run = measure_run(server, connections, scenario, seconds)
            table.add(f"server: {scenario.name}", program.name, cost)
            if scenario is PING_PONG:
                round_trips = sorted(run.round_trips)
                for label, part in ("median", 0.5), ("99 %", 0.99):
                    figure = round_trips[int(part * len(round_trips))] * 1e6
                    table.add(f"round trip of {scenario.name}, {label}", program.name, figure)
            for connection in connections:
                connection.close()
        before = server.cpu()
        count = load.open_and_close(server.port, seconds)
        table.add("server: open and close", program.name, (server.cpu() - before) / count * 1e6)


def measure_client(table: Table, seconds: float, program: Program) -> None:
    """Echo, where the load generator is the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        with Measured(program, "client", url, limit=30 + 30 * seconds) as client:
            for scenario in ON_ONE_CONNECTION:
                connection = load.accept(listener)
                cost, _ = measure_run(client, [connection], scenario, seconds)
                table.add(f"client: {scenario.name}", program.name, cost)
                connection.close()


def measure_memory(table: Table, connections: int, program: Program) -> None:
    """Connections that have exchanged a message and are idle, in a process that has done nothing else."""
    with Measured(program, "server", limit=60) as server:
        # The first connection pays for what is made once.
        opened = [load.connect(server.port)]
        load.check(opened[0], PING_PONG.exchange)
        before = server.memory()
        for _ in range(connections):
            opened.append(load.connect(server.port))
            load.check(opened[-1], PING_PONG.exchange)
        growth = server.memory() - before
    for connection in opened:
        connection.socket.close()
    table.add("server: idle connection, KiB", program.name, growth / connections / 1024)


def measure_loop(table: Table, programs: Sequence[Program], arguments: argparse.Namespace) -> None:
    """Measure the programs of an event loop in turn, every second time in reverse order."""
    measures: dict[str, tuple[int, Callable[[Program], None]]] = {
        "servers": (arguments.repetitions, partial(measure_server, table, arguments.seconds)),
        "memory": (1, partial(measure_memory, table, arguments.connections)),
        "clients": (arguments.repetitions, partial(measure_client, table, arguments.seconds)),
    }
    for what, (repetitions, measure) in measures.items():
        for repetition in range(repetitions if what in arguments.what else 0):
            for program in programs if repetition % 2 == 0 else programs[::-1]:
                progress(f"{what}, {repetition + 1} of {repetitions}: {program.name} on {program.loop}")
                try:
                    measure(program)
                except (Failed, OSError) as exc:
                    print(f"failed: {what}, {program.name} on {program.loop}: {exc}")
    progress("")


def progress(text: str) -> None:
    """Show what is going on, where someone looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = list(dict.fromkeys(program.name for program in PROGRAMS))
    whats = ["codec", "servers", "memory", "clients"]
    # Python 3.11 compares no argument at all with the choices.
    parser.add_argument(
        "what", nargs="*", metavar=f"{{{','.join(whats)}}}", help="what to measure: all, if there is none"
    )
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--programs", nargs="+", choices=names, default=names)
    parser.add_argument("--repetitions", type=int, default=3, help="of which the table has the medians (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each figure (%(default)s), at most 10")
    parser.add_argument("--connections", type=int, default=1000, help="that are idle (%(default)s)")
    arguments = parser.parse_args()
    if not 0 < arguments.seconds <= 10:
        parser.error("--seconds: expected more than 0, and at most 10, lest a library sends a Ping")
    for what in arguments.what:
        if what not in whats:
            parser.error(f"{what} is not one of {', '.join(whats)}")
    arguments.what = arguments.what or whats
    return arguments


def allow_connections(count: int) -> None:
    """Ask the system for as many open files as this takes; the programs under test get the same."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = count + 100  # the rest of what a process has open
        if hard != resource.RLIM_INFINITY and hard < needed:
            sys.exit(f"{count} connections need {needed} open files, and the system allows {hard}: see --connections")
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def main() -> None:
    arguments = parse_arguments()
    allow_connections(arguments.connections)
    pin()
    chosen = [program for program in PROGRAMS if program.name in arguments.programs and program.loop in arguments.loops]
    for program in chosen:
        if module := program.missing():
            print(f"skipped: {program.name} on {program.loop}, for want of {module}")
    chosen = [program for program in chosen if not program.missing()]
    packages = sorted({name for program in chosen for name in (program.package, program.loop) if name != "asyncio"})
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    print(f"Medians of {arguments.repetitions}; in parentheses the ratio to websockets, or to the codec in Python")
    if "codec" in arguments.what:
        print(f"\n{codec.measure(arguments.repetitions, arguments.seconds / 4)}", flush=True)
    for loop in arguments.loops:
        programs = [program for program in chosen if program.loop == loop]
        table = Table(f"{loop}, µs of CPU time", [program.name for program in programs], base="websockets")
        measure_loop(table, programs, arguments)
        print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main()
