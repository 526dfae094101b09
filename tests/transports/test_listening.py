"""Listening sockets, and accepting from them."""

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_ws.transports import listening
from anyio_ws.transports.listening import (
    ACCEPTS_PER_WAKEUP,
    BIND_ATTEMPTS,
    accept_from,
    close_listener,
    listen_tcp,
    listen_unix,
    remove_socket_file,
)

pytestmark = pytest.mark.real_time

logger = logging.getLogger("test")


async def listen(hosts: Any, port: int = 0, *, reuse_port: bool = False) -> list[socket.socket]:
    return await listen_tcp(hosts, port, backlog=10, reuse_port=reuse_port)


def close_all(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def resolver(*addresses: str) -> Callable[..., Any]:
    async def getaddrinfo(host: str | None, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return getaddrinfo


# TCP


@pytest.mark.parametrize("hosts", [None, ""])
async def test_all_interfaces_of_both_families_with_one_port(hosts: str | None) -> None:
    listeners = await listen(hosts)
    names = {listener.family: listener.getsockname()[:2] for listener in listeners}
    assert names[socket.AF_INET][0] == "0.0.0.0"
    assert names[socket.AF_INET6][0] == "::"
    assert names[socket.AF_INET][1] == names[socket.AF_INET6][1] != 0
    close_all(listeners)


async def test_several_hosts_have_one_port_and_duplicates_are_dropped() -> None:
    listeners = await listen(["127.0.0.1", "127.0.0.2", "127.0.0.1"])
    assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1", "127.0.0.2"]
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    assert not any(listener.getblocking() for listener in listeners)
    close_all(listeners)


async def test_a_port_that_is_taken_says_which_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.2 port {port}: ") as info:
            await listen(["127.0.0.1", "127.0.0.2"], port)
        assert info.value.errno == errno.EADDRINUSE
        with socket.create_server(("127.0.0.1", port)):
            pass  # that one was closed


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.8 and 127.0.0.9 are not ours."""
    real = listening._listen

    def listen_(family: int, address: Any, backlog: int, reuse_port: bool) -> socket.socket:
        if address[0] in ("127.0.0.8", "127.0.0.9"):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(family, address, backlog, reuse_port)

    monkeypatch.setattr(listening, "_listen", listen_)


@pytest.mark.usefixtures("elsewhere")
async def test_an_address_that_is_not_ours_is_left_out_if_there_are_others() -> None:
    listeners = await listen(["127.0.0.8", "127.0.0.1"])
    assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1"]
    close_all(listeners)


@pytest.mark.usefixtures("elsewhere")
async def test_the_only_address_must_be_ours() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.8 port 0: Cannot assign") as info:
        await listen("127.0.0.8")
    assert info.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.usefixtures("elsewhere")
async def test_one_of_the_addresses_must_be_ours() -> None:
    with pytest.raises(OSError, match="none of the addresses") as info:
        await listen(["127.0.0.8", "127.0.0.9"])
    assert info.value.errno == errno.EADDRNOTAVAIL


async def test_a_chosen_port_that_is_taken_elsewhere_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    real = listening._listen

    def fail_twice(family: int, address: Any, backlog: int, reuse_port: bool) -> socket.socket:
        numbers.append(address[1])
        if address[0] == "127.0.0.2" and len(numbers) <= 4:
            raise OSError(errno.EADDRINUSE, "taken")
        return real(family, address, backlog, reuse_port)

    monkeypatch.setattr(listening, "_listen", fail_twice)
    listeners = await listen(["127.0.0.1", "127.0.0.2"])
    assert numbers[::2] == [0, 0, 0]
    assert listeners[0].getsockname()[1] == listeners[1].getsockname()[1] == numbers[5]
    close_all(listeners)


async def test_it_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []
    real = listening._listen

    def fail(family: int, address: Any, backlog: int, reuse_port: bool) -> socket.socket:
        if address[0] == "127.0.0.2":
            attempts.append(address[1])
            raise OSError(errno.EADDRINUSE, "taken")
        return real(family, address, backlog, reuse_port)

    monkeypatch.setattr(listening, "_listen", fail)
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.2"):
        await listen(["127.0.0.1", "127.0.0.2"])
    assert len(attempts) == BIND_ATTEMPTS


async def test_a_name_may_have_addresses_of_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "getaddrinfo", resolver("127.0.0.1", "::1"))
    listeners = await listen("localhost")
    assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1", "::1"]
    close_all(listeners)


async def test_reuse_port_lets_several_listen() -> None:
    one = await listen("127.0.0.1", reuse_port=True)
    other = await listen("127.0.0.1", one[0].getsockname()[1], reuse_port=True)
    close_all([*one, *other])


async def test_a_restarted_server_can_bind_at_once() -> None:
    listeners = await listen("127.0.0.1")
    name = listeners[0].getsockname()
    client = socket.create_connection(name)
    server = listeners[0].accept()[0]
    server.close()  # first, so that the server's side is in TIME_WAIT
    client.close()
    close_all(listeners)
    close_all(await listen(*name))


async def test_where_address_reuse_means_theft_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Windows:
        name = "nt"

    monkeypatch.setattr(listening, "os", Windows)
    (listener,) = await listen("127.0.0.1")
    assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    listener.close()


# Unix sockets


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listen_unix(path, backlog=1).close()
    assert path.exists()
    with listen_unix(path, backlog=1), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("clients", [0, 5])
def test_a_socket_on_which_somebody_listens_is_not(tmp_path: Path, clients: int) -> None:
    path = tmp_path / "sock"
    with listen_unix(path, backlog=0):
        busy = [socket.socket(socket.AF_UNIX) for _ in range(clients)]
        for client in busy:
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(OSError, match=f"cannot listen on {path}: ") as info:
            listen_unix(path, backlog=1)
        assert info.value.errno == errno.EADDRINUSE
        for client in busy:
            client.close()


def test_a_file_that_is_no_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match="cannot listen on"):
        listen_unix(path, backlog=1)
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot listen on .*/nowhere/sock"):
        listen_unix(tmp_path / "nowhere" / "sock", backlog=1)


def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="path too long"):
        listen_unix(tmp_path / ("x" * 200), backlog=1)


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_an_abstract_name_has_no_file() -> None:
    name = f"\0anyio_ws-{os.getpid()}"
    with listen_unix(name, backlog=1):
        with pytest.raises(OSError, match="cannot listen on"):
            listen_unix(name, backlog=1)
        remove_socket_file(name)


def test_the_file_of_a_closed_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listen_unix(path, backlog=1).close()
    remove_socket_file(path)
    assert not path.exists()
    remove_socket_file(path)


def test_a_file_that_is_somebody_elses_by_then_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    old = listen_unix(path, backlog=1)
    path.unlink()
    with listen_unix(path, backlog=1):
        old.close()
        remove_socket_file(path)
        assert path.exists()


# Accepting


class Listener(socket.socket):
    """A listening socket whose `accept` fails as told."""

    failures: list[int]

    def accept(self) -> Any:
        if self.failures:
            number = self.failures.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        listener.setblocking(False)
        listener.failures = []
        yield listener


class Accepted:
    """What was accepted; `enough` is set at the count that is waited for."""

    def __init__(self, count: int) -> None:
        self.sockets: list[socket.socket] = []
        self.addresses: list[Any] = []
        self.count = count
        self.enough = anyio.Event()

    def start(self, sock: socket.socket, address: Any) -> None:
        self.sockets.append(sock)
        self.addresses.append(address)
        if len(self.sockets) == self.count:
            self.enough.set()

    def close(self) -> None:
        close_all(self.sockets)


async def accept_some(listener: socket.socket, accepted: Accepted) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(accept_from, listener, accepted.start, logger)
        await accepted.enough.wait()
        group.cancel_scope.cancel()
    accepted.close()


async def test_what_waits_is_accepted_with_its_address(listener: Listener) -> None:
    with socket.create_connection(listener.getsockname()) as client:
        accepted = Accepted(1)
        await accept_some(listener, accepted)
        assert accepted.addresses == [client.getsockname()]


async def test_after_so_many_the_others_have_their_turn(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [socket.create_connection(listener.getsockname()) for _ in range(ACCEPTS_PER_WAKEUP + 10)]
    accepted = Accepted(len(clients))
    waits: list[int] = []

    async def wait_readable(sock: socket.socket) -> None:
        waits.append(len(accepted.sockets))
        await anyio.wait_readable(sock)

    monkeypatch.setattr(listening, "wait_readable", wait_readable)
    await accept_some(listener, accepted)
    assert waits[:2] == [0, ACCEPTS_PER_WAKEUP]
    close_all(clients)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_without_descriptors_it_warns_once_and_goes_on(
    listener: Listener, number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(listening, "sleep", sleep)
    listener.failures = [number] * 5
    with socket.create_connection(listener.getsockname()):
        await accept_some(listener, Accepted(1))
    assert pauses == [0.1] * 5
    assert len(caplog.messages) == 1
    assert "cannot accept connections" in caplog.messages[0]


async def test_every_shortage_is_warned_of(
    listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "sleep", lambda _: anyio.lowlevel.checkpoint())
    listener.failures = [errno.EMFILE]
    accepted = Accepted(2)

    def start(sock: socket.socket, address: Any) -> None:
        listener.failures = [errno.EMFILE] if not accepted.sockets else []
        accepted.start(sock, address)

    with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
        async with anyio.create_task_group() as group:
            group.start_soon(accept_from, listener, start, logger)
            await accepted.enough.wait()
            group.cancel_scope.cancel()
    accepted.close()
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO])
async def test_a_connection_that_died_in_the_queue_does_not_matter(
    listener: Listener, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    listener.failures = [number, errno.EINTR]
    with socket.create_connection(listener.getsockname()):
        await accept_some(listener, Accepted(1))
    assert caplog.messages == []


async def test_it_ends_when_the_listener_is_closed(listener: Listener) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(accept_from, listener, pytest.fail, logger)
        await anyio.wait_all_tasks_blocked()
        close_listener(listener)
    assert listener.fileno() == -1
    await accept_from(listener, pytest.fail, logger)


async def test_a_socket_that_gets_the_number_of_a_closed_listener_is_not_disturbed() -> None:
    (listener,) = await listen("127.0.0.1")
    number = listener.fileno()
    async with anyio.create_task_group() as group:
        group.start_soon(accept_from, listener, pytest.fail, logger)
        await anyio.wait_all_tasks_blocked()
        close_listener(listener)
        near, far = socket.socketpair()
        assert number in (near.fileno(), far.fileno())
        mine, other = (near, far) if near.fileno() == number else (far, near)
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(anyio.wait_readable, mine)
            await anyio.wait_all_tasks_blocked()
            other.send(b"hello")
    near.close()
    far.close()
