"""One run: a plan, two ends, actors that call at random and are cancelled at random, and the end."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from anyio_ws import ConnectionClosed, Deflate, WebSocket, accept, byte_stream, connect
from anyio_ws.loops import Loop, open_loop
from anyio_ws.options import Options
from anyio_ws.protocol import Request, Response
from anyio_ws.protocol.extensions import Extension
from anyio_ws.tasks import Tasks
from anyio_ws.testing import _websocket
from anyio_ws.transports.base import Transport
from anyio_ws.transports.tls import TLSTransport
from support.tools import jump

from .dice import TICK, Dice, Plan
from .link import SimTransport, make_link
from .oracle import RECEIVING, SENDING, Call, Clock, Endpoint, Message
from .sockets import socket_transport
from .streams import SimStream
from .tls import tls_transport

SCALES = (
    {},
    {"JOIN_SIZE": 300, "FRAME_PARTS": 500, "FRAGMENT": 700, "UNFRAGMENTED": 2000, "ROUND": 500, "DISCARD": 10000}
    | {"INLINE": 800, "INLINE_INPUT": 400, "INLINE_OUTPUT": 2000, "CHUNK": 500, "LARGEST": 900},
    {"JOIN_SIZE": 20, "FRAME_PARTS": 20, "FRAGMENT": 20, "UNFRAGMENTED": 20, "ROUND": 20, "DISCARD": 300}
    | {"INLINE": 100, "INLINE_INPUT": 50, "INLINE_OUTPUT": 100, "CHUNK": 50, "LARGEST": 100},
)
"""Sizes of the library's, for messages small enough to be many. They decide when it does what, not what is promised."""

KINDS = ("direct", "socket", "stream", "tls")
"""A Transport over the network; SocketTransport over a socket over it; a stream over it, with connect() and accept();
TLSTransport over a Transport over it."""

POOL_BYTES = bytes(range(256)) * 8192
POOL_NOISE = random.Random(0).randbytes(2**21)
POOL_TEXT = "ab¢☃𝄞 " * 200000

LONGEST = 1000.0
"""Seconds after which whoever still waits waits for ever."""

CANCELLED: Any = object()

LARGEST = 1_200_000
"""Bytes of a message that leaves in fragments, whatever the scale."""
SIZES = (
    *(1, 5, 80, 120, 121, 122, 123, 124, 125, 126, 130, 300, 1000, 4000, 16383, 16384, 16400, 65530, 65536, 70000),
    LARGEST,
)

OVERFLOWS = ("backpressure", "backpressure", "backpressure", "drop_oldest", "drop_newest", "latest", "close")

ROLES = {
    "producer": {"send": 12, "send_many": 3, "send_stream": 3, "flush": 1, "ping": 1, "sleep": 2},
    "consumer": {"receive": 12, "receive_many": 3, "receive_stream": 4, "iterate": 2, "sleep": 2, "ping": 1},
    "echo": {"send": 6, "receive": 6, "send_stream": 1, "receive_stream": 2, "sleep": 1, "flush": 1},
    "chaos": {"strike": 6, "ping": 3, "sleep": 4, "block": 1, "wait_closed": 1, "flush": 1, "send": 2, "receive": 2},
}

READS = dict.fromkeys(RECEIVING, "read")
WRITES = {"send": "write"}
AS_BYTES: tuple[dict[str, str], ...] = ({}, {}, {}, READS, WRITES, READS | WRITES)
"""What an end does with its byte stream in a whole run, instead of with messages."""


class LeftEarly(Exception):
    """The block of a message in parts is left before its end."""


class World:
    """Everything of one run.

    Args:
        seed: decides everything.
        kind: how the two ends are joined.
    """

    def __init__(self, seed: int, kind: str = "direct") -> None:
        self.seed = seed
        self.kind = kind
        self.dice = Dice(f"{kind}:{seed}")
        self.clock = Clock()
        random = self.dice.random
        self.is_calm = random.random() < 0.5
        self._plan = self._make_plan()
        # The handshakes of TLS and of HTTP pass quickly, or one end would be timed out while the other still opens.
        self.dice.plan = Plan(short=self._plan.short, split=self._plan.split, lag=self._plan.lag)
        self.scale = random.choice(SCALES)
        self.closing = random.choice((0.0, 0.0, 0.02, 0.1))
        largest = LARGEST if random.random() < 0.03 else random.choice((130, 1000, 20000, 70000))
        self.largest = min(self._plan.capacity * 30, self.scale.get("FRAGMENT", 70000) * 50, largest)
        handshake = kind == "stream"
        self.library = random.choice(("zlib", "zlib", "isal", "zlib-ng"))
        options, self._answer = self._negotiated(self._make_options(), self._make_options())
        self.client = Endpoint("client", self.dice, self.clock, options[0], handshake=handshake)
        self.server = Endpoint("server", self.dice, self.clock, options[1], handshake=handshake)
        self.client.peer, self.server.peer = self.server, self.client
        self.ends = (self.client, self.server)
        self.client.largest = self.server.largest = self.largest
        self.clock.is_instant = self.is_calm and not self._plan.delay
        self._as_bytes = {end: random.choice(AS_BYTES) for end in self.ends}
        self._texts = {end: self._share_of_texts(end) for end in self.ends}
        self.up, self.down = make_link(self.dice, self.client.tap, self.server.tap)
        self.dice.strike = self._strike_at
        self.dice.ends_in_order = lambda pipe: (self.client if pipe == "up" else self.server).check_half_close()
        self.dice.pinged = self._pinged
        self.dice.happened = self._happened
        self._serial = 0
        self._faults_at: list[int] = []
        if not self.is_calm:
            self._faults_at = sorted(random.randrange(1, 300) for _ in range(random.choice((1, 1, 2, 4))))
        self._running = 0
        self._ending = False
        self._watching = False
        self._pace = 1
        self._looked = -1

    def _make_plan(self) -> Plan:
        random = self.dice.random
        plan = Plan(capacity=random.choice((1, 7, 100, 1000, 5000, 65536)))
        plan.short = random.choice((0, 0, 0.1, 0.5))
        plan.split = random.choice((0, 0, 0.1, 0.7))
        plan.lag = random.choice((0, 0.1, 0.5))
        plan.delay = random.choice((0, 0.05, 0.3, 1))
        plan.delays = random.choice(((1,), (1, 2, 3, 50), (20,), (1, 700)))
        if not self.is_calm and random.random() < 0.2:
            plan.delays = (1, 100, 3000)
        plan.strike = random.choice((0, 0.02, 0.2))
        plan.block = random.choice((0, 0, 0.02, 0.1))
        return plan

    def _share_of_texts(self, end: Endpoint) -> float:
        """How many of its messages are text: most of those who read bytes get none, as the first ends it all."""
        return self.dice.random.choice((0, 0, 0.1)) if self._reads_bytes(end.peer) else 0.5

    def _reads_bytes(self, end: Endpoint) -> bool:
        return "receive" in self._as_bytes[end]

    def _make_options(self) -> Options:
        choice = self.dice.random.choice
        return Options(
            open_timeout=None,
            ping_interval=choice((None, 0.5, 2, 20)),
            ping_timeout=choice((None, 0.25, 1, 20)),
            idle_timeout=choice((None, None, None, 1.5)),
            close_timeout=choice((0.125, 1, 10)),
            max_size=choice((2**20, 2**20, 2**20, 900, None)),
            receive_buffer_size=choice((1, 200, 2000, 65536)),
            overflow=choice(OVERFLOWS),
            write_buffer_size=choice((1, 200, 2000, 65536)),
            compression=choice((None, self._make_deflate(), self._make_deflate())),
        )

    def _make_deflate(self) -> Deflate:
        choice = self.dice.random.choice
        return Deflate(
            server_max_window_bits=choice((None, None, 9, 10, 15)),
            client_max_window_bits=choice((None, None, 9, 10, 15)),
            server_no_context_takeover=choice((False, False, True)),
            client_no_context_takeover=choice((False, False, True)),
            level=choice((None, None, 1, 6)),
            memory_level=choice((1, 5, 9)),
            threshold=choice((0, 64, 300)),
        )

    @staticmethod
    def _negotiated(client: Options, server: Options) -> tuple[tuple[Options, Options], str]:
        """The options, and what the server answers; without compression if the client refuses the answer."""
        ours, theirs = client.compression, server.compression
        if isinstance(ours, Deflate) and isinstance(theirs, Deflate):
            accepted = theirs.accept(ours.offers()[0])
            try:
                if accepted is not None:
                    ours.agree(accepted[0])
                    fields = [name if value is None else f"{name}={value}" for name, value in accepted[0]]
                    return (client, server), "; ".join([ours.name, *fields])
            except ValueError:
                server = replace(server, compression=None)
        return (client, server), ""

    # A run

    async def run(self) -> None:
        """Run to the end. What is wrong is in `clock.broken`."""
        async with Tasks() as tasks:
            self.dice.begin(open_loop(tasks.start_service))
            loops = [open_loop(tasks.start_service) for _ in self.ends]
            try:
                with anyio.CancelScope(shield=True):
                    await self._run(loops)
            finally:
                for loop in (self.dice.loop, *loops):
                    loop.close()

    async def _run(self, loops: list[Loop]) -> None:
        self.client.incoming = self.server.outgoing = self.down
        self.server.incoming = self.client.outgoing = self.up
        if self.kind == "stream":
            await self._run_over_streams()
            return
        self.server.on_answer(self._answer)
        transports = [self._transport(end, loop) for end, loop in zip(self.ends, loops, strict=True)]

        async def begin(end: Endpoint, transport: Transport, loop: Loop) -> None:
            if isinstance(transport, TLSTransport):
                await transport.handshake()
            end.begin(self._open(end, transport, loop))

        async with anyio.create_task_group() as group:
            for each in zip(self.ends, transports, loops, strict=True):
                group.start_soon(begin, *each)
        await self._live()

    def _transport(self, end: Endpoint, loop: Loop) -> Transport:
        if self.kind == "socket":
            return socket_transport(self.dice, end.incoming, end.outgoing, loop)
        transport = SimTransport(self.dice, end.incoming, end.outgoing, loop)
        if self.kind == "tls":
            end.outgoing.tap = lambda data: None
            return tls_transport(transport, loop, end.tap, server_side=end is self.server)
        return transport

    async def _run_over_streams(self) -> None:
        """Open both ends with a handshake; they are left when both are gone."""
        over = anyio.Event()
        opened = [anyio.Event(), anyio.Event()]

        async def block(end: Endpoint, opening: connect | accept, event: anyio.Event) -> None:
            async with opening as ws:
                end.begin(ws)
                event.set()
                await over.wait()

        async with anyio.create_task_group() as group:
            client, server = (SimStream(self.dice, end.incoming, end.outgoing) for end in self.ends)
            group.start_soon(
                block, self.client, connect("ws://test/", stream=client, **self._given(self.client)), opened[0]
            )
            group.start_soon(block, self.server, accept(server, **self._given(self.server)), opened[1])
            for event in opened:
                await event.wait()
            await self._live()
            over.set()

    @staticmethod
    def _given(end: Endpoint) -> dict[str, Any]:
        return {field.name: getattr(end.options, field.name) for field in fields(end.options)}

    def _open(self, end: Endpoint, transport: Transport, loop: Loop) -> WebSocket:
        request = Request("GET", "/", {"Host": "test"}, is_websocket=True)
        return _websocket(
            loop,
            transport,
            end.options,
            is_client=end is self.client,
            request=request,
            response=Response(101),
            extensions=self._extensions(end),
        )

    def _extensions(self, end: Endpoint) -> list[Extension]:
        ours, theirs = self.client.options.compression, self.server.options.compression
        if not self._answer:
            return []
        assert isinstance(ours, Deflate)
        assert isinstance(theirs, Deflate)
        accepted = theirs.accept(ours.offers()[0])
        assert accepted is not None
        return [ours.agree(accepted[0]) if end is self.client else accepted[1]]

    async def _live(self) -> None:
        """From when both ends are open until both are gone."""
        random = self.dice.random
        self.dice.plan = self._plan
        self._watching = True
        self._plan_look()
        self._over = anyio.Event()
        self._idle = anyio.Event()
        async with anyio.create_task_group() as group:
            for end in self.ends:
                for _ in range(random.randint(1, 4)):
                    self._start(group, self._act, end, random.choice(tuple(ROLES)), random.randint(1, 30))
            self.dice.at(self.dice.now() + random.choice((1, 8, 64)), self._idle.set)
            await self._idle.wait()
            self._ending = True
            self._finish(group)
            with anyio.move_on_after(LONGEST) as patience:
                await self._over.wait()
            if patience.cancelled_caught:
                self.clock.broken.append(f"hangs: {[(end.name, c.kind) for end in self.ends for c in end.calls]}")
                group.cancel_scope.cancel()
        self._watching = False
        for end in self.ends:
            end.check()
            end.check_end()
            await self._check_afterwards(end)

    def _start(self, group: anyio.abc.TaskGroup, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._running += 1
        group.start_soon(self._task, function, *args)

    async def _task(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await function(*args)
        except Exception as exc:
            self.clock.broken.append(f"a bug of the simulation: {exc!r}")
            raise
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
                if self._ending:
                    self._over.set()

    # What the world does

    def _happened(self) -> None:
        self.clock.stirred = self.dice.now()
        for end in self.ends:
            if end.is_open:
                end.check()
        if self._watching:
            while self._faults_at and self._faults_at[0] <= self.dice.steps:
                self._faults_at.pop(0)
                self._fault()

    def _fault(self) -> None:
        random = self.dice.random
        kind = random.choice(("reset", "cut", "freeze", "freeze both", "freeze for ever", "pause"))
        self.clock.faults.append(kind)
        pipes = [random.choice((self.up, self.down))]
        if kind == "reset":
            pipes[0].reset()
        elif kind == "cut":
            pipes[0].cut()
        else:
            if kind == "freeze both":
                pipes = [self.up, self.down]
            for pipe in pipes:
                pipe.freeze()
                if kind != "freeze for ever":
                    self.dice.at(self.dice.now() + TICK * random.choice((10, 1000, 30000)), pipe.thaw)

    def _pinged(self) -> None:
        """Keepalive is waiting: a good time to block the event loop."""
        if self._watching and not self._ending and self.dice.chance(self.dice.plan.block):
            seconds = TICK * self.dice.random.choice((100, 300, 1500, 6000))
            self.dice.later(lambda: self._block(seconds))

    def _block(self, seconds: float) -> None:
        self.dice.log("blocks the loop for", seconds)
        for end in self.ends:
            end.check()
        jump(seconds)
        self.clock.jumped += seconds
        self.clock.jumps += 1
        self.clock.last_jump = (self.dice.now(), seconds)

    def _strike_at(self, pipe: str) -> None:
        """Something has happened to the end that writes to this pipe: it may be the tick to cancel what waits there."""
        if self._watching and self.dice.chance(self.dice.plan.strike):
            self._strike(self.client if pipe == "up" else self.server)

    def _strike(self, end: Endpoint) -> None:
        targets = [call for call in end.calls if call.cancel is not None and not call.struck]
        if targets:
            call = self.dice.random.choice(targets)
            self.dice.log(end.name, "strikes", call.kind)
            call.struck = True
            assert call.cancel is not None
            call.cancel()

    def _plan_look(self) -> None:
        """Look soon, at a time when nothing else is due: then nothing can happen unless time passes."""
        moment = self.clock.moment + self.dice.steps
        if moment == self._looked:
            self._pace = min(2 * self._pace, 4096)
        else:
            self._pace = self.dice.random.choice((1, 3, 30, 300))
        self._looked = moment
        ticks = math.floor(self.dice.now() / TICK) + self._pace
        when = ticks * TICK + TICK / 1024

        def look() -> None:
            if not self._watching:
                return
            if self.dice.now() == when:
                self.clock.epoch += 1
                for end in self.ends:
                    end.check_quiet()
            self._plan_look()

        self.dice.loop.call_at(when, look)

    # What the actors do

    async def _act(self, end: Endpoint, role: str, count: int) -> None:
        random = self.dice.random
        kinds, weights = tuple(ROLES[role]), tuple(ROLES[role].values())
        more = 3  # calls after the end
        for _ in range(count):
            if self._ending or self.clock.broken or not more:
                return
            if end.ws.close_info is not None:
                more -= 1
            kind = random.choices(kinds, weights)[0]
            if random.random() < self.closing / 4:
                kind = random.choice(("aclose", "aclose", "aclose", "abort"))
            await self._do(end, self._as_bytes[end].get(kind, kind))
            if random.random() < 0.1:
                await checkpoint()

    async def _do(self, end: Endpoint, kind: str) -> None:
        random = self.dice.random
        if kind == "sleep":
            await self._call(end, kind, anyio.sleep, TICK * random.choice((1, 2, 10, 100, 700, 3000)))
        elif kind == "strike":
            self._strike(end)
            await anyio.sleep(TICK * random.choice((0, 1, 20)))
        elif kind == "block":
            self._block(TICK * random.choice((10, 300, 1500, 6000, 30000)))
        elif kind == "abort":
            end.aborted = True
            self.dice.log(end.name, "aborts")
            end.ws.abort()
            end.expect(end.ws.close_info is not None and end.transport.closed, "abort() did not end it")
        else:
            await getattr(self, f"_{kind}")(end)

    async def _call(
        self, end: Endpoint, kind: str, function: Callable[..., Awaitable[Any]], *args: Any, tells_phase: bool = False
    ) -> Any:
        """Make a call, perhaps cancel it. Returns what it returned, CANCELLED, or a documented exception."""
        random = self.dice.random
        call = end.begin_call(kind)
        if tells_phase:
            args = (call, *args)
        native = asyncio_task() if random.random() < 0.3 else None
        mode = random.random()
        self.dice.log(end.name, "calls", kind)
        outcome = CANCELLED
        before = end.ws.close_info
        try:
            if native is not None:
                outcome = await self._call_natively(native, call, function, *args)
            else:
                with anyio.CancelScope() as scope:
                    call.cancel = scope.cancel
                    if mode < 0.05:
                        outcome = await self._call_cancelled(end, scope, function, *args)
                    else:
                        if mode < 0.2:
                            scope.deadline = anyio.current_time() + TICK * random.choice((0, 1, 2, 20, 100, 2000))
                        outcome = await function(*args)
        except Exception as exc:
            end.check_raised(exc, kind)
            outcome = exc
        finally:
            self.dice.log(end.name, "ended", kind, describe(outcome))
            call.cancel = None
            end.end_call(call)
        if before is not None and kind in (*SENDING, "write nothing", "ping"):
            failed = isinstance(outcome, ConnectionClosed | anyio.BusyResourceError)
            end.expect(outcome is CANCELLED or failed, f"{kind} worked after the end")
        return outcome

    async def _call_natively(
        self, task: "asyncio.Task[Any]", call: Call, function: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        """Make a call that asyncio's own cancel() may hit, which does not spare a task that is about to wake up."""
        call.cancel = task.cancel
        outcome = CANCELLED
        try:
            try:
                outcome = await function(*args)
            finally:
                call.cancel = None
                if call.struck and outcome is not CANCELLED:
                    await checkpoint()  # it had come too late
        except asyncio.CancelledError:
            if not call.struck:
                raise
        except Exception:
            if call.struck and task.cancelling():
                try:
                    await checkpoint()
                except asyncio.CancelledError:
                    pass
            raise
        finally:
            if call.struck:
                task.uncancel()
        return outcome

    async def _call_cancelled(
        self, end: Endpoint, scope: anyio.CancelScope, function: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        """Call in a scope whose cancellation has been delivered."""
        scope.cancel()
        state = self._state(end)
        try:
            await checkpoint()
        finally:
            state = self._state(end)
            await function(*args)
            end.fail(f"{function.__name__} ignored a cancellation from before, {state}")

    def _state(self, end: Endpoint) -> Any:
        return end.ws.close_info

    # Calls

    def _message(self, end: Endpoint, batch: tuple[int, int]) -> tuple[Message | None, Any, bool | None]:
        """Make a message: what is known of it, what is given to `send`, and as what."""
        random = self.dice.random
        self._serial += 1
        size = random.choice(SIZES)
        size = min(size, self.largest)
        opcode = 1 if random.random() < self._texts[end] else 2
        if random.random() < 0.03:
            end.empty[opcode] += 1
            return None, "" if opcode == 1 else b"", None
        text: bool | None = None
        item: Any
        if opcode == 1:
            item = f"{self._serial:x}." + (POOL_TEXT[:size] if random.random() < 0.5 and size < LARGEST else "x" * size)
            payload = item.encode()
            if random.random() < 0.2:
                item, text = payload, True
        else:
            item = payload = self._binary(size)
            form = random.random()
            if form < 0.2:
                item = bytearray(payload)
            elif form < 0.3:
                item = memoryview(bytearray(payload))
            elif form < 0.35:
                item, text = payload, False
        message = Message(opcode, payload, self.clock.moment, self.clock.epoch, batch)
        end.unsent[opcode, payload] = message
        return message, item, text

    def _binary(self, size: int) -> bytes:
        start = self.dice.random.randrange(256)
        pool = POOL_BYTES if self.dice.random.random() < 0.6 else POOL_NOISE
        return f"{self._serial:x}.".encode() + pool[start : start + size]

    def _settle(self, end: Endpoint, message: Message | None, item: Any, outcome: Any) -> None:
        """A send has ended: the caller may change what it gave."""
        if isinstance(item, bytearray | memoryview):
            item[:] = bytes(len(item))
        if message is not None and outcome is None:
            message.returned = self.clock.moment
            if (message.opcode, message.payload) in end.unsent:
                end.returned_unsent.add(message)

    async def _send(self, end: Endpoint) -> None:
        message, item, text = self._message(end, (self._serial + 1, 0))
        compress = self.dice.random.choice((None, None, None, True, False))
        if message is not None:
            message.compress = compress
            if end.ws.close_info is not None:
                message.forbidden = "the connection had ended"

        async def send() -> None:
            await end.ws.send(item, text=text, compress=compress)
            room = end.core.outbox.size < end.options.write_buffer_size
            end.expect(room or end.core.closing, "send has returned, but there is no room")

        outcome = await self._call(end, "send", send)
        self._settle(end, message, item, outcome)

    async def _write(self, end: Endpoint) -> None:
        pieces = self._pieces(end)
        item: Any = b"".join(piece.payload for piece in pieces)
        if self.dice.random.random() < 0.3:
            item = memoryview(bytearray(item))
        outcome = await self._call(end, "write" if item else "write nothing", end.stream.send, item)
        for piece in pieces:
            if isinstance(outcome, anyio.BusyResourceError):
                piece.forbidden = "another task was writing"
            self._settle(end, piece, item, outcome)

    def _pieces(self, end: Endpoint) -> list[Message]:
        """Make the messages that a byte stream is to make of one item, perhaps none."""
        left = min(self.dice.random.choice((0, *SIZES)), self.largest)
        batch, pieces = self._serial + 1, list[Message]()
        while left > 0:
            self._serial += 1
            payload = self._binary(left)[: byte_stream.LARGEST]
            left -= byte_stream.LARGEST
            piece = Message(2, payload, self.clock.moment, self.clock.epoch, (batch, len(pieces)), is_piece=True)
            if end.ws.close_info is not None:
                piece.forbidden = "the connection had ended"
            end.unsent[2, payload] = piece
            pieces.append(piece)
        return pieces

    async def _send_many(self, end: Endpoint) -> None:
        batch = self._serial + 1
        made = [self._message(end, (batch, place)) for place in range(self.dice.random.randint(1, 8))]
        items = [item.tobytes() if text and isinstance(item, memoryview) else item for _, item, text in made]
        items = [item.decode() if text else item for item, (_, _, text) in zip(items, made, strict=True)]
        outcome = await self._call(end, "send_many", end.ws.send_many, items)
        for message, item, _ in made:
            self._settle(end, message, item, outcome)

    async def _send_stream(self, end: Endpoint) -> None:
        random = self.dice.random
        message, item, _ = self._message(end, (self._serial + 1, 0))
        if message is None:
            return
        message.in_parts = True
        message.compress = random.choice((None, None, True, False))
        message.forbidden = "its block had not ended"
        whole: Any = item if isinstance(item, str) else message.payload
        if message.opcode == 1 and not isinstance(item, str):
            whole = message.payload.decode()
        step = random.choice((1 + len(whole) // 3, 1 + len(whole) // 10, len(whole)))
        chunks = [whole[start : start + step] for start in range(0, len(whole), step)]
        leaves_at = random.randint(0, len(chunks)) if random.random() < 0.15 else -1
        pause = random.choice((0, 0, 0, 1, 30))

        async def send_stream(call: Call) -> str:
            call.phase = "turn"
            try:
                async with end.ws.send_stream(text=message.opcode == 1, compress=message.compress) as stream:
                    call.phase = ""
                    end.unfinished += 1
                    try:
                        for number, chunk in enumerate(chunks):
                            if number == leaves_at:
                                raise LeftEarly
                            if pause:
                                await anyio.sleep(TICK * pause)
                            call.phase = "room"
                            await stream.send(chunk)
                            call.phase = ""
                            end.stir()
                        if leaves_at == len(chunks):
                            raise LeftEarly
                    except BaseException as exc:
                        call.phase = ""
                        if not isinstance(exc, ConnectionClosed):
                            end.close_calls.append((1011 if isinstance(exc, LeftEarly) else 1001, ""))
                            end.note_closing()
                        raise
                    message.forbidden = ""
            except LeftEarly:
                end.expect(not leaves_at or end.core.closing, "a message in parts was left, and nothing happened")
                return "left"
            return "sent"

        outcome = await self._call(end, "send_stream", send_stream, tells_phase=True)
        self._settle(end, message, None, None if outcome == "sent" else outcome)

    async def _flush(self, end: Endpoint) -> None:
        await self._call(end, "flush", end.ws.flush)

    async def _receive(self, end: Endpoint) -> Any:
        async def receive() -> None:
            end.check_item(await end.ws.receive())

        return await self._call(end, "receive", receive)

    async def _read(self, end: Endpoint) -> Any:
        return await self._call(end, "read", read, end, self.dice.random.choice((1, 7, 100, 1000, 65536)))

    async def _receive_many(self, end: Endpoint) -> None:
        async def receive_many() -> None:
            items = await end.ws.receive_many()
            end.expect(items, "receive_many returned nothing")
            for item in items:
                end.check_item(item)

        await self._call(end, "receive_many", receive_many)

    async def _receive_stream(self, end: Endpoint) -> None:
        random = self.dice.random
        limit = random.choice((None, None, None, 500, 100_000))
        leaves_at = random.randint(0, 3) if random.random() < 0.2 else -1
        pause = random.choice((0, 0, 0, 1, 30))
        if limit is not None:
            end.stream_limits.add(limit)

        async def receive_stream(call: Call) -> None:
            call.phase = "message"
            chunks: list[str | bytes] = []
            how = "left"
            try:
                async with end.ws.receive_stream(limit) as stream:
                    call.phase = ""
                    end.begin_stream()
                    try:
                        while len(chunks) != leaves_at:
                            if pause:
                                await anyio.sleep(TICK * pause)
                            call.phase = "chunk"
                            chunks.append(await stream.receive())
                            call.phase = ""
                            end.stir()
                            right = isinstance(chunks[-1], str) == stream.text and chunks[-1]
                            end.expect(right, f"a chunk is {chunks[-1][:20]!r}, text: {stream.text}")
                        if pause:
                            raise LeftEarly
                    except anyio.EndOfStream as exc:
                        end.expect(not isinstance(exc, ConnectionClosed), f"inside a message: {exc!r}")
                        how = "ended"
                    except ConnectionClosed as exc:
                        end.check_raised(exc, "stream.receive")
                        # Over its limit after the end, it is as if it had been left: the next ones can be received.
                        how = "broken" if exc.__cause__ is exc.close_info.cause else "left"
                    finally:
                        call.phase = ""
                        end.end_stream(chunks, how, is_text=stream.text)
            except LeftEarly:
                pass

        await self._call(end, "receive_stream", receive_stream, tells_phase=True)

    async def _iterate(self, end: Endpoint) -> None:
        count = self.dice.random.randint(1, 10)

        async def iterate() -> None:
            left = count
            async for item in end.ws:
                end.check_item(item)
                left -= 1
                if not left:
                    return
            end.check_all_received()

        await self._call(end, "iterate", iterate)

    async def _ping(self, end: Endpoint) -> None:
        self._serial += 1
        data = f"{self._serial:x}".encode() * self.dice.random.choice((1, 1, 10)) if self._serial % 3 else None
        outcome = await self._call(end, "ping", end.ws.ping, data)
        if isinstance(outcome, float):
            end.expect(outcome >= 0, f"a round trip of {outcome} s")
            answered = data is None or any(payload == data for payload, _ in end.pings[-200:])
            end.expect(answered, "a ping was answered that was never sent")

    async def _wait_closed(self, end: Endpoint) -> None:
        outcome = await self._call(end, "wait_closed", end.ws.wait_closed)
        if outcome is not CANCELLED:
            end.expect(outcome is end.ws.close_info, f"wait_closed returned {outcome}")

    async def _aclose(self, end: Endpoint) -> None:
        self._serial += 1
        code, reason = self.dice.random.choice((1000, 1001, 1011, 3000, 4999)), f"sim {self._serial}"
        by_stream = bool(self._as_bytes[end]) and self.dice.random.random() < 0.3
        if by_stream:
            code, reason = 1000, ""
        end.close_calls.append((code, reason))
        end.note_closing()
        began, jumped, epoch = self.dice.now(), self.clock.jumped, self.clock.epoch
        if by_stream:
            outcome = await self._call(end, "aclose", close_stream, end)
        else:
            outcome = await self._call(end, "aclose", end.ws.aclose, code, reason)
        took = self.dice.now() - began - (self.clock.jumped - jumped)
        assert end.options.close_timeout is not None
        end.expect(took <= 2 * end.options.close_timeout, f"aclose took {took} s")
        if outcome is None:
            end.expect(end.transport.closed, "aclose returned, but the connection is not gone")
        elif outcome is CANCELLED and self.clock.epoch > epoch and not end.waiting("aclose"):
            end.aborted = True
            end.expect(end.transport.closed, "the last aclose was cancelled, but the connection is not gone")
        elif outcome is CANCELLED:
            end.aborted = end.aborted or end.transport.closed

    # The end

    def _finish(self, group: anyio.abc.TaskGroup) -> None:
        random = self.dice.random
        closers = random.choice(((self.client,), (self.server,), self.ends))
        self.dice.log("the end, closed by", *(end.name for end in closers))
        for end in self.ends:
            if end in closers:
                self._start(group, self._close if random.random() < 0.9 else self._abort, end)
            else:
                self._start(group, self._drain, end)

    async def _close(self, end: Endpoint) -> None:
        while not end.transport.closed:
            await self._aclose(end)

    async def _abort(self, end: Endpoint) -> None:
        await self._do(end, "abort")

    async def _drain(self, end: Endpoint) -> None:
        """Receive until the end, which has to come."""
        peer = end.peer.options
        own = end.options
        bound = (peer.close_timeout or 0) + 20
        must = self.is_calm
        if own.ping_interval is not None and own.ping_timeout is not None:
            bound += own.ping_interval + 2 * own.ping_timeout
            must = True
        receive = self._read if self._reads_bytes(end) else self._receive
        with anyio.move_on_after(bound) as scope:
            while not isinstance(await receive(end), ConnectionClosed) and not self.clock.broken:
                if end.waiting(*RECEIVING):
                    await anyio.sleep(TICK * 64)
        if scope.cancelled_caught:
            end.expect(not must, f"it is over, and nobody has noticed for {bound} s")
        await self._close(end)

    async def _check_afterwards(self, end: Endpoint) -> None:
        """Every call after the end says so."""
        if self.clock.broken:
            return
        ws = end.ws
        calls: list[tuple[str, Callable[..., Awaitable[Any]], tuple[Any, ...]]] = [
            ("send", ws.send, ("late",)),
            ("send_many", ws.send_many, (["late"],)),
            ("write", end.stream.send, (b"late",)),
            ("flush", ws.flush, ()),
            ("ping", ws.ping, ()),
            ("send_stream", ws.send_stream().__aenter__, ()),
        ]
        for kind, function, args in calls:
            try:
                await function(*args)
                end.fail(f"{kind} worked after the end")
            except Exception as exc:
                end.check_raised(exc, kind)
        await self._receive_the_rest(end)
        try:
            await ws.receive_stream().__aenter__()
            end.fail("receive_stream worked after the end")
        except Exception as exc:
            end.check_raised(exc, "receive_stream")
        await ws.aclose()
        end.expect(await ws.wait_closed() is ws.close_info, "wait_closed says something else")

    async def _receive_the_rest(self, end: Endpoint) -> None:
        """Receive until the end. What came behind a text message that is refused after it, can be read as well."""
        is_over = False
        while not is_over:
            try:
                if self._reads_bytes(end):
                    await read(end, 1000)
                else:
                    end.check_item(await end.ws.receive())
            except Exception as exc:
                end.check_raised(exc, "read" if self._reads_bytes(end) else "receive")
                is_over = exc.__cause__ is end.ws.close_info.cause


async def read(end: Endpoint, max_bytes: int) -> None:
    try:
        data = await end.stream.receive(max_bytes)
    except BaseException as exc:
        end.check_read_raised(exc)
        raise
    end.check_read(data, max_bytes)


async def close_stream(end: Endpoint) -> None:
    await end.stream.aclose()
    end.rest = b""


def asyncio_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def describe(outcome: Any) -> str:
    if outcome is CANCELLED:
        return "cancelled"
    return repr(outcome)[:200] if not isinstance(outcome, str | bytes) else f"{len(outcome)}"
