"""Both sides of the handshake together, and however the bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_ws.protocol.exceptions import InvalidHandshake
from anyio_ws.protocol.handshake import ClientHandshake, ServerHandshake
from anyio_ws.protocol.url import parse_url

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
BROWSER = (
    b"GET /chat?room=1 HTTP/1.1\r\nHost: example.com\r\nConnection: keep-alive, Upgrade\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nUpgrade: websocket\r\n"
    b"Origin: http://example.com\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\n"
    b"Cookie: session=abc; theme=dark\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"Sec-WebSocket-Protocol: chat, superchat\r\n\r\n"
)
ANSWER = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
).encode()


def request(*fields: str, line: str = "GET / HTTP/1.1", host: str = "Host: example.com") -> bytes:
    lines = [
        line,
        host,
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1")


def plain(*fields: str, line: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: example.com", *fields, "", ""]).encode()


def client(**options: object) -> ClientHandshake:
    """A client whose key is the RFC's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("anyio_ws.protocol.client_handshake.os.urandom", lambda count: b"the sample nonce")
        return ClientHandshake(parse_url("ws://example.com/"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("subprotocols", "message"),
    [
        ("chat", "subprotocols is a str; expected a sequence of names"),
        (["a b"], "subprotocols: 'a b' is not a token"),
        ([""], "subprotocols: '' is not a token"),
        (["é"], r"subprotocols: '\\xe9' is not a token"),
        (["a", "b", "a"], "subprotocols: a comes twice"),
    ],
)
def test_subprotocols_are_different_tokens(subprotocols: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerHandshake(subprotocols=subprotocols)
    with pytest.raises(ValueError, match=message):
        client(subprotocols=subprotocols)


@pytest.mark.parametrize("value", ["a\r\nb", "a\0", "\u20ac"])
def test_an_option_that_becomes_a_header_has_no_control_characters(value: str) -> None:
    with pytest.raises(ValueError, match="server_header: the value of header Server"):
        ServerHandshake(server_header=value)
    with pytest.raises(ValueError, match="user_agent_header: the value of header User-Agent"):
        client(user_agent_header=value)
    with pytest.raises(ValueError, match="origin: the value of header Origin"):
        client(origin=value)
    with pytest.raises(ValueError, match="additional_headers: the value of header X"):
        client(additional_headers={"X": value})


def test_client_and_server_agree() -> None:
    client_side = ClientHandshake(parse_url("ws://u:p@example.com/a?b=c"), subprotocols=["x", "y"])
    server_side = ServerHandshake(subprotocols=["y"])
    received = server_side.feed(client_side.request_bytes())
    assert received is not None
    assert received.headers == client_side.request.headers
    assert received.target == client_side.request.target
    sent, data = server_side.accept()
    got = client_side.feed(data)
    assert got is not None
    assert got.headers == sent.headers
    assert client_side.subprotocol == server_side.subprotocol == "y"


def server_outcome(chunks: list[bytes]) -> object:
    handshake = ServerHandshake()
    for chunk in chunks:
        try:
            received = handshake.feed(chunk)
        except InvalidHandshake as exc:
            return str(exc), exc.response and (exc.response.status_code, exc.response.body)
        if received is not None:
            return received.method, received.target, received.headers.multi_items(), received.body
    return None


def client_outcome(chunks: list[bytes]) -> object:
    handshake = client(subprotocols=["chat"])
    for chunk in chunks:
        try:
            received = handshake.feed(chunk)
        except InvalidHandshake as exc:
            return str(exc)
        if received is not None:
            return received.status_code, received.reason_phrase, received.headers.multi_items(), received.body
    return None


@st.composite
def chunkings(draw: st.DrawFn, seeds: list[bytes]) -> tuple[bytes, list[bytes]]:
    """A message, often damaged, and the same in chunks."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 3))):
        index = draw(st.integers(0, len(data) - 1))
        noise = draw(
            st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\r\n ", b"\0", b"\x0b", b":", b" ", b"", b"a"])
        )
        data[index : index + draw(st.integers(0, 2))] = noise
    cuts = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=12))})
    return bytes(data), [bytes(data[a:b]) for a, b in pairwise(cuts)]


REQUEST_SEEDS = [
    BROWSER,
    request(),
    b"\r\n" + request(),
    plain("Content-Length: 9") + b"a\n\r\n\r\nbcd",
    b"GET / HTTP/1.0\r\n\r\n",
]
ANSWER_SEEDS = [
    ANSWER,
    b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER,
    b"HTTP/1.1 400 Bad\r\nA: b\r\n c\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
]


@given(chunkings(REQUEST_SEEDS))
@example((b"\r\n\r\n", [b"\r\n", b"\r\n"]))
def test_a_server_does_not_see_how_the_bytes_were_cut(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    expected = server_outcome([bytes([byte]) for byte in data])
    assert server_outcome([data]) == expected
    assert server_outcome(chunks) == expected


@given(chunkings(ANSWER_SEEDS))
def test_a_client_does_not_see_how_the_bytes_were_cut(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    expected = client_outcome([bytes([byte]) for byte in data])
    assert client_outcome([data]) == expected
    assert client_outcome(chunks) == expected


@given(chunkings([request(), BROWSER]))
def test_bytes_after_the_request_are_never_lost(case: tuple[bytes, list[bytes]]) -> None:
    data = request() + case[0]
    for chunks in ([data], [data[:5], data[5:]]):
        handshake = ServerHandshake()
        assert [handshake.feed(chunk) is not None for chunk in chunks][-1]
        assert handshake.trailing_data == case[0]
