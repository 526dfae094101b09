"""Of the same bytes, cut anyhow and read anywhere, the codec in C makes what the one in Python makes.

The input chooses the side, the limits, how the bytes are cut, the room for each piece, where the bytes are read to, and
when what there is of a message is taken. What is left of it is the bytes, which are masked for the decoder's side so
that a mutation of the payload stays one.
"""

import sys

from anyio_ws.protocol import _codec, _pycodec
from tests.protocol.differential import Pair

from .inputs import Choices, decode_seeds

MAX_SIZES = [None, 0, 125, 126, 1000, 65_535, 65_536, 200_000]
SCRATCHES = [0, 7, 65_536]
# The large ones, which take long, are chosen less often.
SIZES = [0, 1, 2, 3, 125, 126, 127] * 6 + [16_383, 16_384, 65_535, 65_536, 70_000]


def run(data: bytes) -> None:
    choices = Choices(data)
    is_client, extended = choices.flag(), choices.flag()
    max_size, scratch = choices.pick(MAX_SIZES), choices.pick(SCRATCHES)
    pair = Pair(_codec, is_client=is_client, max_size=max_size, scratch=scratch, extended=extended)
    while choices:
        chunk = b"".join(make_frame(choices, is_client) for _ in range(choices.below(4) + 1))
        while chunk:
            count = choices.below(len(chunk)) + 1 if choices.flag() else len(chunk)
            room = choices.below(402) - 1 if choices.flag() else sys.maxsize
            if choices.flag():
                pair.read(chunk[:count], room)
            else:
                pair.feed(chunk[:count], room, bytearray if choices.flag() else bytes)
            chunk = chunk[count:]
            match choices.below(8) if extended else 0:
                case 6:
                    pair.take()
                case 7:
                    pair.limit(choices.pick(MAX_SIZES[1:]))
    pair.finish()


def make_frame(choices: Choices, is_client: bool) -> bytes:
    kind = choices.below(4)
    if kind == 3:
        return choices.take(choices.below(21))
    payload = choices.take(choices.below(41))
    if kind == 1:
        payload = choices.pick([b"keep", b"bad"]) + payload  # see differential.transform
    elif kind == 2:
        payload = payload.ljust(choices.pick(SIZES), b"x")
    key = None if is_client else choices.take(4).ljust(4, b"k")
    first = choices.below(256)
    # An opcode that there is, but for one in four, of which one in two has the bit of an extension.
    opcode = [1, 2, 0, 9, 8, 10, 0x40 | first & 3, first & 127][first >> 4 & 7]
    arguments = (opcode, payload, key, first < 128)
    encoded = _codec.encode_frame(*arguments)
    assert encoded == _pycodec.encode_frame(*arguments)
    return encoded


# The smallest of what the fuzzer found that go through every line together, and what it found to be wrong.
SEEDS = decode_seeds("""
    Av////+KXSQ=
    SgAAAAAA/wk=
    igCKCQD+hAA=
    iv///yP/I/8=
    jf////9e//8=
    ///+AF4h2P8=
    AQD//wAAoPtC
    Av///yT/XSQk
    Av////8k/10k
    ilkv////I/+d
    iv9BBwAAAAAA
    /xAAAAAAAF7/
    t7e3AAAAALc7jQ==
    iv//XQIm////I/8=
    iv//YQIk////I/8=
    AX4AQAAAAAX/7/9dJAc=
    lwAJ/v8AAAB+AAD/I///
    /2EJAP5hAAkA/gD+7u7/
    ////////mV0CJP8D6QGZ
    AQAAAAAAAAX/z/9dANAtBw==
    CQBeOyEAGRkZ/gD+AF7/AAA=
    JP///14A/iMJB/+YaGehAAAAAAD/Gw==
    AAD/////AQD/////B7e3twAAAAC3O40AXgcBZglo9Zhlof/D
    Av8C8PDw8PDw8PDw8PD/AGUAAP//Xfr6/wAwAKL/oPuN79Ci0CQk
    Av8NDQ0NDQ0NDQ0N/xkAAAAAAAAA//////8AYIEAAAACAQAAgf8k/136+v8AMACi/6D7je/QotAkJA==
    YiggKCgoKGJiYmJiYmJiYmJiYmIvYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYgAAAGJiYkBiYmJiYWJiYmJiYmJiYgAAAAAAAAAAAADFAP//////AAAAAAAAAGJiYmLPYmJiYmL/Gf8j/w==
    AAAAAAAAAAAAAAAAAAAAAAAAANYAAAAAhgAAAE8BAAAAAAAAZUEAZgAAAQE=
""")
