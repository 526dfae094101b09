"""A producer and a consumer at each end of a connection. The first task that ends, ends the other three."""

from functools import partial

import anyio
from backends import run

from anyio_ws import Server, WebSocket, connect


async def consumer(side: str, ws: WebSocket) -> None:
    try:
        async for text in ws.iter_text():
            print(f"{side} received {text!r}")
    finally:
        print(f"{side}: the consumer has ended")


async def producer(side: str, count: int, ws: WebSocket) -> None:
    try:
        for number in range(1, count + 1):
            await ws.send(f"message {number} of the {side}")
            await anyio.sleep(0.1)
    finally:
        print(f"{side}: the producer has ended")


async def talk(ws: WebSocket) -> None:
    await ws.run(partial(consumer, "server"), partial(producer, "server", 1_000_000))


async def main() -> None:
    async with Server(talk, "localhost", 0) as server:
        async with connect(server.url) as ws:
            await ws.run(partial(consumer, "client"), partial(producer, "client", 3))
        print("the connection has ended:", ws.close_info)


if __name__ == "__main__":
    run(main)
