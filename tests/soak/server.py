"""The server process."""

import math
import random
import sys
import time
import tracemalloc
from collections import Counter
from typing import Any

import anyio

from anyio_ws import ConnectionClosed, Server, WebSocket

from .accounts import DATA, ECHO, END, FLOOD, NEWS, Account
from .process import Link, Log, allow_descriptors, figures, run

ADDRESSES = [f"127.0.0.{number}" for number in range(1, 5)]
"""Each has ephemeral ports of its own."""

OPTIONS: dict[str, Any] = {"ping_interval": 10, "ping_timeout": 60}
"""Pings now and then; and a machine that has too much to do is no fault."""

PATIENCE = 0.5
"""How long a reader of the news may keep us waiting, of the time between two; then it misses one."""

BLOCKED = 0.05
"""Seconds after which a `send` has met back-pressure."""

HARVEST = 200
"""Accounts sent to the conductor at once."""


class Service:
    """What the server process does.

    Attributes:
        talking: the conversations that may get news.
        ended: the accounts of handlers that have returned; their connections may still be closing.
        counts: things that happen.
        news_seconds: how long each telling of news took.
    """

    def __init__(self, link: Link, log: Log, seed: str) -> None:
        self._link = link
        self._log = log
        self._seed = seed
        self.talking: set[Account] = set()
        self.ended: list[Account] = []
        self.counts: Counter[str] = Counter()
        self.news_seconds: list[float] = []

    # Connections

    async def handle(self, ws: WebSocket) -> None:
        """Serve `/plain`, which is an echo, and `/<conversation>/<how we end it>/<after how many seconds>`."""
        self.counts["handled"] += 1
        if ws.request.path == "/plain":
            async for message in ws:
                await ws.send(message)
            return
        _, conversation, ending, seconds = ws.request.path.split("/")
        account = Account(int(conversation))
        account.ws = ws
        self.talking.add(account)
        try:
            with anyio.move_on_after(float(seconds) if ending else math.inf) as scope:
                await self._converse(account)
            if scope.cancelled_caught and ending == "abort":
                ws.abort()
        finally:
            self.talking.discard(account)
            self.ended.append(account)

    async def _converse(self, account: Account) -> None:
        try:
            while received := await account.receive():
                kind, body = received
                if kind == FLOOD:
                    count, size = map(int, body.split())
                    for _ in range(count):
                        begun = time.monotonic()
                        await account.send(ECHO, DATA, bytes(size))
                        self.counts["blocked sends"] += time.monotonic() - begun > BLOCKED
                elif kind == END:
                    await account.send(ECHO, END, b"")
                    if body == b"server":
                        return
                else:
                    await account.send(ECHO, DATA, body, text=body.isascii())
        except ConnectionClosed:
            while await account.receive():  # what came before the end
                pass

    async def _tell_everybody(self, pause: float) -> None:
        """News for all, as programs send them: a task for each connection, which does not wait for ever."""
        rng = random.Random(f"{self._seed}/news")

        async def tell(account: Account, body: bytes) -> None:
            try:
                with anyio.move_on_after(PATIENCE * pause) as scope:
                    await account.send(NEWS, DATA, body)
                self.counts["news that were given up"] += scope.cancelled_caught
            except ConnectionClosed:
                pass

        while True:
            await anyio.sleep(pause)
            body = rng.randbytes(rng.choice([10, 100, 1000, 10000]))
            begun = time.monotonic()
            async with anyio.create_task_group() as group:
                for account in self.talking:
                    group.start_soon(tell, account, body)
                    self.counts["news"] += 1
            self.news_seconds.append(time.monotonic() - begun)

    # Rounds

    async def obey(self) -> None:
        """Serve rounds until the conductor says that it is enough."""
        while await self._next_command() != "quit":
            await self._serve()

    async def _next_command(self, server: Server | None = None) -> str:
        """The next command that is more than a question."""
        while True:
            self.command = await self._link.receive()
            if self.command["what"] != "figures":
                return str(self.command["what"])
            open_now = 0 if server is None else len(server.connections)
            await self._link.send("figures", **figures(), open=open_now, log=self._log.take())

    async def _serve(self) -> None:
        """One round, with a server of its own."""
        self.counts.clear()
        self.news_seconds.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(self._tell_everybody, self.command["news_pause"])
            group.start_soon(self._harvest_always)
            timeouts = {name: self.command[name] for name in ("open_timeout", "close_timeout")}
            compression = self.command["compression"]
            async with Server(self.handle, ADDRESSES, 0, compression=compression, **timeouts, **OPTIONS) as server:
                await self._link.send("serving", port=server.port, addresses=ADDRESSES)
                await self._next_command(server)
                begun = time.monotonic()
                if self.command["how"] == "drain":
                    await server.drain(grace=timeouts["close_timeout"], jitter=self.command["jitter"])
            seconds = time.monotonic() - begun
            group.cancel_scope.cancel()
        await self._harvest()
        faults = []
        stats = server.stats
        if server.connections or stats.open:
            faults.append(f"the server has ended, but has {len(server.connections)} connections and {stats.open=}")
        if self.talking:
            faults.append(f"{len(self.talking)} handlers have not ended")
        if self.ended:
            faults.append(f"{len(self.ended)} connections have ended without a close_info")
        if stats.accepted != self.counts["handled"]:
            faults.append(f"{stats.accepted=}, but the handler was called {self.counts['handled']} times")
        await self._link.send(
            "ended",
            seconds=seconds,
            accepted=stats.accepted,
            rejected=stats.rejected,
            counts=dict(self.counts),
            news_seconds=self.news_seconds,
            faults=faults,
        )

    async def _harvest_always(self) -> None:
        while True:
            await anyio.sleep(0.5)
            with anyio.CancelScope(shield=True):  # half a line would be none
                await self._harvest()

    async def _harvest(self) -> None:
        """Send the accounts of connections that have ended to the conductor, so that nothing is kept of them."""
        done = [account for account in self.ended if account.ended]
        self.ended = [account for account in self.ended if not account.ended]
        for start in range(0, len(done), HARVEST):
            await self._link.send("accounts", accounts=[account.closed() for account in done[start : start + HARVEST]])


async def serve(link: Link, log: Log, seed: str) -> None:
    await Service(link, log, seed).obey()


if __name__ == "__main__":
    loop, port, seed, descriptors, trace = sys.argv[1:]
    if trouble := allow_descriptors(int(descriptors)):
        sys.exit(trouble)
    if trace == "trace":
        tracemalloc.start()
    run(loop, int(port), serve, seed)
