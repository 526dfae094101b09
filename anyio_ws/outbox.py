"""What a connection still has to send, and the senders that wait for it.

Theory of operation. A message is *committed* when it is its sender's turn (first come, first served; a newcomer queues
behind those who wait even if there is room) and the outbox holds less than its limit; then it is encoded and put here
without a suspension in between. Cancelled before that, a send did nothing; after it, the message will be sent whole.

Frames go to the transport at once, or join what is here already (`join`) and leave together: at the end of the tick,
at JOIN_SIZE, or on `flush`, whichever comes first. What the transport does not take stays here and belongs to no task:
the transport says when to go on (`writable`).
"""

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
        taken: bytes that are not here any more: taken by the transport, or dropped with the connection.
        blocked: the transport took less than it was given; it will say when it takes more.
        closed: nobody may commit anything any more.
        free: a newcomer may commit at once: it is not closed, the size is under the limit, and nobody waits.
    """

    __slots__ = (
        "_armed",
        "_buffers",
        "_drained",
        "_join",
        "_limit",
        "_loop",
        "_transport",
        "_turns",
        "blocked",
        "closed",
        "free",
        "size",
        "taken",
    )

    def __init__(self, transport: Transport, loop: Loop, limit: int) -> None:
        self.size: int = 0
        self.taken: int = 0
        self.blocked: bool = False
        self.closed: bool = False
        self.free: bool = True
        self._transport = transport
        self._loop = loop
        self._limit = limit
        self._join = min(JOIN_SIZE, limit)
        self._buffers: list[Buffer] = []  # lists, where an empty deque takes 700 bytes
        self._armed = False  # the end of the tick flushes
        self._turns: list[Waiter] = []  # senders that wait to commit
        self._drained: list[Waiter] = []  # senders that have committed and wait for room

    # Committing

    def write(self, frame: bytes) -> None:
        """Commit a frame, or several joined, and send it with what is here already."""
        if self.size:
            self._put(frame)
            self.flush()
            return
        taken = self._transport.write(frame)
        self.taken += taken
        if taken != len(frame):
            self.keep(memoryview(frame)[taken:])

    def write_parts(self, header: bytes, payload: Buffer) -> None:
        """The same for a frame whose payload is too large to be copied into one block with its header."""
        if not self.size:
            taken = self._transport.write_vector((header, payload))
            self.taken += taken
            if taken == len(header) + len(payload):
                return
            if taken >= len(header):
                payload = memoryview(payload)[taken - len(header) :]
                # The caller may change a bytearray once send() has returned; bytes stay as they are.
                self.keep(payload if isinstance(payload.obj, bytes) else bytes(payload))
                return
            if self._transport.closed:
                return  # it failed in this very call
            header = header[taken:]
            self.blocked = True
        self._put(header)
        self._put(payload if isinstance(payload, bytes) else bytes(payload))
        self.flush()

    def join(self, frame: bytes) -> None:
        """Commit a frame that may leave with others, at the end of the tick at the latest."""
        self._buffers.append(frame)
        self.size += len(frame)
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._end_of_tick)
        if self.size >= self._join:
            self._fill()

    def keep(self, rest: Buffer) -> None:
        if not self._transport.closed:  # it may have failed in this very call
            self.blocked = True
            self._put(rest)

    def _put(self, data: Buffer) -> None:
        self._buffers.append(data)
        self.size += len(data)
        if self.size >= self._limit:
            self.free = False

    def _fill(self) -> None:
        """Enough has been joined."""
        self.flush()
        if self.size >= self._limit:
            self.free = False

    # Sending

    def flush(self) -> None:
        """Give the transport what it takes.

        A write that fails may come back here, because what the peer said before is read first, and may be answered: by
        then the transport takes nothing any more.
        """
        while self.size and not self.blocked:
            if len(self._buffers) > 1 and self.size <= JOIN_SIZE:
                self._buffers = [b"".join(self._buffers)]
            if len(self._buffers) == 1:
                offered = self.size
                taken = self._transport.write(self._buffers[0])
            else:
                vector = self._buffers[:VECTOR]
                offered = sum(map(len, vector))
                taken = self._transport.write_vector(vector)
            self.taken += taken
            if taken != offered:
                self.blocked = True
            self._forget(taken)
        if not self.free:
            self._wake()

    def _forget(self, taken: int) -> None:
        if not self._buffers:
            return  # the connection failed meanwhile
        self.size -= taken
        gone = 0
        for buffer in self._buffers:
            if taken < len(buffer):
                break
            taken -= len(buffer)
            gone += 1
        del self._buffers[:gone]
        if taken:
            self._buffers[0] = memoryview(self._buffers[0])[taken:]

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
        self.free = False
        for waiter in (*self._turns, *self._drained):
            waiter.wake()

    def clear(self) -> None:
        """Nothing can be sent any more."""
        self._buffers.clear()
        self.taken += self.size
        self.size = 0
        self.close()

    # Waiting

    def _wake(self) -> None:
        """Wake those who may go on, and let newcomers in if there are none who wait to commit."""
        if self.size < self._limit and not self.closed:
            for waiter in self._drained:
                waiter.wake()
            if self._turns:
                self._turns[0].wake()
            else:
                self.free = True

    async def turn(self) -> None:
        """Wait until the caller may commit; it then does so without a suspension. Returns early if closed."""
        waiter = self._loop.waiter()
        self._turns.append(waiter)
        self.free = False
        try:
            while not self.closed and (self.size >= self._limit or self._turns[0] is not waiter):
                await waiter.wait()
        finally:
            self._turns.remove(waiter)
            # Also if the wake-up was for us and we were cancelled in the same tick: the turn must not get lost. If we
            # do commit, the next one looks again before it does.
            self._wake()

    async def drained(self) -> None:
        """Wait until the outbox holds less than its limit. Returns early if closed."""
        waiter = self._loop.waiter()
        self._drained.append(waiter)
        try:
            while not self.closed and self.size >= self._limit:
                await waiter.wait()
        finally:
            self._drained.remove(waiter)
