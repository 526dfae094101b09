"""The server's side of opening a connection: from bytes on a transport to a WebSocket, or to a refusal."""

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anyio import CancelScope, current_time

from .core import Core
from .exceptions import ConnectFailed, HandshakeRejected, OpenTimeout
from .logs import NO_ID, server_logger
from .loops import Loop
from .opening import Opening
from .options import Options
from .protocol import InvalidHandshake, Request, Response, ServerHandshake
from .protocol.request_checks import Origins
from .transports.base import Transport
from .transports.tls import TLSTransport
from .websocket import WebSocket

ProcessRequest = Callable[[Request], Awaitable[Response | None] | Response | None]
Address = tuple[str, int] | str | None

REFUSED_SECONDS = 1.0
"""Seconds that a client may take to read a refusal before the connection is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a server opens connections: the options of `accept` and `Server` that are not shared with a client."""

    subprotocols: Sequence[str]
    origins: Origins
    process_request: ProcessRequest | None
    server_header: str | None
    options: Options

    def __post_init__(self) -> None:
        if self.process_request is not None and not callable(self.process_request):
            raise TypeError(f"process_request must be callable, not {self.process_request!r}")
        self.handshake(secure=False, remote_address=None)  # checks the rest

    def handshake(self, *, secure: bool, remote_address: Address) -> ServerHandshake:
        return ServerHandshake(
            subprotocols=self.subprotocols,
            origins=self.origins,
            server_header=self.server_header,
            secure=secure,
            remote_address=remote_address,
        )


async def upgrade(
    transport: Transport,
    loop: Loop,
    rules: Rules,
    *,
    secure: bool,
    remote_address: Address = None,
    refusal: Callable[[], Response | None] = lambda: None,
) -> tuple[WebSocket, Core]:
    """Open a connection within `open_timeout`, or answer why not.

    Args:
        transport: connected, not started; closed if this raises.
        loop: the owner's adapter.
        rules: of the server.
        secure: TLS is spoken on the transport, which does its handshake first if it is a TLSTransport.
        remote_address: the peer's.
        refusal: asked when a request for a WebSocket has come; a Response refuses it.

    Raises:
        HandshakeError: the connection was not opened; the peer has been told why, if there was anything to tell.
    """
    timeout = rules.options.open_timeout
    try:
        with CancelScope(deadline=math.inf if timeout is None else current_time() + timeout):
            if isinstance(transport, TLSTransport):
                await transport.handshake()
            return await _upgrade(transport, loop, rules, secure, remote_address, refusal)
        raise OpenTimeout(f"no request for a WebSocket was complete within open_timeout={timeout:g} s")
    except OSError as exc:
        transport.abort()
        if isinstance(exc, OpenTimeout):
            raise
        raise ConnectFailed(exc.errno, f"the connection broke during the handshake: {exc.strerror or exc}") from exc
    except BaseException:
        transport.abort()
        raise


async def _upgrade(
    transport: Transport,
    loop: Loop,
    rules: Rules,
    secure: bool,
    remote_address: Address,
    refusal: Callable[[], Response | None],
) -> tuple[WebSocket, Core]:
    handshake = rules.handshake(secure=secure, remote_address=remote_address)
    opening = Opening(transport, loop, handshake.feed)
    try:
        request = await opening.receive()
        response = await _decide(request, rules.process_request, refusal)
        if response is None or response.status_code == 101:
            response, data = _accept(handshake, request, response)
        else:
            response, data = _reject(handshake, response)
    except InvalidHandshake as exc:
        if exc.response is not None:
            await opening.send(handshake.reject(exc.response))
            await opening.hang_up(REFUSED_SECONDS)
        raise
    await opening.send(data)
    if response.status_code != 101:
        await opening.hang_up(REFUSED_SECONDS)
        raise HandshakeRejected(response)
    core = Core(transport, loop, rules.options, is_client=False)
    ws = WebSocket(core, request, response, handshake.subprotocol, remote_address)
    opening.hand_over(core, handshake.trailing_data)
    return ws, core


async def _decide(
    request: Request, process_request: ProcessRequest | None, refusal: Callable[[], Response | None]
) -> Response | None:
    """Ask the application; None accepts."""
    response = refusal() if request.is_websocket else None
    if response is None and process_request is not None:
        try:
            answer: Any = process_request(request)
            if inspect.isawaitable(answer):
                answer = await answer
            if answer is not None and not isinstance(answer, Response):
                raise TypeError(f"process_request must return a Response or None, not {answer!r}")
            response = answer
        except Exception:
            server_logger.exception("process_request failed", extra=NO_ID)
            return Response(500, body="internal error\n")
        if request.is_websocket and (response is None or response.status_code == 101):
            response = refusal() or response  # while it waited, the last place may have been taken
    if response is None and not request.is_websocket:
        # "the server MUST [...] send an Upgrade header field in a 426 response to indicate the required protocol(s)"
        # (RFC 9110 §15.5.22)
        return Response(426, {"Upgrade": "websocket"}, "this is a WebSocket server: expected an upgrade to websocket\n")
    return response


def _accept(handshake: ServerHandshake, request: Request, response: Response | None) -> tuple[Response, bytes]:
    try:
        if not request.is_websocket:
            raise ValueError("process_request answered 101 to a request that is not for a WebSocket")
        return handshake.accept(response)
    except ValueError:
        server_logger.exception("process_request failed", extra=NO_ID)
        response = Response(500, body="internal error\n")
        return response, handshake.reject(response)


def _reject(handshake: ServerHandshake, response: Response) -> tuple[Response, bytes]:
    try:
        return response, handshake.reject(response)
    except ValueError:
        server_logger.exception("process_request failed", extra=NO_ID)
        response = Response(500, body="internal error\n")
        return response, handshake.reject(response)
