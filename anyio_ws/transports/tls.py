"""TLS over another transport, with `ssl.SSLObject` and memory BIOs: the same on every event loop.

Theory of operation. Upwards this is a Transport, downwards a Receiver. Ciphertext from below goes into the incoming
BIO and is decrypted straight into the upper receiver's memory until the object wants more, or the receiver pauses: then
plaintext stays inside the object, for which no readiness will ever fire, so `resume` goes on with it first. Whatever
the object does, also a read, may leave ciphertext in the outgoing BIO (key updates, alerts), so each call drains it.

Ciphertext that the transport below does not take waits here, at most about SLICE bytes of it: while some does, `write`
takes nothing. Plaintext counts as taken once it is encrypted; until its ciphertext has left, it is `unsent`.
"""

import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from anyio.streams.tls import TLSAttribute

from anyio_ws.loops import Budget

from .base import Buffer, Transport

SLICE = 65536
"""Bytes of plaintext encrypted before the ciphertext is written: one 100 MB message must not make 100 MB of it."""


def check_context(context: object, *, server_side: bool) -> None:
    """Check the option `ssl`.

    Raises:
        TypeError: it is no SSLContext.
        ValueError: it is for the other side.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, not {context!r}")
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side, None if server_side else "localhost")
    except ssl.SSLError as exc:
        raise ValueError(f"the context of the option ssl is for the other side: {exc}") from exc


def check_server_hostname(name: str) -> None:
    """Check the option `server_hostname`.

    Raises:
        ValueError: it is not a name that a certificate can have.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"server_hostname={name!r} is no host name: {exc}") from exc


def _slices(buffers: Iterable[Buffer]) -> Iterator[Buffer]:
    """Cut what is long and join what is short: each slice becomes at least one record, with some 22 bytes around it."""
    parts: list[memoryview] = []
    size = 0
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            parts.append(view[: SLICE - size])
            size += len(parts[-1])
            view = view[len(parts[-1]) :]
            if size == SLICE:
                yield parts[0] if len(parts) == 1 else b"".join(parts)
                parts, size = [], 0
    if parts:
        yield parts[0] if len(parts) == 1 else b"".join(parts)


class TLSTransport(Transport):
    """TLS over `inner`, which must not have been started.

    Args:
        inner: moves the ciphertext.
        context: certificates and rules.
        budget: the loop's, for its scratch memory.
        server_side: which side of the handshake we are.
        server_hostname: the name to verify and to send, for a client.
    """

    __slots__ = (
        "_budget", "_eof", "_error", "_handshaken", "_incoming", "_inner", "_object", "_outgoing", "_paused",
        "_pending", "_server_side", "_short", "_shutdown",
    )  # fmt: skip

    def __init__(
        self,
        inner: Transport,
        context: ssl.SSLContext,
        budget: Budget,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__(inner.waiter)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._inner = inner
        self._budget = budget
        self._server_side = server_side
        self._handshaken = False
        self._paused = True
        self._eof = False  # of the ciphertext
        self._error: Exception | None = None
        self._pending: memoryview | None = None  # ciphertext that the transport below did not take
        self._short = False  # the upper receiver waits for writable()
        self._shutdown = False
        inner.receiver = self

    async def handshake(self) -> None:
        """Start the transport below and do the TLS handshake.

        Raises:
            ssl.SSLError: it failed; the alert has been sent if there was one to send.
            OSError: the connection broke, or ended before the handshake did.

        Cancellation: the caller then aborts the transport.
        """
        self._inner.start()
        while True:
            try:
                self._object.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._drain()
            except ssl.SSLError:
                self._drain()
                raise
            if self._error is not None:
                raise self._error
            if self._eof or self.closed:
                raise ConnectionResetError("the connection ended during the TLS handshake")
            await self.waiter.wait()
        self._drain()
        if self._error is not None:  # it came with the last flight, or met ours
            raise self._error
        self._handshaken = True

    # Upwards: the transport

    def start(self) -> None:
        self.resume()

    def pause(self) -> None:
        self._paused = True
        self._inner.pause()

    def resume(self) -> None:
        if self.closed:
            return
        self._paused = False
        self._decrypt()  # what is inside the object already
        if not self._paused and not self._eof:
            self._inner.resume()

    def watch(self) -> None:
        self._inner.watch()

    def poll(self) -> bool:
        return self._inner.poll()

    def write(self, data: Buffer) -> int:
        taken = 0
        while self._pending is None and not self.closed:
            try:
                # Nothing to encrypt is no record; each has some 22 bytes around it.
                if taken < len(data):
                    whole = not taken and len(data) <= SLICE
                    taken += self._object.write(data if whole else memoryview(data)[taken : taken + SLICE])
            except ssl.SSLWantReadError:  # nothing was taken; the peer must say something first
                self._drain()
                break
            except ssl.SSLError as exc:
                self._fail(exc)
                return 0
            self._drain()
            if self._error is not None:
                return 0
            if taken == len(data):
                return taken
        self._short = True
        return taken

    def write_vector(self, buffers: Iterable[Buffer]) -> int:
        return super().write_vector(_slices(buffers))

    def shutdown(self) -> None:
        # "Each party MUST send a "close_notify" alert before closing its write side of the connection" (RFC 8446 §6.1);
        # the peer's is not waited for.
        if not self._shutdown and not self.closed:
            self._shutdown = True
            if self._handshaken:
                try:
                    self._object.unwrap()
                except ssl.SSLError:
                    pass  # wants to read the peer's, or the peer broke TLS: ours is out all the same
            if self._drain():
                self._inner.shutdown()

    def close(self) -> None:
        if not self.closed:
            self.shutdown()
            self.closed = True
            self._inner.close()

    def abort(self) -> None:
        if not self.closed:
            self.closed: bool = True
            self._inner.abort()

    @property
    def unsent(self) -> bool:
        return self._pending is not None or self._outgoing.pending > 0 or self._inner.unsent

    @property
    def breaking(self) -> bool:
        return self._inner.breaking

    @property
    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        tls = self._object
        attribute: Any = TLSAttribute  # anyio declares each attribute as what it gives, not as the key that it is
        return {
            **self._inner.attributes,
            attribute.alpn_protocol: tls.selected_alpn_protocol,
            attribute.channel_binding_tls_unique: tls.get_channel_binding,
            attribute.cipher: tls.cipher,
            attribute.peer_certificate: lambda: tls.getpeercert(False),
            attribute.peer_certificate_binary: lambda: tls.getpeercert(True),
            attribute.server_side: lambda: self._server_side,
            attribute.shared_ciphers: lambda: tls.shared_ciphers() if self._server_side else None,
            attribute.ssl_object: lambda: tls,
            attribute.standard_compatible: lambda: False,  # an end without close_notify is an end
            attribute.tls_version: tls.version,
        }

    # Downwards: the receiver of ciphertext

    def get_buffer(self) -> memoryview:
        return self._budget.scratch

    def received(self, count: int) -> None:
        self._incoming.write(self._budget.scratch[:count])
        if self._handshaken:
            self.receiver.heard()
            self._decrypt()
        else:
            self.waiter.wake()

    def heard(self) -> None:
        self.receiver.heard()

    def eof(self) -> None:
        self._eof = True
        if self._handshaken:
            self._decrypt()
        else:
            self.waiter.wake()

    def writable(self) -> None:
        if self._drain():
            if self._shutdown:
                self._inner.shutdown()
            if self._handshaken:
                self._short = False
                self.receiver.writable()

    def fail(self, exc: Exception) -> None:
        self._fail(exc)

    # Between them

    def _decrypt(self) -> None:
        """Give the receiver all plaintext there is, until it pauses."""
        while not self._paused and not self.closed:
            if not (self._incoming.pending or self._object.pending() or self._eof):
                break  # it would raise SSLWantReadError, which takes longer than all the rest
            try:
                count = self._read()
            except ssl.SSLError as exc:
                self._drain()  # the alert
                self._fail(exc)
                return
            if count > 0:
                self.receiver.received(count)
            elif count == 0 or self._eof:
                # Without close_notify this could be a truncation by an attacker, but the closing handshake of RFC 6455
                # tells: an end without a Close frame is 1006.
                self._paused = True
                self._inner.pause()
                self.receiver.eof()
                return
            else:
                break
        self._drain()
        if self._short and self._pending is None and not self.closed:
            self._short = False
            self.receiver.writable()  # a write that wanted to read first

    def _read(self) -> int:
        """Decrypt into the receiver's memory. Returns how many bytes; 0 at the end, -1 if there is nothing yet."""
        if self._shutdown:
            # Nobody wants what comes now, and the object would take it for an end, or for a violation. But the peer
            # still has to end: closing with unread data would send a reset, which destroys our last words on their way.
            self._incoming.read()
            return -1
        buffer = self.receiver.get_buffer()
        count: Any  # typeshed says that read() always returns bytes; with a buffer it returns how many
        try:
            count = self._object.read(len(buffer), buffer)  # 0 after the peer's close_notify
        except ssl.SSLWantReadError:
            return -1
        return int(count)

    def _drain(self) -> bool:
        """Write out the ciphertext. Returns True if nothing of it is left."""
        while not self.closed:
            if self._pending is None:
                if not self._outgoing.pending:
                    return True
                self._pending = memoryview(self._outgoing.read())
            taken = self._inner.write(self._pending)
            if taken < len(self._pending):
                self._pending = self._pending[taken:]
                return False
            self._pending = None
        return False

    def _fail(self, exc: Exception) -> None:
        if self._error is None:
            self._error = exc
            if self._handshaken:
                self.receiver.fail(exc)
            else:
                self.waiter.wake()
