"""Listening sockets, and accepting from them."""

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from anyio import ClosedResourceError, getaddrinfo, notify_closing, sleep, wait_readable

ACCEPTS_PER_WAKEUP = 64
"""Connections accepted in a row; then the others have their turn."""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The process or the system has no more descriptors or memory: that passes when connections end."""

EXHAUSTED_PAUSE = 0.1
"""Seconds until it is tried again; the connections wait in the kernel's queue meanwhile."""

BIND_ATTEMPTS = 10
"""How often a port that the system chose for one address may be taken on another one."""


async def listen_tcp(
    hosts: str | Sequence[str] | None, port: int, *, backlog: int, reuse_port: bool
) -> list[socket.socket]:
    """Listen on all addresses of the hosts, with one port number for all of them, also if `port` is 0.

    Args:
        hosts: names or addresses; None or "" for all interfaces, IPv4 and IPv6.
        port: 0 lets the system choose.
        backlog: connections that may wait to be accepted.
        reuse_port: several processes may listen on the same port (SO_REUSEPORT).

    Raises:
        OSError: a name has no address, or an address cannot be bound; the message says which.
    """
    names = [hosts] if hosts is None or isinstance(hosts, str) else list(hosts)
    addresses: list[tuple[socket.AddressFamily, Any]] = []
    for name in names:
        found = await getaddrinfo(name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in found:
            if (family, address) not in addresses:
                addresses.append((socket.AddressFamily(family), address))
    for attempt in range(BIND_ATTEMPTS):
        listeners: list[socket.socket] = []
        number = port
        try:
            for family, address in addresses:
                try:
                    listeners.append(_listen(family, (address[0], number, *address[2:]), backlog, reuse_port))
                except OSError as exc:
                    if exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and len(addresses) > 1:
                        continue  # the system has no IPv6, or not on this interface
                    raise OSError(exc.errno, f"cannot listen on {address[0]} port {number}: {exc.strerror}") from exc
                number = listeners[0].getsockname()[1]
            if not listeners:
                raise OSError(errno.EADDRNOTAVAIL, f"none of the addresses of {hosts!r} can be listened on")
        except BaseException as exc:
            for listener in listeners:
                listener.close()
            taken = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
            if port == 0 and taken and listeners and attempt < BIND_ATTEMPTS - 1:
                continue
            raise
        return listeners
    raise AssertionError


def _listen(family: socket.AddressFamily, address: Any, backlog: int, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if os.name == "posix":
            # Without it a restarted server could not bind while old connections are in TIME_WAIT. (On Windows the
            # option means that anybody may take the port.)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_unix(path: str | bytes | os.PathLike[str], *, backlog: int) -> socket.socket:
    """Listen on a Unix socket. A socket file that a dead server left behind is replaced.

    Raises:
        OSError: somebody listens there, the file is no socket, or the path is none.
    """
    name = os.fspath(path)
    try:
        return _listen(socket.AF_UNIX, name, backlog, False)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE or not _is_abandoned(name):
            raise OSError(exc.errno, f"cannot listen on {os.fsdecode(name)}: {exc.strerror or exc}") from exc
    os.unlink(name)
    return _listen(socket.AF_UNIX, name, backlog, False)


def _is_abandoned(name: str | bytes) -> bool:
    """Whether a file is a socket on which nobody listens."""
    if name[:1] in ("\0", b"\0"):  # Linux's abstract namespace has no files
        return False
    if not stat.S_ISSOCK(os.stat(name).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass  # somebody does, and is busy
    return False


def remove_socket_file(path: str | bytes | os.PathLike[str]) -> None:
    """Remove the file of a Unix socket that was closed, unless somebody else listens there meanwhile."""
    name = os.fspath(path)
    with suppress(OSError):
        if _is_abandoned(name):
            os.unlink(name)


def close_listener(listener: socket.socket) -> None:
    """Close a listening socket; `accept_from` returns."""
    notify_closing(listener)
    listener.close()


async def accept_from(
    listener: socket.socket,
    start: Callable[[socket.socket, Any], None],
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> None:
    """Accept connections until cancelled, or until `close_listener`.

    Args:
        listener: non-blocking.
        start: called with each connected socket and the peer's address; it owns the socket.
        logger: for a warning when descriptors run out.
    """
    exhausted = False
    while listener.fileno() >= 0:
        try:
            await wait_readable(listener)
        except ClosedResourceError:
            return
        for _ in range(ACCEPTS_PER_WAKEUP):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    if not exhausted:
                        logger.warning("cannot accept connections: %s; trying again until it works", exc)
                    exhausted = True
                    await sleep(EXHAUSTED_PAUSE)
                    break
                continue  # this connection died in the queue: ECONNABORTED, and on Linux whatever it met (accept(2))
            exhausted = False
            start(sock, address)
