"""Every way in which a connection can end, against one oracle.

A case says how the ending begins, which role we have, what data is in flight, which tasks of ours wait, and what the
peer does. `expected` says how such a connection must end, from the promises alone: the code, reason, initiator and
cause, when `close_info` is set and when the connection is gone, and what each task gets. One absolute deadline is in
all of them: `close_timeout`, or a second if the block is left by an error or a cancellation, whatever arrives.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import product
from typing import Any, Literal, NamedTuple

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus

from anyio_ws import (
    CloseInfo,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ProtocolError,
    WebSocket,
    connect,
)
from anyio_ws.protocol import Opcode
from anyio_ws.testing import MemoryServer, RawPeer, raw_peer
from support.peers import UPGRADE, dial, evil_server, switching
from support.tools import Call

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

pytestmark = [pytest.mark.virtual_time, pytest.mark.exhaustive]

CLOSE_TIMEOUT = 7.0
"""Seconds; more than what bounds an ending by an error."""

ROOM = 1000
"""Bytes of `receive_buffer_size`, so that a message of this size makes the inbox full."""

LARGE = bytes(70_000)
"""A message that the link does not take whole from a sender."""

TURN = b"its turn never comes"
"""A message whose sender waits for the other's."""


# The cases

HOW = {
    "we call aclose": (4000, "bye"),
    "two tasks call aclose": (4000, "bye"),
    "we leave the block": (1000, ""),
    "we leave it by an exception": (1011, ""),
    "we are cancelled": (1001, ""),
    "both close at once": (4000, "bye"),
    "the peer closes": (4001, "theirs"),
    "the peer breaks the protocol": (1002, None),
    "we refuse a message": (1003, None),
}
"""How it begins, with the code and reason that `close_info` should have, unless the peer says nothing of its own."""

PEERS = [
    "answers",
    "is silent",
    "answers and keeps the socket",
    "sends data",
    "sends pings",
    "resets",
    "ends its side without a Close",
    "ends its side after a Close",
    "sends two Closes",
    "sends an invalid Close",
]
"""What the peer does once our Close is here; if the peer begins, this is all that it does."""

FLIGHTS = ["nothing", "outbox", "inbox", "both", "fragment"]
"""Where there is data: a sender is blocked, the inbox is full and more is behind it, half a message has come."""

TASKS = ["none", "receive", "send", "ping", "wait_closed", "all"]
"""What tasks of ours do meanwhile. They wait alone where as little as possible is in flight; otherwise none, or all."""


class Case(NamedTuple):
    how: str
    role: Literal["client", "server"]
    flight: str
    tasks: str
    peer: str

    @property
    def blocked(self) -> bool:
        return self.flight in ("outbox", "both")

    @property
    def full(self) -> bool:
        return self.flight in ("inbox", "both")

    @property
    def peer_begins(self) -> bool:
        return self.how in ("the peer closes", "the peer breaks the protocol")

    def has(self, task: str) -> bool:
        """Whether a task of ours waits in this call."""
        if task == "receive" and (self.full or self.how == "we refuse a message"):
            return False  # there would be something to receive; we are receiving already
        if task == "send" and not self.blocked:
            return False
        return self.tasks in (task, "all")

    @property
    def peer_has_closed(self) -> bool:
        """The peer has sent its Close when ours comes."""
        return self.how in ("both close at once", "the peer closes")

    @property
    def leaves_at_once(self) -> bool:
        """The peer begins, and with no Close."""
        return self.how == "the peer closes" and self.peer in ("resets", "ends its side without a Close")

    @property
    def is_run(self) -> bool:
        alone = "outbox" if self.tasks == "send" else "nothing"
        return self.tasks in ("none", "all") or (self.has(self.tasks) and self.flight == alone)


# The oracle


class Expected(NamedTuple):
    """How it must end; times are seconds from the Close that begins the ending."""

    code: int
    reason: str | None
    initiator: str
    cause: type[Exception] | None
    ended: float
    gone: float

    @property
    def clean(self) -> bool:
        return self.cause is None


def bound(how: str) -> float:
    """The absolute deadline."""
    errors = ("we leave it by an exception", "we are cancelled", "the peer breaks the protocol", "we refuse a message")
    return 1.0 if how in errors else CLOSE_TIMEOUT


def expected(how: str, peer: str) -> Expected:
    code, reason = HOW[how]
    limit = bound(how)
    # The peer's end of the transport ends, so nothing is left to wait for.
    ends = peer in ("answers", "resets", "ends its side without a Close", "ends its side after a Close")
    gone = 0.0 if ends or peer == "sends two Closes" else limit
    if how == "the peer closes":
        if peer == "resets":
            return Expected(1006, "", "peer", ConnectionResetError, 0, 0)
        if peer == "ends its side without a Close":
            return Expected(1006, "", "peer", EOFError, 0, 0)
        if peer == "sends an invalid Close":
            return Expected(1002, None, "local", ProtocolError, 0, 1)
        return Expected(code, reason, "peer", None, 0, gone)
    if how == "both close at once":
        return Expected(code, reason, "local", None, 0, gone)
    if how in ("the peer breaks the protocol", "we refuse a message"):
        return Expected(code, reason, "local", ProtocolError, 0, gone)
    match peer:
        case "answers" | "answers and keeps the socket" | "ends its side after a Close" | "sends two Closes":
            return Expected(code, reason, "local", None, 0, gone)
        case "resets":
            return Expected(code, reason, "local", ConnectionResetError, 0, 0)
        case "ends its side without a Close":
            return Expected(code, reason, "local", EOFError, 0, 0)
        case "sends an invalid Close":
            return Expected(code, reason, "local", ProtocolError, 0, 1)
        case _:  # it is silent, or talks of other things
            cause = TimeoutError if limit == CLOSE_TIMEOUT else ConnectionAbortedError
            return Expected(code, reason, "local", cause, limit, limit)


def expected_error(how: str) -> type[ConnectionClosed]:
    """What a call raises that the ending interrupts."""
    failures = ("the peer closes", "the peer breaks the protocol", "we refuse a message")  # it closes with 4001
    return ConnectionClosedError if how in failures else ConnectionClosedOK


# The peer


async def hear(peer: RawPeer) -> tuple[list[int], int]:
    """Read until a Close. Returns the sizes of the messages before it, and its code."""
    sizes: list[int] = []
    while True:
        first, second = await peer.receive(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(await peer.receive(2 if length == 126 else 8))
        key = await peer.receive(4) if second & 0x80 else bytes(4)
        payload = await peer.receive(length)
        if first == 0x80 | CLOSE:
            return sizes, (payload[0] ^ key[0]) << 8 | payload[1] ^ key[1]
        if first != 0x80 | PING:
            assert first == 0x80 | BINARY
            sizes.append(length)


async def chatter(peer: RawPeer, opcode: Opcode) -> None:
    while True:
        await peer.send_frame(opcode, b"more", fin=opcode != CONT)
        await anyio.sleep(1)


async def begin(peer: RawPeer, case: Case) -> None:
    """The peer begins."""
    if case.how == "the peer breaks the protocol":
        await peer.send(b"\xff\xff")
    elif case.leaves_at_once:
        await say_goodbye(peer, case)
    elif case.peer == "sends an invalid Close":
        await peer.send_frame(CLOSE, b"\x03")
    else:
        await peer.send_close(4001, "theirs")


async def say_goodbye(peer: RawPeer, case: Case) -> None:
    """The peer goes on, when our Close is here; it has sent its own, or not."""
    if not case.peer_has_closed and case.peer in (
        "answers",
        "answers and keeps the socket",
        "ends its side after a Close",
        "sends two Closes",
    ):
        await peer.send_close()
    match case.peer:
        case "answers":
            if peer._is_client:  # the server is the first to close
                await peer.receive_eof()
            peer.close()
        case "resets":
            peer.reset()
        case "ends its side without a Close" | "ends its side after a Close":
            peer.send_eof()
        case "sends two Closes":
            await peer.send_close(3000, "second thoughts")
            peer.send_eof()
        case "sends an invalid Close":
            await peer.send_frame(CLOSE, b"\x03")
        case "sends data":
            await chatter(peer, CONT if case.flight == "fragment" else BINARY)
        case "sends pings":
            await chatter(peer, PING)


# We


class Boom(Exception):
    """What a block is left by."""


class Host:
    """Who has the connection: the block of a connect(), or the handler of a server.

    Attributes:
        ws: the connection.
        scope: around the block, or around the whole server.
        raised: what came out of the block of a connect().
    """

    ws: WebSocket

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.raised: Exception | None = None
        self._leaving = anyio.Event()
        self._error: Exception | None = None

    def leave(self, error: Exception | None = None) -> None:
        """Leave the block, or return from the handler; or raise this."""
        self._error = error
        self._leaving.set()

    async def body(self, ws: WebSocket) -> None:
        self.ws = ws
        await self._leaving.wait()
        if self._error is not None:
            raise self._error

    async def run_client(self, connection: connect) -> None:
        try:
            with self.scope:
                async with connection as ws:
                    await self.body(ws)
        except Boom as exc:
            self.raised = exc

    async def run_server(self, server: MemoryServer, *, task_status: TaskStatus[None]) -> None:
        with self.scope:
            async with server:
                task_status.started()
                await anyio.sleep_forever()


async def quiet() -> None:
    """Until nothing more can happen: the virtual clock moves only then."""
    await anyio.sleep(0.001)


async def said(peer: RawPeer) -> bytes:
    """Return what the peer has received so far, the head of a handshake."""
    await quiet()
    data = bytes(peer._received)
    peer._received.clear()
    return data


@asynccontextmanager
async def hosted(role: str, **options: Any) -> AsyncGenerator[tuple[Host, RawPeer]]:
    """A connection in the hands of a real connect() or of a real Server, and its peer."""
    host = Host()
    async with anyio.create_task_group() as group:
        if role == "client":
            async with evil_server() as (peer, dialled):
                group.start_soon(host.run_client, dialled(**options))
                await peer.send(switching(await said(peer)))
                await quiet()
                yield host, peer
                host.scope.cancel()
        else:
            server = MemoryServer(host.body, **options)
            await group.start(host.run_server, server)
            async with dial(server) as peer:
                await peer.send(UPGRADE)
                assert (await said(peer)).startswith(b"HTTP/1.1 101 ")
                yield host, peer
                host.scope.cancel()


async def put_in_flight(case: Case, ws: WebSocket, peer: RawPeer, group: TaskGroup) -> Call | None:
    """Returns the call of a sender whose message is committed and which waits, if there is one."""
    sender = None
    if case.blocked:
        peer.pause()
        sender = Call(group, ws.send, LARGE)
    if case.full:
        for _ in range(3):
            await peer.send_frame(BINARY, bytes(ROOM))
    elif case.flight == "fragment":
        await peer.send_frame(BINARY, b"half a mess", fin=False)
    await quiet()
    assert sender is None or not sender.done
    assert ws._core.inbox.paused == case.full
    return sender


def start_tasks(case: Case, ws: WebSocket, group: TaskGroup) -> dict[str, Call]:
    calls: dict[str, Callable[..., Any]] = {"receive": ws.receive, "ping": ws.ping, "wait_closed": ws.wait_closed}
    tasks = {name: Call(group, function) for name, function in calls.items() if case.has(name)}
    if case.has("send"):
        tasks["send"] = Call(group, ws.send, TURN)
    return tasks


async def start_ending(case: Case, host: Host, peer: RawPeer, group: TaskGroup) -> list[Call]:
    """Returns the calls that must return when the connection is gone."""
    ws = host.ws
    match case.how:
        case "we call aclose":
            return [Call(group, ws.aclose, 4000, "bye")]
        case "two tasks call aclose":
            return [Call(group, ws.aclose, 4000, "bye"), Call(group, ws.aclose, 4000, "bye")]
        case "we leave the block":
            host.leave()
        case "we leave it by an exception":
            host.leave(Boom())
        case "we are cancelled":
            host.scope.cancel()
        case "both close at once":
            return [Call(group, both_close, ws, peer)]
        case "we refuse a message":
            await refuse(case, ws, peer)
        case _:
            await begin(peer, case)
    return []


async def both_close(ws: WebSocket, peer: RawPeer) -> None:
    """Neither knows of the other's Close."""
    await peer.send_close(4001, "theirs")
    await ws.aclose(4000, "bye")


async def refuse(case: Case, ws: WebSocket, peer: RawPeer) -> None:
    if not case.full:
        await peer.send_frame(CONT if case.flight == "fragment" else BINARY, b"not text")
    with pytest.raises(ConnectionClosedError):
        await ws.receive_text()


async def take_what_came_before(ws: WebSocket) -> None:
    """The ending is an event in order: behind unread messages it is not seen."""
    await quiet()
    assert ws.close_info is None
    with pytest.raises(ConnectionClosedError):
        for _ in range(4):
            assert await ws.receive() == bytes(ROOM)


# What must be so


def check_info(info: CloseInfo | None, wanted: Expected) -> None:
    assert info is not None
    assert (info.code, info.initiator, info.clean) == (wanted.code, wanted.initiator, wanted.clean)
    assert type(info.cause) is (wanted.cause or type(None))
    if wanted.reason is None:  # a violation says of itself what it is
        assert isinstance(info.cause, ProtocolError)
        assert info.code == info.cause.close_code
        assert info.reason == str(info.cause)
    else:
        assert info.reason == wanted.reason


def check_tasks(case: Case, tasks: dict[str, Call], sender: Call | None, info: CloseInfo) -> None:
    """Every task that waited for something has woken, and knows why."""
    error = expected_error(case.how)
    tasks = dict(tasks)
    if case.peer_begins and case.full:
        # Reading on, to find the ending, also let the senders go on, or not: that is up to the peer.
        tasks.pop("send", None)
        sender = None
    elif sender is not None and error is ConnectionClosedError:
        tasks["sender"] = sender
    elif sender is not None:
        assert sender.done
        if case.how != "both close at once":  # the end is known before it runs
            assert sender.error is None  # committed: it goes out before our Close
    for name, call in tasks.items():
        assert call.done, name
        if name == "wait_closed":
            assert call.result is info
            continue
        assert isinstance(call.error, error), name
        assert isinstance(call.error, anyio.EndOfStream) == (name == "receive" and error is ConnectionClosedOK)
        ending = call.error.close_info
        assert (ending.code, ending.reason, ending.initiator) == (info.code, info.reason, info.initiator)
        if name != "send":  # its turn cannot come once a Close is sent, before it is known how that ends
            assert ending is info
            assert call.error.__cause__ is info.cause


def check_what_the_peer_got(case: Case, heard: tuple[list[int], int], peer: RawPeer) -> None:
    """Whole messages, one Close, and nothing behind it but answers to Pings."""
    sizes, code = heard
    committed = [len(LARGE)] if case.blocked else []
    if case.peer_begins and case.full and case.has("send"):
        assert sizes in (committed, [*committed, len(TURN)])
    else:
        assert sizes == committed
    assert code == expected(case.how, case.peer).code
    if case.peer != "sends pings":
        assert not peer._received


def check_nothing_is_left(ws: WebSocket) -> None:
    core = ws._core
    assert core.transport.closed
    assert core.inbox.receiver is None
    assert not core.closers
    assert not core.outbox.size
    assert not core.outbox._turns
    assert not core.outbox._drained
    assert not any(timer.callback for timer in core.loop._timers)


OPTIONS: dict[str, Any] = {
    "close_timeout": CLOSE_TIMEOUT,
    "idle_timeout": 3600,
    "receive_buffer_size": ROOM,
    "write_buffer_size": ROOM,
}


async def run_case(case: Case) -> None:
    async with hosted(case.role, **OPTIONS) as (host, peer), anyio.create_task_group() as group:
        ws = host.ws
        sender = await put_in_flight(case, ws, peer, group)
        tasks = start_tasks(case, ws, group)
        await quiet()

        start = anyio.current_time()
        closers = await start_ending(case, host, peer, group)
        if case.peer_begins and case.full:
            await take_what_came_before(ws)
        await quiet()
        if case.peer_begins:
            closers = [Call(group, ws.aclose), Call(group, ws.aclose)]
        heard: list[tuple[list[int], int]] = []

        async def go_on() -> None:
            heard.append(await hear(peer))
            await say_goodbye(peer, case)

        if not case.leaves_at_once and case.peer != "is silent":
            peer.resume()
            Call(group, go_on)
        await quiet()

        if ws.close_info is not None:
            check_tasks(case, tasks, sender, ws.close_info)  # at once, not only when the connection is gone
        await watch_it_end(case, ws, closers, start)
        assert ws.close_info is not None
        check_tasks(case, tasks, sender, ws.close_info)
        for call in closers:
            assert call.done
            assert call.error is None
        check_nothing_is_left(ws)
        if heard:
            check_what_the_peer_got(case, heard[0], peer)
        # "…unless it already received a Close frame" (RFC 6455 §5.5.2), and none once the end is known.
        assert bool(ws.stats.pongs_sent) == (case.peer == "sends pings" and expected(case.how, case.peer).ended > 0)
        await quiet()
        assert isinstance(host.raised, Boom) == (case.how == "we leave it by an exception" and case.role == "client")
        group.cancel_scope.cancel()


async def watch_it_end(case: Case, ws: WebSocket, closers: list[Call], start: float) -> None:
    """See to it that nothing is early and nothing late."""
    wanted = expected(case.how, case.peer)

    async def until(seconds: float) -> None:
        await anyio.sleep(start + seconds - anyio.current_time())

    if wanted.ended:
        await until(wanted.ended - 0.1)
        assert ws.close_info is None
    else:
        check_info(ws.close_info, wanted)
    if wanted.gone:
        await until(wanted.gone - 0.1)
        assert not ws._core.gone
        assert not any(call.done for call in closers)
        await until(wanted.gone + 0.01)
    assert ws._core.gone
    check_info(ws.close_info, wanted)


def cases(how: str, role: Literal["client", "server"], peer: str) -> list[Case]:
    every = [Case(how, role, flight, tasks, peer) for flight, tasks in product(FLIGHTS, TASKS)]
    return [case for case in every if case.is_run]


we_are = pytest.mark.parametrize("role", ["client", "server"], ids=["we-are-client", "we-are-server"])


@pytest.mark.parametrize("peer", PEERS)
@we_are
@pytest.mark.parametrize("how", HOW)
async def test_every_connection_ends_as_promised(how: str, role: Literal["client", "server"], peer: str) -> None:
    for case in cases(how, role, peer):
        try:
            await run_case(case)
        except BaseException as exc:
            exc.add_note(str(case))
            raise


# One absolute deadline

LATE = ["answers", "sends data", "sends pings", "sends two Closes", "sends an invalid Close", "breaks the protocol"]
"""What a peer may say half a second before the deadline, and keep its socket."""


@pytest.mark.parametrize("late", LATE)
@we_are
@pytest.mark.parametrize("how", ["we call aclose", "the peer closes"])
async def test_nothing_that_comes_just_before_the_deadline_moves_it(how: str, role: str, late: str) -> None:
    other = "server" if role == "client" else "client"
    async with raw_peer(other, close_timeout=CLOSE_TIMEOUT) as (peer, ws), anyio.create_task_group() as group:
        start = anyio.current_time()
        if how == "the peer closes":
            await peer.send_close()
            await quiet()
        closer = Call(group, ws.aclose)
        await anyio.sleep(start + CLOSE_TIMEOUT - 0.5 - anyio.current_time())
        assert not closer.done
        match late:
            case "breaks the protocol":
                await peer.send(b"\xff\xff")
            case "sends an invalid Close":
                await peer.send_frame(CLOSE, b"\x03")
            case "sends data" | "sends pings":
                Call(group, chatter, peer, TEXT if late == "sends data" else PING)
            case _:
                await peer.send_close()
                if late == "sends two Closes":
                    await peer.send_close(3000)
        await closer.wait()
        assert anyio.current_time() - start == pytest.approx(CLOSE_TIMEOUT, abs=0.01)
        assert ws._core.gone
        group.cancel_scope.cancel()


@we_are
@pytest.mark.parametrize(("left_after", "gone_after"), [(0, 1), (3, 4), (6.5, CLOSE_TIMEOUT)])
@pytest.mark.parametrize("how", ["we call aclose", "the peer closes"])
async def test_a_block_left_by_an_error_while_it_closes_takes_a_second_and_not_beyond_the_deadline(
    how: str, role: Literal["client", "server"], left_after: float, gone_after: float
) -> None:
    async with hosted(role, close_timeout=CLOSE_TIMEOUT) as (host, peer), anyio.create_task_group() as group:
        start = anyio.current_time()
        if how == "the peer closes":
            await peer.send_close()
        else:
            Call(group, host.ws.aclose)
        await anyio.sleep(left_after)
        host.leave(Boom())
        await anyio.sleep(gone_after - left_after - 0.01)
        assert not host.ws._core.gone
        await anyio.sleep(start + gone_after + 0.01 - anyio.current_time())
        assert host.ws._core.gone
