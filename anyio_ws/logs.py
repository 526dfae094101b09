"""What the log says of connections. Messages and control frames are there at DEBUG, and look as these do.

    > TEXT 5 B 'hello'
    < BINARY 70000 B 00 01 02 03 04 05 06 07 …
    < CLOSE 1001 (going away) 'restart'
    > PING 4 B 5e 01 f3 aa

`<` came in and `>` goes out. Text and binary are whole messages, however many frames they took.
"""

import logging
import os

from .exceptions import CODE_NAMES, CloseInfo
from .protocol import Close, Opcode
from .transports.base import Buffer

client_logger: logging.Logger = logging.getLogger("anyio_ws.client")
server_logger: logging.Logger = logging.getLogger("anyio_ws.server")

NO_ID: dict[str, str] = {"connection_id": "-"}
"""For records that are not about an open connection: a formatter may rely on the attribute."""

BEGINNING = 64
"""Characters of a text, and 16 bytes of anything else, that are shown."""


def describe(opcode: int, payload: str | Buffer, size: int | None = None) -> str:
    """Describe a message or a control frame; with a size, a message of so many bytes that begins with the payload."""
    name = Opcode(opcode).name
    if isinstance(payload, str):
        text = repr(payload[:BEGINNING]) + (" …" if len(payload) > BEGINNING else "")
        return f"{name} {len(payload.encode('utf-8', 'replace')) if size is None else size} B {text}"
    if opcode == Opcode.TEXT:
        return describe(opcode, str(payload, "utf-8", "ignore"), size)
    shown = memoryview(payload)[: BEGINNING // 4]
    text = shown.hex(" ") + (" …" if len(payload) > len(shown) else "")
    return f"{name} {len(payload) if size is None else size} B {text}".rstrip()


def describe_close(close: Close) -> str:
    """Describe a Close frame."""
    return f"CLOSE {close.code} ({CODE_NAMES.get(close.code, 'application')}) {close.reason!r}"


class Log:
    """What the log says of one connection.

    Attributes:
        debug: messages and frames are logged; whoever has some asks this first.
    """

    __slots__ = ("_id", "_logger", "debug")

    def __init__(self, *, is_client: bool) -> None:
        self._logger = client_logger if is_client else server_logger
        self._id: str | None = None
        self.debug: bool = self._logger.isEnabledFor(logging.DEBUG)

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that tell the connection from others; made when it is first asked for."""
        if self._id is None:
            self._id = os.urandom(4).hex()
        return self._id

    def event(self, message: str, *args: object) -> None:
        """Log anything, at DEBUG."""
        self._logger.debug(message, *args, extra={"connection_id": self.id})

    def received(self, message: str | bytes, size: int | None = None) -> None:
        """Log a message; with a size, one of so many bytes that begins so."""
        self.event("< %s", describe(Opcode.TEXT if isinstance(message, str) else Opcode.BINARY, message, size))

    def sent(self, opcode: int, payload: str | Buffer, size: int | None = None) -> None:
        """The same."""
        self.event("> %s", describe(opcode & 0xF, payload, size))

    def stalled(self, seconds: float) -> None:
        self._logger.warning("the event loop was blocked for %.1f s; keepalive starts afresh", seconds, extra=NO_ID)

    def ended(self, info: CloseInfo) -> None:
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.info("connection ended: %s", info, extra={"connection_id": self.id})
