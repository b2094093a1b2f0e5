"""Multipart bodies (RFC 7578): files, and fields that are checked like JSON ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header

from deployments.contracts.api import wire_names
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import MAX_NAME, MAX_TEXT
from deployments.ingress.answer.failures import invalid
from deployments.ingress.http.brackets import Path, joined, split_name
from deployments.ingress.http.json_text import JsonWatch, parsed

Fields = TypeVar("Fields", bound=BaseModel)
# JSON text, or flattened.
NESTED = (
    "loras",
    "controls",
    "ip_adapter",
    "motion_loras",
    "svg",
    "input_reference",
    "expires_after",
)
MAX_PARTS = 256
MAX_HEAD = 4096  # bytes of the headers of a part
MAX_FILENAME = 255
MAX_BOUNDARY = 70  # RFC 2046


@dataclass(frozen=True, eq=False)
class File:
    """What came under the name of a file; `filename`: as its sender calls it, `None` if it came as
    a text."""

    content: bytes
    filename: str | None

    @property
    def is_file(self) -> bool:
        """Whether it came as one."""
        return self.filename is not None


@dataclass(frozen=True, eq=False)
class Form(Generic[Fields]):
    """A received form: its fields, and its files by name."""

    fields: Fields
    files: Mapping[str, list[File]]

    def file(self, name: str) -> bytes:
        """The one file of a name (`name` or `name[]`). Raises `InvalidRequest`."""
        data = self.optional_file(name)
        if data is None:
            raise InvalidRequest(f"{name} is required, as a file", name)
        return data

    def optional_file(self, name: str) -> bytes | None:
        """The one file of a name, or `None`."""
        found = self._all(name, 1)
        return found[0] if found else None

    def several(self, name: str, most: int) -> list[bytes]:
        """The files of a name, one at least, in order. Raises `InvalidRequest`."""
        return self._all(name, most) or [self.file(name)]

    def _all(self, name: str, most: int) -> list[bytes]:
        found = self.files.get(name, [])
        if len(found) > most:
            need = "one is needed" if most == 1 else f"at most {most} are read"
            raise InvalidRequest(f"{len(found)} files are given as {name}; {need}", name)
        if not all(file.is_file for file in found):
            raise InvalidRequest(f"{name} must be a file", name)
        return [file.content for file in found]


class FormReader(Generic[Fields]):
    """Takes a form apart as it comes: whatever is too large is refused before it is here.

    Args:
        model: of the fields.
        files: names of the files that the form may hold; one that is a field of the model, too,
            may come as a text.
        max_file_bytes: of one file.
        longest: bytes of a text in nested JSON: see `JsonWatch`.
    """

    def __init__(
        self,
        boundary: bytes,
        model: type[Fields],
        files: Sequence[str],
        max_file_bytes: int,
        longest: int,
    ) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._model = model
        self._files = files
        self._max_file_bytes = max_file_bytes
        self._longest = longest
        self._pending = bytearray(b"\r\n")  # as if a line had ended before the first boundary
        self._parts: list[_Part] = []
        self._part: _Part | None = None
        self._begun = self._ended = False

    def see(self, chunk: bytes) -> None:
        """The next bytes. Raises `InvalidRequest` for what can be refused already."""
        if self._ended:
            return  # an epilogue says nothing
        self._pending += chunk
        while self._step():
            pass

    def form(self) -> Form[Fields]:
        """The form, when all has come. Raises `InvalidRequest` naming the field that is wrong."""
        if not self._ended:
            raise _malformed("its last boundary is missing")
        fields: dict[str, object] = {}
        files: dict[str, list[File]] = {}
        flattened: dict[str, list[tuple[Path, str]]] = {}
        for part in self._parts:
            content = b"".join(part.content)
            if part.expected and (part.is_file or part.name not in wire_names(self._model)):
                file = File(content, part.filename)
                files.setdefault(part.name.removesuffix("[]"), []).append(file)
            elif (found := split_name(part.name)) is not None and found[0] in NESTED:
                flattened.setdefault(found[0], []).append((found[1], _text(part.name, content)))
            elif part.name in fields:
                raise InvalidRequest(f"{part.name} is given twice", part.name)
            else:
                nested = part.name in NESTED and not part.expected
                fields[part.name] = (_json if nested else _text)(part.name, content)
        for name, values in flattened.items():
            if name in fields:
                raise InvalidRequest(f"{name} is given twice", name)
            try:
                fields[name] = joined(values)
            except ValueError as error:
                raise InvalidRequest(f"{name}: {error}", name) from error
        for name in fields.keys() & files.keys():
            raise InvalidRequest(f"{name} is given twice, as a file and as a text", name)
        try:
            return Form(self._model.model_validate(fields), files)
        except ValidationError as error:
            raise invalid(error, (*self._files, *wire_names(self._model))) from error

    def _step(self) -> bool:
        """One step on; `False`: more must come first."""
        if not self._begun:
            while self._pending.startswith(b"\r\n\r\n"):
                del self._pending[:2]  # empty lines in front: some clients send one
            if len(self._pending) < len(self._delimiter):
                return False
            if not self._pending.startswith(self._delimiter):
                raise _malformed("it does not begin with its boundary")
            del self._pending[: len(self._delimiter)]
            self._begun = True
        return self._head() if self._part is None else self._content(self._part)

    def _head(self) -> bool:
        """From a boundary to the first byte of a part."""
        if self._pending.startswith(b"--"):
            self._ended = True
            self._pending.clear()
            return False
        if len(self._pending) < 2:
            return False
        end = self._pending.find(b"\r\n\r\n", 0, MAX_HEAD)
        if not self._pending.startswith(b"\r\n") or (end < 0 and len(self._pending) > MAX_HEAD):
            raise _malformed(f"a part has no headers, or more than {MAX_HEAD} bytes of them")
        if end < 0:
            return False
        if len(self._parts) == MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        self._part = self._opened(bytes(self._pending[2:end]))
        self._parts.append(self._part)
        del self._pending[: end + 4]
        return True

    def _content(self, part: "_Part") -> bool:
        """Up to the next boundary, or as far as none can have begun."""
        end = self._pending.find(self._delimiter)
        here = end if end >= 0 else max(0, len(self._pending) - len(self._delimiter) + 1)
        part.add(bytes(self._pending[:here]))
        del self._pending[:here]
        if end < 0:
            return False
        del self._pending[: len(self._delimiter)]
        self._part = None
        return True

    def _opened(self, head: bytes) -> "_Part":
        name, filename = _named(head)
        is_file = filename is not None
        expected = name.removesuffix("[]") in self._files
        if is_file and not expected:
            taken = ", ".join(self._files) or "none"
            raise InvalidRequest(f"{name} is a file; files here: {taken}", name)
        if expected:
            most, allowed = self._max_file_bytes, f"a file may have {self._max_file_bytes} bytes"
        else:
            most, allowed = 4 * MAX_TEXT, f"a text may have {MAX_TEXT} characters"
        flattened = split_name(name)
        whole = name if flattened is None else flattened[0]
        watch = JsonWatch(self._longest) if whole in NESTED and not is_file else None
        return _Part(name, filename, expected, most, allowed, watch)


@dataclass
class _Part:
    """A part that is coming.

    Attributes:
        expected: its name is that of a file.
        most: bytes; `allowed`: how a refusal says so.
        watch: instead, for nested JSON.
    """

    name: str
    filename: str | None
    expected: bool
    most: int
    allowed: str
    watch: JsonWatch | None
    content: list[bytes] = field(default_factory=list)
    size: int = 0

    @property
    def is_file(self) -> bool:
        """Whether it came as a file."""
        return self.filename is not None

    def add(self, piece: bytes) -> None:
        """Raises `InvalidRequest` if that is too much."""
        self.size += len(piece)
        if self.watch is not None:
            try:
                self.watch.see(piece)
            except InvalidRequest as error:
                raise InvalidRequest(f"{self.name}: {error}", self.name) from error
        elif self.size > self.most:
            raise InvalidRequest(f"{self.name} is too large; {self.allowed}", self.name)
        self.content.append(piece)


def boundary_of(content_type: str) -> bytes:
    """What separates the parts. Raises `InvalidRequest`."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise _malformed(f"its content-type must name its boundary, 1 to {MAX_BOUNDARY} characters")
    return boundary


def _named(head: bytes) -> tuple[str, str | None]:
    """The name of a part, and how a file is called by its sender."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            kind, options = parse_options_header(value.strip())
            if kind == b"form-data" and b"name" in options:
                field_name = options[b"name"].decode("utf-8", "replace")[:MAX_NAME]
                filename = options.get(b"filename")
                if filename is None:
                    return field_name, None
                return field_name, filename.decode("utf-8", "replace")[:MAX_FILENAME]
    raise _malformed("a part has no content-disposition: form-data with a name")


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8 text", name) from error


def _json(name: str, content: bytes) -> object:
    try:
        return parsed(content)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} must be JSON text ({error})", name) from error


def _malformed(what: str) -> InvalidRequest:
    return InvalidRequest(f"the multipart body cannot be read: {what}")
