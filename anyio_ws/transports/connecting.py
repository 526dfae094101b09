"""Making connected sockets: names, addresses, and happy eyeballs (RFC 8305)."""

import errno
import os
import socket
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, cast

from anyio import Event, create_task_group, getaddrinfo, move_on_after, sleep, wait_writable

ATTEMPT_DELAY = 0.25
"""Seconds before the next address is tried as well: RFC 8305 §5, "Connection Attempt Delay", recommended value."""

BACKLOG_PAUSE = 0.02
"""Seconds until a Unix socket that was too busy is tried again; the kernel does not say when it has room."""

Address = tuple[socket.AddressFamily, Any]


def _literal(host: str, port: int) -> list[Any]:
    """Return what getaddrinfo does, if the host is an address: then nobody is asked, and no thread has to wait."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return []


async def connect_tcp(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that answers.

    Raises:
        OSError: the name has no address, or none answers; then the first error, with a note for each other one.

    Cancellation: no socket is left open.
    RFC 8305 §3 to §5.
    """
    found = _literal(host, port) or await getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = _interleaved([(socket.AddressFamily(family), address) for family, _, _, _, address in found])
    if len(addresses) == 1:
        return await _connect(*addresses[0])
    winner: socket.socket | None = None
    errors: list[OSError] = []

    async def attempt(address: Address, failed: Event) -> None:
        nonlocal winner
        try:
            sock = await _connect(*address)
        except OSError as exc:
            errors.append(exc)
            failed.set()
            return
        if winner is None:
            winner = sock
            group.cancel_scope.cancel()
        else:
            sock.close()  # another one was first in the same tick

    try:
        async with create_task_group() as group:
            for address in addresses:
                failed = Event()
                group.start_soon(attempt, address, failed)
                with move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        first, *others = errors
        for other in others:
            first.add_note(f"also tried: {other}")
        raise first
    return winner


async def connect_unix(path: str | bytes | os.PathLike[str]) -> socket.socket:
    """Connect to a Unix socket.

    Raises:
        OSError: nobody listens there, or the path is none.

    Cancellation: no socket is left open.
    """
    return await _connect(socket.AF_UNIX, os.fspath(path))


async def _connect(family: socket.AddressFamily, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(address)
            except BlockingIOError as exc:
                if exc.errno == errno.EAGAIN:  # a Unix socket whose backlog is full: nothing was begun (connect(2))
                    await sleep(BACKLOG_PAUSE)
                    continue
                await wait_writable(sock)
                if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, os.strerror(error)) from None
            break
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"{exc.strerror or exc}: {_show(address)}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _show(address: Any) -> str:
    if not isinstance(address, tuple):
        return os.fsdecode(address)
    host, port, *_ = cast("tuple[str, int]", address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Alternate between the families, in the resolver's order: RFC 8305 §4."""
    first = [entry for entry in addresses if entry[0] == addresses[0][0]]
    others = [entry for entry in addresses if entry[0] != addresses[0][0]]
    return [entry for entry in chain.from_iterable(zip_longest(first, others)) if entry is not None]
