"""Messages that extensions transformed, and that are not restored in one go: in a worker thread, or in parts."""

import codecs

from .extensions import Extension, PartDecoder, Unfinished
from .frame_rules import not_utf8
from .frames import Buffer, Opcode

__all__ = ["Deferred", "Restoring"]


class Deferred:
    """A message that an extension has begun to restore, and that is better finished in a worker thread.

    Attributes:
        opcode: of the message.
    """

    __slots__ = ("_left", "_max_size", "_unfinished", "opcode")

    def __init__(self, opcode: int, unfinished: Unfinished, left: list[Extension], max_size: int | None) -> None:
        self.opcode: int = opcode
        self._unfinished = unfinished
        self._left = left
        self._max_size = max_size

    def finish(self) -> str | bytes:
        """Return the message; called once, in any thread.

        Raises:
            ProtocolError: it is not what the extensions make, or too large, or text that is not UTF-8.
        """
        payload = self._unfinished.finish()
        for extension in self._left:
            decoded = extension.start_decode(payload, self._max_size)
            payload = decoded if isinstance(decoded, bytes) else decoded.finish()
        if self.opcode == Opcode.BINARY:
            return payload
        try:
            return payload.decode()
        except UnicodeDecodeError as exc:
            raise not_utf8("text message", exc) from None

    def in_parts(self) -> "Restoring | None":
        """The message in parts, also if it was found to be too large; None if several extensions have to restore it."""
        if self._left:
            return None
        restoring = Restoring(self._unfinished, is_text=self.opcode == Opcode.TEXT)
        restoring.feed(b"", fin=True)
        return restoring


class Restoring:
    """A message that is restored in parts, in bounded memory, while it arrives or after.

    Args:
        decoder: of the extension.
        is_text: whether the message is text: then the parts are cut between characters.

    Attributes:
        size: bytes that have come and are not restored yet.
        is_text: whether the message is text.
        fin: all of the message has come.
        done: all of it was restored.
    """

    __slots__ = ("_decoder", "_given", "_more", "_received", "_restored", "_text", "done", "fin", "is_text")

    def __init__(self, decoder: PartDecoder, *, is_text: bool) -> None:
        self.is_text: bool = is_text
        self._decoder = decoder
        self._text = codecs.getincrementaldecoder("utf-8")() if is_text else None
        self._received = bytearray()  # not given to the decoder yet
        self._given = 0  # bytes that were, and are not done with
        self._more = False  # the decoder may have more of them
        self._restored = 0  # bytes that have come out
        self.fin: bool = False
        self.done: bool = False

    @property
    def size(self) -> int:
        return len(self._received) + self._given

    @property
    def is_ready(self) -> bool:
        """Something has come that `take` has not seen yet, if only the end."""
        return not self.done and (self._more or bool(self._received) or self.fin)

    def feed(self, data: Buffer, *, fin: bool = False) -> None:
        """Take what came of the message, with fin its end."""
        self._received += data
        self.fin = self.fin or fin

    def take(self, max_length: int) -> str | bytes:
        """Return what can be restored, at most so many bytes; nothing if more has to come, or if all was returned.

        Raises:
            ProtocolError: the payload is not what the extension makes (1002), or text that is not UTF-8 (1007).
        """
        while self.is_ready:
            data = b""
            if not self._more:
                data = bytes(self._received)
                self._received.clear()
                self._given = len(data)
            part, self._more = self._decoder.decode(data, max_length, fin=self.fin and not self._received)
            self._restored += len(part)
            if not self._more:
                self._given = 0
                self.done = self.fin and not self._received
            taken = part if self._text is None else self._decode(self._text, part)
            if taken:
                return taken
        return b"" if self._text is None else ""

    def _decode(self, text: codecs.IncrementalDecoder, part: bytes) -> str:
        start = self._restored - len(part) - len(text.getstate()[0])
        try:
            return text.decode(part, self.done)
        except UnicodeDecodeError as exc:
            raise not_utf8("text message", exc, start) from None
