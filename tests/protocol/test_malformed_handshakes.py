"""What is no opening handshake, and the exact answer or message each gets.

Each vector runs whole, byte by byte, and with trailing bytes; a vector that is refused before it ends, or that must
never end, is given as far as it matters.
"""

from collections.abc import Iterator

import pytest

from anyio_ws.protocol.exceptions import InvalidHandshake
from anyio_ws.protocol.handshake import ClientHandshake, ServerHandshake
from anyio_ws.protocol.http import Request, Response
from anyio_ws.protocol.url import parse_url

SECRET = "s3cr3t"


def chunked(data: bytes) -> Iterator[list[bytes]]:
    """The data whole, byte by byte, and with trailing bytes."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield [data + b"\x81\x85\r\n\r\n\n"]


def request(
    *fields: str,
    line: str = f"GET /chat?token={SECRET} HTTP/1.1",
    host: str | None = "Host: example.com",
    without: str = "",
) -> bytes:
    """A good request for a WebSocket, with fields added or left out."""
    lines = [line] + ([host] if host is not None else [])
    lines += [
        field
        for field in (
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        )
        if field.partition(":")[0] != without
    ]
    return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1")


GOOD = request()
PLAIN = "GET / HTTP/1.1"

REQUESTS: dict[str, tuple[bytes, int, str]] = {
    # The bytes.
    "TLS": (
        b"\x16\x03\x01\x02\x00",
        400,
        "the first byte is 0x16: TLS, where plain HTTP was expected (is it wss:// against ws://?)",
    ),
    "a control character first": (b"\x00" + GOOD, 400, "the first byte is 0x00, expected HTTP/1.1"),
    "a space first": (b" " + GOOD, 400, "the first byte is 0x20, expected HTTP/1.1"),
    "bare LF everywhere": (
        GOOD.replace(b"\r\n", b"\n"),
        400,
        "the request line ends with a bare LF; expected CR LF",
    ),
    "a bare LF first": (b"\n" + GOOD, 400, "the request line ends with a bare LF; expected CR LF"),
    "bare LF after a header": (
        GOOD.replace(b"websocket\r\n", b"websocket\n"),
        400,
        "a header line ends with a bare LF; expected CR LF",
    ),
    "bare LF as the empty line": (GOOD[:-2] + b"\n", 400, "a header line ends with a bare LF; expected CR LF"),
    "a bare CR in a value": (
        request("X: a\rb"),
        400,
        "a header line or the first line contains NUL, VT, FF or a bare CR",
    ),
    "a bare CR first": (b"\r" + GOOD, 400, "a header line or the first line contains NUL, VT, FF or a bare CR"),
    "NUL in a value": (
        request("X: a\0b"),
        400,
        "a header line or the first line contains NUL, VT, FF or a bare CR",
    ),
    "blanks and then NUL": (
        request("X:" + " " * 15_000 + "\0"),
        400,
        "a header line or the first line contains NUL, VT, FF or a bare CR",
    ),
    "NUL in the target": (
        request(line="GET /\0 HTTP/1.1"),
        400,
        "a header line or the first line contains NUL, VT, FF or a bare CR",
    ),
    "a folded header": (
        request("X: a", " b"),
        400,
        "a header line starts with a space or tab; folded header lines are not accepted",
    ),
    "a header folded with a tab": (
        request("X: a", "\tb"),
        400,
        "a header line starts with a space or tab; folded header lines are not accepted",
    ),
    "white space before the first header": (
        request(host=" Host: example.com"),
        400,
        "a header line starts with a space or tab; folded header lines are not accepted",
    ),
    "two empty lines first": (b"\r\n\r\n" + GOOD, 400, "the request line is empty"),
    "a request line of 8 KiB and 1": (
        request(line="GET /" + "a" * 8179 + " HTTP/1.1"),
        414,
        "the request line is longer than 8,192 bytes, the most accepted",
    ),
    "an endless request line": (
        b"GET /" + b"a" * 8190,
        414,
        "the request line is longer than 8,192 bytes, the most accepted",
    ),
    "a header of 16 KiB": (
        request("X: " + "a" * 16_384),
        431,
        "the header fields are longer than 16,384 bytes, the most accepted",
    ),
    "headers without end": (
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2731,
        431,
        "the header fields are longer than 16,384 bytes, the most accepted",
    ),
    # What h11 makes of them.
    "no version": (
        request(line=f"GET /?{SECRET}"),
        400,
        'the request line is malformed; expected "METHOD TARGET HTTP/1.1"',
    ),
    "a space in the target": (
        request(line=f"GET /?{SECRET} {SECRET} HTTP/1.1"),
        400,
        'the request line is malformed; expected "METHOD TARGET HTTP/1.1"',
    ),
    "a target that is not ASCII": (
        request(line="GET /é HTTP/1.1"),
        400,
        'the request line is malformed; expected "METHOD TARGET HTTP/1.1"',
    ),
    "a version of another form": (
        request(line="GET / HTTP/11"),
        400,
        'the request line is malformed; expected "METHOD TARGET HTTP/1.1"',
    ),
    "another protocol": (
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        400,
        'the request line is malformed; expected "METHOD TARGET HTTP/1.1"',
    ),
    "a header without colon": (request(f"Cookie {SECRET}"), 400, "line 7 has no colon directly after the header name"),
    "a space before the colon": (
        request(f"Cookie : {SECRET}"),
        400,
        "line 7 has no colon directly after the header name",
    ),
    "a header without name": (request(f": {SECRET}"), 400, "line 7 does not start with a header name"),
    "no Host": (request(host=None), 400, "the request has 0 Host headers; exactly one is expected"),
    "no Host in HTTP/1.2": (
        request(line="GET / HTTP/1.2", host=None),
        400,
        "the request has 0 Host headers; exactly one is expected",
    ),
    "two Hosts": (request("host: example.com"), 400, "the request has 2 Host headers; exactly one is expected"),
    "two Hosts in HTTP/1.0": (
        request("Host: example.com", line="GET / HTTP/1.0"),
        400,
        "the request has 2 Host headers; exactly one is expected",
    ),
    "conflicting Content-Lengths": (
        request("Content-Length: 0", "Content-Length: 1"),
        400,
        "the Content-Length is not one decimal number",
    ),
    "a list of Content-Lengths": (
        request("Content-Length: 0, 1"),
        400,
        "the Content-Length is not one decimal number",
    ),
    "a negative Content-Length": (
        request("Content-Length: -1", line="POST / HTTP/1.0", host=None),
        400,
        "the Content-Length is not one decimal number",
    ),
    "an unknown Transfer-Encoding": (
        request("Transfer-Encoding: gzip, chunked"),
        501,
        'the Transfer-Encoding is not understood; expected none, or "chunked" once',
    ),
    "two Transfer-Encodings": (
        request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        501,
        'the Transfer-Encoding is not understood; expected none, or "chunked" once',
    ),
    # Version, Host, target.
    "the preface of HTTP/2": (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        505,
        "the request is HTTP/2.0; expected HTTP/1.1",
    ),
    "HTTP/0.9": (request(line="GET / HTTP/0.9"), 505, "the request is HTTP/0.9; expected HTTP/1.1"),
    "an empty Host": (
        request(host="Host:"),
        400,
        "the Host header is empty; a request for a WebSocket must name the host",
    ),
    "a list of Hosts": (
        request(host="Host: a, b"),
        400,
        "the Host header is malformed; expected host or host:port",
    ),
    "a Host with userinfo": (
        request(host=f"Host: user:{SECRET}@example.com"),
        400,
        "the Host header is malformed; expected host or host:port",
    ),
    "a Host with a bad port": (
        request(host="Host: example.com:http"),
        400,
        "the Host header is malformed; expected host or host:port",
    ),
    "a target that is no path": (
        request(line=f"GET {SECRET} HTTP/1.1"),
        400,
        "the request target is neither a path nor an http:// URL without userinfo and fragment",
    ),
    "a target with a fragment": (
        request(line=f"GET /?{SECRET}#a HTTP/1.1"),
        400,
        "the request target is neither a path nor an http:// URL without userinfo and fragment",
    ),
    "a target with userinfo": (
        request(line=f"GET http://user:{SECRET}@example.com/ HTTP/1.1"),
        400,
        "the request target is neither a path nor an http:// URL without userinfo and fragment",
    ),
    "CONNECT": (
        request(line="CONNECT example.com:80 HTTP/1.1"),
        400,
        "the request target is neither a path nor an http:// URL without userinfo and fragment",
    ),
    # Plain HTTP.
    "a chunked body": (
        request("Transfer-Encoding: chunked", without="Upgrade"),
        411,
        "the request has a Transfer-Encoding; a body is accepted with a Content-Length only",
    ),
    "both framings": (
        request("Transfer-Encoding: chunked", "Content-Length: 1", without="Upgrade"),
        411,
        "the request has a Transfer-Encoding; a body is accepted with a Content-Length only",
    ),
    "a body of 64 KiB and 1": (
        request("Content-Length: 65537", line="POST / HTTP/1.1", without="Upgrade"),
        413,
        "the request has a body of 65,537 bytes; at most 65,536 are accepted",
    ),
    "a body after an expectation": (
        request("Content-Length: 1", "Expect: 100-continue", line="POST / HTTP/1.1", without="Upgrade"),
        417,
        "the request has an Expect header; a body is expected with the request",
    ),
    # The upgrade.
    "HTTP/1.0": (
        request(line="GET / HTTP/1.0"),
        505,
        "a WebSocket was requested with HTTP/1.0; expected HTTP/1.1",
    ),
    "POST": (request(line="POST / HTTP/1.1"), 405, "a WebSocket was requested with 'POST'; expected GET"),
    "HEAD": (request(line="HEAD / HTTP/1.1"), 405, "a WebSocket was requested with 'HEAD'; expected GET"),
    "a long method": (
        request(line="A" * 100 + " / HTTP/1.1"),
        405,
        f"a WebSocket was requested with '{'A' * 77}...'; expected GET",
    ),
    "a body": (request("Content-Length: 4"), 400, "the request for a WebSocket has a body; expected none"),
    "a body in chunks": (
        request("Transfer-Encoding: chunked"),
        400,
        "the request for a WebSocket has a body; expected none",
    ),
    "no version of WebSocket": (
        request(without="Sec-WebSocket-Version"),
        426,
        "Sec-WebSocket-Version is missing; expected 13",
    ),
    "another version of WebSocket": (
        request("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"),
        426,
        "Sec-WebSocket-Version is '8'; expected 13",
    ),
    "a version that is no number": (
        request("Sec-WebSocket-Version: 13, \xe9", without="Sec-WebSocket-Version"),
        426,
        r"Sec-WebSocket-Version is '13, \xe9'; expected 13",
    ),
    "two versions": (
        request("Sec-WebSocket-Version: 13"),
        400,
        "the request has 2 Sec-WebSocket-Version headers; exactly one is expected",
    ),
    "no key": (
        request(without="Sec-WebSocket-Key"),
        400,
        "the request has 0 Sec-WebSocket-Key headers; exactly one is expected",
    ),
    "two keys": (
        request("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="),
        400,
        "the request has 2 Sec-WebSocket-Key headers; exactly one is expected",
    ),
    "a short key": (
        request("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j", without="Sec-WebSocket-Key"),
        400,
        "Sec-WebSocket-Key is 'dGhlIHNhbXBsZSBub25j'; expected 16 bytes in base64",
    ),
    "a long key": (
        request("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE=", without="Sec-WebSocket-Key"),
        400,
        "Sec-WebSocket-Key is 'dGhlIHNhbXBsZSBub25jZSE='; expected 16 bytes in base64",
    ),
    "a key that is no base64": (
        request("Sec-WebSocket-Key: dGhlIHNhbXBsZ!Bub25jZQ==", without="Sec-WebSocket-Key"),
        400,
        "Sec-WebSocket-Key is 'dGhlIHNhbXBsZ!Bub25jZQ=='; expected 16 bytes in base64",
    ),
    "a subprotocol that is no token": (
        request("Sec-WebSocket-Protocol: a b"),
        400,
        "Sec-WebSocket-Protocol is malformed; expected different tokens separated by commas",
    ),
    "a subprotocol offered twice": (
        request("Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Protocol: a"),
        400,
        "Sec-WebSocket-Protocol is malformed; expected different tokens separated by commas",
    ),
    "an extension that is no token": (
        request("Sec-WebSocket-Extensions: a b"),
        400,
        "Sec-WebSocket-Extensions is malformed: an extension's name is not a token",
    ),
    "an extension with an empty parameter": (
        request("Sec-WebSocket-Extensions: a;"),
        400,
        "Sec-WebSocket-Extensions is malformed: a parameter's name in extension a is not a token",
    ),
    "an extension with a bad value": (
        request('Sec-WebSocket-Extensions: a; b="'),
        400,
        "Sec-WebSocket-Extensions is malformed: the value of parameter b in extension a is not a token",
    ),
    "two Origins": (
        request("Origin: http://example.com", "Origin: http://example.com"),
        400,
        "the request has 2 Origin headers; at most one is expected",
    ),
    "another Origin": (
        request("Origin: http://evil.example"),
        403,
        "the Origin 'http://evil.example' is not that of the Host 'example.com'; "
        "the server's option origins says which others may connect",
    ),
    "the Origin of a file": (
        request("Origin: null"),
        403,
        "the Origin 'null' is not that of the Host 'example.com'; "
        "the server's option origins says which others may connect",
    ),
    "an Origin with userinfo and query": (
        request(f"Origin: http://u:{SECRET}@example.com/?{SECRET}"),
        403,
        "the Origin 'example.com/' is not that of the Host 'example.com'; "
        "the server's option origins says which others may connect",
    ),
    "an Origin for the Host, but not for the target": (
        request("Origin: http://example.com", line="GET http://other.example/ HTTP/1.1"),
        403,
        "the Origin 'http://example.com' is not that of the Host 'other.example'; "
        "the server's option origins says which others may connect",
    ),
}


@pytest.mark.parametrize(("data", "status_code", "text"), REQUESTS.values(), ids=REQUESTS)
def test_a_malformed_request_is_refused(data: bytes, status_code: int, text: str) -> None:
    for chunks in chunked(data):
        handshake = ServerHandshake(server_header=None)
        with pytest.raises(InvalidHandshake) as e:
            for chunk in chunks:
                assert handshake.feed(chunk) is None
        assert str(e.value) == text
        assert not e.value.transient
        assert e.value.__suppress_context__ or e.value.__context__ is None
        assert isinstance(e.value.response, Response)
        assert e.value.response.status_code == status_code
        answer = handshake.reject(e.value.response)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status_code)
        assert b"\r\nContent-Type: text/plain; charset=utf-8" in head
        assert body.decode() == ("" if data.startswith(b"HEAD") else text + "\n")
        assert SECRET.encode() not in answer


@pytest.mark.parametrize(
    ("vector", "fields"),
    [
        ("POST", [b"Allow: GET", b"Connection: close"]),
        (
            "another version of WebSocket",
            [b"Sec-WebSocket-Version: 13", b"Upgrade: websocket", b"Connection: Upgrade, close"],
        ),
    ],
)
def test_a_refusal_says_what_would_do(vector: str, fields: list[bytes]) -> None:
    handshake = ServerHandshake()
    with pytest.raises(InvalidHandshake) as e:
        handshake.feed(REQUESTS[vector][0])
    assert e.value.response is not None
    lines = handshake.reject(e.value.response).split(b"\r\n")
    assert set(fields) <= set(lines)


@pytest.mark.parametrize("data", [b"", GOOD[:1], GOOD[:-1], request("Content-Length: 9", without="Upgrade") + b"abc"])
def test_the_end_of_the_stream_within_a_request_needs_no_answer(data: bytes) -> None:
    for chunks in ([data], [data[i : i + 1] for i in range(len(data))]):
        handshake = ServerHandshake()
        for chunk in chunks:
            if chunk:
                handshake.feed(chunk)
        with pytest.raises(InvalidHandshake) as e:
            handshake.feed(b"")
        assert str(e.value) == f"the connection was closed after {len(data)} bytes of an incomplete request"
        assert e.value.response is None


# The client's side. The key is fixed by the fixture below.
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HEAD = "HTTP/1.1 101 Switching Protocols"


@pytest.fixture(autouse=True)
def the_key_of_the_rfc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_ws.protocol.client_handshake.os.urandom", lambda count: b"the sample nonce")


def response(*fields: str, line: str = HEAD, without: str = "") -> bytes:
    """A good answer, with fields added or left out."""
    lines = [
        field
        for field in ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}")
        if field.partition(":")[0] != without
    ]
    return "\r\n".join([line, *lines, *fields, "", ""]).encode("latin-1")


NOT_HTTP = "the answer is not a valid HTTP response: "

RESPONSES: dict[str, tuple[bytes, str]] = {
    # The bytes.
    "a TLS alert": (
        b"\x15\x03\x03\x00\x02\x02\x46",
        NOT_HTTP + "the first byte is 0x15: TLS, where plain HTTP was expected (is it wss:// against ws://?)",
    ),
    "a frame": (b"\x01\x05hello", NOT_HTTP + "the first byte is 0x01, expected HTTP/1.1"),
    "bare LF everywhere": (
        response().replace(b"\r\n", b"\n"),
        NOT_HTTP + "the status line ends with a bare LF; expected CR LF",
    ),
    "bare LF after a header": (
        response().replace(b"websocket\r\n", b"websocket\n"),
        NOT_HTTP + "a header line ends with a bare LF; expected CR LF",
    ),
    "an empty line first": (b"\r\n" + response(), NOT_HTTP + "the status line is empty"),
    "NUL in a value": (
        response("X: \0"),
        NOT_HTTP + "a header line or the first line contains NUL, VT, FF or a bare CR",
    ),
    "blanks and then FF": (
        response("X:" + " " * 15_000 + "\f"),
        NOT_HTTP + "a header line or the first line contains NUL, VT, FF or a bare CR",
    ),
    "an endless status line": (
        b"HTTP/1.1 200 " + b"a" * 8182,
        NOT_HTTP + "the status line is longer than 8,192 bytes, the most accepted",
    ),
    "endless headers": (
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 2731,
        NOT_HTTP + "the header fields are longer than 16,384 bytes, the most accepted",
    ),
    "endless interim answers": (
        b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" * 600,
        NOT_HTTP + "the header fields are longer than 16,384 bytes, the most accepted",
    ),
    # What h11 makes of them.
    "another protocol": (
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        NOT_HTTP + 'the status line is malformed; expected "HTTP/1.1", a code of three digits and a phrase',
    ),
    "a status code of two digits": (
        response(line="HTTP/1.1 10 OK"),
        NOT_HTTP + 'the status line is malformed; expected "HTTP/1.1", a code of three digits and a phrase',
    ),
    "a status code below 100": (
        response(line="HTTP/1.1 099 OK"),
        NOT_HTTP + 'the status line is malformed; expected "HTTP/1.1", a code of three digits and a phrase',
    ),
    "a fold before the first header": (
        f"{HEAD}\r\n Upgrade: websocket\r\n\r\n".encode(),
        NOT_HTTP + "line 2 does not start with a header name",
    ),
    "a header without colon after a fold": (
        response("X: a", " b", f"Set-Cookie {SECRET}"),
        NOT_HTTP + "line 7 has no colon directly after the header name",
    ),
    "conflicting Content-Lengths": (
        response("Content-Length: 0", "Content-Length: 1"),
        NOT_HTTP + "the Content-Length is not one decimal number",
    ),
    "an unknown Transfer-Encoding": (
        response("Transfer-Encoding: gzip", line="HTTP/1.1 503 Busy"),
        NOT_HTTP + 'the Transfer-Encoding is not understood; expected none, or "chunked" once',
    ),
    # The 101.
    "HTTP/1.0": (response(line="HTTP/1.0 101 OK"), "the answer is HTTP/1.0 101; expected HTTP/1.1 101"),
    "HTTP/2.0": (response(line="HTTP/2.0 200 OK"), "the answer is HTTP/2.0 200; expected HTTP/1.1 101"),
    "no Upgrade": (response(without="Upgrade"), "the 101 has no Upgrade header; expected websocket"),
    "another Upgrade": (
        response("Upgrade: h2c", without="Upgrade"),
        "the 101 has Upgrade: 'h2c'; expected websocket",
    ),
    "two Upgrades": (
        response("Upgrade: h2c"),
        "the 101 has Upgrade: 'websocket, h2c'; expected websocket",
    ),
    "no Connection": (
        response(without="Connection"),
        "the 101 has no Connection header; expected Upgrade among its tokens",
    ),
    "another Connection": (
        response("Connection: upgraded, close", without="Connection"),
        "the 101 has Connection: 'upgraded, close'; expected Upgrade among its tokens",
    ),
    "no accept": (
        response(without="Sec-WebSocket-Accept"),
        f"the 101 has no Sec-WebSocket-Accept header; expected {ACCEPT}",
    ),
    "another accept": (
        response("Sec-WebSocket-Accept: " + ACCEPT.lower(), without="Sec-WebSocket-Accept"),
        f"the 101 has Sec-WebSocket-Accept: '{ACCEPT.lower()}'; expected {ACCEPT}",
    ),
    "two accepts": (
        response(f"Sec-WebSocket-Accept: {ACCEPT}"),
        f"the 101 has Sec-WebSocket-Accept: '{ACCEPT}, {ACCEPT}'; expected {ACCEPT}",
    ),
    "an extension": (
        response("Sec-WebSocket-Extensions: permessage-deflate"),
        "the 101 has Sec-WebSocket-Extensions: 'permessage-deflate'; expected none, for none was offered",
    ),
    "an extension without name": (
        response("Sec-WebSocket-Extensions:"),
        "the 101 has Sec-WebSocket-Extensions: ''; expected none, for none was offered",
    ),
    "another subprotocol": (
        response("Sec-WebSocket-Protocol: CHAT"),
        "the 101 has Sec-WebSocket-Protocol: 'CHAT'; "
        "expected one of those the option subprotocols offers: chat, superchat",
    ),
    "two subprotocols": (
        response("Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"),
        "the 101 has Sec-WebSocket-Protocol: 'chat, chat'; "
        "expected one of those the option subprotocols offers: chat, superchat",
    ),
    "a list of subprotocols": (
        response("Sec-WebSocket-Protocol: chat, superchat"),
        "the 101 has Sec-WebSocket-Protocol: 'chat, superchat'; "
        "expected one of those the option subprotocols offers: chat, superchat",
    ),
    "a body": (response("Content-Length: 1"), "the answer is a 101 with a body; expected none"),
    "a body in chunks": (response("Transfer-Encoding: chunked"), "the answer is a 101 with a body; expected none"),
}


@pytest.mark.parametrize(("data", "text"), RESPONSES.values(), ids=RESPONSES)
def test_a_malformed_answer_is_refused(data: bytes, text: str) -> None:
    for chunks in chunked(data):
        handshake = ClientHandshake(parse_url("ws://example.com/"), subprotocols=["chat", "superchat"])
        with pytest.raises(InvalidHandshake) as e:
            for chunk in chunks:
                assert handshake.feed(chunk) is None
        assert str(e.value) == text
        assert not e.value.transient
        assert e.value.response is None
        assert e.value.__suppress_context__ or e.value.__context__ is None
        assert handshake.subprotocol is None


def test_a_subprotocol_is_refused_where_none_was_offered() -> None:
    handshake = ClientHandshake(parse_url("ws://example.com/"))
    with pytest.raises(InvalidHandshake, match="the option subprotocols offers: none"):
        handshake.feed(response("Sec-WebSocket-Protocol: chat"))


@pytest.mark.parametrize("data", [b"", b"H", response()[:-1]])
def test_the_end_of_the_stream_within_the_head_of_an_answer_is_refused(data: bytes) -> None:
    handshake = ClientHandshake(parse_url("ws://example.com/"))
    if data:
        assert handshake.feed(data) is None
    with pytest.raises(InvalidHandshake) as e:
        handshake.feed(b"")
    assert str(e.value) == (
        f"the connection was closed after {len(data)} bytes of an answer's head; expected an HTTP response"
    )


def test_the_vectors_differ_from_good_ones_in_one_thing() -> None:
    server = ServerHandshake()
    assert isinstance(server.feed(GOOD), Request)
    client = ClientHandshake(parse_url("ws://example.com/"))
    answer = client.feed(response())
    assert answer is not None
    assert answer.status_code == 101
