"""TLS over a simulated Transport: what is written is looked at before it is encrypted."""

import ssl
from collections.abc import Callable
from functools import cache

import trustme

from anyio_ws.loops import Loop
from anyio_ws.transports.base import Buffer, Transport
from anyio_ws.transports.tls import TLSTransport


class TappedTLS(TLSTransport):
    """Tells what it has taken."""

    __slots__ = ("tap",)

    tap: Callable[[bytes], None]

    def write(self, data: Buffer) -> int:
        taken = super().write(data)
        self.tap(bytes(memoryview(data)[:taken]))
        return taken


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The client's and the server's. RSA, because the length of its signatures is always the same."""
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("test", key_type=trustme.KeyType.RSA).configure_cert(server)
    return client, server


def tls_transport(inner: Transport, loop: Loop, tap: Callable[[bytes], None], *, server_side: bool) -> TappedTLS:
    """Make a transport over another; `handshake` comes next."""
    context = contexts()[server_side]
    name = None if server_side else "test"
    transport = TappedTLS(inner, context, loop.budget, server_side=server_side, server_hostname=name)
    transport.tap = tap
    return transport
