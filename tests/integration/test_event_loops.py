"""In processes that run another event loop, or that have replaced asyncio's networking: nothing changes."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, ssl, sys
import trustme
from anyio_ws import Server, connect
{imports}

async def echo(ws):
    async for message in ws:
        await ws.send(message)

async def talk(server_ssl, client_ssl):
    async with Server(echo, "127.0.0.1", 0, ssl=server_ssl, max_size=None) as server:
        async with connect(server.url, ssl=client_ssl, max_size=None) as ws:
            for message in ("text", b"binary", b"x" * 1_000_000):
                await ws.send(message)
                assert await ws.receive() == message
            assert await ws.ping() < 10
        assert ws.close_info.code == 1000 and ws.close_info.clean

async def main():
    authority = trustme.CA()
    server_ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_ssl)
    client_ssl = ssl.create_default_context()
    authority.configure_trust(client_ssl)
    await talk(None, None)
    await talk(server_ssl, client_ssl)
    print("talked on", type(asyncio.get_running_loop()).__module__)

{run}
"""


@pytest.mark.parametrize(
    ("packages", "imports", "run", "module"),
    [
        pytest.param(["uvloop"], "import uvloop", "uvloop.run(main())", "uvloop", id="uvloop"),
        pytest.param(
            ["aiofastnet"],
            "import aiofastnet; aiofastnet.install_policy()",
            "asyncio.run(main())",
            "asyncio.unix_events",
            id="aiofastnet",
        ),
        pytest.param(
            ["aiofastnet", "uvloop"],
            "import aiofastnet, uvloop; factory = aiofastnet.loop_factory(uvloop.new_event_loop)",
            "with asyncio.Runner(loop_factory=factory) as runner: runner.run(main())",
            "uvloop",
            id="aiofastnet-on-uvloop",
        ),
    ],
)
def test_the_library_works_unchanged(packages: list[str], imports: str, run: str, module: str) -> None:
    for package in packages:
        pytest.importorskip(package)
    program = PROGRAM.format(imports=imports, run=run)
    # aiofastnet installs an event loop policy, which Python deprecates from 3.14 on.
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    assert result.stdout == f"talked on {module}\n"
