"""Forms and JSON as they come, in any pieces."""

from collections.abc import Callable

import pytest

from deployments.contracts.api import EditsForm
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import MAX_TEXT
from deployments.contracts.videos import VideoBody
from deployments.ingress.http.forms import Form, FormReader, boundary_of
from deployments.ingress.http.json_text import MAX_MARKS, JsonWatch, parsed
from tests.faults.hostile import BOUNDARY, field, file, form, part

PICTURE = b"\r\n--" + BOUNDARY[:-1] + b"\r\n\0--\r\n"  # bytes that look like a boundary
WHOLE = form(
    lambda: field("prompt", "ein Ball, schön rot".encode()),
    lambda: file("image", PICTURE),
    lambda: file("mask[]", b""),
    lambda: field("loras", b'[{"name": "ink", "weight": 0.5}]'),
    lambda: field("negative_prompt", b""),
)()


def read(body: bytes, size: int) -> Form[EditsForm]:
    reader = FormReader(BOUNDARY, EditsForm, ("image", "mask"), 1000, 1000)
    for start in range(0, len(body), size):
        reader.see(body[start : start + size])
    return reader.form()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 64, 1000])
@pytest.mark.parametrize("after", [b"", b"\r\nan epilogue"])
def test_a_form_in_pieces(size: int, after: bytes) -> None:
    got = read(WHOLE + after, size)
    assert got.fields.prompt == "ein Ball, schön rot"
    assert got.fields.negative_prompt == ""
    assert got.fields.loras[0].weight == 0.5
    assert got.file("image") == PICTURE
    assert got.optional_file("mask") == b""


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("before", [b"\r\n", 3 * b"\r\n"])
def test_empty_lines_before_the_first_boundary(before: bytes, size: int) -> None:
    assert read(before + WHOLE, size).file("image") == PICTURE


@pytest.mark.parametrize("size", [1, 50, 10_000])
@pytest.mark.parametrize(
    ("body", "says", "param"),
    [
        (b"", "last boundary is missing", None),
        (WHOLE[1:], "does not begin", None),
        (b"a preamble\r\n" + WHOLE, "does not begin", None),
        (b"\r\n\r\r\n" + WHOLE, "does not begin", None),
        (WHOLE[:-4], "last boundary is missing", None),
        (form(lambda: part(b"a: b", b""))(), "no content-disposition", None),
        (form(lambda: part(b"content-disposition: form-data", b""))(), "with a name", None),
        (form(lambda: field("prompt", b"a") + b"x")(), "last boundary is missing", None),
        (form(lambda: field("prompt", b"\xff"))(), "not UTF-8", "prompt"),
        (form(lambda: file("image", bytes(1001)))(), "1000 bytes", "image"),
        (form(lambda: field("image", bytes(1001)))(), "1000 bytes", "image"),
        (form(lambda: field("user", b"a" * 257), lambda: field("prompt", b""))(), "256", "user"),
        (form(lambda: field("size", b"a" * 101), lambda: field("prompt", b""))(), "100", "size"),
        (form(lambda: file("prompt", b"a"))(), "files here: image, mask", "prompt"),
        (form(lambda: field("controls", b"[" * 1000))(), "JSON text", "controls"),
    ],
)
def test_forms_that_are_none(body: bytes, says: str, param: str | None, size: int) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        read(body, size)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=", f"a; boundary={'b' * 71}"],
)
def test_boundaries_that_are_none(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 70"):
        boundary_of(kind)


def test_boundaries() -> None:
    assert boundary_of('multipart/form-data; charset=x; boundary="a b"') == b"a b"


@pytest.mark.parametrize("size", [1, 1000, 10**7])
def test_json_that_may_be_right_is_let_through(size: int) -> None:
    prompt = b'"' + b"\\u0041" * MAX_TEXT + b'"'
    picture = b'"data:image/png;base64,' + b"A" * (10**6 - 22) + b'"'
    for text in (prompt, picture, b'{"a": ' + prompt + b', "b": ' + picture + b"}"):
        if size > 1 or text is prompt:
            watch(text, size)


def watch(text: bytes, size: int, longest: int = 10**6) -> None:
    seen = JsonWatch(longest)
    for start in range(0, len(text), size):
        seen.see(text[start : start + size])


@pytest.mark.parametrize("size", [999, 10**7])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'"' + b"a" * (6 * MAX_TEXT + 1), "600000 bytes"),
        (b'"a", "data:' + b"a" * 10**6, "1000000 bytes"),
        (b'"datum:' + b"a" * (6 * MAX_TEXT), "600000 bytes"),
        (b"," * (MAX_MARKS + 1), "too many values, or texts of too many marks: over 100000 commas"),
        (b'"' * (MAX_MARKS + 1), "too many values, or texts of too many marks: over 100000 commas"),
        (b'"a":' + b" " * (6 * MAX_TEXT + 1), "one quote to the next, of a text or of white space"),
    ],
)
def test_json_that_cannot_be_right(text: bytes, says: str, size: int) -> None:
    with pytest.raises(InvalidRequest, match=says):
        watch(text, size)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_each_of_its_encodings(encoding: str) -> None:
    assert parsed('{"prompt": "schön, \u732b"}'.encode(encoding)) == {"prompt": "schön, \u732b"}


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf{", b"\xff\xfe\x00", b"\xef\xbb\xbf\xff"])
def test_json_in_no_encoding(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(text)


LARGE = b"data:image/png;base64," + b"A" * (5 * MAX_TEXT)


@pytest.mark.parametrize("name", ["input_reference", "input_reference[image_url]"])
def test_a_picture_as_a_text(name: str) -> None:
    def sent(*more: Callable[[], bytes], longest: int = 10 * MAX_TEXT) -> Form[VideoBody]:
        reader = FormReader(BOUNDARY, VideoBody, ("input_reference",), 1000, longest)
        reader.see(form(lambda: field("prompt", b"a"), lambda: field(name, LARGE), *more)())
        return reader.form()

    got = sent()
    assert got.optional_file("input_reference") is None
    assert got.fields.to_request().image == LARGE.decode()
    with pytest.raises(InvalidRequest, match="has more than 1000 bytes") as refused:
        sent(longest=1000)
    assert refused.value.param == name
    with pytest.raises(InvalidRequest, match="twice, as a file and as a text"):
        sent(lambda: file("input_reference", b"a"))
