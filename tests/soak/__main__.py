"""The conductor: starts the processes, tells them what to do, and judges."""

import argparse
import math
import os
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketListener, TaskGroup

from anyio_ws.protocol import IMPLEMENTATION

from .checks import Audit, Facts, level_faults
from .process import Link

SPARE = 200
"""Descriptors of a process beside those of its connections."""

PER_PROCESS = 5000
"""Connections of a process of clients."""

NEWS_RATE = 500
"""Messages per second that the server sends to everybody, all together."""

PATIENCE = 20
"""Seconds, and a tenth more for each connection, beyond those asked for after which something hangs."""

SHOWN_FAULTS = 20

LOOPS = ["asyncio", "uvloop", "trio"]
LONG = {"connections": 10_000, "seconds": 60, "rounds": 6, "jitter": 5, "open_timeout": 30, "close_timeout": 60}
SHORT = {
    **{"connections": 200, "seconds": 1.5, "rounds": 4, "jitter": 0.3, "churn": 200, "rate": 1000},
    # uvloop may miss a RST; then only these end a connection.
    **{"open_timeout": 2, "close_timeout": 3},
}


class Process:
    """A process of the soak, and the link to it."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", link: Link) -> None:
        self.name = name
        self.popen = popen
        self.link = link
        self._answers, self._receive = anyio.create_memory_object_stream[Facts](math.inf)

    async def listen(self, conductor: "Conductor") -> None:
        """Pass accounts on as they come, and keep answers until they are asked for."""
        with self._answers:
            while True:
                try:
                    line = await self.link.receive()
                except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                if line["what"] == "accounts":
                    conductor.audit.add(line["accounts"], of_server=self.name == "server")
                else:
                    self._answers.send_nowait(line)

    async def answer(self, what: str) -> Facts:
        try:
            line = await self._receive.receive()
        except anyio.EndOfStream:
            raise SystemExit(f"{self.name} has ended; expected {what!r} from it") from None
        assert line["what"] == what, line
        return line

    async def ask(self, what: str, **facts: Any) -> Facts:
        """Give a command that is answered with its own name."""
        await self.link.send(what, **facts)
        return await self.answer(what)


class Conductor:
    """Rounds, and what comes of them.

    Attributes:
        audit: of the round.
        faults: what must not be, of all rounds.
        counts: what was done in all rounds.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.audit = Audit()
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        arguments = self._arguments
        async with anyio.create_task_group() as group:
            (listener,) = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
            assert isinstance(listener, SocketListener)
            processes: list[Process] = []
            try:
                self._server = await self._start("server", listener, arguments.connections, processes, group)
                share = math.ceil(arguments.connections / arguments.processes)
                self._clients = [
                    await self._start("clients", listener, share, processes, group, str(number))
                    for number in range(arguments.processes)
                ]
                with anyio.fail_after(arguments.seconds + PATIENCE + arguments.connections / 10):
                    await self._conduct()
            finally:
                for process in processes:
                    process.popen.kill()
                    process.popen.wait()
                await listener.aclose()
            group.cancel_scope.cancel()

    async def _start(
        self,
        name: str,
        listener: SocketListener,
        connections: int,
        processes: list[Process],
        group: TaskGroup,
        *more: str,
    ) -> Process:
        arguments = self._arguments
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        trace = "trace" if arguments.trace else ""
        popen = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", f"soak.{name}", arguments.loop, str(port), arguments.seed),
                *(str(connections + SPARE), trace, *more),
            ],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        with anyio.move_on_after(30):
            process = Process("".join((name, *more)), popen, Link(await listener.accept()))
            processes.append(process)
            group.start_soon(process.listen, self)
            return process
        popen.kill()
        raise SystemExit(f"{name} did not start")

    async def _conduct(self) -> None:
        arguments = self._arguments
        levels = [await self._figures()]
        steps = [arguments.connections // 10, arguments.connections - arguments.connections // 10]
        ends: list[Facts] = [
            {"how": "drain", "jitter": 0},
            {"how": "leave"},
            {"how": "drain", "jitter": arguments.jitter},
        ]
        for end in ends:
            await self._idle(steps, end)
            levels.append(await self._figures())
        for number in range(arguments.rounds):
            await self._converse(number + 1, ends[number % len(ends)])
            levels.append(await self._figures())
        # Once rounds have ended in every way, nothing must grow any more.
        for process, warm in levels[2 * len(ends)].items():
            self._note(level_faults(process, warm, levels[-1][process], self._bounds))
        for process in levels[0]:
            self._say(f"{process}, before and after each round:")
            for what in ("traced",) if arguments.trace else ("resident", "peak", "allocated", "blocks", "objects"):
                unit, size = ("", 1) if what in ("blocks", "objects") else (" MiB", 2**20)
                figures = ", ".join(f"{level[process][what] / size:.{1 if unit else 0}f}" for level in levels)
                self._say(f"  {what}{unit}: {figures}")
            last = levels[-1][process]
            self._say(f"  at the end {last['descriptors']} descriptors, {last['tasks']} tasks")
        for process in (self._server, *self._clients):
            await process.link.send("quit")
        for process in (self._server, *self._clients):
            if code := await anyio.to_thread.run_sync(process.popen.wait):
                self._note([f"{process.name} ended with the exit code {code}"])

    @property
    def _bounds(self) -> dict[str, int]:
        """By how much the figures of a process may grow while rounds are repeated.

        What is alive must not grow, but for what event loops and Python keep for the next time: some hundreds of
        objects of a kind. The peak depends a little on what happens at the same time.
        """
        if self._arguments.trace:
            return {"descriptors": 0, "tasks": 0, "traced": 2**18}
        connections = self._arguments.connections
        return {
            **{"descriptors": 0, "tasks": 0, "objects": 100 + connections // 5, "blocks": 2000 + connections // 5},
            **{"allocated": 2**20 + 50 * connections, "peak": 2**24 + 2000 * connections},
        }

    def _note(self, faults: list[str]) -> None:
        """Say what must not be, at once: there may be worse to come."""
        for fault in faults[: max(0, SHOWN_FAULTS - len(self.faults))]:
            self._say(f"fault: {fault}")
        self.faults += faults

    async def _figures(self) -> dict[str, Facts]:
        return {process.name: await self._figures_of(process) for process in (self._server, *self._clients)}

    async def _figures_of(self, process: Process) -> Facts:
        figures = await process.ask("figures")
        self._note([f"{process.name} logged: {line}" for line in figures["log"]])
        return figures

    def _say(self, text: str, end: str = "\n") -> None:
        print(f"{self._arguments.loop}: {text}", end=end, flush=True)

    # Rounds

    async def _begin(self, what: str, **facts: Any) -> None:
        self.audit = Audit()
        await self._server.link.send(
            "serve",
            news_pause=self._arguments.connections / NEWS_RATE,
            open_timeout=self._arguments.open_timeout,
            close_timeout=self._arguments.close_timeout,
            compression=self._arguments.compression,
        )
        serving = await self._server.answer("serving")
        for number, process in enumerate(self._clients):
            # The first ones take what does not divide.
            own = {
                key: [_share(part, number, len(self._clients)) for part in value] if key == "steps" else value
                for key, value in facts.items()
            }
            if "connections" in own:
                own["connections"] = _share(own["connections"], number, len(self._clients))
            await process.link.send(
                what,
                port=serving["port"],
                addresses=serving["addresses"],
                close_timeout=self._arguments.close_timeout,
                compression=self._arguments.compression,
                **own,
            )

    async def _end(self, end: Facts) -> tuple[Facts, Counter[str]]:
        """End a round; return what the server says and what the clients have counted."""
        for process in self._clients:
            await process.link.send("end")
        for process in self._clients:
            await process.answer("ready")
        await self._figures_of(self._server)  # meanwhile the server accepts what was dialled before
        await self._server.link.send("end", **end)
        result = await self._server.answer("ended")
        self._note(result["faults"])
        counts: Counter[str] = Counter()
        for process in self._clients:
            ended = await process.answer("ended")
            counts += Counter(ended["counts"])
            self._note(ended["faults"])
        return result, counts

    async def _idle(self, steps: list[int], end: Facts) -> None:
        """Open connections, and end them: each client must be told."""
        before = await self._figures()
        total = 0
        await self._begin("idle", steps=steps)
        for step, count in enumerate(steps):
            seconds = max([(await process.answer("opened"))["seconds"] for process in self._clients])
            total += count
            now = await self._figures()
            if now["server"]["open"] != total:
                self._note([f"{total} connections were opened, the server has {now['server']['open']}"])
            each = (now["server"]["resident"] - before["server"]["resident"]) / total / 1024
            client = sum(now[process.name]["resident"] - before[process.name]["resident"] for process in self._clients)
            self._say(
                f"{count} connections opened in {seconds:.2f} s; {total} idle: {each:.1f} KiB each in the server"
                f" ({client / total / 1024:.1f} in the clients), {now['server']['descriptors']} descriptors"
            )
            if step < len(steps) - 1:
                for process in self._clients:
                    await process.link.send("go on")
        result, counts = await self._end(end)
        self._say(f"{total} ended by {end} in {result['seconds']:.2f} s")
        if counts["idle"] != total or result["accepted"] != total or result["rejected"]:
            self._note([f"{total} idle connections: clients say {counts}, the server says {result}"])

    async def _converse(self, number: int, end: Facts) -> None:
        arguments = self._arguments
        await self._begin(
            "converse",
            connections=arguments.connections,
            mean_seconds=arguments.connections / arguments.churn,
            pause=arguments.connections / arguments.rate,
        )
        seconds = max([(await process.answer("opened"))["seconds"] for process in self._clients])
        await anyio.sleep(arguments.seconds / arguments.rounds)
        open_now = (await self._figures_of(self._server))["open"]
        result, counts = await self._end(end)
        self.audit.compare(all_rough=end["how"] == "leave")
        audited = self.audit.counts
        self._note(self.audit.faults)
        # Some of those that came at the end were refused, some were never accepted.
        certain = audited["conversations"] + counts["refused"] + counts["dialled"]
        made = result["accepted"] + result["rejected"]
        if not certain <= made <= certain + counts["dialled, perhaps"]:
            self._note([f"the server has seen {made} connections, the clients have made {certain}: {end} {counts}"])
        news = result["news_seconds"]
        self._say(
            f"round {number}: {open_now} open, all begun in {seconds:.2f} s, {made} in all,"
            f" {audited['conversations']} conversations, {audited['messages']} messages,"
            f" {audited['bytes'] / 1e6:.0f} MB, {audited['complete directions']} complete directions;"
            f" ended by {end} in {result['seconds']:.2f} s"
        )
        self._say(
            f"  {dict(sorted(audited.items()))} {dict(sorted(counts.items()))} {result['counts']}"
            f" rejected: {result['rejected']}; news took {statistics.median(news) if news else 0:.2f} s (median)"
        )
        self.counts += audited


def _share(count: int, number: int, of: int) -> int:
    return count // of + (number < count % of)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--loop", choices=LOOPS, action="append", help="default: all three")
    parser.add_argument("--short", action="store_true", help="other defaults: some seconds, hundreds of connections")
    parser.add_argument("--connections", type=int, help="at a time; default: 10000")
    parser.add_argument("--seconds", type=float, help="of conversations on each loop; default: 60")
    parser.add_argument("--rounds", type=int, help="of conversations, at least 4; default: 6")
    parser.add_argument("--churn", type=float, help="conversations that end per second; default: connections / 80")
    parser.add_argument("--rate", type=float, help="messages that clients send per second; default: connections / 10")
    parser.add_argument("--jitter", type=float, help="seconds, for every second drain; default: 5")
    parser.add_argument("--open-timeout", type=float, help="the server's, in seconds; default: 30")
    parser.add_argument("--close-timeout", type=float, help="of both sides, in seconds; default: 60")
    parser.add_argument("--compression", action="store_const", const="deflate", help="permessage-deflate")
    parser.add_argument("--processes", type=int, help=f"of clients; default: one for {PER_PROCESS} connections")
    parser.add_argument("--seed", default=str(random.randrange(10**6)), help="repeats what clients do, not when")
    parser.add_argument("--trace", action="store_true", help="measure memory with tracemalloc: few connections only")
    arguments = parser.parse_args()
    for name, value in (SHORT if arguments.short else LONG).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.rounds < 4:
        parser.error("memory is judged by what rounds leave behind when there have been three")
    arguments.churn = arguments.churn or arguments.connections / 80
    arguments.rate = arguments.rate or arguments.connections / 10
    arguments.processes = arguments.processes or math.ceil(arguments.connections / PER_PROCESS)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    faults: list[str] = []
    for loop in arguments.loop or LOOPS:
        what = f"{arguments.connections} connections, compression {arguments.compression}"
        print(f"{loop}: seed {arguments.seed}, codec {IMPLEMENTATION}, {what}", flush=True)
        conductor = Conductor(argparse.Namespace(**{**vars(arguments), "loop": loop}))
        anyio.run(conductor.run)
        faults += conductor.faults
    if faults:
        # Without what differs from one to the next.
        kinds = Counter(re.sub(r"[\d,]+", "#", re.sub(r": \{.*|\(.*", "", fault)) for fault in faults)
        for kind, count in kinds.most_common():
            print(f"{count} x {kind}")
        sys.exit(f"{len(faults)} faults; repeat with --seed {arguments.seed}")
    print("no faults")


if __name__ == "__main__":
    main()
