"""What either side does to the other once the connection is open: floods, bombs, silence."""

import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_ws import ConnectionClosedError, Server, WebSocket, connect
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.protocol.frames import encode_header
from support.peers import UPGRADE, attack, both_attackers, growth, lost_by_uvloop, read_head, reset, switching, until
from support.tools import Call, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

KEY = b"\x37\xfa\x21\x3d"
MIB = 2**20


def frame(role: str, opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return encode_frame(opcode, payload, KEY if role == "client" else None, fin)


# Memory


@both_attackers
async def test_an_announced_payload_that_never_comes_takes_no_memory_for_it(role: str) -> None:
    async with AsyncExitStack() as stack:
        attacks = [await stack.enter_async_context(attack(role)) for _ in range(20)]
        with growth() as memory:
            for peer, _ in attacks:
                await peer.send(encode_header(BINARY, MIB, KEY if role == "client" else None))
            await settle()
            assert memory.now < 20 * 4096
            for peer, _ in attacks:  # what is read next goes to the message's own memory, of which there is 64 KiB
                await peer.send(b"x")
            await settle()
            assert memory.now < 20 * 70_000
        for _, ws in attacks:
            assert ws.close_info is None


@both_attackers
async def test_a_payload_of_2_to_the_63_is_refused_before_a_byte_of_it_is_read(role: str) -> None:
    async with attack(role) as (peer, ws), anyio.create_task_group() as group:
        with growth() as memory:
            await peer.send(encode_header(BINARY, 2**63 - 1, KEY if role == "client" else None))
            await settle()
            assert ws.close_info is None  # a receiver may want it as a stream
            received = Call(group, ws.receive)
            assert (await peer.receive_frame()).payload[:2] == (1009).to_bytes(2)
            assert memory.peak < 64 * 1024
        with pytest.raises(ConnectionClosedError, match="exceeds max_size=1,048,576"):
            await received.wait()
        assert ws.close_info is not None
        assert ws.close_info.code == 1009


@both_attackers
@pytest.mark.parametrize("size", [0, 1], ids=["empty", "one-byte"])
async def test_a_hundred_thousand_fragments_cost_their_bytes(role: str, size: int) -> None:
    fragments = frame(role, CONT, bytes(size), False) * 5000
    async with attack(role) as (peer, ws):
        await peer.send(frame(role, BINARY, b"", False))
        with growth() as memory:
            for _ in range(20):
                await peer.send(fragments)
            await settle()
            assert ws.stats.frames_received == 100_001
            assert memory.now < 2 * 100_000 * size + 32 * 1024
            assert memory.peak < MIB
        await peer.send(frame(role, CONT))
        assert await ws.receive() == bytes(100_000 * size)


@both_attackers
async def test_a_message_in_fragments_without_end_is_refused_at_max_size(role: str) -> None:
    fragments = frame(role, CONT, b"x" * 100, False) * 1000
    async with attack(role) as (peer, ws), anyio.create_task_group() as group:
        received = Call(group, ws.receive)
        await peer.send(frame(role, BINARY, b"", False))
        with growth() as memory:
            for _ in range(30):
                await peer.send(fragments)
            assert memory.peak < 3 * MIB
        with pytest.raises(ConnectionClosedError, match=r"message of at least .* bytes exceeds max_size=1,048,576"):
            await received.wait()
        assert (await peer.receive_frame()).payload[:2] == (1009).to_bytes(2)


@both_attackers
@pytest.mark.parametrize("how", ["received", "closing"])
async def test_what_comes_of_a_message_that_was_refused_for_its_size_is_not_kept(role: str, how: str) -> None:
    block = bytes(50_000)
    async with attack(role, max_size=1000) as (peer, ws), anyio.create_task_group() as group:
        call = Call(group, ws.aclose if how == "closing" else ws.receive)
        await settle()
        await peer.send(encode_header(BINARY, 100 * MIB, KEY if role == "client" else None))
        await settle()
        assert (await peer.receive_frame()).opcode == CLOSE
        with growth() as memory:
            for _ in range(4 * MIB // len(block)):
                await peer.send(block)
                await settle()
            assert not ws._core.gone
            assert memory.now < MIB
        peer.close()
        with suppress(ConnectionClosedError):
            await call.wait()


@both_attackers
@pytest.mark.parametrize("size", [0, 2, 125])
async def test_a_ping_flood_whose_pongs_nobody_reads_stays_within_a_mebibyte(role: str, size: int) -> None:
    ping = frame(role, PING, bytes(size))
    pings = ping * (60_000 // len(ping))
    async with attack(role) as (peer, ws):
        peer.pause()
        with growth() as memory:
            for _ in range(8):
                await peer.send(pings)
            await settle()
            assert memory.now < MIB // 2
        assert ws.stats.bytes_received == 8 * len(pings)
        assert ws.stats.pongs_sent < ws.stats.pings_received * 2 // 3
        assert ws.close_info is None


@both_attackers
@pytest.mark.parametrize("size", [0, 2, 125])
async def test_a_chunk_full_of_pings_stays_within_a_mebibyte_while_it_is_answered(role: str, size: int) -> None:
    ping = frame(role, PING, bytes(size))
    async with attack(role) as (peer, ws):
        with growth() as memory:
            await peer.send(ping * (60_000 // len(ping)))
            await settle()
            assert memory.peak < MIB
        assert ws.close_info is None


@both_attackers
async def test_messages_that_nobody_receives_stop_the_sender(role: str) -> None:
    message = frame(role, BINARY, bytes(1000))
    async with attack(role) as (peer, ws), anyio.create_task_group() as group:

        async def flood() -> None:
            for _ in range(10_000):
                await peer.send(message)

        with growth() as memory:
            group.start_soon(flood)
            for _ in range(50):
                await settle()
            assert memory.peak < MIB
        assert ws.stats.messages_received < 200
        group.cancel_scope.cancel()


# Time


@both_attackers
@pytest.mark.virtual_time
async def test_a_peer_that_opens_and_says_nothing_is_dropped_after_interval_and_timeout(role: str) -> None:
    async with attack(role) as (_peer, ws):
        start = anyio.current_time()
        with pytest.raises(ConnectionClosedError, match="1006"):
            await ws.receive()
        assert anyio.current_time() - start == pytest.approx(40, abs=0.1)


@both_attackers
@pytest.mark.virtual_time
async def test_a_peer_that_reads_nothing_and_says_nothing_is_dropped_while_we_send(role: str) -> None:
    async with attack(role) as (peer, ws):
        peer.pause()
        start = anyio.current_time()
        with growth() as memory:
            with pytest.raises(ConnectionClosedError, match="1006"):
                while True:
                    await ws.send(bytes(10_000))
            assert memory.peak < MIB // 2
        assert anyio.current_time() - start == pytest.approx(40, abs=0.1)


@both_attackers
@pytest.mark.virtual_time
async def test_a_peer_that_reads_nothing_and_talks_blocks_the_sender_and_takes_no_more(role: str) -> None:
    async with attack(role) as (peer, ws):
        peer.pause()
        sent = 0
        with growth() as memory:
            with anyio.move_on_after(3600):
                async with anyio.create_task_group() as group:

                    async def talk() -> None:
                        while True:
                            await anyio.sleep(10)
                            await peer.send(frame(role, PONG))

                    group.start_soon(talk)
                    while True:
                        await ws.send(bytes(10_000))
                        sent += 10_000
            assert memory.now < MIB // 2
        assert 0 < sent < 200_000
        assert ws.close_info is None  # any byte is a sign of life: a bound on the time is the application's to set


@both_attackers
@pytest.mark.virtual_time
async def test_a_message_byte_by_byte_is_ended_by_idle_timeout(role: str) -> None:
    async with attack(role, idle_timeout=60) as (peer, ws):
        start = anyio.current_time()
        await peer.send(encode_header(TEXT, 1000, bytes(4) if role == "client" else None))
        while ws.close_info is None:
            await anyio.sleep(1)
            await peer.send(b"x")
        assert anyio.current_time() - start == pytest.approx(60, abs=2)
        assert ws.close_info.code == 1001


# With a kernel


@asynccontextmanager
async def attack_by_tcp(role: str, **options: Any) -> AsyncGenerator[tuple[socket.socket, WebSocket]]:
    """The same as `attack` over TCP: the attacker's socket, which does not block, and the other side's WebSocket."""
    if role == "client":
        victims: list[WebSocket] = []

        async def handler(ws: WebSocket) -> None:
            victims.append(ws)
            await anyio.sleep_forever()

        async with Server(handler, "127.0.0.1", 0, **options) as server:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel is not to read for it
                sock.connect(("127.0.0.1", server.port))
                sock.setblocking(False)
                sock.send(UPGRADE)
                assert (await read_head(sock)).startswith(b"HTTP/1.1 101 ")
                await until(lambda: victims)
                yield sock, victims[0]
                reset(sock)
    else:
        accepted: list[socket.socket] = []

        async def answer() -> None:
            await anyio.wait_readable(listener)
            sock = listener.accept()[0]
            sock.setblocking(False)
            accepted.append(sock)
            sock.send(switching(await read_head(sock)))

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            async with anyio.create_task_group() as group:
                group.start_soon(answer)
                async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/", **options) as ws:
                    yield accepted[0], ws
                    reset(accepted[0])


@both_attackers
@pytest.mark.real_time
async def test_a_ping_flood_over_tcp_stays_within_a_mebibyte(role: str) -> None:
    ping = frame(role, PING, bytes(125))
    pings = ping * (60_000 // len(ping))
    async with attack_by_tcp(role) as (sock, ws):
        with growth() as memory:
            for _ in range(10):
                rest = memoryview(pings)
                while rest:
                    await anyio.wait_writable(sock)
                    rest = rest[sock.send(rest) :]
            with anyio.fail_after(10):
                while ws.stats.bytes_received < 10 * len(pings):
                    await checkpoint()
            assert memory.now < MIB // 2
        assert ws.stats.pings_received == 10 * len(pings) // len(ping)
        assert ws.close_info is None


@both_attackers
@pytest.mark.real_time
@pytest.mark.parametrize(
    ("last_words", "code", "initiator"),
    [
        ("nothing", 1006, "peer"),
        ("half a message", 1006, "peer"),
        ("Close", 1000, "peer"),
    ],
)
async def test_a_reset_ends_an_open_connection_at_once(
    role: str, last_words: str, code: int, initiator: str, request: pytest.FixtureRequest
) -> None:
    if last_words == "half a message":
        lost_by_uvloop(request)
    said = {
        "nothing": b"",
        "half a message": frame(role, BINARY, b"x", False) + frame(role, CONT, bytes(1000))[:500],
        "Close": frame(role, CLOSE, b"\x03\xe8"),
    }[last_words]
    async with attack_by_tcp(role, ping_interval=None) as (sock, ws):
        sock.send(said)
        reset(sock)
        with anyio.fail_after(0.9):
            info = await ws.wait_closed()
        assert (info.code, info.initiator) == (code, initiator)


@both_attackers
@pytest.mark.real_time
async def test_a_reset_ends_a_send_that_waits_at_once(role: str) -> None:
    async with attack_by_tcp(role, ping_interval=None) as (sock, ws), anyio.create_task_group() as group:
        sending = anyio.Event()

        async def send() -> None:
            with pytest.raises(ConnectionClosedError, match="1006"):
                while True:
                    await ws.send(bytes(MIB))
            sending.set()

        group.start_soon(send)
        await until(lambda: ws.stats.bytes_sent > 0 and not ws._core.outbox.free)
        reset(sock)
        with anyio.fail_after(0.9):
            await sending.wait()
