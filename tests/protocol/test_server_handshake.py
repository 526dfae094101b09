"""The server's side of a handshake that goes well. test_malformed_handshakes.py has the others."""

import re
from collections.abc import Iterator

import pytest

from anyio_ws.protocol.exceptions import InvalidHandshake
from anyio_ws.protocol.handshake import Origins, ServerHandshake
from anyio_ws.protocol.handshake_fields import PRODUCT
from anyio_ws.protocol.http import Request, Response
from anyio_ws.protocol.server_handshake import ServerRules

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
FRAMES = b"\x81\x85\r\n\r\nabcde\x00"
BROWSER = (
    b"GET /chat?room=1 HTTP/1.1\r\nHost: example.com\r\nConnection: keep-alive, Upgrade\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nUpgrade: websocket\r\n"
    b"Origin: http://example.com\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\n"
    b"Cookie: session=abc; theme=dark\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"Sec-WebSocket-Protocol: chat, superchat\r\n\r\n"
)


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


def cut(data: bytes) -> Iterator[list[bytes]]:
    """The data whole and byte by byte; a long one in larger pieces."""
    yield [data]
    size = 1 if len(data) < 20_000 else 100
    yield [data[i : i + size] for i in range(0, len(data), size)]


def feed_server(handshake: ServerHandshake, chunks: list[bytes]) -> Request:
    for chunk in chunks[:-1]:
        assert handshake.feed(chunk) is None
    received = handshake.feed(chunks[-1])
    assert received is not None
    return received


def head_lines(data: bytes) -> list[str]:
    head, end, _ = data.partition(b"\r\n\r\n")
    assert end
    return head.decode("latin-1").split("\r\n")


# Requests.


def test_the_server_reads_the_request_of_a_browser() -> None:
    for chunks in cut(BROWSER):
        handshake = ServerHandshake(remote_address=("192.0.2.1", 1234))
        received = feed_server(handshake, chunks)
        assert received.is_websocket
        assert (received.method, received.target) == ("GET", "/chat?room=1")
        assert (received.path, received.query) == ("/chat", {"room": "1"})
        assert received.cookies == {"session": "abc", "theme": "dark"}
        assert received.subprotocols == ("chat", "superchat")
        assert received.headers["user-agent"] == "Mozilla/5.0 (X11; Linux x86_64)"
        assert received.headers.multi_items()[0] == ("Host", "example.com")
        assert received.remote_address == ("192.0.2.1", 1234)
        assert received.body == b""
        assert handshake.trailing_data == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_follows_the_request_is_trailing_data(kind: type[bytes]) -> None:
    handshake = ServerHandshake()
    assert handshake.feed(kind(BROWSER[:100])) is None
    assert handshake.feed(kind(BROWSER[100:] + FRAMES)) is not None
    assert handshake.trailing_data == FRAMES
    assert type(handshake.trailing_data) is bytes


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\r\n" + request(), id="an empty line first"),
        pytest.param(request(line="GET http://example.com/ HTTP/1.1"), id="absolute-form"),
        pytest.param(request(line="GET / HTTP/1.2"), id="HTTP/1.2"),
        pytest.param(request(host="hOST:  [::1]:80 \t"), id="IPv6 and white space"),
        pytest.param(request(host="Host: a_b.example."), id="an odd host"),
        pytest.param(request("Content-Length: 0"), id="an empty body"),
        pytest.param(request("X: \x01\x7f\xff"), id="controls and obs-text in a value"),
        pytest.param(request("X:"), id="an empty value"),
        pytest.param(request("Sec-WebSocket-Protocol: a,, b ,"), id="empty elements of lists"),
        pytest.param(request('Sec-WebSocket-Extensions: ,x-a; b=1;c = "d",', "sec-websocket-extensions: e"), id="ext"),
        pytest.param(request(line="GET /" + "a" * 8178 + " HTTP/1.1"), id="a request line of 8 KiB"),
        pytest.param(request("X: " + "a" * (16_384 - len(request("X: ")) + len("GET / HTTP/1.1\r\n"))), id="16 KiB"),
        pytest.param(request().replace(b"websocket", b"h2c, WebSocket"), id="several upgrades"),
        pytest.param(request("connection: x, UPGRADE").replace(b"Connection: U", b"Connection: x-u"), id="tokens"),
    ],
)
def test_the_server_accepts_unusual_requests(data: bytes) -> None:
    for chunks in cut(data):
        assert feed_server(ServerHandshake(), chunks).is_websocket


@pytest.mark.parametrize(
    ("data", "method", "body"),
    [
        pytest.param(plain(), "GET", b"", id="GET"),
        pytest.param(plain(line="HEAD /healthz HTTP/1.1"), "HEAD", b"", id="HEAD"),
        pytest.param(plain(line="OPTIONS * HTTP/1.1"), "OPTIONS", b"", id="OPTIONS *"),
        pytest.param(b"GET /healthz HTTP/1.0\r\n\r\n", "GET", b"", id="HTTP/1.0 without Host"),
        pytest.param(plain("Content-Length: 3", line="POST / HTTP/1.1") + b"a\nb", "POST", b"a\nb", id="POST"),
        pytest.param(plain("Content-Length: 3, 3") + b"abc", "GET", b"abc", id="one length twice"),
        pytest.param(plain("Content-Length: 65536") + b"a" * 65536, "GET", b"a" * 65536, id="64 KiB"),
        pytest.param(plain("Expect: 100-continue"), "GET", b"", id="an expectation without body"),
        pytest.param(
            b"PUT / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\na", "PUT", b"a", id="Expect in 1.0"
        ),
        pytest.param(plain("Upgrade: websocket"), "GET", b"", id="no Connection"),
        pytest.param(plain("Connection: Upgrade"), "GET", b"", id="no Upgrade"),
        pytest.param(plain("Connection: upgraded", "Upgrade: websocket"), "GET", b"", id="another Connection"),
        pytest.param(plain("Connection: Upgrade", "Upgrade: h2c"), "GET", b"", id="another Upgrade"),
    ],
)
def test_the_server_returns_plain_http_requests(data: bytes, method: str, body: bytes) -> None:
    for chunks in cut(data):
        handshake = ServerHandshake()
        received = feed_server(handshake, chunks)
        assert not received.is_websocket
        assert (received.method, received.body) == (method, body)
        with pytest.raises(RuntimeError, match="without a request for a WebSocket"):
            handshake.accept()


def test_what_follows_a_plain_http_request_is_dropped() -> None:
    handshake = ServerHandshake()
    received = handshake.feed(plain("Content-Length: 2") + b"ab" + plain())
    assert received is not None
    assert received.body == b"ab"
    assert handshake.trailing_data == b""


@pytest.mark.parametrize("data", [b"x", b""])
def test_the_server_is_fed_until_it_has_the_request(data: bytes) -> None:
    handshake = ServerHandshake()
    handshake.feed(request())
    with pytest.raises(RuntimeError, match="after the request was complete"):
        handshake.feed(data)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", request("Origin: http://evil.example")])
def test_a_refused_request_cannot_be_followed_by_another(data: bytes, size: int) -> None:
    handshake = ServerHandshake()
    with pytest.raises(InvalidHandshake):
        for start in range(0, len(data), size):
            handshake.feed(data[start : start + size])
    with pytest.raises(RuntimeError, match="or refused"):
        handshake.feed(request())


@pytest.mark.parametrize("origins", ["https://a.example", [None]])
def test_the_rules_of_a_server_are_checked_when_they_are_made(origins: Origins) -> None:
    with pytest.raises((TypeError, ValueError), match="expected"):
        ServerRules(origins=origins)


def test_a_handshake_of_a_servers_rules_keeps_them() -> None:
    rules = ServerRules(subprotocols=["chat"], origins=None, server_header="mine")
    for _ in range(2):
        handshake = ServerHandshake.of(rules, secure=True, remote_address=("192.0.2.1", 1234))
        received = handshake.feed(request("Origin: http://other.example", "Sec-WebSocket-Protocol: chat"))
        assert received is not None
        assert received.remote_address == ("192.0.2.1", 1234)
        answer, data = handshake.accept()
        assert handshake.subprotocol == "chat"
        assert answer.headers["Server"] == "mine"
        assert b"\r\nServer: mine\r\n" in data
    handshake = ServerHandshake.of(ServerRules(), secure=True)
    with pytest.raises(InvalidHandshake, match="is not that of the Host"):
        handshake.feed(request("Origin: http://example.com"))


@pytest.mark.parametrize("server_header", [None, "?", "%s", "a?b/é"])
def test_the_bytes_of_the_answer_say_what_its_headers_say(server_header: str | None) -> None:
    handshake = ServerHandshake(server_header=server_header)
    handshake.feed(request())
    answer, data = handshake.accept()
    fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)]
    if server_header is not None:
        fields.append(("Server", server_header))
    assert answer.headers.multi_items() == fields
    assert head_lines(data) == [
        "HTTP/1.1 101 Switching Protocols",
        *(f"{name}: {value}" for name, value in fields),
    ]


def test_there_is_nothing_to_accept_before_the_request() -> None:
    with pytest.raises(RuntimeError, match="without a request"):
        ServerHandshake().accept()


# Origins.


@pytest.mark.parametrize(
    ("origin", "host", "secure", "passes"),
    [
        ("http://example.com", "example.com", False, True),
        ("HTTP://EXAMPLE.com", "Example.COM", False, True),
        ("http://example.com:80", "example.com", False, True),
        ("http://example.com", "example.com:80", False, True),
        ("http://example.com", "example.com:", False, True),
        ("http://example.com:8080", "example.com:8080", False, True),
        ("http://[::1]", "[::1]:80", False, True),
        ("http://[::1]:81", "[::1]", False, False),
        # A proxy in front may speak TLS.
        ("https://example.com", "example.com", False, True),
        ("https://example.com", "example.com:443", False, True),
        ("https://example.com", "example.com:80", False, False),
        ("https://example.com", "example.com", True, True),
        ("https://example.com:8443", "example.com:8443", True, True),
        ("http://example.com", "example.com", True, False),
        ("http://example.com:8080", "example.com", False, False),
        ("http://example.com", "example.com:8080", False, False),
        ("http://example.com.evil.example", "example.com", False, False),
        ("http://sub.example.com", "example.com", False, False),
        ("http://example.com/", "example.com", False, False),
        ("http://example.com@evil.example", "example.com", False, False),
        ("file://example.com", "example.com", False, False),
        ("null", "null", False, False),
        ("", "example.com", False, False),
    ],
)
def test_the_same_origin_has_the_host_and_port_of_the_host(origin: str, host: str, secure: bool, passes: bool) -> None:
    handshake = ServerHandshake(secure=secure)
    data = request(f"Origin: {origin}", host=f"Host: {host}")
    if passes:
        assert handshake.feed(data) is not None
    else:
        with pytest.raises(InvalidHandshake, match="is not that of the Host"):
            handshake.feed(data)


@pytest.mark.parametrize(
    ("origins", "origin", "passes"),
    [
        (None, "http://evil.example", True),
        (["https://a.example"], "https://a.example", True),
        (["https://a.example"], "https://a.example.evil.example", False),
        (["https://a.example"], "http://example.com", False),
        ([re.compile(r"https://\w+\.example")], "https://b.example", True),
        ([re.compile(r"https://\w+\.example")], "https://b.example.evil", False),
        (["https://a.example", re.compile("null")], "null", True),
        ([], "http://example.com", False),
    ],
)
def test_the_option_origins_says_who_may_connect(origins: Origins, origin: str, passes: bool) -> None:
    handshake = ServerHandshake(origins=origins)
    if passes:
        assert handshake.feed(request(f"Origin: {origin}")) is not None
    else:
        with pytest.raises(InvalidHandshake) as e:
            handshake.feed(request(f"Origin: {origin}"))
        assert str(e.value) == (
            f"the Origin '{origin}' is not among those the server's option origins allows to connect to the "
            "Host 'example.com'"
        )
        assert e.value.response is not None
        assert e.value.response.status_code == 403


@pytest.mark.parametrize("origins", ["same-origin", [], ["https://a.example"], None])
def test_a_request_without_origin_passes(origins: Origins) -> None:
    assert ServerHandshake(origins=origins).feed(request()) is not None


@pytest.mark.parametrize(
    ("origins", "error", "message"),
    [
        ("https://a.example", ValueError, "origins='https://a.example' is a str; expected \"same-origin\""),
        ([None], TypeError, "origins contains None; expected strings and patterns; without an Origin all"),
    ],
)
def test_origins_are_strings_and_patterns(origins: Origins, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ServerHandshake(origins=origins)


# Answers.


def test_accept_answers_the_request_of_the_rfc() -> None:
    handshake = ServerHandshake(server_header=None)
    handshake.feed(request())
    response, data = handshake.accept()
    assert data == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    assert (response.status_code, response.reason_phrase, response.body) == (101, "Switching Protocols", b"")
    assert response.headers == {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}
    assert handshake.subprotocol is None


def test_accept_adds_the_headers_of_the_response() -> None:
    handshake = ServerHandshake(server_header="mine")
    handshake.feed(request())
    response, data = handshake.accept(Response(101, [("Set-Cookie", "a=b"), ("Set-Cookie", "c=\xe9")]))
    assert head_lines(data)[4:] == ["Server: mine", "Set-Cookie: a=b", "Set-Cookie: c=\xe9"]
    assert response.headers.get_all("Set-Cookie") == ["a=b", "c=\xe9"]


def test_the_server_header_of_the_response_wins() -> None:
    handshake = ServerHandshake()
    handshake.feed(request())
    assert handshake.accept(Response(101, {"server": "mine"}))[0].headers.get_all("Server") == ["mine"]
    assert handshake.accept()[0].headers.get_all("Server") == [PRODUCT]
    assert b"\r\nserver: mine\r\n" in handshake.reject(Response(404, {"server": "mine"}))
    assert PRODUCT.encode() not in handshake.reject(Response(404, {"server": "mine"}))


@pytest.mark.parametrize(
    ("ours", "offered", "chosen"),
    [
        (["superchat", "chat"], "chat, superchat", "superchat"),
        (["chat"], "superchat,chat", "chat"),
        (["chat"], "superchat", None),
        (["chat"], "Chat", None),
        ([], "chat", None),
    ],
)
def test_the_server_prefers_its_own_first_subprotocol(ours: list[str], offered: str, chosen: str | None) -> None:
    handshake = ServerHandshake(subprotocols=ours)
    handshake.feed(request(f"Sec-WebSocket-Protocol: {offered}"))
    response, data = handshake.accept()
    assert handshake.subprotocol == chosen
    assert response.headers.get("Sec-WebSocket-Protocol") == chosen
    assert (b"Sec-WebSocket-Protocol" in data) is (chosen is not None)


def test_the_response_may_choose_any_subprotocol_that_is_offered() -> None:
    handshake = ServerHandshake(subprotocols=["chat"], server_header=None)
    handshake.feed(request("Sec-WebSocket-Protocol: chat, v2", "Sec-WebSocket-Protocol: v3"))
    response, _ = handshake.accept(Response(101, {"A": "b", "sec-websocket-protocol": "v3"}))
    assert handshake.subprotocol == "v3"
    assert response.headers.multi_items()[3:] == [("Sec-WebSocket-Protocol", "v3"), ("A", "b")]


@pytest.mark.parametrize(
    ("offered", "headers", "message"),
    [
        ("a, b", [("Sec-WebSocket-Protocol", "c")], "Sec-WebSocket-Protocol c .* client offers: a, b"),
        (
            "a, b",
            [("Sec-WebSocket-Protocol", "a"), ("Sec-WebSocket-Protocol", "b")],
            "Sec-WebSocket-Protocol a, b .* client offers: a, b",
        ),
        ("", [("Sec-WebSocket-Protocol", "a")], "client offers: none"),
    ],
)
def test_the_response_cannot_choose_what_is_not_offered(
    offered: str, headers: list[tuple[str, str]], message: str
) -> None:
    handshake = ServerHandshake()
    handshake.feed(request(f"Sec-WebSocket-Protocol: {offered}"))
    with pytest.raises(ValueError, match=message):
        handshake.accept(Response(101, headers))


@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "connection",
        "Sec-WebSocket-Accept",
        "sec-websocket-extensions",
        "Content-Length",
        "Transfer-Encoding",
    ],
)
def test_the_response_cannot_set_the_headers_of_the_handshake(name: str) -> None:
    handshake = ServerHandshake()
    handshake.feed(request())
    with pytest.raises(ValueError, match=f"(?i){name} in the headers"):
        handshake.accept(Response(101, {name: "x"}))


@pytest.mark.parametrize("response", [Response(200), Response(101, body="x")])
def test_accept_takes_a_101_without_body(response: Response) -> None:
    handshake = ServerHandshake()
    handshake.feed(request())
    with pytest.raises(ValueError, match=r"accept\(\) takes Response\(101, headers\) without a body, not <Response"):
        handshake.accept(response)


def test_reject_formats_a_final_answer() -> None:
    handshake = ServerHandshake(server_header="mine")
    handshake.feed(plain())
    assert handshake.reject(Response(404, [("X", "a"), ("X", "b")], "né\n")) == (
        b"HTTP/1.1 404 Not Found\r\nX: a\r\nX: b\r\nContent-Type: text/plain; charset=utf-8\r\nServer: mine\r\n"
        b"Connection: close\r\nContent-Length: 4\r\n\r\nn\xc3\xa9\n"
    )


def test_reject_frames_the_answer_itself() -> None:
    handshake = ServerHandshake(server_header=None)
    handshake.feed(plain())
    response = Response(
        200, {"content-length": "9", "Transfer-Encoding": "chunked", "Connection": "keep-alive"}, b"body"
    )
    assert head_lines(handshake.reject(response)) == ["HTTP/1.1 200 OK", "Connection: close", "Content-Length: 4"]


def test_reject_names_an_upgrade_in_connection() -> None:
    handshake = ServerHandshake(server_header=None)
    handshake.feed(plain())
    assert handshake.reject(Response(426, {"Upgrade": "websocket"})) == (
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
        b"Content-Length: 0\r\n\r\n"
    )


def test_the_answer_to_head_has_the_length_of_a_body_and_none() -> None:
    handshake = ServerHandshake()
    handshake.feed(plain(line="HEAD / HTTP/1.1"))
    data = handshake.reject(Response(200, body="ok\n"))
    assert data.endswith(b"Content-Length: 3\r\n\r\n")


@pytest.mark.parametrize("status_code", [204, 304])
def test_an_answer_that_cannot_have_a_body_has_none(status_code: int) -> None:
    handshake = ServerHandshake()
    handshake.feed(plain())
    data = handshake.reject(Response(status_code, body=b"body"))
    assert b"Content-Length" not in data
    assert data.endswith(b"\r\n\r\n")


def test_an_odd_status_code_has_an_empty_reason_phrase() -> None:
    assert ServerHandshake().reject(Response(499)).startswith(b"HTTP/1.1 499 \r\n")


@pytest.mark.parametrize("status_code", [100, 101, 103])
def test_an_interim_answer_does_not_reject(status_code: int) -> None:
    with pytest.raises(ValueError, match=f"status_code={status_code} is not a final answer"):
        ServerHandshake().reject(Response(status_code))


@pytest.mark.parametrize(
    "origin",
    ["*", "example.com", "https://example.com/", "HTTPS://example.com", "https://example.com:443", "http://a:80"],
)
def test_an_origin_that_no_browser_sends_is_refused_as_an_option(origin: str) -> None:
    with pytest.raises(ValueError, match="would never match"):
        ServerHandshake(origins=[origin])


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://example.com",
        "http://localhost:8080",
        "https://[::1]:8443",
        "chrome-extension://abc",
        "https://a:4430",
    ],
)
def test_an_origin_as_browsers_send_it_is_taken_as_an_option(origin: str) -> None:
    ServerHandshake(origins=[origin])
