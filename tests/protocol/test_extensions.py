"""The interface for extensions: what is offered, what is answered, and what fails the handshake."""

from collections.abc import Sequence

import pytest

from anyio_ws.protocol import Extension, InvalidHandshake, Parameters, Response
from anyio_ws.protocol.handshake import ClientHandshake, ServerHandshake, ServerRules
from anyio_ws.protocol.url import parse_url

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Agreed:
    """An extension that does nothing."""

    def __init__(self, name: str, rsv: int, parameters: Parameters) -> None:
        self.name, self.rsv, self.parameters = name, rsv, parameters

    def encode(self, opcode: int, payload: bytes | bytearray | memoryview) -> bytes | None:
        return None

    def decode(self, payload: bytes | bytearray | memoryview, max_size: int | None) -> bytes:
        return bytes(payload)


class Configured:
    """Offers these; agrees to any answer but "no", and accepts any offer but "no"."""

    def __init__(self, name: str, rsv: int = 0x40, offers: Sequence[Parameters] = ([],)) -> None:
        self.name, self.rsv, self._offers = name, rsv, offers

    def offers(self) -> Sequence[Parameters]:
        return self._offers

    def agree(self, parameters: Parameters) -> Extension:
        if ("no", None) in parameters:
            raise ValueError("no is not what was offered")
        if ("never", None) in parameters:
            raise InvalidHandshake("never")
        return Agreed(self.name, self.rsv, parameters)

    def accept(self, offer: Parameters) -> tuple[Parameters, Extension] | None:
        return None if ("no", None) in offer else (offer, Agreed(self.name, self.rsv, offer))


def client(*extensions: Configured) -> ClientHandshake:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("anyio_ws.protocol.client_handshake.os.urandom", lambda count: b"the sample nonce")
        return ClientHandshake(parse_url("ws://example.com/"), extensions=extensions)


def answer(*lines: str) -> bytes:
    fields = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}", *lines)
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *fields, "", ""]).encode()


def server(rules: ServerRules, *lines: str) -> ServerHandshake:
    fields = ("Host: h", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    handshake = ServerHandshake.of(rules)
    request = "\r\n".join(["GET / HTTP/1.1", *fields, f"Sec-WebSocket-Key: {KEY}", *lines, "", ""]).encode()
    assert handshake.feed(request) is not None
    return handshake


def names(extensions: Sequence[Extension]) -> list[str]:
    return [extension.name for extension in extensions]


# Offering.


def test_a_client_offers_its_extensions_in_order_with_all_their_offers() -> None:
    one = Configured("x-one", offers=[[("a", None), ("b", "1")], []])
    handshake = client(one, Configured("x-two", 0x20))
    assert handshake.request.headers["Sec-WebSocket-Extensions"] == "x-one; a; b=1, x-one, x-two"
    assert b"\r\nSec-WebSocket-Extensions: x-one; a; b=1, x-one, x-two\r\n" in handshake.request_bytes()
    assert handshake.extensions == ()


@pytest.mark.parametrize("extensions", [(), (Configured("x-one", offers=()),)])
def test_without_an_offer_there_is_no_header(extensions: tuple[Configured, ...]) -> None:
    assert "Sec-WebSocket-Extensions" not in client(*extensions).request.headers


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a;b", "ä", "a\r\nb"])
def test_a_name_is_a_token(name: str) -> None:
    with pytest.raises(ValueError, match=r"extensions: .* is not a token"):
        client(Configured(name))
    with pytest.raises(ValueError, match=r"extensions: .* is not a token"):
        ServerHandshake(extensions=[Configured(name)])


def test_a_name_comes_once() -> None:
    with pytest.raises(ValueError, match="extensions: x-one comes twice"):
        client(Configured("x-one"), Configured("x-one"))
    with pytest.raises(ValueError, match="extensions: x-one comes twice"):
        ServerRules(extensions=[Configured("x-one"), Configured("x-one")])


@pytest.mark.parametrize("parameter", [("", None), ("a b", None), ("a", ""), ("a", "b c"), ("a", "b\r\nc: d")])
def test_a_parameter_is_made_of_tokens(parameter: tuple[str, str | None]) -> None:
    with pytest.raises(ValueError, match="extension x-one: a parameter that is not made of tokens"):
        client(Configured("x-one", offers=[[parameter]]))


# The answer.


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("x-one", [("x-one", [])]),
        ('x-two; a; b=1; c="2"', [("x-two", [("a", None), ("b", "1"), ("c", "2")])]),
        ("x-two, x-one;a", [("x-two", []), ("x-one", [("a", None)])]),
        (" , x-one,", [("x-one", [])]),
    ],
)
def test_the_client_has_what_the_server_agreed_to_in_its_order(
    header: str, expected: list[tuple[str, Parameters]]
) -> None:
    handshake = client(Configured("x-one"), Configured("x-two", 0x20))
    response = handshake.feed(answer(f"Sec-WebSocket-Extensions: {header}"))
    assert response is not None
    agreed = [extension for extension in handshake.extensions if isinstance(extension, Agreed)]
    assert [(extension.name, extension.parameters) for extension in agreed] == expected


def test_a_server_need_not_agree_to_any() -> None:
    handshake = client(Configured("x-one"))
    assert handshake.feed(answer()) is not None
    assert handshake.extensions == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x-three"], "'x-three'; expected some of those offered: x-one, x-two, x-same"),
        (["X-One"], "'X-One'; expected some of those offered: x-one, x-two, x-same"),
        (["x-one, x-one"], "'x-one, x-one'; expected each extension at most once"),
        (["x-one, x-same"], "'x-one, x-same'; expected no two that use the same RSV bit"),
        (["x-one; no"], "'x-one; no'; no is not what was offered"),
        (["x-one; a="], "'x-one; a='; the value of parameter a in extension x-one is not a token"),
        ([""], "''; no extension is named"),
        (["x-one", "x-two"], "'x-one, x-two'; expected one header at most"),
        (["x" * 100], f"'{'x' * 77}...'; expected some of those offered: x-one, x-two, x-same"),
    ],
)
def test_the_client_fails_the_handshake_over_any_other_answer(lines: list[str], message: str) -> None:
    handshake = client(Configured("x-one"), Configured("x-two", 0x20), Configured("x-same"))
    with pytest.raises(InvalidHandshake) as caught:
        handshake.feed(answer(*[f"Sec-WebSocket-Extensions: {line}" for line in lines]))
    assert str(caught.value) == f"the 101 has Sec-WebSocket-Extensions: {message}"
    assert handshake.extensions == ()


def test_a_client_that_offers_none_takes_none() -> None:
    with pytest.raises(InvalidHandshake, match="'x-one'; expected none, for none was offered"):
        client().feed(answer("Sec-WebSocket-Extensions: x-one"))


def test_an_extension_may_raise_what_the_handshake_raises() -> None:
    with pytest.raises(InvalidHandshake, match=r"^never$"):
        client(Configured("x-one")).feed(answer("Sec-WebSocket-Extensions: x-one; never"))


# Accepting.

RULES = ServerRules(extensions=[Configured("x-one"), Configured("x-two", 0x20), Configured("x-same")])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["x-three"], None),
        (["X-One"], None),
        (["x-one; no"], None),
        (["x-one"], "x-one"),
        (["x-one; a; b=1"], "x-one; a; b=1"),
        (["x-one; no, x-three, x-one; a, x-one; b"], "x-one; a"),
        (["x-one; no", "x-one; a, x-one; b"], "x-one; a"),
        (["x-two, x-one"], "x-two, x-one"),
        (["x-same, x-one, x-two"], "x-same, x-two"),
        (['x-two; c="2",'], "x-two; c=2"),
    ],
)
def test_the_server_takes_the_first_offer_of_each_that_it_can(lines: list[str], expected: str | None) -> None:
    handshake = server(RULES, *[f"Sec-WebSocket-Extensions: {line}" for line in lines])
    assert handshake.extensions == ()
    response, data = handshake.accept()
    assert response.headers.get("Sec-WebSocket-Extensions") == expected
    if expected is None:
        assert b"Extensions" not in data
        assert handshake.extensions == ()
    else:
        assert f"\r\nSec-WebSocket-Extensions: {expected}\r\n".encode() in data
        assert names(handshake.extensions) == [item.partition(";")[0] for item in expected.split(", ")]


def test_without_extensions_no_offer_is_answered() -> None:
    handshake = server(ServerRules(), "Sec-WebSocket-Extensions: x-one")
    response, _ = handshake.accept()
    assert "Sec-WebSocket-Extensions" not in response.headers
    assert handshake.extensions == ()


def test_extensions_go_with_the_subprotocol_and_headers_of_the_application() -> None:
    rules = ServerRules(subprotocols=["chat"], server_header=None, extensions=[Configured("x-one")])
    handshake = server(rules, "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Extensions: x-one")
    response, data = handshake.accept(Response(101, {"X-Added": "1"}))
    assert response.headers.multi_items()[3:] == [
        ("Sec-WebSocket-Protocol", "chat"),
        ("Sec-WebSocket-Extensions", "x-one"),
        ("X-Added", "1"),
    ]
    assert data.endswith(b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: x-one\r\nX-Added: 1\r\n\r\n")


def test_the_application_cannot_answer_for_an_extension() -> None:
    handshake = server(RULES, "Sec-WebSocket-Extensions: x-one")
    with pytest.raises(ValueError, match=r"Sec-WebSocket-Extensions in the headers .* is not the application's to set"):
        handshake.accept(Response(101, {"Sec-WebSocket-Extensions": "x-one"}))


def test_the_two_sides_understand_each_other() -> None:
    mine = [Configured("x-one", offers=[[("no", None)], [("a", "1")]]), Configured("x-two", 0x20)]
    initiating = ClientHandshake(parse_url("ws://example.com/"), extensions=mine)
    accepting = ServerHandshake(extensions=[Configured("x-two", 0x20), Configured("x-one")])
    assert accepting.feed(initiating.request_bytes()) is not None
    _, data = accepting.accept()
    assert initiating.feed(data) is not None
    assert names(initiating.extensions) == names(accepting.extensions) == ["x-one", "x-two"]
