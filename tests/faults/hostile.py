"""Oversized and hostile requests: each is to be refused at once."""

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tests.deployments.ingress.images import data_url

HUGE = 60_000_000  # bytes; bodies may have 64 MiB
GENERATIONS, VIDEOS = "/v1/images/generations", "/v1/videos"
EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
CANNY = "/v1/preprocess/canny"
BOUNDARY = b"0123456789abcdef"
FORM = f"multipart/form-data; boundary={BOUNDARY.decode()}"


@dataclass(frozen=True)
class Case:
    """A request, made when it is needed.

    Attributes:
        says: what the refusal's message must have.
        param: the field that it must name.
        chunked: sent without its length.
    """

    path: str
    body: Callable[[], bytes]
    says: str
    param: str | None = None
    kind: str = "application/json"
    status: int = 400
    chunked: bool = False


def png(width: int, height: int) -> bytes:
    """A small file of a black picture."""
    return chunks_of(
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes((width + 1) * height), 9)),
        (b"IEND", b""),
    )


def chunks_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file."""
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def animated(kind: str) -> bytes:
    """Two thousand frames."""
    file = io.BytesIO()
    first, *rest = [Image.new("RGB", (16, 16), (i % 256, i // 256, 0)) for i in range(2000)]
    first.save(file, kind, save_all=True, append_images=rest)
    return file.getvalue()


def text(before: str, filling: bytes, after: str) -> Callable[[], bytes]:
    """A JSON body of 60 MB."""
    return lambda: before.encode() + filling * (HUGE // len(filling)) + after.encode()


def said(**fields: Any) -> Callable[[], bytes]:
    """A JSON body with a prompt."""
    return lambda: json.dumps({"prompt": "a", **fields}).encode()


def controls(count: int, picture: Callable[[], bytes]) -> Callable[[], bytes]:
    """As many controls of the same picture."""

    def body() -> bytes:
        url = data_url(picture())
        listed = [{"type": "canny", "image": url} for _ in range(count)]
        return json.dumps({"prompt": "a", "controls": listed}).encode()

    return body


def part(head: bytes, content: bytes) -> bytes:
    """A part of a form, with the boundary in front of it."""
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def field(name: str, content: bytes) -> bytes:
    """A part that is a field."""
    return part(b'content-disposition: form-data; name="%s"' % name.encode(), content)


def file(name: str, content: bytes) -> bytes:
    """A part that is a file."""
    head = b'content-disposition: form-data; name="%s"; filename="a.png"' % name.encode()
    return part(head, content)


def form(*parts: Callable[[], bytes]) -> Callable[[], bytes]:
    """A form's body."""
    return lambda: b"".join([*(one() for one in parts), b"--", BOUNDARY, b"--\r\n"])


def prompt() -> bytes:
    return field("prompt", b"a")


def good() -> bytes:
    return file("image", png(64, 64))


def hundred_thousand() -> bytes:
    return b"".join(field(f"k{number}", b"") for number in range(100_000))


def crowded_png() -> bytes:
    """A picture behind a million and a half chunks that say nothing."""
    whole = png(64, 64)
    return whole[:33] + chunks_of((b"teSt", b""))[8:] * 1_600_000 + whole[33:]


def _long_texts() -> Iterator[tuple[str, Case]]:
    """60 MB in every text of every route."""
    names = [
        "prompt",
        "negative_prompt",
        "model",
        "size",
        "user",
        "output_format",
        "response_format",
    ]
    for name in names:
        body = text(f'{{"guidance_scale": 5, "{name}": "', b"word ", '"}')
        yield f"60 MB of {name}", Case(GENERATIONS, body, "100000 characters")
    for name in ("prompt", "negative_prompt", "model"):
        body = text(f'{{"{name}": "', b"word ", '"}')
        yield f"60 MB of a video's {name}", Case(VIDEOS, body, "100000 characters")
        shown = form(lambda name=name: field(name, b"a" * HUGE), good)  # type: ignore[misc]
        yield f"60 MB of an edit's {name}", Case(EDITS, shown, "100000 characters", name, FORM)
    for name, inner in (("loras", "name"), ("controls", "type"), ("controls", "image")):
        body = text(f'{{"prompt": "a", "{name}": [{{"{inner}": "', b"word ", '"}]}')
        yield f"60 MB of {name}.{inner}", Case(GENERATIONS, body, "100000 characters")
    for name, filling in (
        ("escapes", b"\\u0041"),
        ("escaped quotes", b'\\"'),
        ("two-byte characters", "é".encode()),
        ("no UTF-8", b"\xff"),
        ("percents as a picture", b"%41"),
    ):
        body = text('{"prompt": "', filling, '"}')
        says = "too many values" if "quotes" in name else "100000 characters"
        yield f"60 MB of {name}", Case(GENERATIONS, body, says)


def _json() -> Iterator[tuple[str, Case]]:
    url = text('{"prompt": "a", "controls": [{"type": "canny", "image": "data:', b",%41", '"}]}')
    yield "a data URL of commas", Case(GENERATIONS, url, "too many values")
    url = text('{"prompt": "a", "controls": [{"type": "canny", "image": "data:,', b"%41", '"}]}')
    yield "a percent-encoded data URL of 60 MB", Case(GENERATIONS, url, "data URL at most")
    url = text(
        '{"prompt": "a", "controls": [{"type": "canny", "image": "data:;base64,', b"AAAA", '"}]}'
    )
    yield "a base64 data URL of 60 MB", Case(GENERATIONS, url, "data URL at most")
    image = "controls.0.image"

    def shown(header: str, body: str, **more: Any) -> Callable[[], bytes]:
        return lambda: said(controls=[{"type": "canny", "image": header + body, **more}])()

    yield (
        "a percent-encoded data URL of 20 MB",
        Case(GENERATIONS, shown("data:,", "%41" * 7_000_000), "must be base64", image),
    )
    yield (
        "20 MB of base64 that is no picture",
        Case(GENERATIONS, shown("data:;base64,", "AAAA" * 6_900_000), "unknown format", image),
    )
    yield (
        "a picture whose base64 breaks off",
        Case(
            GENERATIONS,
            shown(data_url(png(64, 64)).rstrip("="), "AAAA" * 1_000_000 + "!"),
            "not base64",
            image,
        ),
    )
    yield (
        "a URL of 50 kB",
        Case(GENERATIONS, shown("https://a/", "a" * 50_000), "2048 are allowed", image),
    )
    most = "at most 64 items"
    for name in ("loras", "controls"):
        flood = text(f'{{"prompt": "a", "{name}": [', b"{},", "{}]}")
        yield f"twenty million {name}", Case(GENERATIONS, flood, "too many values")
    yield (
        "thirty million numbers as loras",
        Case(GENERATIONS, text('{"prompt":"a","loras":[', b"0,", "0]}"), "too many values"),
    )
    yield (
        "a million motion_loras",
        Case(VIDEOS, lambda: said(motion_loras=[{}] * 1_000_000)(), "too many values"),
    )
    yield "fifty thousand loras", Case(GENERATIONS, said(loras=[0] * 50_000), most, "loras")
    yield (
        "a hundred thousand pictures for the IP-Adapter",
        Case(
            GENERATIONS,
            said(ip_adapter={"image": ["a"] * 49_000}),
            "at most 8 items",
            "ip_adapter.image",
        ),
    )
    yield "3000 small controls", Case(GENERATIONS, controls(3000, lambda: png(8, 8)), most)
    yield (
        "24 controls of 16 Mpx",
        Case(
            GENERATIONS,
            controls(24, lambda: png(4096, 4096)),
            "controls has 24 entries; 16 at most",
            "controls",
        ),
    )
    yield (
        "three controls of 16 Mpx",
        Case(GENERATIONS, controls(3, lambda: png(4096, 4096)), "33554432 are allowed", image),
    )
    yield (
        "sixteen controls of 16 Mpx",
        Case(GENERATIONS, controls(16, lambda: png(4096, 4096)), "33554432 are allowed", image),
    )
    yield (
        "a decompression bomb",
        Case(
            GENERATIONS,
            controls(1, lambda: png(50_000, 1000)),
            "at most 16777216 are allowed",
            image,
        ),
    )
    for kind in ("GIF", "WEBP"):
        yield (
            f"a {kind} of 2000 frames",
            Case(GENERATIONS, controls(1, lambda kind=kind: animated(kind)), "animated", image),  # type: ignore[misc]
        )
    yield (
        "half a million brackets",
        Case(GENERATIONS, lambda: b'{"prompt": ' + b"[" * 500_000, "recursion limit"),
    )
    yield (
        "deep controls",
        Case(VIDEOS, lambda: b'{"loras": ' + b'[{"a":' * 40_000, "recursion limit"),
    )
    yield (
        "a number of 60 MB",
        Case(GENERATIONS, text('{"prompt": "a", "seed": ', b"1", "}"), "100000 characters"),
    )
    yield (
        "a number of 100 kB",
        Case(
            GENERATIONS,
            lambda: b'{"prompt": "a", "seed": ' + b"1" * 100_000 + b"}",
            "number out of range",
        ),
    )
    yield "NaN", Case(GENERATIONS, said(guidance_scale=float("nan")), "finite", "guidance_scale")
    yield "Infinity", Case(GENERATIONS, said(eta=float("inf")), "finite", "eta")
    yield "n of 10^18", Case(GENERATIONS, said(n=10**18), "10 at most", "n")
    keys = b"{" + b",".join(b'"k%d":0' % i for i in range(1_000_000)) + b"}"
    yield "a million fields", Case(GENERATIONS, lambda: keys, "too many values")
    few = {f"k{i}": 0 for i in range(40_000)}
    yield "40,000 fields", Case(GENERATIONS, said(**few), "64 at most")
    yield (
        "a field a million times",
        Case(GENERATIONS, lambda: b"{" + b'"n":1,' * 1_000_000 + b'"n":1}', "too many values"),
    )
    yield "an unknown field of 500 kB", Case(GENERATIONS, said(**{"k" * 500_000: 0}), "unknown")
    yield "60 MB of blanks", Case(GENERATIONS, text("{", b" ", "}"), "100000 characters")
    yield "a chunked flood", Case(
        GENERATIONS, text('{"prompt": "', b"word ", '"}'), "100000", chunked=True
    )  # fmt: skip


def _forms() -> Iterator[tuple[str, Case]]:
    def over(
        path: str, says: str, param: str | None, *parts: Callable[[], bytes], **more: Any
    ) -> Case:
        return Case(path, form(*parts), says, param, FORM, **more)

    yield (
        "100,000 parts",
        over(EDITS, "more than 256 parts", None, hundred_thousand),
    )
    yield (
        "100,000 parts of a video",
        over(VIDEOS, "more than 256 parts", None, hundred_thousand),
    )
    yield "a field twice", over(EDITS, "twice", "prompt", prompt, prompt, good)
    yield (
        "controls of 60 MB as text",
        over(
            EDITS,
            "100000 characters",
            "controls",
            prompt,
            good,
            lambda: field("controls", b"a" * HUGE),
        ),
    )
    yield (
        "twenty million controls as text",
        over(
            EDITS,
            "too many values",
            "controls",
            prompt,
            good,
            lambda: field("controls", b"[" + b"{}," * 20_000_000 + b"{}]"),
        ),
    )
    yield (
        "an image of 60 MB",
        over(EDITS, "20971520 bytes", "image", prompt, lambda: file("image", bytes(HUGE))),
    )
    near = b"\r\n--" + BOUNDARY[:-1]
    yield (
        "60 MB of near boundaries",
        over(
            EDITS,
            "bytes",
            "image",
            prompt,
            lambda: file("image", near * (HUGE // len(near))),
        ),
    )
    yield (
        "headers of 60 MB",
        over(EDITS, "4096 bytes", None, lambda: part(b"a: " + b"a" * HUGE, b"")),
    )
    yield (
        "no last boundary",
        Case(EDITS, lambda: file("image", bytes(20_000_000)), "boundary is missing", None, FORM),
    )
    yield (
        "a boundary of 5 kB",
        Case(EDITS, form(prompt), "boundary", None, FORM + "b" * 5000),
    )
    yield (
        "a name of 4 kB",
        over(EDITS, "unknown field", "n" * 100, good, prompt, lambda: field("n" * 4000, b"")),
    )
    yield (
        "a bomb to vary",
        over(VARIATIONS, "allowed", "image", lambda: file("image", png(50_000, 1000))),
    )
    yield (
        "a picture of 20 Mpx",
        over(EDITS, "allowed", "image", prompt, *(lambda: file("image", png(5000, 4000)),)),
    )
    yield (
        "19 MB of chunks to preprocess",
        over(CANNY, "chunks", "image", lambda: file("image", crowded_png())),
    )
    yield (
        "60 MB to preprocess",
        over(CANNY, "20971520 bytes", "image", lambda: file("image", bytes(HUGE))),
    )
    yield (
        "more than a body may have, in chunks",
        over(
            EDITS,
            "larger than",
            None,
            lambda: file("image", bytes(70_000_000)),
            status=413,
            chunked=True,
        ),
    )


CASES = dict([*_long_texts(), *_json(), *_forms()])
