"""The head of an HTTP/1.1 message, taken from the byte stream strictly before h11 parses it.

h11 decides what a request line, a status line and a header field are. What it does otherwise than we must is decided
here, on the raw bytes:

- it accepts a bare LF as the end of a line;
- it joins obs-fold silently, on both sides;
- its limit is one number for everything, and what it says depends on how the bytes were cut;
- one of its expressions takes quadratic time over a field of blanks that ends in NUL, VT or FF (2 s for 16 KiB).

A violation is reported at the first byte that commits it, so that the outcome does not depend on how the bytes were cut
into reads. The work is linear in the number of bytes.
"""

import re

import h11

from .http import TOKEN

__all__ = ["MAX_HEADER_BYTES", "MAX_START_LINE_BYTES", "HeadError", "HeadReader", "explain", "regular_head", "shown"]

# RFC 9112 §3: "It is RECOMMENDED that all HTTP senders and recipients support, at a minimum, request-line lengths of
# 8000 octets." nginx and Apache allow 8 KiB.
MAX_START_LINE_BYTES = 8 * 1024
# All header fields together. A browser's are 1 to 4 KiB, of which most are cookies, and it keeps at most some 4 KiB per
# cookie. h11 and IIS allow 16 KiB, too.
MAX_HEADER_BYTES = 16 * 1024

_LF = 0x0A
_CR = 0x0D
_TLS_HANDSHAKE = 0x16
_TLS_ALERT = 0x15
# A message starts with a token or "HTTP/". "!" is the first printable character.
_FIRST_PRINTABLE = 0x21
# What no line may contain. RFC 9110 §5.5: "a recipient of CR, LF, or NUL within a field value MUST either reject the
# message or replace each of those characters with SP". h11 refuses VT and FF, too. The other controls occur in cookies.
_REFUSED = re.compile(rb"[\0\v\f]|\r(?!\n)")
# A head without them, and without lines that are empty or folded: printable ASCII only, which is matched twice as fast
# as what else may occur.
_REGULAR = re.compile(rb"(?:[!-~][ -~]*+\r\n)++\r\n")

_REQUEST_LINE = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++ [\x21-\x7e]++ HTTP/[0-9]\.[0-9]")
_STATUS_LINE = re.compile(rb"HTTP/[0-9]\.[0-9] [1-9][0-9]{2}(?: [^\x00\n\v\f\r]*+)?")
_TOKEN = re.compile(TOKEN.pattern.encode())


def regular_head(data: bytes | bytearray | memoryview) -> int:
    """The length of the head that the data starts with, if it is whole, well-formed and far from the limits; else 0.

    Nearly all heads are so. `HeadReader` would have no objection to one, and take ten times as long to find none.
    """
    match = _REGULAR.match(data)
    return match.end() if match is not None and match.end() <= MAX_START_LINE_BYTES else 0


class HeadError(Exception):
    """The bytes are not the head of an HTTP message.

    Attributes:
        status_code: of the answer that a server gives.
        text: what was got and what was expected.
    """

    def __init__(self, status_code: int, text: str) -> None:
        super().__init__(status_code, text)
        self.status_code = status_code
        self.text = text


class HeadReader:
    """Collects the head of one message: start line, header fields and the empty line after them.

    Args:
        is_request: else it is a response.
        max_header_bytes: for the header fields and the empty line.

    Attributes:
        rest: what came after the head, once it is complete.
    """

    __slots__ = ("_buffer", "_fields", "_is_request", "_line", "_max_header_bytes", "_scanned", "_start", "rest")

    def __init__(self, *, is_request: bool, max_header_bytes: int = MAX_HEADER_BYTES) -> None:
        self._is_request = is_request
        self._max_header_bytes = max_header_bytes
        self._buffer = bytearray()
        # Offsets into the buffer: of the start line, of the header fields (0 while the start line is incomplete), of
        # the current line, and of what has not been searched for its end.
        self._start = 0
        self._fields = 0
        self._line = 0
        self._scanned = 0
        self.rest: bytes = b""

    def __len__(self) -> int:
        """How many bytes of an incomplete head have come."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Take bytes as they came; return the head once it is complete.

        Raises:
            HeadError: at the first byte that cannot be part of a head.
        """
        buffer = self._buffer
        if not buffer and data:
            _check_first_byte(data[0])
        buffer += data
        # Not before the end is there: the same bytes would be matched again with each read.
        if buffer.find(b"\r\n\r\n", max(0, self._scanned - 3)) >= 0:
            end = regular_head(buffer)
            if 0 < end <= self._max_header_bytes:
                return self._complete(end)
        return self._scan()

    def _scan(self) -> bytes | None:
        """Go through the lines one by one, to the end of the head or to the first violation."""
        buffer = self._buffer
        while (end := buffer.find(b"\n", self._scanned)) >= 0:
            self._check_size(end + 1)
            if end == 0 or buffer[end - 1] != _CR:
                # RFC 9112 §2.2 lets a recipient "recognize a single LF as a line terminator". Where one side does and
                # the other does not, they disagree about where a message ends.
                raise HeadError(400, f"{self._where()} ends with a bare LF; expected CR LF")
            if end - 1 > self._line:
                self._check_continuation()
                if not self._fields:
                    self._fields = end + 1
                self._line = self._scanned = end + 1
            elif self._fields:
                self._check_characters(end + 1)
                return self._complete(end + 1)
            elif self._is_request and self._start == 0:
                # RFC 9112 §2.2: "a server that is expecting to receive and parse a request-line SHOULD ignore at least
                # one empty line (CRLF) received prior to the request-line."
                self._start = self._line = self._scanned = end + 1
            else:
                raise HeadError(400, f"{self._where()} is empty")
        self._check_size(len(buffer))
        self._scanned = len(buffer)
        return None

    def _complete(self, end: int) -> bytes:
        self.rest = bytes(self._buffer[end:])
        del self._buffer[end:]
        return bytes(self._buffer[self._start :])

    def _check_size(self, size: int) -> None:
        """Compare the bytes up to `size`, which is inside the current line or just after it, with the limits."""
        if self._fields:
            if size - self._fields > self._max_header_bytes:
                raise HeadError(431, f"the header fields are longer than {MAX_HEADER_BYTES:,} bytes, the most accepted")
        elif size - self._line > MAX_START_LINE_BYTES + 2:
            raise HeadError(
                414, f"the {self._start_line()} is longer than {MAX_START_LINE_BYTES:,} bytes, the most accepted"
            )

    def _check_characters(self, end: int) -> None:
        if _REFUSED.search(self._buffer, self._start, end):
            raise HeadError(400, "a header line or the first line contains NUL, VT, FF or a bare CR")

    def _check_continuation(self) -> None:
        # RFC 9112 §5.2: "A server that receives an obs-fold in a request message [...] MUST either reject the message
        # by sending a 400 (Bad Request) [...] or replace each received obs-fold". The same for §2.2's white space
        # between start line and first field. A client MUST replace, which h11 does.
        if self._is_request and self._fields and self._buffer[self._line] in b" \t":
            raise HeadError(400, f"{self._where()} starts with a space or tab; folded header lines are not accepted")

    def _where(self) -> str:
        return "a header line" if self._fields else f"the {self._start_line()}"

    def _start_line(self) -> str:
        return "request line" if self._is_request else "status line"


def _check_first_byte(byte: int) -> None:
    if byte in (_TLS_HANDSHAKE, _TLS_ALERT):
        raise HeadError(
            400, f"the first byte is 0x{byte:02x}: TLS, where plain HTTP was expected (is it wss:// against ws://?)"
        )
    if byte < _FIRST_PRINTABLE and byte not in (_CR, _LF):
        raise HeadError(400, f"the first byte is 0x{byte:02x}, expected HTTP/1.1")


def explain(head: bytes, error: h11.RemoteProtocolError, *, is_request: bool) -> HeadError:
    """Say what h11 refused in a head. Its own texts quote whole lines, with query, cookies and credentials.

    RFC 9112 §3, §4, §5, §6.3; RFC 9110 §7.2.
    """
    if error.error_status_hint == 501:
        # RFC 9112 §6.1: "A server that receives a request message with a transfer coding it does not understand SHOULD
        # respond with 501 (Not Implemented)."
        return HeadError(501, 'the Transfer-Encoding is not understood; expected none, or "chunked" once')
    start_line, *lines = head.split(b"\r\n")[:-2]
    if is_request and not _REQUEST_LINE.fullmatch(start_line):
        return HeadError(400, 'the request line is malformed; expected "METHOD TARGET HTTP/1.1"')
    if not is_request and not _STATUS_LINE.fullmatch(start_line):
        return HeadError(400, 'the status line is malformed; expected "HTTP/1.1", a code of three digits and a phrase')
    hosts = 0
    for number, line in enumerate(lines, 2):
        name = _TOKEN.match(line)
        if name:
            if line[name.end() : name.end() + 1] != b":":
                # RFC 9112 §5.1: "A server MUST reject, with a response status code of 400 (Bad Request), any received
                # request message that contains whitespace between a header field name and colon."
                return HeadError(400, f"line {number} has no colon directly after the header name")
            hosts += name.group().lower() == b"host"
        elif number == 2 or line[0] not in b" \t":
            return HeadError(400, f"line {number} does not start with a header name")
    if is_request and (hosts > 1 or (hosts == 0 and start_line.endswith(b"1.1"))):
        # RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message
        # that lacks a Host header field and to any request message that contains more than one Host header field line".
        return HeadError(400, f"the request has {hosts} Host headers; exactly one is expected")
    return HeadError(400, "the Content-Length is not one decimal number")


def shown(value: str) -> str:
    """A value the peer sent, quoted for an error message: printable, and not long."""
    return ascii(value if len(value) <= 80 else value[:77] + "...")
