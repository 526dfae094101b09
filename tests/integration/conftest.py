"""What every test over real sockets needs: plain TCP and TLS, with certificates of the test's own authority."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import pytest
import trustme

from anyio_ws import WebSocket
from anyio_ws.protocol import deflate_backends

T = TypeVar("T")


@dataclass(frozen=True)
class Wire:
    """What a connection runs over: `tcp` has no contexts."""

    scheme: str
    server_ssl: ssl.SSLContext | None = None
    client_ssl: ssl.SSLContext | None = None


@dataclass(frozen=True)
class CertificateFiles:
    """The authority, and a certificate with its key for 127.0.0.1, for peers that read files."""

    ca: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("localhost", "127.0.0.1")


@pytest.fixture(scope="session")
def certificate_files(
    authority: trustme.CA, certificate: trustme.LeafCert, tmp_path_factory: pytest.TempPathFactory
) -> CertificateFiles:
    folder = tmp_path_factory.mktemp("certificates")
    files = CertificateFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(files.ca)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(files.certificate, append=True)
    certificate.private_key_pem.write_to_path(files.key)
    return files


@pytest.fixture(scope="session")
def wires(authority: trustme.CA, certificate: trustme.LeafCert) -> dict[str, Wire]:
    server_ssl = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server_ssl)
    client_ssl = ssl.create_default_context()
    authority.configure_trust(client_ssl)
    return {"tcp": Wire("ws"), "tls": Wire("wss", server_ssl, client_ssl)}


@pytest.fixture(params=["tcp", "tls"])
def wire(request: pytest.FixtureRequest, wires: dict[str, Wire]) -> Wire:
    return wires[request.param]


@pytest.fixture
def tcp(wires: dict[str, Wire]) -> Wire:
    return wires["tcp"]


@pytest.fixture
def tls(wires: dict[str, Wire]) -> Wire:
    return wires["tls"]


async def echo_in_parts(ws: WebSocket) -> None:
    """Send each message back chunk by chunk, as it comes, until the connection ends."""
    while True:
        async with ws.receive_stream() as incoming, ws.send_stream(text=incoming.text) as outgoing:
            async for chunk in incoming:
                await outgoing.send(chunk)


@pytest.fixture(scope="session")
def in_thread() -> Callable[..., Any]:
    """Run a blocking peer beside the event loop; a test that fails does not wait for it."""

    async def run(function: Callable[..., T], *args: object, **options: object) -> T:
        return await anyio.to_thread.run_sync(partial(function, *args, **options), abandon_on_cancel=True)

    return run


_INSTALLED = deflate_backends.installed_backends(None)
# One library beside the standard zlib, which is always there, and all of them.
_LIBRARIES = [{name, "zlib"} for name in _INSTALLED] + ([set(_INSTALLED)] if len(_INSTALLED) > 2 else [])


@pytest.fixture(params=_LIBRARIES, ids=["+".join(sorted(names)) for names in _LIBRARIES])
def deflate_libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test as if only some of the libraries for compression were installed."""
    found = {name: library for name, library in _INSTALLED.items() if name in request.param}
    monkeypatch.setattr(deflate_backends, "_backends", found)
