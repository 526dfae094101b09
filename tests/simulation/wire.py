"""A decoder of RFC 6455 §5 for what one endpoint has written: strict, simple, and no code of the library's."""

from collections.abc import Callable

CONTROL = {8: "Close", 9: "Ping", 10: "Pong"}


class Wire:
    """What one endpoint has written: messages and control frames.

    Args:
        masked: it is the client.
        tell: called with opcode, payload and the position behind each, counted from the end of the handshake.
        handshake: the bytes begin with the head of an HTTP message.

    Attributes:
        position: where the last frame ended.
        frames: how many have.
    """

    def __init__(self, masked: bool, tell: Callable[[int, bytes, int], None], *, handshake: bool = False) -> None:
        self.position = 0
        self.frames = 0
        self._masked = masked
        self._tell = tell
        self._in_head = handshake
        self._rest = bytearray()
        self._needed = 2
        self._begun = 0  # the opcode of the message whose last fragment has not come
        self._fragments: list[bytes] = []

    @property
    def is_whole(self) -> bool:
        """No message has begun that has not ended."""
        return not (self._rest or self._begun)

    def feed(self, data: bytes) -> None:
        """Take what was written. Raises AssertionError for anything that no endpoint of ours may write."""
        self._rest += data
        if self._in_head:
            head, separator, rest = self._rest.partition(b"\r\n\r\n")
            if not separator:
                return
            assert head.startswith((b"GET / HTTP/1.1\r\n", b"HTTP/1.1 101 ")), f"no handshake: {bytes(head)!r}"
            self._in_head = False
            self._rest = rest
        while len(self._rest) >= self._needed:
            self._needed = self._take()

    def _take(self) -> int:
        """Take a frame if it is all here. Returns how many bytes it takes to try again."""
        rest = self._rest
        first, second = rest[0], rest[1]
        opcode, length, size = first & 15, second & 127, 2
        assert first & 0x70 == 0, f"RSV bits in {first:#x}"
        assert opcode in (0, 1, 2, 8, 9, 10), f"opcode {opcode}"
        is_last = bool(first & 0x80)
        assert is_last or opcode not in CONTROL, f"{CONTROL[opcode]} in fragments"
        assert opcode in CONTROL or (opcode == 0) == (self._begun != 0), f"opcode {opcode} after {self._begun}"
        assert bool(second & 0x80) == self._masked, "masked by the wrong side, or not masked"
        if length >= 126:
            width = 2 if length == 126 else 8
            if len(rest) < size + width:
                return size + width
            length = int.from_bytes(rest[size : size + width])
            size += width
            assert length > (125 if width == 2 else 65535), f"{length} is not in the shortest form"
        assert length <= 125 or opcode not in CONTROL, f"{CONTROL[opcode]} of {length} bytes"
        begin = size + 4 * self._masked
        if len(rest) < begin + length:
            return begin + length
        payload = bytes(rest[begin : begin + length])
        if self._masked and payload:
            key = (bytes(rest[size:begin]) * (length // 4 + 1))[:length]
            payload = (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(length)
        del rest[: begin + length]
        self.position += begin + length
        self.frames += 1
        if opcode not in CONTROL:
            self._begun = opcode or self._begun
            self._fragments.append(payload)
            if not is_last:
                return 2
            opcode, payload = self._begun, b"".join(self._fragments)
            self._begun = 0
            self._fragments.clear()
            if opcode == 1:
                payload.decode()
        self._tell(opcode, payload, self.position)
        return 2
