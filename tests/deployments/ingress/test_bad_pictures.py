"""Pictures and what goes with them: each gives the right picture, or an error that names the field
and says what is allowed."""

import base64
import json
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from ray import serve

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import Control, ImageRequest, IpAdapter, Mask, Pixels
from preprocessors.image_file import Picture
from preprocessors.resize import resize
from tests.deployments.diffusion.engine.tasks import picture
from tests.deployments.ingress.images import data_url, png, shown
from tests.preprocessors.accepted import ACCEPTED
from tests.preprocessors.refused import REFUSED
from tests.serving import MAX_BODY_BYTES, Served

MODELS = ("sd15", "sdxl", "sdxl-inpainting", "animagine", "small")
MAX_PIXELS = 1024 * 1024  # of `served`
GOOD = png(picture(1, 128, 64))
OTHER_SIZE = png(picture(1, 64, 128))
GENERATIONS, EDITS, VARIATIONS = "images/generations", "images/edits", "images/variations"
DEPTH, CANNY = "preprocess/depth", "preprocess/canny"
Files = list[tuple[str, tuple[str, bytes]]]


@pytest.fixture(scope="module", autouse=True)
def failed_before(served: Served) -> dict[str, float]:
    """Images that had failed when these tests began, by model."""
    return {model: served.engine_figure("failed_total", model) for model in MODELS}


def file(name: str, content: bytes) -> tuple[str, tuple[str, bytes]]:
    """A file of a form."""
    return name, (f"{name}.bin", content)


def post(served: Served, route: str, files: Files, fields: dict[str, Any]) -> httpx.Response:
    """JSON for generations, a form for the others."""
    url = f"{served.url}/v1/{route}"
    if route == GENERATIONS:
        return httpx.post(url, json=fields, timeout=60)
    # A text without a file would make it no multipart form.
    texts = [(name, (None, str(value))) for name, value in fields.items()]
    return httpx.post(url, files=[*files, *texts], timeout=60)


def check_refusal(answer: httpx.Response, status: int, param: str | None, *says: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    for part in says:
        assert part in error["message"], error
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "rgb", "alpha", "tolerance"),
    [case[1:] for case in ACCEPTED],
    ids=[case[0] for case in ACCEPTED],
)
def test_a_good_file_is_the_picture_that_it_shows(
    served: Served, content: bytes, rgb: Pixels, alpha: Mask | None, tolerance: int
) -> None:
    """A mask that keeps most pixels gives those of the picture back, on white."""
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    mask[:, : max(1, width // 8)] = 255
    files = [file("image", content), file("mask", png(mask))]
    fields = {"prompt": "a", "size": "96x64", "num_inference_steps": 2, "strength": 0.5}
    answer = post(served, EDITS, files, fields)
    assert answer.status_code == 200, answer.text
    made = shown(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    expected = resize(Picture(rgb, alpha).on_white().rgb, (96, 64)).astype(int)
    kept = resize(mask, (96, 64)) < 128
    assert kept.mean() > 0.8 or width == 1
    # Lanczos amplifies what is off in the file, and rounds once more.
    most = 2 * tolerance + 1 if tolerance else 0
    assert np.abs(made - expected)[kept].max(initial=0) <= most


PLACES: dict[str, tuple[str, str]] = {
    "edits image": (EDITS, "image"),
    "edits mask": (EDITS, "mask"),
    "variations": (VARIATIONS, "image"),
    "preprocess depth": (DEPTH, "image"),
    "preprocess canny": (CANNY, "image"),
    "control": (GENERATIONS, "controls.0.image"),
    "ready control": (GENERATIONS, "controls.0.image"),
    "second control of an edit": (EDITS, "controls.1.image"),
    "ip_adapter": (GENERATIONS, "ip_adapter.image.0"),
}
# Limits that are others in `served`.
OWN_LIMITS = ("too many bytes", "one pixel too many")
BAD_FILES = [
    (content, says.replace("at most 10000", f"at most {MAX_PIXELS}"), name)
    for name, content, says in REFUSED
    if name not in OWN_LIMITS
] + [(png(Image.new("L", (1025, 1024))), "at most 1048576 are allowed", "too many pixels")]
TYPICAL = ("nothing", "png truncated", "apng of three frames")
BAD_CASES = [
    pytest.param(place, content, says, id=f"{name} as {place}")
    for number, (content, says, name) in enumerate(BAD_FILES)
    for index, place in enumerate(PLACES)
    if name in TYPICAL or index == number % len(PLACES)
]


@pytest.mark.parametrize(("place", "content", "says"), BAD_CASES)
def test_a_bad_file(served: Served, place: str, content: bytes, says: str) -> None:
    route, param = PLACES[place]
    url = data_url(content)
    canny = {"type": "canny", "image": url}
    bodies: dict[str, tuple[Files, dict[str, Any]]] = {
        "edits image": ([file("image", content)], {"prompt": "a"}),
        "edits mask": ([file("image", GOOD), file("mask", content)], {"prompt": "a"}),
        "variations": ([file("image", content)], {}),
        "preprocess depth": ([file("image", content)], {}),
        "preprocess canny": ([file("image", content)], {}),
        "control": ([], {"prompt": "a", "controls": [canny]}),
        "ready control": ([], {"prompt": "a", "controls": [{**canny, "preprocessed": True}]}),
        "second control of an edit": (
            [file("image", GOOD)],
            {
                "prompt": "a",
                "controls": json.dumps([{"type": "depth", "image": data_url(GOOD)}, canny]),
            },
        ),
        "ip_adapter": ([], {"prompt": "a", "ip_adapter": {"image": [url]}}),
    }
    files, fields = bodies[place]
    check_refusal(post(served, route, files, fields), 400, param, says)


class Case(NamedTuple):
    """A request that is refused: what the error must name and say."""

    fields: dict[str, Any]
    param: str | None
    says: str
    files: Files = [file("image", GOOD)]  # noqa: RUF012
    status: int = 400


def edit_cases() -> dict[str, Case]:
    image, mask = file("image", GOOD), file("mask", GOOD)
    nets = [{"type": "canny", "image": data_url(GOOD)}]
    pose = json.dumps([{**nets[0], "type": "pose"}])
    asked = {"prompt": "a"}
    only = {"prompt": "a", "model": "sdxl-inpainting"}
    return {
        "no image": Case(asked, "image", "required", [mask]),
        "no file at all": Case(asked, "image", "required", []),
        "ten images": Case(asked, "image", "10 files are given", [image] * 10),
        "images and a list": Case(
            asked, "image", "10 files", [image] * 5 + [file("image[]", GOOD)] * 5
        ),
        "two masks": Case(asked, "mask", "2 files are given", [image, mask, mask]),
        "text as image": Case({**asked, "image": "a"}, "image", "must be a file", []),
        "a url as image": Case({**asked, "image": data_url(GOOD)}, "image", "must be a file", []),
        "text as mask": Case({**asked, "mask": "a"}, "mask", "must be a file"),
        "a file as prompt": Case(
            {}, "prompt", "files here: image, mask", [image, file("prompt", b"a")]
        ),
        "another file": Case(
            asked, "extra", "files here: image, mask", [image, file("extra", GOOD)]
        ),
        "mask of another size": Case(
            asked, "mask", "64x128 and 128x64", [image, file("mask", OTHER_SIZE)]
        ),
        "enormous size": Case({**asked, "size": "99992x99992"}, "size", "from 64 to 512"),
        "odd size": Case({**asked, "size": "100x128"}, "size", "multiples of 8"),
        "no prompt": Case({}, "prompt", "required"),
        "strength 0": Case({**asked, "strength": 0}, "strength", "greater than 0"),
        "strength 1.5": Case({**asked, "strength": 1.5}, "strength", "less than or equal to 1"),
        "strength below 0": Case({**asked, "strength": -0.1}, "strength", "greater than 0"),
        "strength nan": Case({**asked, "strength": "nan"}, "strength", "finite"),
        "strength of text": Case({**asked, "strength": "much"}, "strength", "valid number"),
        "strength that leaves no step": Case(
            {**asked, "strength": 0.2}, "strength", "strength must be at least 0.25"
        ),
        "and what would do": Case(
            {**asked, "strength": 0.2}, "strength", "num_inference_steps must be at least 5"
        ),
        "one step": Case(
            {**asked, "num_inference_steps": 1},
            "strength",
            "num_inference_steps must be at least 2",
        ),
        "preserve_unmasked": Case(
            {**asked, "preserve_unmasked": "perhaps"}, "preserve_unmasked", "boolean"
        ),
        "malformed loras": Case({**asked, "loras": '[{"name": "ink"'}, "loras", "JSON text"),
        "loras without quotes": Case({**asked, "loras": "[ink]"}, "loras", "JSON text"),
        "one lora": Case({**asked, "loras": '{"name": "ink"}'}, "loras", "valid list"),
        "unknown lora": Case(
            {**asked, "loras": '[{"name": "nope"}]'}, "loras", "papercut", status=404
        ),
        "lora too strong": Case(
            {**asked, "loras": '[{"name": "ink", "weight": 11}]'}, "loras.0.weight", "10"
        ),
        "malformed controls": Case({**asked, "controls": "canny"}, "controls", "JSON text"),
        "bottomless controls": Case({**asked, "controls": "[" * 99999}, "controls", "JSON text"),
        "unknown control": Case({**asked, "controls": pose}, "controls", "canny, depth"),
        "malformed ip_adapter": Case({**asked, "ip_adapter": "{"}, "ip_adapter", "JSON text"),
        "ip_adapter without image": Case(
            {**asked, "ip_adapter": '{"scale": 1}'}, "ip_adapter.image", "required"
        ),
        "unknown field": Case({**asked, "strenght": 0.5}, "strenght", "strength"),
        "a field twice": Case(asked, "prompt", "twice", [image, ("prompt", (None, b"b"))]),  # type: ignore[list-item]
        "unknown model": Case({**asked, "model": "nope"}, "model", "sd15", status=404),
        "too many images": Case({**asked, "n": 5}, "n", "4 at most"),
        "an inpainting model without mask": Case(only, "mask", "a mask is needed"),
        "a control that an inpainting model lacks": Case(
            {**only, "controls": json.dumps(nets)}, "controls", "none", [image, mask]
        ),
    }


def variation_cases() -> dict[str, Case]:
    image = file("image", GOOD)
    return {
        "no image": Case({"n": 1}, "image", "required", []),
        "two images": Case({}, "image", "2 files", [image, image]),
        "a mask": Case({}, "mask", "files here: image", [image, file("mask", GOOD)]),
        "a model without an ip_adapter": Case({"model": "small"}, "ip_adapter", "no IP-Adapter"),
        "a scale too high": Case({"scale": 2.1}, "scale", "2"),
        "an ip_adapter": Case({"ip_adapter": '{"image": "x"}'}, "ip_adapter", "scale"),
        "a strength": Case({"strength": 0.5}, "strength", "unknown field"),
        "another format": Case({"response_format": "b64"}, "response_format", "b64_json"),
    }


def map_cases(route: str) -> dict[str, Case]:
    image, only = file("image", GOOD), "only on canny maps made here"
    cases = {
        "no image": Case({"image": "a"}, "image", "must be a file", []),
        "two images": Case({}, "image", "2 files", [image, image]),
        "a mask": Case({}, "mask", "files here: image", [image, file("mask", GOOD)]),
        "an unknown field": Case({"size": "64x64"}, "size", "low_threshold"),
        "a threshold too high": Case({"high_threshold": 256}, "high_threshold", "255"),
        "a threshold too low": Case({"low_threshold": -1}, "low_threshold", "0"),
        "a threshold of text": Case({"low_threshold": "low"}, "low_threshold", "integer"),
    }
    if route == DEPTH:
        return cases | {
            "a low threshold": Case({"low_threshold": 9}, "low_threshold", only),
            "a high threshold": Case({"high_threshold": 9}, "high_threshold", only),
        }
    both = {"low_threshold": 99, "high_threshold": 98}
    return cases | {
        "thresholds in disorder": Case(both, "low_threshold", "low_threshold 99 is above"),
        "above the default": Case({"low_threshold": 201}, "low_threshold", "high_threshold 200"),
        "below the default": Case({"high_threshold": 99}, "low_threshold", "high_threshold 99"),
    }


def generation_cases() -> dict[str, Case]:
    plain = {"type": "canny", "image": data_url(GOOD)}
    only = "only on canny maps made here"

    def net(param: str, says: str, status: int = 400, **fields: Any) -> Case:
        body = {"prompt": "a", "controls": [{**plain, **fields}]}
        return Case(body, param, says, [], status)

    def named(image: object, says: str, status: int = 400) -> Case:
        return net("controls.0.image", says, status, image=image)

    def seen(ip_adapter: object, param: str, says: str, **fields: Any) -> Case:
        return Case({"prompt": "a", "ip_adapter": ip_adapter, **fields}, param, says, [])

    unknown = "map-depth-" + 32 * "f"
    return {
        "a control that no model has": net("controls", "canny, depth", type="pose"),
        "a control that this model lacks": Case(
            {"prompt": "a", "model": "small", "controls": [plain]}, "controls", "none", []
        ),
        "a control twice": Case(
            {"prompt": "a", "controls": [plain, plain]}, "controls", "twice", []
        ),
        "a control without image": Case(
            {"prompt": "a", "controls": [{"type": "canny"}]}, "controls.0.image", "required", []
        ),
        "a control without type": Case(
            {"prompt": "a", "controls": [{"image": "x"}]}, "controls.0.type", "required", []
        ),
        "controls that are no list": Case(
            {"prompt": "a", "controls": plain}, "controls", "list", []
        ),
        "an unknown field of a control": net("controls.0.weight", "unknown field", weight=1),
        "scale above 2": net("controls.0.conditioning_scale", "2", conditioning_scale=2.1),
        "scale below 0": net("controls.0.conditioning_scale", "0", conditioning_scale=-1),
        "scale of text": net("controls.0.conditioning_scale", "number", conditioning_scale="x"),
        "start at end": net("controls", "before its end", start=0.5, end=0.5),
        "start after end": net("controls", "before its end", start=0.6, end=0.5),
        "start below 0": net("controls.0.start", "0", start=-0.1),
        "end above 1": net("controls.0.end", "1", end=1.1),
        "low threshold too high": net("controls.0.low_threshold", "255", low_threshold=256),
        "high threshold too low": net("controls.0.high_threshold", "0", high_threshold=-1),
        "thresholds in disorder": net(
            "controls.0.low_threshold", "above", low_threshold=9, high_threshold=8
        ),
        "a threshold on depth": net(
            "controls.0.low_threshold", only, type="depth", low_threshold=9
        ),
        "a high threshold on depth": net(
            "controls.0.high_threshold", only, type="depth", high_threshold=9
        ),
        "a threshold on a ready map": net(
            "controls.0.low_threshold", only, preprocessed=True, low_threshold=9
        ),
        "a threshold on a named map": net(
            "controls.0.high_threshold", only, image=unknown, high_threshold=9
        ),
        "http": named("http://example.com/a.png", "https:// URL"),
        "file": named("file:///etc/passwd", "https:// URL"),
        "a path": named("/etc/passwd", "https:// URL"),
        "no text": named("", "https:// URL"),
        "a number": named(7, "string"),
        "bare base64": named(base64.b64encode(GOOD).decode(), "data URL"),
        "a host that is not allowed": named("https://example.com/a.png", "allowed_url_hosts"),
        "a host in disguise": named("https://user@169.254.169.254/a", "169.254.169.254"),
        "a malformed url": named("https://[::1/a.png", "malformed"),
        "https without host": named("https:a.png", "allowed_url_hosts"),
        "a bucket that is not allowed": named("s3://secret/a.png", "allowed_s3_buckets"),
        "s3 without bucket": named("s3://", "allowed_s3_buckets"),
        "a data url without comma": named("data:image/png;base64", "comma"),
        "a data url of nothing": named("data:image/png;base64,", "is empty"),
        "a data url that is not base64": named("data:image/png;base64,???", "not base64"),
        "a data url that is not ascii": named("data:image/png;base64,\u00e9", "not base64"),
        "a data url of text": named("data:text/plain,hello", "PNG, JPEG, WebP and GIF"),
        "an unknown map": named(unknown, "not (or no longer) known", 404),
        "a map of nonsense": named("map-", "not (or no longer) known", 404),
        "a mask": Case({"prompt": "a", "mask": "x"}, "mask", "unknown field", []),
        "an image": Case({"prompt": "a", "image": "x"}, "image", "unknown field", []),
        "an inpainting model without image": Case(
            {"prompt": "a", "model": "sdxl-inpainting"}, "image", "image and mask are needed", []
        ),
        "ip_adapter on a model without": seen(
            {"image": data_url(GOOD)}, "ip_adapter", "no IP-Adapter", model="small"
        ),
        "ip_adapter scale too high": seen(
            {"image": data_url(GOOD), "scale": 2.1}, "ip_adapter.scale", "2"
        ),
        "ip_adapter of no picture": seen({"image": []}, "ip_adapter.image", "at least 1"),
        "ip_adapter of nine": seen({"image": 9 * ["x"]}, "ip_adapter.image", "at most 8"),
        "ip_adapter of text": seen({"image": "x"}, "ip_adapter.image.0", "data URL"),
        "ip_adapter of a number": seen({"image": 7}, "ip_adapter.image", "list"),
        "ip_adapter that is a text": seen("x", "ip_adapter", "must be an object"),
        "ip_adapter that is a list of texts": seen(["x"], "ip_adapter.0", "must be an object"),
        "five ip_adapters": seen(5 * [{"image": "x"}], "ip_adapter", "at most 4"),
        "the second ip_adapter's scale": seen(
            [{"image": "x"}, {"image": "x", "scale": 3}], "ip_adapter.1.scale", "2"
        ),
        "an unknown field of the second ip_adapter": seen(
            [{"image": "x"}, {"image": "x", "masks": "x"}], "ip_adapter.1.masks", "unknown field"
        ),
        "an ip_adapter that this model lacks": seen(
            {"image": data_url(GOOD), "name": "face"}, "ip_adapter.name", "it has: default"
        ),
        "a second one that this model lacks": seen(
            [{"image": data_url(GOOD)}, {"image": data_url(GOOD), "name": "base "}],
            "ip_adapter.1.name",
            "it has: base, plus",
            model="sdxl",
        ),
        "an ip_adapter's mask of text": seen(
            {"image": data_url(GOOD), "mask": "x"}, "ip_adapter.mask", "data URL"
        ),
        "an ip_adapter's mask that is a map": seen(
            [{"image": data_url(GOOD), "mask": unknown}],
            "ip_adapter.0.mask",
            "or as image in controls",
        ),
        "an ip_adapter's mask that asks for nothing": seen(
            {"image": data_url(GOOD), "mask": data_url(png(np.zeros((8, 8, 3), np.uint8)))},
            "ip_adapter.mask",
            "asks for nothing",
        ),
    }


CASES = {
    EDITS: edit_cases(),
    VARIATIONS: variation_cases(),
    DEPTH: map_cases(DEPTH),
    CANNY: map_cases(CANNY),
    GENERATIONS: generation_cases(),
}


@pytest.mark.parametrize(
    ("route", "case"),
    [
        pytest.param(route, case, id=f"{route}: {name}")
        for route, cases in CASES.items()
        for name, case in cases.items()
    ],
)
def test_a_bad_request(served: Served, route: str, case: Case) -> None:
    answer = post(served, route, case.files, case.fields)
    check_refusal(answer, case.status, case.param, case.says)


@pytest.mark.parametrize("route", [EDITS, VARIATIONS, DEPTH, CANNY])
@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("application/json", b'{"prompt": "a"}', "multipart/form-data; it is application/json"),
        ("application/x-www-form-urlencoded", b"prompt=a", "must be multipart/form-data"),
        ("multipart/form-data", b"--x--", "cannot be read"),
        ("multipart/form-data; boundary=x", b"prompt=a", "cannot be read"),
        ("", b"", "it is untyped"),
    ],
)
def test_a_body_that_is_no_form(
    served: Served, route: str, kind: str, body: bytes, says: str
) -> None:
    headers = {"content-type": kind} if kind else {}
    url = f"{served.url}/v1/{route}"
    check_refusal(httpx.post(url, content=body, headers=headers, timeout=60), 400, None, says)


def test_a_body_that_is_too_large(served: Served) -> None:
    files = [file("image", GOOD + bytes(MAX_BODY_BYTES))]
    for route in (EDITS, VARIATIONS, DEPTH, CANNY):
        answer = post(served, route, files, {})
        check_refusal(answer, 413, None, str(MAX_BODY_BYTES))


def test_a_control_of_more_than_a_mebibyte_in_a_form(served: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    controls = json.dumps([{"type": "canny", "image": data_url(png(noise))}])
    assert len(controls) > 2**20
    fields = {"prompt": "a", "num_inference_steps": 2, "controls": controls}
    answer = post(served, EDITS, [file("image", GOOD)], fields)
    assert answer.status_code == 200, answer.text


def test_an_unknown_preprocessor(served: Served) -> None:
    answer = post(served, "preprocess/pose", [file("image", GOOD)], {})
    check_refusal(answer, 400, "preprocessor", "'depth' or 'canny'")


ARRAY = picture(1, 128, 64)
ARRAYS: dict[str, tuple[dict[str, Any], str, str]] = {
    "float": ({"image": ARRAY / 255}, "image", "uint8"),
    "grey": ({"image": ARRAY[:, :, 0]}, "image", "(height, width, 3 or 4)"),
    "five channels": ({"image": np.zeros((64, 64, 5), np.uint8)}, "image", "3 or 4"),
    "no pixels": ({"image": ARRAY[:0]}, "image", "at least one"),
    "too many pixels": (
        {"image": np.zeros((1025, 1024, 3), np.uint8)},
        "image",
        "at most 1048576",
    ),
    "a thread": ({"image": np.zeros((1, 101, 3), np.uint8)}, "image", "at most 100 times"),
    "mask": ({"image": ARRAY, "mask": ARRAY / 255}, "mask", "uint8"),
    "mask of another size": ({"image": ARRAY, "mask": ARRAY[:-8]}, "mask", "same size"),
    "mask alone": ({"mask": ARRAY}, "mask", "needs an image"),
    "strength alone": ({"strength": 0.5}, "strength", "needs an image"),
    "width alone": ({"width": 64}, "size", "together"),
    "a map as image": ({"image": "map-canny-0"}, "image", "in controls and ip_adapter"),
    "control": ({"controls": (Control("canny", ARRAY / 255),)}, "controls.0.image", "uint8"),
    "ip_adapter": ({"ip_adapter": IpAdapter((ARRAY / 255,))}, "ip_adapter.image.0", "uint8"),
    "a thread for the ip_adapter": (
        {"ip_adapter": IpAdapter((np.zeros((1, 101, 3), np.uint8),))},
        "ip_adapter.image.0",
        "at most 100 times",
    ),
}


@pytest.mark.parametrize(("fields", "param", "says"), ARRAYS.values(), ids=ARRAYS)
def test_a_bad_array(served: Served, fields: dict[str, Any], param: str, says: str) -> None:
    handle = serve.get_app_handle("tcd")
    with pytest.raises(InvalidRequest) as caught:
        handle.generate.remote(ImageRequest("a", **fields)).result(timeout_s=60)
    assert caught.value.param == param
    assert says in caught.value.message


def test_nothing_of_this_cost_anyone_anything(
    served: Served, failed_before: dict[str, float]
) -> None:
    for model, failed in failed_before.items():
        assert served.engine_figure("failed_total", model) == failed
        assert served.engine_figure("pending_images", model) == 0
    ready = httpx.get(f"{served.url}/readyz", timeout=30).json()
    assert set(ready["models"].values()) == {"RUNNING"}
    fields = {"prompt": "a", "num_inference_steps": 2}
    for model in ("sd15", "sdxl"):
        good = {"model": model, **fields}
        assert post(served, EDITS, [file("image", GOOD)], good).status_code == 200
        assert post(served, VARIATIONS, [file("image", GOOD)], good).status_code == 200
    for route in (DEPTH, CANNY):
        assert post(served, route, [file("image", GOOD)], {}).status_code == 200
