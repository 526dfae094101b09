"""Promise 6: a peer that is gone is noticed, one that is there is left alone; and `idle_timeout`."""

import logging

import anyio
import pytest

from anyio_ws import CloseInfo, ConnectionClosed, ConnectionClosedError
from anyio_ws.core import Core
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.testing import RawFrame, connected_pair, raw_peer
from support.tools import Call, both_roles, fill, jump, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

pytestmark = pytest.mark.virtual_time


async def answer_pings(peer):
    while True:
        frame = await peer.receive_frame()
        if frame.opcode == PING:
            await peer.send_frame(PONG, frame.payload)


# A peer that answers


async def test_a_connection_whose_peer_answers_stays_open_for_ever():
    async with connected_pair() as (client, server):
        await anyio.sleep(3600)
        assert client.close_info is server.close_info is None
        assert client.latency == server.latency == 0


async def test_a_silent_peer_is_pinged_after_ping_interval():
    async with raw_peer(ping_interval=7) as (peer, _ws):
        start = anyio.current_time()
        frame = await peer.receive_frame()
        assert (frame.opcode, len(frame.payload)) == (PING, 4)
        assert anyio.current_time() - start == pytest.approx(7)


async def test_each_ping_carries_data_of_its_own():
    async with raw_peer() as (peer, _ws):
        first = await peer.receive_frame()
        await peer.send_frame(PONG, first.payload)
        second = await peer.receive_frame()
        assert first.payload != second.payload


async def test_without_ping_interval_nothing_is_sent():
    async with raw_peer(ping_interval=None) as (_peer, ws):
        await anyio.sleep(3600)
        assert ws.stats.pings_sent == 0
        assert ws.close_info is None


async def test_a_peer_that_speaks_is_not_pinged():
    async with raw_peer(ping_interval=10) as (peer, ws):
        for _ in range(20):
            await anyio.sleep(9)
            await peer.send_frame(TEXT)
            await ws.receive()
        assert ws.stats.pings_sent == 0


async def test_the_next_ping_is_due_ping_interval_after_the_last_sign_of_life():
    async with raw_peer(ping_interval=10, ping_timeout=8) as (peer, ws):
        start = anyio.current_time()
        await anyio.sleep(6)
        await peer.send_frame(PONG)
        frame = await peer.receive_frame()
        assert anyio.current_time() - start == pytest.approx(16)
        await anyio.sleep(3)
        await peer.send_frame(PONG, frame.payload)
        assert (await peer.receive_frame()).opcode == PING
        assert anyio.current_time() - start == pytest.approx(29)
        assert ws.latency == pytest.approx(3)


async def test_pings_of_keepalive_that_get_no_pong_of_their_own_do_not_pile_up():
    async with raw_peer(ping_interval=10, ping_timeout=5) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.ping, b"the application's")
        for _ in range(10):
            await peer.receive_frame()
            await peer.send_frame(PONG, b"unsolicited")
        await settle()
        assert ws.stats.pings_sent == 10
        assert len(ws._core.pings.in_flight) == 2
        await peer.send_frame(PONG, b"the application's")
        assert await call.wait() == pytest.approx(90)


# A peer that does not


@both_roles
async def test_a_silent_peer_dies_after_interval_and_timeout(role):
    async with raw_peer(role, ping_interval=10, ping_timeout=5) as (_peer, ws):
        start = anyio.current_time()
        info = await ws.wait_closed()
        assert anyio.current_time() - start == pytest.approx(15)
        assert (info.code, info.initiator, info.clean) == (1006, "local", False)
        assert isinstance(info.cause, TimeoutError)
        assert str(info.cause) == "the peer was silent for 5 s after a ping (ping_timeout)"


async def test_every_waiter_wakes_also_a_blocked_sender():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls, _ = await fill(peer, ws, tg)
        waiting = [
            calls[-1],
            Call(tg, ws.send, b"waits for its turn"),
            Call(tg, ws.send_many, [b"waits for its turn"]),
            Call(tg, ws.receive),
            Call(tg, ws.ping),
        ]
        closed = Call(tg, ws.wait_closed)
        start = anyio.current_time()
        info = await closed.wait()
        assert anyio.current_time() - start == pytest.approx(40)
        for call in waiting:
            with pytest.raises(ConnectionClosedError) as caught:
                await call.wait()
            assert caught.value.close_info is info


async def test_without_ping_timeout_a_silent_peer_is_pinged_and_never_judged():
    async with raw_peer(ping_interval=10, ping_timeout=None) as (_peer, ws):
        await anyio.sleep(1005)
        assert ws.stats.pings_sent == 100
        assert ws.close_info is None


async def test_any_byte_is_a_sign_of_life():
    async with raw_peer(ping_interval=10, ping_timeout=5) as (peer, ws):
        await anyio.sleep(14)
        await peer.send(b"\x81")  # the beginning of a frame
        await anyio.sleep(10)
        assert ws.close_info is None
        info = await ws.wait_closed()
        assert info.code == 1006


async def test_a_slow_message_is_a_sign_of_life():
    async with raw_peer("server", ping_interval=10, ping_timeout=5) as (peer, ws):
        await peer.send(b"\x81\x7d")
        for _ in range(125):
            await anyio.sleep(9)
            await peer.send(b"x")
        assert await ws.receive() == "x" * 125
        assert ws.stats.pings_sent == 0


async def test_what_waits_in_the_transport_is_read_before_the_judgement(monkeypatch):
    async with raw_peer(ping_interval=10, ping_timeout=5) as (_peer, ws):
        core = ws._core
        await anyio.sleep(14.5)
        polled = []

        def poll(_core):
            polled.append(True)
            core.get_buffer()[:1] = b"\x81"
            core.received(1)

        monkeypatch.setattr(Core, "poll", poll)
        await anyio.sleep(1)
        assert polled == [True]
        assert ws.close_info is None


async def test_an_end_found_before_the_judgement_is_the_cause(monkeypatch):
    async with raw_peer(ping_interval=10, ping_timeout=5) as (_peer, ws):
        await anyio.sleep(14.5)
        monkeypatch.setattr(Core, "poll", lambda core: core.fail(ConnectionResetError("found by the poll")))
        await anyio.sleep(1)
        assert isinstance(ws.close_info.cause, ConnectionResetError)


async def test_a_probe_that_finds_the_connection_broken_is_the_last():
    async with raw_peer(ping_interval=10) as (peer, ws):
        peer._transport.closed = True  # nobody has noticed yet
        await anyio.sleep(11)
        assert isinstance(ws.close_info.cause, BrokenPipeError)
        await anyio.sleep(100)
        assert ws.stats.pings_sent == 1


async def test_no_pings_after_the_end():
    async with connected_pair() as (client, server):
        await client.aclose()
        await anyio.sleep(3600)
        assert client.stats.pings_sent == server.stats.pings_sent == 0


# While we have paused reading


async def test_while_reading_is_paused_the_clock_stops():
    async with raw_peer(ping_interval=10, ping_timeout=5, receive_buffer_size=100) as (peer, ws):
        await peer.send_frame(BINARY, b"x" * 100)
        await anyio.sleep(3600)
        assert ws.close_info is None
        assert ws.stats.pings_sent == 0
        await ws.receive()
        start = anyio.current_time()
        await ws.wait_closed()
        assert anyio.current_time() - start <= 25


async def test_pausing_after_the_ping_stops_the_clock_too():
    async with raw_peer(ping_interval=10, ping_timeout=5, receive_buffer_size=100) as (peer, ws):
        await anyio.sleep(12)
        await peer.send_frame(BINARY, b"x" * 100)
        await anyio.sleep(3600)
        assert ws.stats.pings_sent == 1
        assert ws.close_info is None


async def test_while_reading_is_paused_an_error_of_the_transport_is_found():
    async with raw_peer(ping_interval=10, receive_buffer_size=100) as (peer, ws):
        await peer.send_frame(BINARY, b"x" * 100)
        await peer.send_frame(BINARY, b"still in the transport")
        await settle()
        peer.reset()
        await settle()
        assert ws.close_info is None
        await anyio.sleep(11)
        assert isinstance(ws.close_info.cause, ConnectionResetError)
        assert await ws.receive() == b"x" * 100


# A ping behind other frames


async def test_a_ping_behind_an_outbox_that_moves_may_wait():
    async with raw_peer(ping_interval=10, ping_timeout=5, write_buffer_size=2**20) as (peer, ws):
        peer.pause()
        await ws.send(b"x" * 900_000)
        for _ in range(10):
            await anyio.sleep(4)
            peer.resume()  # reads what is there,
            peer._transport._deliver()
            peer.pause()  # and hangs again
            await settle()
        assert ws.close_info is None
        assert all(ping.sent is None for ping in ws._core.pings.in_flight.values())
        assert len(ws._core.pings.in_flight) == 1
        assert ws._outbox.size > 0


async def test_a_ping_behind_an_outbox_that_is_stuck_counts_as_unanswered():
    async with raw_peer(ping_interval=10, ping_timeout=5) as (peer, ws), anyio.create_task_group() as tg:
        start = anyio.current_time()
        calls, _ = await fill(peer, ws, tg)
        info = await ws.wait_closed()
        assert anyio.current_time() - start == pytest.approx(15)
        assert isinstance(info.cause, TimeoutError)
        with pytest.raises(ConnectionClosedError):
            await calls[-1].wait()


async def test_the_clock_of_a_pong_starts_when_the_ping_was_written():
    async with raw_peer(ping_interval=10, ping_timeout=5) as (peer, ws), anyio.create_task_group() as tg:
        calls, sent = await fill(peer, ws, tg)
        await anyio.sleep(14)
        assert len(ws._core.pings.in_flight) == 1
        peer.resume()
        await calls[-1].wait()
        received = [await peer.receive_frame() for _ in range(len(sent) + 1)]
        (frame,) = (frame for frame in received if frame.opcode == PING)
        await anyio.sleep(4.5)
        assert ws.close_info is None
        await peer.send_frame(PONG, frame.payload)
        await settle()
        assert ws.latency == pytest.approx(4.5)


async def test_a_pong_to_a_ping_that_was_not_written_yet_measures_nothing():
    async with raw_peer(ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        await fill(peer, ws, tg)
        call = Call(tg, ws.ping, b"guessed")
        await anyio.sleep(1)
        await peer.send_frame(PONG, b"guessed")
        assert await call.wait() == 0
        tg.cancel_scope.cancel()


async def test_a_second_ping_that_is_written_leaves_the_time_of_the_first():
    async with raw_peer(ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        first = Call(tg, ws.ping, b"first")
        await settle()
        calls, _sent = await fill(peer, ws, tg)
        second = Call(tg, ws.ping, b"second")
        await anyio.sleep(1)
        peer.resume()
        await calls[-1].wait()
        await settle()
        await anyio.sleep(1)
        await peer.send_frame(PONG, b"second")
        assert await first.wait() == pytest.approx(2)
        assert await second.wait() == pytest.approx(1)


# A blocked event loop


async def test_a_blocked_loop_warns_once_and_probes_afresh(caplog):
    async with connected_pair() as (client, server), connected_pair() as _:
        await anyio.sleep(10)
        with caplog.at_level(logging.WARNING):
            jump(300)
            await anyio.sleep(1)
        assert client.close_info is server.close_info is None
        ours = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(ours) == 1  # for all connections of the event loop
        assert ours[0].getMessage() == "the event loop was blocked for 290.0 s; keepalive starts afresh"
        await anyio.sleep(3600)
        assert client.close_info is server.close_info is None
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


async def test_a_loop_that_was_blocked_while_a_ping_was_in_flight_probes_afresh():
    async with raw_peer() as (_peer, ws):
        await anyio.sleep(21)
        assert ws.stats.pings_sent == 1
        jump(60)
        await settle()
        assert ws.close_info is None
        assert ws.stats.pings_sent == 2
        start = anyio.current_time()
        await ws.wait_closed()
        assert anyio.current_time() - start == pytest.approx(20)


async def test_each_stall_is_warned_about(caplog):
    async with connected_pair(ping_interval=1, ping_timeout=10):
        for _ in range(3):
            jump(100)
            await anyio.sleep(20)
    assert sum("blocked" in record.getMessage() for record in caplog.records) == 3


@pytest.mark.parametrize(
    ("ping_timeout", "late", "warned"),
    [(20, 4.9, False), (20, 5.1, True), (2, 0.9, False), (2, 1.1, True), (None, 1.1, True)],
)
async def test_what_counts_as_blocked(caplog, ping_timeout, late, warned):
    async with connected_pair(ping_interval=10, ping_timeout=ping_timeout):
        await anyio.sleep(9)
        jump(1 + late)
        await anyio.sleep(0.5)
    assert any("blocked" in record.getMessage() for record in caplog.records) == warned


async def late_judgements(ws, times):
    """Block the loop for half a second (too little for a stall) just before each of so many judgements."""
    for _ in range(times):
        await anyio.sleep(4.9)
        jump(0.5)
        await settle()


async def test_a_late_judgement_that_could_not_look_probes_afresh_once(monkeypatch):
    monkeypatch.setattr(Core, "poll", lambda core: False)  # a stream: only its reader task can look
    async with raw_peer(ping_interval=10, ping_timeout=5) as (_peer, ws):
        await anyio.sleep(10)
        await late_judgements(ws, 1)
        assert ws.close_info is None
        assert ws.stats.pings_sent == 2
        await late_judgements(ws, 1)
        assert isinstance(ws.close_info.cause, TimeoutError)


async def test_a_sign_of_life_renews_the_second_chance(monkeypatch):
    monkeypatch.setattr(Core, "poll", lambda core: False)
    async with raw_peer(ping_interval=10, ping_timeout=5) as (peer, ws):
        await anyio.sleep(10)
        for _ in range(5):
            await late_judgements(ws, 1)
            assert ws.close_info is None
            await peer.send_frame(PONG)
            await anyio.sleep(10.05)  # a judgement in time, and the next ping


async def test_a_late_judgement_that_could_look_is_final():
    async with raw_peer(ping_interval=10, ping_timeout=5) as (_peer, ws):
        await anyio.sleep(10)
        await late_judgements(ws, 1)
        assert isinstance(ws.close_info.cause, TimeoutError)


# idle_timeout


async def test_a_peer_without_messages_for_idle_timeout_gets_1001():
    async with raw_peer(idle_timeout=60) as (peer, ws), anyio.create_task_group() as tg:
        Call(tg, answer_pings, peer)
        start = anyio.current_time()
        info = await ws.wait_closed()
        assert anyio.current_time() - start == pytest.approx(60)
        assert (info.code, info.initiator, info.clean) == (1001, "local", False)
        assert isinstance(info.cause, TimeoutError)
        assert info.reason == "no message from the peer for 60 s (idle_timeout)"
        with pytest.raises(ConnectionClosedError):
            await ws.receive()
        tg.cancel_scope.cancel()


async def test_the_peer_is_told_about_the_idle_timeout():
    async with raw_peer(idle_timeout=5) as (peer, _ws):
        frame = await peer.receive_frame()
        assert frame == RawFrame(CLOSE, b"\x03\xe9no message from the peer for 5 s (idle_timeout)")


async def test_each_message_extends_the_idle_timeout():
    async with connected_pair(idle_timeout=60) as (client, server):
        for _ in range(10):
            await anyio.sleep(59)
            await client.send("x")
            await server.send("x")
            await client.receive()
            await server.receive()
        assert client.close_info is server.close_info is None


async def test_pings_do_not_extend_the_idle_timeout():
    async with connected_pair(idle_timeout=50) as (client, _server):
        start = anyio.current_time()
        await client.wait_closed()
        assert anyio.current_time() - start == pytest.approx(50)


async def test_while_messages_wait_for_the_application_the_peer_is_not_idle():
    async with raw_peer(idle_timeout=50, ping_interval=None) as (peer, ws):
        await peer.send_frame(TEXT, b"waits")
        await anyio.sleep(1000)
        assert ws.close_info is None
        assert await ws.receive() == "waits"
        await anyio.sleep(101)
        assert ws.close_info is not None


async def test_while_reading_is_paused_the_peer_is_not_idle():
    async with raw_peer(idle_timeout=50, ping_interval=None, receive_buffer_size=1000) as (peer, ws):
        for _ in range(2):
            await peer.send_frame(BINARY, bytes(900))
        await anyio.sleep(99)
        await ws.receive_many()  # the peer may send again from now on
        await anyio.sleep(49)
        assert ws.close_info is None
        await anyio.sleep(2)
        assert ws.close_info is not None


async def test_what_was_held_back_counts_from_when_it_could_be_taken():
    async with raw_peer(idle_timeout=50, ping_interval=None, receive_buffer_size=1000) as (peer, ws):
        await peer.send(encode_frame(BINARY, bytes(900), b"mask") * 3)
        await anyio.sleep(99)
        assert len(await ws.receive_many()) == 2
        assert len(await ws.receive_many()) == 1
        await anyio.sleep(49)
        assert ws.close_info is None


async def test_after_the_loop_was_blocked_an_idle_peer_gets_as_much_time_again():
    async with raw_peer(idle_timeout=50, ping_interval=None) as (peer, ws):
        await anyio.sleep(49)
        jump(3600)
        await peer.send_frame(TEXT, b"on its way")
        await anyio.sleep(49)
        assert ws.close_info is None
        assert await ws.receive() == "on its way"


async def test_an_idle_timeout_that_comes_late_gives_the_peer_another_second():
    async with raw_peer(idle_timeout=5, ping_interval=None) as (peer, ws):
        await anyio.sleep(4.5)
        jump(2)  # the event loop was blocked
        await anyio.sleep(0.5)
        assert ws.close_info is None
        await peer.send_frame(TEXT, b"here")
        assert await ws.receive() == "here"
        await anyio.sleep(4.5)
        assert ws.close_info is None


async def test_an_idle_timeout_during_our_close_does_nothing():
    async with raw_peer(idle_timeout=5, close_timeout=10) as (_peer, ws):
        await ws.aclose(4000)
        assert (ws.close_info.code, ws.close_info.initiator) == (4000, "local")
        assert "close_timeout" in str(ws.close_info.cause)


async def test_a_pair_that_idles_ends_with_1001_on_both_sides():
    async with connected_pair(idle_timeout=5) as (client, server):
        infos = [await client.wait_closed(), await server.wait_closed()]
        assert [info.code for info in infos] == [1001, 1001]
        with pytest.raises(ConnectionClosed):
            await client.send("late")
        assert CloseInfo(1001) != infos[0]


# Rounding


async def test_a_clock_that_stands_still_does_not_keep_the_timer_from_the_ping():
    # Moments at which the sum of now and the interval is rounded down, so that less than the interval seems to be over.
    while anyio.current_time() + 20 - anyio.current_time() >= 20:
        jump(0.001)
    async with raw_peer(ping_interval=20) as (peer, ws):
        assert ws.stats.last_received + 20 - ws.stats.last_received < 20
        assert (await peer.receive_frame()).opcode == PING
