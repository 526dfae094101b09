"""Any bytes in a compressed message give a message or a ProtocolError with 1002, 1007 or 1009, never a byte more than
max_size; the same in parts as whole and whichever library inflates, unless they refer beyond the window; and what the
plain zlib makes of them.
"""

import base64
import zlib
from unittest import mock

from anyio_ws.protocol import Connection, Opcode, PerMessageDeflate, ProtocolError, deflate_backends, encode_frame
from anyio_ws.protocol.frame_rules import longest_transformed

from .inputs import Choices

MAX_SIZES = [None, 1, 100, 1_000, 65_536, 300_000]
REPEATED = [1, 1, 1, 10, 1_500]
RSV1 = 0x40
TAIL = b"\x00\x00\xff\xff"
INSTALLED = deflate_backends.installed_backends(None)

Outcome = bytes | int | None
"""A message, a close code, or None for what the plain zlib has no opinion of."""


def run(data: bytes) -> None:
    choices = Choices(data)
    library, bits, single = choices.pick(list(INSTALLED)), choices.below(8) + 8, choices.flag()
    opcode, max_size = choices.pick([Opcode.BINARY, Opcode.TEXT]), choices.pick(MAX_SIZES)
    compressor = new_compressor(choices, bits) if choices.flag() and not single else None
    payloads = [make_payload(choices, bits, compressor) for _ in range(choices.below(3) + 1)]

    def agreed() -> PerMessageDeflate:
        return PerMessageDeflate(is_client=True, server_max_window_bits=bits, server_no_context_takeover=single)

    with mock.patch.object(deflate_backends, "_backends", {name: INSTALLED[name] for name in (library, "zlib")}):
        whole = inflate_whole(agreed(), payloads, max_size)
        in_parts = inflate_in_parts(agreed(), payloads, max_size, choices)
        received = receive(Connection(is_client=True, max_size=max_size, extensions=[agreed()]), opcode, payloads)
    assert all(outcome in (1002, 1009) for outcome in whole if isinstance(outcome, int))
    assert max_size is None or all(len(outcome) <= max_size for outcome in whole if isinstance(outcome, bytes))
    agree = (
        alike(whole, in_parts)
        and received == as_received(whole, opcode, payloads, max_size)
        and is_plain(whole, inflate_plainly(payloads, max_size, bits, single))
    )
    # Nothing is beyond the largest window.
    assert agree or (bits < 15 and refers_beyond_window(payloads, bits, single))


def alike(whole: list[Outcome], in_parts: list[Outcome]) -> bool:
    *before, last = in_parts
    if last is None:  # how many streams a message may have depends on how much of it has come
        return before == whole[: len(before)]
    # Of data that is both wrong and too much, which is found first depends on how much the library was given.
    return in_parts == whole or (before == whole[:-1] and {last, whole[-1]} == {1002, 1009})


def is_plain(whole: list[Outcome], plain: list[Outcome]) -> bool:
    for ours, theirs in zip(whole, plain, strict=False):
        if theirs is None:
            break
        if ours != theirs and {ours, theirs} != {1002, 1009}:  # a library may see an error sooner
            return False
    return True


def refers_beyond_window(payloads: list[bytes], bits: int, single: bool) -> bool:
    """Whether something refers to what is no longer in the window.

    A library notices that only where it has to look into the window: what one call gives can be referred to in it.
    """
    inflater = zlib.decompressobj(-bits)
    for payload in payloads:
        if single:
            inflater = zlib.decompressobj(-bits)
        for number in payload + TAIL:
            piece, out = bytes([number]), b""
            while piece or out:
                try:
                    out = inflater.decompress(piece, 1)
                except zlib.error as exc:
                    return "too far back" in str(exc)
                piece = inflater.unconsumed_tail
                if inflater.eof:
                    piece, inflater = inflater.unused_data, zlib.decompressobj(-bits)
    return False


def new_compressor(choices: Choices, bits: int) -> "zlib._Compress":
    return zlib.compressobj(choices.below(10), zlib.DEFLATED, -max(bits, 9), 9, choices.below(5))


def make_payload(choices: Choices, bits: int, compressor: "zlib._Compress | None") -> bytes:
    data = choices.take(choices.below(200))
    kind = choices.pick(["raw", "message", "message", "streams", "cut"])
    if kind == "raw":
        return data
    data *= choices.pick(REPEATED)
    before = b""
    if kind == "streams":
        other = new_compressor(choices, bits)
        before = (other.compress(data) + other.flush()) * (choices.below(20) + 1)
    compressor = compressor or new_compressor(choices, bits)
    payload = before + (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
    return payload[: choices.below(len(payload) + 1)] if kind == "cut" else payload


def inflate_whole(extension: PerMessageDeflate, payloads: list[bytes], max_size: int | None) -> list[Outcome]:
    outcomes: list[Outcome] = []
    try:
        for payload in payloads:
            outcomes.append(extension.decode(payload, max_size))
    except ProtocolError as exc:
        outcomes.append(exc.close_code)
    return outcomes


def inflate_in_parts(
    extension: PerMessageDeflate, payloads: list[bytes], max_size: int | None, choices: Choices
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    at_most = choices.pick([100, 5_000, 300_000])
    try:
        for payload in payloads:
            decoder = extension.decoder()
            message = b""
            for number, piece in enumerate(pieces := choices.cut(payload) or [b""]):
                more = True
                while more:
                    room = 1 << 30 if max_size is None else max_size + 1 - len(message)
                    part, more = decoder.decode(piece, min(room, at_most), fin=number == len(pieces) - 1)
                    message += part
                    piece = b""
                    if max_size is not None and len(message) > max_size:
                        return [*outcomes, 1009]
            outcomes.append(message)
    except ProtocolError as exc:
        outcomes.append(None if "too many DEFLATE blocks" in str(exc) else exc.close_code)
    return outcomes


def receive(connection: Connection, opcode: int, payloads: list[bytes]) -> list[str | bytes | int]:
    """What comes of the messages on a connection."""
    messages: list[str | bytes | int] = []
    messages += connection.feed(b"".join(encode_frame(opcode | RSV1, payload, None, True) for payload in payloads))
    while (deferred := connection.deferred) is not None:
        try:
            messages.append(deferred.finish())
        except ProtocolError as exc:
            return [*messages, exc.close_code]
        connection.deferred = None
        messages += connection.feed(b"")
    return messages if connection.error is None else [*messages, connection.error.close_code]


def as_received(
    outcomes: list[Outcome], opcode: int, payloads: list[bytes], max_size: int | None
) -> list[str | bytes | int | None]:
    messages: list[str | bytes | int | None] = []
    for outcome, payload in zip(outcomes, payloads, strict=False):
        if max_size is not None and len(payload) > longest_transformed(max_size):
            return [*messages, 1009]  # not even inflated
        try:
            messages.append(outcome.decode() if isinstance(outcome, bytes) and opcode == Opcode.TEXT else outcome)
        except UnicodeDecodeError:
            return [*messages, 1007]
    return messages


def inflate_plainly(payloads: list[bytes], max_size: int | None, bits: int, single: bool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    inflater = zlib.decompressobj(-bits)
    end = TAIL + b"\x03\x00" if single else TAIL  # without context takeover, one more block ends the stream
    for payload in payloads:
        if single:
            inflater = zlib.decompressobj(-bits)
        try:
            message = inflater.decompress(payload + end, 0 if max_size is None else max_size + 1) if payload else b""
        except zlib.error:
            return [*outcomes, 1002]
        if max_size is not None and len(message) > max_size:
            return [*outcomes, 1009]
        if inflater.unused_data or (inflater.eof and not single):
            return [*outcomes, None]  # a stream ended before the message did
        if payload and single and not inflater.eof:
            return [*outcomes, 1002]
        outcomes.append(message)
    return outcomes


SEEDS = {f"{number:02}": bytes(range(60)) * 4 + bytes([number, 7, number]) * 12 for number in range(12)}
# The last message refers to more than 256 bytes before, which is in what one call gives, or is not.
SEEDS["beyond the window"] = base64.b64decode("""
    AAECAwQFBgcICQoLDA0ODxAREhMU///////3//////////8sLS4vAQIDBAUGBzAxCAkKC7IBAAAAAAQAAA0ODxAREhMUFRbg5xkaGxwdGh8goqIi
    IyQlJicoKSorLC0uLwECAwQFBgcwMQgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAhIiMkISIjKSUkJygrJiosLS4vMjM0NTY3MDg=
""")
