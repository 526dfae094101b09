"""Every exception that users catch.

    WebSocketError
    ├── HandshakeError (transient)       the connection was never open
    │   ├── ConnectFailed                DNS, refused, unreachable, TLS; also anyio.ConnectionFailed, an OSError
    │   ├── OpenTimeout                  open_timeout ran out; also TimeoutError
    │   ├── HandshakeRejected(response)  the server answered, but not with 101
    │   └── InvalidHandshake             the peer broke the rules of the opening handshake
    ├── ConnectionClosed(close_info)     the connection was open and has ended
    │   ├── ConnectionClosedOK           in good order; also anyio.ClosedResourceError, from receive* anyio.EndOfStream
    │   └── ConnectionClosedError        in any other way; also anyio.BrokenResourceError; __cause__ is the root cause
    ├── ProtocolError (close_code)       the peer broke the protocol: the cause of a ConnectionClosedError
    └── InvalidURL                       also ValueError

Two `except` clauses suffice around a connection: HandshakeError (it never opened), ConnectionClosed (it ended). All of
them pickle.
"""

from dataclasses import dataclass
from typing import Literal

import anyio

from .protocol.exceptions import HandshakeError, InvalidHandshake, InvalidURL, ProtocolError, WebSocketError
from .protocol.http import Response

__all__ = [
    "CloseInfo",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "HandshakeError",
    "HandshakeRejected",
    "InvalidHandshake",
    "InvalidURL",
    "OpenTimeout",
    "ProtocolError",
    "WebSocketError",
]

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different in a moment: the server, or something before it, is overloaded or restarting."""

SHOWN_BODY = 300
"""Bytes of a refusal's text that its exception shows: servers say there why."""

CODE_NAMES = {
    1000: "normal closure",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1005: "no code",
    1006: "abnormal closure",
    1007: "invalid payload data",
    1008: "policy violation",
    1009: "message too big",
    1010: "mandatory extension",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
    1015: "TLS failure",
}
"""RFC 6455 §7.4.1 and the registry of §11.7."""


@dataclass(frozen=True, slots=True)
class CloseInfo:
    """How a connection ended.

    Attributes:
        code: of the Close that began the ending; 1005 if that carried none, 1006 if there was no Close.
        reason: of that Close.
        initiator: who began: "local" or "peer".
        clean: both sides sent a Close.
        cause: the exception that ended the connection, or None.

    RFC 6455 §7.1.4 to §7.1.6.
    """

    code: int
    reason: str = ""
    initiator: Literal["local", "peer"] = "peer"
    clean: bool = False
    cause: Exception | None = None

    def __str__(self) -> str:
        name = CODE_NAMES.get(self.code)
        text = f"{self.code} ({name})" if name else str(self.code)
        if self.reason and not str(self.cause).startswith(self.reason):
            text += f" {self.reason!r}"
        text += " from the peer" if self.initiator == "peer" else " from here"
        if self.cause is not None:
            text += f": {str(self.cause) or type(self.cause).__name__}"
        elif not self.clean:
            text += ", which the peer has not answered yet"
        return text


class ConnectFailed(HandshakeError, anyio.ConnectionFailed):
    """No connection could be made: the name, the address, the socket or TLS failed.

    Args:
        errno: the number of the system's error, or None.
        message: what was tried and what happened.
    """

    transient = True

    def __init__(self, errno: int | None, message: str) -> None:
        super().__init__(errno, message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class OpenTimeout(HandshakeError, TimeoutError):
    """`open_timeout` ran out before the connection was open; the message says in which phase."""

    transient = True


class HandshakeRejected(HandshakeError):
    """The server answered the opening handshake with something other than 101.

    Args:
        response: its answer, with at most 64 KiB of body.

    Attributes:
        response: the same.
        transient: the status says that the same attempt may succeed later (408, 425, 429, 500, 502, 503, 504).

    RFC 6455 §4.1.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response
        self.transient: bool = response.status_code in TRANSIENT_STATUS

    def __str__(self) -> str:
        text = f"the server answered {self.response.status_code} {self.response.reason_phrase}".rstrip()
        text += ", expected 101"
        if self.response.headers.get("Content-Type", "").startswith("text/plain"):
            line = self.response.body[:SHOWN_BODY].decode("utf-8", "replace").partition("\n")[0]
            text += f": {''.join(char if char.isprintable() else '.' for char in line)}"
        return text


class ConnectionClosed(WebSocketError):
    """The connection was open and has ended.

    Args:
        close_info: how it ended.

    Attributes:
        close_info: the same.
    """

    def __init__(self, close_info: CloseInfo) -> None:
        super().__init__(close_info)
        self.close_info = close_info
        self.__cause__: BaseException | None = close_info.cause

    def __str__(self) -> str:
        return str(self.close_info)


class ConnectionClosedOK(ConnectionClosed, anyio.ClosedResourceError):
    """It ended in good order: the peer's Close said 1000, 1001 or nothing (1005), or this side closed it, with any.

    This side closes with `aclose`, at the end of the block or the handler, with `Server.drain`, and where a
    `send_stream()` is not completed.
    """


class EndOfMessages(ConnectionClosedOK, anyio.EndOfStream):
    """The same, from receive*: it ends an `async for`.

    From `send` an EndOfStream would end the caller's own `async for` over another stream, so it raises the base class.
    """


class ConnectionClosedError(ConnectionClosed, anyio.BrokenResourceError):
    """It ended in any other way; `__cause__` is the root cause, if there is one."""
