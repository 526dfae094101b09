"""The closing handshake, RFC 6455 §7, and what leaving a block does.

The end called `ws` is ours; what the peer does is said by the test.
"""

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws import CloseInfo, ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from anyio_ws.protocol import Opcode, ProtocolError, encode_frame
from anyio_ws.testing import MemoryServer, RawFrame, connected_pair, raw_peer
from support.tools import Call, both_roles, connected_socket, fill, receive_messages, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


# We close


@both_roles
async def test_our_close_is_sent_answered_and_then_the_connection_is_gone(role):
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose, 4000, "bye")
        assert await peer.receive_frame() == RawFrame(CLOSE, b"\x0f\xa0bye")
        await settle()
        assert ws.close_info is None
        await peer.send_close(4000)
        await settle()
        assert ws.close_info == CloseInfo(4000, "bye", "local", clean=True)
        assert not call.done
        peer.close()
        await call.wait()


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1011, 1014, 3000, 4999])
async def test_codes_that_may_be_sent(code):
    async with connected_pair() as (client, server):
        await client.aclose(code, "reason")
        assert client.close_info == CloseInfo(code, "reason", "local", clean=True)
        assert server.close_info == CloseInfo(code, "reason", "peer", clean=True)


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65536])
async def test_codes_that_must_not_be_sent_are_a_value_error_and_nothing_happens(code):
    async with connected_pair() as (client, server):
        with pytest.raises(ValueError, match=f"close code {code} must not be sent"):
            await client.aclose(code)
        await client.send("still open")
        assert await server.receive() == "still open"


async def test_a_long_reason_is_cut_at_a_character():
    async with connected_pair() as (client, server):
        await client.aclose(1000, "ä" * 100)
        assert client.close_info.reason == server.close_info.reason == "ä" * 61


async def test_a_reason_that_is_no_text_is_a_value_error_and_nothing_happens():
    async with connected_pair() as (client, server):
        with pytest.raises(ValueError, match="surrogates"):
            await client.aclose(1000, "\ud800")
        await client.send("still open")
        assert await server.receive() == "still open"


async def test_after_a_local_close_the_inbox_is_discarded():
    async with connected_pair() as (client, server):
        await client.send_many(["1", "2"])
        await settle()
        await server.aclose()
        with pytest.raises(ConnectionClosedOK) as caught:
            await server.receive()
        assert isinstance(caught.value, anyio.EndOfStream)


async def test_what_arrives_after_a_local_close_is_discarded():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        await settle()
        for _ in range(10):
            await peer.send_frame(BINARY, b"x" * 60000)
        await peer.send_close()
        peer.send_eof()
        await call.wait()
        assert ws.close_info.clean
        with pytest.raises(ConnectionClosedOK):
            await ws.receive()


async def test_a_close_behind_more_small_messages_than_the_inbox_holds_is_found():
    async with raw_peer(receive_buffer_size=100) as (peer, ws), anyio.create_task_group() as tg:
        await peer.send(encode_frame(TEXT, "1", b"mask") * 1000 + encode_frame(CLOSE, b"\x03\xe8", b"mask"))
        await settle()
        assert ws.close_info is None  # reading is paused
        call = Call(tg, ws.aclose)
        await settle()
        assert ws.close_info == CloseInfo(1000, "", "local", clean=True)
        peer.close()
        await call.wait()


async def test_small_messages_after_our_close_do_not_pile_up_in_the_decoder():
    async with raw_peer(receive_buffer_size=100) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        for _ in range(10):
            await peer.send(encode_frame(TEXT, "1", b"mask") * 1000)
        await settle()
        assert not ws._core.connection.pending
        await peer.send_close()
        peer.close()
        await call.wait()
        assert ws.close_info.clean


async def test_a_local_close_wakes_a_receiver_when_the_peer_has_answered():
    async with connected_pair() as (client, _server), anyio.create_task_group() as tg:
        call = Call(tg, client.receive)
        await settle()
        await client.aclose()
        with pytest.raises(ConnectionClosedOK):
            await call.wait()


async def test_what_is_committed_is_sent_before_the_close():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls, sent = await fill(peer, ws, tg)
        waiting = Call(tg, ws.send, b"never committed")
        await settle()
        closing = Call(tg, ws.aclose)
        await settle()
        for call in calls:
            await call.wait()  # committed: it will be sent
        with pytest.raises(ConnectionClosedOK):
            await waiting.wait()
        peer.resume()
        assert await receive_messages(peer) == sent
        await peer.send_close()
        peer.close()
        await closing.wait()
        assert ws.close_info.clean


async def test_send_after_a_local_close_raises_at_once():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        Call(tg, ws.aclose, 1008)
        await settle()
        with pytest.raises(ConnectionClosedOK) as caught:
            await ws.send("late")
        assert not isinstance(caught.value, anyio.EndOfStream)
        assert caught.value.close_info == CloseInfo(1008, "", "local")
        with pytest.raises(ConnectionClosedOK):
            await ws.ping()
        with pytest.raises(ConnectionClosedOK):
            await ws.flush()
        peer.close()


@both_roles
async def test_pings_between_the_two_closes_are_answered(role):
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        assert (await peer.receive_frame()).opcode == CLOSE
        await peer.send_frame(PING, b"between")
        assert await peer.receive_frame() == RawFrame(PONG, b"between")
        await peer.send_close()
        peer.close()
        await call.wait()


@both_roles
async def test_no_ping_is_answered_after_the_peers_close(role):
    key = b"mask" if role == "client" else None
    async with raw_peer(role) as (peer, _ws):
        await peer.send(encode_frame(CLOSE, b"\x03\xe8", key) + encode_frame(PING, b"late", key))
        await peer.send(encode_frame(PING, b"later", key))
        assert await peer.receive_frame() == RawFrame(CLOSE, b"\x03\xe8")
        peer.send_eof()
        assert await peer.receive_eof() == b""


async def test_a_ping_and_a_close_in_one_chunk_are_a_close_by_the_peer():
    async with raw_peer() as (peer, ws):
        await peer.send(encode_frame(PING, b"late", b"mask") + encode_frame(CLOSE, b"\x03\xe9", b"mask"))
        assert await peer.receive_frame() == RawFrame(CLOSE, b"\x03\xe9")
        assert ws.close_info == CloseInfo(1001, "", "peer", clean=True)
        assert ws.stats.pongs_sent == 0


async def test_a_ping_and_the_answer_to_our_close_in_one_chunk():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        await settle()
        await peer.send(encode_frame(PING, b"late", b"mask") + encode_frame(CLOSE, b"\x03\xe8", b"mask"))
        peer.close()
        await call.wait()
        assert ws.close_info == CloseInfo(1000, "", "local", clean=True)
        assert ws.stats.pongs_sent == 0


@pytest.mark.virtual_time
async def test_a_peer_that_never_answers_is_dropped_after_close_timeout():
    async with raw_peer(close_timeout=7, ping_interval=None) as (_peer, ws):
        start = anyio.current_time()
        await ws.aclose(1001, "bye")
        assert anyio.current_time() == pytest.approx(start + 7)
        info = ws.close_info
        assert (info.code, info.reason, info.initiator, info.clean) == (1001, "bye", "local", False)
        assert isinstance(info.cause, TimeoutError)
        with pytest.raises(ConnectionClosedOK) as caught:
            await ws.receive()
        assert caught.value.__cause__ is info.cause


@pytest.mark.virtual_time
async def test_a_peer_that_answers_and_never_ends_its_side_is_dropped_after_close_timeout():
    async with raw_peer(close_timeout=7, ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        start = anyio.current_time()
        call = Call(tg, ws.aclose)
        await settle()
        await peer.send_close()
        assert await ws.wait_closed() == CloseInfo(1000, "", "local", clean=True)
        assert anyio.current_time() == start
        await call.wait()
        assert anyio.current_time() == pytest.approx(start + 7)
        assert ws.close_info == CloseInfo(1000, "", "local", clean=True)


@pytest.mark.virtual_time
async def test_traffic_does_not_extend_the_deadline():
    async with raw_peer(close_timeout=7, ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        start = anyio.current_time()

        async def chatter():
            while True:
                await peer.send_frame(TEXT, b"more")
                await peer.send_frame(PING)
                await anyio.sleep(1)

        Call(tg, chatter)
        await ws.aclose()
        assert anyio.current_time() == pytest.approx(start + 7)
        tg.cancel_scope.cancel()


@pytest.mark.virtual_time
async def test_the_deadline_covers_writing_what_is_committed():
    async with (
        raw_peer(close_timeout=7, ping_interval=None) as (peer, ws),
        anyio.create_task_group() as tg,
    ):
        calls, _ = await fill(peer, ws, tg)
        start = anyio.current_time()
        await ws.aclose()
        assert anyio.current_time() == pytest.approx(start + 7)
        assert all(call.done for call in calls)


@pytest.mark.virtual_time
async def test_without_close_timeout_aclose_waits_as_long_as_it_takes():
    async with raw_peer(close_timeout=None, ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        await anyio.sleep(80_000)
        assert not call.done
        await peer.send_close()
        await anyio.sleep(80_000)
        assert not call.done
        peer.close()
        await call.wait()


@pytest.mark.virtual_time
async def test_without_close_timeout_a_peer_that_closed_may_take_its_time():
    async with raw_peer(close_timeout=None, ping_interval=None) as (peer, ws), anyio.create_task_group() as tg:
        await peer.send_close()
        call = Call(tg, ws.aclose)
        await anyio.sleep(80_000)
        assert not call.done
        peer.close()
        await call.wait()


@both_roles
async def test_an_end_without_a_close_after_ours_keeps_our_code(role):
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose, 1001)
        await settle()
        peer.close()
        await call.wait()
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1001, "local", False)
        assert isinstance(info.cause, EOFError)
        with pytest.raises(ConnectionClosedOK):
            await ws.send("late")


async def test_a_violation_after_our_close_ends_it_without_a_second_close():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        assert (await peer.receive_frame()).opcode == CLOSE
        await peer.send(b"\xff\xff")
        await settle()
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1000, "local", False)
        assert info.cause.close_code == 1002
        peer.send_eof()
        await call.wait()
        assert await peer.receive_eof() == b""


async def test_an_answer_that_is_here_when_a_close_is_given_up_counts():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose, 1001)
        assert (await peer.receive_frame()).opcode == CLOSE
        call.cancel()
        await peer.send_close(1001)  # which the event loop, being busy, gets to see only after that
        await settle()
        assert call.cancelled
        assert ws.close_info == CloseInfo(1001, "", "local", clean=True)


async def test_an_answer_that_is_here_when_close_timeout_is_over_counts():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        assert (await peer.receive_frame()).opcode == CLOSE
        await peer.send_close(1000)
        ws._core._deadline.callback()  # before anybody has read: the event loop was busy
        await call.wait()
        assert ws.close_info == CloseInfo(1000, "", "local", clean=True)


async def test_a_close_that_finds_the_connection_broken():
    async with raw_peer() as (peer, ws):
        peer._transport.closed = True  # nobody has noticed yet
        await ws.aclose(1001)
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1001, "local", False)
        assert isinstance(info.cause, BrokenPipeError)


@both_roles
async def test_a_close_that_never_left_is_not_clean_although_the_peers_came(role):
    async with connected_socket(role) as (sock, ws):
        sock.send(encode_frame(CLOSE, b"\x03\xe8", b"mask" if role == "client" else None))
        sock.close()  # so that we cannot write any more
        await ws.aclose(1001)
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1001, "local", False)
        assert isinstance(info.cause, BrokenPipeError)


@both_roles
async def test_a_refusal_that_cannot_be_said_is_still_why(role):
    async with connected_socket(role) as (sock, ws):
        sock.send(encode_frame(BINARY, b"not text", b"mask" if role == "client" else None))
        assert await ws.receive_bytes() == b"not text"
        sock.send(encode_frame(BINARY, b"not text", b"mask" if role == "client" else None))
        await settle()
        sock.close()
        with pytest.raises(ConnectionClosedError, match=r"1003.*expected text"):
            await ws.receive_text()
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1003, "local", False)
        assert isinstance(info.cause, ProtocolError)


# The peer closes


@both_roles
async def test_a_close_that_we_cannot_answer_is_not_clean(role):
    async with connected_socket(role) as (sock, ws):
        sock.send(encode_frame(CLOSE, b"\x03\xe8", b"mask" if role == "client" else None))
        sock.close()
        with pytest.raises(ConnectionClosedOK):
            await ws.send("which finds out")
            await ws.receive()
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1000, "peer", False)
        assert isinstance(info.cause, BrokenPipeError)


@both_roles
@pytest.mark.parametrize(
    ("payload", "info", "answer", "error"),
    [
        (b"", CloseInfo(1005, "", "peer", clean=True), b"", ConnectionClosedOK),
        (b"\x03\xe8", CloseInfo(1000, "", "peer", clean=True), b"\x03\xe8", ConnectionClosedOK),
        (b"\x03\xe9away", CloseInfo(1001, "away", "peer", clean=True), b"\x03\xe9", ConnectionClosedOK),
        (b"\x03\xf3oops", CloseInfo(1011, "oops", "peer", clean=True), b"\x03\xf3", ConnectionClosedError),
        (b"\x0f\xa0own", CloseInfo(4000, "own", "peer", clean=True), b"\x0f\xa0", ConnectionClosedError),
    ],
    ids=["1005", "1000", "1001", "1011", "4000"],
)
async def test_the_peers_close_is_answered_with_its_code(role, payload, info, answer, error):
    async with raw_peer(role) as (peer, ws):
        await peer.send_frame(CLOSE, payload)
        assert await peer.receive_frame() == RawFrame(CLOSE, answer)
        assert ws.close_info == info
        with pytest.raises(error) as caught:
            await ws.receive()
        assert caught.value.close_info is ws.close_info
        assert isinstance(caught.value, anyio.EndOfStream) == (error is ConnectionClosedOK)
        with pytest.raises(error) as caught:
            await ws.send("late")
        assert not isinstance(caught.value, anyio.EndOfStream)
        assert type(caught.value) is error


async def test_after_a_remote_close_what_arrived_before_is_delivered_and_send_raises_at_once():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(TEXT, b"1")
        await peer.send_frame(TEXT, b"2")
        await peer.send_close()
        await settle()
        with pytest.raises(ConnectionClosedOK):
            await ws.send("reply")
        assert await ws.receive() == "1"
        assert [message async for message in ws] == ["2"]


async def test_a_close_behind_a_full_inbox_comes_after_all_messages():
    async with raw_peer(receive_buffer_size=100) as (peer, ws):
        await peer.send(
            b"".join(encode_frame(TEXT, str(i), b"mask") for i in range(20)) + encode_frame(CLOSE, b"\x03\xe8", b"mask")
        )
        assert [message async for message in ws] == [str(i) for i in range(20)]


async def test_a_close_inside_a_fragmented_message_is_an_ordinary_close():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(TEXT, b"never to be fini", fin=False)
        await peer.send_close(1001)
        assert [message async for message in ws] == []
        assert ws.close_info == CloseInfo(1001, "", "peer", clean=True)


async def test_what_comes_after_the_peers_close_is_ignored():
    async with raw_peer() as (peer, ws):
        await peer.send_close()
        await peer.send(b"\xff" * 100)
        await peer.send_frame(TEXT, b"late")
        peer.send_eof()
        await settle()
        assert ws.close_info == CloseInfo(1000, "", "peer", clean=True)
        assert [message async for message in ws] == []


async def test_a_peers_close_that_cannot_be_answered_keeps_its_code():
    async with raw_peer() as (peer, ws):
        await peer.send_close(1001, "away")
        peer._transport.closed = True  # it reads nothing any more
        await settle()
        info = ws.close_info
        assert (info.code, info.reason, info.initiator, info.clean) == (1001, "away", "peer", False)
        assert isinstance(info.cause, BrokenPipeError)
        with pytest.raises(ConnectionClosedOK):
            await ws.receive()


async def test_aclose_after_the_peers_close_waits_until_it_is_gone():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        await peer.send_close(1001)
        await settle()
        call = Call(tg, ws.aclose, 4000)
        await settle()
        assert not call.done
        peer.close()
        await call.wait()
        assert ws.close_info == CloseInfo(1001, "", "peer", clean=True)


@pytest.mark.virtual_time
async def test_a_peer_that_closed_and_does_not_end_its_side_is_dropped_after_close_timeout():
    async with raw_peer(close_timeout=3) as (peer, ws):
        await peer.send_close()
        await settle()
        start = anyio.current_time()
        await ws.aclose()
        assert anyio.current_time() == pytest.approx(start + 3)


# Both at once


@pytest.mark.parametrize("codes", [(1000, 1000), (1000, 1001), (4000, 3000)])
async def test_both_may_close_at_once(codes):
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        calls = [Call(tg, client.aclose, codes[0]), Call(tg, server.aclose, codes[1])]
        for call in calls:
            await call.wait()
        assert client.close_info == CloseInfo(codes[0], "", "local", clean=True)
        assert server.close_info == CloseInfo(codes[1], "", "local", clean=True)


# Several closers, and cancelled ones


async def test_several_closers_wait_for_one_close():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls = [Call(tg, ws.aclose, 1000)]
        await settle()
        calls += [Call(tg, ws.aclose, 4000) for _ in range(3)]
        await settle()
        assert await peer.receive_frame() == RawFrame(CLOSE, b"\x03\xe8")
        await peer.send_close()
        peer.close()
        for call in calls:
            await call.wait()
        assert ws.close_info.code == 1000
        assert await peer.receive_eof() == b""


async def test_aclose_is_idempotent():
    async with connected_pair() as (client, _server):
        await client.aclose(1001)
        await client.aclose(4000)
        assert client.close_info.code == 1001


@pytest.mark.virtual_time
async def test_cancelling_one_of_several_closers_hands_the_rest_to_the_others():
    async with raw_peer(close_timeout=7, ping_interval=None) as (_peer, ws), anyio.create_task_group() as tg:
        first, second = Call(tg, ws.aclose), Call(tg, ws.aclose)
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled
        assert ws.close_info is None
        start = anyio.current_time()
        await second.wait()
        assert anyio.current_time() == pytest.approx(start + 7)


async def test_cancelling_the_last_closer_drops_the_connection():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls = [Call(tg, ws.aclose, 1001)]
        await settle()
        calls.append(Call(tg, ws.aclose))
        await settle()
        for call in calls:
            call.cancel()
        await settle()
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1001, "local", False)
        assert isinstance(info.cause, ConnectionAbortedError)
        assert await peer.receive_eof() == b"\x88\x02\x03\xe9"


# The order of hanging up, RFC 6455 §7.1.1


async def test_a_server_ends_its_side_first_and_discards_until_the_client_has_too():
    async with raw_peer("client") as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        await settle()
        await peer.send_close()
        assert await peer.receive_eof() == b"\x88\x02\x03\xe8"
        assert not call.done
        for _ in range(10):
            await peer.send_frame(BINARY, b"x" * 60000)
        await settle()
        assert not call.done
        peer.send_eof()
        await call.wait()


async def test_a_server_that_was_closed_ends_its_side_first():
    async with raw_peer("client") as (peer, ws):
        await peer.send_close()
        assert await peer.receive_eof() == b"\x88\x02\x03\xe8"
        assert not ws._core.gone
        peer.send_eof()
        await ws.aclose()
        assert ws._core.gone


@pytest.mark.parametrize("we_begin", [True, False])
async def test_a_client_waits_for_the_server_to_end_its_side(we_begin):
    async with raw_peer("server") as (peer, ws), anyio.create_task_group() as tg:
        if we_begin:
            call = Call(tg, ws.aclose)
            await settle()
            await peer.send_close()
        else:
            await peer.send_close()
            call = Call(tg, ws.aclose)
        await settle()
        assert (await peer.receive_frame()).opcode == CLOSE
        eof = Call(tg, peer.receive_eof)
        await settle()
        assert not call.done
        assert not eof.done
        peer.send_eof()
        await call.wait()
        await eof.wait()


async def test_a_server_whose_close_waits_for_a_slow_peer_ends_its_side_after_it():
    async with raw_peer("client") as (peer, ws), anyio.create_task_group() as tg:
        _, sent = await fill(peer, ws, tg)
        await peer.send_close()
        await settle()
        assert ws.close_info is not None
        peer.resume()
        assert await receive_messages(peer) == sent
        assert await peer.receive_eof() == b""


async def test_a_peer_that_ends_its_side_before_it_has_read_everything_still_gets_it():
    async with raw_peer("client") as (peer, ws), anyio.create_task_group() as tg:
        _, sent = await fill(peer, ws, tg)
        await peer.send_close()
        peer.send_eof()
        await settle()
        assert not ws._core.gone
        peer.resume()
        assert await receive_messages(peer) == sent
        await settle()
        assert ws._core.gone


async def test_reading_goes_on_after_the_close_however_full_the_inbox_is():
    async with raw_peer("client", receive_buffer_size=100) as (peer, ws), anyio.create_task_group() as tg:
        await peer.send_frame(BINARY, b"1" * 100)
        await settle()
        ws._core.refuse(1001, TimeoutError("a reason"), keep_inbox=True)
        for _ in range(10):
            await peer.send_frame(BINARY, b"x" * 60000)
        peer.send_eof()
        await ws.aclose()
        assert await ws.receive() == b"1" * 100
        with pytest.raises(ConnectionClosedError):
            await ws.receive()
        tg.cancel_scope.cancel()


# The connection ends without a Close


@both_roles
async def test_an_end_without_a_close_is_1006_at_once(role):
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as tg:
        calls = [Call(tg, ws.receive), Call(tg, ws.ping)]
        waiting = Call(tg, ws.wait_closed)
        await settle()
        peer.send_eof()
        info = await waiting.wait()
        assert (info.code, info.reason, info.initiator, info.clean) == (1006, "", "peer", False)
        assert isinstance(info.cause, EOFError)
        for call in calls:
            with pytest.raises(ConnectionClosedError) as caught:
                await call.wait()
            assert caught.value.close_info is info
            assert caught.value.__cause__ is info.cause


@both_roles
async def test_a_reset_is_1006_at_once(role):
    async with raw_peer(role) as (peer, ws):
        peer.reset()
        info = await ws.wait_closed()
        assert (info.code, info.initiator, info.clean) == (1006, "peer", False)
        assert isinstance(info.cause, ConnectionResetError)


async def test_abort_drops_the_connection_at_once_and_wakes_everyone():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls, _ = await fill(peer, ws, tg)
        calls = [calls[-1], Call(tg, ws.send, b"its turn never comes"), Call(tg, ws.receive), Call(tg, ws.ping)]
        waiting = Call(tg, ws.wait_closed)
        await settle()
        ws.abort()
        info = ws.close_info
        assert (info.code, info.initiator, info.clean) == (1006, "local", False)
        assert isinstance(info.cause, ConnectionAbortedError)
        assert await waiting.wait() is info
        for call in calls:
            with pytest.raises(ConnectionClosedError):
                await call.wait()
        ws.abort()
        await ws.aclose()
        assert ws.close_info is info


async def test_abort_wakes_those_who_wait_in_aclose():
    async with raw_peer() as (_peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose)
        await settle()
        ws.abort()
        await call.wait()
        assert isinstance(ws.close_info.cause, ConnectionAbortedError)


# close_info and wait_closed


async def test_close_info_is_set_before_any_waiter_wakes():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        seen = []

        async def look(function):
            try:
                await function()
            except ConnectionClosed:
                pass
            seen.append(ws.close_info)

        for function in (ws.receive, ws.ping, ws.wait_closed):
            Call(tg, look, function)
        await settle()
        peer.close()
        await settle()
        assert len(seen) == 3
        assert None not in seen


async def test_wait_closed_reads_no_messages():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.wait_closed)
        await peer.send_frame(TEXT, b"for receive")
        await peer.send_close()
        await call.wait()
        assert await ws.receive() == "for receive"
        assert await ws.wait_closed() is ws.close_info


async def test_several_may_wait_for_the_end():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls = [Call(tg, ws.wait_closed) for _ in range(3)]
        await settle()
        calls[0].cancel()
        await settle()
        peer.close()
        assert await calls[1].wait() is await calls[2].wait() is ws.close_info


# Leaving a block


async def test_leaving_a_block_normally_sends_1000():
    async with connected_pair() as (client, server):
        pass
    assert server.close_info == CloseInfo(1000, "", "peer", clean=True)
    assert client.close_info == CloseInfo(1000, "", "local", clean=True)


async def test_leaving_a_block_by_an_exception_sends_1011():
    error = RuntimeError("secret")
    with pytest.raises(RuntimeError) as caught:
        async with connected_pair() as (_, server):
            raise error
    assert caught.value is error
    assert server.close_info == CloseInfo(1011, "", "peer", clean=True)


async def test_leaving_a_block_by_cancellation_sends_1001():
    with anyio.CancelScope() as scope:
        async with connected_pair() as (_, server):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert server.close_info == CloseInfo(1001, "", "peer", clean=True)


async def test_leaving_a_block_whose_connection_has_failed_raises_nothing():
    async with connected_pair() as (client, server):
        server.abort()
        await client.wait_closed()
    assert client.close_info.code == 1006


async def test_a_handler_that_returns_sends_1000():
    async def handler(ws):
        pass

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert await ws.wait_closed() == CloseInfo(1000, "", "peer", clean=True)


async def test_a_handler_that_fails_sends_1011_without_its_text(caplog):
    async def handler(ws):
        raise RuntimeError("secret")

    async with MemoryServer(handler) as server, server.connect() as ws:
        assert await ws.wait_closed() == CloseInfo(1011, "", "peer", clean=True)


async def test_a_client_of_a_server_that_is_left_gets_1001():
    infos = []

    async def client(server, entered):
        async with server.connect() as ws:
            entered.set()
            infos.append(await ws.wait_closed())

    async def handler(ws):
        await ws.wait_closed()

    async with anyio.create_task_group() as tg:  # noqa: SIM117  # the server is left first
        async with MemoryServer(handler) as server:
            entered = anyio.Event()
            tg.start_soon(client, server, entered)
            await entered.wait()
    assert infos == [CloseInfo(1001, "", "peer", clean=True)]


@pytest.mark.virtual_time
@pytest.mark.parametrize(("close_timeout", "bound"), [(10, 1), (None, 1), (0.25, 0.25)])
async def test_leaving_a_block_by_an_exception_is_bounded(close_timeout, bound):
    start = anyio.current_time()
    with pytest.raises(RuntimeError, match="the body's"):
        async with connected_pair(close_timeout=close_timeout) as (client, server):
            server._core.transport.pause()  # it hangs
            raise RuntimeError("the body's")
    assert anyio.current_time() - start == pytest.approx(bound)
    assert client.close_info.code == 1011
    assert not client.close_info.clean


@pytest.mark.virtual_time
async def test_leaving_a_block_by_cancellation_is_shielded_and_bounded():
    with anyio.CancelScope() as scope:
        async with connected_pair() as (client, server):
            server._core.transport.pause()  # it hangs
            start = anyio.current_time()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - start == pytest.approx(1)
    assert client.close_info.code == 1001


@pytest.mark.virtual_time
async def test_cancelling_a_graceful_close_drops_the_connection_at_once():
    start = anyio.current_time()
    with anyio.move_on_after(2) as scope:
        async with connected_pair() as (client, server):
            server._core.transport.pause()  # it hangs
    assert scope.cancelled_caught
    assert anyio.current_time() - start == pytest.approx(2)
    assert isinstance(client.close_info.cause, ConnectionAbortedError)


async def test_garbage_after_we_have_failed_the_connection_changes_nothing():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"not text")
        with pytest.raises(ConnectionClosedError):
            await ws.receive_text()
        info = ws.close_info
        await peer.send(b"\xff\xff")
        await settle()
        assert ws.close_info is info


async def test_a_transport_that_breaks_while_it_is_shut_down():
    async with raw_peer() as (peer, ws):
        core = ws._core

        class Breaking:
            """As TLS does when its last words cannot be written."""

            def __getattr__(self, name):
                return getattr(transport, name)

            def shutdown(self):
                core.fail(BrokenPipeError("breaks"))

        transport, core.transport = core.transport, Breaking()
        await peer.send_close()
        await settle()
        assert ws.close_info == CloseInfo(1000, "", "peer", clean=True)
        await ws.aclose()


# Any two peers agree on the close


@given(
    waits=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    codes=st.tuples(st.sampled_from([1000, 1001, 4000]), st.sampled_from([1000, 1011, 3000])),
    messages=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    receive_buffer_size=st.sampled_from([100, 65536]),
)
async def test_any_two_peers_agree_on_the_close(waits, codes, messages, receive_buffer_size):
    async with (
        connected_pair(receive_buffer_size=receive_buffer_size) as ends,
        anyio.create_task_group() as tg,
    ):

        async def live(ws, wait, code, count):
            try:
                await ws.send_many([b"x" * 50] * count)
                Call(tg, ws.ping)
            except ConnectionClosedOK:
                pass
            for _ in range(wait):
                await checkpoint()
            await ws.aclose(code)

        calls = [Call(tg, live, *arguments) for arguments in zip(ends, waits, codes, messages, strict=True)]
        for call in calls:
            await call.wait()
        infos = [ws.close_info for ws in ends]
        assert all(info.clean for info in infos)
        began = [i for i in (0, 1) if infos[i].initiator == "local"]
        assert began
        for i in began:
            assert infos[i].code == codes[i]
        if len(began) == 1:
            assert infos[1 - began[0]].code == infos[began[0]].code


@given(steps=st.integers(0, 12), answer=st.booleans())
async def test_a_closer_cancelled_anywhere_has_closed_or_done_nothing(steps, answer):
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.aclose, 1001)
        for _ in range(steps):
            await checkpoint()
        if answer:
            await peer.send_close()
            peer.send_eof()
        call.cancel()
        await settle()
        if ws.close_info is None:
            await ws.send("still open")
        else:
            assert ws.close_info.code in (1000, 1001)
            assert ws._core.gone


async def test_a_close_code_that_is_no_int_is_a_type_error() -> None:
    async with connected_pair() as (client, _):
        with pytest.raises(TypeError, match="a close code is an int, not 'bye'"):
            await client.aclose("bye")  # type: ignore[arg-type]
