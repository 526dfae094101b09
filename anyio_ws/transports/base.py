"""The interface between a connection and what moves its bytes.

A `Transport` reads for its `Receiver`: it asks for memory, fills it, and says how much arrived. All of it is
synchronous, so neither side can be interrupted half-way; a task suspends only in `Transport.waiter`.
No method of a Receiver raises `Exception`, and none of a Transport lets an OSError escape: it goes to `Receiver.fail`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from anyio_ws.loops import Waiter

Buffer = bytes | bytearray | memoryview


class Receiver(Protocol):
    """What a transport reads for."""

    def get_buffer(self) -> memoryview:
        """Return writable memory for the next bytes, not empty; asked for anew before each read."""
        ...

    def received(self, count: int) -> None:
        """`count` bytes, at least one, were written to the start of that memory."""
        ...

    def heard(self) -> None:
        """Something came of which nothing can be received yet: half a record of TLS."""
        ...

    def eof(self) -> None:
        """The peer sends nothing any more. Nothing is received after this."""
        ...

    def writable(self) -> None:
        """A `write` that fell short may be tried again."""
        ...

    def fail(self, exc: Exception) -> None:
        """The transport broke; nothing will move any more."""
        ...


class Transport(ABC):
    """Moves bytes for one connection.

    Attributes:
        receiver: who gets what arrives; set before `start`, and may be replaced between two reads.
        closed: `close` or `abort` was called.
        waiter: for one task at a time: `wait()` until something was read or `wake()` was called; it may return early.
    """

    __slots__ = ("closed", "receiver", "waiter")

    receiver: Receiver
    closed: bool
    waiter: Waiter

    def __init__(self, waiter: Waiter) -> None:
        self.closed = False
        self.waiter = waiter

    @abstractmethod
    def start(self) -> None:
        """Read from now on."""

    @abstractmethod
    def pause(self) -> None:
        """Read nothing until `resume`."""

    @abstractmethod
    def resume(self) -> None:
        """Read again, first what is already here: the receiver may be called before this returns."""

    @abstractmethod
    def watch(self) -> None:
        """Make sure that somebody reads from now on, although no task waits."""

    @abstractmethod
    def poll(self) -> bool:
        """Read once without waiting what may have arrived unnoticed; while paused, only look for an error.

        Returns False if it could not look: then only time tells what has arrived.
        """

    @abstractmethod
    def write(self, data: Buffer) -> int:
        """Try once to write, and return how many bytes were taken.

        If these were not all, `Receiver.writable` is called when it is worth trying again. What was taken is not
        referenced any more unless it is bytes.
        """

    def write_vector(self, buffers: Iterable[Buffer]) -> int:
        """The same for several buffers, one after the other."""
        taken = 0
        for buffer in buffers:
            part = self.write(buffer)
            taken += part
            if part < len(buffer):
                break
        return taken

    @abstractmethod
    def shutdown(self) -> None:
        """Send EOF after what was taken; go on reading, although what comes now may be discarded."""

    @abstractmethod
    def close(self) -> None:
        """Close at once; what was taken may still arrive, but what is `unsent` will not. Idempotent, like `abort`."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once; nothing more is sent."""

    @property
    def unsent(self) -> bool:
        """Something that was taken has not left this process. `Receiver.writable` is called when all of it has."""
        return False

    @property
    def breaking(self) -> bool:
        """A write has failed, and what had arrived before is being read; `Receiver.fail` is called next."""
        return False

    @property
    @abstractmethod
    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Typed attributes in anyio's sense."""
