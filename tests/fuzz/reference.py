"""A decoder of frames that is short instead of fast: all bytes at once, nothing kept, no limits but max_size.

RFC 6455 §5, §7.4, §8.1.
"""

from codecs import getincrementaldecoder

NAMES = {1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
CLOSE_CODES = {*range(1000, 1015), *range(3000, 5000)} - {1004, 1005, 1006}

Event = tuple[str, object]
"""What a frame is and its payload; the code and the reason of a Close; or "error" and the close code it calls for."""


def decode(data: bytes, *, masked: bool, max_size: int | None = None, after_close: bool = False) -> list[Event]:
    """All that has happened by the end of the data; nothing does after an error, nor after a Close."""
    events: list[Event] = []
    kind, message, at = 0, b"", 0
    while len(data) - at >= 2:
        first, second = data[at], data[at + 1]
        fin, opcode, length = first >> 7, first & 15, second & 127
        at += 2
        if (
            first & 0x70
            or opcode not in (0, *NAMES)
            or (second >> 7) != masked
            or (opcode >= 8 and (length > 125 or not fin))
            or (opcode < 8 and (opcode == 0) != (kind != 0))
        ):
            return [*events, ("error", 1002)]
        if length > 125:
            width, least = (2, 126) if length == 126 else (8, 1 << 16)
            if len(data) < at + width:
                break
            length = int.from_bytes(data[at : at + width])
            at += width
            if not least <= length < 1 << 63:
                return [*events, ("error", 1002)]
        if opcode < 8 and max_size is not None and len(message) + length > max_size:
            return [*events, ("error", 1009)]
        key = data[at : at + 4 * masked]
        if len(key) < 4 * masked:
            break
        at += len(key)
        payload = data[at : at + length]
        at += length
        if masked:
            mask = (key * len(payload))[: len(payload)]
            payload = (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(len(payload))
        is_whole = len(payload) == length
        if opcode < 8:
            kind = opcode or kind
            message += payload
            is_end = bool(fin and is_whole)
            try:
                text = getincrementaldecoder("utf-8")().decode(message, is_end) if kind == 1 else ""
            except UnicodeDecodeError:
                return [*events, ("error", 1007)]
            if is_end:
                events.append((NAMES[kind], text if kind == 1 else message))
                kind, message = 0, b""
        elif is_whole:
            events.append(close(payload) if opcode == 8 else (NAMES[opcode], payload))
            if opcode == 8 and not after_close:
                return events
    return events


def close(payload: bytes) -> Event:
    if not payload:
        return "close", (1005, "")
    code = int.from_bytes(payload[:2])
    if len(payload) == 1 or code not in CLOSE_CODES:
        return "error", 1002
    try:
        return "close", (code, payload[2:].decode())
    except UnicodeDecodeError:
        return "error", 1007
