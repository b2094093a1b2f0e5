"""Control maps: made once, named in later requests, never through the ingress."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from ray import serve
from ray.serve import RunTarget
from ray.serve.handle import DeploymentHandle

from configs.app import ServiceArgs
from deployments.contracts.jobs import Pixels
from preprocessors.canny import canny
from preprocessors.depth import DepthEstimator
from preprocessors.resize import resize
from tests.deployments.diffusion.engine.tasks import picture
from tests.deployments.ingress.counted import DIES, RAISES, counted
from tests.deployments.ingress.images import LEVELS, apart, data_url, pixels_of, png, shown
from tests.serving import Served, beside

WIDTH, HEIGHT = 136, 96
PICTURE = picture(31, WIDTH, HEIGHT)


def preprocess(url: str, preprocessor: str, image: Pixels, **fields: object) -> tuple[str, Pixels]:
    """The id of a map, and the map."""
    answer = httpx.post(
        f"{url}/v1/preprocess/{preprocessor}",
        files={"image": ("a.png", png(image))},
        data={name: str(value) for name, value in fields.items()},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return answer.headers["x-map-id"], shown(answer.content)


def generate(served: Served, *controls: dict[str, object], **fields: object) -> Pixels:
    """The picture that controls give, of the size of `PICTURE`."""
    answer = served.openai().images.generate(
        prompt="a red ball",
        size=f"{WIDTH}x{HEIGHT}",
        extra_body={"seed": 5, "controls": list(controls), **fields},
    )
    return pixels_of(answer)


def control(kind: str, image: Pixels | str, **fields: object) -> dict[str, object]:
    """One of a request's `controls`."""
    named = image if isinstance(image, str) else data_url(png(image))
    return {"type": kind, "image": named, **fields}


def test_a_canny_map_is_the_preprocessors(served: Served) -> None:
    _, made = preprocess(served.url, "canny", PICTURE)
    assert np.array_equal(made, canny(PICTURE, 100, 200))
    thresholds = {"low_threshold": 20, "high_threshold": 60}
    named, other = preprocess(served.url, "canny", PICTURE, **thresholds)
    assert np.array_equal(other, canny(PICTURE, 20, 60))
    assert not np.array_equal(made, other)
    ready = generate(served, control("canny", other, preprocessed=True))
    assert apart(generate(served, control("canny", named)), ready).max() <= LEVELS
    assert apart(generate(served, control("canny", PICTURE, **thresholds)), ready).max() <= LEVELS


def test_a_depth_map_is_the_preprocessors(served: Served, demo_models: Path) -> None:
    named, made = preprocess(served.url, "depth", PICTURE)
    estimator = DepthEstimator(demo_models / "dpt-hybrid", "cpu", "float32")
    (expected,) = estimator.estimate([PICTURE], [(WIDTH, HEIGHT)])
    assert apart(made, expected).max() <= 1
    assert np.ptp(made) == 255
    ready = generate(served, control("depth", made, preprocessed=True))
    assert apart(generate(served, control("depth", named)), ready).max() <= LEVELS
    assert apart(generate(served, control("depth", PICTURE)), ready).max() <= LEVELS


def test_a_map_is_of_the_size_that_is_made(served: Served) -> None:
    big = picture(32, 300, 250)
    small = resize(big, (WIDTH, HEIGHT))
    ready = generate(served, control("canny", canny(small), preprocessed=True))
    assert apart(generate(served, control("canny", big)), ready).max() <= LEVELS
    named, _ = preprocess(served.url, "canny", big)
    body = {"prompt": "a", "size": "128x128", "controls": [control("canny", named)]}
    answer = httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "controls"
    assert "is 300x250 pixels" in answer.json()["error"]["message"]
    assert "the image's size, 128x128" in answer.json()["error"]["message"]


def test_a_map_is_a_picture_for_the_ip_adapter_too(served: Served) -> None:
    named, made = preprocess(served.url, "canny", PICTURE)
    by_id = generate(served, ip_adapter={"image": named, "scale": 1.0})
    by_picture = generate(served, ip_adapter={"image": data_url(png(made)), "scale": 1.0})
    assert apart(by_id, by_picture).max() <= LEVELS
    assert apart(by_id, generate(served)).max() > LEVELS


def test_an_unknown_map_is_not_found(served: Served) -> None:
    unknown = "map-canny-" + 32 * "0"
    for body, param in (
        ({"controls": [control("canny", unknown)]}, "controls.0.image"),
        ({"ip_adapter": {"image": [unknown]}}, "ip_adapter.image.0"),
    ):
        url = f"{served.url}/v1/images/generations"
        answer = httpx.post(url, json={"prompt": "a", **body}, timeout=60)
        assert answer.status_code == 404
        assert answer.json()["error"]["param"] == param
        assert unknown in answer.json()["error"]["message"]


def made_and_reused(served: Served, preprocessor: str) -> tuple[float, float]:
    label = f'preprocessor="{preprocessor}"'
    return (
        served.figure("tcd_maps_computed_total", label),
        served.figure("tcd_maps_reused_total", label),
    )


@pytest.mark.parametrize("concurrent", [True, False])
def test_ten_requests_make_a_map_once(served: Served, concurrent: bool) -> None:
    image = picture(40 + concurrent, WIDTH, HEIGHT)
    kinds = ("depth", "canny", "image_encoder")
    before = {kind: made_and_reused(served, kind) for kind in kinds}

    def ask(seed: int) -> Pixels:
        return generate(
            served,
            control("depth", image),
            control("canny", image),
            ip_adapter={"image": data_url(png(image))},
            seed=seed,
        )

    with ThreadPoolExecutor(10 if concurrent else 1) as pool:
        pictures = list(pool.map(ask, range(10)))
    assert len({picture.tobytes() for picture in pictures}) == 10
    for kind in kinds:
        made, reused = made_and_reused(served, kind)
        assert (made - before[kind][0], reused - before[kind][1]) == (1, 9), kind
    preprocess(served.url, "canny", image)
    assert made_and_reused(served, "canny")[0] == before["canny"][0] + 1
    preprocess(served.url, "canny", image, low_threshold=99)
    assert made_and_reused(served, "canny")[0] == before["canny"][0] + 2


@pytest.fixture(scope="module")
def front(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a second front to the same models: see `counted`."""
    application = counted(ServiceArgs(default_model="sd15"), tmp_path_factory.mktemp("marks"))
    with beside(RunTarget(application, name="tcd-counted", route_prefix="/counted")):
        yield f"{served.url}/counted"


def bytes_read() -> int:
    handle: DeploymentHandle[object] = serve.get_app_handle("tcd-counted")
    read = handle.bytes_read.remote().result(timeout_s=60)
    assert isinstance(read, int)
    return read


def test_a_map_never_passes_the_ingress(front: str) -> None:
    """All bytes that Ray deserialises in the ingress, with a control map that is made here and
    without. Maps below Ray's 100 KiB for inlining are left out: those, Ray itself sends along
    with its references."""
    side = 512
    image, map_bytes = picture(50, side, side), side * side * 3
    slack = map_bytes // 4  # news of replicas arrive whenever they do

    def read_by(**fields: object) -> int:
        body = {"prompt": "a", "size": f"{side}x{side}", "num_inference_steps": 1, **fields}
        before = bytes_read()
        answer = httpx.post(f"{front}/v1/images/generations", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return bytes_read() - before

    # What a replica reads once: models and their cards, the way to the preprocessor.
    read_by(controls=[control("canny", picture(51, side, side))])
    ready = read_by(controls=[control("canny", image, preprocessed=True)])
    assert ready > map_bytes, "the answer's pixels are read, at least"
    made_here = read_by(controls=[control("canny", image)])
    assert abs(made_here - ready) < slack
    again = read_by(controls=[control("canny", image)])
    assert abs(again - ready) < slack

    # What is counted: a map that the ingress does take in, to send it as a file.
    before = bytes_read()
    named, made = preprocess(front, "canny", image)
    assert made.nbytes == map_bytes
    assert bytes_read() - before > map_bytes
    plain = read_by()
    assert abs(read_by(controls=[control("canny", named)]) - plain) < slack


@pytest.mark.parametrize("route", ["generations", "preprocess"])
@pytest.mark.parametrize(("first", "status"), [(RAISES, 500), (DIES, 200)])
def test_a_map_that_could_not_be_made_is_made_again(
    front: str, first: tuple[int, int, int], status: int, route: str
) -> None:
    image = picture(60, WIDTH, HEIGHT) if route == "preprocess" else picture(61, WIDTH, HEIGHT)
    image[0, 0] = first
    other = picture(62, WIDTH, HEIGHT)
    named, _ = preprocess(front, "canny", other)

    def ask() -> httpx.Response:
        if route == "preprocess":
            files = {"image": ("a.png", png(image))}
            return httpx.post(f"{front}/v1/preprocess/canny", files=files, timeout=120)
        body = {
            "prompt": "a",
            "size": f"{WIDTH}x{HEIGHT}",
            "controls": [control("canny", image)],
        }
        return httpx.post(f"{front}/v1/images/generations", json=body, timeout=120)

    answer = ask()
    assert answer.status_code == status, answer.text
    assert ask().status_code == 200
    # What was made before is still known.
    body = {"prompt": "a", "size": f"{WIDTH}x{HEIGHT}", "controls": [control("canny", named)]}
    assert httpx.post(f"{front}/v1/images/generations", json=body, timeout=60).status_code == 200
