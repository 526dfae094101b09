"""What a request must be: the rules after h11's, each with the status code and the text of its refusal.

RFC 6455 §4.2.1, §11.3; RFC 9110; RFC 9112.
"""

import re
from collections.abc import Sequence
from typing import Literal, NoReturn

from .exceptions import InvalidHandshake
from .handshake_fields import check_subprotocols, parse_extensions
from .http import Fields, Headers, HeadersLike, Request, Response
from .http_head import shown

__all__ = [
    "Origins",
    "check_body",
    "check_origin",
    "check_origins_option",
    "check_target",
    "check_upgrade",
    "check_version",
    "refuse",
]

Origins = Literal["same-origin"] | Sequence[str | re.Pattern[str]] | None

# A plain HTTP request's: enough for a health check or a webhook, which is what `process_request` is for.
_MAX_BODY = 64 * 1024

# uri-host [ ":" port ] of RFC 9110 §7.2, without the structure of addresses.
_HOST = re.compile(r"(?:[-A-Za-z0-9._~!$&'()*+,;=%]*+|\[[-A-Za-z0-9._~:%]++\])(?::[0-9]*+)?")
_ABSOLUTE_FORM = re.compile(r"https?://([^/?]++)", re.IGNORECASE)
_ORIGIN = re.compile(r"(https?)://([^/?#@]++)", re.IGNORECASE)
# RFC 6454 §6.2: what a browser sends; schemes of their own are those of extensions and applications.
_SERIALISED_ORIGIN = re.compile(
    r"null|(?!https://[^:]*:443$|http://[^:]*:80$)[a-z][-+.a-z0-9]*://(?:[^\sA-Z/?#@:\[\]*]+|\[[0-9a-f:.]+\])(?::[0-9]+)?"
)
_SCHEME_PORTS = {"http": ":80", "https": ":443"}
# RFC 6455 §4.2.1, 5.: "a base64-encoded (see Section 4 of [RFC4648]) value that, when decoded, is 16 bytes in length".
_KEY = re.compile(r"[+/0-9A-Za-z]{22}==")
# What browsers offer: well-formed, and not parsed for each connection to find out.
_USUAL_EXTENSIONS = ("permessage-deflate; client_max_window_bits", "permessage-deflate")


def refuse(status_code: int, text: str, headers: HeadersLike = ()) -> NoReturn:
    """Raise InvalidHandshake with the answer that says why."""
    # `from None`: the reason is all in the text.
    raise InvalidHandshake(text, Response(status_code, headers, text + "\n")) from None


def check_version(http_version: bytes) -> None:
    """Refuse another protocol than HTTP/1."""
    # RFC 9110 §2.5: a higher minor version is compatible; the major version "indicates the HTTP messaging syntax". The
    # preface of HTTP/2 ("PRI * HTTP/2.0") is made to fail here.
    if not http_version.startswith(b"1."):
        refuse(505, f"the request is HTTP/{http_version.decode('ascii')}; expected HTTP/1.1")


def check_target(method: str, target: str, fields: Fields, http_version: bytes) -> str:
    """Check the Host and the form of the request target; return the authority the request is addressed to.

    RFC 9112 §3.2.
    """
    host = fields.get("host", "")
    # §3.2: 400 "to any HTTP/1.1 request message that lacks a Host header field and to any request message that contains
    # more than one Host header field line or a Host header field with an invalid field value". h11 refuses several, and
    # none in HTTP/1.1, but not in HTTP/1.2.
    if not isinstance(host, str) or not _HOST.fullmatch(host):
        refuse(400, "the Host header is malformed; expected host or host:port")
    if not host and "host" not in fields and http_version != b"1.0":
        refuse(400, "the request has 0 Host headers; exactly one is expected")
    if "#" not in target:
        if target.startswith("/") or (target == "*" and method == "OPTIONS"):
            return host
        # RFC 9112 §3.2.2: "a server MUST accept the absolute-form in requests", and "the origin server MUST ignore the
        # received Host header field (if any) and instead use the host information of the request-target."
        match = _ABSOLUTE_FORM.match(target)
        if match and _HOST.fullmatch(match.group(1)):
            return match.group(1)
    refuse(400, "the request target is neither a path nor an http:// URL without userinfo and fragment")


def check_body(headers: Headers, http_version: bytes) -> int:
    """Check the framing of a plain HTTP request; return the length of its body."""
    if "Transfer-Encoding" in headers:
        # RFC 9112 §6.3: "A server MAY reject a request that contains a message body but not a Content-Length by
        # responding with 411 (Length Required)." With both it is a request smuggler's.
        refuse(411, "the request has a Transfer-Encoding; a body is accepted with a Content-Length only")
    length = int(headers["Content-Length"]) if "Content-Length" in headers else 0
    if length > _MAX_BODY:
        refuse(413, f"the request has a body of {length:,} bytes; at most {_MAX_BODY:,} are accepted")
    if length and http_version != b"1.0" and "Expect" in headers:
        # RFC 9110 §10.1.1 wants an immediate answer, interim or final. After a 417 a client repeats the request
        # without the expectation.
        refuse(417, "the request has an Expect header; a body is expected with the request")
    return length


def check_upgrade(request: Request, fields: Fields, http_version: bytes, authority: str) -> str:
    """Check a request for a WebSocket, but for its Origin; return its Sec-WebSocket-Key.

    RFC 6455 §4.2.1, §4.4.
    """
    # RFC 6455 §4.2.1, 1.: "An HTTP/1.1 or higher GET request".
    if http_version == b"1.0":
        refuse(505, "a WebSocket was requested with HTTP/1.0; expected HTTP/1.1")
    if request.method != "GET":
        refuse(405, f"a WebSocket was requested with {shown(request.method)}; expected GET", {"Allow": "GET"})
    if "transfer-encoding" in fields or ("content-length" in fields and int(request.headers["Content-Length"])):
        # Nothing in RFC 6455 gives a body a meaning, and its bytes would be taken for frames.
        refuse(400, "the request for a WebSocket has a body; expected none")
    if not authority:
        # §4.2.1, 2.: "A |Host| header field containing the server's authority."
        refuse(400, "the Host header is empty; a request for a WebSocket must name the host")
    version = fields.get("sec-websocket-version")
    if isinstance(version, list):
        # §11.3.5: "The |Sec-WebSocket-Version| header field MUST NOT appear more than once in an HTTP request."
        refuse(400, f"the request has {len(version)} Sec-WebSocket-Version headers; exactly one is expected")
    if version != "13":
        # §4.4: "If the server doesn't support the requested version, it MUST respond with a |Sec-WebSocket-Version|
        # header field [...] containing all versions it is willing to use."
        got = "Sec-WebSocket-Version is " + ("missing" if version is None else shown(version))
        refuse(426, f"{got}; expected 13", {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
    key = fields.get("sec-websocket-key", [])
    if isinstance(key, list):
        # §11.3.1: "The |Sec-WebSocket-Key| header field MUST NOT appear more than once in an HTTP request."
        refuse(400, f"the request has {len(key)} Sec-WebSocket-Key headers; exactly one is expected")
    if not _KEY.fullmatch(key):
        refuse(400, f"Sec-WebSocket-Key is {shown(key)}; expected 16 bytes in base64")
    if "sec-websocket-protocol" in fields:
        # §11.3.4: it "MAY appear multiple times in an HTTP request (which is logically the same as a single [...]
        # header field that contains all values)".
        try:
            check_subprotocols(request.subprotocols)
        except ValueError:
            refuse(400, "Sec-WebSocket-Protocol is malformed; expected different tokens separated by commas")
    if "sec-websocket-extensions" in fields and fields["sec-websocket-extensions"] not in _USUAL_EXTENSIONS:
        # §9.1: "If a value is received by either the client or the server during negotiation that does not conform
        # to the ABNF below, the recipient of such malformed data MUST immediately _Fail the WebSocket Connection_."
        try:
            parse_extensions(request.headers["Sec-WebSocket-Extensions"])
        except ValueError as exc:
            refuse(400, f"Sec-WebSocket-Extensions is malformed: {exc}")
    return key


def check_origin(fields: Fields, authority: str, origins: Origins, *, secure: bool) -> None:
    """Check where the page comes from that wants the WebSocket.

    RFC 6455 §4.2.2, §10.2.
    """
    # §4.2.2, 4.: "If the server does not wish to accept this connection, it MUST return an appropriate HTTP error
    # code (e.g., 403 Forbidden) and abort the WebSocket handshake".
    origin = fields.get("origin")
    if isinstance(origin, list):
        refuse(400, f"the request has {len(origin)} Origin headers; at most one is expected")
    if origin is None or origins is None:
        return
    if origins == "same-origin":
        if not _is_same_origin(origin, authority, secure=secure):
            refuse(
                403,
                f"the Origin {_shown_origin(origin)} is not that of the Host {shown(authority)}; "
                "the server's option origins says which others may connect",
            )
    elif not any(origin == allowed if isinstance(allowed, str) else allowed.fullmatch(origin) for allowed in origins):
        refuse(
            403,
            f"the Origin {_shown_origin(origin)} is not among those the server's option origins allows to connect "
            f"to the Host {shown(authority)}",
        )


def _shown_origin(origin: str) -> str:
    # Cut before anything that is no origin's, such as a path with a query, and after userinfo.
    return shown(origin.partition("?")[0].rpartition("@")[2])


def _is_same_origin(origin: str, authority: str, *, secure: bool) -> bool:
    if origin == "https://" + authority:
        # The usual case, and true whatever the port: without one it means 443 on both sides.
        return True
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        # "null", or a page that came neither by http nor by https
        return False
    scheme, host = match.group(1).lower(), match.group(2)
    default = _SCHEME_PORTS[scheme]
    host_default = ":443" if secure else default
    return _with_port(host, default) == _with_port(authority, host_default)


def _with_port(authority: str, default: str) -> str:
    """The authority in lower case and with a port."""
    authority = authority.lower().removesuffix(":")
    # An IPv6 address has its colons in brackets.
    return authority if ":" in authority.rpartition("]")[2] else authority + default


def check_origins_option(origins: Origins) -> None:
    """Check the option `origins`.

    Raises:
        ValueError: it is a str other than "same-origin", or one of them can never match.
        TypeError: one of them is neither a str nor a pattern.
    """
    if isinstance(origins, str):
        if origins != "same-origin":
            raise ValueError(f'origins={origins!r} is a str; expected "same-origin", a sequence or None')
    elif origins is not None:
        for origin in origins:
            if isinstance(origin, str) and not _SERIALISED_ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} in origins is no origin as browsers send it, so it would never match; expected "
                    '"scheme://host" or "scheme://host:port" in lower case without a default port, "null", '
                    "a pattern, or origins=None for any"
                )
            if not isinstance(origin, str | re.Pattern):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"origins contains {origin!r}; expected strings and patterns; without an Origin all requests pass"
                )
