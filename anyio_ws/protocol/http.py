"""HTTP messages as people see them: `Headers`, `Request` and `Response`.

Nothing here parses or formats a message: h11 and the handshake modules do. A header that the application gives is
checked where it is given, so that no control character reaches the wire; one that was received has been checked by then
and comes in through `Headers.trusted`.

No `repr` shows a query, userinfo or the value of a header: they go into logs.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Self, cast
from urllib.parse import parse_qsl, unquote

__all__ = ["TOKEN", "Fields", "Headers", "HeadersLike", "Request", "Response", "add_repeated", "checked_field"]

TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]++")
"""A token of RFC 9110 §5.6.2: what header names and subprotocols are made of."""

# RFC 9110 §5.5: "Field values containing CR, LF, or NUL characters are invalid and dangerous." The other controls are
# as invalid and nobody needs them; what is not in Latin-1 has no encoding in HTTP.
_NOT_A_VALUE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")

Fields = dict[str, str | list[str]]
"""Header fields by their names in lower case: the value, or a list of the values of a field that is repeated."""


def add_repeated(fields: Fields, name: str, value: str) -> None:
    """Add the value of a field whose name, in lower case, is there already."""
    earlier = fields[name]
    if isinstance(earlier, list):
        earlier.append(value)
    else:
        fields[name] = [earlier, value]


class Headers(Mapping[str, str]):
    """The header fields of an HTTP message: an immutable mapping, in order, whose names are case-insensitive.

    ``headers["Name"]`` joins the fields of one name by ``", "``, those of Cookie by ``"; "``. Iterating gives each name
    once, spelled as it came first. The fields of Set-Cookie cannot be joined: use `get_all`.

    Args:
        headers: a mapping, or pairs of name and value, with several pairs for a field that is repeated.
        option: what to call `headers` in an error message.

    Raises:
        ValueError: a name is not a token, or a value has a control character or one outside Latin-1.
        TypeError: a name or a value is not a str.

    RFC 9110 §5.
    """

    # A connection keeps the headers of its request and its response. Two tuples take a third of what a tuple of pairs
    # would. The index takes more than both: it is made when a header is looked up, which many handlers never do.
    __slots__ = ("_index", "_names", "_values")

    _names: tuple[str, ...]
    _values: tuple[str, ...]
    _index: Fields | None

    def __init__(self, headers: "HeadersLike" = (), *, option: str = "headers") -> None:
        if isinstance(headers, Headers):
            self._names, self._values = headers._names, headers._values
        else:
            given = cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers
            pairs = [checked_field(name, value, option) for name, value in given]
            self._names = tuple([name for name, _ in pairs])
            self._values = tuple([value for _, value in pairs])
        self._index = None

    @classmethod
    def trusted(cls, names: Iterable[str], values: Iterable[str]) -> Self:
        """Headers of fields that need no check: received and parsed, or written by ourselves."""
        self = cls.__new__(cls)
        self._names = tuple(names)
        self._values = tuple(values)
        self._index = None
        return self

    def _by_name(self) -> Fields:
        if self._index is None:
            index: Fields = {}
            for name, value in zip(self._names, self._values, strict=True):
                name = name.lower()
                if name in index:
                    add_repeated(index, name, value)
                else:
                    index[name] = value
            self._index = index
        return self._index

    def __getitem__(self, name: str) -> str:
        key = name.lower()
        try:
            values = self._by_name()[key]
        except KeyError:
            raise KeyError(name) from None
        if isinstance(values, str):
            return values
        # RFC 9110 §5.2: "the field value consists of the list of corresponding field line values [...] separated by
        # comma". RFC 9113 §8.2.3: Cookie is split and joined by "; ".
        return ("; " if key == "cookie" else ", ").join(values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._by_name()

    def __iter__(self) -> Iterator[str]:
        seen: dict[str, str] = {}
        for name in self._names:
            seen.setdefault(name.lower(), name)
        return iter(seen.values())

    def __len__(self) -> int:
        return len(self._by_name())

    def __eq__(self, other: object) -> bool:
        """Same names, whatever their case, with the same values in the same order; a mapping has joined values."""
        if isinstance(other, Headers):
            return self._by_name() == other._by_name()
        if isinstance(other, Mapping):
            return {name.lower(): value for name, value in self.items()} == {
                str(name).lower(): value for name, value in cast("Mapping[object, object]", other).items()
            }
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Which values are secrets is the application's knowledge: Authorization and Cookie are not the only ones.
        return f"<Headers {', '.join(self)}>"

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of this name, in order; an empty list if there are none."""
        values = self._by_name().get(name.lower(), [])
        return [values] if isinstance(values, str) else list(values)

    def multi_items(self) -> list[tuple[str, str]]:
        """All fields as pairs of name and value, in order, a repeated name as often as it was sent."""
        return list(zip(self._names, self._values, strict=True))


HeadersLike = Headers | Mapping[str, str] | Iterable[tuple[str, str]]


def checked_field(name: str, value: str, option: str) -> tuple[str, str]:
    """One field as it may be sent.

    Raises:
        ValueError: as for `Headers`. The message never contains the value, which may be a secret.
        TypeError: as for `Headers`.
    """
    for part, text in ("name", name), ("value", value):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{option}: the {part} of a header is {type(text).__name__}, expected str")
    if not TOKEN.fullmatch(name):
        # "Authorization: Bearer …" given as a name is the likely mistake.
        token = TOKEN.match(name)
        shown = token.group() if token else ""
        raise ValueError(f"{option}: a header name that starts with {shown!r} has a character no name may have")
    value = value.strip(" \t")
    if bad := _NOT_A_VALUE.search(value):
        raise ValueError(
            f"{option}: the value of header {name} has the character U+{ord(bad.group()):04X}; "
            "expected Latin-1 without control characters"
        )
    return name, value


class Request:
    """The HTTP request that opens a connection, or a plain HTTP request that came instead.

    Args:
        method: ``"GET"`` for every WebSocket.
        target: as sent, percent-encoded, with the query.
        headers: as for `Headers`.
        body: of a plain HTTP request; a WebSocket's has none.
        is_websocket: whether it asks for an upgrade to WebSocket.
        remote_address: the peer's, if there is a socket.
        state: what the application notes about the request.

    Attributes:
        method, target, headers, body, is_websocket, remote_address, state: the same.

    RFC 6455 §4.2.1.
    """

    # A connection keeps its request: what is rarely asked for is worked out anew instead of being kept, too.
    __slots__ = ("body", "headers", "is_websocket", "method", "remote_address", "state", "target")

    def __init__(
        self,
        method: str,
        target: str,
        headers: HeadersLike = (),
        *,
        body: bytes = b"",
        is_websocket: bool = False,
        remote_address: tuple[Any, ...] | str | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.method: str = method
        self.target: str = target
        self.headers: Headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.body: bytes = body
        self.is_websocket: bool = is_websocket
        self.remote_address: tuple[Any, ...] | str | None = remote_address
        self.state: dict[str, Any] = {} if state is None else state

    @property
    def path(self) -> str:
        """The path of the target, percent-decoded."""
        return unquote(_raw_path(self.target))

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters of the target's query, decoded as a form; of a repeated one the first value."""
        query: dict[str, str] = {}
        for name, value in parse_qsl(self.target.partition("?")[2], keep_blank_values=True):
            query.setdefault(name, value)
        return MappingProxyType(query)

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies, values as sent; of a repeated one the first value.

        RFC 6265 §5.4.
        """
        cookies: dict[str, str] = {}
        for pair in self.headers.get("Cookie", "").split(";"):
            name, equals, value = pair.partition("=")
            if equals:
                cookies.setdefault(name.strip(), value.strip())
        return MappingProxyType(cookies)

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The subprotocols that the client offers, in its order of preference.

        RFC 6455 §1.9, §11.3.4.
        """
        offered = self.headers.get("Sec-WebSocket-Protocol", "").split(",")
        return tuple([name for item in offered if (name := item.strip(" \t"))])

    def __repr__(self) -> str:
        # Of an absolute target the part with the host may have userinfo in it.
        upgrade = " (websocket)" if self.is_websocket else ""
        return f"<Request {self.method} {_raw_path(self.target)}{upgrade}>"


def _raw_path(target: str) -> str:
    """The path of a request target without its query. RFC 9112 §3.2."""
    path = target.partition("?")[0]
    if "://" in path and not path.startswith("/"):
        # absolute-form, as to a proxy
        path = "/" + path.partition("://")[2].partition("/")[2]
    return path


class Response:
    """The HTTP response to the opening handshake, or to a plain HTTP request.

    Args:
        status_code: 100 to 599.
        headers: as for `Headers`.
        body: a str is sent as UTF-8, as text/plain if `headers` have no Content-Type; bytes are sent as they are.

    Attributes:
        status_code, headers: the same.
        body: bytes. Of a response that a client received, at most 64 KiB.
        reason_phrase: the usual one of `status_code`; of a response that was received, its own.

    Raises:
        ValueError: the status code is none, or a header cannot be sent.

    RFC 9110 §15.
    """

    __slots__ = ("body", "headers", "reason_phrase", "status_code")

    status_code: int
    reason_phrase: str
    headers: Headers
    body: bytes

    def __init__(self, status_code: int, headers: HeadersLike = (), body: str | bytes = b"") -> None:
        if not 100 <= status_code <= 599:
            raise ValueError(f"status_code={status_code} is not an HTTP status code: expected 100 to 599")
        self.status_code = int(status_code)
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        if isinstance(body, str):
            if body and "Content-Type" not in self.headers:
                fields = [*self.headers.multi_items(), ("Content-Type", "text/plain; charset=utf-8")]
                self.headers = Headers.trusted([name for name, _ in fields], [value for _, value in fields])
            body = body.encode()
        self.body = bytes(body)
        try:
            self.reason_phrase = HTTPStatus(status_code).phrase
        except ValueError:
            # RFC 9112 §4: the phrase may be empty.
            self.reason_phrase = ""

    @classmethod
    def trusted(cls, status_code: int, reason_phrase: str, headers: Headers, body: bytes = b"") -> Self:
        """A response that needs no check: as it came, with any code of three digits and any phrase, or our own."""
        self = cls.__new__(cls)
        self.status_code = status_code
        self.reason_phrase = reason_phrase
        self.headers = headers
        self.body = body
        return self

    def __repr__(self) -> str:
        phrase = f" {ascii(self.reason_phrase)[1:-1]}" if self.reason_phrase else ""
        return f"<Response {self.status_code}{phrase}>"
