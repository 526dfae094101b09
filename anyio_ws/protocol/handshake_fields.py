"""The fields of the opening handshake that both sides read: Sec-WebSocket-*, Upgrade, Connection.

RFC 6455 §4.1, §4.2, §11.3.
"""

import binascii
import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from .http import TOKEN, Fields, Headers, add_repeated

__all__ = ["PRODUCT", "accept_key", "check_subprotocols", "decode", "decode_fields", "has_token", "parse_extensions"]

try:
    _version = version("anyio-ws")
except PackageNotFoundError:
    _version = "0"

PRODUCT = f"anyio_ws/{_version} Python/{sys.version_info.major}.{sys.version_info.minor}"
"""The default of ``user_agent_header`` and ``server_header``, RFC 9110 §10.1.5, §10.2.4."""

# RFC 9110 §5.6.4
_QUOTED_PAIR = re.compile(r"\\(.)")

# RFC 6455 §1.3
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# What most handshakes have in common, so that the connections of a server share it: of a browser's request, nearly half
# of what each would keep. sys.intern is no substitute: CPython 3.12 never forgets what a hostile peer made up.
_USUAL_NAMES = {
    name.encode(): (name, name.lower())
    for name in (
        *("Host", "Connection", "Upgrade", "Origin", "Date", "Server", "User-Agent", "Cookie", "Authorization"),
        *("Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Accept", "Sec-WebSocket-Extensions"),
        *("Sec-WebSocket-Protocol", "Pragma", "Cache-Control", "Accept", "Accept-Language", "Accept-Encoding"),
        *("Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP"),
    )
}
_USUAL_TEXTS = {
    text.encode(): text
    for text in (
        *("GET", "Upgrade", "keep-alive, Upgrade", "websocket", "13", "no-cache", "gzip, deflate, br, zstd"),
        *("gzip, deflate, br", "permessage-deflate; client_max_window_bits", "permessage-deflate", "*/*"),
        *("empty", "same-origin", "Switching Protocols"),
    )
}


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key.

    RFC 6455 §4.2.2, 5.4.
    """
    # Not for security: the RFC has it show only that the answer is to this request.
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False).decode()


def decode(data: bytes) -> str:
    """A text that h11 parsed."""
    return _USUAL_TEXTS.get(data) or data.decode("latin-1")


def decode_fields(raw: Iterable[tuple[bytes, bytes]]) -> tuple[Headers, Fields]:
    """The header fields that h11 parsed: as people see them, and for the checks of the handshake."""
    names: list[str] = []
    values: list[str] = []
    fields: Fields = {}
    usual_name, usual_text = _USUAL_NAMES.get, _USUAL_TEXTS.get
    for raw_name, raw_value in raw:
        name, key = usual_name(raw_name) or _name_and_key(raw_name)
        value = usual_text(raw_value) or raw_value.decode("latin-1")
        names.append(name)
        values.append(value)
        if key in fields:
            add_repeated(fields, key, value)
        else:
            fields[key] = value
    return Headers.trusted(names, values), fields


def _name_and_key(raw_name: bytes) -> tuple[str, str]:
    name = raw_name.decode("latin-1")
    return name, name.lower()


def has_token(fields: Fields, name: str, token: str) -> bool:
    """Whether a header that is a list of tokens contains this one; its name and the token are in lower case here."""
    value = fields.get(name, "")
    if isinstance(value, list):
        value = ",".join(value)
    value = value.lower()
    # Nearly always it is the only one.
    return value == token or token in [item.strip(" \t") for item in value.split(",")]


def parse_extensions(header: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Parse a Sec-WebSocket-Extensions header: the extensions in order, each with its parameters in order.

    Args:
        header: the value; of several fields, joined by commas.

    Raises:
        ValueError: it does not have this form; the message says where.

    RFC 6455 §9.1.
    """
    extensions: list[tuple[str, list[tuple[str, str | None]]]] = []
    # A quoted value must be a token once it is unquoted, so that no comma or semicolon can hide in it.
    for item in header.split(","):
        name, *rest = [part.strip(" \t") for part in item.split(";")]
        if not name and not rest:
            # RFC 9110 §5.6.1.2: "A recipient MUST parse and ignore a reasonable number of empty list elements".
            continue
        _check_token(name, "an extension's name")
        parameters: list[tuple[str, str | None]] = []
        for part in rest:
            parameter, equals, value = part.partition("=")
            parameter = parameter.rstrip(" \t")
            _check_token(parameter, f"a parameter's name in extension {name}")
            if equals:
                value = value.lstrip(" \t")
                if len(value) >= 2 and value[0] == value[-1] == '"':
                    value = _QUOTED_PAIR.sub(r"\1", value[1:-1])
                # "When using the quoted-string syntax variant, the value after quoted-string unescaping MUST conform to
                # the 'token' ABNF."
                _check_token(value, f"the value of parameter {parameter} in extension {name}")
            parameters.append((parameter, value if equals else None))
        extensions.append((name, parameters))
    if not extensions:
        raise ValueError("no extension is named")
    return extensions


def _check_token(value: str, what: str) -> None:
    if not TOKEN.fullmatch(value):
        raise ValueError(f"{what} is not a token")


def check_subprotocols(subprotocols: Sequence[str]) -> tuple[str, ...]:
    """The option `subprotocols`, checked.

    Raises:
        ValueError: one is not a token, or comes twice.

    RFC 6455 §4.1, 10.: "The elements that comprise this value MUST be non-empty strings with characters in the range
    U+0021 to U+007E not including separator characters [...] and MUST all be unique strings."
    """
    if isinstance(subprotocols, str):
        raise ValueError("subprotocols is a str; expected a sequence of names")
    seen: set[str] = set()
    for name in subprotocols:
        if not TOKEN.fullmatch(name):
            raise ValueError(f"subprotocols: {name!a} is not a token, RFC 9110 §5.6.2")
        if name in seen:
            raise ValueError(f"subprotocols: {name} comes twice")
        seen.add(name)
    return tuple(subprotocols)
