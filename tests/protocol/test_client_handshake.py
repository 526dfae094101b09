"""The client's side of a handshake that goes well. test_malformed_handshakes.py has the others."""

import base64
from collections.abc import Iterator

import pytest

from anyio_ws.protocol.handshake import ClientHandshake
from anyio_ws.protocol.handshake_fields import PRODUCT
from anyio_ws.protocol.http import Headers, HeadersLike, Response
from anyio_ws.protocol.url import parse_url

ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
FRAMES = b"\x81\x85\r\n\r\nabcde\x00"
ANSWER = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
).encode()


def client(**options: object) -> ClientHandshake:
    """A client whose key is the RFC's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("anyio_ws.protocol.client_handshake.os.urandom", lambda count: b"the sample nonce")
        return ClientHandshake(parse_url("ws://example.com/"), **options)  # type: ignore[arg-type]


def cut(data: bytes) -> Iterator[list[bytes]]:
    """The data whole and byte by byte; a long one in larger pieces."""
    yield [data]
    size = 1 if len(data) < 10_000 else 100
    yield [data[i : i + size] for i in range(0, len(data), size)]


def feed_client(handshake: ClientHandshake, chunks: list[bytes]) -> Response:
    for chunk in chunks[:-1]:
        assert handshake.feed(chunk) is None
    received = handshake.feed(chunks[-1])
    assert received is not None
    return received


def head_lines(data: bytes) -> list[str]:
    head, end, _ = data.partition(b"\r\n\r\n")
    assert end
    return head.decode("latin-1").split("\r\n")


# The request.


def test_the_request_of_a_client() -> None:
    handshake = ClientHandshake(parse_url("ws://example.com:8080/chat?a=b"))
    lines = head_lines(handshake.request_bytes())
    key = handshake.request.headers["Sec-WebSocket-Key"]
    assert lines == [
        "GET /chat?a=b HTTP/1.1",
        "Host: example.com:8080",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        f"User-Agent: {PRODUCT}",
    ]
    assert len(base64.b64decode(key, validate=True)) == 16
    assert handshake.request.is_websocket
    assert handshake.request.path == "/chat"


def test_every_client_has_its_own_key() -> None:
    url = parse_url("ws://example.com/")
    assert len({ClientHandshake(url).request.headers["Sec-WebSocket-Key"] for _ in range(10)}) == 10


def test_the_options_of_a_client_become_headers() -> None:
    handshake = client(
        origin="https://example.com",
        subprotocols=["a", "b"],
        user_agent_header=None,
        additional_headers=[("X-Token", "t\xe9"), ("Cookie", "a=b"), ("cookie", "c=d")],
    )
    assert head_lines(handshake.request_bytes())[6:] == [
        "Sec-WebSocket-Protocol: a, b",
        "Origin: https://example.com",
        "X-Token: t\xe9",
        "Cookie: a=b",
        "cookie: c=d",
    ]
    assert handshake.request.subprotocols == ("a", "b")


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("ws://us%40er:p%3A%C3%BC@h/", "us@er:p:ü"),
        ("ws://user@h/", "user:"),
        ("ws://:p@h/", ":p"),
    ],
)
def test_userinfo_becomes_basic_authorization(url: str, credentials: str) -> None:
    authorization = ClientHandshake(parse_url(url)).request.headers["Authorization"]
    assert authorization == "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize("headers", [{"authorization": "Bearer t"}, Headers({"Authorization": "Bearer t"})])
def test_an_additional_authorization_wins(headers: HeadersLike) -> None:
    handshake = ClientHandshake(parse_url("ws://u:p@h/"), additional_headers=headers)
    assert handshake.request.headers.get_all("Authorization") == ["Bearer t"]


def test_additional_headers_may_replace_host_user_agent_and_origin() -> None:
    headers = {"host": "other", "user-agent": "mine", "origin": "http://other"}
    handshake = client(additional_headers=headers)
    assert {name: handshake.request.headers.get_all(name) for name in headers} == {
        name: [value] for name, value in headers.items()
    }
    assert b"\r\nhost: other\r\n" in handshake.request_bytes()


@pytest.mark.parametrize("headers", [{}, {"X-Token": "t", "HOST": "other", "Cookie": "a=b"}])
def test_host_comes_first_in_what_is_sent_and_in_the_request(headers: HeadersLike) -> None:
    handshake = client(additional_headers=headers)
    fields = [f"{name}: {value}" for name, value in handshake.request.headers.multi_items()]
    assert fields[0].lower().startswith("host: ")
    assert head_lines(handshake.request_bytes())[1:] == fields


@pytest.mark.parametrize(
    "name",
    [
        "upgrade",
        "Connection",
        "Content-Length",
        "transfer-encoding",
        "Sec-WebSocket-Key",
        "sec-websocket-protocol",
        "Sec-WebSocket-Extensions",
        "Sec-WebSocket-Version",
    ],
)
def test_additional_headers_cannot_set_those_of_the_handshake(name: str) -> None:
    with pytest.raises(ValueError, match=f"additional_headers has {name}, which the handshake sets itself"):
        client(additional_headers={name: "x"})


@pytest.mark.parametrize("name", ["Host", "Origin"])
def test_additional_headers_cannot_repeat_a_singleton(name: str) -> None:
    with pytest.raises(ValueError, match=f"additional_headers has several {name} headers"):
        client(additional_headers=[(name, "a"), (name.lower(), "b")])


def test_there_is_one_origin() -> None:
    with pytest.raises(ValueError, match="additional_headers has Origin, and so has the option origin"):
        client(origin="http://a", additional_headers={"ORIGIN": "http://a"})


# Answers.


def answer(*fields: str, line: str = "HTTP/1.1 101 Switching Protocols") -> bytes:
    lines = [line, "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(answer(), id="good"),
        pytest.param(answer(line="HTTP/1.1 101 "), id="an empty reason phrase"),
        pytest.param(answer(line="HTTP/1.1 101"), id="no reason phrase"),
        pytest.param(answer(line="HTTP/1.1 101 Web \t S\xf6cket!\x01"), id="an odd reason phrase"),
        pytest.param(answer(line="HTTP/1.2 101 OK"), id="HTTP/1.2"),
        pytest.param(answer().replace(b": U", b": keep-alive , u"), id="several Connection tokens"),
        pytest.param(answer().replace(b": websocket", b":   WebSocket\t "), id="white space and case"),
        pytest.param(answer().replace(b"Upgrade:", b"UPGRADE:"), id="upper case"),
        pytest.param(answer("Content-Length: 0"), id="an empty body"),
        pytest.param(answer("Connection:\r\n  close"), id="a folded header"),
        pytest.param(answer("Server: \xe4", "Date:", "Set-Cookie: a=b", "Set-Cookie: c=d"), id="other headers"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: a\r\n\r\n" + answer(), id="interim answers"
        ),
    ],
)
def test_the_client_accepts_what_servers_send(data: bytes) -> None:
    for chunks in cut(data):
        handshake = client()
        received = feed_client(handshake, chunks)
        assert received.status_code == 101
        assert received.headers["Sec-WebSocket-Accept"] == ACCEPT
        assert handshake.subprotocol is None
        assert handshake.trailing_data == b""


def test_a_folded_header_is_joined_by_spaces() -> None:
    received = client().feed(answer("X: a ", " \tb", "\tc"))
    assert received is not None
    assert received.headers["X"] == "a  b c"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_follows_the_101_is_trailing_data(kind: type[bytes]) -> None:
    handshake = client(subprotocols=["chat"])
    assert handshake.feed(kind(ANSWER[:50])) is None
    assert handshake.feed(kind(ANSWER[50:] + FRAMES)) is not None
    assert handshake.trailing_data == FRAMES
    assert handshake.subprotocol == "chat"


@pytest.mark.parametrize("data", [b"x", b""])
def test_the_client_is_fed_until_it_has_the_answer(data: bytes) -> None:
    handshake = client()
    handshake.feed(answer())
    with pytest.raises(RuntimeError, match="after the answer was complete"):
        handshake.feed(data)


REFUSALS = [
    pytest.param(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403, b"no", id="Content-Length"),
    pytest.param(b"HTTP/1.0 503 Busy\r\nContent-Length: 2\r\n\r\nno", 503, b"no", id="HTTP/1.0"),
    pytest.param(b"HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n", 302, b"", id="a redirect"),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", id="no content"),
    pytest.param(b"HTTP/1.1 799 \r\nContent-Length: 0\r\n\r\n", 799, b"", id="an odd status code"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 X\r\n\r\n", 204, b"", id="an interim answer"),
    pytest.param(
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nno\r\n3\r\n\r\n!\r\n0\r\nA: b\r\n\r\n",
        400,
        b"no\r\n!",
        id="chunks",
    ),
    pytest.param(
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\nx\r\n", 400, b"no", id="a malformed chunk"
    ),
    pytest.param(
        b"HTTP/1.1 404 X\r\nContent-Length: 99999\r\n\r\n" + b"a" * 65_536, 404, b"a" * 65_536, id="a long body"
    ),
    pytest.param(b"HTTP/1.1 404 X\r\n\r\n" + b"a" * 65_536, 404, b"a" * 65_536, id="an endless body"),
]


@pytest.mark.parametrize(("data", "status_code", "body"), REFUSALS)
def test_a_refusal_comes_back_when_it_is_complete(data: bytes, status_code: int, body: bytes) -> None:
    # With trailing bytes, too.
    for chunks in [*cut(data), [data + b"x" * 10]]:
        handshake = client()
        received = feed_client(handshake, chunks)
        assert (received.status_code, received.body) == (status_code, body)
        assert handshake.trailing_data == b""


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 500 Oops\r\n\r\n", b""),
        (b"HTTP/1.1 500 Oops\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", b"abc"),
    ],
)
def test_the_body_of_a_refusal_ends_with_the_stream(data: bytes, body: bytes) -> None:
    for chunks in cut(data):
        handshake = client()
        assert [handshake.feed(chunk) for chunk in chunks] == [None] * len(chunks)
        received = handshake.feed(b"")
        assert received is not None
        assert (received.status_code, received.reason_phrase, received.body) == (500, "Oops", body)


def test_a_chunk_extension_without_end_ends_the_body() -> None:
    handshake = client()
    assert handshake.feed(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n") is None
    received = handshake.feed(b"1;" + b" " * 60_000 + b"\nx\r\n")
    assert received is not None
    assert received.body == b"a"
