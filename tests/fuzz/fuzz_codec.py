"""Fuzzes the codec in C, guided by the coverage of both, with the one in Python as the oracle; see `nox -s fuzz`.

The input chooses the side, the limits, how the bytes are cut, the room for each piece and where the bytes are read to.
What is left of it is the bytes, which are masked for the decoder's side so that a mutation of the payload stays one.
"""

import sys

import atheris

with atheris.instrument_imports(include=["anyio_ws.protocol._pycodec", "anyio_ws.protocol.frame_rules"]):
    from anyio_ws.protocol import _codec, _pycodec

from tests.protocol.differential import Pair

MAX_SIZES = [None, 0, 125, 126, 1000, 65_535, 65_536, 200_000]
SCRATCHES = [0, 7, 65_536]
SIZES = [0, 1, 2, 3, 125, 126, 127, 16_383, 16_384, 65_535, 65_536, 70_000]


def test_one(data: bytes) -> None:
    choices = atheris.FuzzedDataProvider(data)
    is_client = choices.ConsumeBool()
    max_size, scratch = choices.PickValueInList(MAX_SIZES), choices.PickValueInList(SCRATCHES)
    pair = Pair(_codec, is_client=is_client, max_size=max_size, scratch=scratch)
    while choices.remaining_bytes():
        chunk = b"".join(make_frame(choices, is_client) for _ in range(choices.ConsumeIntInRange(1, 4)))
        while chunk:
            count = choices.ConsumeIntInRange(1, len(chunk)) if choices.ConsumeBool() else len(chunk)
            room = sys.maxsize if choices.ConsumeBool() else choices.ConsumeIntInRange(-1, 400)
            if choices.ConsumeBool():
                pair.read(chunk[:count], room)
            else:
                pair.feed(chunk[:count], room, bytearray if choices.ConsumeBool() else bytes)
            chunk = chunk[count:]
    pair.finish()


def make_frame(choices: atheris.FuzzedDataProvider, is_client: bool) -> bytes:
    kind = choices.ConsumeIntInRange(0, 3)
    if kind == 0:
        return choices.ConsumeBytes(choices.ConsumeIntInRange(0, 20))
    payload = choices.ConsumeBytes(choices.ConsumeIntInRange(0, 40))
    if kind == 1:
        payload = payload.ljust(choices.PickValueInList(SIZES), b"x")
    key = None if is_client else choices.ConsumeBytes(4).ljust(4, b"k")
    arguments = (choices.ConsumeIntInRange(0, 15), payload, key, choices.ConsumeBool())
    encoded = _codec.encode_frame(*arguments)
    assert encoded == _pycodec.encode_frame(*arguments)
    return encoded


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
