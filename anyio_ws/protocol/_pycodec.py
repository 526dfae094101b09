"""The frame codec of RFC 6455 §5 in Python: bytes to messages, and back. ``_codec.c`` is the same in C.

Theory of operation. ``Decoder.feed`` takes whatever the socket brought and decodes every frame in it. There are three
places where bytes can be:

- *In the chunk.* Unfragmented messages that are in it as a whole, nearly all traffic, are decoded by the loop in
  ``feed`` without leaving it. ``_short`` and ``_medium`` are the largest payloads that the loop takes; while a message
  is being assembled they are -1, which sends every frame to ``_take_frame``. That function knows all the rules.
- *In the message.* The payload of any other data frame is appended to ``_message``, unmasked there and, if it is text,
  validated as far as it has come. This is one buffer however many fragments there are: a fragment of one byte costs
  a byte and an empty one nothing. It grows with what arrives, never with what a header announces. During a large
  payload ``get_buffer`` lends the free end of it to the socket, and ``filled`` says how much has arrived. Who cannot
  wait for the end of a message takes it in parts, with ``take``.
- *Held back.* The rest of a chunk stays in ``_held``, from ``_offset`` on, because the caller has no room for more
  messages (``pending``), or because it is the beginning of a header or of a control frame, at most 130 bytes. A caller
  who takes the messages of a chunk one by one moves the offset, not the bytes.

Rules of this file:

- A violation is an event in order, not an exception: the messages before it are returned, then ``error`` is set, and
  nothing after it is decoded. It is noticed as soon as the bytes that prove it are there.
- How the bytes were cut into chunks decides when something is noticed, never what.
- No function keeps a reference to the caller's buffer, nor any view of ``_message`` but the one it lent.
"""

import os
import sys
from codecs import utf_8_decode
from collections.abc import Callable
from typing import TypeAlias

from .exceptions import ProtocolError
from .frame_rules import MESSAGE_OVERHEAD, bad_length, check_head, longest_transformed, not_utf8, too_big

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What payloads and chunks may come in (``collections.abc.Buffer`` is not in Python 3.11)."""

# Plain ints: comparing with a member of an IntEnum takes several times as long.
_CONTINUATION = 0x0
_TEXT = 0x1
_BINARY = 0x2
_CLOSE = 0x8
_FIN = 0x80
_RSV = 0x70
_WHOLE_TEXT = 0x81
_WHOLE_BINARY = 0x82

# Bytes from which on masking every fourth byte with a table is faster than masking one large int. Measured on CPython
# 3.11 to 3.13: equal at 512 to 768 bytes; at 1 KiB the table takes 70 to 90 % of the time, at 64 KiB less than half.
_TABLE_FROM = 512

# Bytes left of a payload from which on get_buffer lends memory. Below that, a read into the caller's buffer is as good,
# and may bring the next frames too.
_LEND_FROM = 16 * 1024

# Bytes reserved before anything has arrived. It is what one read usually brings at most (asyncio's and trio's streams
# ask for 64 KiB too), so that a large message does not begin with small reads.
_FIRST_RESERVE = 64 * 1024

_from_bytes = int.from_bytes

_EVERY_BYTE = _from_bytes(bytes(range(256)))

# _XOR[a][b] == a ^ b, in the form that bytes.translate takes.
_XOR = [(_EVERY_BYTE ^ _from_bytes(bytes((byte,)) * 256)).to_bytes(256) for byte in range(256)]


# Encoding


def encode_header(opcode: int, length: int, key: bytes | None = None, fin: bool = True, /) -> bytes:
    """Encode everything of a frame that precedes its payload.

    This is for payloads so large that they are better sent from where they are than copied behind their header.

    Args:
        opcode: the opcode; RSV bits that an extension defines may be added to it.
        length: bytes of payload.
        key: the masking key, 4 bytes, which becomes part of the header; None leaves the frame unmasked.
        fin: whether this is the last fragment of its message.

    RFC 6455 §5.2.
    """
    first = opcode | _FIN if fin else opcode
    mask_bit = 0 if key is None else 0x80
    # "Note that in all cases, the minimal number of bytes MUST be used to encode the length" (§5.2)
    if length < 126:
        header = (first << 8 | mask_bit | length).to_bytes(2)
    elif length < 0x10000:
        header = (first << 24 | (mask_bit | 126) << 16 | length).to_bytes(4)
    else:
        header = (first << 72 | (mask_bit | 127) << 64 | length).to_bytes(10)
    return header if key is None else header + key


def encode_frame(opcode: int, payload: str | Buffer, key: bytes | None = None, fin: bool = True, /) -> bytes:
    """Encode a frame.

    Whether the frame is legal is not checked here: that is for the state machine to know, and tests need illegal ones.

    Args:
        opcode: the opcode; RSV bits that an extension defines may be added to it.
        payload: bytes, or str to be encoded as UTF-8.
        key: the masking key, 4 bytes; None leaves the frame unmasked.
        fin: whether this is the last fragment of its message.

    Raises:
        UnicodeEncodeError: the str has a lone surrogate.

    RFC 6455 §5.2, §5.3.
    """
    if type(payload) is not bytes:
        payload = payload.encode() if isinstance(payload, str) else bytes(payload)
    length = len(payload)
    if length >= 126:
        header = encode_header(opcode, length, key, fin)
        return header + (payload if key is None else apply_mask(payload, key))
    # A small frame: the same without the calls, which would take as long as the rest.
    first = opcode | _FIN if fin else opcode
    if key is None:
        return (first << 8 | length).to_bytes(2) + payload
    mask = (key * ((length + 3) >> 2))[:length]
    masked = (_from_bytes(payload) ^ _from_bytes(mask)).to_bytes(length)
    return (first << 8 | 0x80 | length).to_bytes(2) + key + masked


def apply_mask(data: Buffer, key: bytes, /) -> bytes:
    """Mask a payload, or unmask it.

    Args:
        data: the payload.
        key: the masking key, 4 bytes.

    Returns:
        Each byte of data XORed with the byte of the key at its position modulo 4.

    RFC 6455 §5.3.
    """
    if type(data) is not bytes:
        data = bytes(data)
    length = len(data)
    if length < _TABLE_FROM:
        return (_from_bytes(data) ^ _from_bytes((key * ((length + 3) >> 2))[:length])).to_bytes(length)
    masked = bytearray(data)
    _mask_part(masked, 0, length, key)
    return bytes(masked)


def _mask_part(buffer: bytearray, start: int, stop: int, key: bytes) -> None:
    """Mask buffer[start:stop] in place; key[0] is for buffer[start]."""
    if stop - start < _TABLE_FROM:
        buffer[start:stop] = apply_mask(buffer[start:stop], key)
        return
    for first, byte in enumerate(key, start):
        buffer[first:stop:4] = buffer[first:stop:4].translate(_XOR[byte])


class MaskingKeys:
    """The masking keys of one client connection.

    "The masking key needs to be unpredictable; thus, the masking key MUST be derived from a strong source of entropy"
    (RFC 6455 §5.3). They come from the operating system, 1024 at a time, because asking it for each frame takes longer
    than encoding the frame.
    """

    __slots__ = ("_offset", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._offset = 0

    def next(self) -> bytes:
        """Return a key that has not been used, 4 bytes."""
        offset = self._offset
        if offset == len(self._pool):
            self._pool = os.urandom(4096)
            offset = 0
        self._offset = offset + 4
        return self._pool[offset : offset + 4]

    def encode_frame(self, opcode: int, payload: str | Buffer, fin: bool = True, /) -> bytes:
        """Encode a frame as the function does, masked with the next key."""
        return encode_frame(opcode, payload, self.next(), fin)


# Decoding


class Decoder:
    """The receiving half of a connection: bytes to messages.

    Text messages come out as str and binary ones as bytes, fragmented or not. Control frames are reported at their
    place between them. Nothing that follows a Close frame or a violation is decoded.

    Args:
        is_client: whether the frames come from a server, which must not mask them, or from a client, which must.
        max_size: bytes of payload that a message may have; None means no limit.
        on_control: called with the opcode and the payload of each control frame. It must neither raise nor call the
            decoder.
        on_error: called with what `error` was set to, by the same rules.
        on_too_big: called, by the same rules, with the error for a message that is going to exceed max_size. Decoding
            stops before the frame that says so, as if there was no room. Without this, it is a violation.
        rsv: the RSV bits that may be set in the first frame of a message, for `transform`.
        transform: called with the opcode and these bits, and the payload, of a message that has any; it returns the
            payload to go on with, or raises ProtocolError. None takes the message away, and decoding stops as if there
            was no room. It must not call the decoder.
        scratch: memory for what `get_buffer` has no better place for; decoders that are never filled at the same time
            may share it.

    Attributes:
        room: what the messages of the latest call have left of its `room`.
        pending: whether something was held back because the caller had no room. ``feed(b"", room)`` goes on with it.
        error: the first violation of the protocol or of max_size, or None.
        closed: whether a Close frame was decoded.
        fed: bytes that have been fed.
        messages: those that have been returned.
        max_size: may be set anew for the message that has begun, or the next one; with its end it is what it was.
        begun: opcode and RSV bits of the message that has begun and not ended; 0 if there is none.
        fragments: data frames that did not end their message.

    RFC 6455 §5, §6.2, §8.1.
    """

    __slots__ = (
        "_checked",
        "_ended",
        "_fin",
        "_held",
        "_in_payload",
        "_is_client",
        "_key",
        "_left",
        "_max_size",
        "_medium",
        "_message",
        "_offset",
        "_on_control",
        "_on_error",
        "_on_too_big",
        "_rsv",
        "_scratch",
        "_short",
        "_size",
        "_taken",
        "_transform",
        "_usual_max_size",
        "_view",
        "begun",
        "closed",
        "error",
        "fed",
        "fragments",
        "messages",
        "pending",
        "room",
    )

    def __init__(
        self,
        *,
        is_client: bool,
        max_size: int | None,
        on_control: Callable[[int, bytes], None],
        on_error: Callable[[ProtocolError], None] | None = None,
        on_too_big: Callable[[ProtocolError], None] | None = None,
        rsv: int = 0,
        transform: Callable[[int, bytes], bytes | None] | None = None,
        scratch: memoryview | None = None,
    ) -> None:
        self._is_client = is_client
        self._max_size = self._usual_max_size = sys.maxsize if max_size is None else max_size
        self._on_control = on_control
        self._on_error = on_error
        self._on_too_big = on_too_big
        self._rsv = rsv
        self._transform = transform
        self._scratch = scratch

        # The outcome.
        self.room: int = sys.maxsize
        self.pending: bool = False
        self.error: ProtocolError | None = None
        self.closed: bool = False
        self.fed: int = 0
        self.messages: int = 0
        self.fragments: int = 0
        self._ended = False

        # Not decoded yet: _held[_offset:].
        self._held: bytes = b""
        self._offset: int = 0

        # The message that has begun and not ended. Of _message, [:_checked] is known to be UTF-8, [:_size] has arrived,
        # and the rest is reserved and perhaps lent to the socket. _taken bytes that came before are not there any more.
        self.begun: int = 0
        self._message = bytearray()
        self._size = 0
        self._checked = 0
        self._taken = 0
        self._view: memoryview | None = None

        # The frame whose payload is arriving. If nothing is left of it, it ends as soon as there is room for a message.
        self._in_payload = False
        self._left = 0
        self._fin = False
        self._key = b""

        # The largest payloads, of those with a length in 7 and in 16 bits, that are decoded without _take_frame.
        self._short = self._medium = -1
        self._reset_message()

    def feed(self, data: Buffer, room: int = sys.maxsize, /) -> list[str | bytes]:
        """Decode what has arrived.

        Args:
            data: any number of bytes; none, to go on with what is pending.
            room: once the messages of this call have reached this many bytes, each counting its len() and
                MESSAGE_OVERHEAD, nothing more is decoded. If it is not positive, data is only kept.

        Returns:
            The messages that were completed.
        """
        messages: list[str | bytes] = []
        self.room = room
        self.fed += len(data)
        if self._ended:
            return messages
        if type(data) is not bytes:
            data = bytes(data)
        pos = 0
        if self._held:
            if data:
                data = self._held[self._offset :] + data
            else:
                data = self._held
                pos = self._offset
        if self._in_payload and room > 0:
            pos = self._take_payload(data, pos, messages)
            room = self.room

        # This loop is most of what a small message costs. That is why it repeats apply_mask, and why it asks one
        # question about three rules: a wrong mask bit makes `length` larger than 127, which is more than `short` is.
        end = len(data)
        last = end - 1
        short = self._short
        medium = self._medium
        masked = not self._is_client
        mask_bit, header_size = (0x80, 6) if masked else (0, 2)
        while pos < last and room > 0:
            first = data[pos]
            length = data[pos + 1] ^ mask_bit
            if length <= short:
                start = pos + header_size
            elif length == 126 and pos + 4 <= end and 125 < (length := data[pos + 2] << 8 | data[pos + 3]) <= medium:
                start = pos + header_size + 2
            else:
                start = end + 1  # which makes it a case for _take_frame
            stop = start + length
            if stop > end or (first != _WHOLE_BINARY and first != _WHOLE_TEXT):
                start = pos
                self.room = room
                pos = self._take_frame(data, pos, messages)
                room = self.room
                if pos == start:
                    break
                short = self._short
                medium = self._medium
                continue
            payload = data[start:stop]
            if masked:
                key = data[start - 4 : start]
                if length < _TABLE_FROM:
                    mask = (key * ((length + 3) >> 2))[:length]
                    payload = (_from_bytes(payload) ^ _from_bytes(mask)).to_bytes(length)
                else:
                    payload = apply_mask(payload, key)
            if first == _WHOLE_BINARY:
                messages.append(payload)
                room -= length + MESSAGE_OVERHEAD
            else:
                try:
                    text = payload.decode()
                except UnicodeDecodeError as exc:
                    self._fail(not_utf8("text message", exc))
                    pos = end
                    break
                messages.append(text)
                room -= len(text) + MESSAGE_OVERHEAD
            pos = stop

        self.messages += len(messages)
        self.room = room
        if pos == end:
            self._held = b""
        elif room > 0:
            self._held = data[pos:]
            self._offset = 0
        else:
            self._held = data
            self._offset = pos
        self.pending = room <= 0 and (pos < end or (self._in_payload and not self._left))
        return messages

    def get_buffer(self) -> memoryview | None:
        """Return where the next bytes are to be read: for a large payload, the memory of the message itself.

        Returns:
            Memory to be filled from its beginning and reported with ``filled``: lent by the message, or else the
            scratch; None if there is none, which leaves ``feed``. It is valid until the next call of either; slices of
            what is lent must be gone by then.
        """
        if not self._in_payload or self._left < _LEND_FROM or self.pending:
            return self._scratch
        if self._view is None:
            size = self._size
            if len(self._message) - size < _LEND_FROM:
                # Twice what has arrived, whatever the header announced.
                reserve = min(size + self._left, max(2 * size, _FIRST_RESERVE))
                self._message += bytes(reserve - len(self._message))
            self._view = memoryview(self._message)[size:]
        return self._view

    def filled(self, count: int, room: int = sys.maxsize, /) -> list[str | bytes]:
        """Decode what has arrived in the memory that ``get_buffer`` returned.

        Args:
            count: bytes that have been written to it.
            room: as for ``feed``.

        Returns:
            The messages that were completed.
        """
        if self._view is None:
            assert self._scratch is not None
            return self.feed(self._scratch[:count], room)
        self._release_view()
        self.fed += count
        if self._key:
            _mask_part(self._message, self._size, self._size + count, self._key)
        self._arrived(count)
        return self.feed(b"", room)

    def _take_frame(self, data: bytes, pos: int, messages: list[str | bytes]) -> int:
        """Decode the frame at pos, whatever it is, and of a data frame as much as is there.

        Returns:
            Where to go on: pos itself if the header, or a control frame, is incomplete; the end if nothing more is to
            be decoded.
        """
        end = len(data)
        first = data[pos]
        second = data[pos + 1]
        opcode = first & 0xF
        rsv = first & self._rsv if opcode in (_TEXT, _BINARY) else 0
        error = check_head(first ^ rsv, second, self._is_client, self.begun != 0)
        if error is not None:
            self._fail(error)
            return end

        start = pos + 2
        length = second & 0x7F
        if length >= 126:
            width = 2 if length == 126 else 8
            start += width
            if start > end:
                return pos
            length = _from_bytes(data[start - width : start])
            if length < (126 if width == 2 else 0x10000) or length >> 63:
                self._fail(bad_length(length, 8 * width))
                return end

        fin = first >= _FIN
        size = self._taken + self._size + length
        if size > self._max_size and opcode < _CLOSE:
            is_transformed = rsv or self.begun & _RSV
            if not is_transformed or size > longest_transformed(self._max_size):
                error = too_big(size, self._max_size, fin)
                if self._on_too_big is None:
                    self._fail(error)
                    return end
                self.room = 0
                self._on_too_big(error)
                return pos

        key = b""
        if not self._is_client:
            start += 4
            if start > end:
                return pos
            key = data[start - 4 : start]

        if opcode >= _CLOSE:
            stop = start + length
            if stop > end:
                return pos
            payload = data[start:stop]
            if opcode == _CLOSE:
                # "After receiving a control frame indicating the connection should be closed, a peer discards any
                # further data received." (§1.4)
                self.closed = True
                self._end()
                stop = end
            self._on_control(opcode, apply_mask(payload, key) if key else payload)
            return stop

        if opcode != _CONTINUATION:
            self.begun = opcode | rsv
            self._short = self._medium = -1
        if not fin:
            self.fragments += 1
        self._in_payload = True
        self._left = length
        self._fin = fin
        self._key = key
        return self._take_payload(data, start, messages)

    def _take_payload(self, data: bytes, pos: int, messages: list[str | bytes]) -> int:
        """Move what data has of the current payload to the message, and end the frame and the message if complete.

        Returns:
            Where to go on, as for _take_frame.
        """
        self._release_view()
        stop = min(pos + self._left, len(data))
        if pos < stop:
            del self._message[self._size :]
            key = self._key
            self._message += apply_mask(data[pos:stop], key) if key else memoryview(data)[pos:stop]
            self._arrived(stop - pos)
        if self._in_payload and not self._left:
            self._in_payload = False
            if self._fin:
                self._end_message(messages)
        return len(data) if self._ended else stop

    def _arrived(self, count: int) -> None:
        """Count bytes that have been put behind what had arrived of the message, and validate them if it is text."""
        self._size += count
        self._left -= count
        if self._left and self._key:
            turn = count & 3
            self._key = self._key[turn:] + self._key[:turn]
        # "When an endpoint is to interpret a byte stream as UTF-8 but finds that the byte stream is not, in fact,
        # a valid UTF-8 stream, that endpoint MUST _Fail the WebSocket Connection_." (§8.1) What is decoded here is
        # dropped: in pieces, strings can take much more memory than the message. The end is left to _end_message.
        if self.begun == _TEXT and (self._left or not self._fin):
            checked = self._checked
            try:
                self._checked = checked + utf_8_decode(self._message[checked : self._size])[1]
            except UnicodeDecodeError as exc:
                self._fail(not_utf8("text message", exc, self._taken + checked))

    def take(self) -> str | bytes:
        """Take what has arrived of the message that has begun and not ended; what is left of it comes out at its end.

        Returns:
            Of a text as many whole characters as there are; of a message with RSV bits its payload as it came.
        """
        self._release_view()
        part = bytes(self._message[: self._checked if self.begun == _TEXT else self._size])
        del self._message[self._size :], self._message[: len(part)]
        self._size -= len(part)
        self._taken += len(part)
        self._checked = 0
        return part.decode() if self.begun == _TEXT else part

    def _end_message(self, messages: list[str | bytes]) -> None:
        payload: bytes | bytearray = self._message
        begun, taken = self.begun, self._taken
        self._reset_message()
        if begun & _RSV:
            assert self._transform is not None
            try:
                transformed = self._transform(begun, bytes(payload))
            except ProtocolError as exc:
                self._fail(exc)
                return
            if transformed is None:
                self.room = 0
                return
            payload, taken = transformed, 0
        message: str | bytes
        if begun & _TEXT:
            try:
                message = payload.decode()
            except UnicodeDecodeError as exc:
                self._fail(not_utf8("text message", exc, taken))
                return
        else:
            message = bytes(payload)
        messages.append(message)
        self.room -= len(message) + MESSAGE_OVERHEAD

    @property
    def max_size(self) -> int:
        """Bytes that the message which has begun, or the next one, may have."""
        return self._max_size

    @max_size.setter
    def max_size(self, size: int) -> None:
        self._max_size = size
        self._short = self._medium = -1

    def _reset_message(self) -> None:
        self.begun = 0
        self._message = bytearray()
        self._size = 0
        self._checked = 0
        self._taken = 0
        self._max_size = self._usual_max_size
        self._short = min(125, self._max_size)
        self._medium = min(0xFFFF, self._max_size)

    def _release_view(self) -> None:
        """Take the lent memory back: a bytearray with a view cannot grow."""
        if self._view is not None:
            self._view.release()
            self._view = None

    def _fail(self, error: ProtocolError) -> None:
        self.error = error
        self._end()
        if self._on_error is not None:
            self._on_error(error)

    def _end(self) -> None:
        """Decode nothing more, and let go of what there is."""
        self._ended = True
        self._in_payload = False
        self._held = b""
        self.pending = False
        self._reset_message()
