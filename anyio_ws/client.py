"""The client: connect()."""

import json as standard_json
import math
import os
import ssl as ssl_module
from collections.abc import Sequence
from functools import cache
from typing import Literal

from anyio import CancelScope, current_time

from .core import Core
from .exceptions import ConnectFailed, HandshakeRejected, OpenTimeout
from .loops import Loop
from .opening import Block, Opening
from .options import JSON, Options, OverflowPolicy
from .protocol import ClientHandshake, Deflate, parse_url
from .protocol.handshake_fields import PRODUCT
from .protocol.http import HeadersLike
from .transports.base import Transport
from .transports.connecting import connect_tcp, connect_unix
from .transports.socket import SocketTransport
from .transports.stream import AnyStream, StreamTransport
from .transports.tls import TLSTransport, check_context, check_server_hostname
from .websocket import WebSocket


@cache
def default_context() -> ssl_module.SSLContext:
    """Certificates and host names are verified against the system's authorities."""
    context = ssl_module.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl_module.OP_NO_RENEGOTIATION
    return context


class connect(Block):
    """Connect to a server: `async with connect("wss://example.com/feed") as ws: ...`.

    Nothing happens before the block is entered; each object is for one block. Leaving the block closes the connection:
    with 1000, on cancellation 1001, on an exception 1011.

    Args:
        url: `ws://` or `wss://`. Userinfo becomes an Authorization header.
        additional_headers: more headers for the opening handshake.
        origin: the Origin header, as a browser would send it.
        user_agent_header: the User-Agent header; None sends none.
        ssl: for `wss://`; by default the system's authorities and the host name are verified.
        server_hostname: the name to verify instead of the URL's.
        uds: path of a Unix socket to connect to instead of the URL's host.
        stream: an open byte stream to use instead: anyio's or trio's. It is closed with the connection.
        subprotocols: those we speak, in order of preference.
        open_timeout: seconds until the connection must be open.
        close_timeout: seconds from our Close until the connection is dropped.
        ping_interval: seconds of the peer's silence after which it gets a Ping.
        ping_timeout: seconds of silence after that, after which the connection has failed.
        idle_timeout: seconds without a message from the peer, after which we close.
        max_size: bytes of the largest message accepted.
        receive_buffer_size: bytes of unread messages at which reading pauses.
        overflow: what happens instead: "drop_oldest", "drop_newest", "latest" or "close".
        write_buffer_size: bytes not yet sent at which `send` waits.
        compression: permessage-deflate if the peer has it too: "deflate", or a `Deflate` that says how.
        json: what `send_json` and `receive_json` use: anything with `dumps` and `loads`.

    For times and `max_size` None means no limit; `Options` has the details.

    Raises:
        InvalidURL: the URL is none, at once.
        ValueError, TypeError: an option has a value that cannot be, at once.
        ConnectFailed: on entering: DNS, refused, unreachable, TLS.
        OpenTimeout: on entering: `open_timeout` ran out.
        HandshakeRejected: on entering: the server answered, but not with 101.
        InvalidHandshake: on entering: it broke the rules.

    Cancellation: while entering, nothing is left open; while leaving, the connection is dropped at once.
    RFC 6455 §4.1, §7.
    """

    def __init__(
        self,
        url: str,
        *,
        additional_headers: HeadersLike | None = None,
        origin: str | None = None,
        user_agent_header: str | None = PRODUCT,
        ssl: ssl_module.SSLContext | None = None,
        server_hostname: str | None = None,
        uds: str | bytes | os.PathLike[str] | None = None,
        stream: AnyStream | None = None,
        subprotocols: Sequence[str] = (),
        open_timeout: float | None = 10,
        close_timeout: float | None = 10,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        idle_timeout: float | None = None,
        max_size: int | None = 2**20,
        receive_buffer_size: int = 65536,
        overflow: OverflowPolicy = "backpressure",
        write_buffer_size: int = 65536,
        compression: Literal["deflate"] | Deflate | None = None,
        json: JSON = standard_json,
    ) -> None:
        super().__init__()
        self._options = Options(
            open_timeout=open_timeout,
            close_timeout=close_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            idle_timeout=idle_timeout,
            max_size=max_size,
            receive_buffer_size=receive_buffer_size,
            overflow=overflow,
            write_buffer_size=write_buffer_size,
            compression=compression,
            json=json,
        )
        self._url = parse_url(url)
        if uds is not None and stream is not None:
            raise ValueError("uds and stream exclude each other: the connection goes over one of them")
        if not self._url.secure and (ssl is not None or server_hostname is not None):
            raise ValueError("ssl and server_hostname are for wss:// URLs; this one is ws://")
        if ssl is not None:
            check_context(ssl, server_side=False)
        if server_hostname is not None:
            check_server_hostname(server_hostname)
        self._handshake = ClientHandshake(
            self._url,
            additional_headers=additional_headers,
            origin=origin,
            subprotocols=subprotocols,
            user_agent_header=user_agent_header,
            extensions=self._options.extensions,
        )
        self._ssl = ssl
        self._server_hostname = server_hostname
        self._uds = uds
        self._stream = stream
        self._phase = "connecting"
        self._transport: Transport | None = None
        self._remote_address: tuple[str, int] | str | None = None

    async def _open(self, loop: Loop) -> tuple[WebSocket, Core]:
        timeout = self._options.open_timeout
        with CancelScope(deadline=math.inf if timeout is None else current_time() + timeout):
            try:
                return await self._handshaken(loop)
            except BaseException:
                if self._transport is not None:
                    self._transport.abort()
                raise
        raise OpenTimeout(f"{self._url} was not open within open_timeout={timeout:g} s: {self._phase}")

    async def _handshaken(self, loop: Loop) -> tuple[WebSocket, Core]:
        """Connect and do the opening handshake."""
        handshake = self._handshake
        transport = self._transport = await self._connected(loop)
        if self._url.secure:
            transport = self._transport = await self._encrypted(transport, loop)
        opening = Opening(transport, loop, handshake.feed)
        self._phase = "waiting for the answer to the opening handshake"
        try:
            await opening.send(handshake.request_bytes())
            response = await opening.receive()
        except OSError as exc:
            raise ConnectFailed(exc.errno, f"{self._url} broke the connection during the handshake: {exc}") from exc
        if response.status_code != 101:
            raise HandshakeRejected(response)
        core = Core(transport, loop, self._options, is_client=True, extensions=handshake.extensions)
        ws = WebSocket(core, handshake.request, response, handshake.subprotocol, self._remote_address)
        opening.hand_over(core, handshake.trailing_data)
        return ws, core

    async def _connected(self, loop: Loop) -> Transport:
        url = self._url
        if self._stream is not None:
            return StreamTransport(self._stream, loop)
        try:
            if self._uds is not None:
                self._phase = f"connecting to {os.fsdecode(self._uds)}"
                sock = await connect_unix(self._uds)
                self._remote_address = os.fsdecode(self._uds)
            else:
                self._phase = f"connecting to {url.host} port {url.port}"
                sock = await connect_tcp(url.host, url.port)
                try:
                    self._remote_address = sock.getpeername()[:2]
                except OSError:  # the peer has reset it already
                    sock.close()
                    raise
        except OSError as exc:
            raise ConnectFailed(exc.errno, f"cannot connect to {url}: {exc.strerror or exc}") from exc
        return SocketTransport(sock, loop)

    async def _encrypted(self, transport: Transport, loop: Loop) -> Transport:
        name = self._server_hostname or self._url.host
        self._phase = f"the TLS handshake with {name}"
        context = default_context() if self._ssl is None else self._ssl
        encrypted = TLSTransport(transport, context, loop.budget, server_side=False, server_hostname=name)
        try:
            await encrypted.handshake()
        except ssl_module.SSLCertVerificationError as exc:
            raise ConnectFailed(
                exc.errno,
                f"the certificate of {name} was not accepted: {exc.verify_message.rstrip('.')}. "
                "What is accepted is for the options ssl and server_hostname to say",
            ) from exc
        except OSError as exc:  # ssl.SSLError is one
            raise ConnectFailed(exc.errno, f"the TLS handshake with {name} failed: {exc.strerror or exc}") from exc
        return encrypted
