"""The connections of a server: a task for each, which is opening handshake, handler and closing handshake.

Theory of operation. There may be very many of these tasks, so they are started as the event loop itself does it
(`Loop.start_task`): a task of a task group has a handle, an event and a cancel scope of its own, which is a fifth of
what an idle connection takes. What the group would do is done here. Around each task is one cancel scope; one task of
the server's group, `Attendants._run`, is cancelled with the surroundings, and then cancels all these scopes and waits
until the last of their tasks has ended. So does leaving. `drain` cancels the same scopes, but only of those that are
in their opening handshake or their handler.
"""

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from anyio import CancelScope, get_cancelled_exc_class, sleep_forever
from anyio.lowlevel import checkpoint_if_cancelled

from .core import Core, closing_code
from .exceptions import HandshakeError, HandshakeRejected
from .logs import NO_ID
from .logs import server_logger as logger
from .loops import Loop
from .opening import end
from .protocol import Response
from .running import is_own_closing
from .tasks import Tasks
from .transports.base import Transport
from .upgrade import Address, Rules, upgrade
from .websocket import WebSocket

BATCH = 200
"""Connections that are cancelled at once: trio runs all cancelled tasks before it looks at a socket or a deadline."""

Handler = Callable[[WebSocket], Awaitable[object]]


class Attendant:
    """The task of one connection.

    Attributes:
        task: what is running it; asyncio itself does not keep a task alive that waits.
        ws: the connection once it is open.
        core: its core.
        scope: around all of the task.
        handling: the handler is running.
        out_of_time: the scope was cancelled because the handler outlasted the grace of `drain`.
    """

    __slots__ = (
        "_admitted", "_owner", "_refused", "_remote_address", "_transport", "core", "handling", "out_of_time", "scope",
        "task", "ws",
    )  # fmt: skip

    def __init__(self, attendants: "Attendants", transport: Transport, remote_address: Address) -> None:
        self._owner = attendants
        self._transport = transport
        self._remote_address = remote_address
        self._admitted = False
        self._refused = False
        self.task: Any = None
        self.ws: WebSocket | None = None
        self.core: Core | None = None
        self.scope: CancelScope = CancelScope()
        self.handling: bool = False
        self.out_of_time: bool = False

    async def run(self) -> None:
        self.task = self._owner.loop.current_task()
        try:
            with self.scope:
                if await self._open():
                    await self._handle()
        except BaseException as exc:
            self._owner.tasks.record(exc)
        finally:
            self._transport.abort()
            if self._admitted:
                self._owner.opened -= 1
            self._owner.ended(self)

    def never_ran(self) -> None:
        """The task was ended by asyncio, because somebody had cancelled it before its first step."""
        self._transport.abort()
        self._owner.rejected += 1
        self._owner.ended(self)

    async def _open(self) -> bool:
        """Do the opening handshake. Returns whether there is a connection."""
        owner = self._owner
        try:
            self.ws, self.core = await upgrade(
                self._transport,
                owner.loop,
                owner.rules,
                secure=owner.secure,
                remote_address=self._remote_address,
                gate=self,
            )
        except HandshakeError:
            return False
        except BaseException:
            if not self._refused:
                owner.rejected += 1  # the end of the server, or of the program, cuts it short
            raise
        owner.accepted += 1
        if owner.draining:  # while the 101 waited to be sent
            self.core.close(*owner.farewell)
        return True

    def refusal(self) -> Response | None:
        return self._owner.refusal()

    def admitted(self) -> None:
        self._admitted = True
        self._owner.opened += 1

    def refused(self, exc: HandshakeError) -> None:
        owner = self._owner
        owner.rejected += 1
        self._refused = True
        if isinstance(exc, HandshakeRejected):
            answer = exc.response
            logger.info(
                "a request from %s was answered %d %s",
                self._remote_address,
                answer.status_code,
                answer.reason_phrase,
                extra=NO_ID,
            )
        else:
            logger.info("opening handshake with %s failed: %s", self._remote_address, exc, extra=NO_ID)

    async def _handle(self) -> None:
        """Call the handler, then close: with 1000, 1001 if it was cancelled, 1011 if it failed."""
        ws, core = self.ws, self.core
        assert ws is not None
        assert core is not None
        code = 1001  # if we are cancelled anywhere below
        try:
            self.handling = True
            try:
                await self._owner.handler(ws)
                code = 1000
                if core.log.debug:
                    core.log.event("the handler has returned, messages received: %d", core.inbox.messages_received)
            except Exception as exc:
                code = _failed(exc, ws, core)
            except BaseExceptionGroup as group:  # trio: a nursery of the handler mixes our cancellation in
                rest = group.split(get_cancelled_exc_class())[1]
                if isinstance(rest, ExceptionGroup):
                    code = _failed(cast("ExceptionGroup[Exception]", rest), ws, core)
                elif rest is not None:
                    raise
            finally:
                self.handling = False
            if self.scope.cancel_called:  # the handler may have swallowed it
                if code == 1000:
                    code = 1001
                await checkpoint_if_cancelled()
            if code == 1011:
                await end(ws, core, code, self._owner.rules.options.ending_bound)
            else:
                await ws.aclose(code)
        except BaseException as exc:
            if not core.closing or self.out_of_time:
                if not isinstance(exc, get_cancelled_exc_class()):
                    code = closing_code(exc)  # KeyboardInterrupt or SystemExit, which will end the program
                await end(ws, core, code, self._owner.rules.options.ending_bound)
            raise
        finally:
            core.let_go()  # tasks outside the handler may wait for it


class Attendants:
    """All of them.

    Attributes:
        handler: the server's, and so the rest.
        accepted: connections that were opened.
        rejected: opening handshakes that failed, were refused, or were cut short by the end of the server.
        opened: connections that are open, or were accepted and are about to be, or in their closing handshake.
        draining: no more are opened.
        farewell: code and reason of everyone's Close then.
        idle: called when the last one has ended while draining.
    """

    loop: Loop
    tasks: Tasks

    def __init__(
        self, handler: Handler, rules: Rules, *, secure: bool, max_connections: int | None, idle: Callable[[], None]
    ) -> None:
        self.handler = handler
        self.rules = rules
        self.secure = secure
        self.accepted: int = 0
        self.rejected: int = 0
        self.opened: int = 0
        self.draining: bool = False
        self.farewell: tuple[int, str] = (1001, "")
        self._max_connections = max_connections
        self._idle = idle
        self._all: set[Attendant] = set()
        self._leaving = False

    def enter(self, tasks: Tasks, loop: Loop) -> None:
        self.tasks = tasks
        self.loop = loop
        self._none_left = loop.waiter()
        tasks.start(self._run)

    async def _run(self) -> None:
        """Pass the cancellation of the surroundings on, and wait for the last one to end."""
        try:
            await sleep_forever()
        finally:
            self._leaving = True
            waiting = list(self._all)
            late: BaseException | None = None
            with CancelScope(shield=True):
                while self._all:
                    try:
                        if waiting:
                            for attendant in waiting[:BATCH]:
                                attendant.scope.cancel()
                            del waiting[:BATCH]
                            await self.loop.checkpoint()
                        else:
                            await self.loop.checkpoint()  # those that are to run have begun after this
                            for attendant in [each for each in self._all if each.task is None]:
                                attendant.never_ran()
                            if self._all:
                                await self._none_left.wait()
                    except get_cancelled_exc_class() as exc:
                        late = exc  # asyncio's own task.cancel(), which no shield stops; they must not outlive us
            if late is not None:
                raise late

    def start(self, transport: Transport, remote_address: Address) -> None:
        """Attend to a connection; if all others are cancelled already, just close it."""
        if self._leaving:
            self.rejected += 1
            transport.abort()
            return
        attendant = Attendant(self, transport, remote_address)
        self._all.add(attendant)
        self.loop.start_task(attendant.run)

    def ended(self, attendant: Attendant) -> None:
        """Its task is ending."""
        self._all.discard(attendant)
        if not self._all:
            self._none_left.wake()
            if self.draining:
                self._idle()

    @property
    def connections(self) -> frozenset[WebSocket]:
        """Those that are open now."""
        return frozenset(each.ws for each in self._all if each.ws is not None and each.ws.close_info is None)

    def refusal(self) -> Response | None:
        """Why no more connections are opened, if they are not."""
        if self.draining:
            return Response(503, body="the server is closing; expected a request to another one\n")
        if self._max_connections is not None and self.opened >= self._max_connections:
            return Response(503, body=f"the server is full: max_connections={self._max_connections:,}\n")
        return None

    # Draining

    def has_task(self, task: object) -> bool:
        """Whether a task is one of ours, with an open connection."""
        return any(each.task is task and each.ws is not None for each in self._all)

    def drain(self, code: int, reason: str, *, grace: float | None, jitter: float) -> None:
        """Close all connections, and see to it that they end."""
        self.draining = True
        self.farewell = code, reason
        now = self.loop.time()
        for core in self._cores():
            self.loop.call_at(now + random.uniform(0, jitter), partial(core.close, code, reason))
        # Who has not asked yet is not worth waiting for; a request that is on its way gets its 503 within this time.
        self.loop.call_at(now + self.rules.options.ending_bound, self._end_handshakes)
        if grace is not None:
            self.loop.call_at(now + jitter + grace, self._end_grace)
        if not self._all:
            self._idle()

    def _end_handshakes(self) -> None:
        for attendant in self._all:
            if attendant.ws is None:
                attendant.scope.cancel()

    def _end_grace(self) -> None:
        """Cancel the handlers, and handshakes; closing handshakes have until the bound of any cancellation."""
        for attendant in self._all:
            attendant.out_of_time = attendant.handling
            if attendant.handling or attendant.ws is None:
                attendant.scope.cancel()
        self.loop.call_at(self.loop.time() + self.rules.options.ending_bound, self._abort)

    def _abort(self) -> None:
        for core in self._cores():
            core.abort()

    def _cores(self) -> list[Core]:
        return [each.core for each in self._all if each.core is not None]


def _failed(exc: Exception, ws: WebSocket, core: Core) -> int:
    """A handler raised: log it; return the close code."""
    if is_own_closing(exc, core):
        return 1000  # its connection has ended, which is logged already; it did not fail
    logger.error("handler failed", exc_info=exc, extra={"connection_id": ws.id})
    return 1011
