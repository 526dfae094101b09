"""Autobahn's test cases, groups 1 to 10, on our server and on our client, each on every event loop.

`kosoku` plays the other side. It runs in a thread with an asyncio loop of its own, which is why ours may be any.
"""

import asyncio
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any

import anyio.to_thread
import pytest

from anyio_ws import ConnectionClosed, Server, WebSocket, connect

kosoku = pytest.importorskip("kosoku", reason="needs kosoku (the dependency group `conformance`)")

pytestmark = [pytest.mark.real_time, pytest.mark.autobahn, pytest.mark.timeout(300)]

# Groups 12 and 13 are of permessage-deflate.
EXCLUDED = ["12.*", "13.*"]
CASES = 301
# What RFC 6455 leaves open: a Close that overtakes a large echo, and the close codes from 5000 on.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}
# The largest message of the cases is 16 MiB.
MAX_SIZE = 2**25


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


def check(results: Iterable[Any]) -> None:
    verdicts = {result.case_id: (result.behavior.value, result.behavior_close.value) for result in results}
    informational = {case for case, verdict in verdicts.items() if "INFORMATIONAL" in verdict}
    bad = {
        case: verdict
        for case, verdict in verdicts.items()
        if not set(verdict) <= ({"OK", "INFORMATIONAL"} if case in INFORMATIONAL else {"OK"})
    }
    assert not bad, f"case: (verdict on the messages, verdict on the close): {bad}"
    assert informational == INFORMATIONAL
    assert len(verdicts) == CASES


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
        url = f"ws://127.0.0.1:{await anyio.to_thread.run_sync(port.get, abandon_on_cancel=True)}"
        async with connect(f"{url}/getCaseCount") as ws:
            count = int(await ws.receive_text())
        for case in range(1, count + 1):
            async with connect(f"{url}/runCase?case={case}&agent=anyio_ws", max_size=MAX_SIZE) as ws:
                try:
                    await echo(ws)
                except ConnectionClosed:
                    pass  # most cases end in a violation
        async with connect(f"{url}/updateReports?agent=anyio_ws") as ws:
            await ws.wait_closed()
    check(results)
