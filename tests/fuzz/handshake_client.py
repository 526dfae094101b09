"""However the bytes of an answer are cut, a client's handshake comes to the same: to a 101 that keeps the rules of RFC
6455 §4.1, to a refusal with its status, headers and body, or to InvalidHandshake; it keeps at most what its limits
allow; and whatever its options are, they are refused with ValueError or its request is one that a server accepts.
"""

import re
from typing import Any
from unittest import mock

import h11

from anyio_ws.protocol import ClientHandshake, InvalidHandshake, Request, Response, ServerHandshake, parse_url
from tests.protocol.test_malformed_handshakes import ACCEPT, RESPONSES, response

from .http_oracle import Head
from .inputs import Choices, seed

MOST_BODY = 64 * 1024
# All interim answers together, a status line, the header fields; or a body and what came with it.
MOST_KEPT = 16 * 1024 + 8 * 1024 + 2 + 16 * 1024 + MOST_BODY

OFFERS: list[list[str]] = [[], ["chat", "superchat"]]
# Between the options in an input: no byte of a text in UTF-8.
SEPARATOR = b"\xff"


def run(data: bytes) -> None:
    choices = Choices(data)
    if choices.below(4) == 3:
        with_options(choices)
        return
    offered = choices.pick(OFFERS)
    whole, pieces = choices.stream()
    outcome, trailing = shake_hands(offered, [whole] if whole else [])
    other, other_trailing = shake_hands(offered, pieces)
    assert say(outcome) == say(other)
    if isinstance(outcome, InvalidHandshake):
        assert outcome.response is None
        return
    head = final_head(whole)
    assert head.start.startswith(b"HTTP/1.")
    assert int(head.start[9:12]) == outcome.status_code
    assert outcome.headers.multi_items() == head.fields
    if outcome.status_code == 101:
        check_101(head, offered)
        assert trailing == other_trailing == head.rest
    else:
        check_body(head, outcome.body)


def shake_hands(offered: list[str], pieces: list[bytes]) -> tuple[Response | InvalidHandshake, bytes]:
    """The outcome, and what follows the answer."""
    # The key of RFC 6455 §1.3, so that an input may have the Sec-WebSocket-Accept that answers it.
    with mock.patch("os.urandom", return_value=b"the sample nonce"):
        handshake = ClientHandshake(parse_url("ws://example.com/"), subprotocols=offered)
    fed = 0
    for number, piece in enumerate([*pieces, b""], 1):
        try:
            outcome: Response | InvalidHandshake | None = handshake.feed(piece)
        except InvalidHandshake as exc:
            outcome = exc
        if outcome is not None:
            return outcome, handshake.trailing_data + b"".join(pieces[number:])
        fed += len(piece)
        assert fed <= MOST_KEPT
    raise AssertionError("the end of the stream decided nothing")


def say(outcome: Response | InvalidHandshake) -> object:
    if isinstance(outcome, InvalidHandshake):
        return str(outcome)
    return outcome.status_code, outcome.reason_phrase, outcome.headers.multi_items(), outcome.body


def final_head(data: bytes) -> Head:
    while True:
        # RFC 9112 §5.2: a client MUST replace each obs-fold "with one or more SP octets".
        head, end, rest = data.partition(b"\r\n\r\n")
        found = Head(re.sub(rb"(?<=[^\r\n])[ \t]*\r\n[ \t]+", b" ", head) + end + rest)
        if found.start[9:12] == b"101" or found.start[9:10] != b"1":
            return found
        data = found.rest


def check_101(head: Head, offered: list[str]) -> None:
    assert not head.start.startswith(b"HTTP/1.0")
    assert [value.lower() for value in head.values("upgrade")] == ["websocket"]
    assert "upgrade" in [item.lower() for item in head.items("connection")]
    assert head.values("sec-websocket-accept") == [ACCEPT]
    assert not head.values("sec-websocket-extensions")
    chosen = head.values("sec-websocket-protocol")
    assert not chosen or (len(chosen) == 1 and chosen[0] in offered)
    assert not head.values("transfer-encoding")
    assert all(int(length) == 0 for length in head.items("content-length"))


def check_body(head: Head, body: bytes) -> None:
    most = head.rest[:MOST_BODY]
    assert len(body) <= MOST_BODY
    if head.start[9:12] in (b"204", b"304"):
        assert body == b""
    elif head.values("transfer-encoding"):
        if head.start.startswith(b"HTTP/1.1") and re.fullmatch(
            rb"([1-9][0-9]?\r\n.+\r\n)*0\r\n\r\n.*", most, re.DOTALL
        ):
            check_chunks(most, body)
    elif head.values("content-length"):
        assert body == most[: int(head.items("content-length")[0])]
    else:
        assert body == most


def check_chunks(data: bytes, body: bytes) -> None:
    while match := re.match(rb"([1-9][0-9]?)\r\n", data):
        size = int(match[1], 16)
        data = data[match.end() :]
        assert body[:size] == data[: min(size, len(body))]
        if data[size : size + 2] != b"\r\n":
            return
        body, data = body[size:], data[size + 2 :]
    if data.startswith(b"0\r\n\r\n"):
        assert body == b""


def with_options(choices: Choices) -> None:
    url, name, value, origin, subprotocol, user_agent = [
        part.decode("utf-8", "surrogateescape") for part in (choices.rest().split(SEPARATOR) + [b""] * 6)[:6]
    ]
    options: dict[str, Any] = {"additional_headers": [(name, value)] if name else None}
    options |= {"origin": origin or None, "subprotocols": subprotocol.split(",") if subprotocol else []}
    options |= {"user_agent_header": user_agent or None}
    try:
        handshake = ClientHandshake(parse_url(url), **options)
    except ValueError:
        return
    request = handshake.request_bytes()
    head = Head(request, sent=True)
    assert head.rest == b""
    expected = [(name, value.strip(" \t")) for name, value in handshake.request.headers.multi_items()]
    # h11 sends Host first, wherever it is.
    assert head.fields == sorted(expected, key=lambda field: field[0].lower() != "host")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request)
    assert isinstance(connection.next_event(), h11.Request)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    assert connection.trailing_data == (b"", False)
    # The two that are the application's to choose, and may be larger than a server takes, or nonsense.
    if name.lower() != "host" and len(request) < 8 * 1024:
        server = ServerHandshake(origins=None)
        accepted = server.feed(request)
        assert isinstance(accepted, Request)
        assert accepted.is_websocket
        assert list(accepted.subprotocols) == options["subprotocols"]


LINES = [
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 100 Continue\r\n",
    b"HTTP/1.1 200 OK",
    b"HTTP/1.0 503 Busy",
    b"HTTP/1.1 304 \xe9",
    b"Upgrade: WebSocket",
    b"Connection: keep-alive, upgrade",
    b"Sec-WebSocket-Accept: " + ACCEPT.encode(),
    b"Sec-WebSocket-Protocol: chat",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b" folded",
    b"\tfolded",
    b"",
    b"5\r\nhello",
    b"5;a=b\r\nhello",
    b"ffffffff",
    b"0\r\n",
    b"Trailer: a",
]

SEEDS = {name: seed(data, 0, 1) for name, (data, *_) in RESPONSES.items() if len(data) < 1_000}
_GOOD = [
    response(),
    response("Sec-WebSocket-Protocol: chat") + b"\x81\x05hello",
    response("Content-Length: 0", "X: a", "\tfolded"),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + response(),
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nhello, and more",
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 50\r\n\r\nhello",
    b"HTTP/1.0 503 Busy\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\n\r\nfor nobody",
    b"HTTP/1.1 302 Found\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\nyou\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 500 \r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nbad\r\n",
    b"HTTP/1.1 500\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nhello",
    b"HTTP/1.1 999 a b\r\nConnection: close\r\n\r\n",
]
SEEDS |= {f"good {i} {j}": seed(data, 0, i) for i in range(2) for j, data in enumerate(_GOOD)}
SEEDS |= {
    f"stretched {i} {j}": seed(data, 0, 1, i, *divmod(position, 256))
    for i in range(3, 8)
    for j, (data, position) in enumerate([(_GOOD[0], 15), (_GOOD[5], 52), (_GOOD[6], 26), (_GOOD[8], 52)])
}
# A line before a chunk that is as long as is accepted, and longer: the limit must not depend on the cuts.
SEEDS |= {
    f"chunk line {length} {cuts}": seed(
        b"HTTP/1.1 500 \r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"a" * length + b"\r\nhello\r\n0\r\n\r\n",
        *(0, 1, 0, 0, 0, cuts, 0, 60),
    )
    for length in (1_020, 1_021, 1_022, 1_500, 2_040)
    for cuts in (0, 2)
}
_OPTIONS = [
    [b"ws://example.com"],
    [b"wss://user:p%40ss@b\xc3\xbccher.example:8443/a b?c=d#", b"X-A", b"b c", b"https://a", b"a,b", b"me/1"],
    [b"ws://[fe80::1%25eth0]:80/%7f?\xe2\x82\xac", b"Host", b"other", b"null", b"chat", b"x"],
    [b"ws://1.2.3.4/", b"Authorization", b"Bearer x"],
    [b"ws://u@a/", b"X", b"a\r\nb: c", b"\n", b"a b", b"\0"],
    [b"ws://a/", b"X", b" a\xc3\xa9\t", b" ", b"a,a"],
    [b"ws://a/", b"Sec-WebSocket-Key", b"a"],
    [b"ws://a/", b"Origin", b"b", b"c"],
    [b"http://a/"],
    [b"ws://a:99999/"],
    [b"ws://xn--a/"],
    [b"ws://b\xc3\xbccher..example/"],
    [b"ws://a:b:c/"],
    [b"ws://[::1]x/"],
    [b"ws://[fe80::1%25/]/"],
    [b"ws://%ff@a/"],
    [b"ws://%0a@a/"],
    [b"ws:///"],
    [b"ws://a/ b#c"],
    [b"WS://a?\x01"],
    [b"a"],
    [b"ws://[::g]/"],
    [b"ws://:@/"],
]
SEEDS |= {f"options {number}": SEPARATOR.join(parts) + b"\3" for number, parts in enumerate(_OPTIONS)}
