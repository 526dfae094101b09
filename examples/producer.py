"""A server that produces: it sends numbers to everyone who connects. See consumer.py for the other end."""

from itertools import count

import anyio
from backends import run

from anyio_ws import Server, WebSocket


async def producer(ws: WebSocket) -> None:
    # When the client is gone, send() raises ConnectionClosed. That ends the handler, and is no error of it.
    for number in count(1):
        await ws.send(f"number {number}")
        await anyio.sleep(0.1)


async def main(port: int) -> None:
    async with Server(producer, "localhost", port) as server:
        print("listening on", server.url)
        await server.wait_closed()


if __name__ == "__main__":
    run(main, port=8765)
