"""The set of connected clients: everyone is told how many they are. Clients: consumer.py, several of them."""

from contextlib import suppress

import anyio
from backends import run

from anyio_ws import ConnectionClosed, Server, WebSocket

clients: set[WebSocket] = set()


async def tell(ws: WebSocket, text: str) -> None:
    # One who does not read must not keep the others waiting for ever, and one who is gone is told nothing.
    with suppress(ConnectionClosed), anyio.move_on_after(1):
        await ws.send(text)


async def tell_everyone() -> None:
    async with anyio.create_task_group() as tasks:
        for ws in clients:
            tasks.start_soon(tell, ws, f"clients: {len(clients)}")


async def handler(ws: WebSocket) -> None:
    clients.add(ws)
    try:
        await tell_everyone()
        async for _ in ws:  # until the client is gone; what it says is ignored
            pass
    finally:
        clients.remove(ws)
        await tell_everyone()


async def main(port: int) -> None:
    async with Server(handler, "localhost", port) as server:
        print("listening on", server.url)
        await server.wait_closed()


if __name__ == "__main__":
    run(main, port=8765)
