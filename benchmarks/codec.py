"""The frame codec alone, in C and in Python."""

from collections.abc import Iterator
from importlib import import_module
from timeit import Timer
from typing import Any

from .load import echo, masked
from .report import Table

SIZES = {"16 B": 16, "1 KiB": 1024, "64 KiB": 65536}


def operations(codec: Any) -> Iterator[tuple[str, Timer, int]]:
    """What is measured: its name, the statement, and for how many frames that is."""
    names: dict[str, Any] = {"codec": codec, "keys": codec.MaskingKeys()}
    for label, size in SIZES.items():
        frames = 32 if size < 65536 else 1  # in one read
        decoder = codec.Decoder(is_client=False, max_size=None, on_control=print)
        here = {**names, "decoder": decoder, "chunk": masked(echo(size).request) * frames, "payload": bytes(size)}
        yield f"decode, masked, {label}", Timer("decoder.feed(chunk)", globals=here), frames
        yield f"encode, {label}", Timer("codec.encode_frame(2, payload)", globals=here), 1
        yield f"encode, masked, {label}", Timer("codec.encode_frame(2, payload, keys.next())", globals=here), 1


def measure(repetitions: int, seconds: float) -> Table:
    """Measure each operation on each codec that there is, one codec after the other."""
    codecs = {"Python": "anyio_ws.protocol._pycodec"}
    try:
        codecs = {"C": import_module("anyio_ws.protocol._codec").__name__, **codecs}
    except ImportError:
        print("skipped: the codec in C, which was not built\n")
    table = Table("codec, µs a frame", list(codecs), base="Python")
    timers = [(name, *operation) for name, module in codecs.items() for operation in operations(import_module(module))]
    for label in dict.fromkeys(label for _, label, _, _ in timers):
        same = [timer for timer in timers if timer[1] == label]
        for repetition in range(repetitions):
            for name, _, timer, frames in same if repetition % 2 == 0 else same[::-1]:
                calls = max(1, int(seconds / max(timer.timeit(10) / 10, 1e-9)))
                table.add(label, name, timer.timeit(calls) / calls / frames * 1e6)
    return table
