"""Keepalive in whole situations: it never closes the connection of a peer that lives, and always finds a dead one.

`test_keepalive.py` has the rules one by one; here are the situations in which other libraries fail.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import cycle
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import ConnectionClosed, ConnectionClosedError, WebSocket
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.testing import RawPeer, raw_peer
from support.tools import Call, both_roles, connected_socket, fill, jump, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

Role = Literal["client", "server"]

EVERY_SECOND: dict[str, Any] = {"ping_interval": 1, "ping_timeout": 1}

HOUR = 3600


async def answer_pings(peer: RawPeer) -> None:
    while True:
        frame = await peer.receive_frame()
        if frame.opcode == PING:
            await peer.send_frame(PONG, frame.payload)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# A peer that lives


@both_roles
@pytest.mark.virtual_time
async def test_a_slow_consumer_of_a_flooding_peer_stays_connected_for_an_hour(role: Role) -> None:
    async with (
        raw_peer(role, receive_buffer_size=1000, **EVERY_SECOND) as (peer, ws),
        anyio.create_task_group() as group,
    ):

        async def flood() -> None:
            number = 0
            while True:
                await peer.send_frame(BINARY, number.to_bytes(1000))
                number += 1

        group.start_soon(flood)  # its answers to our Pings would be behind all that
        for number in range(HOUR // 10):
            assert await ws.receive() == number.to_bytes(1000)
            await anyio.sleep(10)
        assert ws.close_info is None
        group.cancel_scope.cancel()


@both_roles
@pytest.mark.virtual_time
async def test_an_application_that_receives_nothing_for_an_hour_loses_neither_the_peer_nor_a_message(
    role: Role,
) -> None:
    async with raw_peer(role, receive_buffer_size=1000, **EVERY_SECOND) as (peer, ws):
        for number in range(3):
            await peer.send_frame(BINARY, bytes([number]) * 1000)
        await anyio.sleep(HOUR)
        assert ws.close_info is None
        for number in range(3):
            assert await ws.receive() == bytes([number]) * 1000


@both_roles
@pytest.mark.virtual_time
async def test_a_large_upload_over_a_slow_link_outlasts_any_ping_timeout(role: Role) -> None:
    # 64 KiB go through in half a second, and nothing comes back for 30 times ping_timeout.
    size = 4 * 2**20
    async with raw_peer(role, **EVERY_SECOND) as (peer, ws), anyio.create_task_group() as group:
        peer.pause()
        sending = Call(group, ws.send, bytes(size))
        start = anyio.current_time()
        while not sending.done or ws._outbox.size:
            await anyio.sleep(0.5)
            peer.resume()
            peer._transport._deliver()
            peer.pause()
            await settle()
        assert anyio.current_time() - start > 30
        assert ws.close_info is None
        peer.resume()
        while not ((frame := await peer.receive_frame()).opcode == CONT and frame.fin):
            if frame.opcode == PING:
                await peer.send_frame(PONG, frame.payload)
        Call(group, answer_pings, peer)
        await anyio.sleep(60)
        assert ws.close_info is None
        assert ws.latency is not None
        assert ws.latency <= 0.5
        group.cancel_scope.cancel()


# A loop that was blocked, a system that slept


@both_roles
@pytest.mark.virtual_time
@pytest.mark.parametrize("in_flight", [False, True], ids=["between-pings", "ping-in-flight"])
async def test_an_hour_of_suspension_costs_one_warning_and_not_the_connection(
    role: Role, in_flight: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_peer(role, ping_interval=20, ping_timeout=20) as (peer, ws), anyio.create_task_group() as group:
        await anyio.sleep(21 if in_flight else 19)
        assert ws.stats.pings_sent == in_flight
        jump(HOUR)
        Call(group, answer_pings, peer)
        await anyio.sleep(HOUR)
        assert ws.close_info is None
        assert [text.startswith("the event loop was blocked for 35") for text in warnings(caplog)] == [True]
        group.cancel_scope.cancel()


@both_roles
@pytest.mark.virtual_time
async def test_a_peer_that_died_while_the_system_slept_is_found_ping_timeout_after_it_woke(role: Role) -> None:
    async with raw_peer(role, ping_interval=20, ping_timeout=20) as (_peer, ws):
        await anyio.sleep(10)
        jump(HOUR)
        woke = anyio.current_time()
        info = await ws.wait_closed()
        assert anyio.current_time() - woke == pytest.approx(20)
        assert isinstance(info.cause, TimeoutError)


@both_roles
@pytest.mark.virtual_time
async def test_a_loop_that_is_blocked_again_and_again_keeps_a_peer_that_answers_in_between(role: Role) -> None:
    async with raw_peer(role, ping_interval=2, ping_timeout=2) as (peer, ws), anyio.create_task_group() as group:
        Call(group, answer_pings, peer)
        for blocked in (1.2, 3, 10, 2.5, 60) * 20:
            jump(blocked)
            await anyio.sleep(0.1)
            assert ws.close_info is None
        group.cancel_scope.cancel()


@both_roles
@pytest.mark.virtual_time  # of the loop's clock; the socket is a real one
@pytest.mark.parametrize(("blocked", "warned"), [(2.5, 0), (60, 3)], ids=["a-little-late", "a-stall"])
async def test_a_pong_that_came_while_the_loop_was_blocked_is_found_in_the_kernel(
    role: Role, blocked: float, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    pong = encode_frame(PONG, b"", b"mask" if role == "client" else None)
    async with connected_socket(role, ping_interval=2, ping_timeout=2) as (sock, ws):
        for _ in range(3):
            await anyio.wait_readable(sock)
            assert sock.recv(1000)
            sock.send(pong)
            jump(blocked)
            await anyio.sleep(1)
            assert ws.close_info is None
        assert len(warnings(caplog)) == warned
        with pytest.raises(ConnectionClosedError, match="ping_timeout"):
            await ws.receive()
        assert ws._core.gone


# A peer that answers wrongly


WRONG_ANSWERS: dict[str, Callable[[bytes, bytes], list[bytes]]] = {
    "other-data": lambda ping, last: [b"not what you said"],
    "nothing-in-it": lambda ping, last: [b""],
    "a-part-of-it": lambda ping, last: [ping[:-1]],
    "more-than-it": lambda ping, last: [ping + b"!"],
    "the-last-one": lambda ping, last: [last],
    "an-unmasked-guess": lambda ping, last: [bytes(4), b"\xff" * 4],
}


@both_roles
@pytest.mark.virtual_time
@pytest.mark.parametrize("wrong", WRONG_ANSWERS.values(), ids=list(WRONG_ANSWERS))
async def test_a_wrong_pong_is_a_sign_of_life_and_answers_no_ping(
    role: Role, wrong: Callable[[bytes, bytes], list[bytes]]
) -> None:
    async with raw_peer(role, ping_interval=10, ping_timeout=5) as (peer, ws), anyio.create_task_group() as group:
        waiting = Call(group, ws.ping, b"the application's")
        last = (await peer.receive_frame()).payload[:4]
        for _ in range(20):
            ping = (await peer.receive_frame()).payload
            await anyio.sleep(4.9)
            for answer in wrong(ping, last):
                await peer.send_frame(PONG, answer)
            last = ping
        await settle()
        assert ws.close_info is None
        assert ws.latency is None
        assert not waiting.done
        start = anyio.current_time()
        with pytest.raises(ConnectionClosedError, match="ping_timeout"):  # it is as dead as any other, once it is
            await waiting.wait()
        assert anyio.current_time() - start == pytest.approx(15, abs=0.1)


@both_roles
@pytest.mark.virtual_time
async def test_a_pong_that_comes_twice_measures_once(role: Role) -> None:
    async with raw_peer(role, ping_interval=None) as (peer, ws), anyio.create_task_group() as group:
        first = Call(group, ws.ping, b"same")
        await anyio.sleep(3)
        await peer.send_frame(PONG, b"same")
        assert await first.wait() == pytest.approx(3)
        await anyio.sleep(100)
        await peer.send_frame(PONG, b"same")
        await settle()
        assert ws.latency == pytest.approx(3)
        second = Call(group, ws.ping, b"same")  # the data is free again, and the second Pong was not for this one
        await anyio.sleep(2)
        assert not second.done
        await peer.send_frame(PONG, b"same")
        assert await second.wait() == pytest.approx(2)


@both_roles
@pytest.mark.virtual_time
async def test_a_flood_of_unsolicited_pongs_costs_nothing_and_proves_life(role: Role) -> None:
    async with raw_peer(role, ping_interval=10, ping_timeout=5) as (peer, ws):
        for number in range(200):
            await peer.send_frame(PONG, number.to_bytes(125))
            await anyio.sleep(9)
        assert ws.close_info is None
        assert ws.stats.pings_sent == 0
        assert ws.latency is None
        assert not ws._core.pings.in_flight


# A peer that is gone


@both_roles
@pytest.mark.virtual_time
async def test_a_peer_gone_silent_wakes_everybody_after_interval_and_timeout(role: Role) -> None:
    options = {"ping_interval": 3, "ping_timeout": 2}
    async with raw_peer(role, **options) as (peer, ws), anyio.create_task_group() as group:
        calls, _ = await fill(peer, ws, group)

        async def receiver(ws: WebSocket) -> None:
            async for _ in ws:
                pass

        async def producer(ws: WebSocket) -> None:
            while True:
                await ws.send(b"its turn never comes")

        waiting = [
            Call(group, ws.run, receiver, producer),
            calls[-1],
            Call(group, ws.send, b"its turn never comes"),
            Call(group, ws.send_many, [b"its turn never comes"]),
            Call(group, ws.flush),
            Call(group, ws.ping),
        ]
        closed = Call(group, ws.wait_closed)
        start = anyio.current_time()
        info = await closed.wait()
        for call in waiting:
            with pytest.raises(ConnectionClosedError) as caught:
                await call.wait()
            assert caught.value.close_info is info
            assert caught.value.__cause__ is info.cause
        assert anyio.current_time() - start == pytest.approx(5)
        assert isinstance(info.cause, TimeoutError)
        assert (info.code, info.initiator) == (1006, "local")
        assert ws._core.gone
        assert not any(timer.callback for timer in ws._loop._timers)


@both_roles
@pytest.mark.virtual_time
@pytest.mark.parametrize("function", ["receive", "wait_closed", "sleep"])
async def test_run_ends_when_the_peer_has_gone_silent(role: Role, function: str) -> None:
    functions: dict[str, Callable[[WebSocket], Awaitable[object]]] = {
        "receive": WebSocket.receive,
        "wait_closed": WebSocket.wait_closed,
        "sleep": lambda ws: anyio.sleep_forever(),
    }
    async with raw_peer(role, ping_interval=3, ping_timeout=2) as (_peer, ws):
        start = anyio.current_time()
        with pytest.raises(ConnectionClosedError, match="ping_timeout"):
            await ws.run(functions[function])
        assert anyio.current_time() - start == pytest.approx(5)


# idle_timeout


@both_roles
@pytest.mark.virtual_time
async def test_nothing_but_messages_keeps_a_peer_from_being_idle(role: Role) -> None:
    async with raw_peer(role, idle_timeout=60, **EVERY_SECOND) as (peer, ws), anyio.create_task_group() as group:
        start = anyio.current_time()

        async def talk() -> None:
            await peer.send_frame(BINARY, b"never to be fini", fin=False)
            while True:
                await peer.send_frame(CONT, b"", fin=False)
                await peer.send_frame(PING)
                await peer.send_frame(PONG)
                await anyio.sleep(0.5)

        async def tell() -> None:
            with suppress(ConnectionClosed):
                while True:
                    await ws.send("what we say is nothing that it says")
                    await anyio.sleep(1)

        group.start_soon(talk)
        group.start_soon(tell)
        info = await ws.wait_closed()
        assert anyio.current_time() - start == pytest.approx(60)
        assert info.code == 1001
        group.cancel_scope.cancel()


@both_roles
@pytest.mark.virtual_time
async def test_even_an_empty_message_is_one(role: Role) -> None:
    async with raw_peer(role, idle_timeout=60, ping_interval=None) as (peer, ws):
        for _ in range(10):
            await anyio.sleep(59)
            await peer.send_frame(TEXT)
            assert await ws.receive() == ""
        start = anyio.current_time()
        await ws.wait_closed()
        assert anyio.current_time() - start == pytest.approx(60)


# Any traffic

INTERVAL, TIMEOUT = 10, 5

said = st.sampled_from([(TEXT, b"x" * 60), (BINARY, b""), (PING, b"?"), (PONG, b"unsolicited")])
gaps = st.floats(0, 3 * INTERVAL)
steps = st.one_of(
    st.tuples(st.just("say"), gaps, said),
    st.tuples(st.just("block"), st.floats(0.01, 30), said),
)
answers = st.lists(
    st.tuples(st.floats(0, TIMEOUT - 0.1), st.one_of(st.just("pong"), said)),
    min_size=1,
    max_size=5,
)
naps = st.lists(st.floats(0, 100), min_size=1, max_size=5)


@both_roles
@pytest.mark.virtual_time
@settings(max_examples=40)
@given(script=st.lists(steps, max_size=12), answers=answers, naps=naps)
async def test_a_live_peer_is_never_closed_and_a_dead_one_always_found(role, script, answers, naps):
    """A live peer says anything within ping_timeout after each Ping, while the application takes its time."""
    async with (
        raw_peer(role, ping_interval=INTERVAL, ping_timeout=TIMEOUT, receive_buffer_size=200) as (peer, ws),
        anyio.create_task_group() as group,
    ):
        pinged = []

        async def live():
            for delay, answer in cycle(answers):
                frame = await peer.receive_frame()
                while frame.opcode != PING:
                    frame = await peer.receive_frame()
                await anyio.sleep(delay)
                await peer.send_frame(*((PONG, frame.payload) if answer == "pong" else answer))

        async def consume():
            for nap in cycle(naps):
                await ws.receive()
                await anyio.sleep(nap)

        tasks = [Call(group, live), Call(group, consume)]
        for kind, seconds, (opcode, payload) in script:
            if kind == "say":
                await anyio.sleep(seconds)
            else:
                jump(seconds)  # what comes while the loop is blocked is here when it goes on
            await peer.send_frame(opcode, payload)
            assert ws.close_info is None
        await anyio.sleep(5 * INTERVAL)
        assert ws.close_info is None

        async def watch():
            with suppress(anyio.EndOfStream):
                while True:
                    if (await peer.receive_frame()).opcode == PING:
                        pinged.append(anyio.current_time())

        async def take_all():
            with suppress(ConnectionClosed):
                while True:
                    await ws.receive()

        for task in tasks:
            task.cancel()
        await settle()
        died = anyio.current_time()
        Call(group, watch)
        Call(group, take_all)
        info = await ws.wait_closed()
        assert isinstance(info.cause, TimeoutError)
        assert anyio.current_time() <= died + INTERVAL + TIMEOUT + 0.01
        if pinged:
            assert anyio.current_time() >= pinged[-1] + TIMEOUT - 0.01
        group.cancel_scope.cancel()
