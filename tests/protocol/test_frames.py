import array
import codecs
import os
import sys
import tracemalloc
from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyio_ws.protocol import _pycodec
from anyio_ws.protocol.exceptions import ProtocolError
from anyio_ws.protocol.frames import (
    MESSAGE_OVERHEAD,
    Decoder,
    MaskingKeys,
    Opcode,
    apply_mask,
    encode_close,
    encode_frame,
    encode_header,
    is_valid_close_code,
    parse_close,
)

from . import vectors
from .codecs import CODECS, load
from .vectors import KEY, Outcome, bytewise, check, conclude, decode, frame

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode
SIZES = [0, 1, 2, 3, 4, 5, 16, 125, 126, 127, 511, 512, 513, 1024, 65535, 65536, 65537]


@pytest.fixture(params=CODECS, autouse=True)
def codec(request, monkeypatch):
    """Run every test on each codec: its functions stand for those that this module and vectors.py have imported."""
    codec = load(request.param)
    for name in ("Decoder", "MaskingKeys", "apply_mask", "encode_frame", "encode_header"):
        for module in (sys.modules[__name__], vectors):
            monkeypatch.setattr(module, name, getattr(codec, name), raising=False)
    return codec


def make_decoder(
    *, is_client: bool = True, max_size: int | None = None, scratch: memoryview | None = None
) -> tuple[Decoder, Outcome]:
    outcome = Outcome()
    decoder = Decoder(
        is_client=is_client,
        max_size=max_size,
        on_control=lambda opcode, payload: outcome.controls.append((opcode, payload)),
        scratch=scratch,
    )
    return decoder, outcome


both_sides = pytest.mark.parametrize("is_client", [False, True], ids=["server", "client"])


# Decoding what is legal


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("81 05 48 65 6c 6c 6f", Outcome(["Hello"])),
        ("01 03 48 65 6c 80 02 6c 6f", Outcome(["Hello"])),
        ("89 05 48 65 6c 6c 6f", Outcome(controls=[(9, b"Hello")])),
    ],
)
def test_unmasked_examples_of_rfc_6455_section_5_7(data, expected):
    check(bytes.fromhex(data), expected, is_client=True)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("81 85 37 fa 21 3d 7f 9f 4d 51 58", Outcome(["Hello"])),
        ("8a 85 37 fa 21 3d 7f 9f 4d 51 58", Outcome(controls=[(10, b"Hello")])),
    ],
)
def test_masked_examples_of_rfc_6455_section_5_7(data, expected):
    check(bytes.fromhex(data), expected)


@pytest.mark.parametrize("size", [256, 65536])
def test_large_examples_of_rfc_6455_section_5_7(size):
    header = bytes.fromhex("82 7e 01 00" if size == 256 else "82 7f 00 00 00 00 00 01 00 00")
    payload = os.urandom(size)
    check(header + payload, Outcome([payload]), is_client=True)


@both_sides
@pytest.mark.parametrize("size", SIZES)
def test_messages_of_any_size(size, is_client):
    payload = os.urandom(size)
    text = ("aé€😀" * size)[:size]
    data = frame(BINARY, payload, is_client=is_client) + frame(TEXT, text, is_client=is_client)
    check(data, Outcome([payload, text]), is_client=is_client)


@both_sides
def test_control_frames_between_and_inside_messages(is_client):
    data = b"".join(
        frame(*arguments, is_client=is_client)
        for arguments in [
            (PING, b"1"),
            (TEXT, "a", False),
            (PONG, b"x" * 125),
            (CONT, b"", False),
            (PING, b""),
            (CONT, "b"),
            (BINARY, b"", False),
            (CONT, b""),
            (TEXT, "c"),
        ]
    )
    check(data, Outcome(["ab", b"", "c"], [(9, b"1"), (10, b"x" * 125), (9, b"")]), is_client=is_client)


@both_sides
@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe8reason", b"\x00"])
def test_nothing_is_decoded_after_a_close_frame(payload, is_client):
    close = frame(CLOSE, payload, is_client=is_client)
    message = frame(TEXT, "message", is_client=is_client)
    expected = Outcome(["message"], [(8, payload)], closed=True)
    check(message + close, expected, is_client=is_client)
    check(message + close + message, expected, is_client=is_client)


@both_sides
def test_a_close_frame_inside_a_fragmented_message_is_a_close_frame(is_client):
    data = frame(TEXT, "begun", False, is_client=is_client) + frame(CLOSE, b"", is_client=is_client)
    check(data, Outcome(controls=[(8, b"")], closed=True), is_client=is_client)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_chunk_may_be_any_buffer_and_belongs_to_the_caller_again(kind):
    decoder, _ = make_decoder()
    payload = os.urandom(300)
    data = encode_frame(BINARY, payload)
    storage = bytearray(data)
    half = len(data) // 2
    for part in (slice(0, 1), slice(1, half)):
        assert decoder.feed(kind(memoryview(storage)[part])) == []
    storage[:half] = bytes(half)
    assert decoder.feed(kind(memoryview(storage)[half:])) == [payload]
    storage.clear()  # BufferError if there is a view of it


def test_the_end_of_a_chunk_may_be_anywhere_in_a_frame():
    payload = os.urandom(130)
    data = frame(BINARY, payload) + frame(PING, b"ping") + frame(TEXT, "text")
    for split in range(len(data) + 1):
        assert decode([data[:split], data[split:], b""]) == Outcome([payload, "text"], [(9, b"ping")])


def test_events_come_in_the_order_of_their_frames():
    events = []
    decoder = Decoder(is_client=True, max_size=None, on_control=lambda opcode, payload: events.append(payload))
    data = b"".join(encode_frame(*args) for args in [(TEXT, "1"), (PING, b"2"), (TEXT, "3"), (PONG, b"4"), (TEXT, "5")])
    for byte in data:
        events += decoder.feed(bytes([byte]))
    assert events == ["1", b"2", "3", b"4", "5"]


# Violations


def violation(close_code, message, *messages, controls=()):
    return Outcome(list(messages), list(controls), (close_code, message))


RESERVED = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]


@both_sides
@pytest.mark.parametrize("opcode", Opcode)
@pytest.mark.parametrize("rsv", range(1, 8))
def test_rsv_bits(rsv, opcode, is_client):
    expected = violation(1002, f"frame with RSV bits {rsv:03b}, expected 000 as no extension defines them")
    check(frame(rsv << 4 | opcode, b"", is_client=is_client), expected, is_client=is_client)


@both_sides
@pytest.mark.parametrize("opcode", RESERVED)
def test_reserved_opcodes(opcode, is_client):
    expected = violation(1002, f"frame with reserved opcode {opcode:#x}, expected 0x0 to 0x2 or 0x8 to 0xa")
    for payload in (b"", b"payload"):
        check(frame(opcode, payload, is_client=is_client), expected, is_client=is_client)


@pytest.mark.parametrize("opcode", Opcode)
@pytest.mark.parametrize("size", [0, 1, 125])
def test_the_server_expects_masked_frames_and_the_client_unmasked_ones(opcode, size):
    name = opcode.name.lower()
    expected = violation(1002, f"unmasked {name} frame from the client, expected a masked one")
    check(encode_frame(opcode, bytes(size)), expected, is_client=False)
    expected = violation(1002, f"masked {name} frame from the server, expected an unmasked one")
    check(encode_frame(opcode, bytes(size), KEY), expected, is_client=True)


@both_sides
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_control_frames_have_at_most_125_bytes_and_are_whole(opcode, is_client):
    name = opcode.name.lower()
    expected = violation(1002, f"{name} frame with a payload of more than 125 bytes, expected at most 125")
    for size in (126, 65536):
        check(frame(opcode, bytes(size), is_client=is_client), expected, is_client=is_client)
    expected = violation(1002, f"fragmented {name} frame, expected control frames to be whole")
    check(frame(opcode, b"", False, is_client=is_client), expected, is_client=is_client)


@both_sides
@pytest.mark.parametrize("fin", [False, True])
def test_a_continuation_needs_a_message(fin, is_client):
    message = "continuation frame outside a message, expected text or binary"
    data = frame(CONT, b"x", fin, is_client=is_client)
    check(data, violation(1002, message), is_client=is_client)
    whole = frame(BINARY, b"whole", is_client=is_client)
    check(whole + data, violation(1002, message, b"whole"), is_client=is_client)
    fragmented = frame(TEXT, b"frag", False, is_client=is_client) + frame(CONT, b"ments", is_client=is_client)
    check(fragmented + data, violation(1002, message, "fragments"), is_client=is_client)


@both_sides
@pytest.mark.parametrize("fin", [False, True])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [0, 5, 200])
def test_a_message_must_not_begin_inside_another(size, opcode, fin, is_client):
    message = f"{opcode.name.lower()} frame inside a fragmented message, expected continuation"
    data = frame(TEXT, b"begun", False, is_client=is_client) + frame(opcode, bytes(size), fin, is_client=is_client)
    check(data, violation(1002, message), is_client=is_client)


@both_sides
@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("7e 00 00", "payload length 0 encoded in 16 bits, expected the shortest encoding"),
        ("7e 00 7d", "payload length 125 encoded in 16 bits, expected the shortest encoding"),
        ("7f 00 00 00 00 00 00 00 05", "payload length 5 encoded in 64 bits, expected the shortest encoding"),
        ("7f 00 00 00 00 00 00 ff ff", "payload length 65,535 encoded in 64 bits, expected the shortest encoding"),
        ("7f 80 00 00 00 00 00 00 00", "payload length 9,223,372,036,854,775,808, expected less than 2**63"),
    ],
)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_lengths_are_minimal_and_have_63_bits(opcode, length, message, is_client):
    encoded = bytearray.fromhex(length)
    if not is_client:
        encoded[0] |= 0x80
    data = bytes([0x80 | opcode]) + encoded
    check(data, violation(1002, message), is_client=is_client)
    check(data + bytes(300), violation(1002, message), is_client=is_client)


@pytest.mark.parametrize(
    "data",
    ["91", "83", "80", "89 fe", "89 ff", "09 80", "82 05"],
    ids=["rsv", "reserved", "continuation", "control 126", "control 127", "fragmented control", "mask"],
)
def test_what_the_first_two_bytes_show_is_reported_with_them(data):
    data = bytes.fromhex(data)
    decoder, _ = make_decoder(is_client=False)
    decoder.feed((data + b"\x80")[:2])
    assert decoder.error is not None
    assert decoder.error.close_code == 1002


@both_sides
@pytest.mark.parametrize("max_size", [0, 1, 124, 125, 126, 1000, 65535, 65536, 70000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_max_size_is_the_payload_of_a_message(opcode, max_size, is_client):
    payload = b"x" * max_size
    fits = payload.decode() if opcode == TEXT else payload
    too_big = f"message of {max_size + 1:,} bytes exceeds max_size={max_size:,}"
    whole = frame(opcode, payload, is_client=is_client)
    check(whole, Outcome([fits]), is_client=is_client, max_size=max_size)
    expected = violation(1009, too_big, fits)
    check(whole + frame(opcode, payload + b"x", is_client=is_client), expected, is_client=is_client, max_size=max_size)

    begun = frame(opcode, payload, False, is_client=is_client)
    fragments = begun + frame(CONT, b"", is_client=is_client)
    check(fragments, Outcome([fits]), is_client=is_client, max_size=max_size)
    ending = frame(CONT, b"x", is_client=is_client)
    check(begun + ending, violation(1009, too_big), is_client=is_client, max_size=max_size)
    too_big = too_big.replace("message of", "message of at least")
    going_on = frame(CONT, b"x", False, is_client=is_client)
    check(begun + going_on, violation(1009, too_big), is_client=is_client, max_size=max_size)


def test_max_size_counts_bytes_not_characters():
    check(frame(TEXT, "éé"), Outcome(["éé"]), max_size=4)
    check(frame(TEXT, "éé"), violation(1009, "message of 4 bytes exceeds max_size=3"), max_size=3)


def test_max_size_does_not_limit_control_frames():
    check(frame(PING, bytes(125)), Outcome(controls=[(9, bytes(125))]), max_size=10)
    data = frame(BINARY, bytes(10), False) + frame(PING, b"ping") + frame(CONT, b"")
    check(data, Outcome([bytes(10)], [(9, b"ping")]), max_size=10)


def test_max_size_is_compared_as_soon_as_the_length_is_there():
    decoder, _ = make_decoder(is_client=False, max_size=1 << 20)
    header = encode_header(BINARY, 1_310_720, KEY)
    assert decoder.feed(header[:-5]) == []
    assert decoder.error is None
    assert decoder.feed(header[-5:-4]) == []
    assert str(decoder.error) == "message of 1,310,720 bytes exceeds max_size=1,048,576"
    assert decoder.error.close_code == 1009


@pytest.mark.parametrize("feed", [b"", b"\x81\x01x"])
def test_messages_before_a_violation_are_returned_and_nothing_after_it(feed):
    decoder, outcome = make_decoder()
    data = encode_frame(TEXT, "1") + encode_frame(PING, b"2") + encode_frame(TEXT, b"\xff") + encode_frame(TEXT, "3")
    assert decoder.feed(data) == ["1"]
    assert outcome.controls == [(9, b"2")]
    assert decoder.error.close_code == 1007
    assert decoder.feed(feed) == []
    assert not decoder.pending
    assert decoder.get_buffer() is None


# UTF-8


@both_sides
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"ab\xff", "invalid start byte at byte 2"),
        (b"\x80", "invalid start byte at byte 0"),
        (b"\xc0\xaf", "invalid start byte at byte 0"),
        (b"ab\xe2\x28\xa1", "invalid continuation byte at byte 2"),
        (b"\xed\xa0\x80", "invalid continuation byte at byte 0"),
        (b"\xf4\x90\x80\x80", "invalid continuation byte at byte 0"),
        ("ab€".encode()[:-1], "unexpected end of data at byte 2"),
        (b"x" * 600 + b"\xff" + b"x" * 600, "invalid start byte at byte 600"),
    ],
)
def test_text_that_is_not_utf_8(payload, message, is_client):
    expected = violation(1007, f"text message is not UTF-8: {message}")
    check(frame(TEXT, payload, is_client=is_client), expected, is_client=is_client)
    for split in range(0, len(payload), 1 if len(payload) < 10 else 300):
        data = frame(TEXT, payload[:split], False, is_client=is_client)
        data += frame(CONT, b"", False, is_client=is_client)
        data += frame(CONT, payload[split:], is_client=is_client)
        check(data, expected, is_client=is_client)


@both_sides
@pytest.mark.parametrize("text", ["aé€😀\U0010ffff\ud7ff\ue000\0", "€" * 50])
def test_a_character_may_be_cut_by_fragments(text, is_client):
    payload = text.encode()
    for split in range(len(payload) + 1):
        data = frame(TEXT, payload[:split], False, is_client=is_client)
        data += frame(CONT, payload[split:], is_client=is_client)
        check(data, Outcome([text]), is_client=is_client)


def test_binary_messages_are_not_validated():
    check(frame(BINARY, b"\xff", False) + frame(CONT, b"\xff"), Outcome([b"\xff\xff"]))


def first_invalid(payload: bytes, final: bool) -> int | None:
    """Return how many bytes must have come before they cannot become UTF-8 any more."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for count in range(1, len(payload) + 1):
        try:
            decoder.decode(payload[count - 1 : count], final=final and count == len(payload))
        except UnicodeDecodeError:
            return count
    return None


AWKWARD = st.lists(
    st.sampled_from(
        [
            *(character.encode() for character in "aé€😀"),
            *(b"\xed", b"\xed\xa0\x80", b"\xc0", b"\xe0\x80", b"\xe0\xa0", b"\xf0\x8f", b"\xf0\x90\x80"),
            *(b"\xf4\x8f", b"\xf4\x90", b"\xf5", b"\x80", b"\xbf", b"\xff"),
        ]
    ),
    max_size=6,
).map(b"".join)


@given(payload=AWKWARD | st.binary(max_size=12), is_client=st.booleans(), cuts=st.sets(st.integers(0, 12)))
def test_text_fails_with_the_first_byte_that_cannot_be_utf_8(payload, is_client, cuts):
    decoder, _ = make_decoder(is_client=is_client)
    key = None if is_client else KEY
    bounds = [0, *sorted(cut for cut in cuts if cut < len(payload)), len(payload)]
    expected = first_invalid(payload, final=True)
    seen = 0
    messages = []
    for index, (start, stop) in enumerate(pairwise(bounds)):
        fin = stop == len(payload) and index == len(bounds) - 2
        header = encode_header(CONT if index else TEXT, stop - start, key, fin)
        messages += decoder.feed(header)
        fragment = payload[start:stop] if is_client else apply_mask(payload[start:stop], KEY)
        for i in range(len(fragment)):
            assert decoder.error is None
            messages += decoder.feed(fragment[i : i + 1])
            seen += 1
            assert (decoder.error is not None) == (seen == expected)
            if decoder.error is not None:
                assert decoder.error.close_code == 1007
                return
    assert expected is None
    assert messages == [payload.decode()]


# Room


def cost(message: str | bytes) -> int:
    return len(message) + MESSAGE_OVERHEAD


@both_sides
def test_decoding_stops_once_the_messages_have_reached_room(is_client):
    sent = ["é", b"", b"12345", "67890", b"x" * 200, "end"]
    # The second is fragmented, and the third has a control frame before it.
    encoded = [frame(TEXT if isinstance(message, str) else BINARY, message, is_client=is_client) for message in sent]
    encoded[1] = frame(BINARY, b"", False, is_client=is_client) + frame(CONT, b"", is_client=is_client)
    encoded[2] = frame(PING, b"ping", is_client=is_client) + encoded[2]
    data = b"".join(encoded)
    sums = list(accumulate(map(cost, sent)))
    for room in range(-1, sums[-1] + 2):
        expected = next((n for n, total in enumerate([0, *sums]) if total >= room), len(sent))
        for start in (0, 1, len(encoded[0]) - 1):
            decoder, outcome = make_decoder(is_client=is_client)
            assert decoder.feed(data[:start]) == []
            assert decoder.feed(data[start:], room) == sent[:expected]
            assert decoder.room == room - sum(map(cost, sent[:expected]))
            assert decoder.pending == (expected < len(sent))
            assert decoder.feed(b"", 0) == []
            assert decoder.room == 0
            assert decoder.pending == (expected < len(sent))
            assert decoder.feed(b"") == sent[expected:]
            assert decoder.room == sys.maxsize - sum(map(cost, sent[expected:]))
            assert not decoder.pending
            assert outcome.controls == [(9, b"ping")]


def test_data_fed_while_some_is_pending_comes_after_it():
    decoder, _ = make_decoder()
    assert decoder.feed(encode_frame(TEXT, "1") + encode_frame(TEXT, "2"), 1) == ["1"]
    assert decoder.feed(encode_frame(TEXT, "3")[:2], 0) == []
    assert decoder.feed(encode_frame(TEXT, "3")[2:], 0) == []
    assert decoder.pending
    assert decoder.feed(encode_frame(TEXT, "4"), 1) == ["2"]
    assert decoder.feed(b"") == ["3", "4"]


def test_the_rest_of_a_payload_waits_for_room():
    decoder, _ = make_decoder()
    data = encode_frame(TEXT, "12345") + encode_frame(TEXT, "6")
    assert decoder.feed(data[:4]) == []
    assert decoder.feed(data[4:5], 0) == []
    assert decoder.pending
    assert decoder.feed(data[5:], 0) == []
    assert decoder.feed(b"", 1) == ["12345"]
    assert decoder.pending
    assert decoder.feed(b"", 1) == ["6"]
    assert not decoder.pending


def test_a_violation_waits_for_its_turn():
    decoder, _ = make_decoder()
    assert decoder.feed(encode_frame(TEXT, "1") + b"\xff\xff", 1) == ["1"]
    assert decoder.error is None
    assert decoder.pending
    assert decoder.feed(b"", 1) == []
    assert decoder.error is not None
    assert not decoder.pending


@both_sides
def test_room_counts_the_messages_before_a_violation(is_client):
    decoder, _ = make_decoder(is_client=is_client)
    good = frame(TEXT, "12345", is_client=is_client)
    for bad, error in ((frame(TEXT, b"\xff", is_client=is_client), 1007), (b"\xff\xff", 1002)):
        decoder, _ = make_decoder(is_client=is_client)
        assert decoder.feed(good + bad + good, 1000) == ["12345"]
        assert decoder.error.close_code == error
        assert decoder.room == 1000 - cost("12345")
        assert decoder.feed(good, 500) == []
        assert decoder.room == 500


@both_sides
def test_room_counts_what_lent_memory_brings(is_client):
    decoder, _ = make_decoder(is_client=is_client)
    assert decoder.room == sys.maxsize
    data = frame(BINARY, bytes(20_000), is_client=is_client)
    assert decoder.feed(data[:-20_000], 30_000) == []
    assert decoder.room == 30_000
    view = decoder.get_buffer()
    view[:5] = data[-20_000:-19_995]
    assert decoder.filled(5, 25_000) == []
    assert decoder.room == 25_000
    decoder.get_buffer()[:] = data[-19_995:]
    assert decoder.filled(19_995, 100) == [bytes(20_000)]
    assert decoder.room == 100 - cost(bytes(20_000))
    assert not decoder.pending


@both_sides
def test_a_violation_is_told_once_when_its_turn_comes(is_client):
    told = []
    decoder = Decoder(
        is_client=is_client,
        max_size=100,
        on_control=lambda opcode, payload: told.append(payload),
        on_error=lambda error: told.append((error, decoder.error)),
    )
    ping = frame(PING, b"ping", is_client=is_client)
    data = frame(TEXT, "1", is_client=is_client) + ping + frame(TEXT, "x" * 101, is_client=is_client) + ping
    assert decoder.feed(data, 1) == ["1"]
    assert told == []
    assert decoder.feed(b"", 1) == []
    assert decoder.error.close_code == 1009
    assert told == [b"ping", (decoder.error, decoder.error)]
    assert decoder.feed(data) == []
    assert len(told) == 2


# The message's own memory, and the scratch


def test_no_memory_is_lent_outside_a_large_payload():
    decoder, _ = make_decoder()
    assert decoder.get_buffer() is None
    decoder.feed(encode_header(BINARY, 16 * 1024 - 1))
    assert decoder.get_buffer() is None
    decoder.feed(bytes(16 * 1024 - 1))
    decoder.feed(encode_header(BINARY, 16 * 1024))
    assert decoder.get_buffer() is not None
    decoder.feed(b"x", 0)
    assert decoder.pending
    assert decoder.get_buffer() is None
    assert decoder.feed(bytes(16 * 1024 - 1)) == [b"x" + bytes(16 * 1024 - 1)]
    assert decoder.get_buffer() is None


def test_the_scratch_is_for_what_has_no_better_place():
    scratch = memoryview(bytearray(100))
    decoder, _ = make_decoder(scratch=scratch)
    assert decoder.get_buffer() is scratch
    decoder.feed(encode_header(BINARY, 16 * 1024 - 1))
    assert decoder.get_buffer() is scratch
    decoder.feed(bytes(16 * 1024 - 1))
    decoder.feed(encode_header(BINARY, 16 * 1024))
    assert decoder.get_buffer() is not scratch
    decoder.feed(b"x", 0)
    assert decoder.pending
    assert decoder.get_buffer() is scratch
    assert decoder.feed(bytes(16 * 1024 - 1)) == [b"x" + bytes(16 * 1024 - 1)]
    assert decoder.get_buffer() is scratch
    decoder.feed(b"\xff\xff")
    assert decoder.error is not None
    assert decoder.get_buffer() is scratch
    assert decoder.filled(100) == []


@both_sides
@pytest.mark.parametrize("room", [sys.maxsize, 1, 0])
@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_decoders_may_share_a_scratch(size, room, is_client):
    scratch = memoryview(bytearray(size))
    decoders = [make_decoder(is_client=is_client, scratch=scratch) for _ in range(2)]
    sent = [[bytes([i + j]) * 50 for j in range(0, 200, 2)] for i in range(2)]
    data = [b"".join(frame(BINARY, message, is_client=is_client) for message in messages) for messages in sent]
    for start in range(0, len(data[0]), size):
        for (decoder, outcome), part in zip(decoders, data, strict=True):
            part = part[start : start + size]
            view = decoder.get_buffer()
            assert view is scratch
            view[: len(part)] = part
            outcome.messages += decoder.filled(len(part), room)
    for (decoder, outcome), messages in zip(decoders, sent, strict=True):
        outcome.messages += decoder.feed(b"")
        assert outcome.messages == messages


def test_the_same_memory_is_lent_until_something_arrives():
    decoder, _ = make_decoder()
    decoder.feed(encode_header(BINARY, 100_000))
    view = decoder.get_buffer()
    assert decoder.get_buffer() is view
    view[:3] = b"abc"
    assert decoder.filled(3) == []
    decoder.get_buffer()[:1] = b"d"
    assert decoder.filled(1) == []
    assert decoder.feed(bytes(99_996)) == [b"abcd" + bytes(99_996)]


def test_nothing_may_have_arrived_in_the_lent_memory():
    decoder, _ = make_decoder(is_client=False)
    decoder.feed(encode_header(TEXT, 20_000, KEY))
    decoder.get_buffer()
    assert decoder.filled(0) == []
    assert decoder.feed(apply_mask(b"x" * 20_000, KEY)) == ["x" * 20_000]


@both_sides
def test_a_message_that_is_complete_in_the_lent_memory_waits_for_room(is_client):
    decoder, _ = make_decoder(is_client=is_client)
    payload = os.urandom(20_000)
    data = frame(BINARY, payload, is_client=is_client)
    decoder.feed(data[:-20_000])
    decoder.get_buffer()[:] = data[-20_000:]
    assert decoder.filled(20_000, 0) == []
    assert decoder.pending
    assert decoder.get_buffer() is None
    assert decoder.feed(b"", 0) == []
    assert decoder.pending
    following = frame(TEXT, "next", is_client=is_client)
    assert decoder.feed(following, 1) == [payload]
    assert decoder.pending
    assert decoder.feed(b"") == ["next"]
    assert not decoder.pending


def test_text_in_the_lent_memory_fails_early():
    decoder, _ = make_decoder(is_client=False)
    data = frame(TEXT, b"x" * 1000 + b"\xff" + b"x" * 30_000)
    decoder.feed(data[:500])
    decoder.get_buffer()[:600] = data[500:1100]
    assert decoder.filled(600) == []
    assert str(decoder.error) == "text message is not UTF-8: invalid start byte at byte 1000"
    assert decoder.get_buffer() is None


@pytest.mark.parametrize("scratch", [0, 5000], ids=["without-scratch", "with-scratch"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("sizes", [(100_000,), (300_000,), (1, 40_000, 0, 200_000), (50_000, 17_000, 3)])
@both_sides
@given(reads=st.lists(st.tuples(st.booleans(), st.integers(1, 1000) | st.integers(8_000, 70_000)), max_size=30))
@settings(max_examples=30)
def test_lent_memory_gives_the_same_as_feeding(is_client, sizes, opcode, scratch, reads):
    total = sum(sizes)
    message = ("aé€😀" * total).encode()[:total] if opcode == TEXT else os.urandom(total)
    if opcode == TEXT:
        message = message.decode(errors="ignore").encode().ljust(total, b".")
    encoded = b""
    start = 0
    for index, size in enumerate(sizes):
        fin = index == len(sizes) - 1
        encoded += frame(CONT if index else opcode, message[start : start + size], fin, is_client=is_client)
        start += size
    encoded += frame(PING, b"", is_client=is_client) + frame(TEXT, "next", is_client=is_client)

    decoder, outcome = make_decoder(is_client=is_client, scratch=memoryview(bytearray(scratch)) if scratch else None)
    pos = 0
    while pos < len(encoded):
        lend, read = reads.pop() if reads else (True, 64 * 1024)
        view = decoder.get_buffer() if lend else None
        if view is None:
            outcome.messages += decoder.feed(encoded[pos : pos + read])
            pos += read
        else:
            count = min(read, len(view), len(encoded) - pos)
            view[:count] = encoded[pos : pos + count]
            outcome.messages += decoder.filled(count)
            pos += count
    assert conclude(decoder, outcome) == decode([encoded], is_client=is_client)
    assert outcome == Outcome([message.decode() if opcode == TEXT else message, "next"], [(9, b"")])


# Attacks


@both_sides
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_an_announced_length_reserves_no_memory(opcode, is_client):
    decoder, _ = make_decoder(is_client=is_client)
    header = encode_header(opcode, 2**63 - 1, None if is_client else KEY)
    tracemalloc.start()
    try:
        decoder.feed(header)
        view = decoder.get_buffer()
        assert len(view) == 64 * 1024
        view[:] = apply_mask(b"x" * len(view), KEY) if not is_client else b"x" * len(view)
        decoder.filled(len(view))
        assert len(decoder.get_buffer()) == 64 * 1024
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()


def test_memory_grows_with_what_has_arrived():
    decoder, _ = make_decoder()
    decoder.feed(encode_header(BINARY, 10_000_000))
    arrived = 0
    tracemalloc.start()
    try:
        while arrived < 4_000_000:
            view = decoder.get_buffer()
            assert len(view) >= 16 * 1024
            assert arrived + len(view) <= max(64 * 1024, 2 * arrived)
            count = min(len(view), 50_000)
            decoder.filled(count)
            arrived += count
            assert tracemalloc.get_traced_memory()[0] < 2.2 * arrived + 100_000
    finally:
        tracemalloc.stop()


@both_sides
def test_a_one_byte_fragment_costs_a_byte_and_an_empty_one_nothing(is_client):
    decoder, _ = make_decoder(is_client=is_client)
    decoder.feed(frame(BINARY, b"", False, is_client=is_client))
    for payload in (b"", b"x"):
        fragments = frame(CONT, payload, False, is_client=is_client) * 100
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(20):
                decoder.feed(fragments)
            assert tracemalloc.get_traced_memory()[0] - before < 2000 * len(payload) * 1.2 + 500
        finally:
            tracemalloc.stop()
    assert decoder.feed(frame(CONT, b"", is_client=is_client)) == [b"x" * 2000]


def test_taking_the_messages_of_a_chunk_one_by_one_does_not_copy_the_rest():
    decoder, _ = make_decoder()
    assert decoder.feed(encode_frame(TEXT, "x") * 1000, 1) == ["x"]
    count = 1
    tracemalloc.start()
    try:
        while decoder.pending:
            assert decoder.feed(b"", 1) == ["x"]
            count += 1
        assert tracemalloc.get_traced_memory()[1] < 1000
    finally:
        tracemalloc.stop()
    assert count == 1000


def test_the_beginning_of_a_frame_does_not_keep_its_chunk():
    for beginning in (b"\x82", b"\x82\x7e\x01", b"\x89\x02x"):
        decoder, _ = make_decoder()
        chunk = encode_frame(BINARY, bytes(60_000)) + beginning
        references = sys.getrefcount(chunk)
        decoder.feed(chunk)
        assert sys.getrefcount(chunk) == references


# Any bytes in any chunks


def legal_frames(is_client):
    """Sequences of frames, most of them legal."""
    payload = st.binary(max_size=130) | st.text(max_size=20) | st.integers(500, 700).map(lambda size: b"x" * size)
    one = st.tuples(
        st.sampled_from([TEXT, BINARY, CONT, PING, PONG, TEXT, BINARY, CLOSE, 3]), payload, st.booleans()
    ).map(lambda args: frame(*args, is_client=is_client))
    good = st.tuples(st.sampled_from([TEXT, BINARY]), st.lists(st.text(max_size=40), min_size=1, max_size=4)).map(
        lambda args: b"".join(
            frame(CONT if i else args[0], part, i == len(args[1]) - 1, is_client=is_client)
            + frame(PING, b"%d" % i, is_client=is_client)
            for i, part in enumerate(args[1])
        )
    )
    return st.lists(good | good | good | one, max_size=8).map(b"".join)


@given(
    case=st.booleans().flatmap(lambda is_client: st.tuples(st.just(is_client), legal_frames(is_client))),
    noise=st.binary(max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    rooms=st.lists(st.integers(-1, 300), max_size=12),
    max_size=st.none() | st.integers(0, 600),
)
@example(case=(True, b""), noise=b"\x01\x02\xe2\x82\x80\x01\xac", cuts=[], rooms=[], max_size=None)
def test_any_chunking_and_any_room_give_the_same(case, noise, cuts, rooms, max_size):
    is_client, data = case
    data += noise
    expected = decode([data], is_client=is_client, max_size=max_size)
    assert decode(bytewise(data), is_client=is_client, max_size=max_size) == expected

    decoder, outcome = make_decoder(is_client=is_client, max_size=max_size)
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, stop in pairwise(bounds):
        room = rooms.pop() if rooms else sys.maxsize
        outcome.messages += decoder.feed(data[start:stop], room)
    while decoder.pending:
        messages = decoder.feed(b"", 1)
        assert len(messages) <= 1
        outcome.messages += messages
    assert conclude(decoder, outcome) == expected


@given(
    messages=st.lists(st.text(max_size=200) | st.binary(max_size=200), max_size=10),
    is_client=st.booleans(),
    key=st.binary(min_size=4, max_size=4),
)
def test_what_is_encoded_is_decoded(messages, is_client, key):
    data = b"".join(
        encode_frame(TEXT if isinstance(message, str) else BINARY, message, None if is_client else key)
        for message in messages
    )
    assert decode([data], is_client=is_client) == Outcome(messages)


# Encoding


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("fin", [True, False])
def test_a_frame_is_its_header_and_its_masked_payload(size, key, fin):
    payload = os.urandom(size)
    expected = encode_header(BINARY, size, key, fin) + (payload if key is None else apply_mask(payload, key))
    for kind in (bytes, bytearray, memoryview):
        assert encode_frame(BINARY, kind(payload), key, fin) == expected
    assert encode_frame(BINARY, memoryview(bytes(reversed(payload)))[::-1], key, fin) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, "81 00"),
        (125, "81 7d"),
        (126, "81 7e 00 7e"),
        (65535, "81 7e ff ff"),
        (65536, "81 7f 00 00 00 00 00 01 00 00"),
        (2**63 - 1, "81 7f 7f ff ff ff ff ff ff ff"),
    ],
)
def test_lengths_are_encoded_in_the_fewest_bytes(length, expected):
    unmasked = bytes.fromhex(expected)
    assert encode_header(TEXT, length) == unmasked
    masked = bytearray(unmasked)
    masked[1] |= 0x80
    assert encode_header(TEXT, length, KEY) == masked + KEY


@pytest.mark.parametrize("opcode", Opcode)
def test_the_first_byte_is_fin_rsv_and_opcode(opcode):
    for size in (0, 126, 65536):
        assert encode_frame(opcode, bytes(size))[0] == 0x80 | opcode
        assert encode_frame(opcode, bytes(size), None, False)[0] == opcode
        assert encode_frame(0x40 | opcode, bytes(size), KEY)[0] == 0xC0 | opcode


def test_text_is_encoded_as_utf_8():
    assert encode_frame(TEXT, "é€") == encode_frame(TEXT, "é€".encode())
    with pytest.raises(UnicodeEncodeError):
        encode_frame(TEXT, "\ud800")


def test_payloads_are_measured_in_bytes():
    numbers = memoryview(array.array("I", [1, 2, 3]))
    assert encode_frame(BINARY, numbers) == encode_frame(BINARY, numbers.tobytes())
    assert apply_mask(numbers, KEY) == apply_mask(numbers.tobytes(), KEY)


# Masking


def naive_mask(data, key):
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


def test_masking_of_any_size_and_from_any_offset():
    data = os.urandom(600)
    sizes = [*range(40), *range(508, 520), 600]
    for size in sizes:
        for start in range(min(9, 600 - size)):
            masked = naive_mask(data[start : start + size], KEY)
            assert apply_mask(memoryview(data)[start : start + size], KEY) == masked
            part = bytearray(data)
            _pycodec._mask_part(part, start, start + size, KEY)
            assert part == data[:start] + masked + data[start + size :]


@given(st.binary(max_size=1500), st.binary(min_size=4, max_size=4))
def test_masking_is_exclusive_or_with_the_key_repeated(data, key):
    masked = apply_mask(data, key)
    assert masked == naive_mask(data, key)
    for kind in (bytearray, memoryview):
        assert apply_mask(kind(data), key) == masked
    assert apply_mask(masked, key) == data


@given(st.lists(st.integers(0, 600), max_size=6))
def test_a_masked_payload_may_come_in_pieces_of_any_size(sizes):
    payload = os.urandom(sum(sizes) + 1)
    data = frame(BINARY, payload)
    bounds = list(accumulate(sizes, initial=len(data) - len(payload)))
    chunks = [data[: bounds[0]], *(data[start:stop] for start, stop in pairwise(bounds)), data[bounds[-1] :]]
    assert decode(chunks) == Outcome([payload])


def test_masking_keys_are_the_operating_systems_bytes_each_used_once(monkeypatch):
    pools = [os.urandom(4096), os.urandom(4096)]
    remaining = iter(pools)
    monkeypatch.setattr(os, "urandom", lambda size: next(remaining)[:size])
    keys = MaskingKeys()
    assert b"".join(keys.next() for _ in range(2048)) == b"".join(pools)


@pytest.mark.parametrize("payload", [b"", b"bytes", "téxt", bytearray(b"x" * 200), memoryview(b"x" * 70_000)], ids=repr)
@pytest.mark.parametrize("fin", [True, False])
def test_masking_keys_encode_frames_each_with_the_next_key(payload, fin, monkeypatch):
    pool = os.urandom(4096)
    monkeypatch.setattr(os, "urandom", lambda size: pool[:size])
    keys, same = MaskingKeys(), MaskingKeys()
    for _ in range(3):
        assert keys.encode_frame(BINARY, payload, fin) == encode_frame(BINARY, payload, same.next(), fin)
        assert keys.encode_frame(TEXT, payload) == encode_frame(TEXT, payload, same.next())
        assert keys.next() == same.next()


def test_masking_keys_encode_no_lone_surrogate():
    keys = MaskingKeys()
    with pytest.raises(UnicodeEncodeError):
        keys.encode_frame(TEXT, "\ud800")
    assert decode([keys.encode_frame(TEXT, "next")]) == Outcome(["next"])


# Close frames


def test_close_codes_that_a_close_frame_may_carry():
    valid = {code for code in range(65536) if is_valid_close_code(code)}
    assert valid == {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (1005, "", b""),
        (1000, "", b"\x03\xe8"),
        (1001, "going away", b"\x03\xe9going away"),
        (4999, "é" * 61 + "x", b"\x13\x87" + "é".encode() * 61 + b"x"),
    ],
)
def test_close_payloads(code, reason, payload):
    assert encode_close(code, reason) == payload
    assert parse_close(payload) == (code, reason)


@pytest.mark.parametrize(
    ("reason", "cut"),
    [
        ("x" * 124, "x" * 123),
        ("é" * 62, "é" * 61),
        ("x" + "é" * 62, "x" + "é" * 61),
        ("€" * 42, "€" * 41),
        ("😀" * 31, "😀" * 30),
        ("😀" * 30 + "€€", "😀" * 30 + "€"),
    ],
)
def test_a_reason_is_cut_at_a_character(reason, cut):
    assert encode_close(1000, reason) == b"\x03\xe8" + cut.encode()


@pytest.mark.parametrize(
    ("payload", "close_code", "message"),
    [
        (b"\x03", 1002, "Close frame with a payload of 1 byte, expected none or a close code of 2 bytes"),
        (b"\x03\xe7", 1002, "Close frame with code 999, expected 1000-1003, 1007-1014 or 3000-4999"),
        (b"\x03\xed", 1002, "Close frame with code 1005, expected 1000-1003, 1007-1014 or 3000-4999"),
        (b"\x03\xe8\xff", 1007, "close reason is not UTF-8: invalid start byte at byte 0"),
        (b"\x03\xe8" + "€".encode()[:2], 1007, "close reason is not UTF-8: unexpected end of data at byte 0"),
    ],
)
def test_close_payloads_that_break_a_rule(payload, close_code, message):
    with pytest.raises(ProtocolError) as info:
        parse_close(payload)
    assert info.value.close_code == close_code
    assert str(info.value) == message
