"""Fuzzes one target, guided by coverage: `python -m tests.fuzz TARGET [CORPUS] [OPTION OF LIBFUZZER ...]`.

A target is a module with `run(data)`, which raises if its invariant does not hold, and perhaps with SEEDS, a table of
inputs that are added to the corpus, and with LINES, from which an input that is lines of text is changed.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import atheris

from .inputs import SIZE, mutate_lines


def main(name: str, *arguments: str) -> None:
    with atheris.instrument_imports(include=["anyio_ws.protocol", "h11"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    corpus = next((Path(argument) for argument in arguments if not argument.startswith("-")), None)
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        for title, seed in getattr(target, "SEEDS", {}).items():
            (corpus / f"seed {title}".replace("/", "_")).write_bytes(seed)
    mutator = {"custom_mutator": make_mutator(target)} if hasattr(target, "LINES") else {}
    atheris.Setup([sys.argv[0], *arguments], target.run, **mutator)
    atheris.Fuzz()


def make_mutator(target: ModuleType):
    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        if number % 2 or len(data) <= SIZE:
            return atheris.Mutate(data, max_size)
        return mutate_lines(data[:-SIZE], max_size - SIZE, number, target.LINES) + data[-SIZE:]

    return mutate


if __name__ == "__main__":
    main(*sys.argv[1:])
