"""A process of clients."""

import math
import random
import socket
import struct
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup

from anyio_ws import ConnectFailed, ConnectionClosed, HandshakeError, HandshakeRejected, connect

from .accounts import DATA, END, FLOOD, TALK, Account
from .process import Link, Log, allow_descriptors, figures, run
from .server import HARVEST, OPTIONS

AT_ONCE = 100
"""Opening handshakes that a process has in progress, so that the kernel's queues suffice."""

BINARY = random.Random(0).randbytes(2**20)
TEXT = ("".join(map(chr, range(32, 127))) * 8000).encode()

KINDS = {"chat": 82, "large": 1, "slow": 2, "nuisance": 15}
"""What clients are like, and how often."""

ENDINGS = {
    "ask": 25,  # we ask the server to close, when it has answered everything
    "agree": 15,  # we close when the server has answered everything
    "close": 15,  # we close, whatever is under way
    "abort": 10,
    "cancel": 5,  # the block of the connection is cancelled
    "server close": 10,  # the handler returns, whatever is under way
    "server abort": 10,
    "stay": 10,
}
"""How conversations end, and how often; all that are there when the round is over end with that."""

REQUEST = (
    b"GET /plain HTTP/1.1\r\nHost: soak\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

NUISANCES = [
    "reset",
    "reset in the request",
    "end in the request",
    "reset when open",
    "garbage",
    "silence",
    "impatient",
]
"""What may become of a connection that is no conversation."""


@dataclass(frozen=True)
class Plan:
    """What the client of a conversation does: the same for the same seed and number."""

    kind: str
    ending: str
    seconds: float
    rng: random.Random

    @classmethod
    def make(cls, seed: str, conversation: int, mean_seconds: float) -> "Plan":
        rng = random.Random(f"{seed}/{conversation}")
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        (ending,) = rng.choices(list(ENDINGS), list(ENDINGS.values()))
        return cls(kind, ending, math.inf if ending == "stay" else rng.expovariate(1 / mean_seconds), rng)

    @property
    def path(self) -> str:
        """Without the conversation: what the server shall do, and when."""
        return "/0" if self.ends_it else f"{self.ending.removeprefix('server ')}/{self.seconds}"

    @property
    def ends_it(self) -> bool:
        """It is the client that ends the conversation."""
        return not self.ending.startswith("server ")

    def message(self) -> tuple[bytes, bool]:
        """A body, and whether it is text."""
        size = self.rng.randrange(900_000) if self.kind == "large" else int(self.rng.paretovariate(0.8)) * 8 % 20000
        start = self.rng.randrange(1000)
        if self.rng.random() < 0.5:
            return TEXT[start : start + min(size, 50_000)], True
        return BINARY[start : start + size], False


class Clients:
    """What a process of clients does.

    Attributes:
        ended: accounts of conversations that are over.
        counts: things that happen.
        faults: what must not be.
    """

    def __init__(self, link: Link, log: Log, seed: str, process: int) -> None:
        self._link = link
        self._log = log
        self._seed = seed
        self._process = process
        self._conversations = 0
        self._dialled = 0
        self._reset()

    def _reset(self) -> None:
        self.ended: list[Account] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._over = anyio.Event()
        self._door = anyio.Semaphore(AT_ONCE)

    # Rounds

    async def obey(self) -> None:
        """Take part in rounds until the conductor says that it is enough."""
        while await self._next_command() != "quit":
            self._reset()
            command = self.command
            self._addresses = command["addresses"]
            self._port = command["port"]
            own = {name: command[name] for name in ("close_timeout", "compression")}
            self._options = {**OPTIONS, "open_timeout": 60, **own}
            async with anyio.create_task_group() as background:
                background.start_soon(self._harvest_always)
                async with anyio.create_task_group() as group:
                    if command["what"] == "idle":
                        for count in command["steps"]:
                            await self._open_idle(group, count)
                            await self._next_command()
                    else:
                        await self._open_conversations(group, command)
                        await self._next_command()
                    self._over.set()
                    await self._link.send("ready")
                background.cancel_scope.cancel()
            await self._harvest()
            await self._link.send("ended", counts=dict(self.counts), faults=self.faults)

    @property
    def ending(self) -> bool:
        """The round is about to end: from now on the server may say so, or be gone."""
        return self._over.is_set()

    async def _next_command(self) -> str:
        """The next command that is more than a question."""
        while True:
            self.command = await self._link.receive()
            if self.command["what"] != "figures":
                return str(self.command["what"])
            await self._link.send("figures", **figures(), log=self._log.take())

    def _url(self, path: str) -> str:
        self._dialled += 1
        return f"ws://{self._addresses[self._dialled % len(self._addresses)]}:{self._port}/{path}"

    # Idle connections

    async def _open_idle(self, group: TaskGroup, count: int) -> None:
        """Open so many, let each have an echo, and say how long it took."""
        begun = time.monotonic()
        self._unopened = count
        self._opened = anyio.Event()
        for _ in range(count):
            group.start_soon(self._idle)
        await self._opened.wait()
        await self._link.send("opened", seconds=time.monotonic() - begun)

    def _enter(self) -> None:
        """One more is open, or will not be."""
        self._door.release()
        self._unopened -= 1
        if self._unopened == 0:
            self._opened.set()

    async def _idle(self) -> None:
        entered = False
        await self._door.acquire()
        try:
            async with connect(self._url("plain"), **self._options) as ws:
                await ws.send("hello")
                echo = await ws.receive()
                entered = True
                self._enter()
                info = await ws.wait_closed()
                self.counts["idle"] += 1
                if echo != "hello" or not (self.ending and info.code == 1001 and info.clean):
                    self.faults.append(f"an idle connection received {echo!r} and ended: {info}")
        except (HandshakeError, ConnectionClosed) as exc:
            self.faults.append(f"an idle connection was not opened: {exc!r}")
        finally:
            if not entered:
                self._enter()

    # Conversations

    async def _open_conversations(self, group: TaskGroup, command: dict[str, Any]) -> None:
        """Begin so many, and say when that is done."""
        begun = time.monotonic()
        self._unopened = command["connections"]
        self._opened = anyio.Event()
        for _ in range(command["connections"]):
            group.start_soon(self._converse_always, command["mean_seconds"], command["pause"])
        await self._opened.wait()
        await self._link.send("opened", seconds=time.monotonic() - begun)

    async def _converse_always(self, mean_seconds: float, pause: float) -> None:
        while not self.ending:
            self._conversations += 1
            conversation = self._conversations * 100 + self._process  # no other process has it
            plan = Plan.make(self._seed, conversation, mean_seconds)
            self.counts[plan.kind] += 1
            if plan.kind == "nuisance":
                await self._be_a_nuisance(plan)
            else:
                await self._converse(conversation, plan, pause)

    async def _converse(self, conversation: int, plan: Plan, pause: float) -> None:
        account = Account(conversation, how=plan.ending)
        account.ws = None
        await self._door.acquire()
        try:
            with anyio.CancelScope() as scope:
                async with connect(self._url(f"{conversation}/{plan.path}"), **self._options) as account.ws:
                    self._enter()
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._talk, account, plan, pause, scope)
                        await self._listen(account, plan, pause)
                        group.cancel_scope.cancel()
        except HandshakeError as exc:
            self._not_opened(exc)
        if account.ws is None:
            self._enter()
            return
        account.facts["at the end"] = self.ending
        self.ended.append(account)

    def _not_opened(self, exc: HandshakeError) -> None:
        # A connection that the kernel had made may never have been accepted.
        self.counts["refused" if isinstance(exc, HandshakeRejected) else "dialled, perhaps"] += 1
        if not self.ending:
            self.faults.append(f"not opened: {exc!r}")

    async def _talk(self, account: Account, plan: Plan, pause: float, scope: anyio.CancelScope) -> None:
        """When all are there, send until it is time to end."""
        ws, rng = account.ws, plan.rng
        assert ws is not None
        await self._opened.wait()
        try:
            if plan.kind == "slow":
                await account.send(TALK, FLOOD, b"%d %d" % (rng.randrange(50, 500), rng.randrange(20_000)))
            with anyio.move_on_after(plan.seconds if plan.ends_it else math.inf):
                while True:
                    await anyio.sleep(rng.expovariate(1 / pause))
                    body, text = plan.message()
                    await account.send(TALK, DATA, body, text=text)
            match plan.ending:
                case "ask":
                    await account.send(TALK, END, b"server")
                case "agree":
                    await account.send(TALK, END, b"client")
                case "close":
                    await ws.aclose()
                case "abort":
                    ws.abort()
                case "cancel":
                    scope.cancel()
        except ConnectionClosed:
            pass

    async def _listen(self, account: Account, plan: Plan, pause: float) -> None:
        """Receive until the end, slowly at times."""
        assert account.ws is not None
        if plan.kind == "slow":
            await anyio.sleep(plan.rng.uniform(0.5, 2) * min(pause, 2))
        while received := await account.receive():
            if received[0] == END and plan.ending == "agree":
                await account.ws.aclose()
            if plan.kind == "slow" and plan.rng.random() < 0.01:
                await anyio.sleep(plan.rng.uniform(0, 0.2) * min(pause, 2))

    # Connections that are none

    async def _be_a_nuisance(self, plan: Plan) -> None:
        rng = plan.rng
        what = rng.choice(NUISANCES)
        if what == "impatient":
            self.counts["dialled, perhaps"] += 1
            await self._door.acquire()
            try:
                with anyio.move_on_after(rng.uniform(0, 0.05)):
                    async with connect(self._url("plain"), **self._options):
                        pass
            except HandshakeError as exc:
                if not self.ending:
                    self.faults.append(f"not opened: {exc!r}")
            finally:
                self._enter()
            return
        cut = rng.randrange(len(REQUEST))
        self._dialled += 1
        with socket.socket() as sock:
            sock.setblocking(False)
            await self._door.acquire()
            try:
                with suppress(BlockingIOError):
                    sock.connect((self._addresses[self._dialled % len(self._addresses)], self._port))
                await anyio.wait_writable(sock)
            finally:
                self._enter()
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._not_opened(ConnectFailed(None, "refused"))
                return
            try:
                match what:
                    case "reset in the request" | "end in the request":
                        sock.send(REQUEST[:cut])
                    case "reset when open":
                        sock.send(REQUEST)
                        await anyio.wait_readable(sock)
                    case "garbage":
                        sock.send(REQUEST + rng.randbytes(1000))
                    case "silence":
                        with anyio.move_on_after(rng.uniform(0, 12)):  # by then the server may have had enough
                            await self._over.wait()
                if what == "garbage":
                    with anyio.move_on_after(5):
                        while sock.recv(65536):
                            await anyio.wait_readable(sock)
            except OSError:
                pass  # the server was faster
            if what.startswith("reset"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.counts["dialled, perhaps" if self.ending else "dialled"] += 1

    # Accounts

    async def _harvest_always(self) -> None:
        while True:
            await anyio.sleep(0.5)
            with anyio.CancelScope(shield=True):  # half a line would be none
                await self._harvest()

    async def _harvest(self) -> None:
        done, self.ended = self.ended, []
        for start in range(0, len(done), HARVEST):
            await self._link.send("accounts", accounts=[account.closed() for account in done[start : start + HARVEST]])


async def attend(link: Link, log: Log, seed: str, process: str) -> None:
    await Clients(link, log, seed, int(process)).obey()


if __name__ == "__main__":
    loop, port, seed, descriptors, trace, process = sys.argv[1:]
    if trouble := allow_descriptors(int(descriptors)):
        sys.exit(trouble)
    if trace == "trace":
        tracemalloc.start()
    run(loop, int(port), attend, seed, process)
