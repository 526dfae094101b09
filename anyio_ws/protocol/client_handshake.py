"""The client's side of the opening handshake: a request out, a 101 or another answer in.

A 101 must keep every rule of RFC 6455 §4.1, or InvalidHandshake is raised. Any other final answer is the server's
refusal and comes back as a `Response`. What is wrong with its body is not worth losing its status and headers for: the
body is cut there.
"""

import base64
import os
from collections.abc import Sequence

import h11

from .exceptions import InvalidHandshake
from .extensions import ClientExtension, Extension, agree_on_extensions, check_extensions, format_extensions
from .handshake_fields import PRODUCT, accept_key, check_subprotocols, decode, decode_fields, has_token
from .http import Fields, Headers, HeadersLike, Request, Response, checked_field
from .http_head import MAX_HEADER_BYTES, HeadError, HeadReader, explain, shown
from .url import URL

__all__ = ["ClientHandshake"]

# As it comes, with the framing of chunks: enough for the text that says why a server refuses.
_MAX_BODY = 64 * 1024
# h11's limit for the line before a chunk and for trailer fields, and how much it gets at once. One of its expressions
# takes quadratic time over a malformed line, which at twice this size is some milliseconds, and ends the body.
_MAX_CHUNK_LINE = 1024

# Those that say what is negotiated and how the message is framed.
_OURS = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})


class ClientHandshake:
    """One opening handshake, seen from the client.

    Send `request_bytes()`, then feed what arrives until a `Response` comes back or InvalidHandshake is raised. With the
    status code 101 the connection is open; any other is a refusal.

    Args:
        url: whom to ask for what.
        additional_headers: more headers. Host, User-Agent, and the Authorization that userinfo in the URL makes give
            way to them.
        origin: the Origin header, which browsers send.
        subprotocols: those to offer, in order of preference.
        user_agent_header: the User-Agent header, or None.
        extensions: those to offer, in order of preference.

    Attributes:
        request: what `request_bytes` says.
        subprotocol: the one the server chose, once a 101 came.
        extensions: those agreed, in the order in which they apply to a message that is sent, once a 101 came.
        trailing_data: what came after the 101: the beginning of the frames.

    Raises:
        ValueError: an option has a value that cannot be sent, or a header that is not the application's to set.

    RFC 6455 §4.1.
    """

    def __init__(
        self,
        url: URL,
        *,
        additional_headers: HeadersLike | None = None,
        origin: str | None = None,
        subprotocols: Sequence[str] = (),
        user_agent_header: str | None = PRODUCT,
        extensions: Sequence[ClientExtension] = (),
    ) -> None:
        # The request.
        # "The value of this header field MUST be a nonce consisting of a randomly selected 16-byte value".
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._offered = check_subprotocols(subprotocols)
        self._offered_extensions = check_extensions(extensions)
        added = _check_additional_headers(additional_headers or (), origin)
        fields = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", self._key),
            ("Sec-WebSocket-Version", "13"),
        ]
        if "Host" not in added:
            fields.append(("Host", url.host_header))
        if self._offered:
            fields.append(("Sec-WebSocket-Protocol", ", ".join(self._offered)))
        if offers := format_extensions(
            (extension.name, offer) for extension in self._offered_extensions for offer in extension.offers()
        ):
            fields.append(("Sec-WebSocket-Extensions", offers))
        if origin is not None:
            fields.append(checked_field("Origin", origin, "origin"))
        if url.username is not None and "Authorization" not in added:
            fields.append(("Authorization", _basic(url.username, url.password or "")))
        if user_agent_header is not None and "User-Agent" not in added:
            fields.append(checked_field("User-Agent", user_agent_header, "user_agent_header"))
        fields += added.multi_items()
        # RFC 9110 §7.2: "A user agent that sends Host SHOULD send it as the first field in the header section".
        fields.sort(key=lambda field: field[0].lower() != "host")
        headers = Headers.trusted([name for name, _ in fields], [value for _, value in fields])
        self.request: Request = Request("GET", url.target, headers, is_websocket=True)
        # The answer. h11 knows that an upgrade may follow only if it has seen the request.
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_CHUNK_LINE)
        self._request_bytes = self._connection.send(
            h11.Request(
                method="GET",
                target=url.target,
                headers=[(name.encode(), value.encode("latin-1")) for name, value in fields],
            )
        )
        self._connection.send(h11.EndOfMessage())
        self._reader = HeadReader(is_request=False)
        self._header_room = MAX_HEADER_BYTES
        self._response: Response | None = None
        self._is_complete = False
        self._body = bytearray()
        self._body_received = 0
        # The outcome.
        self.subprotocol: str | None = None
        self.extensions: tuple[Extension, ...] = ()
        self.trailing_data: bytes = b""

    def request_bytes(self) -> bytes:
        """The request, to be sent as it is."""
        return self._request_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> Response | None:
        """Take bytes as they came, or ``b""`` for the end of the stream; return the answer once it is complete.

        The body of a refusal ends at 64 KiB, at the end of the stream, and where its framing is malformed.

        Raises:
            InvalidHandshake: the answer is not HTTP/1.1, is a 101 that breaks a rule, or ended within its headers.
            RuntimeError: the answer was complete before.

        RFC 6455 §4.1.
        """
        if self._is_complete:
            raise RuntimeError("feed() was called after the answer was complete")
        if self._response is None:
            if not data:
                raise InvalidHandshake(
                    f"the connection was closed after {len(self._reader):,} bytes of an answer's head; "
                    "expected an HTTP response"
                )
            self._response = self._feed_head(data)
            if self._response is None:
                return None
            if self._response.status_code == 101:
                self._is_complete = True
                self.trailing_data = self._reader.rest
                return self._response
            self._feed_body(self._reader.rest)
        elif data:
            self._feed_body(data)
        else:
            self._is_complete = True
        if not self._is_complete:
            return None
        self._response.body = bytes(self._body)
        return self._response

    def _feed_head(self, data: bytes | bytearray | memoryview) -> Response | None:
        while True:
            try:
                head = self._reader.feed(data)
                if head is None:
                    return None
                response = self._parse(head)
            except HeadError as exc:
                raise InvalidHandshake(f"the answer is not a valid HTTP response: {exc.text}") from None
            if response.status_code == 101 or response.status_code >= 200:
                return response
            # RFC 9110 §15.2: "A client MUST be able to parse one or more 1xx responses received prior to a final
            # response, even if the client does not expect one." All of them together are within the limit of one.
            data = self._reader.rest
            self._header_room -= len(head)
            self._reader = HeadReader(is_request=False, max_header_bytes=self._header_room)

    def _parse(self, head: bytes) -> Response:
        self._connection.receive_data(head)
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError as exc:
            # h11's exception has the header lines in it.
            raise explain(head, exc, is_request=False) from None
        assert isinstance(event, h11.Response | h11.InformationalResponse)
        http_version = event.http_version.decode("ascii")
        if not http_version.startswith("1.") or (event.status_code == 101 and http_version == "1.0"):
            # A refusal in HTTP/1.0 is as good as any. RFC 9110 §7.8 has no upgrade in HTTP/1.0.
            raise InvalidHandshake(f"the answer is HTTP/{http_version} {event.status_code}; expected HTTP/1.1 101")
        headers, fields = decode_fields(event.headers.raw_items())
        if event.status_code == 101:
            self._check_101(headers, fields)
        return Response.trusted(event.status_code, decode(event.reason), headers)

    def _check_101(self, headers: Headers, fields: Fields) -> None:
        """The steps of RFC 6455 §4.1 for the server's handshake, each of which fails the connection."""
        # 2.: "If the response lacks an |Upgrade| header field or the |Upgrade| header field contains a value that is
        # not an ASCII case-insensitive match for the value 'websocket'".
        upgrade = fields.get("upgrade")
        if not isinstance(upgrade, str) or upgrade.lower() != "websocket":
            raise InvalidHandshake(f"{_got(headers, 'Upgrade')}; expected websocket")
        # 3.: "If the response lacks a |Connection| header field or the |Connection| header field doesn't contain a
        # token that is an ASCII case-insensitive match for the value 'Upgrade'".
        if not has_token(fields, "connection", "upgrade"):
            raise InvalidHandshake(f"{_got(headers, 'Connection')}; expected Upgrade among its tokens")
        # 4.: "a value other than the base64-encoded SHA-1 of the concatenation of the |Sec-WebSocket-Key| (as a string,
        # not base64-decoded) with the string '258EAFA5-E914-47DA-95CA-C5AB0DC85B11' but ignoring any leading and
        # trailing whitespace". §11.3.3: it "MUST NOT appear more than once".
        expected = accept_key(self._key)
        if fields.get("sec-websocket-accept") != expected:
            raise InvalidHandshake(f"{_got(headers, 'Sec-WebSocket-Accept')}; expected {expected}")
        # 5.: "the use of an extension that was not present in the client's handshake". §11.3.2: the header "MUST NOT
        # appear more than once in an HTTP response".
        accepted = fields.get("sec-websocket-extensions")
        if isinstance(accepted, list):
            raise InvalidHandshake(f"{_got(headers, 'Sec-WebSocket-Extensions')}; expected one header at most")
        extensions = () if accepted is None else agree_on_extensions(self._offered_extensions, accepted)
        # 6.: "the use of a subprotocol that was not present in the client's handshake". §11.3.4: the header "MUST NOT
        # appear more than once in an HTTP response". To have no subprotocol is the server's right.
        chosen = fields.get("sec-websocket-protocol")
        if isinstance(chosen, list) or (chosen is not None and chosen not in self._offered):
            raise InvalidHandshake(
                f"{_got(headers, 'Sec-WebSocket-Protocol')}; "
                f"expected one of those the option subprotocols offers: {', '.join(self._offered) or 'none'}"
            )
        # RFC 9110 §8.6 and RFC 9112 §6.1: a server MUST NOT send either in a 1xx. The bytes would be taken for frames;
        # an empty body does no harm.
        if "transfer-encoding" in fields or ("content-length" in fields and int(headers["Content-Length"])):
            raise InvalidHandshake("the answer is a 101 with a body; expected none")
        self.subprotocol = chosen
        self.extensions = extensions

    def _feed_body(self, data: bytes | bytearray | memoryview) -> None:
        data = data[: _MAX_BODY - self._body_received]
        self._body_received += len(data)
        # At least once, for there are bodies that are complete from the start.
        while True:
            # h11 compares what it keeps with its limit when it finds no end of a line in that. With one byte more than
            # the limit, and never two, it is always the same line that is too long, however the body was cut.
            room = _MAX_CHUNK_LINE + 1 - len(self._connection.trailing_data[0])
            if data:  # empty would mean the end of the stream
                self._connection.receive_data(bytes(data[:room]))
            self._pull_body()
            if self._is_complete:
                return
            data = data[room:]
            if not data:
                break
        self._is_complete = self._body_received >= _MAX_BODY

    def _pull_body(self) -> None:
        try:
            while (event := self._connection.next_event()) is not h11.NEED_DATA:
                if not isinstance(event, h11.Data):
                    self._is_complete = True
                    return
                self._body += event.data
        except h11.RemoteProtocolError:
            self._is_complete = True


def _check_additional_headers(additional_headers: HeadersLike, origin: str | None) -> Headers:
    headers = Headers(additional_headers, option="additional_headers")
    for name in headers:
        if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"additional_headers has {name}, which the handshake sets itself")
    for name in ("Host", "Origin"):
        if len(headers.get_all(name)) > 1:
            raise ValueError(f"additional_headers has several {name} headers; expected at most one")
    if origin is not None and "Origin" in headers:
        raise ValueError("additional_headers has Origin, and so has the option origin; expected one of them")
    return headers


def _basic(username: str, password: str) -> str:
    # RFC 7617 §2.1: UTF-8 is the only charset that can be named.
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _got(headers: Headers, name: str) -> str:
    """What the 101 has under this name, for an error message."""
    return f"the 101 has {name}: {shown(headers[name])}" if name in headers else f"the 101 has no {name} header"
