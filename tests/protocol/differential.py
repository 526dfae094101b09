"""The codec in C beside the one in Python: after every step, the same must have come of the same.

Used by test_codecs.py with Hypothesis, and by tests/fuzz with a coverage-guided fuzzer.
"""

import sys
from types import ModuleType
from typing import Any

from anyio_ws.protocol import ProtocolError, _pycodec


class Side:
    """One decoder, and all that has come of it."""

    def __init__(self, codec: ModuleType, is_client: bool, max_size: int | None, scratch: int) -> None:
        self.messages: list[str | bytes] = []
        self.controls: list[tuple[int, bytes]] = []
        self.errors: list[ProtocolError] = []
        self.scratch = memoryview(bytearray(scratch)) if scratch else None
        self.decoder = codec.Decoder(
            is_client=is_client,
            max_size=max_size,
            on_control=lambda opcode, payload: self.controls.append((opcode, payload)),
            on_error=self.errors.append,
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
            "closed": decoder.closed,
            "counted": (decoder.fed, decoder.messages, decoder.fragments),
        }


class Pair:
    """Two decoders that get the same; with a scratch of so many bytes each, or none."""

    def __init__(self, codec: ModuleType, *, is_client: bool, max_size: int | None, scratch: int = 0) -> None:
        self.sides = [Side(codec, is_client, max_size, scratch), Side(_pycodec, is_client, max_size, scratch)]

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

    def finish(self) -> None:
        while self.sides[0].decoder.pending:
            self.feed(b"")

    def compare(self) -> None:
        first, second = (side.outcome for side in self.sides)
        assert first == second
        assert list(map(type, first["messages"])) == list(map(type, second["messages"]))
