"""Our server with the pages of a headless Chromium, over TCP and TLS.

Debian's package `chromium` is enough. Where there is none these tests are skipped, or fail if the environment has
ANYIO_WS_NEED_CHROMIUM. Our server serves the page too, chromium_page.html, and one browser does for all tests.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_ws import CloseInfo, Deflate, Request, Response, Server, Stats, WebSocket

from . import chromium
from .chromium import Page, open_page
from .conftest import Wire, echo_in_parts

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.chromium,
    pytest.mark.skipif(not (chromium.PROGRAM or chromium.IS_NEEDED), reason="needs the browser Chromium"),
    # The first test waits for it to start.
    pytest.mark.timeout(60),
]

PAGE = Path(__file__).with_name("chromium_page.html").read_text()
# In JavaScript and in Python.
MESSAGES: list[tuple[str, str | bytes]] = [
    ("''", ""),
    ("bytes(0)", b""),
    ("'hello'", "hello"),
    ("'κόσμε 🐍'", "κόσμε 🐍"),
    ("bytes(256)", bytes(range(256))),
    ("'x'.repeat(125)", "x" * 125),
    ("'x'.repeat(126)", "x" * 126),
    ("bytes(65535)", (bytes(range(256)) * 256)[:-1]),
    ("bytes(65536)", bytes(range(256)) * 256),
    ("'€'.repeat(1000000)", "€" * 1_000_000),
    ("bytes(6 << 20)", bytes(range(256)) * (24 << 10)),
]
# The messages `compressible` of the page, in bytes.
COMPRESSIBLE_SIZE = 2 * 40_000 + 3 * 300
CLOSES = [(1000, ""), (3001, "registered"), (4999, "ünïcödé")]

compressions = pytest.mark.parametrize("compression", [None, Deflate()], ids=["plain", "deflate"])


@pytest.fixture(scope="module")
def devtools() -> Iterator[str]:
    with chromium.browser() as devtools:
        yield devtools


def show_page(request: Request, **headers: str) -> Response | None:
    if request.is_websocket:
        return None
    return Response(200, {"Content-Type": "text/html; charset=utf-8", **headers}, PAGE)


def serve(handler: Callable[[WebSocket], Awaitable[None]], wire: Wire, **options: Any) -> Server:
    options.setdefault("process_request", show_page)
    return Server(handler, "127.0.0.1", 0, ssl=wire.server_ssl, **options)


def site(server: Server) -> str:
    return server.url.replace("ws", "http", 1).rstrip("/")


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


class TestOurServer:
    @compressions
    async def test_echoes(self, devtools: str, wire: Wire, compression: Deflate | None) -> None:
        received: list[str | bytes] = []

        async def handler(ws: WebSocket) -> None:
            async for message in ws:
                received.append(message)
                await ws.send(message)

        options: dict[str, Any] = {"compression": compression, "max_size": 2**23}
        async with serve(handler, wire, **options) as server, open_page(devtools, site(server)) as page:
            script = ", ".join(script for script, _ in MESSAGES)
            report = await page.run(f"talk([{script}], {{ close: [1000] }})")
        assert report["extensions"] == ("permessage-deflate" if compression else "")
        assert received == [message for _, message in MESSAGES]
        assert report["echoes"] == [True] * len(MESSAGES)
        assert (report["code"], report["wasClean"]) == (1000, True)

    @compressions
    async def test_keeps_the_order_of_many_messages(
        self, devtools: str, tcp: Wire, compression: Deflate | None
    ) -> None:
        async with (
            serve(echo, tcp, compression=compression) as server,
            open_page(devtools, site(server)) as page,
        ):
            report = await page.run("talk(Array.from({ length: 3000 }, (_, i) => `message ${i}`), { close: [1000] })")
        assert report["echoes"] == [True] * 3000
        assert report["texts"] == [f"message {i}" for i in range(3000)]

    @compressions
    async def test_echoes_in_parts(self, devtools: str, tcp: Wire, compression: Deflate | None) -> None:
        async with (
            serve(echo_in_parts, tcp, compression=compression) as server,
            open_page(devtools, site(server)) as page,
        ):
            script = ", ".join(script for script, _ in MESSAGES)
            report = await page.run(f"talk([{script}], {{ close: [1000] }})")
        assert report["echoes"] == [True] * len(MESSAGES)
        assert (report["code"], report["wasClean"]) == (1000, True)

    async def test_pings(self, devtools: str, tcp: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            await ws.send(f"{await ws.ping()}")

        async with serve(handler, tcp) as server, open_page(devtools, site(server)) as page:
            report = await page.run("talk([])")
        assert 0 <= float(report["texts"][0]) < 10

    async def test_sees_how_pages_close(self, devtools: str, tcp: Wire) -> None:
        ends: list[tuple[Any, ...]] = []

        async def handler(ws: WebSocket) -> None:
            end = await ws.wait_closed()
            ends.append((end.code, end.reason, end.initiator, end.clean))

        async with serve(handler, tcp) as server, open_page(devtools, site(server)) as page:
            # What the page sees is our reply. RFC 6455 §5.5.1: it "typically echos the status code"; a reason is its
            # sender's own.
            for code, reason in CLOSES:
                report = await page.run(f"talk([], {{ close: {json.dumps([code, reason])} }})")
                assert (report["code"], report["reason"], report["wasClean"]) == (code, "", True)
            report = await page.run("talk([], { close: [] })")
            assert (report["code"], report["wasClean"]) == (1005, True)
        assert ends == [(code, reason, "peer", True) for code, reason in [*CLOSES, (1005, "")]]

    async def test_hears_1001_from_a_window_that_is_closed(self, devtools: str, tcp: Wire) -> None:
        connected, ended = anyio.Event(), anyio.Event()
        ends: list[CloseInfo] = []

        async def handler(ws: WebSocket) -> None:
            connected.set()
            ends.append(await ws.wait_closed())
            ended.set()

        async with serve(handler, tcp) as server:
            async with open_page(devtools, site(server)) as page:
                await page.run("void talk([])")
                await connected.wait()
            await ended.wait()
        assert [(end.code, end.initiator, end.clean) for end in ends] == [(1001, "peer", True)]

    async def test_tells_pages_how_it_closes(self, devtools: str, tcp: Wire) -> None:
        closes = [*CLOSES, (1001, "going"), (1013, "later")]
        due = iter(closes)

        async def handler(ws: WebSocket) -> None:
            await ws.aclose(*next(due))

        async with serve(handler, tcp) as server, open_page(devtools, site(server)) as page:
            for code, reason in closes:
                report = await page.run("talk([])")
                assert (report["code"], report["reason"], report["wasClean"]) == (code, reason, True)

    async def test_closes_with_1011_when_the_handler_fails(self, devtools: str, tcp: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            raise RuntimeError("secret")

        async with serve(handler, tcp) as server, open_page(devtools, site(server)) as page:
            report = await page.run("talk([])")
        assert (report["code"], report["wasClean"]) == (1011, True)
        assert "secret" not in report["reason"]

    @compressions
    async def test_closes_with_1009_when_a_message_is_too_big(
        self, devtools: str, tcp: Wire, compression: Deflate | None
    ) -> None:
        async with (
            serve(echo, tcp, compression=compression, max_size=1000) as server,
            open_page(devtools, site(server)) as page,
        ):
            report = await page.run("talk(['x'.repeat(1000), 'x'.repeat(1001)])")
        assert (report["echoes"], report["code"], report["wasClean"]) == ([True, False], 1009, True)

    async def test_closes_with_1001_when_it_goes_away(self, devtools: str, tcp: Wire) -> None:
        connected = anyio.Event()
        reports: list[Any] = []

        async def handler(ws: WebSocket) -> None:
            connected.set()
            await ws.wait_closed()

        async def watch(page: Page) -> None:
            reports.append(await page.run("talk([])"))

        async with (
            open_page(devtools) as page,
            anyio.create_task_group() as tg,
            serve(handler, tcp) as server,
        ):
            await page.visit(site(server))
            tg.start_soon(watch, page)
            await connected.wait()
        assert [(report["code"], report["wasClean"]) for report in reports] == [(1001, True)]

    async def test_a_page_sees_1006_when_the_server_aborts(self, devtools: str, tcp: Wire) -> None:
        async def handler(ws: WebSocket) -> None:
            ws.abort()

        async with serve(handler, tcp) as server, open_page(devtools, site(server)) as page:
            report = await page.run("talk([])")
        assert (report["opened"], report["code"], report["wasClean"]) == (True, 1006, False)

    async def test_negotiates_a_subprotocol(self, devtools: str, tcp: Wire) -> None:
        async with (
            serve(echo, tcp, subprotocols=["v2", "v1"]) as server,
            open_page(devtools, site(server)) as page,
        ):
            report = await page.run("talk(['hello'], { protocols: ['v3', 'v1'], close: [1000] })")
        assert (report["protocol"], report["echoes"]) == ("v1", [True])

    async def test_gets_the_cookie_that_it_gave_the_page(self, devtools: str, tcp: Wire) -> None:
        def process_request(request: Request) -> Response | None:
            return show_page(request, **{"Set-Cookie": "user=ann; HttpOnly"})

        async def handler(ws: WebSocket) -> None:
            await ws.send(ws.request.cookies["user"])

        async with (
            serve(handler, tcp, process_request=process_request) as server,
            open_page(devtools, site(server)) as page,
        ):
            report = await page.run("talk([])")
        assert report["texts"] == ["ann"]


class TestOrigins:
    """What a browser says of a page's origin, and what our server makes of it."""

    async def test_a_page_from_elsewhere_is_refused(self, devtools: str, tcp: Wire) -> None:
        asked: list[Request] = []
        async with (
            serve(echo, tcp, process_request=asked.append) as server,
            serve(echo, tcp) as elsewhere,
            open_page(devtools, site(elsewhere)) as page,
        ):
            report = await page.run(f"talk([], {{ url: {json.dumps(server.url)} }})")
        assert (report["opened"], report["code"]) == (False, 1006)
        assert not asked

    async def test_a_page_from_another_name_of_this_machine_is_refused(self, devtools: str, tcp: Wire) -> None:
        async with (
            serve(echo, tcp) as server,
            open_page(devtools, site(server).replace("127.0.0.1", "localhost")) as page,
        ):
            report = await page.run(f"talk([], {{ url: {json.dumps(server.url)} }})")
            assert (report["opened"], report["code"]) == (False, 1006)
            report = await page.run("talk([], { close: [1000] })")
            assert (report["opened"], report["code"]) == (True, 1000)

    async def test_a_page_from_elsewhere_that_is_listed_is_accepted(self, devtools: str, tcp: Wire) -> None:
        async with serve(echo, tcp) as elsewhere:
            origins = [site(elsewhere)]
            async with (
                serve(echo, tcp, origins=origins) as server,
                open_page(devtools, site(elsewhere)) as page,
            ):
                report = await page.run(f"talk(['in'], {{ url: {json.dumps(server.url)}, close: [1000] }})")
        assert (report["echoes"], report["code"]) == ([True], 1000)

    async def test_a_page_that_may_not_have_an_origin_is_refused(self, devtools: str, tcp: Wire) -> None:
        def process_request(request: Request) -> Response | None:
            # Its Origin is "null".
            return show_page(request, **{"Content-Security-Policy": "sandbox allow-scripts"})

        async with (
            serve(echo, tcp, process_request=process_request) as server,
            open_page(devtools, site(server)) as page,
        ):
            report = await page.run("talk([])")
        assert (report["opened"], report["code"]) == (False, 1006)


PRESETS = {"small": Deflate.small(), "balanced": Deflate.balanced(), "best": Deflate.best()}
BITS = [9, 12, 15, None]


def agreements(preset: Deflate) -> Iterator[Deflate]:
    for server_single, client_single, server_bits, client_bits in product([False, True], [False, True], BITS, BITS):
        yield replace(
            preset,
            server_no_context_takeover=server_single,
            client_no_context_takeover=client_single,
            server_max_window_bits=server_bits,
            client_max_window_bits=client_bits,
        )


def answer(options: Deflate) -> str:
    """What a server with these options answers to `permessage-deflate; client_max_window_bits`."""
    parameters = ["permessage-deflate"]
    parameters += ["server_no_context_takeover"] * options.server_no_context_takeover
    parameters += ["client_no_context_takeover"] * options.client_no_context_takeover
    if options.server_max_window_bits:
        parameters.append(f"server_max_window_bits={options.server_max_window_bits}")
    if options.client_max_window_bits:
        parameters.append(f"client_max_window_bits={options.client_max_window_bits}")
    return "; ".join(parameters)


@pytest.mark.usefixtures("deflate_libraries")
class TestCompression:
    @pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
    async def test_of_a_preset(self, devtools: str, tcp: Wire, preset: Deflate) -> None:
        await check(devtools, tcp, [preset])

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
    async def test_with_all_parameters(self, devtools: str, tcp: Wire, preset: Deflate) -> None:
        await check(devtools, tcp, agreements(preset))

    async def test_of_some_messages_and_not_of_others(self, devtools: str, tcp: Wire) -> None:
        texts = ["", "x" * 90, "κόσμε", ""]

        async def handler(ws: WebSocket) -> None:
            for compress in (True, False, None, True):
                for text in texts:
                    await ws.send(text, compress=compress)

        async with (
            serve(handler, tcp, compression="deflate") as server,
            open_page(devtools, site(server)) as page,
        ):
            report = await page.run("talk([])")
        assert report["texts"] == texts * 4


async def check(devtools: str, wire: Wire, all_options: Iterable[Deflate]) -> None:
    async with serve(echo, wire) as home, open_page(devtools, site(home)) as page:
        for options in all_options:
            stats: list[Stats] = []

            async def handler(ws: WebSocket, stats: list[Stats] = stats) -> None:
                await echo(ws)
                stats.append(ws.stats)

            async with serve(handler, wire, compression=options, origins=[site(home)]) as server:
                report = await page.run(f"talk(compressible, {{ url: {json.dumps(server.url)}, close: [1000] }})")
            assert report["extensions"] == answer(options), options
            assert (report["echoes"], report["code"]) == ([True] * 5, 1000), options
            # Each of these messages is longer than any threshold, and compressed in both directions.
            assert stats[0].bytes_received < COMPRESSIBLE_SIZE / 2
            assert stats[0].bytes_sent < COMPRESSIBLE_SIZE / 2
