"""What all processes of the soak need: commands, figures of the process, and what was logged."""

import ctypes
import faulthandler
import gc
import json
import logging
import os
import resource
import signal
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream

MAX_LINE = 2**26
PAGE = os.sysconf("SC_PAGE_SIZE")
LIBC = ctypes.CDLL(None)


class Mallinfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


class Link:
    """Commands, answers and accounts: lines of JSON over a byte stream."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffered = BufferedByteReceiveStream(stream)
        self._lock = anyio.Lock()

    async def send(self, what: str, **facts: Any) -> None:
        async with self._lock:
            await self._stream.send(json.dumps({"what": what, **facts}).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(await self._buffered.receive_until(b"\n", MAX_LINE))
        return line


class Log(logging.Handler):
    """What was logged at WARNING or above, by anybody, and what could not be raised."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger().addHandler(self)
        sys.unraisablehook = lambda what: self.lines.append(f"unraisable: {what.exc_value!r} in {what.object!r}")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {self.format(record)}")

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


def allow_descriptors(count: int) -> str | None:
    """Raise the limit of open descriptors; return why that does not suffice, if so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        if wanted < count:
            return f"RLIMIT_NOFILE is {hard:,}, and {count:,} descriptors are needed: raise it, or --processes"
    return None


def figures() -> dict[str, int]:
    """What has to come back to its level.

    What is alive is in `objects` (those that the garbage collector knows), `blocks` (up to 512 bytes, of Python's own
    allocator) and `allocated` (bytes, of malloc, for all that is larger). `resident` is what of this process is in
    memory, and so has what is free, but lies between what is not: both allocators give back only pages, and Python's
    only a whole MiB, in which nothing is alive. How much that is, is chance, up to the `peak`: the most that was ever
    resident. What is free is used again, so the peak does not rise when the same is repeated.
    """
    gc.collect()
    if not tracemalloc.is_tracing():
        LIBC.malloc_trim(0)
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * PAGE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    LIBC.mallinfo2.restype = Mallinfo
    malloc = LIBC.mallinfo2()
    return {
        "resident": resident,
        "peak": peak,
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "allocated": malloc.uordblks + malloc.hblkhd,
        "traced": tracemalloc.get_traced_memory()[0],
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,
        "tasks": len(anyio.get_running_tasks()),
    }


def run(loop: str, port: int, function: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run a process of the soak: `function(link, log, ...)`, under asyncio, uvloop or trio."""
    faulthandler.register(signal.SIGUSR1)
    log = Log()

    async def main() -> None:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await function(Link(stream), log, *args)

    if loop == "trio":
        anyio.run(main, backend="trio")
    else:
        anyio.run(main, backend_options={"use_uvloop": loop == "uvloop"})
