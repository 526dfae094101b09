"""The server: Server, serve() and accept().

Theory of operation. One task accepts from each listening socket, and one task is a connection: opening handshake,
handler, closing handshake (`Attendants`). Leaving cancels them all at once, and each says 1001 to its peer. Nothing
that happens to one connection reaches another, or a listener.

`drain` is a matter of timers, not of a task: it closes what is open, later cancels the handlers that are still there,
and whoever calls it only waits for the last handler.
"""

import json as standard_json
import logging
import os
import socket
import ssl as ssl_module
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from anyio import TASK_STATUS_IGNORED, Event
from anyio.abc import TaskStatus

from .attending import Attendants, Handler
from .core import Core, check_close
from .logs import NO_ID
from .logs import server_logger as logger
from .loops import Loop, open_loop
from .opening import Block
from .options import JSON, Options, OverflowPolicy, SharedOptions, check_wait
from .protocol import Deflate
from .protocol.handshake_fields import PRODUCT
from .protocol.request_checks import Origins
from .stats import ServerStats
from .tasks import Tasks
from .transports.base import Transport
from .transports.listening import accept_from, close_listener, listen_tcp, listen_unix, remove_socket_file
from .transports.socket import SocketTransport
from .transports.stream import AnyStream, StreamTransport
from .transports.tls import TLSTransport, check_context
from .upgrade import Address, ProcessRequest, Rules, upgrade
from .websocket import WebSocket

BACKLOG = 1024
"""Connections that may wait in the kernel until they are accepted; the system caps it (SOMAXCONN)."""


class ServerOptions(SharedOptions, total=False):
    """The options of `Server` and `serve`, for `**options: Unpack[ServerOptions]`."""

    ssl: ssl_module.SSLContext | None
    origins: Origins
    process_request: ProcessRequest | None
    server_header: str | None
    uds: str | bytes | os.PathLike[str] | None
    listeners: Sequence[socket.socket] | None
    backlog: int
    reuse_port: bool
    max_connections: int | None
    subprotocols: Sequence[str]


class accept(Block):
    """Serve one connection over a stream you already have: `async with accept(stream) as ws: ...`.

    Nothing happens before the block is entered; each object is for one block. Leaving the block closes the connection,
    as `connect` does, and the stream.

    Args:
        stream: an open byte stream: anyio's or trio's.
        ssl: speak TLS over it, as the server.
        origins: as for `Server`.
        process_request: as for `Server`.
        server_header: as for `Server`.
        options: as for `connect`.

    Raises:
        ValueError, TypeError: an option has a value that cannot be, at once.
        HandshakeRejected: on entering: the request was refused, by us or by `process_request`.
        InvalidHandshake: on entering: it was no valid opening handshake; the client got the answer in `response`.
        ConnectFailed: on entering: TLS or the stream failed.
        OpenTimeout: on entering: `open_timeout` ran out.

    Cancellation: while entering, the stream is closed; while leaving, the connection is dropped at once.
    RFC 6455 §4.2, §7.
    """

    def __init__(
        self,
        stream: AnyStream,
        *,
        ssl: ssl_module.SSLContext | None = None,
        origins: Origins = "same-origin",
        process_request: ProcessRequest | None = None,
        server_header: str | None = PRODUCT,
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
        if ssl is not None:
            check_context(ssl, server_side=True)
        self._stream = stream
        self._ssl = ssl
        self._rules = Rules(
            subprotocols=subprotocols,
            origins=origins,
            process_request=process_request,
            server_header=server_header,
            options=Options(
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
            ),
        )
        self._options = self._rules.options

    async def _open(self, loop: Loop) -> tuple[WebSocket, Core]:
        transport: Transport = StreamTransport(self._stream, loop)
        if self._ssl is not None:
            transport = TLSTransport(transport, self._ssl, loop.budget, server_side=True)
        return await upgrade(transport, loop, self._rules, secure=self._ssl is not None)


class Server:
    """Listen, and call a handler for each connection: `async with Server(handler, "localhost", 8765) as server: ...`.

    It is listening when the block is entered. A connection is closed when its handler returns: with 1000, on
    cancellation 1001, on an exception 1011, which is logged. Leaving the block cancels the handlers, says 1001 to
    everyone and waits for them. Each object is for one block.

    Args:
        handler: called with the WebSocket of each connection, in a task of its own.
        host: name, address, or several; None for all interfaces, IPv4 and IPv6.
        port: one number for all addresses; 0 lets the system choose.
        ssl: a context with a certificate: speak TLS.
        uds: path of a Unix socket to listen on instead.
        listeners: sockets that are bound and listening to use instead, closed with the server.
        backlog: connections that may wait in the kernel.
        reuse_port: several processes may listen on the same port.
        origins: "same-origin": the Origin of a browser's page must have the host and port of the Host header. Strings
            and patterns: it must be one of them. None: anyone's page may connect.
        process_request: called, and awaited, with every well-formed request that passed our own checks. None accepts an
            upgrade, and answers 426 to anything else; `Response(101, headers)` accepts with more headers; any other
            Response is the answer.
        max_connections: how many may be open; others get 503.
        server_header: the Server header; None sends none.
        subprotocols: those spoken here, in order of preference.
        open_timeout: seconds from accepting a connection until it must be open.
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

    For times, `max_size` and `max_connections` None means no limit; `Options` has the details.

    Raises:
        ValueError, TypeError: an option has a value that cannot be, at once.
        ValueError: on entering: a socket of `listeners` does not listen.
        OSError: on entering: an address cannot be listened on.

    Cancellation: the block's, as leaving it.
    RFC 6455 §4.2.
    """

    def __init__(
        self,
        handler: Handler,
        host: str | Sequence[str] | None = None,
        port: int | None = None,
        *,
        ssl: ssl_module.SSLContext | None = None,
        uds: str | bytes | os.PathLike[str] | None = None,
        listeners: Sequence[socket.socket] | None = None,
        backlog: int = BACKLOG,
        reuse_port: bool = False,
        origins: Origins = "same-origin",
        process_request: ProcessRequest | None = None,
        max_connections: int | None = None,
        server_header: str | None = PRODUCT,
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
        if not callable(handler):
            raise TypeError(f"handler must be callable with a WebSocket, not {handler!r}")
        if (port is not None) + (uds is not None) + (listeners is not None) != 1:
            raise ValueError("a server listens on a port, on uds or on listeners: exactly one of these options")
        if host is not None and port is None:
            raise ValueError("host goes with port")
        if ssl is not None:
            check_context(ssl, server_side=True)
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections must be at least 1 or None, not {max_connections!r}")
        rules = Rules(
            subprotocols=subprotocols,
            origins=origins,
            process_request=process_request,
            server_header=server_header,
            options=Options(
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
            ),
        )
        self._host = host
        self._port = port
        self._ssl = ssl
        self._uds = uds
        self._given = listeners
        self._backlog = backlog
        self._reuse_port = reuse_port
        self._tasks: Tasks | None = None
        self._listeners: list[socket.socket] = []
        self._addresses: tuple[tuple[str, int] | str, ...] = ()
        self._closed = Event()  # drained, or left
        self._attendants = Attendants(
            handler, rules, secure=ssl is not None, max_connections=max_connections, idle=self._closed.set
        )

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a Server is for one `async with` only; make a new one")
        self._tasks = await Tasks().__aenter__()
        self._loop = open_loop(self._tasks.start_service)
        self._attendants.enter(self._tasks, self._loop)
        try:
            self._listeners = await self._listen()
            self._addresses = tuple(_listening_at(listener) for listener in self._listeners)
            for listener in self._listeners:
                self._tasks.start(accept_from, listener, self._start, logging.LoggerAdapter(logger, NO_ID))
                logger.info("listening on %s", _listening_at(listener), extra=NO_ID)
        except BaseException as exc:
            await self._leave(exc)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return await self._leave(exc)

    async def _leave(self, exc: BaseException | None) -> bool:
        assert self._tasks is not None
        self._close_listeners()
        try:
            return await self._tasks.__aexit__(type(exc) if exc else None, exc, exc.__traceback__ if exc else None)
        finally:
            self._loop.close()
            self._closed.set()

    async def _listen(self) -> list[socket.socket]:
        if self._given is not None:
            for listener in self._given:
                if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    raise ValueError(f"a socket of the option listeners does not listen: {listener}")
                listener.setblocking(False)
            return list(self._given)
        if self._uds is not None:
            return [listen_unix(self._uds, backlog=self._backlog)]
        assert self._port is not None
        return await listen_tcp(self._host, self._port, backlog=self._backlog, reuse_port=self._reuse_port)

    def _close_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            close_listener(listener)
        if listeners and self._uds is not None:
            remove_socket_file(self._uds)

    # What it is doing

    @property
    def addresses(self) -> tuple[tuple[str, int] | str, ...]:
        """(host, port) of each TCP socket it listens on, the path of a Unix socket; they stay when it has closed."""
        return self._addresses

    @property
    def port(self) -> int:
        """The port number, the same for all addresses.

        Raises:
            ValueError: it does not listen on TCP.
        """
        for address in self._addresses:
            if isinstance(address, tuple):
                return address[1]
        entered = "does not listen on TCP" if self._addresses else "is not listening yet (enter its `async with` first)"
        raise ValueError(f"this server {entered}, so it has no port")

    @property
    def url(self) -> str:
        """What a client on this machine dials; for a Unix socket together with the option `uds`."""
        scheme = "ws" if self._ssl is None else "wss"
        for address in self._addresses:
            if isinstance(address, tuple):
                host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
                if self._ssl is not None and isinstance(self._host, str) and self._host not in ("", "0.0.0.0", "::"):
                    host = self._host  # certificates are for names
                return f"{scheme}://[{host}]:{address[1]}/" if ":" in host else f"{scheme}://{host}:{address[1]}/"
        return f"{scheme}://localhost/"

    @property
    def connections(self) -> frozenset[WebSocket]:
        """The connections that are open now."""
        return self._attendants.connections

    @property
    def stats(self) -> ServerStats:
        """What the server did so far."""
        attendants = self._attendants
        return ServerStats(accepted=attendants.accepted, rejected=attendants.rejected, open=len(attendants.connections))

    # Connections

    def _start(self, sock: socket.socket, address: Any) -> None:
        assert self._tasks is not None
        transport: Transport = SocketTransport(sock, self._loop)
        if self._ssl is not None:
            transport = TLSTransport(transport, self._ssl, self._loop.budget, server_side=True)
        is_unix = sock.family == getattr(socket, "AF_UNIX", None)
        self.start_connection(transport, None if is_unix else (address[0], address[1]))

    def start_connection(self, transport: Transport, remote_address: Address) -> None:
        """Serve a connection in a task of its own."""
        self._attendants.start(transport, remote_address)

    # Ending

    async def drain(self, code: int = 1001, reason: str = "", *, grace: float | None = 10, jitter: float = 0) -> None:
        """Close the listeners and all connections, and wait until the last handler has returned.

        Handlers are not cancelled at first: they see ConnectionClosed from the next call. Idempotent: a second call
        waits for the same end.

        Args:
            code: for the Close that everyone gets.
            reason: likewise.
            grace: seconds after which handlers that are still running are cancelled; None to wait for them all.
            jitter: seconds over which the Closes are spread at random, so that clients do not come back all at once.

        Raises:
            RuntimeError: it was called from a handler of this server, which would wait for itself; or the block was not
                entered.
            ValueError: the code must not be sent, the reason is no Unicode (a lone surrogate), or grace or jitter is no
                such time.

        Cancellation: the server stays closed to newcomers, and goes on closing.
        """
        if self._tasks is None:
            raise RuntimeError("drain() is for a server whose `async with` block was entered")
        if self._attendants.has_task(self._loop.current_task()):
            raise RuntimeError("drain() was called by a handler of the same server, which would wait for itself")
        check_close(code, reason)
        check_wait("grace", grace, optional=True)
        check_wait("jitter", jitter, optional=False)
        if not self._attendants.draining:
            self._close_listeners()
            self._attendants.drain(code, reason, grace=grace, jitter=jitter)
        await self._closed.wait()

    async def wait_closed(self) -> None:
        """Wait until the server is drained, or its block is left.

        Cancellation: safe.
        """
        await self._closed.wait()


def _listening_at(listener: socket.socket) -> tuple[str, int] | str:
    name: Any = listener.getsockname()
    return os.fsdecode(name) if listener.family == getattr(socket, "AF_UNIX", None) else (name[0], name[1])


async def serve(
    handler: Handler,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    task_status: TaskStatus[Server] = TASK_STATUS_IGNORED,
    **options: Unpack[ServerOptions],
) -> None:
    """Run a `Server` until cancelled or drained.

    Args:
        handler: as for `Server`, and so the rest.
        host: likewise.
        port: likewise.
        task_status: for `task_group.start(serve, ...)`, which returns the Server once it is listening.
        options: likewise.

    Raises:
        ValueError, TypeError: an option has a value that cannot be.
        OSError: an address cannot be listened on.

    Cancellation: cancels the handlers, says 1001 to everyone and waits for them, for about a second.
    """
    async with Server(handler, host, port, **options) as server:
        task_status.started(server)
        await server.wait_closed()
