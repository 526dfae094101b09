"""What the decoder does beside messages that are whole: extensions, messages that are too big, and parts."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws.protocol import Opcode

from .codecs import CODECS, load
from .differential import RSV1, Pair, Side
from .vectors import frame

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


@pytest.fixture(params=CODECS)
def codec(request):
    return load(request.param)


@pytest.fixture
def side(codec):
    return Side(codec, is_client=False, max_size=100, scratch=0, extended=True)


# Extensions


@pytest.mark.parametrize(("opcode", "message"), [(TEXT, "été"), (BINARY, "été".encode())])
def test_a_message_with_the_bit_goes_through_transform(side, opcode, message):
    payload = "été".encode()[::-1]
    data = frame(opcode | RSV1, payload)
    data += frame(opcode | RSV1, payload[:2], False) + frame(PING, b"") + frame(CONT, payload[2:])
    data += frame(opcode, "été".encode())
    side.messages += side.decoder.feed(data)
    assert side.messages == [message] * 3
    assert side.decoder.messages == 3
    assert side.controls == [(PING, b"")]


def test_what_transform_returns_counts_as_the_message(side):
    side.messages += side.decoder.feed(frame(BINARY | RSV1, b"12345") * 2, 100)
    assert side.messages == [b"54321", b"54321"]
    assert side.decoder.room == 100 - 2 * (5 + 64)


def test_utf8_is_looked_for_behind_transform_only(side):
    assert side.decoder.feed(frame(TEXT | RSV1, b"\xff", False)) == []
    assert side.errors == []
    assert side.decoder.feed(frame(CONT, b"")) == []
    assert [each.close_code for each in side.errors] == [1007]


def test_what_transform_finds_is_a_violation_at_its_place(side):
    side.messages += side.decoder.feed(frame(TEXT, b"before") + frame(TEXT | RSV1, b"bad") + frame(TEXT, b"after"))
    assert side.messages == ["before"]
    assert [str(each) for each in side.errors] == ["bad data"]


def test_what_transform_takes_away_stops_decoding(side):
    data = frame(BINARY, b"1") + frame(BINARY | RSV1, b"keep") + frame(BINARY, b"2")
    assert side.decoder.feed(data) == [b"1"]
    assert side.decoder.pending
    assert side.decoder.room <= 0
    assert side.decoder.feed(b"") == [b"2"]
    assert side.decoder.messages == 2


@pytest.mark.parametrize("first", [CONT | RSV1, PING | RSV1, CLOSE | RSV1, TEXT | 0x20, TEXT | RSV1 | 0x10])
def test_rsv_bits_that_mean_nothing_here_are_a_violation(side, first):
    side.decoder.feed(frame(BINARY, b"", False) if first & 0xF == CONT else b"")
    side.decoder.feed(frame(first, b""))
    assert "RSV bits" in str(side.decoder.error)
    assert side.decoder.error.close_code == 1002


def test_other_exceptions_come_out_and_end_the_decoder(codec):
    def broken(begun, payload):
        raise KeyError("bug")

    decoder = codec.Decoder(is_client=True, max_size=None, on_control=print, rsv=RSV1, transform=broken)
    with pytest.raises(KeyError, match="bug"):
        decoder.feed(frame(BINARY | RSV1, b"", is_client=True))


def test_c_wants_bytes_of_transform():
    decoder = load("_codec").Decoder(
        is_client=True, max_size=None, on_control=print, rsv=RSV1, transform=lambda begun, payload: "text"
    )
    with pytest.raises(TypeError, match="transform must return bytes or None, not str"):
        decoder.feed(frame(BINARY | RSV1, b"", is_client=True))


@pytest.mark.parametrize("size", [100, 101, 176, 177])
def test_what_is_transformed_may_be_somewhat_longer_than_max_size(side, size):
    side.decoder.feed(frame(BINARY | RSV1, bytes(size)))
    assert bool(side.too_big) == (size > 176)


def test_no_limit_is_none_for_a_transformed_message_either(codec):
    side = Side(codec, is_client=True, max_size=None, scratch=0, extended=True)
    assert side.decoder.feed(frame(BINARY | RSV1, bytes(100_000), is_client=True)) == [bytes(100_000)]
    side.decoder.feed(bytes((0x80 | BINARY | RSV1, 127)) + (2**63 - 1).to_bytes(8))
    assert not side.too_big


# Too big


def test_before_a_message_that_is_too_big_decoding_stops(side):
    data = frame(BINARY, b"1") + frame(BINARY, bytes(101)) + frame(BINARY, b"2")
    side.messages += side.decoder.feed(data)
    assert [str(each) for each in side.too_big] == ["message of 101 bytes exceeds max_size=100"]
    assert side.too_big[0].close_code == 1009
    assert side.messages == [b"1"]
    assert side.decoder.error is None
    assert side.decoder.pending
    side.decoder.max_size = 101
    side.messages += side.decoder.feed(b"")
    assert side.messages == [b"1", bytes(101), b"2"]


def test_in_the_middle_of_a_message_too(side):
    data = frame(BINARY, bytes(60), False) + frame(PING, b"") + frame(CONT, bytes(60), False)
    assert side.decoder.feed(data) == []
    assert side.controls == [(PING, b"")]
    assert [str(each) for each in side.too_big] == ["message of at least 120 bytes exceeds max_size=100"]
    side.decoder.max_size = sys.maxsize
    assert side.decoder.feed(frame(CONT, b"end")) == [bytes(120) + b"end"]
    assert side.decoder.max_size == 100


@pytest.mark.parametrize("first", [BINARY, BINARY | RSV1])
def test_a_new_limit_is_for_one_message(side, first):
    side.decoder.max_size = 200
    assert side.decoder.feed(frame(first, bytes(200)) + frame(BINARY, bytes(101))) == [bytes(200)]
    assert str(side.too_big[0]) == "message of 101 bytes exceeds max_size=100"
    side.decoder.max_size = 200
    assert side.decoder.feed(b"") == [bytes(101)]
    side.decoder.max_size = 3
    assert side.decoder.feed(frame(BINARY, b"1234")) == []
    assert str(side.too_big[-1]) == "message of 4 bytes exceeds max_size=3"


def test_a_new_limit_is_for_one_message_also_if_transform_takes_that_away(side):
    side.decoder.max_size = 200
    side.decoder.feed(frame(BINARY | RSV1, b"keep"))
    assert side.decoder.max_size == 100


# Parts


def test_a_message_in_parts(side):
    assert side.decoder.begun == 0
    assert side.decoder.take() == b""
    data = frame(BINARY, b"12345", False) + frame(CONT, b"6789")
    side.decoder.feed(data[:-5])
    assert side.decoder.begun == BINARY
    assert side.decoder.take() == b"12345"
    assert side.decoder.take() == b""
    side.decoder.feed(data[-5:-1])
    assert side.decoder.take() == b"678"
    assert side.decoder.feed(data[-1:]) == [b"9"]
    assert side.decoder.begun == 0


def test_a_text_in_parts_is_cut_between_characters(side):
    data = frame(TEXT, "aé€😀".encode(), False)
    parts = []
    for byte in data:
        assert side.decoder.feed(bytes((byte,))) == []
        parts.append(side.decoder.take())
    assert [part for part in parts if part] == ["a", "é", "€", "😀"]
    assert side.decoder.feed(frame(CONT, b"end")) == ["end"]


def test_where_a_text_stops_being_utf8_is_counted_from_its_beginning(side):
    side.decoder.feed(frame(TEXT, b"12345", False))
    assert side.decoder.take() == "12345"
    side.decoder.feed(frame(CONT, b"6\xff", False))
    assert "at byte 6" in str(side.decoder.error)
    other = Side(load("_pycodec"), is_client=False, max_size=100, scratch=0)
    other.decoder.feed(frame(TEXT, b"12345", False))
    other.decoder.take()
    other.decoder.feed(frame(CONT, b"6\xff"))
    assert "at byte 6" in str(other.decoder.error)


def test_the_parts_of_a_transformed_message_are_as_they_came(side):
    side.decoder.feed(frame(TEXT | RSV1, b"\xff\xfe", False))
    assert side.decoder.begun == TEXT | RSV1
    assert side.decoder.take() == b"\xff\xfe"
    assert side.decoder.feed(frame(CONT, b"21")) == ["12"]  # only the rest


def test_what_was_taken_counts_for_max_size(side):
    for _ in range(10):
        side.decoder.feed(frame(CONT if side.decoder.begun else BINARY, bytes(10), False))
        assert side.decoder.take() == bytes(10)
    side.decoder.feed(frame(CONT, b"1"))
    assert "101 bytes" in str(side.too_big[0])


def test_memory_that_is_lent_is_taken_back(codec):
    side = Side(codec, is_client=True, max_size=None, scratch=100, extended=True)
    data = frame(BINARY, bytes(range(256)) * 400, is_client=True)
    side.decoder.feed(data[:10_000])
    view = side.decoder.get_buffer()
    assert len(view) > 100
    view[:5] = data[10_000:10_005]
    assert side.decoder.filled(5) == []
    assert side.decoder.get_buffer() is not None
    assert side.decoder.take() == data[10:10_005]
    assert side.decoder.feed(data[10_005:]) == [data[10_005:]]


# The same of both


operations = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.sampled_from([TEXT, BINARY, TEXT | RSV1, BINARY | RSV1, CONT, CONT, CONT, PING]),
                  st.one_of(st.text(max_size=40).map(str.encode), st.sampled_from([b"keep", b"bad", bytes(30_000)])),
                  st.booleans()),
        st.tuples(st.just("take")),
        st.tuples(st.just("limit"), st.sampled_from([10, 50, 1000, 10**6])),
    ),
    max_size=12,
)  # fmt: skip


@given(operations, st.lists(st.integers(1, 50), min_size=1, max_size=5), st.booleans(), st.sampled_from([0, 40, 200]))
def test_the_same_comes_of_the_same(operations, cuts, is_client, scratch):
    codec = load("_codec")
    pair = Pair(codec, is_client=is_client, max_size=1000, scratch=scratch, extended=True)
    for name, *args in operations:
        if name == "take":
            pair.take()
        elif name == "limit":
            pair.limit(*args)
        else:
            opcode, payload, fin = args
            data = frame(opcode, payload, fin, is_client=is_client)
            for cut in cuts:
                pair.feed(data[:cut])
                data = data[cut:]
            if scratch:
                pair.read(data)
            else:
                pair.feed(data)
    pair.finish()
