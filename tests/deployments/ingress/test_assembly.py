"""How pictures reach a job, with a map store and preprocessors that are stand-ins."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Generator
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import ray

from configs.app import ServiceArgs
from deployments.contracts.cards import CardIpAdapter
from deployments.contracts.errors import InvalidRequest, NotFound, NotReady, QueueFull
from deployments.contracts.jobs import (
    Control,
    ImageRequest,
    IpAdapter,
    IpAdapterUse,
    Pixels,
    VideoRequest,
)
from deployments.contracts.maps import MapRef, MapSpec
from deployments.contracts.refusal import Refusal
from deployments.ingress.request.assembly import Assembled, Assembler
from deployments.ingress.request.fetching import Fetcher
from deployments.ingress.request.pictures import Pictures
from graphs.routing import route
from preprocessors.canny import canny
from preprocessors.resize import resize
from tests.deployments.diffusion.engine.tasks import picture
from tests.deployments.ingress.fakes import Method, Response, heard
from tests.deployments.ingress.images import png
from tests.faults.front import CARD
from tests.object_store import CREDENTIALS

ASKED: dict[str, Any] = {"prompt": "a", "width": 64, "height": 64}


class Lasting(Response):
    """Ray's: whoever awaits it and leaves does not end it."""

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self._answer).__await__()


class Store:
    """A map store that makes at once, and notes what it is given."""

    def __init__(self) -> None:
        self.maps: dict[str, str] = {}
        self.given: list[Pixels] = []
        self.full = False
        self.silent = self.let_go = 0  # calls that are not answered, and those given up
        self.known = Method(self._known)
        self.find = Method(self._find)
        self.make = Method(self._make)

    async def _known(self, spec: MapSpec) -> MapRef:
        await self._silence()
        return await self._find(spec.map_id)

    async def _silence(self) -> None:
        if self.silent:
            self.silent -= 1
            try:
                await asyncio.Event().wait()
            finally:
                self.let_go += 1

    async def _find(self, map_id: str) -> MapRef:
        return MapRef(map_id, self.maps.get(map_id))

    async def _make(self, spec: MapSpec, pictures: list[Pixels]) -> MapRef | Refusal:
        if self.full:
            return Refusal(QueueFull("the queue of canny is full", 1000))
        self.given += pictures
        self.maps[spec.map_id] = f"map {len(self.maps)}"
        return await self._find(spec.map_id)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> list[Pixels]:
    """What goes to the object store, which hands it on as it is."""
    puts: list[Pixels] = []

    def kept(pixels: Pixels) -> Pixels:
        puts.append(pixels)
        return pixels

    monkeypatch.setattr(ray, "put", kept)
    return puts


def assembler(store: Store, **args: Any) -> Assembler:
    return Assembler(Pictures(ServiceArgs(**args)), cast(Any, store), route)


def assemble(made_by: Assembler, **fields: Any) -> Assembled:
    return asyncio.run(made_by.assemble(ImageRequest(**{**ASKED, **fields}), CARD))


def test_a_picture_goes_to_the_store_only_if_its_map_is_not_known(put: list[Pixels]) -> None:
    store = Store()
    fields: dict[str, Any] = {
        "controls": tuple(Control(kind, png(picture(1, 96, 80))) for kind in ("canny", "depth")),
        "ip_adapter": IpAdapter((png(picture(2, 32, 32)), png(picture(3, 32, 32)))),
    }
    first = assemble(assembler(store), **fields)
    assert len(put) == 4
    again = assemble(assembler(store), **fields)
    assert len(put) == 4
    assert again.assets == first.assets
    assert again.map_ids == first.map_ids
    assert [control.maps for control in first.job.controls] == [(0,), (1,)]
    (seen,) = first.job.ip_adapters
    assert seen.embeds == (2, 3)


def test_a_large_picture_travels_in_the_size_of_its_canny_map(put: list[Pixels]) -> None:
    large, small = picture(4, 300, 200), picture(5, 32, 32)
    controls = tuple(Control("canny", png(image)) for image in (large, small))
    assemble(assembler(Store()), controls=controls)
    shapes = sorted(sent.shape for sent in put)
    assert shapes == [(32, 32, 3), (64, 64, 3)]  # small ones are enlarged where the map is made
    (sent,) = (sent for sent in put if sent.shape[0] == 64)
    expected = canny(resize(large, (64, 64)), 100, 200)
    assert np.array_equal(canny(resize(sent, (64, 64)), 100, 200), expected)


def test_what_was_begun_ends_with_the_picture_that_is_broken(put: list[Pixels]) -> None:
    store = Store()
    made_by = assembler(store)
    good, broken = png(picture(6, 64, 64)), png(picture(7, 64, 64))[:-40]
    controls = (Control("canny", broken), *(Control("canny", good) for _ in range(8)))
    with pytest.raises(InvalidRequest, match="truncated") as caught:
        assemble(made_by, controls=controls)
    assert caught.value.param == "controls.0.image"
    assert made_by.pictures.room.taken == 0
    assert not store.maps or len(store.given) < 8


def test_headers_are_read_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Pictures, "_load", decode)
    controls = tuple(Control("canny", png(picture(8, 64, 64))) for _ in range(3))
    limits = {"max_request_pixels": 2 * 64 * 64, "max_image_pixels": 64 * 64}
    with pytest.raises(InvalidRequest, match="12288 pixels together; at most 8192"):
        assemble(assembler(Store(), **limits), controls=controls)


def test_a_full_queue_is_said(put: list[Pixels]) -> None:
    store = Store()
    store.full = True
    with pytest.raises(QueueFull, match="canny"):
        assemble(assembler(store), controls=(Control("canny", png(picture(9, 64, 64))),))
    assert len(put) == 1


def test_a_silent_store_keeps_nobody_else_out(put: list[Pixels]) -> None:
    store = Store()
    store.silent = 2
    limits = ("max_image_pixels", "max_request_pixels", "max_decoding_pixels")
    made_by = assembler(store, **dict.fromkeys(limits, 64 * 64))

    def one(number: int, kind: str) -> asyncio.Task[Assembled]:
        control = Control(kind, png(picture(number, 64, 64)))
        request = ImageRequest(**ASKED, controls=(control,))
        return asyncio.create_task(made_by.assemble(request, CARD))

    async def scene() -> None:
        stuck = [one(11, "canny"), one(12, "depth")]
        while store.silent:
            await asyncio.sleep(0.001)
        assert made_by.pictures.room.taken == 0
        await asyncio.wait_for(one(13, "canny"), 30)
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)
        await heard()
        assert store.let_go == 2, "whoever gives up gives up the call"

    asyncio.run(scene())


@pytest.mark.parametrize("method", ["known", "find", "make"])
def test_a_call_to_the_store_ends_with_who_made_it(method: str, put: list[Pixels]) -> None:
    store = Store()
    store.silent = 1
    store.known = Method(lambda spec: store._find(spec.map_id))
    setattr(store, method, SimpleNamespace(remote=lambda *_: Lasting(store._silence())))
    made_by = assembler(store)
    image = "map-canny-" + 32 * "0" if method == "find" else png(picture(14, 64, 64))
    request = ImageRequest(**ASKED, controls=(Control("canny", image),))

    async def scene() -> None:
        leaving = asyncio.create_task(made_by.assemble(request, CARD))
        while store.silent:
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])
        await heard()
        assert leaving.cancelled()
        assert store.let_go == 1

    asyncio.run(scene())


def test_what_a_url_hides_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(Fetcher, "_from_https", never)
    url = "https://me:word@pictures.test:8443/a/b.png?X-Amz-Signature=secret#also"
    with pytest.raises(InvalidRequest) as caught:
        assemble(assembler(Store(), fetch_timeout_s=0.01), image=url, mask=None)
    assert str(caught.value) == "image: https://pictures.test/a/b.png did not come within 0.01 s"


def test_a_map_that_is_gone() -> None:
    named = "map-canny-" + 32 * "0"
    for fields in ({"controls": (Control("canny", named),)}, {"ip_adapter": IpAdapter((named,))}):
        with pytest.raises(NotFound, match="have the map made again"):
            assemble(assembler(Store()), **fields)


def test_a_map_that_is_gone_is_said_when_the_video_is_asked_for() -> None:
    named = "map-canny-" + 32 * "0"
    asked: tuple[tuple[dict[str, Any], str], ...] = (
        ({"controls": (Control("canny", (png(picture(1, 64, 64)), named)),)}, "controls.0.image.1"),
        ({"ip_adapter": IpAdapter((named,))}, "ip_adapter.image.0"),
    )
    for fields, param in asked:
        request = VideoRequest(**ASKED, num_frames=2, **fields)
        with pytest.raises(NotFound, match="have the map made again") as caught:
            asyncio.run(assembler(Store()).outline(request, CARD))
        assert caught.value.param == param


def test_a_request_has_no_more_fetches_at_a_time_than_there_may_be(
    put: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> bytes:
        time.sleep(0.01)
        return png(picture(1, 64, 64))

    monkeypatch.setattr(Fetcher, "_read_s3", read)
    made_by = assembler(Store(), max_fetches=2, allowed_s3_buckets=("pictures",))
    controls = tuple(Control("canny", f"s3://pictures/{n}.png") for n in range(8))
    assert len(assemble(made_by, controls=controls).assets) == 8


def test_an_s3_that_hangs_costs_only_who_asked_it(
    put: list[Pixels], black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": black_hole}.items():
        monkeypatch.setenv(name, value)
    patience_s = 3.0
    made_by = assembler(
        Store(), max_fetches=2, fetch_timeout_s=patience_s, allowed_s3_buckets=("pictures",)
    )

    async def one(image: str | bytes) -> float:
        began = time.monotonic()
        request = ImageRequest(**ASKED, controls=(Control("canny", image),))
        try:
            await made_by.assemble(request, CARD)
        finally:
            took.append(time.monotonic() - began)
        return took[-1]

    async def scene() -> None:
        stuck = [asyncio.create_task(one("s3://pictures/a.png")) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(NotReady, match="2 pictures are being fetched"):
            await one("s3://pictures/b.png")
        await one(png(picture(10, 64, 64)))
        assert not any(task.done() for task in stuck)
        for task in stuck:
            with pytest.raises(InvalidRequest, match=r"did not come within 3 s|could not be read"):
                await task
        fetcher = made_by.pictures._fetcher
        while fetcher._s3.unfinished:  # boto3 gives up by itself
            await asyncio.sleep(0.01)

    took: list[float] = []
    asyncio.run(asyncio.wait_for(scene(), 40))
    assert max(took) < 3 * patience_s
    assert sum(t.name.startswith("tcd-S3") for t in threading.enumerate()) <= 2


def test_each_ip_adapter_reads_by_its_own_encoder(put: list[Pixels]) -> None:
    adapters = {
        "base": CardIpAdapter(adapter="none", image_encoder="bigg", hidden=False),
        "plus": CardIpAdapter(adapter="none", image_encoder="vit", hidden=True),
    }
    card, store = CARD.model_copy(update={"ip_adapters": adapters}), Store()
    pictures = [picture(number, 32, 32) for number in (1, 2)]
    one, other = map(png, pictures)
    half = np.zeros((20, 32, 3), np.uint8)
    half[:, 16:] = 255
    seen = (
        IpAdapter((one,), 0.7, "plus", png(half)),
        IpAdapter((one, other), 0.3),
        IpAdapter((other,), name="plus"),
    )
    request = ImageRequest(**ASKED, ip_adapter=seen)
    ready = asyncio.run(assembler(store).assemble(request, card))
    assert ready.job.ip_adapters == (
        IpAdapterUse("plus", (0,), 0.7, 1),
        IpAdapterUse("base", (2, 3), 0.3),
        IpAdapterUse("plus", (4,), 0.5),
    )
    digests = [hashlib.sha256(b"(32, 32, 3)" + pixels.tobytes()).hexdigest() for pixels in pictures]
    encoders = (("vit", True), ("bigg", False))
    assert set(store.maps) == {
        MapSpec("image_encoder", digest, encoder=encoder, hidden=hidden).map_id
        for digest, (encoder, hidden) in product(digests, encoders)
    }
    mask = ready.assets[1]
    assert isinstance(mask, np.ndarray)
    assert (mask.shape, mask.dtype) == ((64, 64), np.uint8)
    assert (mask[:, :28] < 128).all()
    assert (mask[:, 36:] >= 128).all()


def test_pictures_and_masks_of_ip_adapters_count_together(put: list[Pixels]) -> None:
    white = png(np.full((8, 8, 3), 255, np.uint8))
    seen = tuple(IpAdapter((white, white), mask=white) for _ in range(3))
    made_by = assembler(Store(), max_request_pictures=8)
    with pytest.raises(InvalidRequest, match="9 pictures; 8 at most"):
        assemble(made_by, ip_adapter=seen)
    assemble(assembler(Store(), max_request_pictures=9), ip_adapter=seen)
    pixels = assembler(Store(), max_request_pixels=9 * 64 - 1, max_image_pixels=64)
    with pytest.raises(InvalidRequest, match="576 pixels together"):
        assemble(pixels, ip_adapter=seen)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"low_threshold": 250}, "controls.0.low_threshold", "250 is above high_threshold 200"),
        ({"high_threshold": 50}, "controls.0.low_threshold", "100 is above high_threshold 50"),
        ({"frames": 33}, "num_frames", "num_frames is 33; model 'sd15' makes at most 32"),
    ],
)
def test_what_a_video_cannot_have_is_said_before_a_picture_is_fetched(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], param: str, says: str
) -> None:
    async def bring(*_: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(Pictures, "bring", bring)
    frames = {"frames": 2, **fields}["frames"]
    said = {name: value for name, value in fields.items() if name != "frames"}
    film = tuple(png(picture(number, 64, 64)) for number in range(frames))
    request = VideoRequest(**ASKED, num_frames=frames, controls=(Control("canny", film, **said),))
    made_by = assembler(Store())
    for ready in (made_by.outline, made_by.assemble):
        with pytest.raises(InvalidRequest, match=says) as caught:
            asyncio.run(ready(request, CARD))
        assert caught.value.param == param


def test_small_pictures_do_not_make_large_maps_without_end(put: list[Pixels]) -> None:
    """Each frame's map has the size of the video, however small its picture is."""
    small = png(picture(1, 8, 8))
    made_by = assembler(Store(), max_request_pixels=3 * 64 * 64, max_image_pixels=64 * 64)

    def asked(frames: int) -> Assembled:
        control = Control("canny", (small,) * frames, preprocessed=True)
        video = VideoRequest("a", width=64, height=64, num_frames=frames, controls=(control,))
        return asyncio.run(made_by.assemble(video, CARD))

    assert len(asked(3).assets) == 3
    with pytest.raises(InvalidRequest, match=r"4 maps of 64x64, 16384 pixels together") as caught:
        asked(4)
    assert caught.value.param == "controls"
