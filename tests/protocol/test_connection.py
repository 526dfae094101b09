"""The state machine of one endpoint, each vector whole and byte by byte."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws.protocol import Close, Connection, Opcode, ProtocolError, encode_frame
from anyio_ws.protocol.frames import MESSAGE_OVERHEAD, encode_close

from .vectors import KEY, bytewise, frame

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode

both_sides = pytest.mark.parametrize("is_client", [False, True], ids=["server", "client"])


def connect(is_client: bool) -> tuple[Connection, Connection]:
    """Make an endpoint and its peer."""
    return Connection(is_client=is_client), Connection(is_client=not is_client)


def run(data: bytes, is_client: bool, *, split: bool, **options: int | None) -> tuple[Connection, list[str | bytes]]:
    connection = Connection(is_client=is_client, **options)
    messages: list[str | bytes] = []
    for chunk in bytewise(data) if split else [data]:
        messages += connection.feed(chunk)
    return connection, messages


@both_sides
@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(
    ("frames", "messages", "pings", "pongs", "close"),
    [
        ([], [], [], [], None),
        ([(TEXT, "hello")], ["hello"], [], [], None),
        ([(BINARY, b"1"), (TEXT, "2")], [b"1", "2"], [], [], None),
        ([(PING, b"1"), (PING, b"2"), (PONG, b"3"), (PONG, b"4")], [], [b"1", b"2"], [b"3", b"4"], None),
        ([(TEXT, "a", False), (PING, b"p"), (CONT, "b")], ["ab"], [b"p"], [], None),
        ([(TEXT, "a", False), (CONT, "b", False), (CONT, "")], ["ab"], [], [], None),
        ([(CLOSE, b"")], [], [], [], Close(1005, "")),
        ([(CLOSE, b"\x03\xe8")], [], [], [], Close(1000, "")),
        ([(TEXT, "x"), (CLOSE, b"\x0f\xa0bye"), (TEXT, "y"), (PING, b"z")], ["x"], [], [], Close(4000, "bye")),
        ([(TEXT, "a", False), (CLOSE, b"\x03\xe9")], [], [], [], Close(1001, "")),
    ],
)
def test_what_comes_out_of_legal_frames(is_client, split, frames, messages, pings, pongs, close):
    data = b"".join(frame(*args, is_client=is_client) for args in frames)
    connection, received = run(data, is_client, split=split)
    assert received == messages
    assert connection.pings == pings
    assert connection.pongs == pongs
    assert connection.close_received == close
    assert connection.error is None
    assert connection.news == bool(pings or pongs or close)
    assert (connection.pings_received, connection.pongs_received) == (len(pings), len(pongs))
    assert connection.fragments_received == sum(args[2:] == (False,) for args in frames)


@both_sides
@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(
    ("frames", "messages", "code"),
    [
        ([(3, b"")], [], 1002),
        ([(TEXT, "before"), (CONT, b"")], ["before"], 1002),
        ([(TEXT, b"\xff")], [], 1007),
        ([(BINARY, b"x" * 101)], [], 1009),
        ([(CLOSE, b"\x03")], [], 1002),
        ([(CLOSE, b"\x03\xee")], [], 1002),
        ([(CLOSE, b"\x03\xe8\xff")], [], 1007),
    ],
)
def test_a_violation_is_an_event_in_order(is_client, split, frames, messages, code):
    data = b"".join(frame(*args, is_client=is_client) for args in [*frames, (TEXT, "after"), (PING, b"after")])
    connection, received = run(data, is_client, split=split, max_size=100)
    assert received == messages
    assert isinstance(connection.error, ProtocolError)
    assert connection.error.close_code == code
    assert connection.news
    assert connection.close_received is None
    assert connection.pings == []


@both_sides
def test_news_comes_once(is_client):
    connection = Connection(is_client=is_client)
    connection.feed(frame(3, b"", is_client=is_client))
    connection.news = False
    connection.feed(frame(3, b"", is_client=is_client))
    assert not connection.news


def test_frames_wait_for_room():
    connection = Connection(is_client=True)
    data = b"".join(frame(TEXT, str(i), is_client=True) for i in range(5))
    room = 2 * (1 + MESSAGE_OVERHEAD)
    assert connection.feed(data, room) == ["0", "1"]
    assert connection.pending
    assert connection.feed(b"", room) == ["2", "3"]
    assert connection.feed(b"", room) == ["4"]
    assert not connection.pending


def test_a_large_payload_may_be_read_into_its_own_memory():
    connection = Connection(is_client=True, max_size=None)
    payload = bytes(range(256)) * 500
    data = frame(BINARY, payload, is_client=True)
    assert connection.get_buffer() is None
    received = connection.feed(data[:1000])
    position = 1000
    while not received:
        buffer = connection.get_buffer()
        if buffer is None:
            received += connection.feed(data[position:])
        else:
            part = data[position : position + min(len(buffer), 30000)]
            buffer[: len(part)] = part
            del buffer
            received += connection.filled(len(part))
            position += len(part)
    assert received == [payload]


# Sending


def test_a_client_masks_with_a_new_key_each_time_and_a_server_does_not():
    client, server = connect(True)
    frames = {client.encode(TEXT, "hello") for _ in range(10)}
    assert len(frames) == 10
    assert all(data[1] == 0x85 for data in frames)
    assert server.encode(TEXT, "hello") == b"\x81\x05hello"
    for data in frames:
        assert server.feed(data) == ["hello"]


def test_fragments_are_encoded():
    client, server = connect(True)
    assert server.feed(encode_frame(TEXT, "frag", KEY, False)) == []
    assert server.feed(client.encode(CONT, "ment")) == ["fragment"]


@both_sides
def test_the_pings_are_answered_in_order(is_client):
    connection, peer = connect(is_client)
    for i in range(3):
        connection.feed(peer.encode(PING, b"%d" % i))
    peer.feed(connection.answer())
    assert peer.pongs == [b"0", b"1", b"2"]
    assert connection.pings == []
    assert connection.answer() == b""


@both_sides
def test_no_ping_is_answered_once_the_peers_close_was_received(is_client):
    connection, peer = connect(is_client)
    connection.feed(peer.encode(PING, b"late") + peer.send_close(1000))
    peer.feed(connection.answer())
    assert peer.pongs == []
    assert peer.close_received == Close(1000, "")


@both_sides
@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
def test_a_close_is_answered_with_its_code_and_no_reason(is_client, code):
    connection, peer = connect(is_client)
    peer.feed(b"")
    connection.feed(peer.send_close(code, "reason"))
    assert connection.close_received == Close(code, "reason")
    peer.feed(connection.answer())
    assert connection.close_sent == peer.close_received == Close(code, "")
    assert connection.answer() == b""


@both_sides
def test_a_close_without_a_code_is_answered_with_one_without(is_client):
    connection, peer = connect(is_client)
    connection.feed(frame(CLOSE, b"", is_client=is_client))
    answer = connection.answer()
    peer.feed(answer)
    assert peer.close_received == Close(1005, "")
    assert len(answer) == (6 if is_client else 2)


@both_sides
def test_after_our_close_their_messages_are_discarded_and_their_pings_answered(is_client):
    connection, peer = connect(is_client)
    peer_data = peer.encode(TEXT, "late") + peer.encode(PING, b"ping")
    peer.feed(connection.send_close(1000))
    assert connection.feed(peer_data) == []
    peer.feed(connection.answer())
    assert connection.feed(peer.answer()) == []
    assert connection.close_received == Close(1000, "")
    assert connection.answer() == b""


def test_both_may_close_at_once():
    client, server = connect(True)
    from_client, from_server = client.send_close(1000), server.send_close(1001)
    client.feed(from_server)
    server.feed(from_client)
    assert (client.close_sent, client.close_received) == (Close(1000, ""), Close(1001, ""))
    assert (server.close_sent, server.close_received) == (Close(1001, ""), Close(1000, ""))
    assert client.answer() == server.answer() == b""


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_a_code_that_must_not_be_sent_is_a_value_error(code):
    connection = Connection(is_client=False)
    with pytest.raises(ValueError, match=f"close code {code} must not be sent"):
        connection.send_close(code)
    assert connection.close_sent is None


def test_a_long_reason_is_cut_at_a_character():
    connection = Connection(is_client=False)
    connection.send_close(1000, "ä" * 62)
    assert connection.close_sent == Close(1000, "ä" * 61)


def test_a_reason_that_is_no_text_leaves_it_open():
    connection = Connection(is_client=False)
    with pytest.raises(ValueError, match="surrogates"):
        connection.send_close(1000, "\ud800")
    assert connection.close_sent is None


@given(
    frames=st.lists(
        st.one_of(
            st.tuples(st.just(TEXT), st.text(max_size=200).map(str.encode)),
            st.tuples(st.just(BINARY), st.binary(max_size=200)),
            st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)),
            st.tuples(st.just(CLOSE), st.just(encode_close(1001, "away"))),
            st.tuples(st.sampled_from([CONT, 3]), st.binary(max_size=3)),
        ),
        max_size=20,
    ),
    cuts=st.lists(st.integers(0, 2000), max_size=20),
    is_client=st.booleans(),
)
def test_any_chunking_of_the_bytes_gives_the_same_events(frames, cuts, is_client):
    data = b"".join(encode_frame(opcode, payload, None if is_client else KEY) for opcode, payload in frames)
    whole, expected = run(data, is_client, split=False)
    connection = Connection(is_client=is_client)
    messages = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in pairwise(edges):
        messages += connection.feed(data[start:stop])
    assert messages == expected
    assert (connection.pings, connection.pongs) == (whole.pings, whole.pongs)
    assert connection.close_received == whole.close_received
    assert str(connection.error) == str(whole.error)
