"""A program under test, in a process of its own, which says itself what it has cost.

A thread of that process waits at its standard input for questions; it costs nothing while there are none. So this
needs neither a package nor a special file of some system, and counts all that the process does, in the kernel too.
"""

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from .programs import PROGRAMS, Program

ROOT = Path(__file__).parents[1]


class Failed(Exception):
    """The program under test did not do what it should."""


# In the process under test


def resident_memory() -> float:
    """Bytes of memory that this process has, or where the system does not say that, has had at most."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    elif sys.platform == "win32":  # noqa: RET505  # a type checker takes what follows no branch for unreachable
        return math.nan
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


QUESTIONS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "memory": resident_memory}


def answer_questions() -> None:
    """Answer the questions that come on standard input, and end this process when no more can come."""

    def answer() -> None:
        for line in sys.stdin:
            print(QUESTIONS[line.strip()](), flush=True)
        os._exit(0)

    threading.Thread(target=answer, daemon=True).start()


def main(name: str, loop: str, role: str, url: str) -> None:
    """Say on which port there is a server; then serve, or be a client."""
    (program,) = [program for program in PROGRAMS if (program.name, program.loop) == (name, loop)]
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    answer_questions()

    async def forever() -> None:
        if role == "server":
            await program.serve(listener)
        while True:  # a connection for each figure
            await program.connect(url)

    runner: Any = import_module(loop)
    if loop == "trio":
        runner.run(forever)
    else:
        runner.run(forever())


# In the process that measures it


class Measured:
    """A running program: `with Measured(program, "server", limit=60) as server: ...`.

    Args:
        program: what to run.
        role: "server" or "client".
        url: where a client is to connect to.
        limit: seconds after which it is killed. That ends every wait for it.
    """

    def __init__(self, program: Program, role: Literal["server", "client"], url: str = "", *, limit: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measured", program.name, program.loop, role, url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **program.environment},
        )
        if sys.platform == "linux":
            os.sched_setaffinity(self._process.pid, {CPUS[0]})
        self._timer = threading.Timer(limit, self._process.kill)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        self.port = int(self._line())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if exc:  # if it has failed too, let it say why
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        self._process.kill()
        self._process.communicate()

    def cpu(self) -> float:
        """Seconds of CPU time, user's and system's, that it has used."""
        return self._ask("cpu")

    def memory(self) -> float:
        """Bytes of resident memory."""
        return self._ask("memory")

    def _ask(self, question: str) -> float:
        assert self._process.stdin
        try:
            print(question, file=self._process.stdin, flush=True)
        except OSError:
            raise Failed("it has ended, or taken too long") from None
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return line
        raise Failed("it has ended, or taken too long")


# The load generator and the program under test have a processor each, where the system lets us say so. First and last:
# neighbours may be two halves of one core.
CPUS = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def pin() -> None:
    """Stay on the load generator's processor."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {CPUS[-1]})


if __name__ == "__main__":
    main(*sys.argv[1:])
