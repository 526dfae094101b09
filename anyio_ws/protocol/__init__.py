"""The WebSocket protocol without I/O: RFC 6455 from bytes to messages and back, for any event loop or none."""

from .connection import Close, Connection
from .exceptions import HandshakeError, InvalidHandshake, InvalidURL, ProtocolError, WebSocketError
from .frames import (
    IMPLEMENTATION,
    Decoder,
    MaskingKeys,
    Opcode,
    apply_mask,
    encode_close,
    encode_frame,
    encode_header,
    parse_close,
)
from .handshake import ClientHandshake, ServerHandshake, ServerRules
from .http import Headers, Request, Response
from .url import URL, parse_url

__all__ = [
    "IMPLEMENTATION",
    "URL",
    "ClientHandshake",
    "Close",
    "Connection",
    "Decoder",
    "HandshakeError",
    "Headers",
    "InvalidHandshake",
    "InvalidURL",
    "MaskingKeys",
    "Opcode",
    "ProtocolError",
    "Request",
    "Response",
    "ServerHandshake",
    "ServerRules",
    "WebSocketError",
    "apply_mask",
    "encode_close",
    "encode_frame",
    "encode_header",
    "parse_close",
    "parse_url",
]
