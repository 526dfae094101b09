"""A client that would run for ever, and a server: SIGTERM ends both cleanly. Try `kill <pid>`, or Ctrl-C."""

import os
import signal

import anyio
from backends import run

from anyio_ws import Server, WebSocket, connect


async def echo(ws: WebSocket) -> None:
    print("server: a client has connected")
    async for message in ws:
        await ws.send(message)
    print("server: a connection has ended:", ws.close_info)


async def client(url: str) -> None:
    async with connect(url) as ws:
        while True:
            await ws.send("still there?")
            print("client: received", repr(await ws.receive()))
            await anyio.sleep(1)


async def main(port: int) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with Server(echo, "localhost", port) as server:
            print(f"process {os.getpid()} is listening on {server.url}")
            async with anyio.create_task_group() as clients:
                clients.start_soon(client, server.url)
                async for signum in signals:
                    print("received", signum.name)
                    break
                clients.cancel_scope.cancel()  # how a client is ended: its block says 1001 to the server
            await server.drain(grace=10)  # says 1001 to all other clients, and waits for the handlers
    print("nothing is left")


if __name__ == "__main__":
    run(main, port=8765)
