"""permessage-deflate, RFC 7692: the option `Deflate` with its negotiation, and what was agreed.

`Deflate` is what an application configures. It negotiates for either side: it is a `ClientExtension` and a
`ServerExtension`. What comes out of that is a `PerMessageDeflate`, one for each connection.

The window is what costs memory: a compressor takes some 2**(bits + 2) bytes and an inflater 2**bits, each plus what the
library adds. With context takeover both belong to the connection, from its first message on; without it a connection
has neither.
"""

import re
from dataclasses import dataclass, fields
from typing import Self

from .compressing import Compressing, MessageEncoder
from .deflate_backends import compress_backend, inflate_backend
from .extensions import Parameters
from .frames import Buffer
from .inflating import Decoding, Inflating, MessageDecoder

__all__ = ["Deflate", "PerMessageDeflate"]

_NAME = "permessage-deflate"

# RFC 7692 §7.1.2.1: "a decimal integer value without leading zeroes between 8 to 15, inclusive". int() would take more.
_WINDOW_BITS = re.compile(r"[89]|1[0-5]")

_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_SIZES = ("server_max_window_bits", "client_max_window_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deflate:
    """How to compress messages: permessage-deflate, RFC 7692.

    The first four are negotiated. What a server asks for in `server_*` and a client in `client_*` is what it does
    itself; the other two are what it wants from its peer, which saves memory here.

    Args:
        server_max_window_bits: the server's window is at most ``2**bits`` bytes, 9 to 15; None for no limit but the
            peer's. A server that cannot keep to a client's limit goes without compression.
        client_max_window_bits: the same for the client's. A server's limit holds for the clients that offer to keep
            one; the others use 15.
        server_no_context_takeover: the server compresses each message by itself, and has no window between two.
        client_no_context_takeover: the same for the client.
        level: zlib's level of compression, 0 to 9; None for a fast one of the fastest library that is installed.
        memory_level: 1 to 9, how much memory a compressor takes beyond its window: ``2**(memory_level + 9)`` bytes.
        threshold: shorter messages, in bytes, are not compressed.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is of another type.

    `small`, `balanced` and `best` are three of them to choose from.
    """

    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    level: int | None = None
    memory_level: int = 5
    threshold: int = 64

    def __post_init__(self) -> None:
        # zlib's raw format has no window of 256 bytes, so 8 is only for what a peer sends.
        ranges = {**dict.fromkeys(_SIZES, (9, 15)), "level": (0, 9), "memory_level": (1, 9), "threshold": (0, None)}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in _FLAGS:
                if not isinstance(value, bool):
                    raise TypeError(f"{name} must be a bool, not {value!r}")
                continue
            if value is None and field.default is None:
                continue
            least, most = ranges[name]
            optional = " or None" if field.default is None else ""
            expected = f"an integer of at least {least}" if most is None else f"{least} to {most}{optional}"
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be {expected}, not {value!r}")
            if value < least or (most is not None and value > most):
                raise ValueError(f"{name} must be {expected}, not {value!r}")

    @classmethod
    def small(cls) -> Self:
        """No memory between two messages: neither side takes the context over. Windows of 2 KiB.

        JSON of 1 KiB becomes a third of its size, of 16 KiB a fifth; below 256 bytes none is compressed.
        """
        return cls(
            server_max_window_bits=11,
            client_max_window_bits=11,
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            memory_level=4,
            threshold=256,
        )

    @classmethod
    def balanced(cls) -> Self:
        """Windows of 4 KiB that are kept from message to message, for most of what small messages can gain.

        JSON of 128 bytes becomes a third of its size, of 1 KiB a quarter, of 16 KiB a fifth. A connection that sends
        and receives takes about 50 KiB with zlib, 100 with isal and 180 with zlib-ng alone.
        """
        return cls(server_max_window_bits=12, client_max_window_bits=12)

    @classmethod
    def best(cls) -> Self:
        """Windows of 32 KiB that are kept from message to message, at zlib's level 6: the best ratio, for its price.

        JSON of 128 bytes becomes a quarter of its size, of 1 KiB and more a sixth. A connection that sends and receives
        takes about 240 KiB with zlib and 310 with zlib-ng.
        """
        return cls(server_max_window_bits=15, client_max_window_bits=15, level=6, memory_level=8)

    @property
    def name(self) -> str:
        """The extension's registered name, RFC 7692 §7."""
        return _NAME

    def offers(self) -> list[Parameters]:
        """The one offer of a client.

        RFC 7692 §7.1.
        """
        offer: Parameters = [(name, None) for name in _FLAGS if getattr(self, name)]
        if self.server_max_window_bits is not None:
            offer.append(("server_max_window_bits", str(self.server_max_window_bits)))
        # §7.1.2.2: always, because without it the server has no way to save memory. The value is a hint.
        limit = self.client_max_window_bits
        offer.append(("client_max_window_bits", None if limit is None else str(limit)))
        return [offer]

    def agree(self, parameters: Parameters) -> "PerMessageDeflate":
        """Take a server's answer to `offers`.

        Raises:
            ValueError: RFC 7692 has the client fail the connection over this answer.

        RFC 7692 §7.1.
        """
        # §7.1: "A client MUST _Fail the WebSocket Connection_ if the peer server accepted an extension negotiation
        # offer for this extension with an extension negotiation response meeting any of the following conditions": a
        # parameter "not defined for use in a response", "with an invalid value", "multiple extension parameters with
        # the same name", "The client does not support the configuration that the response represents."
        flags, sizes = _read(parameters)
        if sizes.get("client_max_window_bits", 0) is None:
            raise ValueError("client_max_window_bits has no value; expected 8 to 15")
        # §7.1.1.1: "A server accepts an extension negotiation offer that includes the 'server_no_context_takeover'
        # extension parameter by including [it] in the corresponding extension negotiation response".
        if self.server_no_context_takeover and "server_no_context_takeover" not in flags:
            raise ValueError("server_no_context_takeover is missing, which the option of this name asks for")
        # §7.1.2.1: "by including the 'server_max_window_bits' extension parameter with the same or smaller value as the
        # offer in the corresponding extension negotiation response".
        server_bits = sizes.get("server_max_window_bits")
        limit = self.server_max_window_bits
        if limit is not None and (server_bits is None or server_bits > limit):
            got = "missing" if server_bits is None else server_bits
            raise ValueError(f"server_max_window_bits is {got}; the option server_max_window_bits={limit} is the most")
        return PerMessageDeflate(
            is_client=True,
            server_max_window_bits=server_bits or 15,
            # Ours may be below what the server allows: §7.1.2.2 has it as a hint, which is to be true.
            client_max_window_bits=min(sizes.get("client_max_window_bits") or 15, self.client_max_window_bits or 15),
            server_no_context_takeover="server_no_context_takeover" in flags,
            client_no_context_takeover="client_no_context_takeover" in flags or self.client_no_context_takeover,
            options=self,
        )

    def accept(self, offer: Parameters) -> "tuple[Parameters, PerMessageDeflate] | None":
        """Answer a client's offer, or decline it.

        RFC 7692 §7.1.
        """
        # §7.1: "A server MUST decline an extension negotiation offer for this extension if any of the following
        # conditions are met": a parameter "not defined for use in an offer", "with an invalid value", "multiple
        # extension parameters with the same name", "The server doesn't support the offered configuration."
        try:
            flags, sizes = _read(offer)
        except ValueError:
            return None
        server_bits = min(sizes.get("server_max_window_bits") or 15, self.server_max_window_bits or 15)
        if server_bits == 8:
            # "A server declines an extension negotiation offer with this parameter if the server doesn't support it."
            return None
        answer: Parameters = []
        # §7.1.1.1: one that is offered must be in the answer, and the server "MAY include" it if it is not.
        # §7.1.1.2: of the client's, "the server may either ignore the parameter or use the parameter to avoid taking
        # over the LZ77 sliding window unnecessarily".
        for name in _FLAGS:
            if name in flags or getattr(self, name):
                answer.append((name, None))
        # §7.1.2.1: the same as for server_no_context_takeover.
        if "server_max_window_bits" in sizes or self.server_max_window_bits is not None:
            answer.append(("server_max_window_bits", str(server_bits)))
        # §7.1.2.2: "If a received extension negotiation offer doesn't have the 'client_max_window_bits' extension
        # parameter, the corresponding extension negotiation response to the offer MUST NOT include the
        # 'client_max_window_bits' extension parameter." Firefox is such a client; what it saves us is not worth losing
        # the compression for.
        client_bits = 15
        if "client_max_window_bits" in sizes:
            hint = sizes["client_max_window_bits"]
            client_bits = min(hint or 15, self.client_max_window_bits or 15)
            if hint is not None or self.client_max_window_bits is not None:
                answer.append(("client_max_window_bits", str(client_bits)))
        return answer, PerMessageDeflate(
            is_client=False,
            server_max_window_bits=server_bits,
            client_max_window_bits=client_bits,
            server_no_context_takeover=_FLAGS[0] in flags or self.server_no_context_takeover,
            client_no_context_takeover=_FLAGS[1] in flags or self.client_no_context_takeover,
            options=self,
        )


class PerMessageDeflate:
    """What was agreed for one connection: its messages are compressed and inflated here. It is an `Extension`.

    Made by `Deflate.agree` and `Deflate.accept`. The two directions share nothing; one thread at a time uses each.

    Args:
        is_client: which side of the connection this is.
        server_max_window_bits: what was agreed, 15 if nothing was.
        client_max_window_bits: what was agreed, 15 if nothing was.
        server_no_context_takeover: what was agreed.
        client_no_context_takeover: what was agreed.
        options: for level, memory_level and threshold.

    Attributes:
        name: "permessage-deflate".
        rsv: RSV1.
        threshold: the option.
        can_compress: False if the peer wants a window of 256 bytes, which zlib does not have: nothing is compressed.
        inline_limit: bytes that are compressed in about a millisecond; more belong into a worker thread.

    RFC 7692 §7.2.
    """

    name: str = _NAME
    # RFC 7692 §6: "the 'Per-Message Compressed' bit, which is the RSV1 bit".
    rsv: int = 0x40

    __slots__ = ("_compressing", "_inflating", "can_compress", "inline_limit", "threshold")

    def __init__(
        self,
        *,
        is_client: bool,
        server_max_window_bits: int = 15,
        client_max_window_bits: int = 15,
        server_no_context_takeover: bool = False,
        client_no_context_takeover: bool = False,
        options: "Deflate | None" = None,
    ) -> None:
        options = options or Deflate()
        own_bits, own_single = client_max_window_bits, client_no_context_takeover
        peer_bits, peer_single = server_max_window_bits, server_no_context_takeover
        if not is_client:
            own_bits, own_single, peer_bits, peer_single = peer_bits, peer_single, own_bits, own_single
        level = options.level
        backend = compress_backend(level)
        self.threshold: int = options.threshold
        self.can_compress: bool = own_bits > 8
        self.inline_limit: int = backend.slow_limit if level is not None and level > 3 else backend.fast_limit
        self._compressing = Compressing(
            backend, own_bits, is_taken_over=not own_single, level=level, memory_level=options.memory_level
        )
        self._inflating = Inflating(inflate_backend(), peer_bits, is_taken_over=not peer_single)

    def encode(self, opcode: int, payload: Buffer, wanted: bool | None = None) -> bytes | None:
        """Compress a message, unless it is below the threshold or would become no shorter, or as it is wanted."""
        if not self.can_compress or wanted is False or (wanted is None and len(payload) < self.threshold):
            return None
        compressed = self._compressing.compress(payload)
        if len(compressed) >= len(payload) and self._compressing.pool is not None and not wanted:
            # RFC 7692 §6 leaves it to the sender which messages to compress. Without context takeover none refers to
            # this one.
            return None
        return compressed

    def compress(self, payload: Buffer) -> bytes:
        """Compress a message, whatever its size. With context takeover it must be sent.

        The caller asks `can_compress` first. After an exception the next message begins with an empty window.

        RFC 7692 §7.2.1.
        """
        return self._compressing.compress(payload)

    def encoder(self, opcode: int, wanted: bool | None = None) -> MessageEncoder | None:
        """Begin a message that is compressed in parts, unless it cannot or need not be: `threshold` does not apply.

        With context takeover no other message is compressed until it has ended, and one that is given up ends the
        connection.
        """
        return MessageEncoder(self._compressing) if self.can_compress and wanted is not False else None

    def decode(self, payload: Buffer, max_size: int | None) -> bytes:
        """Inflate a message.

        Raises:
            ProtocolError: it is not DEFLATE (1002), or inflates to more than max_size bytes (1009).

        RFC 7692 §7.2.2.
        """
        decoded = self._inflating.start(payload, max_size)
        return decoded if isinstance(decoded, bytes) else decoded.finish()

    def start_decode(self, payload: Buffer, max_size: int | None) -> bytes | Decoding:
        """Inflate a message, or begin to if it is large; `Decoding.finish` does the rest, in a worker thread.

        The payload must stay as it is until then, and no other message be inflated.

        Raises:
            ProtocolError: as `decode`.
        """
        return self._inflating.start(payload, max_size)

    def decoder(self) -> MessageDecoder:
        """Begin a message that is inflated in parts. No other message is inflated until it has ended."""
        return MessageDecoder(self._inflating)

    def rest(self) -> None:
        """Give the compressor back while the connection is idle: the next message begins with an empty window.

        That is the sender's right, and nothing the peer notices.
        """
        self._compressing.compressor = None

    def release(self) -> None:
        """Give compressor and inflater back: the connection has ended."""
        self._compressing.compressor = None
        self._inflating.inflater = None


def _read(parameters: Parameters) -> tuple[set[str], dict[str, int | None]]:
    """The parameters of an offer or an answer: the flags, and the window bits, of which the client's may be None.

    Raises:
        ValueError: one is unknown, repeated, or has a value that it must not have.
    """
    flags: set[str] = set()
    sizes: dict[str, int | None] = {}
    for name, value in parameters:
        if name in flags or name in sizes:
            raise ValueError(f"{name} comes twice")
        if name in _FLAGS:
            # §7.1.1.1, §7.1.1.2: "This extension parameter has no value."
            if value is not None:
                raise ValueError(f"{name} has a value; expected none")
            flags.add(name)
        elif name in _SIZES:
            if value is None and name == "client_max_window_bits":
                sizes[name] = None
            elif value is None or not _WINDOW_BITS.fullmatch(value):
                got = "no value" if value is None else f"the value {value[:20]}"
                raise ValueError(f"{name} has {got}; expected 8 to 15")
            else:
                sizes[name] = int(value)
        else:
            raise ValueError(f"{name[:40]} is no parameter of {_NAME}")
    return flags, sizes
