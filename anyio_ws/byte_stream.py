"""A WebSocket as a stream of bytes: binary messages, whose boundaries mean nothing."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from anyio import ResourceGuard
from anyio.abc import ByteStream

if TYPE_CHECKING:
    from .websocket import WebSocket

LARGEST = 2**20
"""Bytes of the largest message sent: the `max_size` that we, and others too, have by default."""


class MessageByteStream(ByteStream):
    """What `WebSocket.as_byte_stream` returns.

    Args:
        ws: the connection.
        receive: receives a binary message from it, and refuses a text.
        checkpoint: what begins a call that may complete without waiting.
    """

    def __init__(
        self,
        ws: "WebSocket",
        receive: Callable[[], Awaitable[bytes]],
        checkpoint: Callable[[], Awaitable[None]],
    ) -> None:
        self._ws = ws
        self._receive = receive
        self._checkpoint = checkpoint
        self._rest = memoryview(b"")  # of the latest message
        self._receiving = ResourceGuard("receiving from")
        self._sending = ResourceGuard("sending to")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to max_bytes bytes: what is left of a message, or the next one.

        Raises:
            anyio.EndOfStream: the connection has ended in good order (a ConnectionClosedOK).
            anyio.BrokenResourceError: it has ended in any other way, or a text message came, so that it was closed with
                1003 (a ConnectionClosedError).
            anyio.BusyResourceError: another task is receiving.
            ValueError: max_bytes is not positive.

        Cancellation: safe; no byte is lost.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, not {max_bytes!r}")
        with self._receiving:
            if self._rest:
                await self._checkpoint()
            # Nothing suspends from here to the end but waiting for a message, before which there is nothing to lose.
            while not self._rest:
                message = await self._receive()
                if 0 < len(message) <= max_bytes:
                    return message
                self._rest = memoryview(message)
            part = bytes(self._rest[:max_bytes])
            self._rest = self._rest[max_bytes:]
            return part

    async def send(self, item: bytes) -> None:
        """Send bytes in one binary message, or in one for each MiB; nothing if there are none.

        Raises:
            ConnectionClosedOK, ConnectionClosedError: as `WebSocket.send`.
            TypeError: these are no bytes.
            anyio.BusyResourceError: another task is sending.

        Cancellation: as `WebSocket.send`, for each MiB.
        """
        try:
            view = memoryview(item).cast("B")
        except TypeError:
            raise TypeError(f"a byte stream sends bytes-like, not {type(item).__name__}") from None
        with self._sending:
            if not view:
                await self._ws.flush()  # which raises if nothing can be sent
            elif len(view) <= LARGEST:
                await self._ws.send(item)
            else:
                for start in range(0, len(view), LARGEST):
                    await self._ws.send(view[start : start + LARGEST])

    async def send_eof(self) -> None:
        """Not implemented: a WebSocket closes in both directions.

        TLS on top of it has an end of its own in each direction (close_notify), which its `aclose` sends.
        """
        raise NotImplementedError("a WebSocket cannot close one direction only; use aclose()")

    async def aclose(self) -> None:
        """Close the WebSocket with 1000, and wait until it is gone.

        Cancellation: as `WebSocket.aclose`.
        """
        await self._ws.aclose()
        self._rest = memoryview(b"")

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The WebSocket's."""
        return self._ws.extra_attributes
