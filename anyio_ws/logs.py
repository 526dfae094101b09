"""How frames and messages look in the log, at DEBUG.

    > TEXT 5 B 'hello'
    < BINARY 70000 B 00 01 02 03 04 05 06 07 …
    < CLOSE 1001 (going away) 'restart'
    > PING 4 B 5e 01 f3 aa

`<` came in and `>` goes out. Text and binary are whole messages, however many frames they took.
"""

import logging

from .exceptions import CODE_NAMES
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
