"""However the bytes of a request are cut, a server's handshake comes to the same: to a Request that keeps the rules of
RFC 6455 §4.2.1, or to a refusal; it keeps at most what its limits allow; and its answer is one HTTP response, whatever
of the request the application puts into it.
"""

import base64
import re
from collections.abc import Callable
from typing import Any

from anyio_ws.protocol import InvalidHandshake, Request, Response, ServerHandshake
from tests.protocol.test_malformed_handshakes import GOOD, REQUESTS

from .http_oracle import TOKEN, Head, check_answer
from .inputs import Choices, seed

# An empty line, a request line, the header fields; or a body and what came with it.
MOST_KEPT = 2 + 8 * 1024 + 2 + 16 * 1024 + 64 * 1024

OPTIONS: list[dict[str, Any]] = [
    {},
    {"origins": None, "subprotocols": ["chat", "superchat"], "server_header": None},
    {"secure": True},
    {"origins": ["https://app.example", "null", re.compile(r"https://[a-z]+\.example")], "subprotocols": ["chat"]},
]
STATUS_CODES = [200, 204, 302, 304, 404, 426, 500, 599, 101, 100]
FRAMING = {"connection", "content-length", "transfer-encoding", "server"}
OURS = {"upgrade", "connection", "sec-websocket-accept", "sec-websocket-protocol", "server"}


def run(data: bytes) -> None:
    choices = Choices(data)
    options = choices.pick(OPTIONS)
    reply = choices.below(4)
    status_code = choices.pick(STATUS_CODES)
    whole, pieces = choices.stream()
    handshake, outcome, trailing = shake_hands(options, [whole] if whole else [])
    _, other, other_trailing = shake_hands(options, pieces)
    assert say(outcome) == say(other)
    must_refuse(handshake.feed, whole)
    if isinstance(outcome, InvalidHandshake):
        must_refuse(handshake.accept)
        if outcome.response is None:
            assert f"after {len(whole):,} bytes" in str(outcome)
        else:
            # A method is known once the whole head was parsed.
            answer = handshake.reject(outcome.response)
            is_head = whole.removeprefix(b"\r\n").startswith(b"HEAD ") and answer.endswith(b"\r\n\r\n")
            check_answer(answer, "HEAD" if is_head else "GET", outcome.response, FRAMING)
        return
    head = Head(whole.removeprefix(b"\r\n"))
    check_request(head, outcome)
    if outcome.is_websocket:
        check_upgrade(head, outcome, options)
        assert trailing == other_trailing == head.rest
    else:
        must_refuse(handshake.accept)
    answer_with(handshake, outcome, reply, status_code)


def shake_hands(
    options: dict[str, Any], pieces: list[bytes]
) -> tuple[ServerHandshake, Request | InvalidHandshake, bytes]:
    """The outcome, and what follows the request."""
    handshake = ServerHandshake(**options)
    fed = 0
    for number, piece in enumerate([*pieces, b""], 1):
        try:
            outcome: Request | InvalidHandshake | None = handshake.feed(piece)
        except InvalidHandshake as exc:
            outcome = exc
        if outcome is not None:
            return handshake, outcome, handshake.trailing_data + b"".join(pieces[number:])
        fed += len(piece)
        assert fed <= MOST_KEPT
    raise AssertionError("the end of the stream decided nothing")


def must_refuse(call: Callable[..., object], *arguments: object) -> None:
    """The call has nothing to do here, and says so."""
    try:
        call(*arguments)
    except RuntimeError:
        return
    raise AssertionError(f"{call} went on")


def say(outcome: Request | InvalidHandshake) -> tuple[object, ...]:
    if isinstance(outcome, Request):
        return outcome.method, outcome.target, outcome.headers.multi_items(), outcome.is_websocket, outcome.body
    response = outcome.response
    return str(outcome), response and (response.status_code, response.headers.multi_items(), response.body)


def check_request(head: Head, request: Request) -> None:
    assert re.fullmatch(rb"%s [!-~]+ HTTP/1\.[0-9]" % TOKEN, head.start)
    assert head.start.split(b" ")[:2] == [request.method.encode(), request.target.encode()]
    assert request.headers.multi_items() == head.fields
    assert len(head.values("host")) == 1 or (head.start.endswith(b"1.0") and not head.values("host"))
    tokens = {item.lower() for item in head.items("connection")}
    upgrades = {item.lower() for item in head.items("upgrade")}
    assert request.is_websocket == ("upgrade" in tokens and "websocket" in upgrades)
    if not request.is_websocket:
        assert not head.values("transfer-encoding")
        length = int(head.items("content-length")[0]) if head.values("content-length") else 0
        assert request.body == head.rest[:length]
        assert len(request.body) == length <= 64 * 1024


def check_upgrade(head: Head, request: Request, options: dict[str, Any]) -> None:
    assert request.method == "GET"
    assert not head.start.endswith(b"1.0")
    assert not head.values("transfer-encoding")
    assert all(int(length) == 0 for length in head.items("content-length"))
    assert head.values("sec-websocket-version") == ["13"]
    (key,) = head.values("sec-websocket-key")
    assert len(base64.b64decode(key, validate=True)) == 16
    offered = head.items("sec-websocket-protocol")
    assert request.subprotocols == tuple(offered)
    assert len(set(offered)) == len(offered)
    assert all(re.fullmatch(TOKEN, name.encode("latin-1")) for name in offered)
    origins = head.values("origin")
    assert len(origins) <= 1
    allowed = options.get("origins", "same-origin")
    if origins and allowed == "same-origin":
        assert is_same_origin(origins[0], head, secure=options.get("secure", False))
    elif origins and allowed is not None:
        assert any(re.fullmatch(one, origins[0]) for one in allowed)


def is_same_origin(origin: str, head: Head, *, secure: bool) -> bool:
    target = head.start.split(b" ")[1].decode()
    host = re.split(r"[/?]", target, maxsplit=3)[2] if "://" in target.partition("?")[0][:8] else head.values("host")[0]
    scheme, _, page = origin.lower().partition("://")
    ports = {"http": "80", "https": "443"}

    def parts(authority: str, port: str) -> tuple[str, str]:
        match = re.fullmatch(r"(\[.*\]|[^:]*)(?::(.*))?", authority.lower())
        assert match
        return match[1], match[2] or port

    return scheme in ports and parts(page, ports[scheme]) == parts(host, "443" if secure else ports[scheme])


def answer_with(handshake: ServerHandshake, request: Request, reply: int, status_code: int) -> None:
    """Answer as an application does that puts parts of the request into its response."""
    reflected = next(iter([*request.query.values(), *request.cookies.values()]), request.path)
    if reply == 0 and request.is_websocket:
        response, answer = handshake.accept()
        check_accepted(response, answer, request)
        return
    try:
        if reply == 1:
            headers = {"X-Path": reflected, "Sec-WebSocket-Protocol": request.subprotocols[-1:] or ("none",)}
            response = Response(101, {name: "".join(value) for name, value in headers.items()})
        elif reply == 2:
            response = Response(101, {reflected: request.headers.get("Origin", ""), "Server": reflected})
        else:
            fields = [("Location", reflected), ("Upgrade", "x"), ("Content-Length", "9"), (reflected, "a")]
            response = Response(status_code, fields[: 1 + status_code % 4], request.body or reflected)
            response.reason_phrase = reflected[:20]
    except ValueError:
        return
    if response.status_code == 101 and request.is_websocket:
        try:
            response, answer = handshake.accept(response)
        except ValueError:
            return
        check_accepted(response, answer, request)
        return
    try:
        answer = handshake.reject(response)
    except ValueError:
        return
    check_answer(answer, request.method, response, FRAMING)


def check_accepted(response: Response, answer: bytes, request: Request) -> None:
    check_answer(answer, "GET", response, set())
    head = Head(answer, sent=True)
    assert (head.values("upgrade"), head.values("connection")) == (["websocket"], ["Upgrade"])
    assert len(head.values("sec-websocket-accept")) == 1
    assert not head.values("sec-websocket-extensions")
    chosen = head.values("sec-websocket-protocol")
    assert len(chosen) <= 1
    assert set(chosen) <= set(request.subprotocols)


LINES = [
    b"GET http://example.com/ HTTP/1.1",
    b"GET /?a=%0d%0aX:y HTTP/1.1",
    b"POST / HTTP/1.1",
    b"HEAD /%41 HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"Host: example.com",
    b"Host: [::1]:8080",
    b"Host: app.example:443",
    b"Upgrade: websocket",
    b"Upgrade: h2c, websocket",
    b"Connection: keep-alive, Upgrade",
    b"Connection: close",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Protocol: chat, superchat",
    b'Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits="1\\5", a',
    b"Origin: https://app.example",
    b"Origin: http://example.com:80",
    b"Origin: null",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Cookie: a=b; c",
    b" folded",
    b"",
    b"hello",
]

SEEDS = {name: seed(data) for name, (data, *_) in REQUESTS.items() if len(data) < 1_000}
SEEDS |= {f"good {number}": seed(GOOD, number % 4, number // 4) for number in range(16)}
SEEDS |= {f"stretched {number}": seed(GOOD, 0, 0, 0, number, 0, 20 * number) for number in range(8)}
_BROWSER = GOOD.replace(b"chat?token", b"%0d%0aX:y?a=b&c")[:-2]
_MORE = [
    b"Origin: http://EXAMPLE.com:80\r\nSec-WebSocket-Protocol: superchat ,, chat\r\n\r\n\x81\x80mask",
    b'Origin: https://example.com\r\nSec-WebSocket-Extensions: ,permessage-deflate; a; b="c\\d"\r\n\r\n',
    b"Origin: https://app.example\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
    b"Origin: null\r\nContent-Length: 0\r\n\r\n",
    b"Origin: file:///a\r\n\r\n",
]
SEEDS |= {f"fields {i} {j}": seed(_BROWSER + more, i, j) for i in range(4) for j, more in enumerate(_MORE)}
_PLAIN = [
    b"POST /%C3%A9?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello, and more",
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"GET https://a.example?b HTTP/1.1\r\nHost: b\r\nUpgrade: h2c\r\n\r\n",
    b"GET /?a=%0d%0aSet-Cookie:%20b HTTP/1.1\r\nHost:\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65000\r\n\r\nbody",
]
SEEDS |= {
    f"plain {i} {j}": seed(data, 0, 3, i, *((7, 0, len(data) - 2) if i == 5 else ()))
    for i in range(len(STATUS_CODES))
    for j, data in enumerate(_PLAIN)
}
