"""One endpoint after the opening handshake: RFC 6455 §5.4 to §5.5 and §7, without I/O.

Rules of this file: nothing here suspends, reads a clock or touches a socket. Bytes that arrived go in through `feed`;
finished messages come out of it, in order, and what control frames said is left in attributes. Methods that speak to
the peer return the bytes to send; the caller sends all of them, in the order of the calls.

The closing handshake, as the pair (we sent a Close, they sent one):

    open ──send_close──> closing ──their Close──> closed      we began: their data is discarded meanwhile (§1.4)
    open ──their Close──> answer due ──answer──> closed       they began: after the answer we say nothing (§5.5.1)

A violation is an event in order, like a Close: `error` is set, what came before it is still delivered, nothing after
it is read. The caller then fails the connection (§7.1.7) with `send_close(error.close_code, …)` when it sees fit.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .exceptions import ProtocolError
from .extensions import Extension, PartEncoder
from .frames import (
    Buffer,
    Decoder,
    MaskingKeys,
    Opcode,
    check_close_code,
    encode_close,
    encode_frame,
    parse_close,
)
from .restoring import Deferred, Restoring

COMPRESS, PLAIN = 0x100, 0x200
"""What may be added to the opcode of a message for `transform`: that it is to be transformed, or that it is not."""

MAX_PINGS = 1000
"""Pings of one chunk that are all answered. A chunk of 128 KiB may have sixty times as many."""


class Close(NamedTuple):
    """A Close frame: its code (1005 if it carried none) and reason, RFC 6455 §5.5.1."""

    code: int
    reason: str


class Connection:
    """The state of one endpoint.

    Args:
        is_client: which side we are: a client masks and expects unmasked frames, a server the reverse (§5.1).
        max_size: the largest message accepted, in bytes; None for no limit.
        scratch: memory to read into, for `get_buffer`; connections that are never filled at the same time may share it.
        extensions: those agreed, in the order in which they apply to a message that is sent.
        holds: a message over max_size is no error yet, but waits for the caller to say what becomes of it: see
            `too_big`.

    Attributes:
        get_buffer: returns the memory to read into: for a large payload that of the message itself, else the scratch
            (None without one, which leaves `feed`). What was read is reported with `filled`.
        decoder: what `feed` and `filled` decode with. A caller that discards what comes after our Close by itself may
            use it directly.
        encode: called with an opcode and a payload, it returns the frame, masked if we are the client (§5.3).
        inline_limit: bytes of a message from which on `transform` takes so long that it belongs into a worker thread.
        deferred: a message whose decoding does, to be finished by the caller, who sets this to None. Until the caller
            goes on, nothing is decoded.
        last_part: of the payload of a message that is restored in parts (see `in_parts`), by the same rules.
        news: something below has changed since the caller last set this to False.
        pings: payloads of the Pings that have no answer yet. "If an endpoint receives a Ping frame and has not yet sent
            Pong frame(s) in response to previous Ping frame(s), the endpoint MAY elect to send a Pong frame for only
            the most recently processed Ping frame" (§5.5.3): a caller who cannot answer them keeps the last one.
        pongs: payloads of the Pongs received; the caller empties the list.
        close_received: the peer's Close.
        close_sent: ours.
        error: the peer broke the protocol.
        too_big: a message over max_size waits, as the error that it would be. Decoding goes on when the caller has set
            this to None and `decoder.max_size`, which is for this one message, to what it may have.
        pings_received, pongs_received: counters.
    """

    __slots__ = (
        "_encode_frame",
        "_is_in_parts",
        "_keys",
        "_max_size",
        "close_received",
        "close_sent",
        "decoder",
        "deferred",
        "encode",
        "error",
        "extensions",
        "get_buffer",
        "inline_limit",
        "last_part",
        "news",
        "pings",
        "pings_received",
        "pongs",
        "pongs_received",
        "too_big",
    )

    def __init__(
        self,
        *,
        is_client: bool,
        max_size: int | None = 2**20,
        scratch: memoryview | None = None,
        extensions: Sequence[Extension] = (),
        holds: bool = False,
    ) -> None:
        rsv = 0
        for extension in extensions:
            rsv |= extension.rsv
        self.decoder: Decoder = Decoder(
            is_client=is_client,
            max_size=max_size,
            on_control=self._on_control,
            on_error=self._on_error,
            on_too_big=self._on_too_big if holds else None,
            rsv=rsv,
            transform=self._restore if extensions else None,
            scratch=scratch,
        )
        # The functions of the codec themselves: they are called for every message.
        self.get_buffer: Callable[[], memoryview | None] = self.decoder.get_buffer
        self._keys: MaskingKeys | None = MaskingKeys() if is_client else None
        self._encode_frame: Callable[[int, str | Buffer], bytes] = (
            self._keys.encode_frame if self._keys else encode_frame
        )
        self.encode: Callable[[int, str | Buffer], bytes] = self._encode if extensions else self._encode_frame
        self.extensions: tuple[Extension, ...] = tuple(extensions)
        self.inline_limit: int = min((extension.inline_limit for extension in extensions), default=sys.maxsize)
        self.deferred: Deferred | None = None
        self.last_part: bytes | None = None
        self._is_in_parts = False  # the message that has begun is restored in parts
        self._max_size = max_size
        self.news: bool = False
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.pings_received: int = 0
        self.pongs_received: int = 0
        self.close_received: Close | None = None
        self.close_sent: Close | None = None
        self.error: ProtocolError | None = None
        self.too_big: ProtocolError | None = None

    # Receiving

    @property
    def pending(self) -> bool:
        """Undecoded bytes are held back for lack of room; `feed(b"", room)` goes on with them."""
        return self.decoder.pending

    @property
    def fragments_received(self) -> int:
        """Data frames that did not end their message."""
        return self.decoder.fragments

    def feed(self, data: Buffer, room: int = sys.maxsize) -> list[str | bytes]:
        """Take bytes that arrived and return the messages they finish: str for text, bytes for binary.

        Args:
            data: the bytes; they are copied if they are needed later.
            room: decoding stops when the messages returned come to this many bytes (each counts its length and
                `MESSAGE_OVERHEAD`); the rest stays in the decoder.
        """
        return self._received(self.decoder.feed(data, room))

    def filled(self, count: int, room: int = sys.maxsize) -> list[str | bytes]:
        """The same for `count` bytes that were read into what `get_buffer` returned."""
        return self._received(self.decoder.filled(count, room))

    def _received(self, messages: list[str | bytes]) -> list[str | bytes]:
        if self.close_sent is not None:
            # "After sending a control frame indicating the connection should be closed, a peer does not send any
            # further data; after receiving a control frame indicating the connection should be closed, a peer discards
            # any further data received" (§1.4). Whoever has closed does not wait for data either.
            return []
        return messages

    def _on_error(self, error: ProtocolError) -> None:
        self.error = error
        self.news = True

    def _on_too_big(self, error: ProtocolError) -> None:
        self.too_big = error
        self.news = True

    def _on_control(self, opcode: int, payload: bytes) -> None:
        self.news = True
        if opcode == Opcode.PING:
            self.pings_received += 1
            if len(self.pings) < MAX_PINGS:
                self.pings.append(payload)
            else:
                self.pings[-1] = payload
        elif opcode == Opcode.PONG:
            self.pongs_received += 1
            self.pongs.append(payload)
        else:
            try:
                self.close_received = Close(*parse_close(payload))
            except ProtocolError as exc:
                self.error = exc

    def _restore(self, begun: int, payload: bytes) -> bytes | None:
        """Have the extensions undo what they did to a message; None if that takes long."""
        if self.close_sent is not None:
            return b""  # nobody receives it
        if self._is_in_parts:
            self._is_in_parts = False
            self.last_part = payload
            return None
        left = [extension for extension in reversed(self.extensions) if begun & extension.rsv]
        while left:
            restored = left.pop(0).start_decode(payload, self._max_size)
            if not isinstance(restored, bytes):
                self.deferred = Deferred(begun & 0xF, restored, left, self._max_size)
                self.news = True
                return None
            payload = restored
        return payload

    @property
    def takes_parts(self) -> bool:
        """Whether a message has begun that can be received in parts, which several extensions cannot restore."""
        begun = self.decoder.begun
        return begun != 0 and sum(begun & extension.rsv != 0 for extension in self.extensions) < 2

    def in_parts(self) -> Restoring | None:
        """Restore the message that has begun in parts; None if no extension has transformed it.

        The caller feeds what `decoder.take()` returns, and then the `last_part`.
        """
        begun = self.decoder.begun
        for extension in self.extensions:
            if begun & extension.rsv:
                self._is_in_parts = True
                return Restoring(extension.decoder(), is_text=begun & 0xF == Opcode.TEXT)
        return None

    # Sending

    def encoder(self, opcode: int, wanted: bool | None) -> tuple[int, PartEncoder | None]:
        """Begin a message that is sent in parts; return its opcode, with the RSV bit of the extension, and that's part.

        One extension can transform it, the first that does.
        """
        for extension in self.extensions:
            encoder = extension.encoder(opcode, wanted)
            if encoder is not None:
                return opcode | extension.rsv, encoder
        return opcode, None

    def transform(self, opcode: int, payload: Buffer) -> tuple[int, Buffer]:
        """Have the extensions do what they do to a message; return its opcode, with the RSV bits, and its payload.

        Args:
            opcode: plus COMPRESS or PLAIN, if the application has said so.
            payload: the message, which must then be sent, in the order of these calls.
        """
        wanted = True if opcode & COMPRESS else False if opcode & PLAIN else None
        opcode &= 0xF
        for extension in self.extensions:
            encoded = extension.encode(opcode & 0xF, payload, wanted)
            if encoded is not None:
                opcode |= extension.rsv
                payload = encoded
        return opcode, payload

    def _encode(self, opcode: int, payload: str | Buffer) -> bytes:
        if opcode & 0xF < Opcode.CLOSE:
            opcode, payload = self.transform(opcode, payload.encode() if isinstance(payload, str) else payload)
        return self._encode_frame(opcode, payload)

    def encode_part(self, opcode: int, payload: str | Buffer, fin: bool) -> bytes:
        """Return a fragment of a message, the last one or not; all but the first have the opcode 0 (§5.4)."""
        if self._keys is not None:
            return self._keys.encode_frame(opcode, payload, fin)
        return encode_frame(opcode, payload, None, fin)

    def send_close(self, code: int, reason: str = "") -> bytes:
        """Begin the closing handshake (§7.1.2), or fail the connection after an error (§7.1.7).

        Raises:
            ValueError: no endpoint may send this code (§7.4.1).
        """
        check_close_code(code)
        return self._close(code, reason)

    def answer(self) -> bytes:
        """Return the frames that are owed: Pongs, or the answer to a Close."""
        frames = b""
        # "Upon receipt of a Ping frame, an endpoint MUST send a Pong frame in response, unless it already received a
        # Close frame." (§5.5.2)
        if self.close_received is None:
            frames = b"".join([self.encode(Opcode.PONG, payload) for payload in self.pings])
        self.pings.clear()
        if self.close_received is not None and self.close_sent is None:
            # "If an endpoint receives a Close frame and did not previously send a Close frame, the endpoint MUST send a
            # Close frame in response. (When sending a Close frame in response, the endpoint typically echos the status
            # code it received.)" (§5.5.1)
            frames += self._close(self.close_received.code, "")
        return frames

    def _close(self, code: int, reason: str) -> bytes:
        payload = encode_close(code, reason)
        self.close_sent = Close(code, payload[2:].decode())
        return self.encode(Opcode.CLOSE, payload)
