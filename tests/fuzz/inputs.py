"""What a fuzzer's input means: choices, read from its end, and before them the bytes of the wire.

Whatever the input is, it means something, and a mutation of the bytes leaves the choices as they are. Nothing here
needs a fuzzer: test_targets.py runs the same targets on the seeds and on random inputs.
"""

import base64
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

# Bytes of choices in an input that is a stream.
SIZE = 32
STRETCHES = [0, 1, 120, 1_000, 1_024, 8_150, 16_300, 65_500]


class Choices:
    """Takes an input apart; one that has ended chooses 0 from then on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._start = 0
        self._end = len(data)

    def __bool__(self) -> bool:
        return self._start < self._end

    def below(self, limit: int) -> int:
        """A number from the end, of as many bytes as it takes."""
        number = 0
        for _ in range((limit - 1).bit_length() + 7 >> 3):
            number <<= 8
            if self:
                self._end -= 1
                number |= self._data[self._end]
        return number % limit

    def flag(self) -> bool:
        return bool(self.below(2))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def take(self, count: int) -> bytes:
        """So many bytes from the front, or what there is."""
        start = self._start
        self._start = min(start + count, self._end)
        return self._data[start : self._start]

    def rest(self) -> bytes:
        return self.take(self._end)

    def cut(self, data: bytes) -> list[bytes]:
        """The same bytes in pieces, none of them empty: in at most eight, or in the smallest."""
        count = self.below(9)
        if count == 0:
            size = 1 + len(data) // 500
            return [data[i : i + size] for i in range(0, len(data), size)]
        cuts = sorted(self.below(len(data) + 1) for _ in range(count - 1))
        return [data[start:stop] for start, stop in pairwise([0, *cuts, len(data)]) if start < stop]

    def stream(self) -> tuple[bytes, list[bytes]]:
        """What comes from a peer: all bytes that are left, with one repeated up to a limit; and the same in pieces."""
        count, position = self.pick(STRETCHES), self.below(1 << 16)
        cuts = Choices(self._data[-SIZE : self._end])
        self._end = min(self._end, max(0, len(self._data) - SIZE))
        data = self.rest()
        if count and data:
            position %= len(data)
            data = data[:position] + data[position : position + 1] * count + data[position:]
        return data, cuts.cut(data)


def seed(data: bytes, *choices: int) -> bytes:
    """The stream that means these bytes and these choices, each of one byte; the cuts are into the smallest pieces."""
    return data + bytes(SIZE - len(choices)) + bytes(reversed(choices))


def decode_seeds(table: str) -> dict[str, bytes]:
    """Inputs from a table in base64, which is how those are kept that a fuzzer has made."""
    return {f"{number:02}": base64.b64decode(line) for number, line in enumerate(table.split())}


def mutate_lines(data: bytes, max_size: int, number: int, lines: Sequence[bytes]) -> bytes:
    """Another message: with a line left out, repeated, moved, or taken from a table."""
    chance = random.Random(number)
    message = data.split(b"\r\n")
    at, other = chance.randrange(len(message)), chance.randrange(len(message))
    match chance.randrange(4):
        case 0:
            del message[at]
        case 1:
            message.insert(other, message[at])
        case 2:
            message.insert(at, chance.choice(lines))
        case _:
            message[at] = chance.choice(lines)
    return b"\r\n".join(message)[:max_size]
