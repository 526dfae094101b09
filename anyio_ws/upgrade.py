"""The server's side of opening a connection: from bytes on a transport to a WebSocket, or to a refusal."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from anyio import CancelScope

from .core import STALL, Core
from .exceptions import ConnectFailed, HandshakeError, HandshakeRejected, OpenTimeout
from .logs import NO_ID, server_logger
from .loops import Loop
from .opening import Opening
from .options import Options
from .protocol import InvalidHandshake, Request, Response, ServerHandshake
from .protocol.request_checks import Origins
from .protocol.server_handshake import ServerRules
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
    _checked: ServerRules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.process_request is not None and not callable(self.process_request):
            raise TypeError(f"process_request must be callable, not {self.process_request!r}")
        # Once for the server, not for each connection.
        checked = ServerRules(
            subprotocols=self.subprotocols,
            origins=self.origins,
            server_header=self.server_header,
            extensions=self.options.extensions,
        )
        object.__setattr__(self, "_checked", checked)

    def handshake(self, *, secure: bool, remote_address: Address) -> ServerHandshake:
        return ServerHandshake.of(self._checked, secure=secure, remote_address=remote_address)


class Gate(Protocol):
    """What a server has to say about a request for a WebSocket."""

    def refusal(self) -> Response | None:
        """Return the answer that refuses it, if it is to be; asked again after the application was."""
        ...

    def admitted(self) -> None:
        """It is accepted: the 101 is being sent."""
        ...

    def refused(self, exc: HandshakeError) -> None:
        """It is not, and the peer has been told, if there was anything to tell; it may not have hung up yet."""
        ...


async def upgrade(
    transport: Transport,
    loop: Loop,
    rules: Rules,
    *,
    secure: bool,
    remote_address: Address = None,
    gate: Gate | None = None,
) -> tuple[WebSocket, Core]:
    """Open a connection within `open_timeout`, or answer why not.

    Args:
        transport: connected, not started; closed if this raises.
        loop: the owner's adapter.
        rules: of the server.
        secure: TLS is spoken on the transport, which does its handshake first if it is a TLSTransport.
        remote_address: the peer's.
        gate: whose opinion counts; without one, everybody may come in.

    Raises:
        HandshakeError: the connection was not opened; the peer has been told why, if there was anything to tell.
    """
    handshake = rules.handshake(secure=secure, remote_address=remote_address)
    opening = Opening(transport, loop, handshake.feed)
    deadline = _Deadline(transport, opening, loop, rules.options.open_timeout)
    try:
        if isinstance(transport, TLSTransport):
            await transport.handshake()
        try:
            request, response = await _answer(handshake, opening, rules.process_request, gate, deadline)
        except (HandshakeRejected, InvalidHandshake) as exc:
            if gate is not None:
                gate.refused(exc)
            if opening.answered:
                await opening.hang_up(REFUSED_SECONDS)
            raise
    except BaseException as exc:
        transport.abort()
        failure = _failure(exc, deadline)
        if failure is None:
            raise
        if gate is not None:
            gate.refused(failure)
        raise failure from failure.__cause__
    finally:
        deadline.cancel()
    core = Core(transport, loop, rules.options, is_client=False, extensions=handshake.extensions)
    ws = WebSocket(core, request, response, handshake.subprotocol, remote_address)
    opening.hand_over(core, handshake.trailing_data)
    return ws, core


class _Deadline:
    """`open_timeout`: when it is over, the transport is aborted and whatever waits is woken, and fails.

    A timer of the server's is much cheaper than a cancel scope. Only what the application does needs one.
    """

    __slots__ = ("_loop", "_opening", "_spared", "_timer", "_transport", "asking", "passed", "seconds")

    def __init__(self, transport: Transport, opening: Opening[Request], loop: Loop, seconds: float | None) -> None:
        self._transport = transport
        self._opening = opening
        self._loop = loop
        self.seconds = seconds
        self._timer = None if seconds is None else loop.call_at(loop.time() + seconds, self._ring)
        self._spared = False
        self.passed = False
        self.asking: CancelScope | None = None

    def check(self) -> None:
        """Look at the clock: what did not suspend has kept the timer from being called."""
        if self._timer is not None and self._timer.callback is not None and self._loop.time() >= self._timer.when:
            self._timer.cancel()
            self._due()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        assert self._timer is not None
        now = self._loop.time()
        if now - self._timer.when > STALL and not self._spared:  # the event loop was blocked: what came is read first
            self._spared = True
            self._timer = self._loop.call_at(now + STALL, self._ring)
        else:
            self._due()

    def _due(self) -> None:
        self.passed = True
        self._transport.abort()
        self._opening.fail(TimeoutError("the opening handshake took too long"))
        if self.asking is not None:
            self.asking.cancel()


def _failure(exc: BaseException, deadline: _Deadline) -> HandshakeError | None:
    """Return what to raise instead, its cause set, or None."""
    if not isinstance(exc, OSError):
        return None  # a refusal is final, even if the peer then did not hang up
    if deadline.passed:
        return OpenTimeout(f"no request for a WebSocket was complete within open_timeout={deadline.seconds:g} s")
    failure = ConnectFailed(exc.errno, f"the connection broke during the handshake: {exc.strerror or exc}")
    failure.__cause__ = exc
    return failure


async def _answer(
    handshake: ServerHandshake,
    opening: Opening[Request],
    process_request: ProcessRequest | None,
    gate: Gate | None,
    deadline: _Deadline,
) -> tuple[Request, Response]:
    """Accept the request, or raise when its refusal has been sent."""
    try:
        request = await opening.receive()
        response = gate.refusal() if gate is not None and request.is_websocket else None
        if response is None and process_request is not None:
            response = await _ask(process_request, request, deadline)
            deadline.check()
            if deadline.passed:
                raise TimeoutError("process_request took too long")
            if gate is not None and request.is_websocket and (response is None or response.status_code == 101):
                response = gate.refusal() or response  # while it waited, the last place may have been taken
        if response is None and not request.is_websocket:
            # "the server MUST [...] send an Upgrade header field in a 426 response to indicate the required
            # protocol(s)" (RFC 9110 §15.5.22)
            text = "this is a WebSocket server: expected an upgrade to websocket\n"
            response = Response(426, {"Upgrade": "websocket"}, text)
        if response is None or response.status_code == 101:
            response, data = _accept(handshake, request, response)
        else:
            response, data = _reject(handshake, response)
    except InvalidHandshake as exc:
        if exc.response is not None:
            await opening.send(handshake.reject(exc.response))
        raise
    if gate is not None and response.status_code == 101:
        gate.admitted()
    await opening.send(data)
    if response.status_code != 101:
        raise HandshakeRejected(response)
    return request, response


async def _ask(process_request: ProcessRequest, request: Request, deadline: _Deadline) -> Response | None:
    """Ask the application; None accepts, unless the deadline has passed meanwhile."""
    try:
        answer: Any = process_request(request)
        if inspect.isawaitable(answer):
            with CancelScope() as deadline.asking:
                answer = await answer
            if deadline.asking.cancelled_caught:
                return None
        if answer is not None and not isinstance(answer, Response):
            raise TypeError(f"process_request must return a Response or None, not {answer!r}")
    except Exception:
        server_logger.exception("process_request failed", extra=NO_ID)
        return Response(500, body="internal error\n")
    return answer


def _accept(handshake: ServerHandshake, request: Request, response: Response | None) -> tuple[Response, bytes]:
    try:
        if not request.is_websocket:
            raise ValueError("process_request answered 101 to a request that is not for a WebSocket")
        return handshake.accept(response)
    except Exception:  # a ValueError, or whatever comes of attributes that were set to something else
        server_logger.exception("process_request failed", extra=NO_ID)
        response = Response(500, body="internal error\n")
        return response, handshake.reject(response)


def _reject(handshake: ServerHandshake, response: Response) -> tuple[Response, bytes]:
    try:
        return response, handshake.reject(response)
    except Exception:  # a ValueError, or whatever comes of attributes that were set to something else
        server_logger.exception("process_request failed", extra=NO_ID)
        response = Response(500, body="internal error\n")
        return response, handshake.reject(response)
