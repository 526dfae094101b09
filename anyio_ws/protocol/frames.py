"""Frames, RFC 6455 §5: what they are, the codec in use, and what Close frames carry.

The codec, which is Decoder, MaskingKeys, apply_mask, encode_frame and encode_header, exists twice with the same
interface and the same behaviour: in C in ``_codec.c``, which is used where it was built, and in Python in
``_pycodec.py``, which is used elsewhere, and wherever the environment has ``ANYIO_WS_PURE=1``.
"""

import os
from typing import Literal

from . import _pycodec
from ._pycodec import Buffer
from .exceptions import ProtocolError
from .frame_rules import MESSAGE_OVERHEAD, Opcode, not_utf8

try:
    if os.environ.get("ANYIO_WS_PURE", "0") not in ("", "0"):
        raise ImportError("ANYIO_WS_PURE is set")
    from ._codec import Decoder, MaskingKeys, apply_mask, encode_frame, encode_header
except ImportError:
    from ._pycodec import Decoder, MaskingKeys, apply_mask, encode_frame, encode_header

IMPLEMENTATION: Literal["c", "python"] = "python" if Decoder.__module__ == _pycodec.__name__ else "c"
"""Which codec is in use."""

__all__ = [
    "IMPLEMENTATION",
    "MESSAGE_OVERHEAD",
    "Buffer",
    "Decoder",
    "MaskingKeys",
    "Opcode",
    "apply_mask",
    "check_close_code",
    "encode_close",
    "encode_frame",
    "encode_header",
    "is_valid_close_code",
    "parse_close",
]


# Payloads of Close frames


def is_valid_close_code(code: int) -> bool:
    """Tell whether a Close frame may carry this code.

    1000 to 1003 and 1007 to 1011 are defined by RFC 6455 §7.4.1, and 1012 to 1014 in IANA's registry. 1004 is reserved;
    of 1005, 1006 and 1015 it says "MUST NOT be set as a status code in a Close control frame by an endpoint". Of the
    rest, only 3000 to 4999 are for libraries and applications to choose (§7.4.2).
    """
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def check_close_code(code: int) -> None:
    """Check a code that an endpoint wants to send.

    Raises:
        ValueError: no Close frame may carry it.
    """
    if not is_valid_close_code(code):
        raise ValueError(f"close code {code} must not be sent; use 1000-1003, 1007-1014 or 3000-4999")


def parse_close(payload: bytes) -> tuple[int, str]:
    """Decode the payload of a Close frame.

    Returns:
        The close code and the close reason; 1005 and no reason if the payload is empty.

    Raises:
        ProtocolError: half a code, or one that no Close frame may carry (1002), or a reason that is not UTF-8 (1007).

    RFC 6455 §5.5.1, §7.1.5, §7.4.
    """
    if not payload:
        # "If this Close control frame contains no status code, _The WebSocket Connection Close Code_ is considered to
        # be 1005." (§7.1.5)
        return 1005, ""
    if len(payload) == 1:
        # "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer" (§5.5.1)
        raise ProtocolError("Close frame with a payload of 1 byte, expected none or a close code of 2 bytes")
    code = int.from_bytes(payload[:2])
    if not is_valid_close_code(code):
        raise ProtocolError(f"Close frame with code {code}, expected 1000-1003, 1007-1014 or 3000-4999")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError as exc:
        raise not_utf8("close reason", exc) from None


def encode_close(code: int, reason: str) -> bytes:
    """Encode the payload of a Close frame.

    Args:
        code: the close code; 1005 makes the payload empty.
        reason: the close reason, of which only the characters that end within 123 bytes of UTF-8 are taken.

    Raises:
        UnicodeEncodeError: the reason has a lone surrogate.

    RFC 6455 §5.5.1.
    """
    if code == 1005:
        return b""
    # "All control frames MUST have a payload length of 125 bytes or less" (§5.5). The only error that there can be is
    # the character that was cut in two, and "ignore" drops it.
    return code.to_bytes(2) + reason.encode()[:123].decode(errors="ignore").encode()
