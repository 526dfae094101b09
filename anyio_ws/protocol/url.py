"""WebSocket URLs, RFC 6455 §3.

No error message quotes the URL: wherever a mistake is, a password or a token in the query may stand beside it.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import quote, unquote

from .exceptions import InvalidURL

__all__ = ["URL", "parse_url"]

_SCHEME = re.compile(r"([A-Za-z][-+.A-Za-z0-9]*+)://")
_AUTHORITY_END = re.compile(r"[/?]")
# C0 and C1 controls and every kind of white space.
_CONTROL_OR_SPACE = re.compile(r"[\x00-\x1f\x7f-\x9f\s]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_REG_NAME = re.compile(r"[-_0-9A-Za-z]{1,63}+(?:\.[-_0-9A-Za-z]{1,63}+)*+\.?")
_PORT = re.compile(r"[0-9]{1,5}")
# What RFC 3986 allows in a path or a query; "%", for what is encoded stays so; and "[]", which are common in queries.
_TARGET_SAFE = "%/?:@!$&'()*+,;=-._~[]"
# RFC 1035 §2.3.4. Also keeps the codec, which is quadratic in old Pythons, from long input.
_MAX_HOST = 253


@dataclass(frozen=True, slots=True)
class URL:
    """A WebSocket URL in its parts. Its str and repr show neither userinfo nor query.

    Attributes:
        secure: whether the scheme is wss, so that the connection uses TLS.
        host: a name in ASCII, IDNA-encoded, or an address, IPv6 without brackets.
        port: 80 or 443 unless given.
        target: what the request line carries: path and query, percent-encoded, at least "/".
        username: percent-decoded, or None without userinfo.
        password: percent-decoded, or None without one.
    """

    secure: bool
    host: str
    port: int
    target: str = "/"
    username: str | None = None
    password: str | None = None

    @property
    def host_header(self) -> str:
        """The host for the Host header, with the port unless it is the scheme's default.

        RFC 6874 §4: an IPv6 zone has local significance only and is not sent.
        """
        return self._authority(self.host.partition("%")[0])

    def __str__(self) -> str:
        scheme = "wss" if self.secure else "ws"
        return f"{scheme}://{self._authority(self.host)}{self.target.partition('?')[0]}"

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"

    def _authority(self, host: str) -> str:
        if ":" in host:
            host = f"[{host}]"
        return host if self.port == _default_port(self.secure) else f"{host}:{self.port}"


def parse_url(url: str) -> URL:
    """Parse a WebSocket URL.

    Args:
        url: ``ws://`` or ``wss://``, host, and optionally userinfo, port, path and query.

    Raises:
        TypeError: it is no str.
        InvalidURL: it is none; the message says which part is wrong.

    RFC 6455 §3.
    """
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    if bad := _CONTROL_OR_SPACE.search(url):
        raise InvalidURL(
            f"the URL has the character U+{ord(bad.group()):04X} at index {bad.start()}; "
            "spaces and control characters must be percent-encoded"
        )
    secure, rest = _split_scheme(url)
    if "#" in rest:
        # "Fragment identifiers are meaningless in the context of WebSocket URIs and MUST NOT be used on these URIs."
        raise InvalidURL('the URL has a fragment, which WebSocket URLs cannot have; "#" must be written as %23')
    end = _AUTHORITY_END.search(rest)
    authority, target = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    userinfo, _, host_and_port = authority.rpartition("@")
    username, password = _parse_userinfo(userinfo)
    host, port = _parse_host_and_port(host_and_port)
    if not target.startswith("/"):
        target = "/" + target
    try:
        target = quote(target, safe=_TARGET_SAFE)
    except UnicodeEncodeError:
        raise InvalidURL("the URL has a lone surrogate in its path or query") from None
    return URL(secure, host, _default_port(secure) if port is None else port, target, username, password)


def _default_port(secure: bool) -> int:
    return 443 if secure else 80


def _split_scheme(url: str) -> tuple[bool, str]:
    match = _SCHEME.match(url)
    scheme = match.group(1).lower() if match else ""
    if match and scheme in ("ws", "wss"):
        return scheme == "wss", url[match.end() :]
    if scheme in ("http", "https"):
        raise InvalidURL(f"the URL starts with {scheme}://; use {'ws' if scheme == 'http' else 'wss'}:// for WebSocket")
    raise InvalidURL("the URL does not start with ws:// or wss://")


def _parse_userinfo(userinfo: str) -> tuple[str | None, str | None]:
    if not userinfo:
        return None, None
    username, colon, password = userinfo.partition(":")
    try:
        username, password = unquote(username, errors="strict"), unquote(password, errors="strict")
        (username + password).encode()
    except UnicodeError:
        raise InvalidURL("the username or password in the URL is not percent-encoded UTF-8") from None
    # RFC 7617 §2: "The user-id and password MUST NOT contain any control characters", and "a user-id containing a
    # colon character is invalid".
    if ":" in username or _CONTROL.search(username + password):
        raise InvalidURL("the URL has a colon in the username, or a control character in the username or password")
    return username, password if colon else None


def _parse_host_and_port(host_and_port: str) -> tuple[str, int | None]:
    if host_and_port.startswith("["):
        literal, bracket, rest = host_and_port[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise InvalidURL("the host in the URL is not an IPv6 address in brackets, optionally with :port")
        return _parse_ipv6(literal), _parse_port(rest[1:])
    host, colon, port = host_and_port.partition(":")
    if ":" in port:
        raise InvalidURL("the host in the URL has several colons; an IPv6 address needs brackets")
    return _parse_name(host), _parse_port(port) if colon else None


def _parse_port(port: str) -> int | None:
    if not port:
        # RFC 3986 §3.2.3 has an empty port mean the default.
        return None
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise InvalidURL("the port in the URL is not a number from 1 to 65535")
    return int(port)


def _parse_ipv6(literal: str) -> str:
    # RFC 6874 §2: the "%" before a zone is written as "%25". A bare one is accepted, as by most.
    address, percent, zone = literal.partition("%")
    zone = unquote(zone.removeprefix("25"))
    try:
        IPv6Address(address)
    except AddressValueError:
        raise InvalidURL("the host in the URL is in brackets and is not an IPv6 address") from None
    if percent and not re.fullmatch(r"[-._~0-9A-Za-z]+", zone):
        raise InvalidURL("the zone of the IPv6 address in the URL is not a name of letters and digits")
    return address.lower() + percent + zone


def _parse_name(host: str) -> str:
    if not host:
        raise InvalidURL("the URL has no host")
    if len(host) > _MAX_HOST:
        raise InvalidURL(f"the host in the URL has {len(host)} characters; expected at most {_MAX_HOST}")
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    # Checked after encoding: IDNA maps some characters to "/" or ":" and the like.
    if not _REG_NAME.fullmatch(name):
        raise InvalidURL("the host in the URL is not a valid name or IPv4 address")
    return name.lower()
