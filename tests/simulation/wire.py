"""A decoder of RFC 6455 §5 and RFC 7692 for what one endpoint has written; no code of the library's."""

import zlib
from collections.abc import Callable

CONTROL = {8: "Close", 9: "Ping", 10: "Pong"}

TAIL = b"\x00\x00\xff\xff"
FINAL = b"\x03\x00"
STEP = 64
"""Bytes that are inflated at a time. zlib lets what it has just written be referred to, whatever the window."""


class Inflating:
    """What permessage-deflate makes of the messages of one side.

    Args:
        parameters: what was agreed, with its values.
        side: "client" or "server": who has compressed them.
    """

    def __init__(self, parameters: dict[str, str], side: str) -> None:
        self.bits = int(parameters.get(f"{side}_max_window_bits") or 15)
        self.is_taken_over = f"{side}_no_context_takeover" not in parameters
        self._inflater = zlib.decompressobj(-self.bits)

    def inflate(self, payload: bytes) -> bytes:
        """Inflate a message. Raises AssertionError for what a peer could not, or that is not as RFC 7692 has it."""
        if not self.is_taken_over:
            self._inflater = zlib.decompressobj(-self.bits)
        inflater, data, parts = self._inflater, payload + TAIL, list[bytes]()
        try:
            while data or (parts and len(parts[-1]) == STEP):
                parts.append(inflater.decompress(data, STEP))
                data = inflater.unconsumed_tail
            assert not inflater.eof, "a block with BFINAL set"
            end = inflater.copy()
            assert end.decompress(FINAL) == b"", "a message that ends within a block"
            assert end.eof, "a message that ends within a block"
        except zlib.error as exc:
            raise AssertionError(f"a message of {len(payload)} bytes that is not DEFLATE: {exc}") from None
        return b"".join(parts)


class Wire:
    """What one endpoint has written: messages and control frames.

    Args:
        side: "client" or "server".
        tell: called with opcode, payload, the position behind each, counted from the end of the handshake, and whether
            it was compressed.
        handshake: the bytes begin with the head of an HTTP message; called with the extensions in an answer.

    Attributes:
        position: where the last frame ended.
        frames: how many have.
        deflate: how it compresses, if that was agreed.
    """

    def __init__(
        self,
        side: str,
        tell: Callable[[int, bytes, int, bool], None],
        *,
        handshake: Callable[[str], None] | None = None,
    ) -> None:
        self.position = 0
        self.frames = 0
        self.deflate: Inflating | None = None
        self._masked = side == "client"
        self._tell = tell
        self._on_answer = handshake
        self._in_head = handshake is not None
        self._rest = bytearray()
        self._needed = 2
        self._begun = 0  # the opcode of the message whose last fragment has not come
        self._compressed = False
        self._closed = False
        self._fragments: list[bytes] = []

    @property
    def is_whole(self) -> bool:
        """No message has begun that has not ended."""
        return not (self._rest or self._begun)

    @property
    def is_torn(self) -> bool:
        """A frame has begun that has not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> None:
        """Take what was written. Raises AssertionError for anything that no endpoint of ours may write."""
        self._rest += data
        if self._in_head:
            head, separator, rest = self._rest.partition(b"\r\n\r\n")
            if not separator:
                return
            assert head.startswith((b"GET / HTTP/1.1\r\n", b"HTTP/1.1 101 ")), f"no handshake: {bytes(head)!r}"
            if not self._masked and self._on_answer is not None:
                fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
                self._on_answer(fields.get("Sec-WebSocket-Extensions", ""))
            self._in_head = False
            self._rest = rest
        while len(self._rest) >= self._needed:
            self._needed = self._take()

    def _take(self) -> int:
        """Take a frame if it is all here. Returns how many bytes it takes to try again."""
        rest = self._rest
        first, second = rest[0], rest[1]
        opcode, length, size = first & 15, second & 127, 2
        compressed = bool(first & 0x40)
        assert first & 0x30 == 0, f"RSV bits in {first:#x}"
        assert not compressed or (self.deflate and opcode in (1, 2)), f"RSV1 in {first:#x}"
        assert opcode in (0, 1, 2, 8, 9, 10), f"opcode {opcode}"
        is_last = bool(first & 0x80)
        assert is_last or opcode not in CONTROL, f"{CONTROL[opcode]} in fragments"
        assert opcode in CONTROL or (opcode == 0) == (self._begun != 0), f"opcode {opcode} after {self._begun}"
        assert opcode in CONTROL or not self._closed, f"opcode {opcode} after the Close"
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
        self._closed = self._closed or opcode == 8
        if opcode in CONTROL:
            self._tell(opcode, payload, self.position, False)
            return 2
        if opcode:
            self._begun, self._compressed = opcode, compressed
        self._fragments.append(payload)
        if is_last:
            self._message()
        return 2

    def _message(self) -> None:
        opcode, payload = self._begun, b"".join(self._fragments)
        self._begun = 0
        self._fragments.clear()
        if self._compressed:
            assert self.deflate is not None
            payload = self.deflate.inflate(payload)
        if opcode == 1:
            payload.decode()
        self._tell(opcode, payload, self.position, self._compressed)


def agreed(extensions: str) -> dict[str, str] | None:
    """The parameters of permessage-deflate in a server's answer; None if it is not there."""
    name, *parameters = (part.strip() for part in extensions.split(";"))
    if name != "permessage-deflate":
        assert not extensions, f"an extension that nobody offered: {extensions}"
        return None
    return {key: value for key, _, value in (parameter.partition("=") for parameter in parameters)}
