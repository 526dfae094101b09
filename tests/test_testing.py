"""The tools that users test with: pairs, servers and raw peers in memory, and the virtual clock."""

import asyncio
import socket
import time

import anyio
import anyio.to_thread
import pytest

from anyio_ws import CloseInfo, ConnectFailed, HandshakeRejected, InvalidHandshake, Response
from anyio_ws.loops import open_loop
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.tasks import Tasks
from anyio_ws.testing import MemoryServer, RawFrame, connected_pair, raw_peer, virtual_clock
from anyio_ws.transports.memory import CAPACITY, memory_pipe
from support.tools import Call, both_roles, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


# The virtual clock


@pytest.mark.virtual_time
async def test_an_hour_takes_a_moment():
    real, virtual = time.monotonic(), anyio.current_time()
    await anyio.sleep(3600)
    assert anyio.current_time() - virtual == pytest.approx(3600)
    assert time.monotonic() - real < 10


@pytest.mark.virtual_time
async def test_what_is_ready_comes_before_the_clock_jumps():
    one, two = socket.socketpair()
    with one, two:
        async with anyio.create_task_group() as tg:
            start = anyio.current_time()
            sleeping = Call(tg, anyio.sleep, 1000)
            one.send(b"x")
            await anyio.wait_readable(two)
            assert anyio.current_time() == start
            sleeping.cancel()


@pytest.mark.virtual_time
async def test_threads_work_under_the_virtual_clock():
    assert await anyio.to_thread.run_sync(int) == 0


def give_the_event_loop_turns() -> None:
    for _ in range(10_000):
        time.sleep(0)


@pytest.mark.loops("asyncio")
async def test_the_virtual_clock_does_not_jump_while_a_thread_of_the_executor_works():
    start = anyio.current_time()
    async with anyio.create_task_group() as tg:
        sleeping = Call(tg, anyio.sleep, 3600)
        await asyncio.get_running_loop().run_in_executor(None, give_the_event_loop_turns)
        assert anyio.current_time() - start < 60
        sleeping.cancel()


def test_an_event_loop_of_the_virtual_clock_waits_for_its_threads_when_it_ends():
    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, give_the_event_loop_turns)

    name, options = virtual_clock("asyncio")
    anyio.run(main, backend=name, backend_options=options)


def test_uvloop_has_no_virtual_clock():
    with pytest.raises(ValueError, match="for 'asyncio' and 'trio', not for 'uvloop'"):
        virtual_clock("uvloop")


# connected_pair


async def test_a_pair_whose_handshake_fails_raises_and_leaves_nothing():
    with pytest.raises(InvalidHandshake, match="Origin"):
        async with connected_pair(headers={"Origin": "http://elsewhere"}):
            pytest.fail("connected")


async def test_an_impossible_option_is_refused_at_once():
    with pytest.raises(ValueError, match="ping_interval"):
        connected_pair(ping_interval=-1)
    with pytest.raises(ValueError, match="max_size"):
        raw_peer(max_size=0)


async def test_leaving_a_pair_ends_both():
    async with connected_pair() as (client, server):
        pass
    assert client.close_info is not None
    assert server.close_info is not None


# MemoryServer


@pytest.mark.virtual_time
async def test_cancelled_while_leaving_a_pair_both_are_dropped():
    with anyio.move_on_after(3) as scope:
        async with connected_pair() as (client, server):
            server._core.transport.pause()  # it does not see the Close
    assert scope.cancelled_caught
    assert (client.close_info.code, client.close_info.clean) == (1000, False)
    assert server.close_info is not None


async def test_a_memory_server_has_everything_of_a_server():
    def process_request(request):
        return None if request.query.get("token") == "right" else Response(401, body="no\n")

    async def handler(ws):
        await ws.send(ws.request.path)

    async with MemoryServer(handler, process_request=process_request) as server:
        async with server.connect("/path?token=right") as ws:
            assert await ws.receive() == "/path"
        with pytest.raises(HandshakeRejected, match="401"):
            async with server.connect("/path?token=wrong"):
                pytest.fail("connected")
        await settle()
        assert (server.stats.accepted, server.stats.rejected) == (1, 1)


async def test_a_memory_server_that_was_left_refuses_connections():
    async def handler(ws):
        pass

    async with MemoryServer(handler) as server:
        pass
    with pytest.raises(ConnectFailed):
        async with server.connect():
            pytest.fail("connected")


async def test_messages_that_come_with_the_answer_to_the_handshake_are_received_however_small_the_inbox():
    async def handler(ws):
        await ws.send_many([f"{i:100}" for i in range(10)])
        await ws.wait_closed()

    async with MemoryServer(handler) as server, server.connect(receive_buffer_size=100) as ws:
        assert [int(await ws.receive_text()) for _ in range(10)] == list(range(10))


async def test_a_close_that_comes_with_the_answer_to_the_handshake():
    async def handler(ws):
        await ws.aclose(4000)

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert await ws.wait_closed() == CloseInfo(4000, "", "peer", clean=True)


# raw_peer


@both_roles
async def test_a_raw_peer_speaks_and_reads_frames_of_any_size(role):
    async with raw_peer(role, max_size=None) as (peer, ws), anyio.create_task_group() as tg:
        for size in (0, 125, 126, 65535, 65536, 200000):
            sending = Call(tg, ws.send, bytes(size))
            assert await peer.receive_frame() == RawFrame(BINARY, bytes(size))
            await sending.wait()
            sending = Call(tg, peer.send_frame, BINARY, bytes(size))
            assert await ws.receive() == bytes(size)
            await sending.wait()


async def test_a_raw_peer_that_reads_beyond_the_end_gets_an_end_of_stream():
    async with raw_peer() as (peer, ws):
        ws.abort()
        with pytest.raises(anyio.EndOfStream):
            await peer.receive_frame()
        await peer.send(b"into the void")


async def test_a_raw_peer_that_is_entered_twice_says_so():
    pair = raw_peer()
    async with pair:
        pass
    with pytest.raises(RuntimeError, match="is for one `async with` only"):
        async with pair:
            pytest.fail("entered")


# The pipe


class Receiver:
    def __init__(self):
        self.buffer = memoryview(bytearray(100000))
        self.events = []

    def get_buffer(self):
        return self.buffer

    def received(self, count):
        self.events.append(bytes(self.buffer[:count]))

    def eof(self):
        self.events.append("eof")

    def writable(self):
        self.events.append("writable")

    def fail(self, exc):
        self.events.append(type(exc).__name__)


class Pipe:
    async def __aenter__(self):
        self.tasks = await Tasks().__aenter__()
        self.loop = open_loop(self.tasks.start_service)
        self.ends = memory_pipe(self.loop, self.loop)
        for end in self.ends:
            end.receiver = Receiver()
            end.start()
        return self.ends

    async def __aexit__(self, *exc_info):
        self.loop.close()
        return await self.tasks.__aexit__(*exc_info)


async def test_what_is_written_arrives_in_a_later_tick():
    async with Pipe() as (one, two):
        assert one.write_vector((b"12", b"345")) == 5
        assert two.receiver.events == []
        await settle()
        assert two.receiver.events == [b"12", b"345"]


async def test_a_full_pipe_takes_no_more_until_it_was_read():
    async with Pipe() as (one, two):
        two.pause()
        assert one.write_vector((bytes(CAPACITY), b"more")) == CAPACITY
        assert one.write(b"more") == 0
        await settle()
        assert one.receiver.events == []
        two.resume()
        await settle()
        assert one.receiver.events == ["writable"]


async def test_a_shut_down_pipe_still_carries_the_other_direction():
    async with Pipe() as (one, two):
        one.write(b"last")
        one.shutdown()
        await settle()
        assert two.receiver.events == [b"last", "eof"]
        two.write(b"reply")
        await settle()
        assert one.receiver.events == [b"reply"]


async def test_closing_is_idempotent_and_closing_with_unread_bytes_is_a_reset():
    async with Pipe() as (one, two):
        one.pause()
        two.write(b"unread")
        await settle()
        one.close()
        one.close()
        one.abort()
        await settle()
        assert two.receiver.events == ["ConnectionResetError"]
        assert two.write(b"x") == 0
        one.poll()
        assert one.receiver.events == []


async def test_a_poll_delivers_what_is_there():
    async with Pipe() as (one, two):
        await settle()
        one.write(b"x")
        two.poll()
        assert two.receiver.events == [b"x"]
        assert one.attributes == {}


async def test_a_raw_peer_may_send_and_receive_at_the_same_time() -> None:
    async with raw_peer() as (peer, ws), anyio.create_task_group() as group:
        received = Call(group, peer.receive_frame)
        sent = Call(group, peer.send, encode_frame(Opcode.BINARY, bytes(50_000), b"mask") * 4)
        await settle()
        assert not received.done
        assert not sent.done
        for _ in range(4):
            assert len(await ws.receive()) == 50_000
        await sent.wait()
        await ws.send("answer")
        assert (await received.wait()).payload == b"answer"
