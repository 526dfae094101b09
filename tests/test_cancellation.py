"""Promise 1: what a cancellation can do, and how long a call may keep the event loop."""

import asyncio
import socket
from itertools import pairwise

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws import ConnectionClosedOK, Headers, Request, Response, WebSocket
from anyio_ws.core import Core
from anyio_ws.loops import open_loop
from anyio_ws.loops.base import SCRATCH_SIZE
from anyio_ws.options import Options
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.tasks import Tasks
from anyio_ws.testing import RawFrame, connected_pair, raw_peer
from anyio_ws.transports.socket import SocketTransport
from support.tools import Call, cancelled_already, fill, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


# In a cancelled scope


async def test_in_a_cancelled_scope_send_raises_before_doing_anything():
    async with connected_pair() as (client, server):
        await cancelled_already(lambda: client.send("never"))
        assert client.stats.messages_sent == client.stats.bytes_sent == 0
        await client.send("next")
        assert await server.receive() == "next"


async def test_in_a_cancelled_scope_send_many_raises_before_doing_anything():
    async with connected_pair() as (client, _server):
        await cancelled_already(lambda: client.send_many(["never", "ever"]))
        assert client.stats.messages_sent == client.stats.bytes_sent == 0


async def test_in_a_cancelled_scope_receive_raises_and_the_message_stays():
    async with connected_pair() as (client, server):
        await client.send("stays")
        await settle()
        await cancelled_already(server.receive)
        await cancelled_already(server.receive_many)
        await cancelled_already(server.receive_text)
        await cancelled_already(server.receive_bytes)
        await cancelled_already(server.receive_json)
        await cancelled_already(lambda: anext(server.iter_text()))
        assert await server.receive() == "stays"


async def test_in_a_cancelled_scope_ping_raises_before_doing_anything():
    async with connected_pair() as (client, _server):
        await cancelled_already(client.ping)
        assert client.stats.pings_sent == 0


async def test_in_a_cancelled_scope_flush_and_wait_closed_raise():
    async with connected_pair() as (client, _server):
        await cancelled_already(client.flush)
        await cancelled_already(client.wait_closed)


async def test_in_a_cancelled_scope_aclose_raises_before_the_close_is_sent():
    async with connected_pair() as (client, server):
        await cancelled_already(client.aclose)
        await client.send("still open")
        assert await server.receive() == "still open"


@pytest.mark.loops("asyncio", "uvloop")
async def test_after_a_native_cancellation_was_swallowed_the_calls_work():
    async with connected_pair() as (client, server):

        async def swallow():
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await client.send("sent")  # as any await of asyncio's works here
                return await server.receive()

        task = asyncio.create_task(swallow())
        await checkpoint()
        task.cancel()
        assert await task == "sent"


@pytest.mark.loops("asyncio", "uvloop")
async def test_a_scope_that_the_task_cancelled_itself_is_noticed_within_64_calls():
    async with connected_pair() as (client, _server):
        with anyio.CancelScope() as scope:
            scope.cancel()
            for _ in range(64):
                await client.send("x")
            pytest.fail("not noticed")
        assert client.stats.messages_sent < 64


@pytest.mark.loops("trio")
async def test_a_scope_that_the_task_cancelled_itself_is_noticed_at_once_on_trio():
    async with connected_pair() as (client, _server):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.send("never")
            pytest.fail("not noticed")
        assert client.stats.messages_sent == 0


# Timeouts


@pytest.mark.virtual_time
@pytest.mark.parametrize("method", ["receive", "receive_text", "receive_bytes", "receive_json", "receive_many"])
async def test_a_timeout_around_receive_loses_nothing(method):
    async with connected_pair() as (client, server):
        for _ in range(3):
            with pytest.raises(TimeoutError), anyio.fail_after(5):
                await getattr(server, method)()
        await client.send("1")
        expected = {"receive_bytes": b"1", "receive_json": 1, "receive_many": ["1"]}.get(method, "1")
        assert await getattr(server, method)() == expected


@pytest.mark.virtual_time
async def test_a_timeout_around_ping_leaves_the_connection_usable():
    async with raw_peer(ping_interval=None) as (peer, ws):
        with pytest.raises(TimeoutError), anyio.fail_after(5):
            await ws.ping()
        frame = await peer.receive_frame()
        await peer.send_frame(PONG, frame.payload)  # too late, and ignored
        await peer.send_frame(TEXT, b"next")
        assert await ws.receive() == "next"
        assert not ws._core.pings.in_flight


@pytest.mark.virtual_time
async def test_a_timeout_around_a_send_that_waits_for_its_turn_sends_nothing():
    async with raw_peer(ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        calls, sent = await fill(peer, ws, tg)
        with pytest.raises(TimeoutError), anyio.fail_after(5):
            await ws.send(b"never")
        peer.resume()
        await calls[-1].wait()
        await ws.send(b"next")
        for message in [*sent, b"next"]:
            assert (await peer.receive_frame()).payload == message


@pytest.mark.virtual_time
async def test_a_send_cancelled_after_it_was_committed_is_sent_whole():
    async with raw_peer(ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        calls, sent = await fill(peer, ws, tg)
        calls[-1].cancel()
        await settle()
        assert calls[-1].cancelled
        peer.resume()
        await ws.send(b"next")
        for message in [*sent, b"next"]:
            assert (await peer.receive_frame()).payload == message


# Turns


async def test_a_cancelled_sender_passes_its_turn_on():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _, sent = await fill(peer, ws, tg)
        waiting = []
        for i in range(5):
            waiting.append(Call(tg, ws.send, b"%d" % i))
            await settle()
        for i in (0, 2, 4):
            waiting[i].cancel()
        await settle()
        peer.resume()
        for message in [*sent, b"1", b"3"]:
            assert (await peer.receive_frame()).payload == message
        await waiting[1].wait()
        await waiting[3].wait()
        await ws.send(b"last")
        assert (await peer.receive_frame()).payload == b"last"


async def test_a_sender_that_is_woken_and_cancelled_in_the_same_tick_passes_its_turn_on():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _calls, sent = await fill(peer, ws, tg)
        first = Call(tg, ws.send, b"first")
        await settle()
        second = Call(tg, ws.send, b"second")
        await settle()
        peer.resume()
        peer._transport._deliver()  # wakes the first
        first.cancel()
        await second.wait()
        received = []
        while not received or received[-1] != b"second":
            received.append((await peer.receive_frame()).payload)
        assert received in ([*sent, b"second"], [*sent, b"first", b"second"])


async def test_a_newcomer_queues_behind_those_who_wait_even_if_there_is_room():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _calls, sent = await fill(peer, ws, tg)
        first = Call(tg, ws.send, b"first")
        await settle()
        peer.resume()
        peer._transport._deliver()  # there is room, and the first is woken but does not run yet
        newcomer = Call(tg, ws.send, b"newcomer")
        for message in [*sent, b"first", b"newcomer"]:
            assert (await peer.receive_frame()).payload == message
        await first.wait()
        await newcomer.wait()


async def test_everyone_who_waits_gets_a_turn_when_much_becomes_free():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _calls, sent = await fill(peer, ws, tg)
        waiting = []
        for i in range(20):
            waiting.append(Call(tg, ws.send, bytes([i]) * 5000))
            await checkpoint()
            await checkpoint()
        peer.resume()
        for message in sent + [bytes([i]) * 5000 for i in range(20)]:
            assert (await peer.receive_frame()).payload == message
        for call in waiting:
            await call.wait()


async def test_those_who_wait_for_their_turn_get_an_error_when_the_connection_closes():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        await fill(peer, ws, tg)
        waiting = [Call(tg, ws.send, b"x") for _ in range(3)] + [Call(tg, ws.send_many, [b"x"])]
        await settle()
        closing = Call(tg, ws.aclose)
        for call in waiting:
            with pytest.raises(ConnectionClosedOK):
                await call.wait()
        closing.cancel()


# Any cancellation point leaves a defined state


@given(steps=st.lists(st.integers(0, 6), min_size=5, max_size=30), sizes=st.lists(st.integers(0, 200), min_size=3))
async def test_receivers_cancelled_anywhere_lose_nothing(steps, sizes):
    messages = [i.to_bytes(2) + bytes(size) for i, size in enumerate(sizes)]
    received = []
    async with (
        connected_pair(receive_buffer_size=300, write_buffer_size=300) as (client, server),
        anyio.create_task_group() as tg,
    ):
        sending = Call(tg, client.send_many, messages)

        async def receive():
            while True:
                received.append(await server.receive())
                await checkpoint()

        for step in steps:
            call = Call(tg, receive)
            for _ in range(step):
                await checkpoint()
            call.cancel()
            while not call.done:
                await checkpoint()
        while len(received) < len(messages):
            received.append(await server.receive())
        await sending.wait()
    assert received == messages


@given(steps=st.lists(st.integers(0, 8), min_size=3, max_size=20), size=st.sampled_from([0, 100, 20000, 40000, 70000]))
async def test_senders_cancelled_anywhere_send_whole_messages_in_order_or_nothing(steps, size):
    async with raw_peer(write_buffer_size=30000) as (peer, ws), anyio.create_task_group() as tg:
        calls = []
        for i, step in enumerate(steps):
            ws._budget.renew()  # a sender that yields first comes later
            calls.append(Call(tg, ws.send, i.to_bytes(2) + bytes(size)))
            await checkpoint()
            await checkpoint()
            if step % 2:
                peer.pause()
            else:
                peer.resume()
            for _ in range(step):
                await checkpoint()
            if step % 3:
                calls[i].cancel()
        peer.resume()
        while not all(call.done for call in calls):
            await checkpoint()
        await ws.send(b"end")
        numbers = []
        while (frame := await peer.receive_frame()) != RawFrame(BINARY, b"end"):
            number = int.from_bytes(frame.payload[:2])
            assert frame == RawFrame(BINARY, number.to_bytes(2) + bytes(size))
            numbers.append(number)
        assert numbers == sorted(set(numbers))
        assert {i for i, call in enumerate(calls) if not call.scope.cancel_called} <= set(numbers)


# The budget


async def look_at(counter, looks):
    while True:
        looks.append(counter[0])
        await checkpoint()


def longest_run(looks, counter, loop_name):
    # trio runs the tasks of one pass in random order: the ends of two shares may meet.
    shares = 2 if loop_name == "trio" else 1
    return max(b - a for a, b in pairwise([*looks, counter[0]])) / shares


async def test_a_flooded_async_for_never_keeps_others_waiting_for_more_than_64_messages(loop_name):
    async with raw_peer(receive_buffer_size=2**20) as (peer, ws), anyio.create_task_group() as tg:
        flood = encode_frame(TEXT, "1", b"mask") * 5000
        await peer.send(flood)
        await peer.send(encode_frame(CLOSE, b"\x03\xe8", b"mask"))
        await settle()
        counter, looks = [0], []
        tg.start_soon(look_at, counter, looks)
        await checkpoint()
        async for _ in ws:
            counter[0] += 1
        assert counter[0] == 5000
        assert longest_run(looks, counter, loop_name) <= 64
        tg.cancel_scope.cancel()


async def test_a_loop_of_sends_never_keeps_others_waiting_for_more_than_64_messages(loop_name):
    async with connected_pair(receive_buffer_size=2**24) as (client, _server), anyio.create_task_group() as tg:
        counter, looks = [0], []
        tg.start_soon(look_at, counter, looks)
        await checkpoint()
        for _ in range(2000):
            await client.send("x")
            counter[0] += 1
        assert longest_run(looks, counter, loop_name) <= 64
        tg.cancel_scope.cancel()


async def test_an_echo_in_a_flood_never_keeps_others_waiting_for_more_than_64_messages(loop_name):
    async with raw_peer(receive_buffer_size=2**20) as (peer, ws), anyio.create_task_group() as tg:
        await peer.send(encode_frame(TEXT, "1", b"mask") * 3000)
        await settle()
        counter, looks = [0], []
        tg.start_soon(look_at, counter, looks)
        await checkpoint()
        for _ in range(3000):
            await ws.receive()
            await ws.send("1")
            counter[0] += 1
        assert longest_run(looks, counter, loop_name) <= 64
        tg.cancel_scope.cancel()


async def test_the_budget_is_of_the_event_loop_not_of_a_connection(loop_name):
    async with (
        connected_pair(receive_buffer_size=2**24) as (first, _),
        connected_pair(receive_buffer_size=2**24) as (second, _),
        anyio.create_task_group() as tg,
    ):
        counter, looks = [0], []
        tg.start_soon(look_at, counter, looks)
        await checkpoint()
        for _ in range(1000):
            await first.send("x")
            await second.send("x")
            counter[0] += 2
        assert longest_run(looks, counter, loop_name) <= 64
        tg.cancel_scope.cancel()


async def test_a_loop_that_took_its_share_of_time_yields_before_64_calls(monkeypatch, loop_name):
    now = 0.0
    monkeypatch.setattr("anyio_ws.loops.base.perf_counter", lambda: now)
    async with connected_pair() as (client, _server), anyio.create_task_group() as tg:
        counter, looks = [0], []
        tg.start_soon(look_at, counter, looks)
        await settle()
        for _ in range(200):
            now += 0.0005
            await client.send("x")
            counter[0] += 1
        assert longest_run(looks, counter, loop_name) <= 8
        tg.cancel_scope.cancel()


@pytest.mark.real_time
async def test_a_flood_of_control_frames_never_keeps_others_waiting(loop_name):
    pong = encode_frame(PONG, bytes(122), b"mask")
    assert SCRATCH_SIZE % len(pong) == 0
    counter, looks = [0], []

    def recv_into(buffer):
        """There is always something to read."""
        counter[0] += 1
        buffer[:] = pong * (len(buffer) // len(pong))
        return len(buffer)

    near, far = socket.socketpair()
    with far:
        far.send(b"x")  # which nobody takes
        async with Tasks() as tasks, anyio.create_task_group() as tg:
            loop = open_loop(tasks.start_service)
            transport = SocketTransport(near, loop)
            transport._recv_into = recv_into
            core = Core(transport, loop, Options(ping_interval=None), is_client=False)
            core.start(b"")
            ws = WebSocket(core, Request("/", Headers()), Response(101), None)
            tg.start_soon(look_at, counter, looks)
            call = Call(tg, ws.receive)
            while counter[0] < 300:
                await checkpoint()
            call.cancel()
            while not call.done:
                await checkpoint()
            ws.abort()
            assert longest_run(looks, counter, loop_name) <= 64
            tg.cancel_scope.cancel()
            loop.close()
