"""parse_url."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_ws.protocol.exceptions import InvalidURL
from anyio_ws.protocol.url import URL, parse_url

URLS = [
    ("ws://example.com", URL(False, "example.com", 80)),
    ("wss://example.com", URL(True, "example.com", 443)),
    ("WSS://EXAMPLE.com/A", URL(True, "example.com", 443, "/A")),
    ("ws://example.com:8080/a/b?c=d&e", URL(False, "example.com", 8080, "/a/b?c=d&e")),
    ("ws://example.com?a=b", URL(False, "example.com", 80, "/?a=b")),
    ("ws://example.com?a=/b", URL(False, "example.com", 80, "/?a=/b")),
    ("ws://example.com:/", URL(False, "example.com", 80)),
    ("wss://example.com:80/", URL(True, "example.com", 80)),
    ("ws://example.com./", URL(False, "example.com.", 80)),
    ("ws://a_b-c/", URL(False, "a_b-c", 80)),
    ("ws://127.0.0.1:1/", URL(False, "127.0.0.1", 1)),
    ("ws://[::1]", URL(False, "::1", 80)),
    ("ws://[2001:DB8:0::1]:8080/a", URL(False, "2001:db8:0::1", 8080, "/a")),
    ("ws://[::ffff:1.2.3.4]:/", URL(False, "::ffff:1.2.3.4", 80)),
    ("ws://[fe80::1%25eth0]/", URL(False, "fe80::1%eth0", 80)),
    ("ws://[fe80::1%eth0]/", URL(False, "fe80::1%eth0", 80)),
    ("ws://münchen.example/ü?ü", URL(False, "xn--mnchen-3ya.example", 80, "/%C3%BC?%C3%BC")),
    ("ws://例え。テスト/", URL(False, "xn--r8jz45g.xn--zckzah", 80)),
    ('ws://h/%20%zz?[a]=b|c"d', URL(False, "h", 80, "/%20%zz?[a]=b%7Cc%22d")),
    ("ws://user@h/", URL(False, "h", 80, "/", "user")),
    ("ws://user:@h/", URL(False, "h", 80, "/", "user", "")),
    ("ws://us%40er:p%3Ass%C3%BC@h/", URL(False, "h", 80, "/", "us@er", "p:ssü")),
    ("ws://user:a:b@c@h:1/", URL(False, "h", 1, "/", "user", "a:b@c")),
    ("ws://@h/", URL(False, "h", 80)),
    ("ws://h/a@b", URL(False, "h", 80, "/a@b")),
]


@pytest.mark.parametrize(("text", "url"), URLS)
def test_a_url_is_parsed(text: str, url: URL) -> None:
    assert parse_url(text) == url


SECRET = "s3cr3t"
INVALID = [
    ("http://h/", "the URL starts with http://; use ws:// for WebSocket"),
    ("https://h/", "the URL starts with https://; use wss:// for WebSocket"),
    ("ftp://h/", "the URL does not start with ws:// or wss://"),
    ("", "the URL does not start with ws:// or wss://"),
    ("h/", "the URL does not start with ws:// or wss://"),
    ("ws:/h/", "the URL does not start with ws:// or wss://"),
    (f"u:{SECRET}@h/?u=http://h/", "the URL does not start with ws:// or wss://"),
    ("ws://h/#f", 'the URL has a fragment, which WebSocket URLs cannot have; "#" must be written as %23'),
    ("ws://h/a?b#", 'the URL has a fragment, which WebSocket URLs cannot have; "#" must be written as %23'),
    (f"ws://u:{SECRET}#@h/", 'the URL has a fragment, which WebSocket URLs cannot have; "#" must be written as %23'),
    (
        "ws://h/a b",
        "the URL has the character U+0020 at index 8; spaces and control characters must be percent-encoded",
    ),
    (
        " ws://h/",
        "the URL has the character U+0020 at index 0; spaces and control characters must be percent-encoded",
    ),
    (
        f"ws://u:{SECRET}\r@h/",
        "the URL has the character U+000D at index 13; spaces and control characters must be percent-encoded",
    ),
    (
        "ws://h/\u2028",
        "the URL has the character U+2028 at index 7; spaces and control characters must be percent-encoded",
    ),
    (
        "ws://h\x00/",
        "the URL has the character U+0000 at index 6; spaces and control characters must be percent-encoded",
    ),
    ("ws:///a", "the URL has no host"),
    ("ws://", "the URL has no host"),
    (f"ws://u:{SECRET}@:80/", "the URL has no host"),
    ("ws://?a", "the URL has no host"),
    ("ws://h:0/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://h:65536/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://h:-1/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://h:+1/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://h:8_0/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://h:٨/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://h:" + "1" * 5000, "the port in the URL is not a number from 1 to 65535"),
    # A slash in a password that is not encoded ends the authority.
    (f"ws://u:{SECRET}/x@h/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://::1/", "the host in the URL has several colons; an IPv6 address needs brackets"),
    ("ws://[::1", "the host in the URL is not an IPv6 address in brackets, optionally with :port"),
    ("ws://[::1]80/", "the host in the URL is not an IPv6 address in brackets, optionally with :port"),
    ("ws://[::1]:x/", "the port in the URL is not a number from 1 to 65535"),
    ("ws://[::g]/", "the host in the URL is in brackets and is not an IPv6 address"),
    ("ws://[127.0.0.1]/", "the host in the URL is in brackets and is not an IPv6 address"),
    ("ws://[]/", "the host in the URL is in brackets and is not an IPv6 address"),
    ("ws://[fe80::1%25]/", "the zone of the IPv6 address in the URL is not a name of letters and digits"),
    ("ws://[fe80::1%25a%2Fb]/", "the zone of the IPv6 address in the URL is not a name of letters and digits"),
    ("ws://a..b/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://.a/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://a%20b/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://a\\b/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://a*b/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://" + "a" * 64, "the host in the URL is not a valid name or IPv4 address"),
    ("ws://ü..b/", "the host in the URL is not a valid name or IPv4 address"),
    # IDNA maps these to "a/c" and "::".
    ("ws://\u2100/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://a\u2a74b/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://\ud800/", "the host in the URL is not a valid name or IPv4 address"),
    ("ws://" + "a." * 127, "the host in the URL has 254 characters; expected at most 253"),
    ("ws://h/\ud800", "the URL has a lone surrogate in its path or query"),
    (f"ws://%FF:{SECRET}@h/", "the username or password in the URL is not percent-encoded UTF-8"),
    (f"ws://\ud800:{SECRET}@h/", "the username or password in the URL is not percent-encoded UTF-8"),
    (
        f"ws://a%3Ab:{SECRET}@h/",
        "the URL has a colon in the username, or a control character in the username or password",
    ),
    (
        f"ws://u:{SECRET}%0D%0A@h/",
        "the URL has a colon in the username, or a control character in the username or password",
    ),
]


@pytest.mark.parametrize(("text", "message"), INVALID)
def test_what_is_no_websocket_url_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidURL) as e:
        parse_url(text)
    assert str(e.value) == message
    # Nor does a traceback show more.
    assert e.value.__suppress_context__ or e.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("ws://h/", "h"),
        ("ws://h:80/", "h"),
        ("ws://h:443/", "h:443"),
        ("wss://h:443/", "h"),
        ("ws://[::1]/", "[::1]"),
        ("wss://[::1]:80/", "[::1]:80"),
        ("ws://[fe80::1%25eth0]:81/", "[fe80::1]:81"),
        ("ws://bücher.example/", "xn--bcher-kva.example"),
    ],
)
def test_the_host_header_has_the_port_unless_it_is_the_default(text: str, header: str) -> None:
    assert parse_url(text).host_header == header


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"ws://u:{SECRET}@h/a?b={SECRET}", "ws://h/a"),
        (f"wss://u{SECRET}@[fe80::1%25e]:1", "wss://[fe80::1%e]:1/"),
    ],
)
def test_str_and_repr_have_no_secrets(text: str, shown: str) -> None:
    url = parse_url(text)
    assert str(url) == shown
    assert repr(url) == f"URL({shown!r})"


def test_a_url_pickles_and_is_immutable() -> None:
    url = parse_url("wss://u:p@h/a?b")
    assert pickle.loads(pickle.dumps(url)) == url
    with pytest.raises(AttributeError):
        url.host = "other"  # type: ignore[misc]


@given(st.text(max_size=40))
def test_any_text_is_a_url_of_clean_parts_or_refused(rest: str) -> None:
    try:
        url = parse_url("ws://" + rest)
    except InvalidURL:
        return
    assert (url.host_header + url.target).isascii()
    assert not set(url.host_header + url.target) & set(' \r\n\t\x00#"<>')
    assert 1 <= url.port <= 65535
    assert url.target.startswith("/")


@pytest.mark.parametrize("url", [None, b"ws://host/"])
def test_what_is_no_str_is_a_type_error(url: object) -> None:
    with pytest.raises(TypeError, match="a URL is a str, not"):
        parse_url(url)  # type: ignore[arg-type]
