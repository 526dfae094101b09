"""Extensions, RFC 6455 §9: the interface through which `protocol` takes one, and how both sides agree on them.

An extension here is one that transforms whole messages and marks those it has transformed with a bit of its own, as
permessage-deflate does. On each side it comes in two parts:

- what is configured once and negotiates, for any number of connections: `ClientExtension` or `ServerExtension`
- what was agreed for one connection: `Extension`

The header's grammar and its limits are checked before anything here is asked.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from .exceptions import InvalidHandshake
from .frames import Buffer
from .handshake_fields import parse_extensions
from .http import TOKEN
from .http_head import shown

__all__ = [
    "ClientExtension",
    "Extension",
    "Parameters",
    "PartDecoder",
    "PartEncoder",
    "ServerExtension",
    "Unfinished",
    "accept_extensions",
    "agree_on_extensions",
    "check_extensions",
    "format_extensions",
]

Parameters: TypeAlias = list[tuple[str, str | None]]
"""The parameters of an extension in order, each with its value, or with None if it has none. RFC 6455 §9.1."""


class Extension(Protocol):
    """An extension in use on one connection: what it does to the messages.

    RFC 6455 §9.2.
    """

    @property
    def name(self) -> str:
        """Its registered name."""
        ...

    @property
    def rsv(self) -> int:
        """The bit that the first frame of a message has which it transformed, which is 0x40, 0x20 or 0x10."""
        ...

    @property
    def inline_limit(self) -> int:
        """Bytes of a message that are encoded in about a millisecond; a larger one belongs into a worker thread."""
        ...

    def encode(self, opcode: int, payload: Buffer, wanted: bool | None = None) -> bytes | None:
        """Transform a message that is to be sent; None leaves it as it is, without the bit.

        A message that was transformed must be sent, and in the order of these calls.

        Args:
            opcode: 1 for text, 2 for binary.
            payload: the message, which is not kept.
            wanted: whether the application asks for it to be transformed, or not to be, or leaves it to the extension.
        """
        ...

    def start_decode(self, payload: Buffer, max_size: int | None) -> "bytes | Unfinished":
        """Restore a message that came with the bit, or begin to if it takes more than about a millisecond.

        Args:
            payload: what came, which stays as it is until it is finished.
            max_size: the most bytes that may come out, or None.

        Raises:
            ProtocolError: the payload is not what the extension makes (1002), or exceeds max_size (1009).
        """
        ...

    def encoder(self, opcode: int, wanted: bool | None = None) -> "PartEncoder | None":
        """Begin to transform a message that is sent in parts; None leaves it as it is, without the bit.

        No other message is transformed until it has ended.

        Args:
            opcode, wanted: as for `encode`.
        """
        ...

    def decoder(self) -> "PartDecoder":
        """Begin to restore a message that came with the bit, in parts. No other is restored until it has ended."""
        ...

    def rest(self) -> None:
        """The connection has been idle for a while: give back what the next message to be sent can do without."""
        ...

    def release(self) -> None:
        """The connection has ended: give everything back."""
        ...


class PartEncoder(Protocol):
    """Transforms a message that is sent in parts."""

    def encode(self, chunk: Buffer, *, fin: bool = False) -> bytes:
        """Transform the next part, or with fin the last one; what comes out is the payload of a fragment."""
        ...


class PartDecoder(Protocol):
    """Restores a message in parts, in bounded memory."""

    def decode(self, data: Buffer, max_length: int, *, fin: bool = False) -> tuple[bytes, bool]:
        """Restore more of the message.

        Args:
            data: what came, which must stay as it is until it has been restored; ``b""`` to go on with it.
            max_length: the most bytes to return, 1 or more.
            fin: whether this is the last data of the message; once said it holds.

        Returns:
            The bytes, and whether there may be more of this data. If so, only ``b""`` may be given next.

        Raises:
            ProtocolError: the data is not what the extension makes (1002).
        """
        ...


class Unfinished(PartDecoder, Protocol):
    """A message that has come, and whose decoding is better finished in a worker thread, or done in parts."""

    def finish(self) -> bytes:
        """Return the message; called once.

        If it exceeds max_size, `decode` then gives it in parts, from its beginning, without any data.

        Raises:
            ProtocolError: as `Extension.start_decode`.
        """
        ...


class ClientExtension(Protocol):
    """An extension as a client configures it."""

    @property
    def name(self) -> str:
        """Its registered name."""
        ...

    def offers(self) -> Sequence[Parameters]:
        """The parameters to offer; if there are several offers, in order of preference."""
        ...

    def agree(self, parameters: Parameters) -> Extension:
        """Make the extension that the server's answer asks for.

        Raises:
            ValueError, InvalidHandshake: no offer of ours allows this answer, which fails the handshake.
        """
        ...


class ServerExtension(Protocol):
    """An extension as a server configures it."""

    @property
    def name(self) -> str:
        """Its registered name."""
        ...

    def accept(self, offer: Parameters) -> tuple[Parameters, Extension] | None:
        """Answer one offer of a client: the parameters agreed, and the extension.

        None declines it: then the client's next offer of this name is tried, and without any other the connection goes
        without the extension.
        """
        ...


_Configured = TypeVar("_Configured", ClientExtension, ServerExtension)


def check_extensions(extensions: Sequence[_Configured]) -> tuple[_Configured, ...]:
    """The option `extensions`, checked.

    Raises:
        ValueError: a name is not a token, or comes twice.
    """
    seen: set[str] = set()
    for extension in extensions:
        if not TOKEN.fullmatch(extension.name):
            raise ValueError(f"extensions: {extension.name!a} is not a token, RFC 9110 §5.6.2")
        if extension.name in seen:
            raise ValueError(f"extensions: {extension.name} comes twice")
        seen.add(extension.name)
    return tuple(extensions)


def format_extensions(extensions: Iterable[tuple[str, Parameters]]) -> str:
    """The value of a Sec-WebSocket-Extensions header; an empty one is none.

    Raises:
        ValueError: a parameter's name or value is not a token.

    RFC 6455 §9.1.
    """
    items: list[str] = []
    for extension, parameters in extensions:
        item = extension
        for name, value in parameters:
            if not TOKEN.fullmatch(name) or (value is not None and not TOKEN.fullmatch(value)):
                raise ValueError(f"extension {extension}: a parameter that is not made of tokens: {name!a}, {value!a}")
            item += f"; {name}" if value is None else f"; {name}={value}"
        items.append(item)
    return ", ".join(items)


def agree_on_extensions(extensions: Sequence[ClientExtension], header: str) -> tuple[Extension, ...]:
    """Read the extensions in the server's answer, for the client that offered these.

    Raises:
        InvalidHandshake: the answer is malformed, or not one to what was offered.

    RFC 6455 §4.1, §9.1.
    """
    got = f"the 101 has Sec-WebSocket-Extensions: {shown(header)}"
    if not extensions:
        raise InvalidHandshake(f"{got}; expected none, for none was offered")
    try:
        answers = parse_extensions(header)
    except ValueError as exc:
        raise InvalidHandshake(f"{got}; {exc}") from None
    offered = {extension.name: extension for extension in extensions}
    agreed: list[Extension] = []
    for name, parameters in answers:
        # §4.1: "If the response includes a |Sec-WebSocket-Extensions| header field and this header field indicates the
        # use of an extension that was not present in the client's handshake (the server has indicated an extension not
        # requested by the client), the client MUST _Fail the WebSocket Connection_."
        extension = offered.get(name)
        if extension is None:
            raise InvalidHandshake(f"{got}; expected some of those offered: {', '.join(offered)}")
        if any(other.name == name for other in agreed):
            raise InvalidHandshake(f"{got}; expected each extension at most once")
        try:
            chosen = extension.agree(parameters)
        except ValueError as exc:
            raise InvalidHandshake(f"{got}; {exc}") from None
        if _clashes(chosen, agreed):
            raise InvalidHandshake(f"{got}; expected no two that use the same RSV bit")
        agreed.append(chosen)
    return tuple(agreed)


def accept_extensions(extensions: Sequence[ServerExtension], header: str) -> tuple[str, tuple[Extension, ...]]:
    """Choose from the client's offers.

    Returns:
        The value of the answer's header, empty for none, and the extensions in the order in which they apply to a
        message that is sent, which is the client's order.

    RFC 6455 §4.2.2, 5.6, §9.1.
    """
    spoken = {extension.name: extension for extension in extensions}
    answers: list[tuple[str, Parameters]] = []
    agreed: list[Extension] = []
    # §9.1: "the header fields listed by the client in its request represent a preference of the header fields it wishes
    # to use, with the first options listed being most preferable."
    for name, offer in parse_extensions(header):
        extension = spoken.get(name)
        if extension is None:
            continue
        accepted = extension.accept(offer)
        if accepted is None or _clashes(accepted[1], agreed):
            continue
        # One of a name is enough.
        del spoken[name]
        answers.append((name, accepted[0]))
        agreed.append(accepted[1])
    return format_extensions(answers), tuple(agreed)


def _clashes(extension: Extension, others: list[Extension]) -> bool:
    """Whether one of the others uses the same RSV bit, so that nobody could tell whose message it is."""
    return any(extension.rsv & other.rsv for other in others)
