"""Making connected sockets. Happy eyeballs are tested with addresses of 127.0.0.0/8 and a resolver of our own."""

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_ws.transports import connecting
from anyio_ws.transports.connecting import ATTEMPT_DELAY, connect_tcp, connect_unix

pytestmark = pytest.mark.real_time


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets that are made."""
    made: list[socket.socket] = []

    class Recorded(socket.socket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    class Module:
        def __getattr__(self, name: str) -> Any:
            return Recorded if name == "socket" else getattr(socket, name)

    monkeypatch.setattr(connecting, "socket", Module())
    return made


def open_sockets(sockets: list[socket.socket]) -> int:
    return sum(sock.fileno() >= 0 for sock in sockets)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what the next name resolves to."""

    def resolve(*addresses: tuple[str, int]) -> None:
        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            return [
                (socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
                for address in addresses
            ]

        monkeypatch.setattr(connecting, "getaddrinfo", getaddrinfo)

    return resolve


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def refused() -> Iterator[tuple[str, int]]:
    """An address at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.2", 0))
        yield sock.getsockname()


@pytest.fixture
def hanging() -> Iterator[tuple[str, int]]:
    """An address that answers nothing: the backlog is full."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.3", 0))
        sock.listen(0)
        clients = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
            clients.append(client)
        yield sock.getsockname()
        for client in clients:
            client.close()


async def test_one_address(listener: socket.socket) -> None:
    with await connect_tcp("127.0.0.1", listener.getsockname()[1]) as sock:
        assert sock.getpeername() == listener.getsockname()
        assert sock.getblocking() is False


async def test_ipv6() -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as listener,
        await connect_tcp("::1", listener.getsockname()[1]) as sock,
    ):
        assert sock.getpeername() == listener.getsockname()


async def test_an_address_that_refuses_says_which(refused: tuple[str, int], sockets: list[socket.socket]) -> None:
    with pytest.raises(ConnectionRefusedError, match=f"Connection refused: 127.0.0.2:{refused[1]}"):
        await connect_tcp(*refused)
    assert open_sockets(sockets) == 0


async def test_an_ipv6_address_that_refuses_is_shown_in_brackets() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ConnectionRefusedError, match=rf"\[::1\]:{port}"):
            await connect_tcp("::1", port)


async def test_the_next_address_is_tried_at_once_when_one_refuses(
    listener: socket.socket, refused: tuple[str, int], resolve: Callable[..., None], sockets: list[socket.socket]
) -> None:
    resolve(refused, listener.getsockname())
    with anyio.fail_after(ATTEMPT_DELAY):
        sock = await connect_tcp("name", 80)
    with sock:
        assert sock.getpeername() == listener.getsockname()
        assert open_sockets(sockets) == 1


async def test_the_next_address_is_tried_after_a_moment_when_one_hangs(
    listener: socket.socket,
    hanging: tuple[str, int],
    resolve: Callable[..., None],
    sockets: list[socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.01)
    resolve(hanging, listener.getsockname())
    with await connect_tcp("name", 80) as sock:
        assert sock.getpeername() == listener.getsockname()
        assert len(sockets) == 2
        assert open_sockets(sockets) == 1


async def test_when_all_refuse_the_first_error_comes_with_notes_of_the_others(
    refused: tuple[str, int], resolve: Callable[..., None], sockets: list[socket.socket]
) -> None:
    resolve(refused, ("127.0.0.4", refused[1]))
    with pytest.raises(ConnectionRefusedError, match=r"127\.0\.0\.2") as info:
        await connect_tcp("name", 80)
    assert len(info.value.__notes__) == 1
    assert "also tried" in info.value.__notes__[0]
    assert "127.0.0.4" in info.value.__notes__[0]
    assert open_sockets(sockets) == 0


async def test_the_families_take_turns(
    resolve: Callable[..., None], refused: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def connect(family: socket.AddressFamily, address: Any) -> socket.socket:
        tried.append(address[0])
        raise OSError(errno.ENETUNREACH, "unreachable")

    monkeypatch.setattr(connecting, "_connect", connect)
    resolve(("::1", 1), ("::2", 1), ("::3", 1), ("127.0.0.1", 1))
    with pytest.raises(OSError, match="unreachable"):
        await connect_tcp("name", 80)
    assert tried == ["::1", "127.0.0.1", "::2", "::3"]


async def test_cancelled_nothing_stays_open(
    hanging: tuple[str, int],
    resolve: Callable[..., None],
    sockets: list[socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.001)
    resolve(hanging, hanging)
    async with anyio.create_task_group() as group:
        group.start_soon(connect_tcp, "name", 80)
        while len(sockets) < 2:
            await anyio.wait_all_tasks_blocked()
        assert open_sockets(sockets) == 2
        group.cancel_scope.cancel()
    assert open_sockets(sockets) == 0


def gate(monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """All attempts succeed in the tick in which the event is set."""
    event = anyio.Event()

    async def connect(family: socket.AddressFamily, address: Any) -> socket.socket:
        with anyio.CancelScope(shield=True):  # too late to be cancelled
            await event.wait()
        return connecting.socket.socket()

    monkeypatch.setattr(connecting, "_connect", connect)
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0)
    return event


async def test_of_two_that_are_there_in_the_same_tick_one_is_closed(
    resolve: Callable[..., None], sockets: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = gate(monkeypatch)
    resolve(("127.0.0.1", 1), ("127.0.0.2", 1))
    results: list[socket.socket] = []

    async def run() -> None:
        results.append(await connect_tcp("name", 80))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        event.set()
    assert len(sockets) == 2
    assert open_sockets(sockets) == 1
    results[0].close()


async def test_cancelled_in_the_tick_of_the_connection_it_is_returned_or_closed(
    resolve: Callable[..., None], sockets: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = gate(monkeypatch)
    resolve(("127.0.0.1", 1), ("127.0.0.2", 1))
    results: list[socket.socket] = []

    async def run() -> None:
        results.append(await connect_tcp("name", 80))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        event.set()
        group.cancel_scope.cancel()
    assert len(sockets) == 2
    assert open_sockets(sockets) == len(results)
    for sock in results:
        sock.close()


# Unix sockets


async def test_a_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with await connect_unix(tmp_path / "sock") as sock:
            assert sock.getpeername() == str(tmp_path / "sock")


async def test_a_path_where_nobody_listens_is_named(tmp_path: Path, sockets: list[socket.socket]) -> None:
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: {tmp_path}/sock"):
        await connect_unix(tmp_path / "sock")
    assert open_sockets(sockets) == 0


async def test_a_path_that_is_too_long_is_named(tmp_path: Path, sockets: list[socket.socket]) -> None:
    with pytest.raises(OSError, match=r"path too long: .*xxx"):
        await connect_unix(tmp_path / ("x" * 200))
    assert open_sockets(sockets) == 0


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """A Unix socket whose backlog is full."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "busy"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "busy"))
            yield tmp_path / "busy", listener


async def test_a_busy_unix_socket_is_waited_for(
    busy: tuple[Path, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, listener = busy
    accepted: list[socket.socket] = []

    async def pause(seconds: float) -> None:
        accepted.append(listener.accept()[0])

    monkeypatch.setattr(connecting, "sleep", pause)
    with await connect_unix(path) as sock:
        other = listener.accept()[0]
        other.sendall(b"hello")
        await anyio.wait_readable(sock)
        assert sock.recv(10) == b"hello"
        other.close()
    assert len(accepted) == 1
    accepted[0].close()


async def test_cancelled_while_a_unix_socket_is_busy_nothing_stays_open(
    busy: tuple[Path, socket.socket], sockets: list[socket.socket]
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(connect_unix, busy[0])
        while not sockets:
            await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert open_sockets(sockets) == 0
