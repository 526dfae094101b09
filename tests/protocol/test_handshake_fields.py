"""The fields that both sides of the handshake read."""

import re
from importlib import metadata, reload

import pytest

from anyio_ws.protocol import handshake_fields
from anyio_ws.protocol.handshake_fields import PRODUCT, accept_key, decode_fields, has_token, parse_extensions

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_the_product_has_the_version_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"anyio_ws/[\w.+]+ Python/3\.\d+", PRODUCT)

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", missing)
        assert reload(handshake_fields).PRODUCT.startswith("anyio_ws/0 Python/")
    assert reload(handshake_fields).PRODUCT == PRODUCT


def test_the_accept_of_the_rfc() -> None:
    assert accept_key(KEY) == ACCEPT


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["Upgrade"], True),
        (["keep-alive, \tUPGRADE"], True),
        (["keep-alive", "upgrade , x"], True),
        (["upgrades", "up grade"], False),
        ([], False),
    ],
)
def test_a_token_is_found_in_any_case_and_any_field(values: list[str], found: bool) -> None:
    _, fields = decode_fields([(b"Connection", value.encode()) for value in values])
    assert has_token(fields, "connection", "upgrade") is found


def test_decoded_fields_keep_their_spelling_and_their_order() -> None:
    raw = [
        (b"Host", b"h"),
        (b"X-\x41", b"\xe9"),
        (b"UPGRADE", b"websocket"),
        (b"upgrade", b"websocket"),
        (b"Host", b""),
    ]
    headers, fields = decode_fields([*raw, (b"host", b"i")])
    assert headers.multi_items() == [*((a.decode(), b.decode("latin-1")) for a, b in raw), ("host", "i")]
    assert fields == {"host": ["h", "", "i"], "x-a": "é", "upgrade": ["websocket", "websocket"]}
    assert headers.get_all("Upgrade") == fields["upgrade"]


def test_connections_share_what_is_usual() -> None:
    raw = [(b"Sec-WebSocket-Version", b"13")]
    (one,), (other,) = (decode_fields(raw)[0].multi_items() for _ in range(2))
    assert one[0] is other[0]
    assert one[1] is other[1]


@pytest.mark.parametrize(
    ("header", "extensions"),
    [
        ("a", [("a", [])]),
        ("a, b;c", [("a", []), ("b", [("c", None)])]),
        (
            "permessage-deflate; client_max_window_bits; server_max_window_bits=10, permessage-deflate",
            [
                ("permessage-deflate", [("client_max_window_bits", None), ("server_max_window_bits", "10")]),
                ("permessage-deflate", []),
            ],
        ),
        (',\ta ;\tb = "c" ;d="\\e\\f", ,', [("a", [("b", "c"), ("d", "ef")])]),
    ],
)
def test_extensions_are_parsed(header: str, extensions: list[tuple[str, list[tuple[str, str | None]]]]) -> None:
    assert parse_extensions(header) == extensions


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "no extension is named"),
        (" , ", "no extension is named"),
        (";a", "an extension's name is not a token"),
        ("a b", "an extension's name is not a token"),
        ('"a"', "an extension's name is not a token"),
        ("a;", "a parameter's name in extension a is not a token"),
        ("a; =b", "a parameter's name in extension a is not a token"),
        ("a; b=", "the value of parameter b in extension a is not a token"),
        ("a; b=c=d", "the value of parameter b in extension a is not a token"),
        ('a; b=""', "the value of parameter b in extension a is not a token"),
        ('a; b="', "the value of parameter b in extension a is not a token"),
        ('a; b="c,d"', "the value of parameter b in extension a is not a token"),
        ('a; b="c d"', "the value of parameter b in extension a is not a token"),
        ('a; b="c\\\\"', "the value of parameter b in extension a is not a token"),
        ('a; b="c\\"', "the value of parameter b in extension a is not a token"),
    ],
)
def test_malformed_extensions_are_refused(header: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_extensions(header)
