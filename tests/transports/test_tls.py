"""TLS over another transport, here a pipe in memory: nothing of it depends on the event loop."""

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trustme
from anyio.streams.tls import TLSAttribute

from anyio_ws import CloseInfo
from anyio_ws.core import Core
from anyio_ws.loops import Loop, open_loop
from anyio_ws.options import Options
from anyio_ws.protocol import encode_frame
from anyio_ws.tasks import Tasks
from anyio_ws.transports.memory import CAPACITY, MemoryTransport, memory_pipe
from anyio_ws.transports.tls import SLICE, TLSTransport, check_context, check_server_hostname
from support.tools import settle


class Recorder:
    """A receiver that notes what it is told, and pauses its transport after so many bytes."""

    def __init__(self, transport: TLSTransport | MemoryTransport, *, buffer_size: int = 65536) -> None:
        self.transport = transport
        self.data = bytearray()
        self.ended = False
        self.errors: list[Exception] = []
        self.writables = 0
        self.times_heard = 0
        self.unsent = memoryview(b"")
        self.pause_at = float("inf")
        self._buffer = memoryview(bytearray(buffer_size))
        transport.receiver = self

    def send(self, data: bytes) -> None:
        self.unsent = memoryview(data)
        self.writable()

    def get_buffer(self) -> memoryview:
        return self._buffer

    def received(self, count: int) -> None:
        assert count > 0
        assert not self.ended
        self.data += self._buffer[:count]
        if len(self.data) >= self.pause_at:
            self.transport.pause()

    def heard(self) -> None:
        self.times_heard += 1

    def eof(self) -> None:
        assert not self.ended
        self.ended = True

    def writable(self) -> None:
        self.writables += 1
        while self.unsent:
            taken = self.transport.write(self.unsent)
            self.unsent = self.unsent[taken:]
            if self.unsent:
                return

    def fail(self, exc: Exception) -> None:
        self.errors.append(exc)


class Ends:
    """Both ends, before the handshake."""

    def __init__(self, loop: Loop, client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> None:
        self.loop = loop
        self.client_pipe, self.server_pipe = memory_pipe(loop, loop)
        self.client = TLSTransport(
            self.client_pipe, client_context, loop.budget, server_side=False, server_hostname="localhost"
        )
        self.server = TLSTransport(self.server_pipe, server_context, loop.budget, server_side=True)
        self.at_client = Recorder(self.client)
        self.at_server = Recorder(self.server)

    async def handshake(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self.client.handshake)
            group.start_soon(self.server.handshake)
        self.client.start()
        self.server.start()
        await settle()


@asynccontextmanager
async def owner() -> AsyncGenerator[Loop]:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        yield loop
        loop.close()


@asynccontextmanager
async def new_ends(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> AsyncGenerator[Ends]:
    async with owner() as loop:
        ends = Ends(loop, *contexts)
        yield ends
        ends.client.abort()
        ends.server.abort()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def cert(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert("localhost")


@pytest.fixture
def contexts(ca: trustme.CA, cert: trustme.LeafCert) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For the client and for the server."""
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.configure_trust(client)
    cert.configure_cert(server)
    return client, server


@pytest.fixture
async def ends(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> AsyncGenerator[Ends]:
    async with new_ends(contexts) as ends:
        await ends.handshake()
        yield ends


# The option ssl


def test_a_context_for_the_other_side_is_refused(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    client, server = contexts
    check_context(client, server_side=False)
    check_context(server, server_side=True)
    with pytest.raises(ValueError, match="for the other side"):
        check_context(client, server_side=True)
    with pytest.raises(ValueError, match="for the other side"):
        check_context(server, server_side=False)
    with pytest.raises(TypeError, match=r"must be an ssl\.SSLContext"):
        check_context(True, server_side=True)


def test_a_name_no_certificate_has_is_refused() -> None:
    check_server_hostname("example.com")
    with pytest.raises(ValueError, match="server_hostname='' is no host name"):
        check_server_hostname("")


# The handshake


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_bytes_move_both_ways(version: ssl.TLSVersion, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    contexts[0].maximum_version = contexts[0].minimum_version = version
    async with new_ends(contexts) as ends:
        await ends.handshake()
        ends.at_client.send(b"ping")
        ends.at_server.send(b"pong")
        await settle()
        assert ends.at_server.data == b"ping"
        assert ends.at_client.data == b"pong"
        assert ends.client.attributes[TLSAttribute.tls_version]() == version.name.replace("_", ".")


async def test_bytes_that_come_with_the_end_of_the_handshake_are_not_lost(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with new_ends(contexts) as ends:
        async with anyio.create_task_group() as group:

            async def client() -> None:
                await ends.client.handshake()
                ends.at_client.send(b"early")
                ends.client_pipe.shutdown()

            group.start_soon(client)
            await ends.server.handshake()
        await settle()
        assert ends.at_server.data == b""
        ends.server.start()
        assert ends.at_server.data == b"early"
        assert ends.at_server.ended


async def test_a_certificate_that_is_not_accepted_fails_on_both_sides(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with new_ends((ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), contexts[1])) as ends:
        async with anyio.create_task_group() as group:

            async def client() -> None:
                with pytest.raises(ssl.SSLCertVerificationError, match="local issuer"):
                    await ends.client.handshake()

            group.start_soon(client)
            with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
                await ends.server.handshake()
        assert ends.at_client.errors == ends.at_server.errors == []


async def test_a_peer_that_speaks_no_tls_fails_the_handshake(ends: Ends) -> None:
    one, other = memory_pipe(ends.loop, ends.loop)
    raw = Recorder(other)
    raw.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    other.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(ssl.SSLError, match=r"(?i)http.request"):
        await TLSTransport(one, context, ends.loop.budget, server_side=True).handshake()


async def test_an_end_during_the_handshake_fails_it(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with new_ends(contexts) as ends:
        ends.server_pipe.shutdown()
        with pytest.raises(ConnectionResetError, match="ended during the TLS handshake"):
            await ends.client.handshake()


async def test_a_reset_during_the_handshake_fails_it_with_that_error(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with new_ends(contexts) as ends:
        ends.server_pipe.abort()
        with pytest.raises((ConnectionResetError, BrokenPipeError), match="the other end"):
            await ends.client.handshake()
        assert ends.at_client.errors == []


async def test_closing_ends_the_handshake(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with new_ends(contexts) as ends, anyio.create_task_group() as group:

        async def client() -> None:
            with pytest.raises(ConnectionResetError):
                await ends.client.handshake()

        group.start_soon(client)
        await settle()
        ends.client.close()


# Reading


async def test_a_pause_keeps_plaintext_inside_and_resume_goes_on_with_it(ends: Ends) -> None:
    ends.at_server.pause_at = 1
    ends.at_server._buffer = memoryview(bytearray(1000))
    ends.at_client.send(bytes(50_000))
    await settle()
    assert len(ends.at_server.data) == 1000
    while (count := len(ends.at_server.data)) < 50_000:
        ends.server.resume()  # nothing new arrives
        assert count < len(ends.at_server.data) <= count + 1000
    ends.at_server.pause_at = float("inf")
    ends.server.resume()
    ends.at_client.send(b"more")
    await settle()
    assert len(ends.at_server.data) == 50_004


async def test_an_end_behind_paused_plaintext_comes_after_it(ends: Ends) -> None:
    ends.at_server.pause_at = 1
    ends.at_server._buffer = memoryview(bytearray(1000))
    ends.at_client.send(bytes(2000))
    ends.client.close()
    await settle()
    assert not ends.at_server.ended
    ends.server.resume()
    assert (len(ends.at_server.data), ends.at_server.ended) == (2000, False)
    ends.server.resume()
    await settle()
    assert ends.at_server.ended


async def test_an_end_without_close_notify_is_an_end(ends: Ends) -> None:
    ends.at_client.send(b"last words")
    ends.client_pipe.shutdown()
    await settle()
    assert ends.at_server.data == b"last words"
    assert ends.at_server.ended
    assert ends.at_server.errors == []


async def test_close_notify_is_an_end(ends: Ends) -> None:
    ends.at_client.send(b"last words")
    ends.client.shutdown()
    await settle()
    assert ends.at_server.data == b"last words"
    assert ends.at_server.ended


async def test_garbage_fails_and_is_answered_with_an_alert(ends: Ends) -> None:
    ends.client_pipe.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    await settle()
    assert isinstance(ends.at_server.errors[0], ssl.SSLError)
    assert len(ends.at_server.errors) == 1
    assert isinstance(ends.at_client.errors[0], ssl.SSLError)  # the alert


async def test_an_error_from_below_goes_up_once(ends: Ends) -> None:
    ends.server_pipe.abort()
    await settle()
    ends.client.fail(OSError("again"))
    assert [type(exc) for exc in ends.at_client.errors] == [ConnectionResetError]


async def test_poll_reads_what_has_arrived(ends: Ends) -> None:
    ends.at_client.send(b"hello")
    ends.server.watch()
    ends.server.poll()
    assert ends.at_server.data == b"hello"


# Writing


async def test_a_big_write_is_taken_in_slices(ends: Ends) -> None:
    data = bytes(range(256)) * 40_000
    ends.server.pause()
    ends.at_client.send(data)
    taken = len(data) - len(ends.at_client.unsent)
    assert taken <= 3 * SLICE  # what the pipe takes, and a slice that waits
    assert ends.client._pending is not None
    assert len(ends.client._pending) < 2 * SLICE
    assert ends.client.write(b"no more") == 0
    ends.server.resume()
    for _ in range(100):
        await settle()
        if len(ends.at_server.data) == len(data):
            break
    assert ends.at_server.data == data


def records(pipe: MemoryTransport) -> list[int]:
    """The lengths of the TLS records that are on their way, without their headers (RFC 8446 §5.1)."""
    data = b"".join(pipe._arrived)
    lengths: list[int] = []
    while data:
        lengths.append(int.from_bytes(data[3:5]))
        data = data[5 + lengths[-1] :]
    return lengths


@pytest.mark.parametrize("buffers", [[4, 1000], [4] * 64, [10, 40_000], [10, 20_000, 10, 20_000]])
async def test_what_is_short_shares_a_record(buffers: list[int], ends: Ends) -> None:
    data = [bytes([i]) * size for i, size in enumerate(buffers)]
    whole = sum(buffers)
    ends.server.pause()
    assert ends.client.write_vector(data) == whole
    assert len(records(ends.server_pipe)) == -(-whole // 16384)  # a record holds 16 KiB at most
    ends.server.resume()
    await settle()
    assert ends.at_server.data == b"".join(data)


async def test_nothing_is_no_record(ends: Ends) -> None:
    ends.server.pause()
    assert ends.client.write(b"") == 0
    assert ends.client.write_vector((b"", b"")) == 0
    assert records(ends.server_pipe) == []


async def test_several_buffers_are_one_write(ends: Ends) -> None:
    assert ends.client.write_vector((b"one", bytearray(b"two"), memoryview(b"three"))) == 11
    await settle()
    assert ends.at_server.data == b"onetwothree"


async def test_a_write_that_broke_takes_nothing(ends: Ends) -> None:
    ends.server_pipe.abort()
    assert ends.client.write(b"lost") == 0
    assert isinstance(ends.at_client.errors[0], BrokenPipeError)


async def test_a_write_after_shutdown_fails(ends: Ends) -> None:
    ends.client.shutdown()
    assert ends.client.write(b"late") == 0
    assert isinstance(ends.at_client.errors[0], ssl.SSLError)


async def test_nothing_is_taken_after_close(ends: Ends) -> None:
    ends.client.close()
    assert ends.client.write(b"late") == 0
    await settle()
    assert ends.at_server.data == b""


class WantsToRead:
    """Stands in for an SSLObject in whose connection the peer asked for a renegotiation."""

    def __init__(self, real: ssl.SSLObject) -> None:
        self._real = real
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, data: memoryview) -> int:
        self.calls += 1
        if self.calls == 2:
            raise ssl.SSLWantReadError
        return self._real.write(data)


async def test_a_write_that_wants_to_read_first_goes_on_when_something_came(ends: Ends) -> None:
    ends.client._object = WantsToRead(ends.client._object)  # type: ignore[assignment]
    assert ends.client.write(b"first ") == 6
    assert ends.client.write(b"second") == 0
    await settle()
    assert ends.at_server.data == b"first "
    writables = ends.at_client.writables
    ends.at_server.send(b"go on")
    await settle()
    assert ends.at_client.data == b"go on"
    assert ends.at_client.writables == writables + 1
    assert ends.client.write(b"second") == 6
    await settle()
    assert ends.at_server.data == b"first second"


# Ending


async def test_shutdown_comes_after_what_waits(ends: Ends) -> None:
    ends.server.pause()
    ends.at_client.send(bytes(2 * SLICE + 100))
    while ends.at_client.unsent:
        taken = ends.client.write(ends.at_client.unsent)
        ends.at_client.unsent = ends.at_client.unsent[taken:]
        if not taken:
            break
    sent = 2 * SLICE + 100 - len(ends.at_client.unsent)
    ends.client.shutdown()
    ends.client.shutdown()
    await settle()
    assert not ends.at_server.ended
    ends.server.resume()
    await settle()
    assert len(ends.at_server.data) == sent
    assert ends.at_server.ended


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_the_peer_goes_on_to_send_after_our_shutdown_breaks_nothing(
    version: ssl.TLSVersion, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    contexts[0].maximum_version = contexts[0].minimum_version = version
    async with new_ends(contexts) as ends:
        await ends.handshake()
        ends.at_client.send(bytes(10_000))  # on its way when the server shuts down
        ends.server.shutdown()
        ends.at_client.send(bytes(10_000))
        await settle()
        assert ends.at_server.errors == []
        assert ends.at_client.ended
        ends.client.close()
        await settle()
        assert ends.at_server.ended
        assert ends.at_server.errors == []


async def test_close_says_close_notify_and_is_idempotent(ends: Ends) -> None:
    ends.client.close()
    ends.client.close()
    ends.client.shutdown()
    ends.client.resume()
    assert ends.client_pipe.closed
    assert [len(part) for part in ends.server_pipe._arrived] == [24]  # an alert of TLS 1.3


async def test_abort_says_nothing(ends: Ends) -> None:
    ends.client.abort()
    assert ends.client_pipe.closed
    assert not ends.server_pipe._arrived


async def test_shutdown_with_plaintext_inside_breaks_nothing(ends: Ends) -> None:
    ends.at_server.pause_at = 1
    ends.at_server._buffer = memoryview(bytearray(1000))
    ends.at_client.send(bytes(50_000))
    await settle()
    ends.server.shutdown()
    ends.at_server.pause_at = float("inf")
    ends.server.resume()
    ends.client_pipe.shutdown()
    await settle()
    assert ends.at_server.errors == []
    assert ends.at_server.ended
    assert ends.at_client.ended


@pytest.mark.parametrize("inside", [False, True])
async def test_after_our_close_notify_only_an_end_of_the_peers_is_an_end(inside: bool, ends: Ends) -> None:
    if inside:  # plaintext waits in the object
        ends.at_server.pause_at = 1
        ends.at_server._buffer = memoryview(bytearray(1000))
    ends.at_client.send(bytes(50_000))
    await settle()
    ends.at_server.pause_at = float("inf")
    ends.server.shutdown()
    ends.server.resume()
    for _ in range(3):
        ends.at_client.send(bytes(20_000))
        await settle()
        assert not ends.at_client.unsent
        assert not ends.server_pipe._arrived  # unread bytes would make a reset of our close
    assert not ends.at_server.ended
    assert ends.at_server.errors == []
    ends.client_pipe.shutdown()
    await settle()
    assert ends.at_server.ended


async def test_close_before_the_handshake_is_silent(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with new_ends(contexts) as ends:
        ends.client.close()
        assert ends.client_pipe.closed
        assert not ends.server_pipe._arrived


async def test_attributes(ends: Ends) -> None:
    client, server = ends.client.attributes, ends.server.attributes
    assert client[TLSAttribute.server_side]() is False
    assert server[TLSAttribute.server_side]() is True
    assert client[TLSAttribute.peer_certificate]()["subjectAltName"] == (("DNS", "localhost"),)
    assert isinstance(client[TLSAttribute.peer_certificate_binary](), bytes)
    assert client[TLSAttribute.shared_ciphers]() is None
    assert server[TLSAttribute.shared_ciphers]()
    assert client[TLSAttribute.standard_compatible]() is False
    assert client[TLSAttribute.ssl_object]() is ends.client._object


@pytest.mark.parametrize("shutdown", [False, True])
async def test_a_write_that_was_taken_whole_is_unsent_until_the_receiver_hears_that_it_has_left(
    shutdown: bool, ends: Ends
) -> None:
    ends.server.pause()
    assert ends.client.write(bytes(60_000)) == 60_000
    assert not ends.client.unsent
    assert ends.client.write(bytes(10_000)) == 10_000
    assert ends.client.unsent
    if shutdown:
        ends.client.shutdown()
    ends.server.resume()
    await settle()
    assert len(ends.at_server.data) == 70_000
    assert ends.at_server.ended == shutdown
    assert ends.at_client.writables == 1
    assert not ends.client.unsent


async def test_what_leaves_late_during_the_handshake_is_no_news_to_the_receiver(ends: Ends) -> None:
    one, other = memory_pipe(ends.loop, ends.loop)
    filler = Recorder(one)
    filler.send(bytes(CAPACITY))
    client = TLSTransport(
        one, ssl.create_default_context(), ends.loop.budget, server_side=False, server_hostname="localhost"
    )
    at_client = Recorder(client)
    raw = Recorder(other)
    async with anyio.create_task_group() as group:
        group.start_soon(client.handshake)
        await settle()
        assert client.unsent
        other.start()
        await settle()
        assert len(raw.data) > CAPACITY  # with a ClientHello
        assert at_client.writables == 0
        group.cancel_scope.cancel()
    one.abort()


@pytest.mark.parametrize("frames", [2, 10], ids=["in the transport", "in the outbox too"])
async def test_a_peer_that_said_close_and_ended_its_side_still_gets_what_was_committed(frames: int, ends: Ends) -> None:
    core = Core(ends.server, ends.loop, Options(ping_interval=None, write_buffer_size=2**20), is_client=False)
    core.start(b"")
    ends.client.pause()
    for _ in range(frames):
        core.send_large(2, bytes(40_000))
    ends.at_client.send(encode_frame(8, b"\x03\xe8", b"mask"))
    ends.client_pipe.shutdown()
    await settle()
    assert not core.gone
    assert core.close_info == CloseInfo(1000, "", "peer", clean=True)
    ends.client.resume()
    for _ in range(20):
        await settle()
    assert len(ends.at_client.data) == frames * 40_004 + 4
    assert ends.at_client.data.endswith(b"\x88\x02\x03\xe8")
    assert ends.at_client.ended
    assert core.gone


async def test_more_than_the_transport_below_takes_at_once_goes_out_in_turns(ends: Ends) -> None:
    ends.server.pause()
    whole = CAPACITY - 4 * 22  # with what TLS 1.3 adds to each of its four records it fills the pipe
    assert ends.client.write(bytes(whole)) == whole
    assert ends.client.write(bytes(SLICE)) == SLICE
    ends.server.resume()
    await settle()
    assert len(ends.at_server.data) == whole + SLICE


async def test_half_a_record_is_heard_although_nothing_of_it_can_be_received(ends: Ends) -> None:
    outgoing = ends.client._object
    outgoing.write(b"x" * 1000)
    record = ends.client._outgoing.read()
    heard = ends.at_server.times_heard
    ends.client_pipe.write(record[:500])
    await settle()
    assert ends.at_server.times_heard == heard + 1
    assert ends.at_server.data == b""
    ends.client_pipe.write(record[500:])
    await settle()
    assert len(ends.at_server.data) == 1000


async def test_what_tls_below_it_has_heard_is_heard(ends: Ends) -> None:
    heard = ends.at_server.times_heard
    ends.server.heard()
    assert ends.at_server.times_heard == heard + 1
