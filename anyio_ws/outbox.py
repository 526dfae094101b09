"""What a connection still has to send, and the senders that wait for it.

Theory of operation. A message is *committed* when it is its sender's turn (first come, first served; a newcomer queues
behind those who wait even if there is room) and the outbox holds less than its limit; then it is encoded and put here
without a suspension in between. Cancelled before that, a send did nothing; after it, the message will be sent whole.

Frames go to the transport at once, or join what is here already (`join`) and leave together: at the end of the tick,
at JOIN_SIZE, or on `flush`, whichever comes first. What the transport does not take stays here and belongs to no task:
the transport says when to go on (`writable`).
"""

from collections import deque
from itertools import islice

from .loops import Loop, Waiter
from .transports.base import Buffer, Transport

JOIN_SIZE = 65536
"""Bytes of joined frames that go out at once; copying more into one block costs more than the call it saves."""

VECTOR = 64
"""Buffers given to the transport at once."""


class Outbox:
    """Frames that are committed, in order.

    Args:
        transport: where everything goes.
        loop: the owner's adapter.
        limit: bytes at which senders wait.

    Attributes:
        size: bytes that are committed and not taken by the transport.
        blocked: the transport took less than it was given; it will say when it takes more.
        closed: nobody may commit anything any more.
        limit: as given.
        turns: senders that wait to commit. A newcomer may commit at once if there are none and the size is under the
            limit; `send` asks for itself, because it is the hottest path.
    """

    __slots__ = (
        "_armed",
        "_buffers",
        "_drained",
        "_join",
        "_loop",
        "_transport",
        "blocked",
        "closed",
        "limit",
        "size",
        "turns",
    )

    def __init__(self, transport: Transport, loop: Loop, limit: int) -> None:
        self.size: int = 0
        self.blocked: bool = False
        self.closed: bool = False
        self._transport = transport
        self._loop = loop
        self.limit: int = limit
        self._join = min(JOIN_SIZE, limit)
        self._buffers: deque[Buffer] = deque()
        self._armed = False  # the end of the tick flushes
        self.turns: deque[Waiter] = deque()
        self._drained: deque[Waiter] = deque()  # senders that have committed and wait for room

    # Committing

    def write(self, frame: bytes) -> None:
        """Commit a frame, or several joined, and send it with what is here already."""
        if self._buffers:
            self._buffers.append(frame)
            self.size += len(frame)
            self.flush()
        else:
            taken = self._transport.write((frame,))
            if taken != len(frame):
                self._keep(memoryview(frame)[taken:])

    def write_parts(self, header: bytes, payload: Buffer) -> None:
        """The same for a frame whose payload is too large to be copied into one block with its header."""
        if not self._buffers:
            taken = self._transport.write((header, payload))
            if taken == len(header) + len(payload):
                return
            if taken >= len(header):
                payload = memoryview(payload)[taken - len(header) :]
                # The caller may change a bytearray once send() has returned; bytes stay as they are.
                self._keep(payload if isinstance(payload.obj, bytes) else bytes(payload))
                return
            if self._transport.closed:
                return  # it failed in this very call
            header = header[taken:]
            self.blocked = True
        self._buffers += (header, payload if isinstance(payload, bytes) else bytes(payload))
        self.size += len(header) + len(payload)
        self.flush()

    def join(self, frame: bytes) -> None:
        """Commit a frame that may leave with others, at the end of the tick at the latest."""
        self._buffers.append(frame)
        self.size += len(frame)
        if self.size >= self._join:
            self.flush()
        elif not self._armed:
            self._armed = True
            self._loop.call_soon(self._end_of_tick)

    def _keep(self, rest: Buffer) -> None:
        if self._transport.closed:
            return  # it failed in this very call
        self.blocked = True
        self._buffers.append(rest)
        self.size += len(rest)

    # Sending

    def flush(self) -> None:
        """Give the transport what it takes."""
        while self._buffers and not self.blocked:
            if len(self._buffers) > 1 and self.size <= JOIN_SIZE:
                joined = b"".join(self._buffers)
                self._buffers.clear()
                self._buffers.append(joined)
            offered = tuple(islice(self._buffers, VECTOR))
            taken = self._transport.write(offered)
            if taken != sum(map(len, offered)):
                self.blocked = True
            self._forget(taken)
        if self.size < self.limit and (self._drained or self.turns):
            for waiter in self._drained:
                waiter.wake()
            self._next_turn()

    def _forget(self, taken: int) -> None:
        if not self._buffers:
            return  # the connection failed meanwhile
        self.size -= taken
        while taken:
            first = self._buffers.popleft()
            if taken < len(first):
                self._buffers.appendleft(memoryview(first)[taken:])
                return
            taken -= len(first)

    def _end_of_tick(self) -> None:
        self._armed = False
        self.flush()

    def writable(self) -> None:
        """The transport takes more."""
        self.blocked = False
        self.flush()

    def close(self) -> None:
        """Refuse newcomers and those who wait; what is committed still goes out."""
        self.closed = True
        for waiter in (*self.turns, *self._drained):
            waiter.wake()

    def clear(self) -> None:
        """Nothing can be sent any more."""
        self._buffers.clear()
        self.size = 0
        self.close()

    # Waiting

    async def turn(self) -> None:
        """Wait until the caller may commit; it then does so without a suspension. Returns early if closed."""
        waiter = self._loop.waiter()
        self.turns.append(waiter)
        try:
            while not self.closed and (self.size >= self.limit or self.turns[0] is not waiter):
                await waiter.wait()
        finally:
            self.turns.remove(waiter)
            # Also if the wake-up was for us and we were cancelled in the same tick: the turn must not get lost. If we
            # do commit, the next one looks again before it does.
            self._next_turn()

    async def drained(self) -> None:
        """Wait until the outbox holds less than its limit. Returns early if closed."""
        waiter = self._loop.waiter()
        self._drained.append(waiter)
        try:
            while not self.closed and self.size >= self.limit:
                await waiter.wait()
        finally:
            self._drained.remove(waiter)

    def _next_turn(self) -> None:
        if self.turns and self.size < self.limit:
            self.turns[0].wake()
