"""What tests of send_stream() and receive_stream() share."""

import random
from typing import Any

from anyio_ws import WebSocket


def noise(size: int) -> bytes:
    """Bytes that cannot be compressed, always the same."""
    return random.Random(size).randbytes(size)


def join(chunks: list[Any]) -> Any:
    """The message of which these are the chunks; empty bytes if there are none."""
    return (chunks[0][:0] if chunks else b"").join(chunks)


async def received_in_parts(ws: WebSocket, max_size: int | None = None) -> list[Any]:
    """The chunks of the next message."""
    async with ws.receive_stream(max_size) as stream:
        return [chunk async for chunk in stream]
