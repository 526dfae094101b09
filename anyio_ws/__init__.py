"""WebSocket client and server with structured concurrency, for asyncio, uvloop and trio."""

from .client import connect
from .exceptions import (
    CloseInfo,
    ConnectFailed,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeError,
    HandshakeRejected,
    InvalidHandshake,
    InvalidURL,
    OpenTimeout,
    ProtocolError,
    WebSocketError,
)
from .options import Options
from .protocol import Deflate, Headers, Request, Response
from .receive_stream import ReceiveStream
from .send_stream import SendStream
from .server import Server, ServerOptions, accept, serve
from .stats import ServerStats, Stats
from .websocket import WebSocket

__all__ = [
    "CloseInfo",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "Deflate",
    "HandshakeError",
    "HandshakeRejected",
    "Headers",
    "InvalidHandshake",
    "InvalidURL",
    "OpenTimeout",
    "Options",
    "ProtocolError",
    "ReceiveStream",
    "Request",
    "Response",
    "SendStream",
    "Server",
    "ServerOptions",
    "ServerStats",
    "Stats",
    "WebSocket",
    "WebSocketError",
    "accept",
    "connect",
    "serve",
]
