"""The codec in C beside the one in Python: after every step, the same must have come of the same.

Used by test_codecs.py with Hypothesis, and by tests/fuzz with a coverage-guided fuzzer.
"""

import sys
from types import ModuleType
from typing import Any

from anyio_ws.protocol import Opcode, ProtocolError, _pycodec

RSV1 = 0x40


def transform(begun: int, payload: bytes) -> bytes | None:
    """What stands for an extension: it turns messages round, keeps some for itself, and finds fault with others."""
    assert begun in (Opcode.TEXT | RSV1, Opcode.BINARY | RSV1)
    if payload.startswith(b"keep"):
        return None
    if payload.startswith(b"bad"):
        raise ProtocolError("bad data")
    return payload[::-1]


class Side:
    """One decoder, and all that has come of it."""

    def __init__(
        self, codec: ModuleType, is_client: bool, max_size: int | None, scratch: int, extended: bool = False
    ) -> None:
        self.messages: list[str | bytes] = []
        self.controls: list[tuple[int, bytes]] = []
        self.errors: list[ProtocolError] = []
        self.too_big: list[ProtocolError] = []
        self.scratch = memoryview(bytearray(scratch)) if scratch else None
        self.decoder = codec.Decoder(
            is_client=is_client,
            max_size=max_size,
            on_control=lambda opcode, payload: self.controls.append((opcode, payload)),
            on_error=self.errors.append,
            **({"on_too_big": self.too_big.append, "rsv": RSV1, "transform": transform} if extended else {}),
            scratch=self.scratch,
        )

    @property
    def outcome(self) -> dict[str, Any]:
        decoder = self.decoder
        error = decoder.error
        assert self.errors == ([] if error is None else [error])
        return {
            "messages": self.messages,
            "controls": self.controls,
            "room": decoder.room,
            "pending": decoder.pending,
            "error": error and (str(error), error.close_code),
            "too big": [str(each) for each in self.too_big],
            "begun": decoder.begun,
            "closed": decoder.closed,
            "counted": (decoder.fed, decoder.messages, decoder.fragments),
        }


class Pair:
    """Two decoders that get the same; with a scratch of so many bytes each, or none.

    If they are extended, RSV1 means something, and a message that is too big is not a violation.
    """

    def __init__(
        self, codec: ModuleType, *, is_client: bool, max_size: int | None, scratch: int = 0, extended: bool = False
    ) -> None:
        self.sides = [Side(each, is_client, max_size, scratch, extended) for each in (codec, _pycodec)]

    def feed(self, data: bytes, room: int = sys.maxsize, kind: type = bytes) -> None:
        for side in self.sides:
            side.messages += side.decoder.feed(kind(data), room)
        self.compare()

    def read(self, data: bytes, room: int = sys.maxsize) -> None:
        """Put the data where the decoders want it, as a transport does."""
        while data:
            views = [side.decoder.get_buffer() for side in self.sides]
            if views[0] is None or views[1] is None:
                assert views == [None, None]
                self.feed(data, room, memoryview)
                return
            first, second = (view is side.scratch for side, view in zip(self.sides, views, strict=True))
            assert first == second
            count = min(len(data), *map(len, views))
            for side, view in zip(self.sides, views, strict=True):
                view[:count] = data[:count]
                side.messages += side.decoder.filled(count, room)
                if side.scratch is not None:  # another connection's bytes come into it
                    side.scratch[:] = b"\xff" * len(side.scratch)
            data = data[count:]
            self.compare()

    def take(self) -> None:
        """Take what there is of the message that has begun."""
        for side in self.sides:
            side.messages.append(side.decoder.take())
        self.compare()

    def limit(self, max_size: int) -> None:
        for side in self.sides:
            side.decoder.max_size = max_size

    def finish(self) -> None:
        while self.sides[0].decoder.pending and not self.sides[0].too_big:
            self.feed(b"")

    def compare(self) -> None:
        first, second = (side.outcome for side in self.sides)
        assert first == second
        assert list(map(type, first["messages"])) == list(map(type, second["messages"]))
