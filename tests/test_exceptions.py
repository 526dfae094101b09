"""The exceptions that users catch: what they are, what they say, and that they pickle."""

import copy
import pickle

import anyio
import pytest

from anyio_ws import (
    CloseInfo,
    ConnectFailed,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeError,
    HandshakeRejected,
    InvalidHandshake,
    InvalidURL,
    OpenTimeout,
    ProtocolError,
    Response,
    WebSocketError,
)
from anyio_ws.exceptions import CODE_NAMES, EndOfMessages
from anyio_ws.testing import connected_pair

CAUSE = EOFError("the peer ended the connection")
INFO = CloseInfo(1006, "", "peer", clean=False, cause=CAUSE)


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (HandshakeError, (WebSocketError,)),
        (ConnectFailed, (HandshakeError, anyio.ConnectionFailed, OSError)),
        (OpenTimeout, (HandshakeError, TimeoutError)),
        (HandshakeRejected, (HandshakeError,)),
        (InvalidHandshake, (HandshakeError,)),
        (ConnectionClosed, (WebSocketError,)),
        (ConnectionClosedOK, (ConnectionClosed, anyio.ClosedResourceError)),
        (EndOfMessages, (ConnectionClosedOK, anyio.EndOfStream)),
        (ConnectionClosedError, (ConnectionClosed, anyio.BrokenResourceError)),
        (ProtocolError, (WebSocketError,)),
        (InvalidURL, (WebSocketError, ValueError)),
    ],
)
def test_the_tree(cls, bases):
    for base in bases:
        assert issubclass(cls, base)
    assert issubclass(cls, WebSocketError)
    assert issubclass(cls, Exception)


def test_two_clauses_suffice_because_they_exclude_each_other():
    assert not issubclass(ConnectionClosed, HandshakeError)
    assert not issubclass(HandshakeError, ConnectionClosed)
    assert not issubclass(ConnectionClosedOK, ConnectionClosedError)
    assert not issubclass(ConnectionClosedError, anyio.EndOfStream)
    assert not issubclass(ConnectionClosedOK, anyio.EndOfStream)


@pytest.mark.parametrize(
    "exc",
    [
        ConnectFailed(111, "cannot connect to ws://localhost/"),
        ConnectFailed(None, "no such host"),
        OpenTimeout("not open in time"),
        HandshakeRejected(Response(403, {"X-Test": "yes"}, "no")),
        ConnectionClosed(INFO),
        ConnectionClosedOK(CloseInfo(1000, "bye", "local", clean=True)),
        EndOfMessages(CloseInfo(1000, "bye", "peer", clean=True)),
        ConnectionClosedError(INFO),
    ],
    ids=lambda exc: type(exc).__name__,
)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda exc: pickle.loads(pickle.dumps(exc))], ids=["copy", "pickle"])
def test_all_of_them_pickle_and_copy(exc, duplicate):
    other = duplicate(exc)
    assert type(other) is type(exc)
    assert str(other) == str(exc)
    if isinstance(exc, ConnectionClosed):
        assert other.args == (other.close_info,)
        assert str(other.close_info) == str(exc.close_info)
    elif isinstance(exc, HandshakeError):
        assert other.transient == exc.transient


def test_the_cause_survives_pickling():
    other = pickle.loads(pickle.dumps(ConnectionClosedError(INFO)))
    assert isinstance(other.__cause__, EOFError)
    assert other.__cause__ is other.close_info.cause


def test_the_cause_of_a_closed_connection_is_the_root_cause():
    assert ConnectionClosedError(INFO).__cause__ is CAUSE
    assert ConnectionClosedOK(CloseInfo(1000)).__cause__ is None


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (CloseInfo(1000, "", "peer", clean=True), "1000 (normal closure) from the peer"),
        (CloseInfo(1001, "restart", "peer", clean=True), "1001 (going away) 'restart' from the peer"),
        (CloseInfo(4000, "", "local", clean=True), "4000 from here"),
        (CloseInfo(1000, "", "local"), "1000 (normal closure) from here, which the peer has not answered yet"),
        (INFO, "1006 (abnormal closure) from the peer: the peer ended the connection"),
        (CloseInfo(1006, cause=TimeoutError()), "1006 (abnormal closure) from the peer: TimeoutError"),
    ],
)
def test_what_a_close_info_says(info, text):
    assert str(info) == text
    assert str(ConnectionClosed(info)) == text


def test_a_close_info_is_a_fact():
    with pytest.raises(AttributeError):
        INFO.code = 1000
    assert CloseInfo(1006, "", "peer", clean=False, cause=CAUSE) == INFO
    assert 1004 not in CODE_NAMES


def test_connect_failed_is_an_os_error_with_errno():
    exc = ConnectFailed(111, "cannot connect to ws://localhost/: refused")
    assert exc.errno == 111
    assert str(exc) == exc.message == "cannot connect to ws://localhost/: refused"
    assert exc.transient


@pytest.mark.parametrize("status", [301, 401, 403, 404, 408, 425, 429, 500, 502, 503, 504, 505])
def test_a_rejection_knows_whether_it_may_pass(status):
    assert HandshakeRejected(Response(status)).transient == (status in (408, 425, 429, 500, 502, 503, 504))


def test_a_rejection_says_the_status():
    assert str(HandshakeRejected(Response(403))) == "the server answered 403 Forbidden, expected 101"


def test_a_rejection_shows_the_first_line_of_a_plain_text_that_says_why():
    rejected = HandshakeRejected(Response(403, body="the Origin is \x1b[31m another\nand so on"))
    assert str(rejected) == "the server answered 403 Forbidden, expected 101: the Origin is .[31m another"
    assert len(str(HandshakeRejected(Response(403, body="x" * 1000)))) < 400
    assert "<html>" not in str(HandshakeRejected(Response(403, {"Content-Type": "text/html"}, "<html>")))


def test_an_open_timeout_is_transient_and_an_invalid_handshake_is_not():
    assert OpenTimeout("late").transient
    assert not InvalidHandshake("wrong").transient


async def test_only_receive_raises_an_end_of_stream():
    async with connected_pair() as (client, _server):
        await client.aclose()
        for name in ("receive", "receive_many", "receive_text", "receive_bytes", "receive_json"):
            with pytest.raises(EndOfMessages):
                await getattr(client, name)()
        for call in (lambda: client.send("x"), lambda: client.send_many(["x"]), client.ping, client.flush):
            with pytest.raises(ConnectionClosedOK) as caught:
                await call()
            assert not isinstance(caught.value, anyio.EndOfStream)
