"""What all transports share."""

import pytest

from anyio_ws.transports.base import Transport


class Limited:
    """Takes so many bytes in all."""

    write_vector = Transport.write_vector

    def __init__(self, limit):
        self.limit = limit
        self.taken = b""
        self.writes = 0

    def write(self, data):
        self.writes += 1
        part = bytes(data)[: self.limit - len(self.taken)]
        self.taken += part
        return len(part)


@pytest.mark.parametrize("as_iterator", [False, True])
@pytest.mark.parametrize(
    ("limit", "writes"), [(100, 4), (11, 4), (10, 4), (7, 4), (6, 4), (5, 2), (4, 2), (3, 2), (1, 1), (0, 1)]
)
def test_a_vector_is_written_buffer_by_buffer_until_a_write_falls_short(limit, writes, as_iterator):
    buffers = [b"one", bytearray(b"two"), b"", memoryview(b"three")]
    transport = Limited(limit)
    assert transport.write_vector(iter(buffers) if as_iterator else buffers) == min(limit, 11)
    assert transport.taken == b"onetwothree"[:limit]
    assert transport.writes == writes


def test_an_empty_vector_is_no_write():
    transport = Limited(100)
    assert transport.write_vector(()) == 0
    assert transport.writes == 0
