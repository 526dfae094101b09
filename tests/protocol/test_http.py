"""Headers, Request, Response."""

import pickle
import re
from http import HTTPStatus

import pytest

from anyio_ws.protocol.http import Headers, Request, Response

SECRET = "s3cr3t"


def test_headers_are_case_insensitive_and_join_repeated_fields() -> None:
    headers = Headers([("Via", "a"), ("Cookie", "x=1"), ("VIA", "b"), ("cookie", "y=2")])
    assert headers["via"] == "a, b"
    assert headers["COOKIE"] == "x=1; y=2"
    assert "vIa" in headers
    assert "Host" not in headers
    assert 1 not in headers  # type: ignore[comparison-overlap]
    assert headers.get("Host") is None
    with pytest.raises(KeyError, match="Host"):
        headers["Host"]


def test_headers_keep_the_order_and_the_case_in_which_they_came() -> None:
    fields = [("b", "1"), ("A", "2"), ("B", "3")]
    headers = Headers(fields)
    assert headers.multi_items() == fields
    assert list(headers) == ["b", "A"]
    assert len(headers) == 2
    assert dict(headers) == {"b": "1, 3", "A": "2"}


def test_get_all_gives_each_field() -> None:
    headers = Headers([("Set-Cookie", "a=1, b"), ("set-cookie", "c")])
    assert headers.get_all("SET-COOKIE") == ["a=1, b", "c"]
    assert headers.get_all("Cookie") == []


def test_what_get_all_and_multi_items_return_is_a_copy() -> None:
    headers = Headers({"A": "1"})
    headers.get_all("A").append("2")
    headers.multi_items().append(("B", "2"))
    assert headers.get_all("A") == ["1"]
    assert headers.multi_items() == [("A", "1")]


def test_headers_equal_headers_and_mappings_of_the_same_fields() -> None:
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3")])
    assert headers == Headers([("b", "2"), ("a", "1"), ("A", "3")])
    assert headers != Headers([("b", "2"), ("a", "3"), ("A", "1")])
    assert headers == {"a": "1, 3", "B": "2"}
    assert headers != {"a": "1"}
    assert headers != [("A", "1")]
    assert Headers(headers) == headers


def test_headers_strip_white_space_around_values() -> None:
    assert Headers({"A": " \tb c\t"})["A"] == "b c"


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\x00b", "a\x1fb", "a\x7fb", "a\u20acb", "a\r\n B: c"])
def test_a_value_that_cannot_be_sent_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ValueError, match=r"additional_headers: the value of header X-Token has the character U\+") as e:
        Headers({"X-Token": SECRET + value}, option="additional_headers")
    assert SECRET not in str(e.value)


@pytest.mark.parametrize("name", ["Authorization: Bearer s3cr3t", "Authorization\r\n", "Authorization s3cr3t"])
def test_a_name_that_is_no_token_is_refused_and_cut(name: str) -> None:
    with pytest.raises(ValueError, match="headers: a header name that starts with 'Authorization' has") as e:
        Headers([(name, "")])
    assert SECRET not in str(e.value)


@pytest.mark.parametrize("name", ["", " A", "\u20ac"])
def test_a_name_that_begins_with_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="starts with ''"):
        Headers([(name, "")])


@pytest.mark.parametrize(
    ("field", "part"),
    [((b"A", "b"), "name of a header is bytes"), (("A", 1), "value of a header is int")],
)
def test_names_and_values_are_str(field: object, part: str) -> None:
    with pytest.raises(TypeError, match=part):
        Headers([field])  # type: ignore[list-item]


def test_the_repr_of_headers_has_names_only() -> None:
    assert repr(Headers({"Authorization": SECRET, "Host": "h"})) == "<Headers Authorization, Host>"


def test_a_request_decodes_its_target() -> None:
    request = Request("GET", "/caf%C3%A9/%2F?a=1&b=%26&a=2&c=&d+e=f+g")
    assert request.target == "/caf%C3%A9/%2F?a=1&b=%26&a=2&c=&d+e=f+g"
    assert request.path == "/café//"
    assert request.query == {"a": "1", "b": "&", "c": "", "d e": "f g"}


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://h/a?b://c/d", "/a"),
        ("http://h", "/"),
        ("http://h?x=1", "/"),
        ("*", "*"),
        ("/a://b/c", "/a://b/c"),
        ("/", "/"),
        ("/%FF", "/\ufffd"),
    ],
)
def test_the_path_of_every_form_of_target(target: str, path: str) -> None:
    assert Request("GET", target).path == path


def test_query_and_cookies_are_read_only() -> None:
    request = Request("GET", "/?a=1", {"Cookie": "b=2"})
    with pytest.raises(TypeError):
        request.query["a"] = "2"  # type: ignore[index]
    with pytest.raises(TypeError):
        request.cookies["b"] = "3"  # type: ignore[index]


def test_of_cookies_of_one_name_the_first_counts() -> None:
    request = Request("GET", "/", [("Cookie", 'a=1; b="x=y"'), ("Cookie", "a=2;nonsense; =c")])
    assert request.cookies == {"a": "1", "b": '"x=y"', "": "c"}
    assert Request("GET", "/").cookies == {}


def test_subprotocols_are_those_of_all_fields() -> None:
    request = Request("GET", "/", [("Sec-WebSocket-Protocol", "a,b"), ("Sec-WebSocket-Protocol", " ,c\t")])
    assert request.subprotocols == ("a", "b", "c")
    assert Request("GET", "/").subprotocols == ()


def test_a_request_has_a_state_of_its_own() -> None:
    assert Request("GET", "/").state == {}
    assert Request("GET", "/").state is not Request("GET", "/").state
    state = {"user": "ann"}
    assert Request("GET", "/", state=state).state is state


def test_reprs_have_no_secrets() -> None:
    headers = Headers({"Authorization": SECRET, "Cookie": SECRET, "Sec-WebSocket-Protocol": SECRET})
    request = Request("GET", f"/a%20b?{SECRET}", headers, is_websocket=True, body=SECRET.encode())
    assert repr(request) == "<Request GET /a%20b (websocket)>"
    assert repr(Request("HEAD", f"http://user:{SECRET}@host/a?{SECRET}")) == "<Request HEAD /a>"
    assert repr(Response(401, headers, SECRET)) == "<Response 401 Unauthorized>"
    assert repr(Response.trusted(299, "", headers)) == "<Response 299>"
    assert repr(Response.trusted(299, "a\x01é", headers)) == r"<Response 299 a\x01\xe9>"


def test_a_str_body_is_plain_text_in_utf_8() -> None:
    response = Response(404, body="né\n")
    assert response.body == b"n\xc3\xa9\n"
    assert response.headers == {"Content-Type": "text/plain; charset=utf-8"}


def test_the_content_type_given_for_a_str_body_stays() -> None:
    response = Response(200, {"content-type": "text/html"}, "<p>")
    assert response.headers.multi_items() == [("content-type", "text/html")]


@pytest.mark.parametrize("body", ["", b"", b"{}", bytearray(b"{}")])
def test_other_bodies_get_no_content_type(body: str | bytes) -> None:
    response = Response(200, body=body)
    assert response.body == (body or b"")
    assert type(response.body) is bytes
    assert response.headers == {}


@pytest.mark.parametrize(
    ("status_code", "phrase"), [(101, "Switching Protocols"), (404, "Not Found"), (599, ""), (HTTPStatus.OK, "OK")]
)
def test_the_reason_phrase_is_the_usual_one(status_code: int, phrase: str) -> None:
    response = Response(status_code)
    assert response.reason_phrase == phrase
    assert type(response.status_code) is int


@pytest.mark.parametrize("status_code", [0, 99, 600, -1])
def test_a_status_code_out_of_range_is_refused(status_code: int) -> None:
    with pytest.raises(ValueError, match=f"status_code={status_code} "):
        Response(status_code)


def test_the_headers_of_a_response_are_checked() -> None:
    with pytest.raises(ValueError, match=re.escape("headers: the value of header Location has the character U+000A")):
        Response(302, {"Location": "/\nSet-Cookie: a=b"})


def test_messages_pickle() -> None:
    request = Request("GET", "/a?b=c", {"Host": "h"}, remote_address=("::1", 1), state={"x": 1})
    assert request.path == "/a"
    copy = pickle.loads(pickle.dumps(request))
    assert (copy.target, copy.headers, copy.remote_address, copy.state) == (
        "/a?b=c",
        {"Host": "h"},
        ("::1", 1),
        {"x": 1},
    )
    response = pickle.loads(pickle.dumps(Response.trusted(299, "Odd", Headers({"A": "b"}), b"c")))
    assert (response.status_code, response.reason_phrase, response.headers, response.body) == (
        299,
        "Odd",
        {"a": "b"},
        b"c",
    )
