"""WebSocket: sending, receiving, pings and facts."""

import array
import json
import math
import random
from collections.abc import Callable

import anyio
import pytest
from anyio.abc import ObjectStream, SocketAttribute
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws import ConnectionClosedError, ConnectionClosedOK, ProtocolError, Server, WebSocket, connect
from anyio_ws.core import FRAGMENT
from anyio_ws.protocol import Opcode, encode_frame
from anyio_ws.testing import RawFrame, connected_pair, raw_peer
from support.tools import ROLES, Call, both_roles, fill, receive_messages, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


# Sending and receiving


@pytest.mark.parametrize("message", ["", "text", "päß€𝄞", b"", b"bytes", "x" * 200, b"y" * 70000, "z" * 70000])
async def test_a_message_arrives_as_it_was_sent_in_both_directions(message):
    async with connected_pair() as (client, server):
        await client.send(message)
        received = await server.receive()
        assert received == message
        assert type(received) is type(message)
        await server.send(message)
        assert await client.receive() == message


@both_roles
@pytest.mark.parametrize(
    ("item", "text", "opcode", "payload"),
    [
        ("text", None, TEXT, b"text"),
        (b"bytes", None, BINARY, b"bytes"),
        (bytearray(b"bytes"), None, BINARY, b"bytes"),
        (memoryview(b"bytes"), None, BINARY, b"bytes"),
        (memoryview(b"0123456789")[::1][2:4], None, BINARY, b"23"),
        (array.array("H", [0x4141, 0x4242]), None, BINARY, b"AABB"),
        ("text", True, TEXT, b"text"),
        ("text", False, BINARY, b"text"),
        (b"text", True, TEXT, b"text"),
        (bytearray(b"text"), True, TEXT, b"text"),
        (memoryview(b"text"), True, TEXT, b"text"),
        (b"bytes", False, BINARY, b"bytes"),
    ],
    ids=repr,
)
async def test_what_is_sent_decides_the_kind_of_frame_unless_text_says_so(role, item, text, opcode, payload):
    async with raw_peer(role) as (peer, ws):
        await ws.send(item, text=text)
        assert await peer.receive_frame() == RawFrame(opcode, payload)


@pytest.mark.parametrize("item", [None, 1, ["list"], object(), memoryview(b"01234567")[::2]], ids=repr)
async def test_anything_but_str_and_bytes_like_is_a_type_error(item):
    async with connected_pair() as (client, server):
        with pytest.raises(TypeError, match="str or bytes-like"):
            await client.send(item)
        with pytest.raises(TypeError, match="str or bytes-like"):
            await client.send_many(["first", item])
        await client.send("next")
        assert await server.receive() == "next"


@pytest.mark.parametrize(("item", "text"), [(b"\xff", True), (bytearray(b"\xc3"), True), ("\ud800", None)])
async def test_what_cannot_be_text_is_a_value_error_and_nothing_was_sent(item, text):
    async with connected_pair() as (client, server):
        with pytest.raises(ValueError):  # noqa: PT011  # UnicodeEncodeError says it itself
            await client.send(item, text=text)
        assert client.stats.messages_sent == client.stats.bytes_sent == 0
        await client.send("next")
        assert await server.receive() == "next"


async def test_a_sent_bytearray_may_be_changed_when_send_has_returned():
    async with raw_peer("client") as (peer, ws), anyio.create_task_group() as tg:
        payload = bytearray(b"a" * 60000)
        peer.pause()
        await ws.send(payload)  # the transport takes all of it
        await ws.send(payload)  # the transport takes a part
        call = Call(tg, ws.send, payload)  # the outbox takes all of it
        await settle()
        payload[:] = b"b" * 60000
        peer.resume()
        for _ in range(3):
            assert (await peer.receive_frame()).payload == b"a" * 60000
        await call.wait()


async def test_messages_of_many_senders_arrive_whole_and_first_come_first_served():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls, sent = await fill(peer, ws, tg)
        more = [bytes([100 + i]) * 1000 for i in range(5)]
        calls += [Call(tg, ws.send, message) for message in more[:1]]
        for message in more[1:]:
            await settle()
            calls.append(Call(tg, ws.send, message))
        await settle()
        peer.resume()
        for message in sent + more:
            assert (await peer.receive_frame()).payload == message
        for call in calls:
            await call.wait()


async def test_send_returns_when_less_than_write_buffer_size_waits():
    async with raw_peer(write_buffer_size=1000) as (peer, ws), anyio.create_task_group() as tg:
        peer.pause()
        await ws.send(b"x" * 65000)
        await ws.send(b"y" * 1000)  # with its header, less than 1000 bytes do not fit
        call = Call(tg, ws.send, b"z" * 1000)
        await settle()
        assert not call.done
        peer.resume()
        await call.wait()


async def test_replies_to_messages_that_arrived_together_leave_together_and_in_order():
    async with raw_peer() as (peer, ws):
        await peer.send(b"".join(encode_frame(TEXT, str(i), b"mask") for i in range(10)))
        for i in range(10):
            assert await ws.receive() == str(i)
            await ws.send(f"reply {i}")
        for i in range(10):
            assert await peer.receive_frame() == RawFrame(TEXT, b"reply %d" % i)


async def test_a_joined_reply_leaves_when_the_handler_awaits_something_else():
    async with raw_peer() as (peer, ws):
        await peer.send(encode_frame(TEXT, "1", b"mask") + encode_frame(TEXT, "2", b"mask"))
        assert await ws.receive() == "1"
        await ws.send("reply")
        assert await peer.receive_frame() == RawFrame(TEXT, b"reply")


async def test_joined_replies_leave_at_the_latest_when_they_fill_the_outbox():
    async with raw_peer(write_buffer_size=1000) as (peer, ws):
        await peer.send(encode_frame(TEXT, "1", b"mask") + encode_frame(TEXT, "2", b"mask"))
        assert await ws.receive() == "1"
        await ws.send(b"x" * 600)
        await ws.send(b"x" * 600)
        assert (await peer.receive_frame()).payload == b"x" * 600
        assert (await peer.receive_frame()).payload == b"x" * 600


async def test_flush_sends_what_was_joined():
    async with raw_peer() as (peer, ws):
        await peer.send(encode_frame(TEXT, "1", b"mask") + encode_frame(TEXT, "2", b"mask"))
        assert await ws.receive() == "1"
        await ws.send("reply")
        assert ws._outbox.size == 7
        await ws.flush()
        assert ws._outbox.size == 0


async def test_flush_waits_while_as_much_as_the_limit_is_not_sent():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _calls, sent = await fill(peer, ws, tg)
        call = Call(tg, ws.flush)
        await settle()
        assert not call.done
        peer.resume()
        for message in sent:
            assert (await peer.receive_frame()).payload == message
        await call.wait()


async def test_flush_of_an_ended_connection_raises():
    async with connected_pair() as (client, _server):
        await client.aclose()
        with pytest.raises(ConnectionClosedOK):
            await client.flush()


async def test_a_large_reply_keeps_its_place_behind_joined_ones():
    async with raw_peer() as (peer, ws):
        await peer.send(encode_frame(TEXT, "1", b"mask") + encode_frame(TEXT, "2", b"mask"))
        assert await ws.receive() == "1"
        await ws.send("small")
        await ws.send(b"large" * 10000)
        await ws.send(bytearray(b"LARGE" * 10000))
        assert (await peer.receive_frame()).payload == b"small"
        assert (await peer.receive_frame()).payload == b"large" * 10000
        assert (await peer.receive_frame()).payload == b"LARGE" * 10000


# Batches


async def test_send_many_sends_all_in_order_and_receive_many_returns_what_has_arrived():
    async with connected_pair() as (client, server):
        await client.send_many(["one", b"two", bytearray(b"three"), ""])
        assert await server.receive_many() == ["one", b"two", b"three", ""]


async def test_send_many_is_one_write():
    async with raw_peer() as (peer, ws):
        writes = []
        transport = ws._core.transport
        ws._core.outbox._transport = spy = Spy(transport, writes)
        assert spy is not transport
        await ws.send_many([b"x" * 10] * 100)
        assert len(writes) == 1
        assert len(await peer.receive(1200)) == 1200


class Spy:
    """A transport that notes what it is asked to write."""

    def __init__(self, transport, writes):
        self._transport = transport
        self._writes = writes

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def write(self, data):
        self._writes.append(len(data))
        return self._transport.write(data)

    def write_vector(self, buffers):
        self._writes.append(sum(map(len, buffers)))
        return self._transport.write_vector(buffers)


async def test_send_many_waits_at_write_buffer_size():
    async with raw_peer(write_buffer_size=1000) as (peer, ws), anyio.create_task_group() as tg:
        peer.pause()
        call = Call(tg, ws.send_many, [b"x" * 500] * 1000)
        await settle()
        assert not call.done
        assert ws.stats.messages_sent < 200
        peer.resume()
        for _ in range(1000):
            assert (await peer.receive_frame()).payload == b"x" * 500
        await call.wait()


async def test_send_many_sends_no_more_once_the_connection_is_closing():
    async with raw_peer(write_buffer_size=1000) as (peer, ws), anyio.create_task_group() as tg:
        peer.pause()
        call = Call(tg, ws.send_many, [b"x" * 500] * 1000)
        await settle()
        Call(tg, ws.aclose)
        with pytest.raises(ConnectionClosedOK):
            await call.wait()
        assert ws.stats.messages_sent < 200
        tg.cancel_scope.cancel()


async def test_send_many_waits_for_its_turn():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _calls, sent = await fill(peer, ws, tg)
        many = Call(tg, ws.send_many, [b"many", b"more"])
        await settle()
        after = Call(tg, ws.send, b"after")
        await settle()
        assert not many.done
        peer.resume()
        for message in [*sent, b"many", b"more", b"after"]:
            assert (await peer.receive_frame()).payload == message
        await many.wait()
        await after.wait()


async def test_send_many_sends_nothing_if_an_item_is_wrong():
    async with connected_pair(write_buffer_size=10) as (client, server):
        with pytest.raises(ValueError, match="surrogates"):
            await client.send_many(["long enough for a batch of its own", "\ud800"])
        assert client.stats.messages_sent == 0
        await client.send("next")
        assert await server.receive() == "next"


async def test_send_many_of_nothing_does_nothing():
    async with connected_pair() as (client, _server):
        await client.send_many([])
        assert client.stats.messages_sent == 0


async def test_send_many_fills_the_outbox_to_its_limit_in_bytes_whatever_the_text():
    async with raw_peer(write_buffer_size=10_000) as (peer, ws), anyio.create_task_group() as tg:
        peer.pause()
        Call(tg, ws.send_many, ["\u4e2d" * 100] * 1000)
        await settle()
        assert 10_000 <= ws._outbox.size < 10_400
        ws.abort()


async def test_send_many_lets_other_tasks_run_while_it_looks_at_its_items():
    async with connected_pair(receive_buffer_size=2**24) as (client, _server), anyio.create_task_group() as tg:
        budget = client._budget
        looks = []

        async def look():
            while True:
                looks.append(budget.sends)
                await anyio.lowlevel.checkpoint()

        def items():
            for _ in range(300):
                budget.sends = 0  # as if the time were over
                yield "x"

        tg.start_soon(look)
        await client.send_many(items())
        assert len(looks) >= 3
        tg.cancel_scope.cancel()


async def test_send_many_on_an_ended_connection_raises():
    async with connected_pair() as (client, _server):
        await client.aclose()
        with pytest.raises(ConnectionClosedOK):
            await client.send_many(["late"])
        with pytest.raises(ConnectionClosedOK):
            await client.send_many([])


async def test_receive_many_waits_for_at_least_one():
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        call = Call(tg, server.receive_many)
        await settle()
        assert not call.done
        await client.send("one")
        assert await call.wait() == ["one"]


async def test_receive_many_makes_room():
    async with connected_pair(receive_buffer_size=1000) as (client, server), anyio.create_task_group() as tg:
        messages = [bytes([i]) * 100 for i in range(100)]
        Call(tg, client.send_many, messages)
        received = []
        while len(received) < 100:
            received += await server.receive_many()
        assert received == messages


# Receiving


async def test_an_inbox_that_is_full_stops_reading_and_goes_on_when_half_of_it_is_free():
    async with connected_pair(receive_buffer_size=1000) as (client, server), anyio.create_task_group() as tg:
        messages = [bytes([i]) * 36 for i in range(100)]
        Call(tg, client.send_many, messages)
        await settle()
        assert server.stats.messages_received == 10
        for i in range(4):
            assert await server.receive() == messages[i]
        assert server.stats.messages_received == 10
        assert await server.receive() == messages[4]
        assert server.stats.messages_received == 15
        assert [await server.receive() for _ in range(95)] == messages[5:]


async def test_a_slow_consumer_that_never_empties_its_inbox_is_not_paused_while_there_is_room():
    async with raw_peer(receive_buffer_size=1000) as (peer, ws):
        core = ws._core
        messages = [bytes([i]) * 36 for i in range(200)]  # each counts 100
        frames = [encode_frame(BINARY, message, b"mask") for message in messages]
        await peer.send(b"".join(frames[:2]))
        await settle()
        for i in range(2, 100, 7):  # seven in one chunk, although the room that was last counted is for fewer
            await peer.send(b"".join(frames[i : i + 7]))
            await settle()
            assert len(core.inbox.messages) == 9
            assert not core.inbox.paused
            assert [await ws.receive() for _ in range(7)] == messages[i - 2 : i + 5]
        following = i + 7
        for i in range(following, 200):
            await peer.send(frames[i])
            await settle()
            assert len(core.inbox.messages) == 3
            assert not core.inbox.paused
            assert await ws.receive() == messages[i - 2]


@given(
    actions=st.lists(
        st.lists(st.text(max_size=200) | st.binary(max_size=200) | st.just(b"x" * 5000), max_size=8)
        | st.integers(1, 8),
        max_size=30,
    ),
    limit=st.sampled_from([1, 64, 65, 300, 1000, 2000]),
)
async def test_reading_pauses_when_the_inbox_is_full_and_goes_on_when_half_of_it_is_free(actions, limit):
    async with raw_peer(receive_buffer_size=limit) as (peer, ws), anyio.create_task_group() as tg:
        waiting, inbox, paused = [], [], False  # what must be

        def unread():
            return sum(len(message) + 64 for message in inbox)

        for action in actions:
            if isinstance(action, list):
                waiting += action
                frames = [encode_frame(TEXT if type(item) is str else BINARY, item, b"mask") for item in action]
                Call(tg, peer.send, b"".join(frames))
            else:
                for _ in range(min(action, len(inbox))):
                    received = await ws.receive()
                    expected = inbox.pop(0)
                    assert (type(received), received) == (type(expected), expected)
                    await settle()
                    if paused and 2 * (limit - unread()) >= limit:
                        paused = False
                    while waiting and not paused:
                        inbox.append(waiting.pop(0))
                        paused = unread() >= limit
            await settle()
            while waiting and not paused:
                inbox.append(waiting.pop(0))
                paused = unread() >= limit
            assert ws._core.inbox.messages == inbox[::-1]
            assert ws._core.inbox.paused == paused
        tg.cancel_scope.cancel()


class Reads:
    """Lets a test be the transport: what it says has been read, in the middle of a tick."""

    def __init__(self, ws):
        self._core = ws._core

    def __call__(self, data):
        self._core.get_buffer()[: len(data)] = data
        self._core.received(len(data))


async def test_one_message_that_somebody_waits_for_does_not_pause_reading_however_large_it_is():
    async with raw_peer(receive_buffer_size=1000) as (_peer, ws), anyio.create_task_group() as tg:
        read = Reads(ws)
        for _ in range(3):
            call = Call(tg, ws.receive)
            await settle()
            read(encode_frame(BINARY, bytes(5000), b"mask"))
            assert not ws._core.inbox.paused
            assert await call.wait() == bytes(5000)
            assert not ws._core.inbox.paused


async def test_two_messages_are_too_many_for_a_full_inbox_although_somebody_waits():
    async with raw_peer(receive_buffer_size=1000) as (_peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.receive)
        await settle()
        Reads(ws)(encode_frame(BINARY, bytes(500), b"mask") * 2)
        assert ws._core.inbox.paused
        await call.wait()
        assert ws._core.inbox.paused  # not half of it is free
        await ws.receive()
        assert not ws._core.inbox.paused


@pytest.mark.parametrize("cancel", [False, True])
async def test_the_next_read_pauses_if_the_one_who_waited_has_not_taken_the_message(cancel):
    async with raw_peer(receive_buffer_size=1000) as (_peer, ws), anyio.create_task_group() as tg:
        read = Reads(ws)
        call = Call(tg, ws.receive)
        await settle()
        if cancel:
            call.cancel()
        read(encode_frame(BINARY, bytes(5000), b"mask"))
        assert not ws._core.inbox.paused
        if cancel:
            await settle()
            assert call.cancelled
        read(encode_frame(TEXT, "next", b"mask") * 2)
        assert ws._core.inbox.paused
        assert list(ws._core.inbox.messages) == [bytes(5000)]
        received = [await ws.receive() for _ in range(3)] if cancel else [await call.wait(), *await ws.receive_many()]
        assert received == [bytes(5000), "next", "next"]
        assert not ws._core.inbox.paused


async def test_receive_many_empties_a_full_inbox_and_lets_reading_go_on():
    async with raw_peer(receive_buffer_size=1000) as (peer, ws):
        messages = [bytes([i]) * 36 for i in range(25)]
        await peer.send(b"".join(encode_frame(BINARY, message, b"mask") for message in messages))
        await settle()
        assert ws._core.inbox.paused
        assert await ws.receive_many() == messages[:10]
        await settle()
        assert ws._core.inbox.messages == messages[10:20][::-1]
        assert ws._core.inbox.paused


@given(
    messages=st.lists(st.text(max_size=300) | st.binary(max_size=300), max_size=20),
    receive_buffer_size=st.integers(1, 2000),
    write_buffer_size=st.integers(1, 2000),
)
async def test_any_messages_arrive_whatever_the_buffers(messages, receive_buffer_size, write_buffer_size):
    async with (
        connected_pair(receive_buffer_size=receive_buffer_size, write_buffer_size=write_buffer_size) as (a, b),
        anyio.create_task_group() as tg,
    ):
        calls = [Call(tg, a.send_many, messages)]
        received = [await b.receive() for _ in messages]
        assert received == messages
        for call in calls:
            await call.wait()


@both_roles
async def test_a_fragmented_message_is_one_message(role):
    async with raw_peer(role) as (peer, ws):
        await peer.send_frame(TEXT, b"frag", fin=False)
        await peer.send_frame(PING, b"between")
        await peer.send_frame(CONT, b"ment", fin=False)
        await peer.send_frame(CONT, b"ed")
        assert await ws.receive() == "fragmented"
        assert await peer.receive_frame() == RawFrame(PONG, b"between")


@both_roles
async def test_a_large_message_goes_through_memory_of_its_own(role):
    payload = bytes(range(256)) * 2000
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, peer.send_frame, BINARY, payload)
        assert await ws.receive() == payload
        await call.wait()


async def test_a_second_receiver_gets_an_error_that_names_both_tasks():
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        first = Call(tg, server.receive)
        await settle()
        second = Call(tg, server.receive_text)
        await settle()
        with pytest.raises(anyio.BusyResourceError, match=r"call of receive.*call of receive") as caught:
            await second.wait()
        assert str(caught.value).count("call of receive_text") == 1
        await client.send("for the first")
        assert await first.wait() == "for the first"


async def test_a_second_receiver_is_refused_even_if_a_message_is_there():
    async with raw_peer() as (_peer, ws), anyio.create_task_group() as tg:
        first = Call(tg, ws.receive)
        await settle()
        core = ws._core
        core.inbox.messages.append("arrived, and the first receiver was not scheduled yet")
        with pytest.raises(anyio.BusyResourceError):
            await ws.receive()
        core.inbox.waiter.wake()
        assert (await first.wait()).startswith("arrived")


async def test_a_receiver_may_follow_another():
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        first = Call(tg, server.receive)
        await settle()
        first.cancel()
        await settle()
        await client.send("for the second")
        assert await server.receive() == "for the second"


async def test_messages_that_arrived_before_the_end_are_received_first():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(TEXT, b"last words")
        peer.close()
        await settle()
        assert ws.close_info is not None
        assert await ws.receive() == "last words"
        with pytest.raises(ConnectionClosedError):
            await ws.receive()


@both_roles
async def test_undecoded_bytes_outlive_a_connection_that_broke(role):
    key = b"mask" if role == "client" else None
    async with raw_peer(role, receive_buffer_size=100) as (peer, ws):
        await peer.send(
            b"".join(encode_frame(TEXT, str(i), key) for i in range(20))
            + encode_frame(PING, b"never answered", key)
            + encode_frame(CLOSE, b"\x03\xe8", key)
        )
        await settle()
        ws.abort()
        assert [await ws.receive() for _ in range(20)] == [str(i) for i in range(20)]
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.close_info.code == 1006
        assert ws.stats.pongs_sent == 0


# Typed receiving


async def test_receive_text_returns_str():
    async with connected_pair() as (client, server):
        await client.send("text")
        assert await server.receive_text() == "text"


async def test_receive_text_closes_with_1003_if_the_message_is_binary():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"12345")
        await peer.send_frame(TEXT, b"discarded")
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive_text()
        cause = caught.value.__cause__
        assert isinstance(cause, ProtocolError)
        assert str(cause) == "a binary message of 5 bytes came, expected text (receive_text)"
        assert caught.value.close_info is ws.close_info
        assert (ws.close_info.code, ws.close_info.initiator, ws.close_info.cause) == (1003, "local", cause)
        frame = await peer.receive_frame()
        assert frame == RawFrame(CLOSE, b"\x03\xeb" + str(cause).encode())
        with pytest.raises(ConnectionClosedError):
            await ws.receive()


async def test_receive_text_says_what_came_even_if_the_connection_has_ended_in_good_order():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(BINARY, b"12345")
        await peer.send_close()
        await settle()
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive_text()
        assert isinstance(caught.value.__cause__, ProtocolError)
        assert caught.value.close_info is ws.close_info
        assert ws.close_info.code == 1000


async def test_receive_bytes_returns_the_payload_of_either_kind():
    async with connected_pair() as (client, server):
        await client.send("tëxt")
        await client.send(b"bytes")
        assert await server.receive_bytes() == "tëxt".encode()
        assert await server.receive_bytes() == b"bytes"


async def test_json_of_either_kind_is_received():
    async with connected_pair() as (client, server):
        await client.send_json({"a": [1, None]})
        await client.send(b'"binary"')
        assert await server.receive_json() == {"a": [1, None]}
        assert await server.receive_json() == "binary"


@pytest.mark.parametrize(
    ("opcode", "payload", "description"),
    [
        (TEXT, b"nonsense", "a text message of 8 characters came that is not JSON (receive_json)"),
        (BINARY, b"\xff\xff", "a binary message of 2 bytes came that is not JSON (receive_json)"),
        (TEXT, b"", "a text message of 0 characters came that is not JSON (receive_json)"),
    ],
)
async def test_receive_json_closes_with_1007_if_it_is_not_json(opcode, payload, description):
    async with raw_peer() as (peer, ws):
        await peer.send_frame(opcode, payload)
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive_json()
        cause = caught.value.__cause__
        assert isinstance(cause, ProtocolError)
        assert isinstance(cause.__cause__, ValueError)
        assert str(cause) == description
        assert ws.close_info.code == 1007
        assert await peer.receive_frame() == RawFrame(CLOSE, b"\x03\xef" + description.encode())


async def test_json_that_is_nested_too_deeply_closes_with_1007():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(TEXT, b"[" * 200_000)
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive_json()
        assert caught.value.close_info.code == 1007
        assert isinstance(caught.value.__cause__.__cause__, RecursionError)
        assert (await peer.receive_frame()).payload[:2] == b"\x03\xef"


async def test_json_is_whatever_has_dumps_and_loads():
    class Upper:
        @staticmethod
        def dumps(obj):
            return json.dumps(obj).upper().encode()

        @staticmethod
        def loads(data):
            return data.lower()

    async with connected_pair(json=Upper) as (client, server):
        await client.send_json("abc")
        assert await server.receive() == '"ABC"'
        await server.send_json("abc")
        assert await client.receive_json() == '"abc"'


async def test_an_error_of_dumps_comes_out_and_nothing_was_sent():
    async with connected_pair() as (client, _server):
        with pytest.raises(TypeError, match="not JSON serializable"):
            await client.send_json(object())
        assert client.stats.messages_sent == 0


# Iterating

ITERATORS: dict[str, Callable[[WebSocket], object]] = {
    "aiter": WebSocket.__aiter__,
    "text": WebSocket.iter_text,
    "bytes": WebSocket.iter_bytes,
    "json": WebSocket.iter_json,
}
iterators = pytest.mark.parametrize("name", ITERATORS)
EXPECTED = {"aiter": ["1", "2"], "text": ["1", "2"], "bytes": [b"1", b"2"], "json": [1, 2]}


@iterators
async def test_iterating_ends_when_the_end_was_clean(name):
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        await client.send_many(["1", "2"])
        call = Call(tg, client.aclose)
        assert [item async for item in ITERATORS[name](server)] == EXPECTED[name]
        await call.wait()


@iterators
async def test_iterating_raises_when_the_end_was_not_clean(name):
    async with connected_pair() as (client, server):
        await client.send_many(["1", "2"])
        received = []
        with pytest.raises(ConnectionClosedError):
            async for item in ITERATORS[name](server):
                received.append(item)
                if len(received) == 2:
                    client.abort()
        assert received == EXPECTED[name]


@iterators
async def test_an_iterator_may_be_abandoned_and_another_goes_on(name):
    async with connected_pair() as (client, server):
        await client.send_many(["1", "2"])
        async for _item in ITERATORS[name](server):
            break
        async for item in ITERATORS[name](server):
            assert item == EXPECTED[name][1]
            break


# Pings


@both_roles
async def test_a_ping_is_answered_whether_or_not_anyone_receives(role):
    async with raw_peer(role) as (peer, _ws):
        await peer.send_frame(PING, b"payload")
        assert await peer.receive_frame() == RawFrame(PONG, b"payload")


@both_roles
async def test_each_ping_of_a_chunk_is_answered(role):
    key = b"mask" if role == "client" else None
    async with raw_peer(role) as (peer, ws):
        await peer.send(b"".join(encode_frame(PING, b"%d" % i, key) for i in range(10)))
        for i in range(10):
            assert await peer.receive_frame() == RawFrame(PONG, b"%d" % i)
        assert ws.stats.pings_received == ws.stats.pongs_sent == 10


async def test_while_one_pong_waits_to_be_sent_only_the_latest_ping_is_owed_one():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        _calls, sent = await fill(peer, ws, tg)
        for i in range(10):
            await peer.send_frame(PING, b"%d" % i)
        await settle()
        peer.resume()
        received = [await peer.receive_frame() for _ in range(len(sent) + 2)]
        assert [frame.payload for frame in received if frame.opcode == BINARY] == sent
        assert [frame.payload for frame in received if frame.opcode == PONG] == [b"0", b"9"]
        assert (ws.stats.pings_received, ws.stats.pongs_sent) == (10, 2)


@pytest.mark.parametrize("role", ROLES)
async def test_a_large_message_leaves_in_fragments_and_control_frames_go_between(role):
    message = random.randbytes(2_500_000)
    async with raw_peer(role) as (peer, ws), anyio.create_task_group() as tg:
        peer.pause()
        sent = Call(tg, ws.send, message)
        await settle()
        await peer.send_frame(PING, b"now")
        await settle()
        tg.start_soon(ws.ping, b"too")
        await settle()
        peer.resume()
        received = [await peer.receive_frame() for _ in range(math.ceil(len(message) / FRAGMENT) + 2)]
        await sent.wait()
        fragments = [frame for frame in received if frame.opcode in (CONT, BINARY)]
        assert b"".join(frame.payload for frame in fragments) == message
        assert max(len(frame.payload) for frame in fragments) == FRAGMENT
        assert [frame.opcode for frame in fragments] == [BINARY, *[CONT] * (len(fragments) - 1)]
        assert [frame.fin for frame in fragments] == [*[False] * (len(fragments) - 1), True]
        controls = [(frame.opcode, frame.payload) for frame in received if frame.opcode in (PING, PONG)]
        assert controls == [(PONG, b"now"), (PING, b"too")]
        assert [frame.opcode for frame in received[1:3]] == [PONG, PING]  # behind the fragment that had begun
        assert ws.stats.messages_sent == 1
        tg.cancel_scope.cancel()


async def test_a_close_comes_behind_a_large_message():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        peer.pause()
        tg.start_soon(ws.send, "é" * 1_000_000)
        await settle()
        tg.start_soon(ws.aclose)
        await settle()
        peer.resume()
        text = await receive_messages(peer)
        assert b"".join(text).decode() == "é" * 1_000_000
        await peer.send_close()
        peer.close()


@pytest.mark.virtual_time
async def test_ping_returns_the_round_trip_time():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        assert ws.latency is None
        call = Call(tg, ws.ping)
        frame = await peer.receive_frame()
        assert frame.opcode == PING
        await anyio.sleep(0.25)
        await peer.send_frame(PONG, frame.payload)
        assert await call.wait() == pytest.approx(0.25)
        assert ws.latency == pytest.approx(0.25)


@pytest.mark.parametrize("data", [b"", b"data", "däta", bytearray(b"data"), b"x" * 125])
async def test_ping_carries_the_given_data(data):
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.ping, data)
        payload = data.encode() if isinstance(data, str) else bytes(data)
        assert await peer.receive_frame() == RawFrame(PING, payload)
        await peer.send_frame(PONG, payload)
        assert await call.wait() >= 0


async def test_both_ends_may_ping_at_once():
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        calls = [Call(tg, end.ping) for end in (client, server, client, server)]
        for call in calls:
            assert await call.wait() >= 0


async def test_a_pong_answers_the_pings_before_it_too():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        calls = [Call(tg, ws.ping, data) for data in (b"1",)]
        await settle()
        calls += [Call(tg, ws.ping, b"2")]
        await settle()
        calls += [Call(tg, ws.ping, b"3")]
        await settle()
        await peer.send_frame(PONG, b"2")
        await calls[0].wait()
        await calls[1].wait()
        await settle()
        assert not calls[2].done
        tg.cancel_scope.cancel()


async def test_a_pong_that_answers_nothing_is_ignored():
    async with raw_peer() as (peer, ws):
        await peer.send_frame(PONG, b"unsolicited")
        await peer.send_frame(TEXT, b"next")
        assert await ws.receive() == "next"
        assert ws.latency is None
        assert ws.stats.pongs_received == 1


async def test_a_ping_of_more_than_125_bytes_is_a_value_error():
    async with raw_peer() as (_peer, ws):
        with pytest.raises(ValueError, match="at most 125 bytes"):
            await ws.ping(b"x" * 126)


async def test_a_ping_whose_data_is_in_flight_is_a_value_error():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.ping, b"data")
        await settle()
        with pytest.raises(ValueError, match="in flight already"):
            await ws.ping(b"data")
        await peer.send_frame(PONG, b"data")
        await call.wait()


async def test_the_data_of_a_cancelled_ping_may_be_used_again():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.ping, b"data")
        await settle()
        call.cancel()
        await settle()
        again = Call(tg, ws.ping, b"data")
        await settle()
        await peer.send_frame(PONG, b"data")
        await again.wait()


async def test_a_ping_raises_when_the_connection_ends_first():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.ping)
        await settle()
        peer.close()
        with pytest.raises(ConnectionClosedError):
            await call.wait()


async def test_a_ping_raises_when_the_connection_breaks_in_the_call():
    async with raw_peer() as (peer, ws):
        peer._transport.closed = True  # nobody has noticed yet
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.ping()
        assert isinstance(caught.value.__cause__, BrokenPipeError)


async def test_a_ping_on_an_ended_connection_raises():
    async with connected_pair() as (client, _server):
        await client.aclose()
        with pytest.raises(ConnectionClosedOK):
            await client.ping()


# A connection that breaks while something is sent


@pytest.mark.parametrize("size", [10, 100000])
@both_roles
async def test_a_send_that_finds_the_connection_broken_raises(role, size):
    async with raw_peer(role) as (peer, ws):
        peer._transport.closed = True  # nobody has noticed yet
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.send(b"x" * size)
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        assert ws._outbox.size == 0
        with pytest.raises(ConnectionClosedError):
            await ws.send("again")


async def test_a_deferred_write_that_fails_is_raised_by_the_next_call():
    async with raw_peer() as (peer, ws):
        await peer.send(encode_frame(TEXT, "1", b"mask") + encode_frame(TEXT, "2", b"mask"))
        assert await ws.receive() == "1"
        await ws.send("joined")
        peer._transport.closed = True
        await settle()
        assert await ws.receive() == "2"
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert isinstance(caught.value.__cause__, BrokenPipeError)


async def test_a_receiver_whose_joined_replies_cannot_be_sent_gets_the_error():
    async with raw_peer() as (peer, ws):
        await peer.send(encode_frame(TEXT, "1", b"mask") + encode_frame(TEXT, "2", b"mask"))
        assert await ws.receive() == "1"
        await ws.send("joined")
        assert await ws.receive() == "2"
        peer._transport.closed = True
        with pytest.raises(ConnectionClosedError):
            await ws.receive()


# Facts


async def test_it_is_an_object_stream():
    async with connected_pair() as (client, _server):
        assert isinstance(client, ObjectStream)
        with pytest.raises(NotImplementedError, match="use aclose"):
            await client.send_eof()


async def test_both_ends_know_the_handshake():
    async with connected_pair(target="/chat?room=1", headers={"X-Test": "yes"}, subprotocols=["v2", "v1"]) as (
        client,
        server,
    ):
        assert server.request.path == client.request.path == "/chat"
        assert server.request.query["room"] == "1"
        assert server.request.headers["X-Test"] == "yes"
        assert client.response.status_code == server.response.status_code == 101
        assert client.subprotocol == server.subprotocol == "v2"
        assert client.remote_address is client.local_address is None


async def test_ids_are_eight_digits_that_differ():
    async with connected_pair() as (client, server):
        assert len(client.id) == 8
        assert int(client.id, 16) >= 0
        assert client.id == client.id
        assert client.id != server.id


async def test_repr_says_side_path_and_state_and_no_query():
    async with connected_pair(target="/path?token=secret") as (client, server):
        assert repr(client) == f"<WebSocket {client.id} client '/path' open>"
        assert repr(server) == f"<WebSocket {server.id} server '/path' open>"
        await client.aclose(4000, "done")
        assert repr(client) == f"<WebSocket {client.id} client '/path' ended: 4000 'done' from here>"


async def test_repr_is_one_line_whatever_the_peer_wrote():
    async with connected_pair(target="/a%0aFAKE%1b[31m") as (_client, server):
        assert repr(server) == f"<WebSocket {server.id} server '/a\\nFAKE\\x1b[31m' open>"


async def test_a_close_reason_that_cannot_be_sent_is_refused():
    async with connected_pair() as (client, server):
        with pytest.raises(ValueError, match=r"close reason '\\ud800' has surrogates"):
            await client.aclose(1000, "\ud800")
        await client.send("still open")
        assert await server.receive() == "still open"


async def test_attributes_that_memory_does_not_have_are_a_lookup_error():
    async with connected_pair() as (client, _server):
        assert client.extra(SocketAttribute.remote_port, None) is None
        with pytest.raises(anyio.TypedAttributeLookupError):
            client.extra(SocketAttribute.remote_port)


@pytest.mark.virtual_time
async def test_stats_count_messages_frames_and_bytes_in_both_directions():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        start = ws.stats.last_received
        await anyio.sleep(1)
        await peer.send_frame(TEXT, b"12345")  # 11 bytes
        await peer.send_frame(TEXT, b"1", fin=False)  # 7
        await peer.send_frame(CONT, b"2")  # 7
        await peer.send_frame(PING, b"1234")  # 10
        assert await ws.receive() == "12345"
        assert await ws.receive() == "12"
        await ws.send("12345")  # 7
        call = Call(tg, ws.ping, b"p")  # 3
        await settle()
        await peer.send_frame(PONG, b"p")  # 7
        await call.wait()
        await peer.send_close()  # 8, answered by 4
        await settle()
        stats = ws.stats
        assert stats.messages_received == 2
        assert stats.messages_sent == 1
        assert stats.frames_received == 6
        assert stats.frames_sent == 4  # with the Pong of 6
        assert stats.bytes_received == 11 + 7 + 7 + 10 + 7 + 8
        assert stats.bytes_sent == 7 + 3 + 6 + 4
        assert (stats.pings_received, stats.pings_sent, stats.pongs_received, stats.pongs_sent) == (1, 1, 1, 1)
        assert stats.last_received == start + 1


async def test_received_messages_arrive_in_one_piece_for_a_receiver_that_waits():
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.receive)
        for byte in bytes.fromhex("81 85 37 fa 21 3d 7f 9f 4d 51 58"):
            await peer.send(bytes([byte]))
            await checkpoint()
        assert await call.wait() == "Hello"


async def test_the_peer_sees_all_messages_before_the_close():
    async with raw_peer("server") as (peer, ws), anyio.create_task_group() as tg:
        await ws.send_many([b"1", b"2"])
        Call(tg, ws.aclose)
        assert await receive_messages(peer) == [b"1", b"2"]
        peer.close()


@pytest.mark.real_time
async def test_addresses_of_sockets():
    addresses = []

    async def handler(ws):
        addresses.extend([ws.local_address, ws.remote_address])
        await ws.wait_closed()

    async with Server(handler, "127.0.0.1", 0) as server:
        async with connect(server.url) as ws:
            assert ws.remote_address == ("127.0.0.1", server.port)
            assert ws.local_address[0] == "127.0.0.1"
            local = ws.local_address
        assert ws.local_address is None
    assert addresses == [("127.0.0.1", server.port), local]
