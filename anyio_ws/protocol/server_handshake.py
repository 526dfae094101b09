"""The server's side of the opening handshake: a request in, a 101 or another answer out.

`ServerHandshake.feed` checks a request in this order, each step with the status codes it answers:

1. the bytes of the head (`http_head`): 400, 414, 431
2. what h11 makes of them: 400, 501
3. HTTP version, Host, target: 505, 400
4. is it an upgrade to WebSocket? If not it is plain HTTP, and only its body is checked: 411, 413, 417
5. an upgrade: version 505, method 405, body 400, Sec-WebSocket-Version 426, Sec-WebSocket-*: 400, Origin 403

A request that passes goes to the application, whose answer comes back to `accept` or `reject`.
"""

from collections.abc import Sequence
from typing import Any, Self

import h11

from .exceptions import InvalidHandshake
from .extensions import Extension, ServerExtension, accept_extensions, check_extensions
from .handshake_fields import PRODUCT, accept_key, check_subprotocols, decode, decode_fields, has_token
from .http import Headers, Request, Response, checked_field
from .http_head import HeadError, HeadReader, explain, regular_head
from .request_checks import (
    Origins,
    check_body,
    check_origin,
    check_origins_option,
    check_target,
    check_upgrade,
    check_version,
    refuse,
)

__all__ = ["ServerHandshake", "ServerRules"]

# Those of a 101 that say what was negotiated and how the message is framed, and are not the application's to add.
_OURS = (
    "Connection",
    "Content-Length",
    "Sec-WebSocket-Accept",
    "Sec-WebSocket-Extensions",
    "Transfer-Encoding",
    "Upgrade",
)
# Those of another answer that say how it is framed and that the connection ends.
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding"})


class ServerRules:
    """The options of `ServerHandshake` that all handshakes of a server share, checked once for all of them.

    Args:
        subprotocols: as for `ServerHandshake`.
        origins: as for `ServerHandshake`.
        server_header: as for `ServerHandshake`.
        extensions: as for `ServerHandshake`.

    Attributes:
        subprotocols, origins, extensions: the same.
        server: the Server header, in a list of at most one.
        usual_names, usual_values, usual_bytes: a 101 with no subprotocol, extensions or headers of the application,
            which differs from the next in its Sec-WebSocket-Accept only: its headers' names, and their values, and the
            bytes, before and after that one.

    Raises:
        ValueError, TypeError: an option has a value that cannot be.
    """

    __slots__ = ("extensions", "origins", "server", "subprotocols", "usual_bytes", "usual_names", "usual_values")

    def __init__(
        self,
        *,
        subprotocols: Sequence[str] = (),
        origins: Origins = "same-origin",
        server_header: str | None = PRODUCT,
        extensions: Sequence[ServerExtension] = (),
    ) -> None:
        check_origins_option(origins)
        self.subprotocols: tuple[str, ...] = check_subprotocols(subprotocols)
        self.origins: Origins = origins
        self.extensions: tuple[ServerExtension, ...] = check_extensions(extensions)
        self.server: list[tuple[str, str]] = (
            [] if server_header is None else [checked_field("Server", server_header, "server_header")]
        )
        fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "?"), *self.server]
        before, _, after = _format(101, "Switching Protocols", fields).partition(b"?")
        self.usual_names: tuple[str, ...] = tuple([name for name, _ in fields])
        self.usual_values: tuple[tuple[str, str], tuple[str, ...]] = (
            ("websocket", "Upgrade"),
            tuple([value for _, value in self.server]),
        )
        self.usual_bytes: tuple[bytes, bytes] = before, after


class ServerHandshake:
    """One opening handshake, seen from the server.

    Feed what arrives until a `Request` comes back or InvalidHandshake is raised, then send what `accept` or `reject`
    returns.

    Args:
        subprotocols: those spoken here, in order of preference.
        origins: ``"same-origin"``: the Origin, if there is one, must have the host and port of the Host header. A
            sequence: it must be one of the strings, or match one of the patterns in full. None: any. A request without
            an Origin does not come from a browser and passes.
        server_header: the Server header of all answers, or None.
        extensions: those spoken here. Which are used, and in which order, is the client's preference.
        secure: whether the connection uses TLS: a Host without a port then means 443. Otherwise it means the default
            port of the Origin's scheme, for there may be a proxy in front that speaks TLS.
        remote_address: for `Request.remote_address`.

    Attributes:
        subprotocol: the one chosen, once `accept` was called.
        extensions: those agreed, in the order in which they apply to a message that is sent, once `accept` was called.
        trailing_data: what came after the request of a WebSocket: the beginning of its frames.

    Raises:
        ValueError: an option has a value that cannot be.

    RFC 6455 §4.2.
    """

    __slots__ = (
        *("_rules", "_secure", "_remote_address"),
        *("_reader", "_received", "_method", "_request", "_key", "_offers", "_body", "_body_length", "_is_complete"),
        *("subprotocol", "extensions", "trailing_data"),
    )

    def __init__(
        self,
        *,
        subprotocols: Sequence[str] = (),
        origins: Origins = "same-origin",
        server_header: str | None = PRODUCT,
        extensions: Sequence[ServerExtension] = (),
        secure: bool = False,
        remote_address: tuple[Any, ...] | str | None = None,
    ) -> None:
        rules = ServerRules(
            subprotocols=subprotocols, origins=origins, server_header=server_header, extensions=extensions
        )
        self._begin(rules, secure, remote_address)

    @classmethod
    def of(
        cls, rules: ServerRules, *, secure: bool = False, remote_address: tuple[Any, ...] | str | None = None
    ) -> Self:
        """A handshake of a server whose options have been checked."""
        self = cls.__new__(cls)
        self._begin(rules, secure, remote_address)
        return self

    def _begin(self, rules: ServerRules, secure: bool, remote_address: tuple[Any, ...] | str | None) -> None:
        # Options.
        self._rules = rules
        self._secure = secure
        self._remote_address = remote_address
        # The request.
        self._reader: HeadReader | None = None
        self._received = 0
        self._method = ""
        self._request: Request | None = None
        self._key = ""
        self._offers = ""
        self._is_complete = False
        # The outcome.
        self.subprotocol: str | None = None
        self.extensions: tuple[Extension, ...] = ()
        self.trailing_data: bytes = b""

    def feed(self, data: bytes | bytearray | memoryview) -> Request | None:
        """Take bytes as they came, or ``b""`` for the end of the stream; return the request once it is complete.

        Raises:
            InvalidHandshake: the request is refused; `reject` formats its `response`, which is None at the end of the
                stream.
            RuntimeError: the request was complete before, or refused.

        RFC 6455 §4.2.1, §4.2.2.
        """
        if self._is_complete:
            raise RuntimeError("feed() was called after the request was complete, or refused")
        if not data:
            self._is_complete = True
            raise InvalidHandshake(f"the connection was closed after {self._received:,} bytes of an incomplete request")
        self._received += len(data)
        request = self._request
        if request is None:
            try:
                if self._reader is None and (end := regular_head(data)):
                    head, data = bytes(data[:end]), data[end:]
                else:
                    self._reader = self._reader or HeadReader(is_request=True)
                    whole = self._reader.feed(data)
                    if whole is None:
                        return None
                    head, data = whole, self._reader.rest
                # Also if it is refused: no other request may follow.
                self._is_complete = True
                request = self._request = self._parse(head)
            except HeadError as exc:
                self._is_complete = True  # no other request may follow it
                refuse(exc.status_code, exc.text)
        if request.is_websocket:
            self.trailing_data = bytes(data)
        else:
            self._body += data
            self._is_complete = len(self._body) >= self._body_length
            if not self._is_complete:
                return None
            # The connection ends after the answer: what follows the body is not looked at.
            request.body = bytes(self._body[: self._body_length])
        return request

    def accept(self, response: Response | None = None) -> tuple[Response, bytes]:
        """Choose the subprotocol and the extensions, and answer with 101.

        Args:
            response: ``Response(101, headers)`` adds headers. Sec-WebSocket-Protocol among them is the choice of the
                subprotocol. Otherwise it is the first of our `subprotocols` that the client offers; if it offers none
                of them, the connection has no subprotocol.

        Returns:
            The whole answer, and its bytes.

        Raises:
            ValueError: `response` is not a 101 without a body, or has a header that is not its to set, or a subprotocol
                that was not offered.
            RuntimeError: there is no request for a WebSocket to accept.

        RFC 6455 §4.2.2.
        """
        request = self._request
        if request is None or not request.is_websocket:
            raise RuntimeError("accept() was called without a request for a WebSocket")
        rules = self._rules
        if response is not None:
            self.subprotocol = _chosen_subprotocol(response, request)
        if self.subprotocol is None and rules.subprotocols:
            offered = request.subprotocols
            self.subprotocol = next((name for name in rules.subprotocols if name in offered), None)
        accepted = ""
        if self._offers:
            accepted, self.extensions = accept_extensions(rules.extensions, self._offers)
        accept = accept_key(self._key)
        if response is None and self.subprotocol is None and not accepted:
            before, after = rules.usual_values
            headers = Headers.trusted(rules.usual_names, (*before, accept, *after))
            return Response.trusted(101, "Switching Protocols", headers), accept.encode().join(rules.usual_bytes)
        fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
        if self.subprotocol is not None:
            fields.append(("Sec-WebSocket-Protocol", self.subprotocol))
        if accepted:
            fields.append(("Sec-WebSocket-Extensions", accepted))
        if response is None or "Server" not in response.headers:
            fields += rules.server
        if response is not None:
            fields += [item for item in response.headers.multi_items() if item[0].lower() != "sec-websocket-protocol"]
        headers = Headers.trusted([name for name, _ in fields], [value for _, value in fields])
        answer = Response.trusted(101, "Switching Protocols", headers)
        return answer, _format(101, answer.reason_phrase, fields)

    def reject(self, response: Response) -> bytes:
        """Format any answer but a 101. The connection ends after it.

        Connection, Content-Length and Transfer-Encoding are ours, whatever the response's headers say.

        Raises:
            ValueError: the response has an interim status code, 1xx.

        RFC 6455 §4.2.2; RFC 9110 §6.4.1, §7.8.
        """
        status_code = response.status_code
        if status_code < 200:
            raise ValueError(f"status_code={status_code} is not a final answer: expected 200 to 599")
        checked_field("Reason-Phrase", response.reason_phrase, "reason_phrase")  # an attribute, so it may be anything
        fields = [field for field in response.headers.multi_items() if field[0].lower() not in _FRAMING]
        if "Server" not in response.headers:
            fields += self._rules.server
        # "A sender of Upgrade MUST also send an 'Upgrade' connection option".
        fields.append(("Connection", "Upgrade, close" if "Upgrade" in response.headers else "close"))
        body = response.body
        if status_code in (204, 304):
            # "All 1xx (Informational), 204 (No Content), and 304 (Not Modified) responses do not include content."
            body = b""
        else:
            fields.append(("Content-Length", str(len(body))))
        if self._method == "HEAD":
            # RFC 9110 §9.3.2: "the server MUST NOT send content in the response".
            body = b""
        return _format(status_code, response.reason_phrase, fields) + body

    def _parse(self, head: bytes) -> Request:
        """The request of a complete head, after all checks that need no body."""
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            # h11's exception has the header lines in it.
            raise explain(head, exc, is_request=True) from None
        assert isinstance(event, h11.Request)
        self._method = decode(event.method)
        target = event.target.decode("ascii")
        headers, fields = decode_fields(event.headers.raw_items())
        check_version(event.http_version)
        authority = check_target(self._method, target, fields, event.http_version)
        is_websocket = has_token(fields, "connection", "upgrade") and has_token(fields, "upgrade", "websocket")
        request = Request(self._method, target, headers, is_websocket=is_websocket, remote_address=self._remote_address)
        if is_websocket:
            self._key = check_upgrade(request, fields, event.http_version, authority)
            check_origin(fields, authority, self._rules.origins, secure=self._secure)
            if self._rules.extensions:
                offers = fields.get("sec-websocket-extensions", "")
                # §11.3.2: it "MAY appear multiple times in an HTTP request (which is logically the same as a single
                # [...] header field that contains all values".
                self._offers = offers if isinstance(offers, str) else ",".join(offers)
        else:
            self._body_length = check_body(headers, event.http_version)
            self._body = bytearray()
        return request


def _format(status_code: int, reason_phrase: str, fields: list[tuple[str, str]]) -> bytes:
    """Format the head of an answer. By hand: h11 takes 15 µs longer for the same bytes."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
    return f"HTTP/1.1 {status_code} {reason_phrase}\r\n{lines}\r\n".encode("latin-1")


def _chosen_subprotocol(response: Response, request: Request) -> str | None:
    """Check what the application wants in the 101; return the subprotocol it chose, if it did."""
    if response.status_code != 101 or response.body:
        raise ValueError(f"accept() takes Response(101, headers) without a body, not {response!r}")
    for name in _OURS:
        if name in response.headers:
            raise ValueError(f"{name} in the headers of Response(101, headers) is not the application's to set")
    chosen = response.headers.get_all("Sec-WebSocket-Protocol")
    if not chosen:
        return None
    # RFC 6455 §4.2.2, 5.5: "this value MUST be derived from the client's handshake".
    if len(chosen) > 1 or chosen[0] not in request.subprotocols:
        raise ValueError(
            f"Sec-WebSocket-Protocol {', '.join(chosen)} in Response(101, headers) is not one of those the client "
            f"offers: {', '.join(request.subprotocols) or 'none'}"
        )
    return chosen[0]
