"""A server that sends every message back."""

from backends import run

from anyio_ws import Server, WebSocket


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def main(port: int) -> None:
    async with Server(echo, "localhost", port) as server:
        print("listening on", server.url)
        await server.wait_closed()


if __name__ == "__main__":
    run(main, port=8765)
