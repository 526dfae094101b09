"""A Unix socket: for a client on the same machine, or a proxy in front."""

from backends import run

from anyio_ws import Server, WebSocket, connect


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def main(path: str) -> None:
    async with Server(echo, uds=path) as server:
        print("listening on", *server.addresses)
        # The URL still says what the Host header and the path are.
        async with connect("ws://localhost/", uds=path) as ws:
            await ws.send("hello")
            print("received", repr(await ws.receive()))


if __name__ == "__main__":
    run(main, path="anyio_ws.sock")
