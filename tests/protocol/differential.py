"""The codec in C beside the one in Python: after every step, the same must have come of the same.

Used by test_codecs.py with Hypothesis, and by tests/fuzz with a coverage-guided fuzzer.
"""

import sys
from types import ModuleType
from typing import Any

from anyio_ws.protocol import _pycodec


class Side:
    """One decoder, and all that has come of it."""

    def __init__(self, codec: ModuleType, is_client: bool, max_size: int | None) -> None:
        self.messages: list[str | bytes] = []
        self.controls: list[tuple[int, bytes]] = []
        self.decoder = codec.Decoder(
            is_client=is_client,
            max_size=max_size,
            on_control=lambda opcode, payload: self.controls.append((opcode, payload)),
        )

    @property
    def outcome(self) -> dict[str, Any]:
        decoder = self.decoder
        error = decoder.error
        return {
            "messages": self.messages,
            "controls": self.controls,
            "pending": decoder.pending,
            "error": error and (str(error), error.close_code),
            "closed": decoder.closed,
            "fragments": decoder.fragments,
        }


class Pair:
    """Two decoders that get the same."""

    def __init__(self, codec: ModuleType, *, is_client: bool, max_size: int | None) -> None:
        self.sides = [Side(codec, is_client, max_size), Side(_pycodec, is_client, max_size)]

    def feed(self, data: bytes, room: int = sys.maxsize, kind: type = bytes) -> None:
        for side in self.sides:
            side.messages += side.decoder.feed(kind(data), room)
        self.compare()

    def read(self, data: bytes, room: int = sys.maxsize) -> None:
        """Put the data into lent memory wherever that is to be had, as a transport does."""
        while data:
            views = [side.decoder.get_buffer() for side in self.sides]
            if views[0] is None or views[1] is None:
                assert views == [None, None]
                self.feed(data, room, memoryview)
                return
            count = min(len(data), *map(len, views))
            for side, view in zip(self.sides, views, strict=True):
                view[:count] = data[:count]
                side.messages += side.decoder.filled(count, room)
            data = data[count:]
            self.compare()

    def finish(self) -> None:
        while self.sides[0].decoder.pending:
            self.feed(b"")

    def compare(self) -> None:
        first, second = (side.outcome for side in self.sides)
        assert first == second
        assert list(map(type, first["messages"])) == list(map(type, second["messages"]))
