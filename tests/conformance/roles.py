"""What our two sides do in a test case: return each message."""

from typing import Any

from anyio_ws import ConnectionClosed, WebSocket, connect

from .verdicts import MAX_SIZE


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        # Always compressed, where that was agreed: kosoku cannot take a text that is not in those cases.
        await ws.send(message, compress=True)


async def run_client(url: str, **options: Any) -> None:
    """Go through all cases of Autobahn's server, and have it write its report."""
    async with connect(f"{url}/getCaseCount") as ws:
        count = int(await ws.receive_text())
    for case in range(1, count + 1):
        async with connect(f"{url}/runCase?case={case}&agent=anyio_ws", max_size=MAX_SIZE, **options) as ws:
            try:
                await echo(ws)
            except ConnectionClosed:
                pass  # most cases end in a violation
    async with connect(f"{url}/updateReports?agent=anyio_ws") as ws:
        await ws.wait_closed()
