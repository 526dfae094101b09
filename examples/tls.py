"""Encryption: a server with a certificate, and a client that trusts the authority which issued it, and no other.

A certificate for this machine that is its own authority:

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout key.pem -out certificate.pem
"""

import ssl

from anyio.streams.tls import TLSAttribute
from backends import run

from anyio_ws import Server, WebSocket, connect


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def main(certificate: str, key: str, authority: str) -> None:
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(certificate, key)
    client_context = ssl.create_default_context(cafile=authority)
    async with (
        Server(echo, "localhost", 0, ssl=server_context) as server,
        connect(f"wss://localhost:{server.port}/", ssl=client_context) as ws,
    ):
        await ws.send("hello")
        print("received", repr(await ws.receive()), "over", ws.extra(TLSAttribute.tls_version))


if __name__ == "__main__":
    run(main, certificate="certificate.pem", key="key.pem", authority="certificate.pem")
