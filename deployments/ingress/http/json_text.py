"""JSON text: of strangers, watched as it comes and read quickly; of answers, put together."""

import json
from collections.abc import Iterable

from pydantic_core import from_json

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import MAX_TEXT

MAX_MARKS = 100_000  # commas or quotes of a JSON text: it has fewer values than these
TOO_MANY = f"too many values, or texts of too many marks: over {MAX_MARKS} commas or quotes in all"


def filled(text: bytes, name: str, items: Iterable[bytes]) -> bytes:
    """JSON whose list `name`, empty so far and the first of that name, has items that are JSON
    already. They are most of an answer: who wrote all of it at once would keep others waiting."""
    before, after = text.split(f'"{name}":[]'.encode(), 1)
    return b"".join([before, f'"{name}":['.encode(), b",".join(items), b"]", after])


class JsonWatch:
    """Looks at a JSON body as it comes, so that one that cannot be right is refused before it is
    here: too many values, or a text longer than any field takes.

    Args:
        longest: bytes of a text that holds a picture.
        bare: every text may hold one; else those that begin as a data URL, and others have room
            for `MAX_TEXT` characters, however they are escaped.
    """

    def __init__(self, longest: int, bare: bool = False) -> None:
        self._longest = longest
        self._bare = bare
        self._commas = self._quotes = 0
        self._run = 0  # bytes since the last quote
        self._head = b""  # the first few of them

    def see(self, chunk: bytes) -> None:
        """The next bytes. Raises `InvalidRequest`."""
        self._commas += chunk.count(b",")
        self._quotes += chunk.count(b'"')
        if max(self._commas, self._quotes) > MAX_MARKS:
            raise InvalidRequest(f"the body has {TOO_MANY}")
        last = chunk.rfind(b'"')
        if last >= 0:
            self._check(chunk.find(b'"'))
            self._run, self._head = 0, b""
        self._head += chunk[last + 1 : last + 6 - len(self._head)]
        self._check(len(chunk) - last - 1)
        self._run += len(chunk) - last - 1

    def _check(self, more: int) -> None:
        pictured = self._bare or self._head == b"data:"
        most = self._longest if pictured else 6 * MAX_TEXT
        if self._run + more > most:
            raise InvalidRequest(
                f"the body has more than {most} bytes from one quote to the next, of a text or of "
                f"white space: a prompt has at most {MAX_TEXT} characters, a picture as a data URL "
                f"at most {self._longest}"
            )


def parsed(text: bytes) -> object:
    """What JSON text says. Raises `ValueError` or `RecursionError`."""
    if max(text.count(b","), text.count(b'"')) > MAX_MARKS:
        raise ValueError(f"it has {TOO_MANY}")
    if json.detect_encoding(text) != "utf-8":  # a byte order mark in front, or UTF-16, or UTF-32
        return json.loads(text)
    try:
        return from_json(text)  # twice as quick as json, while which no other thread runs
    except ValueError as error:
        if "hex escape" not in str(error):
            raise
        # Half a surrogate pair: read, so that the error can name the field.
        return json.loads(text)
