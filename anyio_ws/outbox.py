"""What a connection still has to send, and the senders that wait for it.

Theory of operation. A message is *committed* when it is its sender's turn (first come, first served; a newcomer queues
behind those who wait even if there is room) and the outbox holds less than its limit; then it is encoded and put here
without a suspension in between. Cancelled before that, a send did nothing; after it, the message will be sent whole.

Frames go to the transport at once, or join what is here already (`join`) and leave together: at the end of the tick,
at JOIN_SIZE, or on `flush`, whichever comes first. What the transport does not take stays here and belongs to no task:
the transport says when to go on (`writable`).

A Ping or a Pong that finds much here goes in between, behind the frame that has begun to leave. That is why a large
message is put here in fragments. The buffers of the list are whole frames, but for a `Head`, whose payload is the
next one, and for what is left of the frame that has begun.
"""

from .loops import Loop, Waiter
from .transports.base import Buffer, Transport

JOIN_SIZE = 65536
"""Bytes of joined frames that go out at once; copying more into one block costs more than the call it saves."""

VECTOR = 64
"""Buffers given to the transport at once."""


class Head(bytes):
    """The header of a frame whose payload is too large to be copied behind it."""

    __slots__ = ()


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
        free: a newcomer may commit at once: it is not closed or held, the size is under the limit, and nobody waits.
        held: a message in parts is being sent; until its end nobody else may commit one.
    """

    __slots__ = (
        "_armed",
        "_begun",
        "_buffers",
        "_control_end",
        "_drained",
        "_join",
        "_limit",
        "_loop",
        "_transport",
        "_turns",
        "blocked",
        "closed",
        "free",
        "held",
        "size",
        "taken",
    )

    def __init__(self, transport: Transport, loop: Loop, limit: int) -> None:
        self.size: int = 0
        self.taken: int = 0
        self.blocked: bool = False
        self.closed: bool = False
        self.free: bool = True
        self.held: bool = False
        self._transport = transport
        self._loop = loop
        self._limit = limit
        self._join = min(JOIN_SIZE, limit)
        self._buffers: list[Buffer] = []  # lists, where an empty deque takes 700 bytes
        self._begun = False  # the first of them is the rest of a frame
        self._control_end = 0  # what `taken` will be when the last control frame has left
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
                self.keep(_constant(memoryview(payload)[taken - len(header) :]))
                return
            if self._transport.closed:
                return  # it failed in this very call
            self.blocked = True
            self._begun = taken > 0
            header = header[taken:]
        self._put(Head(header))
        self._put(_constant(payload))
        self.flush()

    def write_control(self, frame: bytes) -> None:
        """Commit control frames, and send them as soon as the frame that has begun to leave has left."""
        if self.size <= JOIN_SIZE:
            self.write(frame)
            self._control_end = self.taken + self.size
            return
        end = self.taken
        place = 0
        inside = self._begun
        while place < len(self._buffers) and (inside or end < self._control_end):
            buffer = self._buffers[place]
            end += len(buffer)
            inside = type(buffer) is Head
            place += 1
        self._buffers.insert(place, frame)
        self._control_end = end + len(frame)
        self.size += len(frame)
        if self.size >= self._limit:
            self.free = False
        self.flush()

    @property
    def control_waits(self) -> bool:
        """A control frame has not left."""
        return self.taken < self._control_end

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
            self._begun = True
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
            self._begun = type(buffer) is Head
            gone += 1
        del self._buffers[:gone]
        if taken:
            first = self._buffers[0]
            self._buffers[0] = Head(first[taken:]) if type(first) is Head else memoryview(first)[taken:]
            self._begun = True

    def _end_of_tick(self) -> None:
        self._armed = False
        self.flush()

    def writable(self) -> None:
        """The transport takes more."""
        self.blocked = False
        self.flush()

    def hold(self) -> None:
        """Let nobody else commit a message until `release`; it is the caller's turn."""
        self.held = True
        self.free = False

    def release(self) -> None:
        self.held = False
        self._wake()

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
                self.free = not self.held

    async def turn(self) -> None:
        """Wait until the caller may commit; it then does so without a suspension. Returns early if closed."""
        waiter = self._loop.waiter()
        self._turns.append(waiter)
        self.free = False
        try:
            while not self.closed and (self.held or self.size >= self._limit or self._turns[0] is not waiter):
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


def _constant(payload: Buffer) -> Buffer:
    """Return bytes that nobody changes: the caller may do so with a bytearray once send() has returned."""
    base = payload.obj if isinstance(payload, memoryview) else payload
    return payload if isinstance(base, bytes) else bytes(payload)
