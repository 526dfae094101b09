"""Autobahn's test cases on our server and on our client, each on every event loop.

`kosoku` plays the other side. It runs in a thread with an asyncio loop of its own, which is why ours may be any.
`nox -s autobahn` runs this with the codec in C and with the one in Python.
"""

import asyncio
import os
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any

import anyio.to_thread
import pytest

from anyio_ws import Deflate, Server
from anyio_ws.protocol import IMPLEMENTATION

from .roles import echo, run_client
from .verdicts import BASE, DEFLATE, DEFLATE_SINGLE, MAX_SIZE, Part, sample, wrong

kosoku = pytest.importorskip("kosoku", reason="needs kosoku (the dependency group `conformance`)")

pytestmark = [pytest.mark.real_time, pytest.mark.autobahn, pytest.mark.timeout(300)]


def check(results: Iterable[Any], part: Part) -> None:
    verdicts = {result.case_id: (result.behavior.value, result.behavior_close.value) for result in results}
    assert not wrong(verdicts, part)


def test_the_codec_is_the_one_that_was_asked_for() -> None:
    if os.environ.get("ANYIO_WS_PURE", "0") not in ("", "0"):
        assert IMPLEMENTATION == "python"
    elif "ANYIO_WS_NEED_C" in os.environ:
        assert IMPLEMENTATION == "c"


async def fuzz_server(url: str, part: Part, concurrency: int) -> list[Any]:
    try:
        return await kosoku.run_fuzzingclient(url, part.selected, part.excluded, concurrency=concurrency)
    except kosoku.FailureError as failure:
        return failure.results


async def fuzz_client(port: SimpleQueue[int], part: Part) -> list[Any]:
    async with kosoku.run_fuzzingserver(part.selected, part.excluded, port=0) as server:
        port.put(server.port)
        try:
            return await server.get_result()
        except kosoku.FailureError as failure:
            return failure.results


async def play_server(part: Part, *, concurrency: int, **options: Any) -> None:
    async with Server(echo, "127.0.0.1", 0, max_size=MAX_SIZE, **options) as server:
        results = await anyio.to_thread.run_sync(
            lambda: asyncio.run(fuzz_server(server.url, part, concurrency)), abandon_on_cancel=True
        )
    check(results, part)


async def play_client(part: Part, **options: Any) -> None:
    port: SimpleQueue[int] = SimpleQueue()
    results: list[Any] = []

    async def fuzz() -> None:
        results.extend(
            await anyio.to_thread.run_sync(lambda: asyncio.run(fuzz_client(port, part)), abandon_on_cancel=True)
        )

    async with anyio.create_task_group() as tg:
        tg.start_soon(fuzz)
        url = f"ws://127.0.0.1:{await anyio.to_thread.run_sync(port.get, abandon_on_cancel=True)}"
        await run_client(url, **options)
    check(results, part)


async def test_server_passes_every_case() -> None:
    await play_server(BASE, concurrency=2)


async def test_client_passes_every_case() -> None:
    await play_client(BASE)


# permessage-deflate: one case of each set, unless all are asked for, which take half an hour.
IS_ALL = "ANYIO_WS_AUTOBAHN_ALL" in os.environ
DEFLATE_PARTS = [part if IS_ALL else sample(part) for part in (DEFLATE, DEFLATE_SINGLE)]
# With more cases at once, kosoku's limit of 20 s for a read expires on a busy machine.
slow = pytest.mark.timeout(1800)
# kosoku leaves the files open that it reads for these cases.
unclosed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@slow
@unclosed
@pytest.mark.parametrize("part", DEFLATE_PARTS, ids=["taking-over", "single"])
async def test_server_passes_every_case_of_deflate(part: Part) -> None:
    await play_server(part, concurrency=1, compression=Deflate())


@slow
@unclosed
@pytest.mark.parametrize("single", [False, True], ids=["taking-over", "single"])
async def test_client_passes_every_case_of_deflate(single: bool) -> None:
    await play_client(DEFLATE_PARTS[single], compression=Deflate(client_no_context_takeover=single))
