"""A raw non-blocking stream socket, the same code on every event loop: only who waits for it differs (`Readiness`)."""

import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from anyio.abc import SocketAttribute

from anyio_ws.loops import Loop

from .base import Buffer, Transport

KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds, seconds, probes: while reading is paused the kernel finds out whether the peer's machine is still there."""

MAX_VECTOR = 64
"""Buffers in one sendmsg: systems take at least 16 (POSIX), Linux 1024; past some dozens there is nothing to save."""

SENDMSG = hasattr(socket.socket, "sendmsg")  # Windows has none


class SocketTransport(Transport):
    """Owns a connected stream socket, TCP or Unix.

    Args:
        sock: the socket; it is made non-blocking here.
        loop: the owner's adapter.
    """

    __slots__ = ("_breaking", "_keepalive", "_paused", "_readiness", "_recv_into", "_send", "_short", "_sock")

    def __init__(self, sock: socket.socket, loop: Loop) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # Frames are joined where it pays (outbox.py); Nagle's algorithm would only delay them.
            _set_option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)
        self._sock = sock
        self._recv_into = sock.recv_into
        self._send = sock.send
        self._paused = True
        self._keepalive = False
        self._short = False  # the last write fell short
        self._breaking = False  # a write failed, and the rest is being read
        self._readiness = loop.readiness(sock, self._readable, self._writable)
        super().__init__(self._readiness)

    def start(self) -> None:
        self.resume()

    def pause(self) -> None:
        self._paused = True
        self._readiness.pause()
        if not self._keepalive and self._sock.family in (socket.AF_INET, socket.AF_INET6):
            self._keepalive = True
            _set_option(self._sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):
                    _set_option(self._sock, socket.IPPROTO_TCP, getattr(socket, name), value)

    def resume(self) -> None:
        if not self.closed:
            self._paused = False
            self._readiness.resume()

    def watch(self) -> None:
        self._readiness.watch()

    def poll(self) -> bool:
        if self.closed:
            return True
        if not self._paused:
            self._readable()
        elif error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.receiver.fail(OSError(error, os.strerror(error)))
        return True

    def _readable(self) -> int:
        """Read once, and return how many bytes there were."""
        receiver = self.receiver
        try:
            count = self._recv_into(receiver.get_buffer())
            if count:
                receiver.received(count)
                return count
            if not self._breaking:  # the error of the write says more than that this is the end
                self._paused = True
                self._readiness.pause()  # a socket at its end stays readable for ever
                receiver.eof()
        except (BlockingIOError, InterruptedError):
            pass
        except Exception as exc:  # an OSError of the socket; anything else is a bug, and ends the connection as well
            receiver.fail(exc)
        except BaseException as exc:
            self._interrupted(exc)
            raise
        return 0

    def write(self, data: Buffer) -> int:
        try:
            taken = self._send(data)
            if taken == len(data):
                return taken
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as exc:
            self._broken(exc)
            return 0
        self._fell_short()
        return taken

    def write_vector(self, buffers: Iterable[Buffer]) -> int:
        if not SENDMSG:
            return super().write_vector(buffers)
        vector = tuple(buffers)
        try:
            taken = self._sock.sendmsg(vector[:MAX_VECTOR])
            if taken == sum(map(len, vector)):
                return taken
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as exc:
            self._broken(exc)
            return 0
        self._fell_short()
        return taken

    def _fell_short(self) -> None:
        self._short = True
        self._readiness.want_write()

    def _writable(self) -> None:
        self._short = False
        try:
            self.receiver.writable()
        except Exception as exc:
            self.receiver.fail(exc)
        except BaseException as exc:
            self._interrupted(exc)
            raise
        if not self._short and not self.closed:
            self._readiness.write_done()

    def _interrupted(self, exc: BaseException) -> None:
        """KeyboardInterrupt under trio: the next frame must not start in the middle of this one."""
        self.abort()
        self.receiver.fail(ConnectionAbortedError(f"the connection was aborted here by {type(exc).__name__}"))

    def _broken(self, exc: OSError) -> None:
        """A write failed. What the peer said before, perhaps its Close, may still wait in the socket."""
        if self._breaking:
            return  # an answer to what it said
        self._breaking = True
        while not self._paused and not self.closed and self._readable():
            pass
        self._breaking = False
        self.receiver.fail(exc)

    @property
    def breaking(self) -> bool:
        return self._breaking

    def shutdown(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if not self.closed:
            self.closed = self._paused = True
            self._readiness.close()
            self._sock.close()

    def abort(self) -> None:
        if not self.closed:
            # A reset instead of an orderly end: the kernel does not keep what a peer may never read.
            with suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    @property
    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        sock = self._sock
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: sock.family,
            SocketAttribute.local_address: lambda: _address(sock.getsockname()),
            SocketAttribute.raw_socket: lambda: sock,
        }
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            attributes[SocketAttribute.local_port] = lambda: sock.getsockname()[1]
            attributes[SocketAttribute.remote_port] = lambda: sock.getpeername()[1]
        with suppress(OSError):
            remote = _address(sock.getpeername())
            attributes[SocketAttribute.remote_address] = lambda: remote
        return attributes


def _set_option(sock: socket.socket, level: int, option: int, value: int = 1) -> None:
    """Some systems refuse on a socket that the peer has reset already; reading will tell."""
    with suppress(OSError):
        sock.setsockopt(level, option, value)


def _address(address: Any) -> Any:
    """(host, port) for TCP, as anyio gives it; a path for a Unix socket."""
    return cast("tuple[str, int]", address[:2]) if isinstance(address, tuple) else address
