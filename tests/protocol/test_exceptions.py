import copy
import pickle

import pytest

from anyio_ws.protocol.exceptions import HandshakeError, InvalidHandshake, InvalidURL, ProtocolError, WebSocketError
from anyio_ws.protocol.http import Response


@pytest.mark.parametrize(
    "exc",
    [
        WebSocketError("message"),
        HandshakeError("message"),
        InvalidHandshake("message"),
        ProtocolError("message"),
        ProtocolError("message", 1009),
        InvalidURL("message"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda exc: pickle.loads(pickle.dumps(exc))], ids=["copy", "pickle"])
def test_all_of_them_pickle_and_copy(exc, duplicate):
    other = duplicate(exc)
    assert type(other) is type(exc)
    assert str(other) == "message"
    assert other.args == ("message",)
    assert vars(other) == vars(exc)


def test_the_answer_in_an_invalid_handshake_pickles():
    exc = pickle.loads(pickle.dumps(InvalidHandshake("message", Response(400, body="why"))))
    assert exc.response.status_code == 400


def test_transient_is_false_unless_set_and_pickles():
    exc = HandshakeError("message")
    assert not exc.transient
    exc.transient = True
    assert pickle.loads(pickle.dumps(exc)).transient
    assert not HandshakeError.transient


def test_a_protocol_error_is_1002_unless_it_says_otherwise():
    assert ProtocolError("message").close_code == 1002
    assert ProtocolError("message", close_code=1007).close_code == 1007


def test_an_invalid_url_is_a_value_error():
    with pytest.raises(ValueError, match="message"):
        raise InvalidURL("message")
