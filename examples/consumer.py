"""A client that consumes: it prints what producer.py, or registration.py, sends."""

from backends import run

from anyio_ws import connect


async def main(port: int) -> None:
    async with connect(f"ws://localhost:{port}/") as ws:
        async for message in ws:  # ends when the connection ends in good order, and raises otherwise
            print("received", repr(message))
    print("the connection has ended:", ws.close_info)


if __name__ == "__main__":
    run(main, port=8765)
