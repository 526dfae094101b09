"""A user's suite on pytest-trio: fixtures, `nursery.start`, its autojump clock, and our tools for tests."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trio")
pytest.importorskip("pytest_trio")

SUITE = """
from functools import partial

import pytest
import trio

from anyio_ws import ConnectionClosed, WebSocket, connect, serve
from anyio_ws.testing import connected_pair


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


@pytest.fixture
async def server(nursery):
    return await nursery.start(partial(serve, echo, "127.0.0.1", 0))


@pytest.fixture
async def client(server):
    async with connect(server.url) as ws:
        yield ws


async def test_a_server_in_the_nursery_of_the_test_and_a_client_in_a_fixture(client):
    await client.send("hello")
    assert await client.receive() == "hello"


async def test_the_end_of_the_test_cancels_the_server(server):
    assert server.port


async def test_an_hour_takes_a_millisecond(autojump_clock):
    async with connected_pair(ping_interval=20) as (client, _):
        await trio.sleep(3600)
        assert client.close_info is None


async def test_a_nursery_around_both_ends(nursery):
    async with connected_pair() as (client, server):
        nursery.start_soon(echo, server)
        await client.send(b"ping")
        assert await client.receive() == b"ping"
        await client.aclose()
        with pytest.raises(ConnectionClosed):
            await client.receive()
"""


def test_a_suite_on_pytest_trio_passes(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr
