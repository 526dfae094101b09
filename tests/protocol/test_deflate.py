"""permessage-deflate: negotiation, RFC 7692 §7.1, and messages, §7.2, with each library that is installed."""

import dataclasses
import itertools
import os
import random
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws.protocol import (
    Decoding,
    Deflate,
    InvalidHandshake,
    Parameters,
    PerMessageDeflate,
    ProtocolError,
    deflate_backends,
    inflating,
)
from anyio_ws.protocol.deflate_backends import FULL_FLUSH, Backend, CompressorPool, compressor_pool, installed_backends
from anyio_ws.protocol.handshake import ClientHandshake, ServerHandshake
from anyio_ws.protocol.handshake_fields import parse_extensions
from anyio_ws.protocol.url import parse_url

TAIL = b"\x00\x00\xff\xff"
BACKENDS = ["zlib", "zlib-ng", "isal"]
INSTALLED = installed_backends(None)


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compress with this library, and inflate with it if we do."""
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(deflate_backends, "_backends", {key: INSTALLED[key] for key in (name, "zlib")})


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return str(request.param)


def pair(options: Deflate | None = None, **agreed: Any) -> tuple[PerMessageDeflate, PerMessageDeflate]:
    """A client's and a server's side of the same agreement."""
    return tuple(PerMessageDeflate(is_client=side, options=options, **agreed) for side in (True, False))  # type: ignore[return-value]


def parameters(text: str) -> Parameters:
    ((_, parsed),) = parse_extensions(f"permessage-deflate{text}")
    return parsed


def summary(extension: PerMessageDeflate) -> tuple[int, bool, int, bool]:
    """Window bits and context takeover of what is sent, and of what is received."""
    compressing, receiving = extension._compressing, extension._inflating
    return compressing._window_bits, compressing.pool is None, receiving.window_bits, receiving.is_taken_over


def raw(data: bytes, bits: int = 15) -> bytes:
    """A message that stands alone, by the standard zlib."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def final(data: bytes) -> bytes:
    """One stream that ends with a block with BFINAL set."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def bomb(size: int) -> bytes:
    """That many zeros."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    mebibyte = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return (mebibyte * (size // 2**20))[:-4]


def refused(extension: PerMessageDeflate, payload: bytes, max_size: int | None = 2**20) -> tuple[int, str]:
    with pytest.raises(ProtocolError) as caught:
        extension.decode(payload, max_size)
    return caught.value.close_code, str(caught.value)


NO_TAKEOVER: dict[str, Any] = {"server_no_context_takeover": True, "client_no_context_takeover": True}
CUT_OFF = (1002, "message ends within a DEFLATE block, expected it to end after one")


# Options.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"server_max_window_bits": 8}, ValueError, "server_max_window_bits must be 9 to 15 or None, not 8"),
        ({"server_max_window_bits": 16}, ValueError, "server_max_window_bits must be 9 to 15 or None, not 16"),
        ({"client_max_window_bits": 8}, ValueError, "client_max_window_bits must be 9 to 15 or None, not 8"),
        ({"client_max_window_bits": "12"}, TypeError, "client_max_window_bits must be 9 to 15 or None, not '12'"),
        ({"client_max_window_bits": True}, TypeError, "client_max_window_bits must be 9 to 15 or None, not True"),
        ({"level": -1}, ValueError, "level must be 0 to 9 or None, not -1"),
        ({"level": 10}, ValueError, "level must be 0 to 9 or None, not 10"),
        ({"memory_level": 0}, ValueError, "memory_level must be 1 to 9, not 0"),
        ({"memory_level": 10}, ValueError, "memory_level must be 1 to 9, not 10"),
        ({"memory_level": None}, TypeError, "memory_level must be 1 to 9, not None"),
        ({"threshold": -1}, ValueError, "threshold must be an integer of at least 0, not -1"),
        ({"threshold": 1.5}, TypeError, "threshold must be an integer of at least 0, not 1.5"),
        ({"server_no_context_takeover": 1}, TypeError, "server_no_context_takeover must be a bool, not 1"),
        ({"client_no_context_takeover": None}, TypeError, "client_no_context_takeover must be a bool, not None"),
    ],
)
def test_an_option_out_of_its_range_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Deflate(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["server_max_window_bits", "client_max_window_bits"])
@pytest.mark.parametrize("bits", [9, 15, None])
def test_the_ends_of_the_ranges_are_within(name: str, bits: int | None) -> None:
    Deflate(**{name: bits}, level=0, memory_level=1, threshold=0)  # type: ignore[arg-type]
    Deflate(**{name: bits}, level=9, memory_level=9, threshold=2**40)  # type: ignore[arg-type]


def test_options_are_values() -> None:
    assert Deflate(level=1) == dataclasses.replace(Deflate(), level=1) != Deflate()
    assert len({Deflate(), Deflate(), Deflate.small(), Deflate.balanced(), Deflate.best()}) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        Deflate().level = 1  # type: ignore[misc]


# Negotiation: what a client offers.


@pytest.mark.parametrize(
    ("options", "offer"),
    [
        (Deflate(), "client_max_window_bits"),
        (Deflate(client_max_window_bits=10), "client_max_window_bits=10"),
        (Deflate(server_max_window_bits=10), "server_max_window_bits=10; client_max_window_bits"),
        (Deflate(server_no_context_takeover=True), "server_no_context_takeover; client_max_window_bits"),
        (Deflate(client_no_context_takeover=True), "client_no_context_takeover; client_max_window_bits"),
        (
            Deflate.small(),
            "server_no_context_takeover; client_no_context_takeover; "
            "server_max_window_bits=11; client_max_window_bits=11",
        ),
        (Deflate.balanced(), "server_max_window_bits=12; client_max_window_bits=12"),
        (Deflate.best(), "server_max_window_bits=15; client_max_window_bits=15"),
    ],
)
def test_a_client_offers_what_it_is_configured_to(options: Deflate, offer: str) -> None:
    handshake = ClientHandshake(parse_url("ws://h/"), extensions=[options])
    assert handshake.request.headers["Sec-WebSocket-Extensions"] == f"permessage-deflate; {offer}"


# Negotiation: what a server answers.

SERVER_CASES: list[tuple[dict[str, Any], str, str | None, tuple[int, bool, int, bool] | None]] = [
    # configuration, offer, answer, (own bits, own takeover, peer's bits, peer's takeover)
    ({}, "", "", (15, True, 15, True)),
    ({}, "; client_max_window_bits", "", (15, True, 15, True)),
    ({}, "; client_max_window_bits=15", "; client_max_window_bits=15", (15, True, 15, True)),
    ({}, "; client_max_window_bits=8", "; client_max_window_bits=8", (15, True, 8, True)),
    ({}, '; client_max_window_bits="10"', "; client_max_window_bits=10", (15, True, 10, True)),
    ({}, "; server_max_window_bits=15", "; server_max_window_bits=15", (15, True, 15, True)),
    ({}, "; server_max_window_bits=9", "; server_max_window_bits=9", (9, True, 15, True)),
    ({}, "; server_no_context_takeover", "; server_no_context_takeover", (15, False, 15, True)),
    ({}, "; client_no_context_takeover", "; client_no_context_takeover", (15, True, 15, False)),
    (
        {},
        "; client_max_window_bits=11; server_max_window_bits=12; client_no_context_takeover",
        "; client_no_context_takeover; server_max_window_bits=12; client_max_window_bits=11",
        (12, True, 11, False),
    ),
    # Ours, with and without the client's.
    ({"server_max_window_bits": 12}, "", "; server_max_window_bits=12", (12, True, 15, True)),
    (
        {"server_max_window_bits": 12},
        "; server_max_window_bits=10",
        "; server_max_window_bits=10",
        (10, True, 15, True),
    ),
    (
        {"server_max_window_bits": 12},
        "; server_max_window_bits=14",
        "; server_max_window_bits=12",
        (12, True, 15, True),
    ),
    ({"client_max_window_bits": 12}, "", "", (15, True, 15, True)),
    ({"client_max_window_bits": 12}, "; client_max_window_bits", "; client_max_window_bits=12", (15, True, 12, True)),
    ({"client_max_window_bits": 12}, "; client_max_window_bits=9", "; client_max_window_bits=9", (15, True, 9, True)),
    (
        {"client_max_window_bits": 12},
        "; client_max_window_bits=15",
        "; client_max_window_bits=12",
        (15, True, 12, True),
    ),
    ({"client_max_window_bits": 15}, "; client_max_window_bits", "; client_max_window_bits=15", (15, True, 15, True)),
    ({"server_no_context_takeover": True}, "", "; server_no_context_takeover", (15, False, 15, True)),
    ({"client_no_context_takeover": True}, "", "; client_no_context_takeover", (15, True, 15, False)),
    (
        NO_TAKEOVER,
        "; server_no_context_takeover",
        "; server_no_context_takeover; client_no_context_takeover",
        (15, False, 15, False),
    ),
    # Declined.
    ({}, "; server_max_window_bits=8", None, None),
    ({"server_max_window_bits": 12}, "; server_max_window_bits=8", None, None),
    ({}, "; unknown", None, None),
    ({}, "; Server_no_context_takeover", None, None),
    ({}, "; server_no_context_takeover=1", None, None),
    ({}, "; client_no_context_takeover=true", None, None),
    ({}, "; server_no_context_takeover; server_no_context_takeover", None, None),
    ({}, "; client_no_context_takeover; client_no_context_takeover", None, None),
    ({}, "; server_max_window_bits=10; server_max_window_bits=10", None, None),
    ({}, "; client_max_window_bits; client_max_window_bits", None, None),
    ({}, "; client_max_window_bits; client_max_window_bits=10", None, None),
    ({}, "; server_max_window_bits", None, None),
    *[
        ({}, f"; {name}_max_window_bits={value}", None, None)
        for name in ("server", "client")
        for value in ("7", "16", "0", "08", "09", "010", "+9", "-9", "9.0", "1e1", "0x9", "a", "10a", "100", "1_0")
    ],
]


@pytest.mark.parametrize(("options", "offer", "answer", "agreed"), SERVER_CASES)
def test_a_server_answers_or_declines_an_offer(
    options: dict[str, Any], offer: str, answer: str | None, agreed: tuple[int, bool, int, bool] | None
) -> None:
    accepted = Deflate(**options).accept(parameters(offer))
    if answer is None:
        assert accepted is None
    else:
        assert accepted is not None
        assert accepted[0] == parameters(answer)
        assert summary(accepted[1]) == agreed


@pytest.mark.parametrize("value", ["9\n", " 9", "٩", "９", "", "1٢"])
def test_window_bits_are_ascii_digits_whoever_parsed_them(value: str) -> None:
    assert Deflate().accept([("server_max_window_bits", value)]) is None
    with pytest.raises(ValueError, match="server_max_window_bits has the value"):
        Deflate().agree([("server_max_window_bits", value)])


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", "permessage-deflate"),
        (
            "permessage-deflate; x, permessage-deflate; server_max_window_bits=9, permessage-deflate",
            "permessage-deflate; server_max_window_bits=9",
        ),
        ("permessage-deflate; x, x-webkit-deflate-frame", None),
    ],
)
def test_a_server_takes_the_first_offer_that_it_can(offers: str, answer: str | None) -> None:
    handshake = ServerHandshake(extensions=[Deflate()])
    handshake.feed(
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: " + offers.encode() + b"\r\n\r\n"
    )
    response, _ = handshake.accept()
    assert response.headers.get("Sec-WebSocket-Extensions") == answer
    assert len(handshake.extensions) == (answer is not None)


# Negotiation: what a client makes of an answer.

CLIENT_CASES: list[tuple[dict[str, Any], str, str | tuple[int, bool, int, bool]]] = [
    # configuration, answer, message or (own bits, own takeover, peer's bits, peer's takeover)
    ({}, "", (15, True, 15, True)),
    ({}, "; server_no_context_takeover", (15, True, 15, False)),
    ({}, "; client_no_context_takeover", (15, False, 15, True)),
    ({}, "; server_max_window_bits=8", (15, True, 8, True)),
    ({}, "; server_max_window_bits=15", (15, True, 15, True)),
    ({}, "; client_max_window_bits=8", (8, True, 15, True)),
    ({}, "; client_max_window_bits=9", (9, True, 15, True)),
    ({}, '; client_max_window_bits="15"; server_max_window_bits=10', (15, True, 10, True)),
    ({"client_max_window_bits": 12}, "", (12, True, 15, True)),
    ({"client_max_window_bits": 12}, "; client_max_window_bits=15", (12, True, 15, True)),
    ({"client_max_window_bits": 12}, "; client_max_window_bits=10", (10, True, 15, True)),
    ({"client_no_context_takeover": True}, "", (15, False, 15, True)),
    ({"server_max_window_bits": 12}, "; server_max_window_bits=12", (15, True, 12, True)),
    ({"server_max_window_bits": 12}, "; server_max_window_bits=9", (15, True, 9, True)),
    ({"server_no_context_takeover": True}, "; server_no_context_takeover", (15, True, 15, False)),
    # Refused.
    (
        {"server_max_window_bits": 12},
        "",
        "server_max_window_bits is missing; the option server_max_window_bits=12 is the most",
    ),
    (
        {"server_max_window_bits": 12},
        "; server_max_window_bits=13",
        "server_max_window_bits is 13; the option server_max_window_bits=12 is the most",
    ),
    (
        {"server_no_context_takeover": True},
        "; client_no_context_takeover",
        "server_no_context_takeover is missing, which the option of this name asks for",
    ),
    ({}, "; client_max_window_bits", "client_max_window_bits has no value; expected 8 to 15"),
    ({}, "; server_max_window_bits", "server_max_window_bits has no value; expected 8 to 15"),
    ({}, "; unknown=1", "unknown is no parameter of permessage-deflate"),
    ({}, f"; {'x' * 99}", f"{'x' * 40} is no parameter of permessage-deflate"),
    ({}, "; server_no_context_takeover=1", "server_no_context_takeover has a value; expected none"),
    ({}, "; client_no_context_takeover=1", "client_no_context_takeover has a value; expected none"),
    ({}, "; server_no_context_takeover; server_no_context_takeover", "server_no_context_takeover comes twice"),
    ({}, "; client_max_window_bits=9; client_max_window_bits=9", "client_max_window_bits comes twice"),
    *[
        ({}, f"; {name}_max_window_bits={value}", f"{name}_max_window_bits has the value {value}; expected 8 to 15")
        for name in ("server", "client")
        for value in ("7", "16", "08", "+9", "9.0", "a")
    ],
]


@pytest.mark.parametrize(("options", "answer", "expected"), CLIENT_CASES)
def test_a_client_agrees_to_an_answer_or_fails_the_handshake(
    options: dict[str, Any], answer: str, expected: str | tuple[int, bool, int, bool]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("anyio_ws.protocol.client_handshake.os.urandom", lambda count: b"the sample nonce")
        handshake = ClientHandshake(parse_url("ws://h/"), extensions=[Deflate(**options)])
    data = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        f"Sec-WebSocket-Extensions: permessage-deflate{answer}\r\n\r\n"
    ).encode()
    if isinstance(expected, str):
        with pytest.raises(InvalidHandshake) as caught:
            handshake.feed(data)
        assert str(caught.value).endswith(f"; {expected}")
    else:
        handshake.feed(data)
        (extension,) = handshake.extensions
        assert isinstance(extension, PerMessageDeflate)
        assert summary(extension) == expected


def test_a_client_does_not_compress_for_a_window_that_zlib_does_not_have(backend: str) -> None:
    extension = Deflate(threshold=0).agree(parameters("; client_max_window_bits=8"))
    assert not extension.can_compress
    assert extension.encode(1, b"a" * 1000) is None
    assert extension.decode(raw(b"Hello"), None) == b"Hello"


CONFIGURATIONS = [
    Deflate(**dict(zip(("server_max_window_bits", "client_max_window_bits", *NO_TAKEOVER), values, strict=True)))  # type: ignore[arg-type]
    for values in itertools.product((None, 9, 15), (None, 10), (False, True), (False, True))
]


def test_any_two_of_us_agree() -> None:
    for mine, theirs in itertools.product(CONFIGURATIONS, CONFIGURATIONS):
        initiating = ClientHandshake(parse_url("ws://h/"), extensions=[mine])
        accepting = ServerHandshake(extensions=[theirs])
        accepting.feed(initiating.request_bytes())
        initiating.feed(accepting.accept()[1])
        (client,), (server,) = initiating.extensions, accepting.extensions
        assert isinstance(client, PerMessageDeflate)
        assert isinstance(server, PerMessageDeflate)
        sent, taken_over, received, peer_taken_over = summary(server)
        assert sent == summary(client)[2]
        assert taken_over == summary(client)[3]
        # The client may keep below what the server allows.
        assert received >= summary(client)[0]
        assert peer_taken_over >= summary(client)[1]


# Messages: RFC 7692 §7.2.3.


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param("f2 48 cd c9 c9 07 00", id="7.2.3.1"),
        pytest.param("00 05 00 fa ff 48 65 6c 6c 6f 00", id="7.2.3.3"),
        pytest.param("f3 48 cd c9 c9 07 00 00", id="7.2.3.4"),
        pytest.param("f2 48 05 00 00 00 ff ff ca c9 c9 07 00", id="7.2.3.5"),
        # The last byte is missing, which the RFC asks for; the message is as complete.
        pytest.param("f3 48 cd c9 c9 07 00", id="7.2.3.4, short"),
    ],
)
@pytest.mark.parametrize("takeover", [True, False])
def test_the_examples_of_the_rfc_are_inflated(payload: str, takeover: bool, backend: str) -> None:
    agreed = {} if takeover else NO_TAKEOVER
    data = bytes.fromhex(payload)
    client, _ = pair(**agreed)
    for _ in range(3):
        assert client.decode(data, 5) == b"Hello"
    # In parts of every size.
    for size, most in itertools.product(range(1, len(data) + 1), range(1, 7)):
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        assert in_parts(client, parts, most) == b"Hello"


def in_parts(extension: PerMessageDeflate, parts: list[bytes], max_length: int) -> bytes:
    decoder, out = extension.decoder(), b""
    for number, part in enumerate(parts, 1):
        piece, more = decoder.decode(part, max_length, fin=number == len(parts))
        out += piece
        while more:
            assert len(piece) == max_length
            piece, more = decoder.decode(b"", max_length)
            out += piece
    return out


def test_the_second_message_of_the_rfc_refers_to_the_first(backend: str) -> None:
    client, server = pair()
    first, second = bytes.fromhex("f2 48 cd c9 c9 07 00"), bytes.fromhex("f2 00 11 00 00")
    assert [client.decode(data, 5) for data in (first, second, second)] == [b"Hello"] * 3
    assert server.compress(b"Hello") == first
    if backend == "zlib":
        assert server.compress(b"Hello") == second


def test_an_empty_message_is_the_one_byte_of_the_rfc(backend: str) -> None:
    for agreed in ({}, NO_TAKEOVER):
        client, server = pair(Deflate(threshold=0), **agreed)
        for message in (b"", b"", b"abc" * 30, b"", b"", b"abc" * 30):
            data = server.encode(1, message)
            if data is None:
                # An empty one would become longer, and none of them refers to another.
                assert not message
                assert agreed
                data = server.compress(message)
            assert data
            assert client.decode(data, None) == message
        assert zlib.decompressobj(-15).decompress(server.compress(b"") + TAIL) == b""
    if backend == "zlib":
        assert server.compress(b"") == b"\x00"


def test_a_message_with_no_bytes_at_all_is_empty(backend: str) -> None:
    for agreed in ({}, NO_TAKEOVER):
        client, server = pair(**agreed)
        assert client.decode(b"", 0) == b""
        assert in_parts(client, [b"", b""], 9) == b""
        assert client.decode(server.compress(b"Hello"), 5) == b"Hello"


# Messages: which are compressed.


def test_a_message_below_the_threshold_stays_as_it_is(backend: str) -> None:
    _, server = pair(Deflate(threshold=100))
    assert server.encode(1, b"a" * 99) is None
    assert server.encode(1, b"a" * 100) is not None
    assert server._compressing.compressor is not None


def test_nothing_is_made_before_the_first_message(backend: str) -> None:
    client, server = pair()
    assert server.encode(2, b"short") is None
    assert server._compressing.compressor is None
    assert client._inflating.inflater is None


def test_without_takeover_a_message_that_would_grow_stays_as_it_is(backend: str) -> None:
    noise = os.urandom(1000)
    _, server = pair(**NO_TAKEOVER)
    assert server.encode(2, noise) is None
    assert server.encode(2, b"a" * 1000) is not None
    # With it, the next message may refer to this one.
    client, server = pair()
    first, second = server.encode(2, noise), server.encode(2, noise)
    assert first is not None
    assert second is not None
    assert len(second) < 100 < 1000 <= len(first)
    assert client.decode(first, None) == client.decode(second, None) == noise


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_payloads_are_any_bytes(kind: Callable[[bytes], Any], backend: str) -> None:
    for agreed in ({}, NO_TAKEOVER):
        client, server = pair(**agreed)
        message = b"any bytes " * 100
        data = server.encode(1, kind(message))
        assert data is not None
        assert client.decode(kind(data), 1000) == message
        started = client.start_decode(kind(server.compress(message * 1000)), None)
        assert isinstance(started, Decoding)
        assert started.finish() == message * 1000


# Round trips.


def some_message(rng: random.Random, size: int) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(size)
    if kind == 1:
        return bytes([rng.randrange(256)]) * size
    if kind == 2:
        # Repeats at distances about those of the windows.
        period = rng.choice([256, 512, 513, 1024, 4096, 4097, 32768, 32769])
        return (rng.randbytes(period) * (size // period + 1))[:size]
    words = [rng.randbytes(rng.randrange(3, 20)) for _ in range(20)]
    return b"".join(rng.choices(words, k=size // 10 + 1))[:size]


SIZES = [0, 1, 2, 63, 64, 65, 200, 1000, 5000, 20_000, 70_000, 300_000]


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_whatever_is_compressed_any_inflater_inflates(backend_name: str, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(backend_name, monkeypatch)
        options = Deflate(
            level=data.draw(st.one_of(st.none(), st.integers(0, 9))),
            memory_level=data.draw(st.integers(1, 9)),
            threshold=0,
        )
        bits, takeover = data.draw(st.integers(9, 15)), data.draw(st.booleans())
        client, server = pair(options, server_max_window_bits=bits, server_no_context_takeover=not takeover)
        rng = random.Random(data.draw(st.integers(0, 2**32)))
        plain = zlib.decompressobj(-bits)
        for size in data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=5)):
            message = some_message(rng, size)
            if data.draw(st.booleans()):
                payload = server.compress(message)
            else:
                encoder = server.encoder(2)
                cut = data.draw(st.integers(0, size))
                parts = [message[:cut], b"", message[cut:]]
                payload = b"".join(encoder.encode(part, fin=at == 2) for at, part in enumerate(parts))
            if not takeover:
                plain = zlib.decompressobj(-bits)
            assert plain.decompress(payload + TAIL) == message
            assert client.decode(payload, size) == message


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_whatever_zlib_compresses_is_inflated_whole_and_in_parts(backend_name: str, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(backend_name, monkeypatch)
        bits, takeover = data.draw(st.integers(9, 15)), data.draw(st.booleans())
        client, _ = pair(server_max_window_bits=bits, server_no_context_takeover=not takeover)
        rng = random.Random(data.draw(st.integers(0, 2**32)))
        compressor = zlib.compressobj(data.draw(st.integers(0, 9)), zlib.DEFLATED, -bits)
        for size in data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=5)):
            message = some_message(rng, size)
            mode = data.draw(st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FINISH]))
            if not takeover:
                compressor = zlib.compressobj(6, zlib.DEFLATED, -bits)
            payload = compressor.compress(message) + compressor.flush(mode)
            if mode == zlib.Z_FINISH:
                compressor = zlib.compressobj(6, zlib.DEFLATED, -bits)
                payload += b"\x00" if data.draw(st.booleans()) else b""
            else:
                payload = payload[:-4] or b"\x00"
            if data.draw(st.booleans()):
                assert client.decode(payload, data.draw(st.sampled_from([None, size, size + 1]))) == message
            else:
                cut = data.draw(st.integers(0, len(payload)))
                most = data.draw(st.integers(max(1, size // 50), max(1, size * 2)))
                assert in_parts(client, [payload[:cut], payload[cut:]], most) == message


@pytest.mark.parametrize("options", [Deflate.small(), Deflate.balanced(), Deflate.best()])
def test_large_messages_of_every_preset(options: Deflate, backend: str) -> None:
    accepted = options.accept(options.offers()[0])
    assert accepted is not None
    server, client = accepted[1], options.agree(accepted[0])
    message = b"".join(b'{"id":%d},' % number for number in range(10_000_000 // 10))[:10_000_000]
    data = client.encode(1, message)
    assert data is not None
    assert len(data) < len(message) / 2
    assert server.decode(data, len(message)) == message
    assert refused(server, raw(message, 9), len(message) - 1) == (
        1009,
        "message of at least 10,000,000 bytes after inflating exceeds max_size=9,999,999",
    )


@pytest.mark.parametrize(
    "agreed",
    [
        dict(zip(("server_max_window_bits", "client_max_window_bits", *NO_TAKEOVER), values, strict=True))
        for values in itertools.product((9, 12, 15), (9, 15), (False, True), (False, True))
    ],
    ids=str,
)
def test_websockets_and_we_understand_each_other(agreed: dict[str, Any], backend: str) -> None:
    pmd = pytest.importorskip("websockets.extensions.permessage_deflate")
    frames = pytest.importorskip("websockets.frames")
    client, server = pair(Deflate(threshold=0), **agreed)
    bits = agreed["server_max_window_bits"], agreed["client_max_window_bits"]
    single = agreed["server_no_context_takeover"], agreed["client_no_context_takeover"]
    # remote_no_context_takeover, local_no_context_takeover, remote_max_window_bits, local_max_window_bits
    sides = [
        (client, pmd.PerMessageDeflate(single[1], single[0], bits[1], bits[0])),
        (server, pmd.PerMessageDeflate(single[0], single[1], bits[0], bits[1])),
    ]
    rng = random.Random(1)
    for (ours, theirs), size in itertools.product(sides, [1, 10, 0, 0, 1000, 50_000, 10, 100_000]):
        message = some_message(rng, size)
        frame = theirs.encode(frames.Frame(frames.Opcode.BINARY, message))
        assert frame.rsv1
        assert ours.decode(bytes(frame.data), size) == message
        sent = frames.Frame(frames.Opcode.BINARY, ours.compress(message), rsv1=True)
        assert bytes(theirs.decode(sent, max_size=2**20).data) == message


# Without context takeover.


def test_without_takeover_connections_share_compressors_and_no_data(backend: str) -> None:
    sides = [pair(**NO_TAKEOVER) for _ in range(3)]
    pools = {server._compressing.pool for _, server in sides}
    assert len(pools) == 1
    message = b"the same words in each message, " * 20
    for client, server in sides * 3:
        data = server.encode(1, message)
        assert data is not None
        # A new inflater: nothing refers to what another connection has sent.
        assert client.decode(data, None) == message == zlib.decompressobj(-15).decompress(data + TAIL)
        assert server._compressing.compressor is None
        assert client._inflating.inflater is None


def test_threads_share_compressors_without_takeover(backend: str) -> None:
    messages = [bytes([65 + number]) * 50_000 + os.urandom(50_000) for number in range(8)]
    wrong: list[bytes] = []

    def work(message: bytes) -> None:
        client, server = pair(**NO_TAKEOVER)
        for _ in range(20):
            if client.decode(server.compress(message), None) != message:
                wrong.append(message)

    threads = [threading.Thread(target=work, args=[message]) for message in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_few_idle_compressors_are_kept(backend: str) -> None:
    library = INSTALLED["zlib"]
    pool = CompressorPool(lambda: library.new_compressor(None, 9, 1))
    taken = [pool.take() for _ in range(10)]
    assert len(set(map(id, taken))) == 10
    for compressor in taken:
        library.compress(compressor, b"abc", FULL_FLUSH)
        pool.give_back(compressor)
    assert len(pool._idle) == pool._KEPT


class Failing:
    """A compressor without memory."""

    def compress(self, data: object) -> bytes:
        raise MemoryError

    flush = compress


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
def test_a_compressor_that_failed_is_not_used_again(
    agreed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    client, server = pair(**agreed)
    assert client.decode(server.compress(b"before"), None) == b"before"
    pool = server._compressing.pool
    if pool is None:
        server._compressing.compressor = Failing()
    else:
        monkeypatch.setattr(pool, "_idle", [Failing()])
    with pytest.raises(MemoryError):
        server.compress(b"lost")
    for _ in range(2):
        assert client.decode(server.compress(b"after" * 10), None) == b"after" * 10


# Context takeover.


def test_a_peer_that_keeps_the_context_although_it_agreed_not_to_is_refused(backend: str) -> None:
    keeping = PerMessageDeflate(is_client=False)
    client, _ = pair(**NO_TAKEOVER)
    message = os.urandom(1000)
    assert client.decode(keeping.compress(message), None) == message
    code, text = refused(client, keeping.compress(message))
    assert code == 1002
    assert text == "message is not valid DEFLATE, RFC 1951: invalid distance too far back"


def test_a_peer_with_a_larger_window_than_agreed_is_refused(backend: str) -> None:
    client, _ = pair(server_max_window_bits=9)
    peer = PerMessageDeflate(is_client=False)
    first, second = os.urandom(100), os.urandom(1000)
    assert client.decode(peer.compress(first), None) == first
    assert client.decode(peer.compress(second), None) == second
    assert refused(client, peer.compress(first)) == (
        1002,
        "message is not valid DEFLATE, RFC 1951: invalid distance too far back",
    )


def test_a_window_of_256_bytes_is_inflated(backend: str) -> None:
    for agreed in ({}, NO_TAKEOVER):
        client, _ = pair(server_max_window_bits=8, **agreed)
        message = bytes(range(200)) * 10
        # By zlib's window of 512 bytes, of which it refers back to 250.
        assert client.decode(raw(message, 9), None) == message


def test_an_idle_connection_may_give_its_compressor_back(backend: str) -> None:
    client, server = pair()
    message = os.urandom(200)
    for _ in range(3):
        assert client.decode(server.compress(message), None) == message
        assert server._compressing.compressor is not None
        server.rest()
        assert server._compressing.compressor is None
    assert client._inflating.inflater is not None
    client.release()
    server.release()
    assert client._inflating.inflater is None
    assert server._compressing.compressor is None


# What peers may do, and what they may not.

INVALID = {
    "a reserved block type": b"\x07",
    "a stored block with a wrong length": b"\x00\x05\x00\xff\xff",
    "noise": b"\xff" * 20,
    "a distance before the beginning": bytes.fromhex("f2 00 11 00 00"),
}


@pytest.mark.parametrize("payload", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
def test_what_is_not_deflate_is_refused(payload: bytes, agreed: dict[str, Any], backend: str) -> None:
    client, _ = pair(**agreed)
    code, text = refused(client, payload)
    assert code == 1002
    assert text.startswith("message is not valid DEFLATE, RFC 1951: invalid ")
    client, _ = pair(**agreed)
    with pytest.raises(ProtocolError) as caught:
        in_parts(client, [payload, b""], 100)
    assert (caught.value.close_code, str(caught.value)) == (code, text)


def test_large_messages_that_are_not_deflate_are_refused(backend: str) -> None:
    client, _ = pair()
    started = client.start_decode(raw(os.urandom(100_000))[:-1] + b"\x07", None)
    assert isinstance(started, Decoding)
    with pytest.raises(ProtocolError, match="invalid block type"):
        started.finish()


def test_a_message_that_is_cut_off_is_refused_without_takeover(backend: str) -> None:
    client, _ = pair(**NO_TAKEOVER)
    message = b"".join(b"%d " % number for number in range(1000))
    whole = raw(message)
    assert client.decode(whole, None) == message
    for cut in range(1, len(whole)):
        # The empty block at the end is as good as none.
        code, text = refused(client, whole[:cut], None)
        assert code == 1002
        assert (code, text) == CUT_OFF or "not valid DEFLATE" in text


def test_a_stored_block_that_is_cut_off_is_refused_without_takeover(backend: str) -> None:
    client, _ = pair(**NO_TAKEOVER)
    stored = bytes.fromhex("00 64 00 9b ff") + b"x" * 50
    assert refused(client, stored) == CUT_OFF
    with pytest.raises(ProtocolError) as caught:
        in_parts(client, [stored], 10)
    assert (caught.value.close_code, str(caught.value)) == CUT_OFF


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
@pytest.mark.parametrize("missing", [1, 2, 3, 4])
def test_a_last_stream_that_is_cut_off_does_not_end_with_what_we_append(
    missing: int, agreed: dict[str, Any], backend: str
) -> None:
    client, _ = pair(**agreed)
    # A stored block with BFINAL set, whose last bytes would be 00 00 ff ff.
    stored = b"\x01\x0a\x00\xf5\xff" + b"x" * (10 - missing)
    code, text = refused(client, stored)
    assert (code, text) == CUT_OFF
    client, _ = pair(**agreed)
    with pytest.raises(ProtocolError) as caught:
        in_parts(client, [stored], 100)
    assert (caught.value.close_code, str(caught.value)) == CUT_OFF


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
def test_a_message_may_have_several_streams(agreed: dict[str, Any], backend: str) -> None:
    parts = [b"one" * 50, b"", b"two" * 50_000, b"three"]
    streams = b"".join(map(final, parts))
    message = b"".join(parts)
    for payload in (streams, streams + b"\x00", streams + raw(b"end"), raw(b"begin") + TAIL + streams):
        client, _ = pair(**agreed)
        expected = (
            message + b"end" * payload.endswith(raw(b"end")) if payload.startswith(streams) else b"begin" + message
        )
        for max_size in (None, len(expected)):
            assert client.decode(payload, max_size) == expected
        assert refused(client, payload, len(expected) - 1)[0] == 1009
        client, _ = pair(**agreed)
        assert in_parts(client, [payload[:100], payload[100:]], 1000) == expected
        assert in_parts(client, [payload], len(expected)) == expected
        # The next message is by a new compressor too.
        assert client.decode(raw(b"Hello"), 5) == b"Hello"


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
def test_a_stream_for_each_few_bytes_is_refused(agreed: dict[str, Any], backend: str) -> None:
    client, _ = pair(**agreed)
    assert client.decode(final(b"") * 15, None) == b""
    # Flushes of some size are fine however many there are.
    assert len(client.decode(final(os.urandom(500)) * 1000, None)) == 500_000
    assert refused(client, final(b"") * 20) == (
        1002,
        "message with too many DEFLATE blocks that have BFINAL set; expected at most 16 and one for each 256 bytes",
    )
    client, _ = pair(**agreed)
    payload = final(b"") * 2**20
    before = time.perf_counter()
    assert refused(client, payload)[0] == 1002
    assert time.perf_counter() - before < 5


def test_blocks_with_bfinal_are_granted_by_what_has_come(backend: str) -> None:
    """And not by the pieces in which it comes."""
    client, _ = pair()
    flushes = final(os.urandom(600)) * 100
    pieces = [flushes[start : start + 50] for start in range(0, len(flushes), 50)]
    assert len(in_parts(client, pieces, 1000)) == 60_000
    client, _ = pair()
    with pytest.raises(ProtocolError, match="BFINAL"):
        in_parts(client, [final(b"")] * 17, 1000)


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
def test_what_is_large_is_finished_later_also_behind_a_block_with_bfinal(agreed: dict[str, Any], backend: str) -> None:
    message = b"x" + bytes(2**21)
    payload = final(message[:1]) + final(message[1:]) + b"\x00"
    assert len(payload) < inflating.INLINE_INPUT
    for max_size in (len(message), 1000):
        client, _ = pair(**agreed)
        started = client.start_decode(payload, max_size)
        assert isinstance(started, Decoding)
        if max_size == len(message):
            assert started.finish() == message
        else:
            with pytest.raises(ProtocolError, match=r"at least 1,001 bytes after inflating"):
                started.finish()


# Limits.


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
@pytest.mark.parametrize("size", [1, 2, 100, 65_536, inflating.INLINE_OUTPUT - 1, inflating.INLINE_OUTPUT, 300_000])
def test_max_size_counts_inflated_bytes(size: int, agreed: dict[str, Any], backend: str) -> None:
    for message in (b"a" * size, os.urandom(size)):
        payload = raw(message)
        for limit in (size, size + 1, None):
            client, _ = pair(**agreed)
            assert client.decode(payload, limit) == message
        client, _ = pair(**agreed)
        assert refused(client, payload, size - 1) == (
            1009,
            f"message of at least {size:,} bytes after inflating exceeds max_size={size - 1:,}",
        )


BOMB = 900 * 2**20


@pytest.fixture(scope="module")
def the_bomb() -> bytes:
    return bomb(BOMB)


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
@pytest.mark.parametrize("max_size", [0, 1000, 2**20, 2**24])
def test_a_bomb_is_stopped_at_max_size(the_bomb: bytes, max_size: int, agreed: dict[str, Any], backend: str) -> None:
    client, _ = pair(**agreed)
    tracemalloc.start()
    try:
        before = time.perf_counter()
        assert refused(client, the_bomb, max_size) == (
            1009,
            f"message of at least {max_size + 1:,} bytes after inflating exceeds max_size={max_size:,}",
        )
        assert time.perf_counter() - before < 5
        assert tracemalloc.get_traced_memory()[1] < max_size + 4 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("agreed", [{}, NO_TAKEOVER])
def test_a_bomb_is_inflated_in_parts_in_bounded_memory(the_bomb: bytes, agreed: dict[str, Any], backend: str) -> None:
    client, _ = pair(**agreed)
    tracemalloc.start()
    try:
        decoder, size = client.decoder(), 0
        data, more = decoder.decode(the_bomb[: len(the_bomb) // 50], 65_536)
        while more:
            size += len(data)
            data, more = decoder.decode(b"", 65_536)
        assert size > BOMB // 60
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_large_message_is_begun_and_finished_later(backend: str) -> None:
    message = b"".join(b"%d " % number for number in range(200_000))
    for agreed in ({}, NO_TAKEOVER):
        client, _ = pair(**agreed)
        # Little to inflate, but much comes out; much to inflate; and what is neither.
        for data, is_large in ((bytes(2**21), True), (message, True), (message[:100_000], False)):
            started = client.start_decode(raw(data), len(data))
            assert isinstance(started, Decoding) == is_large
            assert (started.finish() if isinstance(started, Decoding) else started) == data


# Libraries.


def test_the_fastest_library_is_chosen_for_each_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(name: str) -> Backend:
        return dataclasses.replace(INSTALLED["zlib"], name=name, has_levels=name != "isal")

    def choose(*names: str) -> list[str]:
        monkeypatch.setattr(deflate_backends, "_backends", {name: library(name) for name in names})
        chosen = [deflate_backends.compress_backend(level) for level in (None, 0, 9)]
        return [item.name for item in (*chosen, deflate_backends.inflate_backend())]

    assert choose("isal", "zlib-ng", "zlib") == ["isal", "zlib-ng", "zlib-ng", "zlib-ng"]
    assert choose("isal", "zlib") == ["isal", "zlib", "zlib", "zlib"]
    assert choose("zlib-ng", "zlib") == ["zlib-ng"] * 4
    assert choose("zlib") == ["zlib"] * 4


def test_a_library_that_cannot_be_imported_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("isal.isal_zlib", "zlib_ng.zlib_ng"):
        monkeypatch.setitem(sys.modules, name, None)
    assert list(installed_backends(None)) == ["zlib"]


@pytest.mark.parametrize("allowed", ["", "zlib", "isal", "zlib-ng", " isal , zlib-ng", "none"])
def test_the_environment_may_choose_the_libraries(allowed: str) -> None:
    names = {name.strip() for name in allowed.split(",")} | {"zlib"}
    assert list(installed_backends(allowed)) == [name for name in INSTALLED if name in names]


def test_compressing_is_inline_up_to_what_takes_a_millisecond(backend: str) -> None:
    limits = [PerMessageDeflate(is_client=True, options=Deflate(level=level)).inline_limit for level in (None, 3, 4)]
    assert limits[0] >= limits[1] > limits[2] > 0


def test_pools_are_shared_by_what_compresses_alike() -> None:
    library = INSTALLED["zlib"]
    assert compressor_pool(library, 1, 9, 1) is compressor_pool(library, 1, 9, 1)
    assert compressor_pool(library, 1, 9, 1) is not compressor_pool(library, 1, 10, 1)


@pytest.fixture(autouse=True)
def no_pools_left() -> Iterator[None]:
    yield
    compressor_pool.cache_clear()
