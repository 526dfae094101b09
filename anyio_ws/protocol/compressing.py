"""The sending half of permessage-deflate, RFC 7692 §7.2.1: messages are compressed, whole or in parts.

Rules and theory of operation

1. Messages are compressed in the order in which they are sent, by one thread at a time.
2. With context takeover the compressor is the connection's own, from its first compressed message on. A message that
   was compressed must be sent: the next one refers to it. A compressor that raised is not used again, and the next
   message begins with an empty window, which is the sender's right at any time.
3. Without it, compressors are shared by all connections of the process, one message at a time. FULL_FLUSH at the end
   of a message leaves nothing to refer to.
"""

from .deflate_backends import FULL_FLUSH, SYNC_FLUSH, Backend, Compressor, CompressorPool, compressor_pool
from .frames import Buffer

__all__ = ["Compressing", "MessageEncoder"]


class Compressing:
    """What a connection compresses with.

    Args:
        backend: the library.
        window_bits: the window is ``2**window_bits`` bytes, 9 to 15.
        is_taken_over: whether the context is taken over from message to message.
        level, memory_level: as for `Deflate`.

    Attributes:
        backend: the same.
        pool: where messages get a compressor without context takeover.
        compressor: with the window that the next message refers to.
    """

    __slots__ = ("_level", "_memory_level", "_window_bits", "backend", "compressor", "pool")

    def __init__(
        self, backend: Backend, window_bits: int, *, is_taken_over: bool, level: int | None, memory_level: int
    ) -> None:
        self.backend: Backend = backend
        self._window_bits = window_bits
        self._level = level
        self._memory_level = memory_level
        self.pool: CompressorPool | None = (
            None if is_taken_over else compressor_pool(backend, level, window_bits, memory_level)
        )
        self.compressor: Compressor | None = None

    def take(self) -> Compressor:
        """Take a compressor for one message."""
        if self.pool is not None:
            return self.pool.take()
        compressor, self.compressor = self.compressor, None
        return compressor or self.backend.new_compressor(self._level, self._window_bits, self._memory_level)

    def give_back(self, compressor: Compressor) -> None:
        """Give it back after the last flush of the message."""
        if self.pool is not None:
            self.pool.give_back(compressor)
        else:
            self.compressor = compressor

    @property
    def last_flush(self) -> int:
        """How a message ends."""
        # "If the 'agreed parameters' contain the 'client_no_context_takeover' extension parameter, the client MUST
        # start compressing each new message with an empty LZ77 sliding window", and so the server.
        return SYNC_FLUSH if self.pool is None else FULL_FLUSH

    def compress(self, payload: Buffer) -> bytes:
        """As `PerMessageDeflate.compress`."""
        compressor = self.take()
        compressed = self.backend.compress(compressor, payload, self.last_flush)
        self.give_back(compressor)
        return _without_tail(compressed)


class MessageEncoder:
    """A message that is compressed in parts, each of which can be sent as a fragment at once.

    RFC 7692 §7.2.1.
    """

    __slots__ = ("_compressing", "_compressor")

    def __init__(self, compressing: Compressing) -> None:
        self._compressing = compressing
        self._compressor = compressing.take()

    def encode(self, chunk: Buffer, *, fin: bool = False) -> bytes:
        """Compress the next part, or with fin the last one; what comes out is the payload of a fragment.

        A part that is empty and not the last one may give nothing.
        """
        compressing = self._compressing
        if not fin:
            # "Note that for non-final fragments, the removal of 0x00 0x00 0xff 0xff MUST NOT be done."
            return compressing.backend.compress(self._compressor, chunk, SYNC_FLUSH)
        compressed = compressing.backend.compress(self._compressor, chunk, compressing.last_flush)
        compressing.give_back(self._compressor)
        return _without_tail(compressed)


def _without_tail(compressed: bytes) -> bytes:
    # "Remove 4 octets (that are 0x00 0x00 0xff 0xff) from the tail end." A library may make nothing of an empty
    # message; §7.2.3.6: 0x00 is one.
    return compressed[:-4] or b"\x00"
