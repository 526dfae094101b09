"""What takes too long for the event loop: compressing and inflating large messages, in worker threads.

The tasks here belong to the connection's owner. What they have begun they finish, whoever waits for it or does not any
more, so that the extensions see every message and in order.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from anyio import Event, to_thread

from .outbox import Outbox
from .protocol import ProtocolError
from .protocol.connection import Connection
from .protocol.restoring import Deferred
from .transports.base import Buffer


class Sending(Protocol):
    """What compressing needs of a connection."""

    connection: Connection
    outbox: Outbox
    closing: bool

    def send_transformed(self, opcode: int, payload: Buffer) -> None: ...

    def fail(self, exc: Exception, initiator: Literal["local", "peer"]) -> None: ...


class Receiving(Protocol):
    """What inflating needs of a connection."""

    def fail(self, exc: Exception, initiator: Literal["local", "peer"]) -> None: ...


async def send_later(core: Sending, opcode: int, payload: bytes, done: Event) -> None:
    """Commit a message whose transformation takes long. It is the caller's turn, which is held until it is committed.

    If the connection is closing by then, nothing is sent.
    """
    try:
        transformed = await _run(core, core.connection.transform, opcode, payload)
        if transformed is not None and not core.closing:
            core.send_transformed(*transformed)
    finally:
        core.outbox.release()
        done.set()


async def encode_later(
    core: Sending, encode: Callable[[], list[Buffer]], encoded: Callable[[list[Buffer] | None], None]
) -> None:
    """Transform a part of a message, for whoever holds the outbox; None is what comes out if it failed."""
    fragments: list[Buffer] | None = None
    try:
        fragments = await _run(core, encode)
    finally:
        encoded(fragments)


async def finish_deferred(
    core: Receiving,
    deferred: Deferred,
    finished: Callable[[Deferred, str | bytes | ProtocolError | None], None],
) -> None:
    """Finish a message that came; None is what comes of it if that failed."""
    outcome: str | bytes | ProtocolError | None = None
    try:
        outcome = await _run(core, _outcome, deferred)
    finally:  # also if the owner leaves first: somebody may wait for it
        finished(deferred, outcome)


def _outcome(deferred: Deferred) -> str | bytes | ProtocolError:
    try:
        return deferred.finish()
    except ProtocolError as exc:
        return exc


async def _run(core: Sending | Receiving, function: Callable[..., Any], *args: Any) -> Any:
    """Run in a thread; an exception, such as a MemoryError, ends the connection."""
    try:
        return await to_thread.run_sync(function, *args)
    except Exception as exc:
        core.fail(exc, "local")
        return None
