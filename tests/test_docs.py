"""The documentation tells the truth: its code runs and does what the text says, its tables have the real defaults.

The Python blocks of a page make one module, in their order; those of README.md are a module each. `nox -s docs` builds
the pages, with every warning an error.
"""

import importlib
import inspect
import logging
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from anyio_ws import ConnectionClosed, ConnectionClosedError, HandshakeRejected, Server, WebSocket, connect
from anyio_ws.testing import MemoryServer, connected_pair

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(?:python|\{code-block\} python\n(?::[^\n]*\n)*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[str]:
    """The Python blocks of a page, each padded to its line numbers."""
    text = path.read_text("utf-8")
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in BLOCK.finditer(text)]


def load(path: Path, code: list[str]) -> Any:
    namespace = {"__name__": path.stem}
    for block in code:
        exec(compile(block, path, "exec", dont_inherit=True), namespace)
    return SimpleNamespace(**namespace)


def page(name: str) -> Any:
    """What the code of a how-to guide defines."""
    path = ROOT / "docs" / "how-to" / f"{name}.md"
    return load(path, blocks(path))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    logger = logging.getLogger("anyio_ws")
    before = logger.level, logger.handlers[:]
    yield
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


# All pages


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path: Path) -> None:
    load(path, blocks(path))


@pytest.mark.parametrize("number", range(3))
def test_the_code_of_the_readme_runs(number: int) -> None:
    path = ROOT / "README.md"
    assert len(blocks(path)) == 3
    load(path, [blocks(path)[number]])


def test_the_links_of_the_readme_exist() -> None:
    for name in "README.md", "CONTRIBUTING.md", "CHANGELOG.md":
        for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text("utf-8")):
            assert (ROOT / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", ["anyio_ws", "anyio_ws.testing", "anyio_ws.protocol"])
def test_the_reference_has_every_public_name(name: str) -> None:
    text = "".join(path.read_text("utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)", text, re.MULTILINE))
    assert set(importlib.import_module(name).__all__) <= documented


def test_the_table_of_options_has_the_real_defaults() -> None:
    text = (ROOT / "docs" / "explanation" / "limits.md").read_text("utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", text, re.MULTILINE))
    written = {
        "1 MiB": 2**20,
        "64 KiB": 2**16,
        "`None`": None,
        "`False`": False,
        '`"same-origin"`': "same-origin",
        '`"backpressure"`': "backpressure",
    }
    for name, parameter in inspect.signature(Server).parameters.items():
        if name in table and name not in ("subprotocols", "server_header"):
            value = written[table[name]] if table[name] in written else int(table[name])
            assert value == parameter.default, name
    here = {"handler", "host", "port", "ssl", "uds", "listeners", "compression", "json"}
    assert table.keys() == inspect.signature(Server).parameters.keys() - here


def test_contributing_maps_the_tree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named: set[str] = set()
    folders: list[str] = []
    for indent, name in re.findall(r"^( *)([\w.]+(?:\.py|/))(?: |$)", text, re.MULTILINE):
        del folders[len(indent) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            named.add("".join(folders) + name)
    package = [path for path in (ROOT / "anyio_ws").rglob("*.py") if path.name != "__init__.py"]
    assert named == {path.relative_to(ROOT).as_posix() for path in package} | {"anyio_ws/__init__.py"}


# What the pages say


@pytest.mark.virtual_time
async def test_the_tutorials_tests_pass() -> None:
    tutorial = load(ROOT / "docs" / "tutorial.md", blocks(ROOT / "docs" / "tutorial.md"))
    await tutorial.test_echo()
    await tutorial.test_idle_clients_are_closed()


@pytest.mark.virtual_time
@pytest.mark.parametrize("name", [name for name in vars(page("testing")) if name.startswith("test_")])
async def test_the_tests_of_the_guide_pass(name: str) -> None:
    await getattr(page("testing"), name)()


@pytest.mark.virtual_time
async def test_consume(capsys: pytest.CaptureFixture[str]) -> None:
    guide = page("consume")
    async with MemoryServer(guide.concurrent) as server, server.connect() as ws:
        await ws.send_many(["a", "b"])
        assert {await ws.receive(), await ws.receive()} == {"done: a", "done: b"}
    async with MemoryServer(guide.careful) as server, server.connect() as ws:
        await ws.send("hello")
    assert capsys.readouterr().out == "hello\nit ended in good order: 1000 (normal closure) from the peer\n"
    async with MemoryServer(guide.typed) as server, server.connect() as ws:
        await ws.send(b"binary")
        with pytest.raises(ConnectionClosedError, match="1003"):
            await ws.receive()
    async with MemoryServer(guide.decoded) as server, server.connect() as ws:
        await ws.send("{")
        with pytest.raises(ConnectionClosedError, match="1007"):
            await ws.receive()


@pytest.mark.virtual_time
async def test_the_slow_consumer_of_the_guide_gets_the_latest(capsys: pytest.CaptureFixture[str]) -> None:
    guide = page("consume")
    async with connected_pair(overflow="latest") as (client, server), anyio.create_task_group() as tasks:
        tasks.start_soon(guide.show, client)
        for price in range(41):
            await server.send_json({"symbol": "BTC", "price": price})
            await anyio.sleep(0.07)  # never when the other wakes up
        await server.aclose()
    assert capsys.readouterr().out == "".join(f"BTC {price}\n" for price in (0, 14, 28, 40))
    async with connected_pair() as (client, server), anyio.create_task_group() as tasks:
        tasks.start_soon(guide.several, client)
        await server.send_many(['{"symbol": "BTC", "price": 1}', '{"symbol": "ETH", "price": 2}'])
        await anyio.sleep(1)
        assert guide.latest == {"BTC": 1, "ETH": 2}
        tasks.cancel_scope.cancel()


@pytest.mark.real_time
async def test_byte_stream() -> None:
    guide = page("byte-stream")

    async def shout(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.send((await stream.receive()).upper())

    async with (
        await anyio.create_tcp_listener(local_host="localhost") as service,
        anyio.create_task_group() as tasks,
    ):
        port = service.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(service.serve, shout)
        async with Server(partial(guide.to_service, port=port), "localhost", 0) as server:
            local = await tasks.start(guide.client_end, server.url)
            async with await anyio.connect_tcp("localhost", local) as program:
                await program.send(b"hello")
                assert b"".join([data async for data in program]) == b"HELLO"
        tasks.cancel_scope.cancel()


@pytest.mark.virtual_time
async def test_produce() -> None:
    guide = page("produce")
    async with MemoryServer(guide.producer) as server, server.connect() as ws:
        assert [await ws.receive() for _ in range(3)] == ["number 1", "number 2", "number 3"]
    async with MemoryServer(guide.encoded) as server, server.connect() as ws:
        assert await ws.receive_json() == {"already": "encoded"}
    async with MemoryServer(partial(guide.burst, rows=["a", "b"])) as server, server.connect() as ws:
        assert [message async for message in ws] == ["a", "b"]


@pytest.mark.real_time  # files are read in threads, for which a virtual clock does not wait
async def test_large_messages(tmp_path: Path) -> None:
    guide = page("large-messages")
    data = bytes(range(256)) * 1000
    (tmp_path / "from").write_bytes(data)

    async def words() -> AsyncIterator[str]:
        for word in "five ", "words", "", " são", " 2 😀":
            yield word

    async with connected_pair() as (client, server), anyio.create_task_group() as tasks:
        tasks.start_soon(guide.upload, client, tmp_path / "from")
        await guide.download(server, tmp_path / "to")
        assert (tmp_path / "to").read_bytes() == data
        tasks.start_soon(guide.answer, client, words())
        assert await guide.count(server) == "18 characters"
        tasks.start_soon(client.send, bytes(10_000))
        assert await guide.count(server) == "10000 bytes"
        tasks.start_soon(client.send, data)
        assert await guide.limited(server) == len(data)


@pytest.mark.virtual_time
async def test_both_at_once() -> None:
    guide = page("both-at-once")
    async with MemoryServer(guide.talk) as server, server.connect() as ws:
        assert [message async for message in ws] == [f"number {number}" for number in range(10)]
        assert ws.close_info is not None
        assert ws.close_info.code == 1000
    async with MemoryServer(guide.prices) as server, server.connect() as ws:
        assert {await ws.receive() for _ in range(6)} == {"BTC", "ETH"}
    async with MemoryServer(guide.greeter) as server, server.connect() as ws:
        assert await ws.receive() == "welcome"
        await anyio.sleep(100)
        assert ws.close_info is None


@pytest.mark.virtual_time
async def test_connected_clients() -> None:
    guide = page("connected-clients")
    async with MemoryServer(guide.echo) as server, server.connect() as one, server.connect() as two:
        await guide.tell_all(server, "news")
        assert [await one.receive(), await two.receive()] == ["news", "news"]


@pytest.mark.virtual_time
async def test_timeouts() -> None:
    guide = page("timeouts")
    async with connected_pair() as (client, server):
        assert await guide.patient(client) is None
        with pytest.raises(TimeoutError):
            await guide.strict(client)
        await server.send("late")
        assert await guide.patient(client) == "late"


@pytest.mark.virtual_time
async def test_closing(capsys: pytest.CaptureFixture[str]) -> None:
    guide = page("closing")
    async with MemoryServer(guide.bouncer) as server, server.connect() as ws:
        await ws.send("nonsense")
        with pytest.raises(ConnectionClosedError, match=r"1008 .* 'wrong password' from the peer"):
            await ws.receive()
    async with connected_pair() as (client, server), anyio.create_task_group() as tasks:
        tasks.start_soon(guide.report, client)
        await server.aclose(1001, "restart")
    assert capsys.readouterr().out == "1001 (going away) 'restart' from the peer\n"


@pytest.mark.virtual_time
async def test_keepalive(capsys: pytest.CaptureFixture[str]) -> None:
    async with connected_pair() as (client, _):
        await page("keepalive").measure(client)
    assert re.fullmatch(r"\d\.\d ms\n", capsys.readouterr().out)


@pytest.mark.real_time
async def test_compression(capsys: pytest.CaptureFixture[str]) -> None:
    guide = page("compression")
    async with Server(guide.handler, "localhost", 0, compression="deflate") as server:
        await guide.client(server.url)
    assert capsys.readouterr().out == "hello " * 100 + "\n"
    async with connected_pair(compression="deflate") as (client, server):
        await guide.send_picture(client, b"x" * 1000)
        await guide.send_token(client, "secret " * 100)
        assert [await server.receive(), await server.receive()] == [b"x" * 1000, "secret " * 100]
        assert server.stats.bytes_received > 1700


async def test_handler_arguments() -> None:
    guide = page("handler-arguments")
    async with MemoryServer(partial(guide.handler, guide.Database())) as server, server.connect() as ws:
        await ws.send("key")
        assert await ws.receive() == "KEY"
    async with MemoryServer(guide.route, process_request=guide.process_request) as server:
        async with server.connect("/greet", additional_headers={"Accept-Language": "fr"}) as ws:
            assert await ws.receive() == "bonjour"
        async with server.connect("/nowhere") as ws:
            with pytest.raises(ConnectionClosed, match="4004 'no such path'"):
                await ws.receive()


async def test_requests() -> None:
    guide = page("requests")
    async with MemoryServer(guide.whoami, process_request=guide.authenticate, origins=guide.ORIGINS) as server:
        for headers in {"Authorization": "Bearer secret"}, {"Cookie": "a=b; session=secret"}:
            async with server.connect(additional_headers=headers, origin="https://www.example.com") as ws:
                assert await ws.receive() == "ann"
        async with server.connect("/?token=secret") as ws:
            assert await ws.receive() == "ann"
        with pytest.raises(HandshakeRejected, match="401"):
            async with server.connect():
                ...
        with pytest.raises(HandshakeRejected, match="403"):
            async with server.connect("/?token=secret", origin="https://example.org"):
                ...
    async with (
        MemoryServer(guide.handler, process_request=guide.with_cookie) as server,
        server.connect("/chat?room=1") as ws,
    ):
        assert ws.response.headers["Set-Cookie"].startswith("session=")
        assert await ws.receive() == "/chat?room=1"


@pytest.mark.real_time
async def test_addresses() -> None:
    guide = page("addresses")
    await guide.free_port()
    await guide.in_a_task_group()


@pytest.mark.real_time
async def test_http() -> None:
    guide = page("http")

    async def get(server: Server, target: str) -> bytes:
        async with await anyio.connect_tcp("localhost", server.port) as stream:
            await stream.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            return b"".join([data async for data in stream])

    async with Server(guide.echo, "localhost", 0, process_request=guide.process_request) as server:
        assert (await get(server, "/healthz")).endswith(b"\r\n\r\nok\n")
        assert b"\r\nContent-Type: text/html\r\n" in await get(server, "/")
        assert (await get(server, "/elsewhere")).startswith(b"HTTP/1.1 426 ")
        async with connect(server.url + "chat") as ws:
            await ws.send("hello")
            assert await ws.receive() == "hello"
        with pytest.raises(HandshakeRejected, match="404"):
            async with connect(server.url):
                ...


async def test_behind_a_proxy() -> None:
    headers = {"X-Forwarded-For": "203.0.113.9, 192.0.2.1"}
    async with MemoryServer(page("behind-a-proxy").handler) as server, server.connect(additional_headers=headers) as ws:
        assert await ws.receive() == "you are 192.0.2.1"


async def test_debugging() -> None:
    log = StringIO()
    page("debugging").handler.setStream(log)
    async with connected_pair() as (client, server):
        await client.send("hello")
        assert await server.receive() == "hello"
        await server.send(bytes(range(17)))
        await client.receive()
        await client.aclose(1001, "restart")
    lines = log.getvalue().splitlines()
    name = f"anyio_ws.server {server.id}"
    assert [line for line in lines if name in line] == [
        f"DEBUG {name} < TEXT 5 B 'hello'",
        f"DEBUG {name} > BINARY 17 B 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f …",
        f"DEBUG {name} < CLOSE 1001 (going away) 'restart'",
        f"DEBUG {name} > CLOSE 1001 (going away) ''",
        f"INFO {name} connection ended: 1001 (going away) 'restart' from the peer",
    ]


async def test_a_handler_that_returns_says_so() -> None:
    async def once(ws: WebSocket) -> None:
        await ws.receive()

    log = StringIO()
    page("debugging").handler.setStream(log)
    async with MemoryServer(once) as server, server.connect() as ws:
        await ws.send("hello")
        await ws.wait_closed()
    assert "the handler has returned, messages received: 1\n" in log.getvalue()


@pytest.mark.real_time
async def test_threads() -> None:
    guide = page("threads")
    async with MemoryServer(guide.handler) as server, server.connect() as ws:
        await ws.send("loud")
        assert await ws.receive() == "LOUD"
    async with MemoryServer(guide.progress) as server, server.connect() as ws:
        assert [message async for message in ws] == ["0 %", "50 %", "100 %"]


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


@pytest.mark.real_time
async def test_synchronous() -> None:
    async with Server(echo, "localhost", 0) as server:
        assert await anyio.to_thread.run_sync(page("synchronous").main, server.url) == "hello"


@pytest.mark.real_time
async def test_callbacks() -> None:
    async def greet(ws: WebSocket) -> None:
        await ws.send("hello")

    events: list[object] = []
    async with Server(greet, "localhost", 0) as server:
        await page("callbacks").with_callbacks(
            server.url, lambda ws: events.append("open"), events.append, lambda info: events.append(info.code)
        )
    assert events == ["open", "hello", 1000]
