"""Requests whose end can be read in two ways: each gets one answer at most, or none.

Sent by bare sockets to what listens in front. What stands behind the doubtful end asks for a route
that answers 200; an answer to it would mean that somebody's next request can be put in his mouth.
"""

import socket
from urllib.parse import urlsplit

import pytest

from tests.serving import Served

SILENCE_S = 1.0
BEGIN = b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
N = b"%d" % len(HIDDEN)
CHUNKED = b"0\r\n\r\n" + HIDDEN
# Each is the head's rest and the body. In every one of them some reading makes HIDDEN a request.
FORMS = {
    "length and chunks": b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 40\r\n\r\n" + CHUNKED,
    "two lengths": b"Content-Length: 0\r\nContent-Length: " + N + b"\r\n\r\n" + HIDDEN,
    "two lengths, the longer first": b"Content-Length: "
    + N
    + b"\r\nContent-Length: 0\r\n\r\n"
    + HIDDEN,
    "a list of lengths": b"Content-Length: 0, " + N + b"\r\n\r\n" + HIDDEN,
    "a negative length": b"Content-Length: -1\r\n\r\n" + HIDDEN,
    "a signed length": b"Content-Length: +0\r\n\r\n" + HIDDEN,
    "a hexadecimal length": b"Content-Length: 0x0\r\n\r\n" + HIDDEN,
    "a length with a space": b"Content-Length: 0 0\r\n\r\n" + HIDDEN,
    "a huge length": b"Content-Length: 18446744073709551616\r\n\r\n" + HIDDEN,
    "an empty length": b"Content-Length: \r\n\r\n" + HIDDEN,
    "a space before the colon": b"Content-Length : 0\r\n\r\n" + HIDDEN,
    "chunked with a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "chunked, then something": b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "nearly chunked": b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "chunked in quotes": b'Transfer-Encoding: "chunked"\r\n\r\n' + CHUNKED,
    "chunked, folded": b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 0\r\n\r\n" + CHUNKED,
    "chunked by a tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n" + CHUNKED,
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n" + CHUNKED,
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + HIDDEN,
    "a hexadecimal chunk": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + HIDDEN,
    "a huge chunk": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n" + HIDDEN,
    "a chunk with a space": b"Transfer-Encoding: chunked\r\n\r\n0 1\r\n\r\n" + HIDDEN,
    "a chunk without its end": b"Transfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n" + HIDDEN,
    "a bare line feed after a chunk": b"Transfer-Encoding: chunked\r\n\r\n0\n\n" + HIDDEN,
    "a bare line feed in an extension": b"Transfer-Encoding: chunked\r\n\r\n0;a\n\r\n" + HIDDEN,
    "a bare carriage return": b"A: b\rContent-Length: 0\r\n\r\n" + HIDDEN,
    "a null byte in a name": b"Content\x00-Length: 0\r\n\r\n" + HIDDEN,
    "a null byte in a value": b"A: \x00\r\n\r\n" + HIDDEN,
    "a line without a colon": b"Content-Length\r\n\r\n" + HIDDEN,
    "no name": b": 0\r\n\r\n" + HIDDEN,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_one_answer_at_most(served: Served, form: bytes) -> None:
    answer = sent(served, BEGIN + form)
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    assert b'"ok"' not in answer
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /healthz HTTP/1.1 HTTP/1.1",
        b"GET /healthz\tHTTP/1.1",
        b"GET /healthz HTTP/1.1\rX: y",
        b"GET\x00 /healthz HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0",
    ],
)
def test_what_is_no_request(served: Served, request_line: bytes) -> None:
    answer = sent(served, request_line + b"\r\nHost: a\r\n\r\n")
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer


def sent(served: Served, data: bytes) -> bytes:
    """All that comes back, until the other side closes or is silent."""
    place = urlsplit(served.url)
    assert place.hostname is not None
    answer = b""
    with socket.create_connection((place.hostname, place.port or 80), timeout=10) as connection:
        connection.sendall(data)
        connection.settimeout(SILENCE_S)
        try:
            while part := connection.recv(65536):
                answer += part
        except (TimeoutError, ConnectionResetError):
            pass
    return answer
