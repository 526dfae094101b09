"""What the sans-I/O layer raises.

    WebSocketError
    ├── HandshakeError (transient)            the connection was never open
    │   └── InvalidHandshake (response)       the peer broke a rule of the opening handshake, RFC 6455 §4
    ├── ProtocolError (close_code)            the peer broke a rule of the framing, RFC 6455 §5, or exceeded a limit
    └── InvalidURL                            also ValueError

All of them pickle. ``args`` holds the message alone, the other attributes are part of the instance's ``__dict__``, and
that is enough for ``BaseException.__reduce__`` to restore both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .http import Response


class WebSocketError(Exception):
    """Base of every exception this library raises on its own account."""


class HandshakeError(WebSocketError):
    """The opening handshake failed: the connection was never open.

    Attributes:
        transient: whether the same attempt may succeed later.
    """

    transient: bool = False


class InvalidHandshake(HandshakeError):
    """The peer sent something other than a valid opening handshake.

    Args:
        message: what was got and what was expected.
        response: the HTTP answer a server should send before it closes the connection. ``None`` if there is nobody to
            answer, and always for a client.

    Attributes:
        response: the same.

    RFC 6455 §4.1, §4.2.
    """

    def __init__(self, message: str, response: Response | None = None) -> None:
        super().__init__(message)
        self.response = response


class ProtocolError(WebSocketError):
    """The peer broke a rule of the protocol, or exceeded a limit of ours.

    Args:
        message: what was got, what was expected and, if there is one, which option governs it.
        close_code: what our Close frame says about it: 1002 (protocol error), 1007 (payload inconsistent with its type)
            or 1009 (message too big).

    Attributes:
        close_code: the same.

    RFC 6455 §7.4.1.
    """

    def __init__(self, message: str, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


class InvalidURL(WebSocketError, ValueError):
    """Not a WebSocket URL.

    RFC 6455 §3.
    """
