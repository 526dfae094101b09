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

from anyio_ws import Server
from anyio_ws.protocol import IMPLEMENTATION

from .roles import echo, run_client
from .verdicts import EXCLUDED, MAX_SIZE, wrong

kosoku = pytest.importorskip("kosoku", reason="needs kosoku (the dependency group `conformance`)")

pytestmark = [pytest.mark.real_time, pytest.mark.autobahn, pytest.mark.timeout(300)]


def check(results: Iterable[Any]) -> None:
    assert not wrong({result.case_id: (result.behavior.value, result.behavior_close.value) for result in results})


def test_the_codec_is_the_one_that_was_asked_for() -> None:
    if os.environ.get("ANYIO_WS_PURE", "0") not in ("", "0"):
        assert IMPLEMENTATION == "python"
    elif "ANYIO_WS_NEED_C" in os.environ:
        assert IMPLEMENTATION == "c"


async def fuzz_server(url: str) -> list[Any]:
    try:
        return await kosoku.run_fuzzingclient(url, None, EXCLUDED, concurrency=2)
    except kosoku.FailureError as failure:
        return failure.results


async def fuzz_client(port: SimpleQueue[int]) -> list[Any]:
    async with kosoku.run_fuzzingserver(None, EXCLUDED, port=0) as server:
        port.put(server.port)
        try:
            return await server.get_result()
        except kosoku.FailureError as failure:
            return failure.results


async def test_server_passes_every_case() -> None:
    async with Server(echo, "127.0.0.1", 0, max_size=MAX_SIZE) as server:
        results = await anyio.to_thread.run_sync(asyncio.run, fuzz_server(server.url), abandon_on_cancel=True)
    check(results)


async def test_client_passes_every_case() -> None:
    port: SimpleQueue[int] = SimpleQueue()
    results: list[Any] = []

    async def fuzz() -> None:
        results.extend(await anyio.to_thread.run_sync(asyncio.run, fuzz_client(port), abandon_on_cancel=True))

    async with anyio.create_task_group() as tg:
        tg.start_soon(fuzz)
        await run_client(f"ws://127.0.0.1:{await anyio.to_thread.run_sync(port.get, abandon_on_cancel=True)}")
    check(results)
