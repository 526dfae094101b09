"""The WebSocket protocol without I/O: RFC 6455 from bytes to messages and back, for any event loop or none."""

from .compressing import MessageEncoder
from .connection import Close, Connection
from .deflate import Deflate, PerMessageDeflate
from .exceptions import HandshakeError, InvalidHandshake, InvalidURL, ProtocolError, WebSocketError
from .extensions import (
    ClientExtension,
    Extension,
    Parameters,
    PartDecoder,
    PartEncoder,
    ServerExtension,
    Unfinished,
)
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
from .inflating import Decoding, MessageDecoder
from .url import URL, parse_url

__all__ = [
    "IMPLEMENTATION",
    "URL",
    "ClientExtension",
    "ClientHandshake",
    "Close",
    "Connection",
    "Decoder",
    "Decoding",
    "Deflate",
    "Extension",
    "HandshakeError",
    "Headers",
    "InvalidHandshake",
    "InvalidURL",
    "MaskingKeys",
    "MessageDecoder",
    "MessageEncoder",
    "Opcode",
    "Parameters",
    "PartDecoder",
    "PartEncoder",
    "PerMessageDeflate",
    "ProtocolError",
    "Request",
    "Response",
    "ServerExtension",
    "ServerHandshake",
    "ServerRules",
    "Unfinished",
    "WebSocketError",
    "apply_mask",
    "encode_close",
    "encode_frame",
    "encode_header",
    "parse_close",
    "parse_url",
]
