"""The network: two pipes, and a Transport at each end.

Bytes are *taken* from the writer into a pipe, *arrive* after a while in pieces, and are then *read*. Whatever a network
and a kernel may do, a pipe does by the world's dice: takes less than it has room for, says that it takes more when it
does not, delays, delivers any part, loses what was on its way in a reset, ends in the middle of a frame, or is silent.
"""

import errno
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from anyio_ws.loops import Loop
from anyio_ws.transports.base import Buffer, Transport

from .dice import Dice


class End(Protocol):
    """What a pipe tells its reader and its writer."""

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...


class Pipe:
    """One direction.

    Attributes:
        reader, writer: who is told.
        back: the other direction.
        arrived: bytes that can be read.
        ended: the writer has ended; `end_arrived` says that the reader may know.
        was_reset: a reset has reached the reader; `is_broken` one has reached the writer.
        tap: is given what the writer wrote.
    """

    reader: End
    writer: End
    back: "Pipe"

    def __init__(self, dice: Dice, name: str, tap: Callable[[bytes], None]) -> None:
        self.name = name
        self.tap = tap
        self.arrived = 0
        self.ended = self.end_arrived = False
        self.was_reset = self.is_broken = False
        self.is_frozen = False
        self.short = False
        self.unread = 0  # what had arrived when the reader closed
        self._abandoned = False  # the reader has closed
        self._swallowing = False  # it goes nowhere, and the writer does not know
        self._reset_due = False
        self._dice = dice
        self._data = bytearray()
        self._moving = False
        self._due = 0.0

    # The writer's side

    def write(self, data: Buffer) -> int:
        """Take some of it. Raises OSError if a reset is known."""
        if self.is_broken:
            raise BrokenPipeError(errno.EPIPE, "simulated: the connection is broken")
        assert not self.ended, f"{self.name}: written after the end"
        dice = self._dice
        room = dice.plan.capacity - len(self._data)
        size = max(0, min(room, len(data)))
        if size and dice.chance(dice.plan.short):
            size = dice.below(size + 1)
        part = bytes(memoryview(data)[:size])
        dice.log(self.name, "took", size, "of", len(data))
        if size:
            if self._abandoned:
                self._reset_writer()
            elif not self._swallowing:
                self._data += part
                self._move()
            self.tap(part)
        if size < len(data):
            self.short = True
            if size < room or dice.chance(0.05):
                dice.later(self._writable)
        return size

    @property
    def is_writable(self) -> bool:
        return self.is_broken or len(self._data) < self._dice.plan.capacity

    def end_in_order(self) -> None:
        """The writer ends, and has said so."""
        self._dice.ends_in_order(self.name)
        self.end()

    def end(self) -> None:
        """The writer ends."""
        if not self.ended:
            self.ended = True
            self._move()

    def _writable(self) -> None:
        if self.short:
            self.short = False
            self.writer.on_writable()

    # On its way

    def _move(self) -> None:
        if not self._moving and not self.is_frozen:
            self._moving = True
            self._due = self._dice.later(self._arrive)

    def _arrive(self) -> None:
        if not self._moving or self.is_frozen:
            return
        self._moving = False
        if pending := len(self._data) - self.arrived:
            self.arrived += pending if self._dice.chance(0.7) else 1 + self._dice.below(pending)
        if len(self._data) > self.arrived:
            self._move()
        elif self._reset_due:
            self._be_reset()
        elif self.ended and not self.end_arrived:
            self.end_arrived = True
            self._dice.log(self.name, "end arrived")
        self.reader.on_readable()

    def hurry(self) -> None:
        """What should have arrived by now has, although the event loop was late."""
        if self._moving and self._due <= self._dice.now():
            self._arrive()

    # The reader's side

    @property
    def is_readable(self) -> bool:
        return bool(self.arrived) or self.end_arrived or self.was_reset

    def read(self, size: int) -> bytes:
        """Read at most so many bytes; b"" if none has arrived."""
        count = min(self.arrived, size)
        if count > 1 and self._dice.chance(self._dice.plan.split):
            count = 1 + self._dice.below(count)
        data = bytes(self._data[:count])
        del self._data[:count]
        self.arrived -= count
        if count and self.short:
            self._dice.later(self._writable)
        self._dice.log(self.name, "gave", count, "left", self.arrived)
        return data

    def abandon(self, *, abort: bool = False) -> None:
        """The reader has closed: what arrives from now on is answered with a reset, as is what nobody has read."""
        self._abandoned = True
        self.hurry()
        self.unread = self.arrived
        if self._data or abort:
            self._reset_writer()
        self._data.clear()
        self.arrived = 0

    def _reset_writer(self) -> None:
        """Send a reset to the writer, behind what goes its way."""
        back = self.back
        if not back._reset_due:
            back._reset_due = True
            if self._dice.chance(0.3):
                del back._data[back.arrived :]
            back._move()

    def _be_reset(self) -> None:
        self._dice.log(self.name, "reset arrived")
        self.was_reset = self.back.is_broken = self._swallowing = True
        if self._dice.chance(0.2):
            del self._data[: self.arrived]
            self.arrived = 0
        if self.back.short:
            self._dice.later(self.back._writable)

    # What goes wrong

    def reset(self) -> None:
        """A reset comes from nowhere, to both ends."""
        del self._data[self.arrived :]
        self._be_reset()
        self.back._reset_due = True
        self.back._move()
        self.reader.on_readable()

    def cut(self) -> None:
        """The end comes from nowhere, perhaps in the middle of a frame."""
        del self._data[self.arrived :]
        self._swallowing = True
        self.end_arrived = True
        self._dice.log(self.name, "cut")
        if self.short:
            self._dice.later(self._writable)
        self.reader.on_readable()

    def freeze(self) -> None:
        """Nothing arrives any more."""
        self._dice.log(self.name, "freezes")
        self.is_frozen = True
        self._moving = False

    def thaw(self) -> None:
        self._dice.log(self.name, "thaws")
        self.is_frozen = False
        self._move()


def make_link(
    dice: Dice, tap_client: Callable[[bytes], None], tap_server: Callable[[bytes], None]
) -> tuple[Pipe, Pipe]:
    """Make the two directions: from the client, and from the server."""
    up, down = Pipe(dice, "up", tap_client), Pipe(dice, "down", tap_server)
    up.back, down.back = down, up
    return up, down


class SimTransport(Transport):
    """One end of a link, as synchronous as a socket.

    Args:
        incoming, outgoing: the two directions, seen from here.
        loop: the owner's adapter.
    """

    __slots__ = ("_breaking", "_dice", "_incoming", "_outgoing", "_paused", "_scheduled", "_shut")

    def __init__(self, dice: Dice, incoming: Pipe, outgoing: Pipe, loop: Loop) -> None:
        super().__init__(loop.waiter())
        self._dice = dice
        self._incoming = incoming
        self._outgoing = outgoing
        self._paused = True
        self._scheduled = False
        self._breaking = False
        self._shut = False
        incoming.reader = outgoing.writer = self

    def start(self) -> None:
        self.resume()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._dice.chance(0.1):
            self._read()  # "the receiver may be called before this returns"
        self._schedule()

    def watch(self) -> None:
        pass  # it always reads

    def poll(self) -> bool:
        if not self.closed:
            self._incoming.hurry()
            if not self._paused:
                self._read()
            elif self._incoming.was_reset:
                self._reset()
        return True

    def write(self, data: Buffer) -> int:
        if self.closed or self._shut:
            self._broken(OSError(errno.EBADF, "simulated: closed"))
            return 0
        try:
            return self._outgoing.write(data)
        except OSError as exc:
            self._broken(exc)
            return 0

    def _broken(self, exc: OSError) -> None:
        """As SocketTransport: what came before is read first."""
        if self._breaking:
            return
        self._breaking = True
        while self._incoming.arrived and not self._paused and not self.closed:
            self._read()
        self._breaking = False
        self.receiver.fail(exc)

    def shutdown(self) -> None:
        self._shut = True
        self._outgoing.end_in_order()

    def close(self) -> None:
        self._close(abort=False)

    def abort(self) -> None:
        self._close(abort=True)

    def _close(self, *, abort: bool) -> None:
        if not self.closed:
            self.closed = True
            self._dice.log(self._outgoing.name, "aborted" if abort else "closed")
            self._incoming.abandon(abort=abort)
            self._outgoing.end()
            self.waiter.wake()

    @property
    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}

    # What the pipes say

    def on_readable(self) -> None:
        self._schedule()

    def on_writable(self) -> None:
        if not self.closed:
            self.receiver.writable()
            self._dice.strike(self._outgoing.name)

    def _schedule(self) -> None:
        if not self._scheduled and not self.closed and not self._paused and self._incoming.is_readable:
            self._scheduled = True
            self._dice.soon(self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        if self._dice.chance(0.05):
            self.waiter.wake()  # "it may return early"
        self._read()
        self._schedule()

    def _read(self) -> None:
        """Read once."""
        self._dice.happened()  # what calls have done since is to be told from what reading does
        if self._paused or self.closed:
            return
        incoming = self._incoming
        if incoming.arrived:
            buffer = self.receiver.get_buffer()
            data = incoming.read(len(buffer))
            buffer[: len(data)] = data
            self.receiver.received(len(data))
            self._dice.happened()
        elif incoming.was_reset:
            self._reset()
        elif incoming.end_arrived and not self._breaking:
            self._paused = True
            self.receiver.eof()
        self._dice.strike(self._outgoing.name)

    def _reset(self) -> None:
        self._paused = True
        self.receiver.fail(ConnectionResetError(errno.ECONNRESET, "simulated: reset"))
