"""A ByteStream over the simulated network."""

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from .dice import Dice
from .link import Pipe


class SimStream(ByteStream):
    """One end of a link; a `send` that is cancelled tears what it was to send."""

    def __init__(self, dice: Dice, incoming: Pipe, outgoing: Pipe) -> None:
        self._dice = dice
        self._incoming = incoming
        self._outgoing = outgoing
        self._readable = anyio.Event()
        self._writable = anyio.Event()
        self._closed = False
        incoming.reader = outgoing.writer = self

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await checkpoint()
        incoming = self._incoming
        while not incoming.arrived:
            if incoming.was_reset:
                raise anyio.BrokenResourceError
            if incoming.end_arrived:
                raise anyio.EndOfStream
            if self._closed:
                raise anyio.ClosedResourceError
            self._readable = anyio.Event()
            await self._readable.wait()
        return incoming.read(max_bytes)

    async def send(self, item: bytes) -> None:
        await checkpoint()
        view = memoryview(item)
        while view:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                view = view[self._outgoing.write(view) :]
            except OSError as exc:
                raise anyio.BrokenResourceError from exc
            if view:
                self._writable = anyio.Event()
                await self._writable.wait()

    async def send_eof(self) -> None:
        self._outgoing.end_in_order()
        await checkpoint()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._dice.log(self._outgoing.name, "closed")
            self._incoming.abandon()
            self._outgoing.end()
            self._readable.set()
            self._writable.set()
        await checkpoint()

    def on_readable(self) -> None:
        self._readable.set()
        self._dice.strike(self._outgoing.name)

    def on_writable(self) -> None:
        self._writable.set()
        self._dice.strike(self._outgoing.name)
