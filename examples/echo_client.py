"""A client of echo_server.py, with the two errors that a client has to think of."""

import sys

from backends import run

from anyio_ws import ConnectionClosed, HandshakeError, connect


async def main(port: int) -> None:
    try:
        async with connect(f"ws://localhost:{port}/") as ws:
            await ws.send("hello")
            print("received", repr(await ws.receive()))
            print(f"the round trip took {await ws.ping() * 1000:.1f} ms")
    except HandshakeError as exc:  # refused, DNS, TLS, timeout, no WebSocket server: it never opened
        sys.exit(f"could not connect: {exc}")
    except ConnectionClosed as exc:  # it was open, and has ended
        sys.exit(f"the connection has ended: {exc}")


if __name__ == "__main__":
    run(main, port=8765)
