"""Failures that were reproduced with other libraries, as tests that pass here.

Those that are one rule of ours are tested beside that rule, and keepalive's are in `test_keepalive_scenarios.py`; here
is what is left: whole situations.
"""

import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Literal

import anyio
import pytest
from anyio.streams.stapled import StapledObjectStream

from anyio_ws import WebSocket, accept, connect
from anyio_ws.protocol import Opcode
from anyio_ws.testing import MemoryServer, RawFrame, RawPeer, connected_pair, raw_peer
from support.peers import evil_server, head, switching
from support.tools import Call, both_roles, fill, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

Role = Literal["client", "server"]


# A frame is torn by a cancellation

HUGE = 20 * 2**20


@both_roles
async def test_a_send_of_20_mib_to_a_stalled_reader_that_is_cancelled_tears_no_frame(role: Role) -> None:
    async with raw_peer(role, ping_interval=None) as (peer, ws), anyio.create_task_group() as group:
        peer.pause()
        cancelled = Call(group, ws.send, bytes(HUGE))
        await settle()
        cancelled.cancel()
        await settle()
        assert cancelled.cancelled
        following = [Call(group, ws.send, b"%d" % i) for i in range(3)]
        await settle()
        following[1].cancel()  # it waits for its turn, so it sends nothing
        await settle()
        peer.resume()
        frames = [await peer.receive_frame()]
        while not frames[-1].fin:
            frames.append(await peer.receive_frame())
        assert [frame.opcode for frame in frames] == [BINARY, *[CONT] * (len(frames) - 1)]
        assert b"".join(frame.payload for frame in frames) == bytes(HUGE)
        received = {(await peer.receive_frame()).payload for _ in range(2)}
        assert received == {b"0", b"2"}
        await ws.send("the connection is as good as ever")
        assert (await peer.receive_frame()).opcode == TEXT
        assert ws.stats.messages_sent == 4


# A ping is not answered because the application does not keep up


@both_roles
async def test_a_ping_is_answered_while_the_inbox_has_any_room(role: Role) -> None:
    # Each message counts 64 bytes more than its length.
    async with raw_peer(role, receive_buffer_size=1000) as (peer, ws):
        for _ in range(9):
            await peer.send_frame(BINARY, bytes(36))
        await peer.send_frame(BINARY, bytes(35))
        await peer.send_frame(PING, b"one byte is free")
        assert await peer.receive_frame() == RawFrame(PONG, b"one byte is free")
        assert len(await ws.receive_many()) == 10


@both_roles
async def test_a_ping_behind_a_full_inbox_is_answered_when_half_of_it_is_free(role: Role) -> None:
    # What is not read cannot be answered, and to read on would be to buffer without a bound.
    async with raw_peer(role, receive_buffer_size=1000) as (peer, ws):
        for _ in range(10):
            await peer.send_frame(BINARY, bytes(36))
        await peer.send_frame(PING, b"behind")
        for _ in range(4):
            await ws.receive()
        await settle()
        assert ws.stats.pongs_sent == 0
        await ws.receive()
        assert await peer.receive_frame() == RawFrame(PONG, b"behind")


@both_roles
async def test_a_pong_waits_for_no_sender_whose_turn_has_not_come(role: Role) -> None:
    async with raw_peer(role, ping_interval=None) as (peer, ws), anyio.create_task_group() as group:
        _, sent = await fill(peer, ws, group)
        for i in range(5):
            Call(group, ws.send, b"%d" % i)
        await settle()
        await peer.send_frame(PING, b"now")
        await settle()
        peer.resume()
        frames = [await peer.receive_frame() for _ in range(len(sent) + 6)]
        opcodes = [frame.opcode for frame in frames]
        assert opcodes.index(PONG) <= len(sent)
        assert frames[opcodes.index(PONG)].payload == b"now"


@both_roles
@pytest.mark.virtual_time
async def test_an_upload_without_end_over_a_slow_link_does_not_keep_a_pong_back(role: Role) -> None:
    # 64 KiB go through in half a second; 100 kB are always waiting.
    async with raw_peer(role, ping_interval=None) as (peer, ws), anyio.create_task_group() as group:

        async def upload() -> None:
            while True:
                await ws.send(bytes(100_000))

        peer.pause()
        group.start_soon(upload)
        await settle()
        await peer.send_frame(PING, b"are you there?")
        for _ in range(20):
            await anyio.sleep(0.5)
            peer.resume()
            peer._transport._deliver()
            peer.pause()
        await settle()
        assert ws.stats.pongs_sent == 1
        peer.resume()
        frames = [await peer.receive_frame() for _ in range(6)]
        assert RawFrame(PONG, b"are you there?") in frames
        group.cancel_scope.cancel()


# A failing handler takes others with it


async def test_handlers_that_fail_at_once_reach_neither_each_other_nor_the_listener(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors: dict[str, Callable[[], Exception]] = {
        "/0": lambda: ValueError("one"),
        "/1": lambda: ExceptionGroup("several", [KeyError("a"), OSError("b")]),
        "/2": lambda: TimeoutError(),
        "/3": lambda: StopAsyncIteration(),
        "/4": lambda: anyio.BrokenResourceError(),
    }
    fail = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        if error := errors.get(ws.request.path):
            await fail.wait()
            raise error()
        async for message in ws:
            await ws.send(message)

    async def client(target: str) -> None:
        async with server.connect(target) as ws:
            codes.append((await ws.wait_closed()).code)

    codes: list[int] = []
    async with MemoryServer(handler) as server, server.connect("/echo") as other:
        async with anyio.create_task_group() as group:
            for target in [*errors] * 4:
                group.start_soon(client, target)
            while len(server.connections) < 21:
                await settle()
            fail.set()
        assert codes == [1011] * 20
        await other.send("still here")
        assert await other.receive() == "still here"
        async with server.connect("/echo") as newcomer:
            await newcomer.send("and so is the listener")
            assert await newcomer.receive() == "and so is the listener"
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 20


async def test_what_a_task_group_of_a_handler_raises_is_logged_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("mine")

    async def fail(ws: WebSocket) -> None:
        raise error

    async def handler(ws: WebSocket) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(fail, ws)
            await ws.receive()

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert (await ws.wait_closed()).code == 1011
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    group = record.exc_info[1]
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (error,)


async def test_what_a_handler_raises_through_run_is_logged_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("mine")

    async def fail(ws: WebSocket) -> None:
        raise error

    async def handler(ws: WebSocket) -> None:
        await ws.run(fail, WebSocket.receive)

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert (await ws.wait_closed()).code == 1011
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


# A user's error comes out wrapped, or in the company of others


def plain() -> Exception:
    return ValueError("mine")


def with_a_context() -> Exception:
    try:
        raise KeyError("what the user was doing")
    except KeyError as exc:
        error = ValueError("mine")
        error.__context__ = exc
        return error


def with_a_cause() -> Exception:
    error = with_a_context()
    error.__cause__ = OSError("what the user blames")
    return error


def a_group() -> Exception:
    return ExceptionGroup("mine", [plain(), KeyError("too")])


@contextmanager
def bare(error: Exception) -> Generator[None]:
    """This very error comes out of the block, and nothing was added to it."""
    before = (error.__cause__, error.__context__, error.__suppress_context__, error.args)
    with pytest.raises(type(error)) as caught:
        yield
    assert caught.value is error
    assert (error.__cause__, error.__context__, error.__suppress_context__, error.args) == before
    assert not hasattr(error, "__notes__")


async def raise_it(ws: WebSocket, error: Exception) -> None:
    raise error


async def through_run(ws: WebSocket, error: Exception) -> None:
    async def fail(ws: WebSocket) -> None:
        await settle()
        raise error

    await ws.run(WebSocket.receive, fail, WebSocket.wait_closed)


async def through_nested_runs(ws: WebSocket, error: Exception) -> None:
    async def inner(ws: WebSocket) -> None:
        await through_run(ws, error)

    await ws.run(inner)


every_error = pytest.mark.parametrize("make", [plain, with_a_context, with_a_cause, a_group])
every_way = pytest.mark.parametrize("way", [raise_it, through_run, through_nested_runs])

Way = Callable[[WebSocket, Exception], Awaitable[None]]


@every_error
@every_way
async def test_an_error_in_the_block_of_a_client_comes_out_bare(way: Way, make: Callable[[], Exception]) -> None:
    error = make()
    async with MemoryServer(WebSocket.wait_closed) as server:
        with bare(error):
            async with server.connect() as ws:
                await way(ws, error)


@every_error
@every_way
async def test_an_error_in_the_block_of_accept_comes_out_bare(way: Way, make: Callable[[], Exception]) -> None:
    error = make()

    async def client() -> None:
        async with connect("ws://test/", stream=StapledObjectStream(*back)) as ws:
            await ws.wait_closed()

    there, back_receive = anyio.create_memory_object_stream[bytes](100)
    back_send, here = anyio.create_memory_object_stream[bytes](100)
    back = (back_send, back_receive)
    async with anyio.create_task_group() as group:
        group.start_soon(client)
        with bare(error):
            async with accept(StapledObjectStream(there, here)) as ws:
                await way(ws, error)


@every_error
@every_way
async def test_an_error_in_the_block_of_a_pair_comes_out_bare(way: Way, make: Callable[[], Exception]) -> None:
    error = make()
    with bare(error):
        async with connected_pair() as (client, _server):
            await way(client, error)


@every_error
async def test_an_error_in_blocks_within_blocks_comes_out_bare_of_all(make: Callable[[], Exception]) -> None:
    error = make()
    with bare(error):
        async with (
            MemoryServer(WebSocket.wait_closed) as server,
            server.connect() as first,
            server.connect(),
            connected_pair(),
        ):
            await through_run(first, error)


async def stuck(peer: RawPeer, ws: WebSocket) -> None:
    peer.pause()


async def dead(peer: RawPeer, ws: WebSocket) -> None:
    peer.reset()
    await ws.wait_closed()


async def dying(peer: RawPeer, ws: WebSocket) -> None:
    peer.reset()  # which nobody has noticed yet


async def closed(peer: RawPeer, ws: WebSocket) -> None:
    await peer.send_close(4000)
    await ws.wait_closed()


async def breaking_the_protocol(peer: RawPeer, ws: WebSocket) -> None:
    await peer.send(b"\xff\xff")
    await ws.wait_closed()


@pytest.mark.virtual_time
@pytest.mark.parametrize("peers_state", [stuck, dead, dying, closed, breaking_the_protocol])
async def test_an_error_comes_out_of_a_clients_block_bare_and_soon_whatever_became_of_the_server(
    peers_state: Callable[[RawPeer, WebSocket], Awaitable[None]],
) -> None:
    error = with_a_cause()
    async with evil_server() as (peer, dialled), anyio.create_task_group() as group:

        async def answer() -> None:
            await peer.send(switching(await head(peer)))

        group.start_soon(answer)
        start = anyio.current_time()
        with bare(error):
            async with dialled() as ws:
                await peers_state(peer, ws)
                raise error
        assert anyio.current_time() - start <= 1.01
