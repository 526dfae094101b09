"""Every target holds for its seeds, and for random changes of them; `nox -s fuzz` goes on from there."""

import importlib
import random
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.protocol.codecs import load

from .inputs import SIZE, mutate_lines

COUNTS = {"connection": 1_500, "decoder": 250, "deflate": 500, "handshake_client": 1_000, "handshake_server": 1_500}


def changed(target: ModuleType, count: int) -> Iterator[bytes]:
    chance = random.Random(0)
    seeds = list(target.SEEDS.values())
    for _ in range(count):
        data = bytearray(chance.choice(seeds) if chance.random() < 0.8 else chance.randbytes(chance.randrange(400)))
        if hasattr(target, "LINES") and chance.random() < 0.5:
            data[:-SIZE] = mutate_lines(bytes(data[:-SIZE]), 4_096, chance.randrange(1 << 32), target.LINES)
        for _ in range(chance.randrange(8) if data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
        yield bytes(data)


@pytest.mark.parametrize("name", ["connection", "decoder", "deflate", "handshake_client", "handshake_server"])
def test_the_target_holds_for_its_seeds_and_for_random_changes_of_them(name: str) -> None:
    load("_codec" if name == "decoder" else "_pycodec")
    target = importlib.import_module(f"tests.fuzz.{name}")
    for data in [*target.SEEDS.values(), *changed(target, COUNTS[name])]:
        try:
            target.run(data)
        except Exception as exc:
            exc.add_note(f"{name} was run on {data!r}")
            raise
