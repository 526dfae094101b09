"""The option overflow: what happens when the receive buffer is full."""

import random
import tracemalloc

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import ConnectionClosedError, ConnectionClosedOK, Options, ProtocolError, WebSocket
from anyio_ws.overflow import Backlog
from anyio_ws.protocol import IMPLEMENTATION, Opcode, encode_close, encode_frame
from anyio_ws.testing import MemoryServer, RawPeer, connected_pair, raw_peer
from support.tools import Call, both_roles, settle

KEY = b"\x37\xfa\x21\x3d"
DROPPING = ["drop_oldest", "drop_newest", "latest"]
POLICIES = [*DROPPING, "close"]


def cost(message: str | bytes) -> int:
    return len(message) + 64


def frames(*messages: str | bytes) -> bytes:
    """Messages as a client sends them."""
    return b"".join(encode_frame(1 if isinstance(message, str) else 2, message, KEY) for message in messages)


async def arrive(peer: RawPeer, data: bytes) -> None:
    await peer.send(data)
    await settle()


async def rest(ws: WebSocket) -> list[str | bytes]:
    """What can be received, as the last thing before the end."""
    messages = []
    with pytest.raises((ConnectionClosedOK, ConnectionClosedError)):
        while True:
            messages.append(await ws.receive())
    return messages


# The option


@pytest.mark.parametrize("policy", ["backpressure", *POLICIES])
def test_policies_that_are_accepted(policy):
    assert Options(overflow=policy).overflow == policy


@pytest.mark.parametrize("policy", [None, True, "", "block", "Latest", 1, b"latest"])
def test_others_are_refused_and_the_error_names_them_all(policy):
    expected = "overflow must be 'backpressure', 'drop_oldest', 'drop_newest', 'latest' or 'close', not "
    with pytest.raises(ValueError, match=f"^{expected}{policy!r}$"):
        Options(overflow=policy)


# A model: one message at a time, and sums over all that wait


class Model:
    """What is to be received; the oldest first."""

    def __init__(self, policy: str, limit: int) -> None:
        self.policy = policy
        self.limit = 1 if policy == "latest" else limit
        self.waiting: list[str | bytes] = []
        self.dropped = 0
        self.closed = False

    def arrive(self, message: str | bytes) -> None:
        if self.closed:
            return
        self.waiting.append(message)
        while sum(map(cost, self.waiting)) > self.limit and len(self.waiting) > 1:
            self.dropped += 1
            if self.policy in ("drop_oldest", "latest"):
                del self.waiting[0]
            else:
                del self.waiting[-1]
                self.closed = self.policy == "close"


sizes = st.one_of(st.integers(0, 100), st.integers(400, 2000))
scripts = st.lists(
    st.one_of(st.lists(sizes, min_size=1, max_size=12), st.sampled_from(["receive", "receive many"])), max_size=20
)
limits = st.sampled_from([1, 64, 128, 200, 640, 1000, 10**6])


def numbered(size: int, number: int) -> str | bytes:
    """Messages that differ, text and binary."""
    data = number.to_bytes(2) + bytes(size)
    return data.hex() if number % 3 == 0 else data


@given(policy=st.sampled_from(DROPPING), limit=limits, script=scripts)
def test_the_backlog_does_what_the_model_does(policy, limit, script):
    backlog, model = Backlog(policy, limit), Model(policy, limit)
    inbox: list[str | bytes] = []
    number = 0
    for step in script:
        if isinstance(step, list):
            messages = []
            for size in step:
                number += 1
                messages.append(numbered(size, number))
                model.arrive(messages[-1])
            inbox[:0] = reversed(messages)
            backlog.arrived(inbox, len(messages), False)
        elif step == "receive many":
            inbox.clear()
            backlog.taken(inbox, 0)
            model.waiting.clear()
        elif inbox:
            backlog.taken(inbox, len(inbox.pop()))
            del model.waiting[0]
        assert inbox[::-1] == model.waiting
        assert backlog.dropped == model.dropped


@settings(max_examples=40)
@given(policy=st.sampled_from(POLICIES), limit=limits, script=scripts, chunk=st.sampled_from([1, 7, 500, 10**6]))
async def test_a_connection_does_what_the_model_does_however_its_bytes_are_cut(policy, limit, script, chunk):
    model = Model(policy, limit)
    number = 0
    async with raw_peer(overflow=policy, receive_buffer_size=limit, max_size=None) as (peer, ws):
        for step in script:
            if isinstance(step, list):
                data = b""
                for size in step:
                    number += 1
                    data += frames(numbered(size, number))
                    model.arrive(numbered(size, number))
                for start in range(0, len(data), max(chunk, len(data) // 20)):
                    await peer.send(data[start : start + max(chunk, len(data) // 20)])
                await settle()
            elif not model.waiting:
                continue
            elif step == "receive many":
                assert await ws.receive_many() == model.waiting
                model.waiting.clear()
            else:
                assert await ws.receive() == model.waiting.pop(0)
            assert ws._core.inbox.messages[::-1] == model.waiting
            assert ws.stats.messages_dropped == model.dropped
            assert (ws.close_info is not None) == model.closed
        if not model.closed:
            assert ws.stats.messages_received == number
            await peer.send_close()
        assert await rest(ws) == model.waiting


# What is kept


@pytest.mark.parametrize(
    ("policy", "kept"), [("drop_oldest", [b"2" * 36, b"3" * 36]), ("drop_newest", [b"0" * 36, b"1" * 36]),
                         ("latest", [b"3" * 36])],
)  # fmt: skip
async def test_what_each_policy_keeps(policy, kept):
    async with raw_peer(overflow=policy, receive_buffer_size=200) as (peer, ws):
        await arrive(peer, frames(*(b"%d" % number * 36 for number in range(4))))
        assert not ws._core.inbox.paused
        assert await ws.receive_many() == kept
        assert ws.stats.messages_received == 4
        assert ws.stats.messages_dropped == 4 - len(kept)


async def test_a_message_that_fits_behind_one_that_did_not_is_kept():
    async with raw_peer(overflow="drop_newest", receive_buffer_size=200) as (peer, ws):
        await arrive(peer, frames(b"first", b"too large" * 10, b"second"))
        assert await ws.receive_many() == [b"first", b"second"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_message_larger_than_the_buffer_is_kept_if_it_is_alone(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=100) as (peer, ws):
        await arrive(peer, frames(bytes(5000)))
        assert await ws.receive() == bytes(5000)
        assert ws.close_info is None
        assert ws.stats.messages_dropped == 0


@pytest.mark.parametrize("policy", POLICIES)
async def test_nothing_is_dropped_while_the_application_keeps_up(policy):
    async with connected_pair(overflow=policy, receive_buffer_size=200) as (client, server):
        for number in range(100):
            await client.send(str(number) * 10)
            assert await server.receive() == str(number) * 10
        assert server.stats.messages_dropped == 0


@pytest.mark.parametrize("policy", POLICIES)
async def test_what_was_taken_makes_room_at_once(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=200) as (peer, ws):
        for _ in range(5):
            await arrive(peer, frames(b"a"))
            assert await ws.receive() == b"a"
            await arrive(peer, frames(b"b"))
            assert await ws.receive_many() == [b"b"]
        assert ws.stats.messages_dropped == 0


# Somebody waits


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_task_that_waits_gets_the_next_message_whatever_comes_with_it(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=100) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.receive)
        await settle()
        await arrive(peer, frames(b"next", b"2" * 30, b"3" * 30))
        assert await call.wait() == b"next"
        assert await ws.receive() == (b"3" * 30 if policy in ("drop_oldest", "latest") else b"2" * 30)
        assert ws.stats.messages_dropped == 1
        assert (ws.close_info is not None) == (policy == "close")


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_message_that_is_waited_for_takes_no_room(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=100) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.receive)
        await settle()
        await arrive(peer, frames(bytes(1000), b"2" * 30))
        assert await call.wait() == bytes(1000)
        assert await ws.receive() == b"2" * 30
        assert ws.stats.messages_dropped == 0


async def test_who_receives_a_message_in_parts_waits_for_none_behind_it():
    async with raw_peer(overflow="latest") as (peer, ws):
        await arrive(peer, encode_frame(2, b"begin", KEY, False))
        async with ws.receive_stream() as stream:
            await arrive(peer, encode_frame(0, b"end", KEY) + frames("1"))
            assert [chunk async for chunk in stream] == [b"begin", b"end"]
            await arrive(peer, frames("2"))
            await arrive(peer, frames("3"))
        assert await ws.receive() == "3"
        assert ws.stats.messages_dropped == 2


@pytest.mark.parametrize("policy", DROPPING)
async def test_a_receiver_that_is_cancelled_leaves_its_message_to_the_next(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=100) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.receive)
        await settle()
        core = ws._core
        buffer = core.get_buffer()
        data = frames(b"1" * 30, b"2" * 30, b"3" * 30)
        buffer[: len(data)] = data
        core.received(len(data))  # in the tick in which the receiver is cancelled
        call.cancel()
        await settle()
        messages = [b"1" * 30, b"2" * 30] if policy == "drop_newest" else [b"1" * 30, b"3" * 30]
        assert not call.cancelled or core.inbox.messages[::-1] == messages
        received = [call.result] if call.result else []
        assert received + await ws.receive_many() == messages
        await arrive(peer, frames(b"4" * 30))
        assert await ws.receive() == b"4" * 30
        assert ws.stats.messages_dropped == 1


@given(script=st.lists(st.one_of(st.none(), st.integers(1, 30)), max_size=15), policy=st.sampled_from(DROPPING))
@settings(max_examples=30)
async def test_receivers_cancelled_anywhere_lose_only_what_was_dropped(script, policy):
    """None begins a receive or cancels it; a number is how many messages arrive at once."""
    received: list[str | bytes] = []
    number = 0

    async def one() -> None:
        received.append(await ws.receive())

    async with raw_peer(overflow=policy, receive_buffer_size=500) as (peer, ws), anyio.create_task_group() as tg:
        call: Call | None = None
        for step in script:
            if step is None:
                if call is None or call.done:
                    call = Call(tg, one)
                else:
                    call.cancel()
            else:
                await peer.send(frames(*(f"{number + i:04}" for i in range(step))))
                number += step
            await settle()
        tg.cancel_scope.cancel()
    received += reversed(ws._core.inbox.messages)
    assert len(received) + ws.stats.messages_dropped == number
    assert received == sorted(set(received))


# Floods


@pytest.mark.parametrize("policy", DROPPING)
async def test_a_flood_takes_bounded_memory_and_the_slow_consumer_gets_its_share(policy):
    count = 100_000 if IMPLEMENTATION == "c" else 20_000  # tracing its allocations makes Python slower still
    flood = [frames(*(number.to_bytes(4) for number in range(start, start + 5000))) for start in range(0, count, 5000)]
    received = []
    async with raw_peer(overflow=policy) as (peer, ws):
        tracemalloc.start()
        try:
            for data in flood:
                await peer.send(data)
                received.append(int.from_bytes(await ws.receive()))
                assert len(ws._core.inbox.messages) <= 65536 // 68
            await settle()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000
        assert ws.stats.messages_received == count
        waiting = len(ws._core.inbox.messages)
        assert ws.stats.messages_dropped + waiting + len(received) == count
        await peer.send_close()
        received += [int.from_bytes(message) for message in await rest(ws)]  # perhaps none
        assert received == sorted(set(received))
        assert (received[-1] == count - 1) == (policy != "drop_newest")


@pytest.mark.parametrize("policy", DROPPING)
def test_what_a_message_costs_does_not_depend_on_how_many_wait(policy):
    """Counted in messages looked at, as that is what would grow."""

    class Counted(bytes):
        looks = 0

        def __len__(self) -> int:
            Counted.looks += 1
            return 1

    backlog = Backlog(policy, 65 * 10_000)
    inbox: list[str | bytes] = []
    for _ in range(30_000):
        inbox.insert(0, Counted())
        backlog.arrived(inbox, 1, False)
        if random.random() < 0.1:
            backlog.taken(inbox, len(inbox.pop()))
    assert Counted.looks < 4 * 30_000


@pytest.mark.parametrize("policy", DROPPING)
async def test_control_frames_in_a_flood_are_handled_although_nobody_receives(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=500) as (peer, ws):
        for number in range(20):
            await peer.send(frames(*[bytes(100)] * 50) + encode_frame(Opcode.PING, b"%d" % number, KEY))
            assert (await peer.receive_frame()).payload == b"%d" % number
        assert not ws._core.inbox.paused


@pytest.mark.virtual_time
@pytest.mark.parametrize("policy", DROPPING)
async def test_keepalive_finds_a_dead_peer_behind_a_full_buffer(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=200, ping_interval=5, ping_timeout=5) as (peer, ws):
        await peer.send(frames(*[b"message"] * 10))
        with anyio.fail_after(10.5):
            info = await ws.wait_closed()
        assert "ping_timeout" in str(info.cause)


# Fragments


@pytest.mark.parametrize("policy", DROPPING)
async def test_a_message_in_fragments_counts_when_it_is_whole(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=200) as (peer, ws):
        await peer.send_frame(2, b"a" * 20)
        await peer.send_frame(2, b"b" * 20, fin=False)
        await peer.send_frame(Opcode.PING, b"between")
        await peer.send_frame(0, b"b" * 20, fin=False)
        await settle()
        assert ws.stats.messages_dropped == 0
        await peer.send_frame(0, b"b" * 60)
        await settle()
        assert ws.stats.messages_dropped == 1
        assert await ws.receive() == (b"a" * 20 if policy == "drop_newest" else b"b" * 100)
        assert (await peer.receive_frame()).opcode == Opcode.PONG


# The end behind it


@both_roles
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("policy", DROPPING)
async def test_the_peers_close_is_answered_at_once_and_comes_behind_what_is_kept(policy, role, whole):
    key = KEY if role == "client" else None
    data = [encode_frame(1, str(number), key) for number in range(2000)]
    data.append(encode_frame(Opcode.CLOSE, encode_close(1000, "bye"), key))
    async with raw_peer(role, overflow=policy, receive_buffer_size=200) as (peer, ws):
        for chunk in [b"".join(data)] if whole else data:
            await peer.send(chunk)
        assert (await peer.receive_frame()).opcode == Opcode.CLOSE
        assert ws.close_info is not None
        assert (ws.close_info.code, ws.close_info.clean) == (1000, True)
        kept = {"drop_oldest": ["1998", "1999"], "drop_newest": ["0", "1", "2"][:3], "latest": ["1999"]}[policy]
        assert await rest(ws) == kept[: 200 // 65]
        assert ws.stats.messages_dropped == 2000 - len(kept)


@pytest.mark.parametrize("policy", DROPPING)
async def test_our_close_discards_what_was_kept_and_what_comes_then_is_ignored(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=200) as (peer, ws), anyio.create_task_group() as tg:
        await arrive(peer, frames(*[b"message"] * 10))
        dropped = ws.stats.messages_dropped
        assert dropped
        call = Call(tg, ws.aclose)
        assert (await peer.receive_frame()).opcode == Opcode.CLOSE
        await arrive(peer, frames(*[b"late"] * 1000))
        assert ws.stats.messages_dropped == dropped
        await peer.send_close()
        await peer.receive_eof()
        peer.send_eof()
        await call.wait()
        assert ws.close_info is not None
        assert ws.close_info.clean
        assert await rest(ws) == []


@pytest.mark.parametrize("bad", [b"\x83\x80" + KEY, encode_frame(1, b"\xff", KEY)])
@pytest.mark.parametrize("policy", DROPPING)
async def test_an_error_behind_it_comes_behind_what_is_kept(policy, bad):
    async with raw_peer(overflow=policy, receive_buffer_size=200) as (peer, ws):
        await arrive(peer, frames("1", "2", "3", "4", "5") + bad)
        expected = {"drop_oldest": ["3", "4", "5"], "drop_newest": ["1", "2", "3"], "latest": ["5"]}[policy]
        assert [await ws.receive() for _ in expected] == expected
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert isinstance(caught.value.__cause__, ProtocolError)


@pytest.mark.parametrize("policy", DROPPING)
async def test_a_message_over_max_size_behind_it_comes_behind_what_is_kept(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=200, max_size=50) as (peer, ws):
        await arrive(peer, frames("1", "2", "3", "4", "5", "6" * 51))
        expected = {"drop_oldest": ["3", "4", "5"], "drop_newest": ["1", "2", "3"], "latest": ["5"]}[policy]
        assert [await ws.receive() for _ in expected] == expected
        with pytest.raises(ConnectionClosedError, match="1009"):
            await ws.receive()


@pytest.mark.parametrize("policy", DROPPING)
async def test_a_connection_that_breaks_keeps_what_is_kept(policy):
    async with raw_peer(overflow=policy, receive_buffer_size=200) as (peer, ws):
        await arrive(peer, frames("1", "2", "3", "4", "5"))
        peer.reset()
        expected = {"drop_oldest": ["3", "4", "5"], "drop_newest": ["1", "2", "3"], "latest": ["5"]}[policy]
        assert await rest(ws) == expected


# "close"


@both_roles
async def test_close_says_1008_and_why_and_what_had_arrived_is_received_first(role):
    key = KEY if role == "client" else None
    reason = 'unread messages exceed receive_buffer_size=200 (overflow="close")'
    async with raw_peer(role, overflow="close", receive_buffer_size=200) as (peer, ws):
        await arrive(peer, b"".join(encode_frame(1, str(number), key) for number in range(10)))
        frame = await peer.receive_frame()
        assert (frame.opcode, frame.payload) == (Opcode.CLOSE, encode_close(1008, reason))
        info = ws.close_info
        assert info is not None
        assert (info.code, info.reason, info.initiator, info.clean) == (1008, reason, "local", False)
        assert isinstance(info.cause, BufferError)
        assert str(info.cause) == reason
        with pytest.raises(ConnectionClosedError, match="1008"):
            await ws.send("late")
        assert [await ws.receive() for _ in range(3)] == ["0", "1", "2"]
        with pytest.raises(ConnectionClosedError, match="overflow=") as caught:
            await ws.receive()
        assert caught.value.__cause__ is info.cause
        assert (ws.stats.messages_received, ws.stats.messages_dropped) == (4, 1)


@pytest.mark.parametrize("whole", [True, False])
async def test_close_looks_at_nothing_behind_the_message_that_is_too_much(whole):
    end = encode_frame(Opcode.CLOSE, encode_close(1000, ""), KEY)
    async with raw_peer(overflow="close", receive_buffer_size=100) as (peer, ws):
        if not whole:
            await arrive(peer, frames("1"))
        await arrive(peer, (frames("1") if whole else b"") + frames("too much") + end)
        assert ws.close_info is not None
        assert ws.close_info.code == 1008


async def test_close_is_for_messages_not_for_what_else_comes_when_the_buffer_is_full():
    async with raw_peer(overflow="close", receive_buffer_size=65) as (peer, ws):
        await arrive(peer, frames("1") + encode_frame(Opcode.PING, b"", KEY))
        assert (await peer.receive_frame()).opcode == Opcode.PONG
        await arrive(peer, encode_frame(Opcode.PING, b"", KEY))
        assert (await peer.receive_frame()).opcode == Opcode.PONG
        await peer.send_close()
        assert await rest(ws) == ["1"]
        assert ws.close_info is not None
        assert ws.close_info.code == 1000


async def test_it_is_an_option_of_servers_too():
    async def handler(ws: WebSocket) -> None:
        await ws.wait_closed()

    async with MemoryServer(handler, overflow="close", receive_buffer_size=100) as server, server.connect() as ws:
        await ws.send_many(["1", "2", "3"])
        with pytest.raises(ConnectionClosedError, match=r"1008 .* from the peer"):
            await ws.receive()


# What the log says


async def test_the_log_says_how_many_messages_were_dropped(caplog):
    caplog.set_level("DEBUG", "anyio_ws")
    async with raw_peer(overflow="latest") as (peer, _):
        await arrive(peer, frames("1", "2", "3"))
    dropped = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert dropped == ["messages dropped: 2 (overflow='latest')"]


# Those who run several functions


async def test_messages_that_are_dropped_are_not_taken_for_received_ones():
    """run() waits for a function that receives to see the end; nobody does here."""
    async with raw_peer(overflow="latest") as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, lambda ws: anyio.sleep_forever())
        await settle()
        await arrive(peer, frames("1", "2", "3") + encode_frame(Opcode.CLOSE, encode_close(1000, ""), KEY))
        assert call.done
