"""The receiving half of permessage-deflate, RFC 7692 §7.2.2: messages are inflated, whole or in parts.

Rules and theory of operation

1. With context takeover there is one inflater for the connection, from its first compressed message on. Without it
   there is a new one for each message: what a peer sends can refer to whatever is in the window, so one that was used
   for another connection would hand out that connection's data.
2. Nothing is inflated beyond the limit: the bytes that are asked for are the most that there will be, plus one to tell
   a message that has the limit's size from one that exceeds it. The input goes in by pieces, for the libraries copy
   what is left of it each time.
3. A message ends where its blocks do. Without context takeover that is checked: one more block, the last of a stream,
   must end the stream. With it there is no way to look: a message that was cut off gives what it gives, and the next
   one is most likely refused.
4. A library notices that data refers beyond the agreed window only where it has to look into its window: not within
   what one call gives. Such a message, which no peer that keeps to the agreement sends, may pass or be refused.
5. A small message takes one call. Everything else is left to `MessageDecoder`.
"""

import sys

from .deflate_backends import Backend, Inflater
from .exceptions import ProtocolError
from .frames import Buffer

__all__ = ["INLINE_INPUT", "INLINE_OUTPUT", "Decoding", "Inflating", "MessageDecoder"]

INLINE_INPUT = 64 * 1024
"""Compressed bytes up to which `start_decode` begins at once, and what the inflater gets at a time."""

INLINE_OUTPUT = 256 * 1024
"""Bytes that `start_decode` inflates at once: about a millisecond."""

# What a flush ends with and the sender cuts off, RFC 7692 §7.2.1.
_TAIL = b"\x00\x00\xff\xff"
# An empty block with BFINAL set.
_FINAL = b"\x03\x00"

# A block with BFINAL set costs a new inflater, some 2 µs, and can be as short as 2 bytes. A message may have this many,
# and one more for so many bytes that have come of it: senders that make them make one for each flush.
_FINAL_BLOCKS = 16
_BYTES_PER_FINAL_BLOCK = 256


class Inflating:
    """What a connection inflates with.

    Args:
        backend: the library.
        window_bits: the peer's window is ``2**window_bits`` bytes, 8 to 15.
        is_taken_over: whether the peer takes the context over from message to message.

    Attributes:
        backend, window_bits, is_taken_over: the same.
        end: what completes a message.
        inflater: with the window that the next message refers to.
    """

    __slots__ = ("backend", "end", "inflater", "is_taken_over", "window_bits")

    def __init__(self, backend: Backend, window_bits: int, *, is_taken_over: bool) -> None:
        self.backend: Backend = backend
        self.window_bits: int = window_bits
        self.is_taken_over: bool = is_taken_over
        self.end: bytes = _TAIL if is_taken_over else _TAIL + _FINAL
        self.inflater: Inflater | None = None

    def new_inflater(self) -> Inflater:
        """An inflater with an empty window."""
        return self.backend.new_inflater(self.window_bits)

    def start(self, payload: Buffer, max_size: int | None) -> "bytes | Decoding":
        """As `PerMessageDeflate.start_decode`."""
        limit = sys.maxsize if max_size is None else max_size + 1
        if not payload:
            # Not even the 0x00 of §7.2.3.6, by a sender whose library gives nothing for an empty message.
            return b""
        if len(payload) > INLINE_INPUT:
            return Decoding(MessageDecoder(self), payload, limit, b"")
        room = limit if limit < INLINE_OUTPUT else INLINE_OUTPUT
        inflater = self.inflater or self.new_inflater()
        # "Append 4 octets of 0x00 0x00 0xff 0xff to the tail end of the payload of the message."
        whole = b"".join((payload, self.end))
        try:
            data, rest, ended = self.backend.inflate(inflater, whole, room)
        except self.backend.error as exc:
            raise _invalid(exc) from None
        if not rest and ended is not self.is_taken_over and len(data) < room:
            if self.is_taken_over:
                self.inflater = inflater
            return data
        # Larger, which may be too large, or with a block that has BFINAL set, or malformed.
        decoder = MessageDecoder(self)
        decoder.resume(inflater, len(whole), rest, ended=ended, is_held=len(data) == room)
        parts, more = decoder.decode_parts(b"", room - len(data), fin=True)
        begun = b"".join((data, *parts))
        return Decoding(decoder, b"", limit, begun) if more else begun


class MessageDecoder:
    """A message that is inflated in parts, in bounded memory.

    RFC 7692 §7.2.2.
    """

    __slots__ = (
        *("_inflating", "_inflater", "_pending", "_piece", "_is_held", "_is_at_boundary"),
        *("_fin", "_is_end_given", "_final_blocks", "_size"),
    )

    def __init__(self, inflating: Inflating) -> None:
        self._inflating = inflating
        self._inflater = inflating.inflater or inflating.new_inflater()
        # Input: what follows, and what the inflater has left of the piece it got.
        self._pending = memoryview(b"")
        self._piece: Buffer = b""
        # Whether the inflater may hold output back for which there was no room.
        self._is_held = False
        # Whether it is at the beginning of a block, because it has got nothing since the message or a stream began.
        self._is_at_boundary = True
        # The end: whether all data has come, and whether what the sender cut off has been appended.
        self._fin = False
        self._is_end_given = False
        self._final_blocks = 0
        self._size = 0  # of what has come

    def decode(self, data: Buffer, max_length: int, *, fin: bool = False) -> tuple[bytes, bool]:
        """Inflate more of the message; see `PartDecoder.decode`."""
        parts, more = self.decode_parts(data, max_length, fin=fin)
        return b"".join(parts), more

    def decode_parts(self, data: Buffer, max_length: int, *, fin: bool) -> tuple[list[bytes], bool]:
        """`decode`, with the bytes as they came out."""
        if data:
            self._pending = memoryview(data)
            self._size += len(data)
        self._fin = self._fin or fin
        backend = self._inflating.backend
        parts: list[bytes] = []
        room = max_length
        while room and (self._piece or self._is_held or self._take_piece()):
            # A library's buffer doubles as it grows; several of them do not.
            asked = room if room < INLINE_OUTPUT else INLINE_OUTPUT
            try:
                part, self._piece, ended = backend.inflate(self._inflater, self._piece, asked)
            except backend.error as exc:
                raise _invalid(exc) from None
            parts.append(part)
            room -= len(part)
            self._is_held = not ended and len(part) == asked
            self._is_at_boundary = ended
            if ended:
                self._stream_ended()
        if room and self._fin:
            self._complete()
        return parts, not room

    def resume(self, inflater: Inflater, size: int, rest: bytes, *, ended: bool, is_held: bool) -> None:
        """Go on with a message that was given to this inflater as a whole, of this size with its end."""
        end = len(self._inflating.end)
        self._inflater = inflater
        self._fin = True
        self._size = size
        self._is_end_given = len(rest) < end
        self._piece = rest if self._is_end_given else rest[:-end]
        self._is_held = is_held and not ended
        self._is_at_boundary = ended
        if ended:
            self._stream_ended()

    def _take_piece(self) -> bool:
        """Take the next piece of input, if there is one."""
        if self._pending:
            self._piece, self._pending = self._pending[:INLINE_INPUT], self._pending[INLINE_INPUT:]
            return True
        # After a block with BFINAL set there should be an empty one, §7.2.3.4: the 0x00 to which the end belongs.
        # Without it, the message is as complete.
        if not self._fin or self._is_end_given or self._is_at_boundary:
            return False
        self._is_end_given = True
        self._piece = self._inflating.end
        return True

    def _stream_ended(self) -> None:
        """Begin another stream after a block that had BFINAL set."""
        # §7.2.1: "An endpoint MAY use both DEFLATE blocks with the 'BFINAL' bit set to 0 and DEFLATE blocks with the
        # 'BFINAL' bit set to 1." Those do whose library cannot flush otherwise, and they go on with an empty window.
        inflating = self._inflating
        if self._is_end_given:
            # The end is a block that has it not set and, without context takeover, one that has.
            if self._piece or inflating.is_taken_over:
                raise _cut_off()
            return
        self._final_blocks += 1
        if self._final_blocks > _FINAL_BLOCKS + self._size // _BYTES_PER_FINAL_BLOCK:
            raise ProtocolError(
                f"message with too many DEFLATE blocks that have BFINAL set; expected at most {_FINAL_BLOCKS} "
                f"and one for each {_BYTES_PER_FINAL_BLOCK} bytes"
            )
        self._inflater = inflating.new_inflater()

    def _complete(self) -> None:
        inflating = self._inflating
        if inflating.is_taken_over:
            inflating.inflater = self._inflater
        elif not self._is_at_boundary:
            raise _cut_off()


class Decoding:
    """A message that has come, and is too large to be inflated on the event loop at once. It is an `Unfinished`."""

    __slots__ = ("_begun", "_decoder", "_limit", "_payload")

    def __init__(self, decoder: MessageDecoder, payload: Buffer, limit: int, begun: bytes) -> None:
        self._decoder = decoder
        self._payload = payload
        self._limit = limit
        self._begun = [begun] if begun else []  # what has come out; for decode() the last part comes first

    def finish(self) -> bytes:
        """Inflate the rest of the message; return all of it. Once, in any thread.

        Raises:
            ProtocolError: as `PerMessageDeflate.decode`. If it is too large, `decode` gives it in parts.
        """
        payload, self._payload = self._payload, b""
        parts, more = self._decoder.decode_parts(payload, self._limit - sum(map(len, self._begun)), fin=True)
        self._begun += parts
        if more:
            self._begun.reverse()
            raise _too_big(self._limit)
        return b"".join(self._begun)

    def decode(self, data: Buffer, max_length: int, *, fin: bool = False) -> tuple[bytes, bool]:
        """As `MessageDecoder.decode`, without data, for all of it is here."""
        if self._begun:
            begun = self._begun.pop()
            if len(begun) > max_length:
                self._begun.append(begun[max_length:])
            return begun[:max_length], True
        payload, self._payload = self._payload, b""
        return self._decoder.decode(payload, max_length, fin=True)


def _too_big(size: int) -> ProtocolError:
    return ProtocolError(f"message of at least {size:,} bytes after inflating exceeds max_size={size - 1:,}", 1009)


def _invalid(exc: Exception) -> ProtocolError:
    # "Error -3 while decompressing data: invalid distance too far back"
    reason = str(exc).rpartition(": ")[2]
    return ProtocolError(f"message is not valid DEFLATE, RFC 1951: {reason}")


def _cut_off() -> ProtocolError:
    return ProtocolError("message ends within a DEFLATE block, expected it to end after one")
