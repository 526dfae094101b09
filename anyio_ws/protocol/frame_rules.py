"""What RFC 6455 §5 says about frames: the opcodes, and the errors for what breaks a rule.

Both codecs, ``_pycodec.py`` and ``_codec.c``, find violations themselves and come here for the words.
"""

import enum
import sys

from .exceptions import ProtocolError


class Opcode(enum.IntEnum):
    """What a frame is. RFC 6455 §5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


MESSAGE_OVERHEAD = 64
"""Bytes that a message counts beyond its length: about what the object and its place in a queue cost CPython. Without
it a peer could fill the memory with empty messages."""

_NAMES = {int(opcode): opcode.name.lower() for opcode in Opcode}


def check_head(first: int, second: int, is_client: bool, in_message: bool) -> ProtocolError | None:
    """Say which rule the first two bytes of a frame break, if any.

    Args:
        first: FIN, RSV bits and opcode.
        second: the mask bit and the length, or its width.
        is_client: whether the frame comes from a server.
        in_message: whether a fragmented message has begun and not ended.
    """
    opcode = first & 0xF
    name = _NAMES.get(opcode)
    violation = ""
    # "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values." (§5.2)
    if first & 0x70:
        violation = f"frame with RSV bits {first >> 4 & 7:03b}, expected 000 as no extension defines them"
    # "If an unknown opcode is received, the receiving endpoint MUST _Fail the WebSocket Connection_." (§5.2)
    elif name is None:
        violation = f"frame with reserved opcode {opcode:#x}, expected 0x0 to 0x2 or 0x8 to 0xa"
    # "The server MUST close the connection upon receiving a frame that is not masked." "A client MUST close
    # a connection if it detects a masked frame." (§5.1)
    elif second >> 7 == is_client:
        if is_client:
            violation = f"masked {name} frame from the server, expected an unmasked one"
        else:
            violation = f"unmasked {name} frame from the client, expected a masked one"
    elif opcode >= Opcode.CLOSE:
        # "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be fragmented." (§5.5)
        if second & 0x7F > 125:
            violation = f"{name} frame with a payload of more than 125 bytes, expected at most 125"
        elif first < 0x80:
            violation = f"fragmented {name} frame, expected control frames to be whole"
    # "A fragmented message consists of a single frame with the FIN bit clear and an opcode other than 0, followed
    # by zero or more frames with the FIN bit clear and the opcode set to 0, and terminated by a single frame with
    # the FIN bit set and an opcode of 0." (§5.4)
    elif opcode == Opcode.CONTINUATION:
        if not in_message:
            violation = "continuation frame outside a message, expected text or binary"
    elif in_message:
        violation = f"{name} frame inside a fragmented message, expected continuation"
    return ProtocolError(violation) if violation else None


def bad_length(length: int, bits: int) -> ProtocolError:
    """Say what is wrong with a payload length that was sent in 16 or 64 bits."""
    # "the most significant bit MUST be 0" (§5.2)
    if length >> 63:
        return ProtocolError(f"payload length {length:,}, expected less than 2**63")
    # "the minimal number of bytes MUST be used to encode the length" (§5.2)
    return ProtocolError(f"payload length {length:,} encoded in {bits} bits, expected the shortest encoding")


def too_big(size: int, max_size: int, fin: bool) -> ProtocolError:
    """Say how large a message is, which without fin is not its last frame's word."""
    least = "" if fin else "at least "
    return ProtocolError(f"message of {least}{size:,} bytes exceeds max_size={max_size:,}", 1009)


def longest_transformed(max_size: int) -> int:
    """Return how long the payload of a message may be that an extension makes one of max_size of.

    Compression makes some data longer than it was; DEFLATE, at its worst, by less than an eighth.
    """
    return min(max_size + max_size // 8 + 64, sys.maxsize)


def not_utf8(what: str, exc: UnicodeDecodeError, offset: int = 0) -> ProtocolError:
    """Say where a text stops being UTF-8, if the part that was decoded begins at this offset."""
    return ProtocolError(f"{what} is not UTF-8: {exc.reason} at byte {offset + exc.start}", 1007)
