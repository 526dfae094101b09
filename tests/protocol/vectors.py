"""Runs a vector through the decoder whole, byte by byte and with bytes behind it: all must come to the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from anyio_ws.protocol.frames import Decoder, Opcode, encode_frame

KEY = b"\x37\xfa\x21\x3d"


@dataclass
class Outcome:
    """What came out of a decoder."""

    messages: list[str | bytes] = field(default_factory=list[str | bytes])
    controls: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    error: tuple[int, str] | None = None
    closed: bool = False


def decode(chunks: Iterable[bytes], *, is_client: bool = False, max_size: int | None = None) -> Outcome:
    outcome = Outcome()
    decoder = Decoder(
        is_client=is_client,
        max_size=max_size,
        on_control=lambda opcode, payload: outcome.controls.append((opcode, payload)),
    )
    for chunk in chunks:
        outcome.messages += decoder.feed(chunk)
        assert not decoder.pending
    return conclude(decoder, outcome)


def conclude(decoder: Decoder, outcome: Outcome) -> Outcome:
    if decoder.error is not None:
        outcome.error = decoder.error.close_code, str(decoder.error)
    outcome.closed = decoder.closed
    return outcome


def check(data: bytes, expected: Outcome, *, is_client: bool = False, max_size: int | None = None) -> None:
    """Run a vector that ends between two frames."""
    assert decode([data], is_client=is_client, max_size=max_size) == expected
    assert decode(bytewise(data), is_client=is_client, max_size=max_size) == expected

    trailing = frame(Opcode.PING, b"trailing", is_client=is_client)
    ended = expected.closed or expected.error is not None
    more = [] if ended else [(9, b"trailing")]
    expected = Outcome(expected.messages, expected.controls + more, expected.error, expected.closed)
    for chunks in ([data + trailing], [data, trailing]):
        assert decode(chunks, is_client=is_client, max_size=max_size) == expected


def bytewise(data: bytes) -> list[bytes]:
    """Cut data into single bytes; what follows the first thousand, into at most a thousand pieces."""
    step = 1 + len(data) // 1000
    return [data[i : i + 1] for i in range(min(1000, len(data)))] + [
        data[i : i + step] for i in range(1000, len(data), step)
    ]


def frame(opcode: int, payload: str | bytes, fin: bool = True, *, is_client: bool = False) -> bytes:
    """Encode a frame as the decoder of that side wants it."""
    return encode_frame(opcode, payload, None if is_client else KEY, fin)
