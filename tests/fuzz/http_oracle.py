"""What an HTTP message says, read a second time: h11 parses it as the peer would, and the head is split by hand."""

import re

import h11

from anyio_ws.protocol import Response

TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_SENT = re.compile(rb"(%s):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % TOKEN)
# RFC 9110 §5.5: of other control characters, "recipients MAY retain such characters for the sake of robustness".
_RECEIVED = re.compile(rb"(%s):[ \t]*([^\0\n\v\f\r]*?)[ \t]*" % TOKEN)


class Head:
    """A head that we accepted, or sent: `start` is its first line, and what follows it is `rest`."""

    def __init__(self, data: bytes, *, sent: bool = False) -> None:
        head, end, self.rest = data.partition(b"\r\n\r\n")
        assert end
        self.start, *lines = head.split(b"\r\n")
        assert not re.search(rb"[\0\r\n]", self.start)
        self.fields: list[tuple[str, str]] = []
        for line in lines:
            match = (_SENT if sent else _RECEIVED).fullmatch(line)
            assert match, line
            name, value = match[1].decode(), match[2].decode("latin-1")
            # RFC 9112 §6.3 lets a recipient replace a Content-Length that is repeated by one, which h11 does.
            if name.lower() == "content-length" and not sent:
                if self.values("content-length"):
                    continue
                value = value.partition(",")[0].strip(" \t")
            elif name.lower() == "transfer-encoding" and not sent:
                value = value.lower()
            self.fields.append((name, value))

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name]

    def items(self, name: str) -> list[str]:
        """Of a header that is a list: what is in it."""
        return [item for value in self.values(name) for part in value.split(",") if (item := part.strip(" \t"))]


def check_answer(data: bytes, method: str, response: Response, added: set[str]) -> None:
    """What a server sent is the response, the whole response, and nothing but it."""
    connection = h11.Connection(h11.CLIENT)
    upgrade = [("Host", "a"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
    connection.send(h11.Request(method=method, target="/", headers=upgrade))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    event = connection.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == response.status_code
    assert event.reason.decode("latin-1").strip(" \t") == response.reason_phrase.strip(" \t")
    expected = [(name, value.strip(" \t")) for name, value in response.headers.multi_items()]
    got = Head(data, sent=True).fields
    assert [field for field in got if field[0].lower() not in added] == [
        field for field in expected if field[0].lower() not in added
    ]
    assert len(event.headers) == len(got)
    if response.status_code == 101:
        assert connection.next_event() is h11.PAUSED
        assert connection.trailing_data[0] == b""
        return
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += event.data
    assert body == (b"" if method == "HEAD" or response.status_code in (204, 304) else response.body)
    assert connection.trailing_data == (b"", False)
    assert connection.their_state is h11.MUST_CLOSE
