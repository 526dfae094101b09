"""Autobahn's own testsuite, `wstest`, on our server and on our client, each on every event loop.

`nox -s wstest -- --wstest PATH` runs it; it needs `pip install autobahntestsuite` for CPython 2.7. By day, `kosoku`
drives the same cases in a fraction of the time (test_autobahn.py); before a release this is the reference.
`--parts base deflate deflate-single` adds permessage-deflate, which takes ten minutes for each role and loop.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import anyio

from anyio_ws import Deflate, Server
from anyio_ws.protocol import IMPLEMENTATION

from .roles import echo, run_client
from .verdicts import BASE, DEFLATE, DEFLATE_SINGLE, MAX_SIZE, Part, Verdicts, tally, wrong

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
ROLES = ["server", "client"]
PARTS: dict[str, tuple[Part, dict[str, Any]]] = {
    "base": (BASE, {}),
    "deflate": (DEFLATE, {"compression": Deflate()}),
    "deflate-single": (DEFLATE_SINGLE, {"compression": Deflate(client_no_context_takeover=True)}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wstest", default=os.environ.get("WSTEST") or shutil.which("wstest"))
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=ROLES)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["base"])
    options = parser.parse_args()
    if options.wstest is None:
        parser.error("no wstest: name it with --wstest PATH, in the environment's WSTEST, or have it on PATH")
    failed = False
    for role, loop, part in product(options.roles, options.loops, options.parts):
        start = time.monotonic()
        verdicts = run(options.wstest, role, loop, *PARTS[part])
        duration = time.monotonic() - start
        print(f"{part}, {role} on {loop}, codec in {IMPLEMENTATION}: {tally(verdicts)} ({duration:.0f} s)", flush=True)
        for fault in wrong(verdicts, PARTS[part][0]):
            failed = True
            print(f"    {fault}", flush=True)
    sys.exit(failed)


def run(wstest: str, role: str, loop: str, part: Part, options: dict[str, Any]) -> Verdicts:
    backend, backend_options = LOOPS[loop]
    with tempfile.TemporaryDirectory() as directory:
        play = {"server": play_server, "client": play_client}[role]
        anyio.run(play, wstest, Path(directory), part, options, backend=backend, backend_options=backend_options)
        (results,) = json.loads((Path(directory) / "index.json").read_text()).values()
    return {case: (result["behavior"], result["behaviorClose"]) for case, result in results.items()}


def command(wstest: str, mode: str, directory: Path, part: Part, **spec: object) -> list[str]:
    path = directory / "spec.json"
    spec |= {
        "outdir": str(directory),
        "cases": part.selected,
        "exclude-cases": part.excluded,
        "exclude-agent-cases": {},
    }
    path.write_text(json.dumps(spec))
    # Without a web server of its own, which two at a time could not have.
    return [wstest, "-m", mode, "-s", str(path), "--webport", "0"]


async def play_server(wstest: str, directory: Path, part: Part, options: dict[str, Any]) -> None:
    async with Server(echo, "127.0.0.1", 0, max_size=MAX_SIZE, **options) as server:
        servers = [{"agent": "anyio_ws", "url": server.url}]
        await anyio.run_process(command(wstest, "fuzzingclient", directory, part, servers=servers), cwd=directory)


async def play_client(wstest: str, directory: Path, part: Part, options: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    server = await anyio.open_process(
        command(wstest, "fuzzingserver", directory, part, url=url),
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=None,
    )
    async with server:
        try:
            await until_it_listens(port)
            await run_client(url, **options)
        finally:
            server.terminate()


async def until_it_listens(port: int) -> None:
    with anyio.fail_after(30):
        while True:
            try:
                async with await anyio.connect_tcp("127.0.0.1", port):
                    return
            except OSError:
                await anyio.sleep(0.1)


if __name__ == "__main__":
    main()
