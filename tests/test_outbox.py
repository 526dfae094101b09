"""The outbox by itself, over a transport that takes what a test lets it take."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws.outbox import JOIN_SIZE, VECTOR, Outbox


class Transport:
    """Takes so many bytes of each write; without a limit, all."""

    def __init__(self, *limits):
        self.limits = deque(limits)
        self.taken = b""
        self.writes = []
        self.closed = False
        self.fails = False
        self.outbox = None

    def write(self, data):
        return self.write_vector((data,))

    def write_vector(self, buffers):
        if self.fails:
            self.closed = True
            self.outbox.clear()
            return 0
        data = b"".join(bytes(buffer) for buffer in buffers)
        limit = self.limits.popleft() if self.limits else len(data)
        self.writes.append((len(buffers), len(data[:limit])))
        self.taken += data[:limit]
        return len(data[:limit])


class Waiter:
    """Waits until it is woken, however often a test goes on with the task."""

    def wait(self):
        self.woken = False
        return self

    def __await__(self):
        while not self.woken:
            yield

    def wake(self):
        self.woken = True


def is_done(call):
    """Let a call go on; say whether it has returned."""
    try:
        call.send(None)
    except StopIteration:
        return True
    return False


class Loop:
    waiter = Waiter

    def __init__(self):
        self.soon = []

    def call_soon(self, callback):
        self.soon.append(callback)

    def end_tick(self):
        callbacks, self.soon = self.soon, []
        for callback in callbacks:
            callback()


def make(*limits, limit=1000):
    transport, loop = Transport(*limits), Loop()
    outbox = transport.outbox = Outbox(transport, loop, limit)
    return outbox, transport, loop


def test_what_is_written_goes_out_at_once():
    outbox, transport, loop = make()
    outbox.write(b"12345")
    assert transport.taken == b"12345"
    assert (outbox.size, outbox.blocked) == (0, False)
    assert not loop.soon


def test_what_the_transport_does_not_take_stays_until_it_takes_more():
    outbox, transport, _ = make(2, 1)
    outbox.write(b"12345")
    assert (outbox.size, outbox.blocked) == (3, True)
    outbox.write(b"678")
    assert transport.taken == b"12"
    outbox.writable()
    assert (outbox.size, outbox.blocked) == (5, True)
    outbox.writable()
    assert transport.taken == b"12345678"
    assert (outbox.size, outbox.blocked) == (0, False)


def test_joined_frames_leave_in_one_write_at_the_end_of_the_tick():
    outbox, transport, loop = make()
    for _ in range(10):
        outbox.join(b"12345")
    assert transport.writes == []
    assert outbox.size == 50
    assert len(loop.soon) == 1
    loop.end_tick()
    assert transport.writes == [(1, 50)]
    outbox.join(b"again")
    loop.end_tick()
    assert transport.taken == b"12345" * 10 + b"again"


def test_joined_frames_leave_when_there_are_enough_of_them():
    outbox, transport, loop = make(limit=10 * JOIN_SIZE)
    for _ in range(16):
        outbox.join(b"x" * (JOIN_SIZE // 16))
    assert outbox.size == 0
    assert len(transport.taken) == JOIN_SIZE
    loop.end_tick()
    assert len(transport.taken) == JOIN_SIZE


def test_joined_frames_leave_when_they_fill_the_outbox():
    outbox, transport, _ = make(limit=20)
    for _ in range(4):
        outbox.join(b"12345")
    assert outbox.size == 0
    assert transport.taken == b"12345" * 4


def test_a_write_takes_joined_frames_along_in_order():
    outbox, transport, _ = make()
    outbox.join(b"first")
    outbox.write(b"second")
    assert transport.writes == [(1, 11)]
    assert transport.taken == b"firstsecond"


def test_the_end_of_a_tick_leaves_a_blocked_transport_alone():
    outbox, transport, loop = make(0)
    outbox.write(b"blocked")
    outbox.join(b"joined")
    loop.end_tick()
    assert transport.taken == b""
    outbox.writable()
    assert transport.taken == b"blockedjoined"


def test_much_is_given_in_vectors_and_not_copied():
    outbox, transport, _ = make(0, limit=2**30)
    size = JOIN_SIZE // 8
    for _ in range(100):
        outbox.write(b"x" * size)
    outbox.writable()
    assert transport.writes == [(1, 0), (VECTOR, VECTOR * size), (100 - VECTOR, (100 - VECTOR) * size)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
@pytest.mark.parametrize("taken", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("joined", [False, True])
def test_a_large_frame_goes_out_whole_wherever_the_transport_stops(kind, taken, joined):
    outbox, transport, _ = make(taken)
    payload = kind(b"payload")
    if joined:
        outbox.join(b"joined")
    outbox.write_parts(b"head", payload)
    if isinstance(payload, bytearray) or not isinstance(getattr(payload, "obj", b""), bytes):
        memoryview(payload)[:] = b"changed"
    outbox.writable()
    assert transport.taken == b"joined" * joined + b"headpayload"
    assert outbox.size == 0


def test_a_large_frame_that_is_taken_at_once():
    outbox, transport, _ = make()
    outbox.write_parts(b"head", b"payload")
    assert transport.writes == [(2, 11)]
    assert outbox.size == 0


@pytest.mark.parametrize("call", ["write", "write_parts", "flush"])
def test_nothing_is_kept_for_a_transport_that_failed_in_the_call(call):
    outbox, transport, _ = make()
    transport.fails = True
    if call == "write":
        outbox.write(b"x")
    elif call == "write_parts":
        outbox.write_parts(b"head", b"payload")
    else:
        outbox.join(b"x")
        outbox.flush()
    assert (outbox.size, outbox.closed) == (0, True)


def test_clear_drops_everything():
    outbox, transport, loop = make(0)
    outbox.write(b"blocked")
    outbox.clear()
    outbox.writable()
    loop.end_tick()
    assert transport.taken == b""
    assert outbox.size == 0


def test_what_the_transport_has_taken_is_counted_in_all_ways_of_sending():
    outbox, transport, _ = make(3, 2, 1, 0, 5, limit=2**20)
    outbox.write(b"12345")
    assert (outbox.taken, outbox.size) == (3, 2)
    outbox.join(b"joined")
    outbox.write_parts(b"head", b"payload")
    for total in (5, 6, 6, 11, 22):
        outbox.writable()
        assert outbox.taken == len(transport.taken) == total
        assert outbox.taken + outbox.size == 22
    transport.limits += [5]
    outbox.write_parts(b"head", b"payload")
    assert (outbox.taken, outbox.size) == (27, 6)
    outbox.clear()
    assert (outbox.taken, outbox.size) == (33, 0)  # dropped, but it was committed


@pytest.mark.parametrize("call", ["write", "write_parts", "join"])
def test_newcomers_may_commit_while_less_than_the_limit_is_kept(call):
    outbox, _, loop = make(0, 0, 1, limit=10)
    outbox.write(b"123")
    assert outbox.free
    if call == "write":
        outbox.write(b"x" * 6)
        assert outbox.free
        outbox.write(b"x")
    elif call == "write_parts":
        outbox.write_parts(b"head", b"xx")
        assert outbox.free
        outbox.write_parts(b"h", b"x" * 3)
    else:
        outbox.join(b"x" * 6)
        assert outbox.free
        outbox.join(b"x")
    assert outbox.size >= 10
    assert not outbox.free
    outbox.flush()
    loop.end_tick()
    assert not outbox.free
    outbox.writable()
    assert outbox.free == (outbox.size < 10)
    outbox.writable()
    assert outbox.free == (outbox.size < 10)
    outbox.writable()
    assert outbox.free


def test_one_write_that_reaches_the_limit_leaves_no_room():
    outbox, _, _ = make(3, limit=10)
    outbox.write(b"x" * 12)
    assert (outbox.size, outbox.free) == (9, True)
    outbox, _, _ = make(3, limit=10)
    outbox.write(b"x" * 13)
    assert (outbox.size, outbox.free) == (10, False)
    outbox, _, _ = make(limit=10)
    outbox.write(b"x" * 13)
    assert (outbox.size, outbox.free) == (0, True)


def test_newcomers_queue_behind_those_who_wait_to_commit():
    outbox, _, _ = make(0, limit=10)
    outbox.write(b"x" * 10)
    first, second = outbox.turn(), outbox.turn()
    assert not is_done(first)
    assert not is_done(second)
    outbox.writable()
    assert (outbox.size, outbox.free) == (0, False)
    assert not is_done(second)
    assert is_done(first)
    assert not outbox.free
    assert is_done(second)
    assert outbox.free


def test_a_turn_that_is_given_up_goes_to_the_next_or_to_newcomers():
    outbox, _, _ = make(0, limit=10)
    outbox.write(b"x" * 10)
    first, second = outbox.turn(), outbox.turn()
    assert not is_done(first)
    assert not is_done(second)
    outbox.writable()
    first.close()
    assert not outbox.free
    second.close()
    assert outbox.free


def test_a_turn_that_is_given_up_while_there_is_no_room_lets_nobody_in():
    outbox, _, _ = make(0, limit=10)
    outbox.write(b"x" * 10)
    turn = outbox.turn()
    assert not is_done(turn)
    turn.close()
    assert not outbox.free
    outbox.writable()
    assert outbox.free


def test_a_turn_that_comes_at_once_lets_the_next_one_in():
    outbox, _, _ = make(limit=10)
    assert is_done(outbox.turn())
    assert outbox.free


def test_a_sender_that_waits_for_room_does_not_keep_newcomers_out():
    outbox, _, _ = make(0, 3, limit=10)
    outbox.write(b"x" * 12)
    drained = outbox.drained()
    assert not is_done(drained)
    outbox.writable()
    assert (outbox.size, outbox.free) == (9, True)
    assert is_done(drained)


def test_nobody_is_let_in_any_more_once_it_is_closed():
    outbox, transport, _ = make(0, limit=10)
    outbox.write(b"x" * 10)
    turn, drained = outbox.turn(), outbox.drained()
    assert not is_done(turn)
    assert not is_done(drained)
    outbox.close()
    assert not outbox.free
    assert is_done(turn)
    assert is_done(drained)
    outbox.writable()
    assert transport.taken == b"x" * 10
    assert not outbox.free


@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["write", "join", "parts", "tick", "writable", "flush"]), st.integers(1, 50)),
        max_size=40,
    ),
    limits=st.lists(st.integers(0, 40), max_size=40),
)
def test_any_transport_gets_everything_once_and_in_order(actions, limits):
    outbox, transport, loop = make(*limits, limit=100)
    expected = b""
    for i, (action, size) in enumerate(actions):
        data = bytes([i]) * size
        if action == "write":
            outbox.write(data)
            expected += data
        elif action == "join":
            outbox.join(data)
            expected += data
        elif action == "parts":
            outbox.write_parts(b"head", data)
            expected += b"head" + data
        elif action == "tick":
            loop.end_tick()
        elif action == "flush":
            outbox.flush()
        else:
            outbox.writable()
        assert outbox.size == len(expected) - len(transport.taken)
        assert outbox.taken == len(transport.taken)
        assert outbox.free == (outbox.size < 100)
    while outbox.size:
        outbox.writable()
    assert transport.taken == expected


# Control frames


def large(outbox):
    """A transport that takes nothing yet, and much that is to go there: the outbox takes no vector at all."""
    outbox.write(b"begun" * 1000)
    outbox.write_parts(b"H", bytes(JOIN_SIZE))
    outbox.write_parts(b"I", bytes(JOIN_SIZE))


@pytest.mark.parametrize(
    ("taken", "place"),
    [
        (0, 5000),  # what was offered has begun, for all we know
        (4999, 5000),
        (5000, 5000),
        (5001, 5000 + 1 + JOIN_SIZE),
        (6000, 5000 + 1 + JOIN_SIZE),
        (5001 + JOIN_SIZE, 5001 + JOIN_SIZE),
        (5002 + JOIN_SIZE, 5002 + 2 * JOIN_SIZE),
    ],
)
def test_a_control_frame_goes_behind_the_frame_that_has_begun(taken, place):
    outbox, transport, _ = make(0, taken)
    large(outbox)
    outbox.writable()
    assert len(transport.taken) == taken
    outbox.write_control(b"ping")
    outbox.write_control(b"pong")
    assert outbox.control_waits
    while outbox.size:
        outbox.writable()
    assert not outbox.control_waits
    assert transport.taken.index(b"pingpong") == place
    assert len(transport.taken) == 5002 + 2 * JOIN_SIZE + 8


def test_a_control_frame_that_fills_the_outbox_lets_nobody_in():
    outbox, _, _ = make(0, limit=JOIN_SIZE + 12_000)
    large_frame = bytes(JOIN_SIZE + 11_999)
    outbox.write(large_frame)
    assert outbox.free
    outbox.write_control(b"ping")
    assert not outbox.free
    outbox.writable()
    assert outbox.free
