"""The kinds of requests that a soak sends, each drawn at random out of a few that come again."""

import asyncio
import base64
import io
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx
import numpy as np
from PIL import Image

from tests.soak.asking import REFUSALS, Ask, Asker, Leaving
from tests.soak.judging import Judge, Map, Pictures, Probes, Says
from tests.soak.ledger import Ending, Outcome

S3_STYLE, HUB_STYLE = "style from S3", "style from the hub"
GENERATIONS, EDITS, VARIATIONS = (
    f"/v1/images/{route}" for route in ("generations", "edits", "variations")
)
VIDEOS = "/v1/videos"
PROMPTS = (
    "a big red ball on the left, in the snow",
    "a small blue cube on the left and a big yellow cone on the right, on the grass",
    "a big cyan cylinder in the center, on the sand",
    "a small green cone on the right, at night",
)
SEEDS = 3
VARIANTS = 5  # of each kind
PATIENCE_FOR_VIDEO_S = 120.0
POLL_S = 0.5

Body = dict[str, object]
Doing = Callable[[Asker, random.Random, Leaving | None], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    """What the service under load has.

    Attributes:
        models: that make pictures from text.
        full: one of them, with depth, canny, an IP-Adapter and motion.
        sizes: that it is asked for; the first is the usual one.
        loras: style adapters of every model.
        s3_styles, hub_styles: style adapters of `full`, each to be fetched when first used.
        s3_pictures: URIs.
        stores: whether it can answer by URL.
        key: a bearer key.
    """

    models: tuple[str, ...]
    full: str
    sizes: tuple[tuple[int, int], ...]
    loras: tuple[str, ...]
    s3_styles: tuple[str, ...] = ()
    hub_styles: tuple[str, ...] = ()
    s3_pictures: tuple[str, ...] = ()
    stores: bool = False
    key: str | None = None


class Kinds:
    """Draws requests for one target. The same seed gives the same few variants of each kind."""

    def __init__(self, url: str, target: Target, probes: Probes, seed: int) -> None:
        self._url = url
        self._target = target
        self._probes = probes
        self._s3_styles = itertools.cycle(target.s3_styles)
        self._hub_styles = itertools.cycle(target.hub_styles)
        headers = {} if target.key is None else {"authorization": f"Bearer {target.key}"}
        self._headers = headers
        draw = random.Random(seed)
        self._pictures = [_picture(number) for number in range(VARIANTS)]
        self._bodies = [self._body(draw) for _ in range(2 * VARIANTS)]

    def table(self) -> Mapping[str, tuple[int, Doing]]:
        """What is asked how often, by kind."""
        one = {
            "text": (8, self.text),
            "text, many": (2, self.many),
            "styles": (4, self.styles),
            "edit": (3, self.edit),
            "edit with a mask": (3, self.inpainting),
            "variation": (2, self.variation),
            "resembling": (2, self.resembling),
            "control, made here": (4, self.control),
            "control, ready": (2, self.ready_control),
            "preprocess": (2, self.preprocess),
            "stream": (4, self.stream),
            "hurried": (2, self.hurried),
            "bad": (4, self.bad),
            "looking": (3, self.looking),
        }
        table: dict[str, tuple[int, Doing]] = {
            kind: (weight, _asked(kind, make)) for kind, (weight, make) in one.items()
        }
        table["named map"] = (2, self.named_map)
        table["video"] = (1, self.video)
        if self._target.stores:
            table["by URL"] = (3, self.by_url)
        # For outages, which want adapters that have not been fetched yet.
        table[S3_STYLE] = (0, _asked(S3_STYLE, self.s3_style))
        table[HUB_STYLE] = (0, _asked(HUB_STYLE, self.hub_style))
        if self._target.s3_pictures:
            table["s3 picture"] = (2, _asked("s3 picture", self.s3_picture))
        return table

    # One request each.

    def text(self, kind: str, draw: random.Random) -> Ask:
        """Any model, size, number of steps, guidance, format and priority."""
        body = dict(draw.choice(self._bodies)) | {"priority": draw.choice((0, 0, -5, 10))}
        body |= {"output_format": draw.choice(("png", "png", "png", "jpeg", "webp"))}
        return self.generation(kind, body)

    def many(self, kind: str, draw: random.Random) -> Ask:
        """Up to four images."""
        return self.generation(kind, dict(draw.choice(self._bodies)) | {"n": draw.randint(2, 4)})

    def styles(self, kind: str, draw: random.Random) -> Ask:
        """One adapter or two."""
        names = draw.sample(self._target.loras, draw.randint(1, 2))
        loras = [{"name": name, "weight": draw.choice((0.5, 1.0))} for name in names]
        return self.generation(kind, dict(draw.choice(self._bodies)) | {"loras": loras})

    def s3_style(self, kind: str, draw: random.Random) -> Ask:
        """An adapter that is fetched from S3, the next of them each time."""
        loras = [{"name": next(self._s3_styles), "weight": 1.0}]
        return self.generation(kind, self._full(draw) | {"loras": loras, "timeout_s": 20})

    def hub_style(self, kind: str, draw: random.Random) -> Ask:
        """The same from the hub."""
        loras = [{"name": next(self._hub_styles), "weight": 1.0}]
        return self.generation(kind, self._full(draw) | {"loras": loras, "timeout_s": 20})

    def s3_picture(self, kind: str, draw: random.Random) -> Ask:
        """A picture to resemble that the service fetches. What cannot be fetched is refused."""
        image = draw.choice(self._target.s3_pictures)
        body = self._full(draw) | {"ip_adapter": {"image": image}, "timeout_s": 20}
        return self.generation(kind, body, REFUSALS | {400})

    def resembling(self, kind: str, draw: random.Random) -> Ask:
        """By IP-Adapter, beside a prompt."""
        adapter = {"image": self._url_of(draw), "scale": 0.5}
        return self.generation(kind, self._full(draw) | {"ip_adapter": adapter})

    def control(self, kind: str, draw: random.Random) -> Ask:
        """Depth or canny, made by the service; both at times."""
        kinds = draw.choice((["depth"], ["canny"], ["depth", "canny"]))
        controls = [{"type": name, "image": self._url_of(draw)} for name in kinds]
        return self.generation(kind, self._full(draw) | {"controls": controls})

    def ready_control(self, kind: str, draw: random.Random) -> Ask:
        """A map that comes along."""
        image = self._url_of(draw)
        control = {"type": "canny", "image": image, "preprocessed": True, "end": 0.6}
        return self.generation(kind, self._full(draw) | {"controls": [control]})

    def stream(self, kind: str, draw: random.Random) -> Ask:
        """Server-sent events with partial images."""
        more = {"stream": True, "partial_images": draw.randint(0, 3), "n": draw.randint(1, 2)}
        return self.generation(kind, dict(draw.choice(self._bodies)) | more)

    def hurried(self, kind: str, draw: random.Random) -> Ask:
        """More steps than its time allows, mostly."""
        more = {"num_inference_steps": 50, "timeout_s": draw.choice((0.05, 0.3, 1.0))}
        return self.generation(kind, dict(draw.choice(self._bodies)) | more)

    def edit(self, kind: str, draw: random.Random) -> Ask:
        """Image to image."""
        fields = {"model": self._target.full, "prompt": draw.choice(PROMPTS), "strength": "0.8"}
        image = draw.randrange(VARIANTS)
        return self._form(kind, EDITS, fields, draw.randrange(SEEDS), {"image": image})

    def inpainting(self, kind: str, draw: random.Random) -> Ask:
        """With a mask."""
        fields = {"model": self._target.full, "prompt": draw.choice(PROMPTS)}
        files = {"image": draw.randrange(VARIANTS), "mask": draw.randrange(VARIANTS)}
        return self._form(kind, EDITS, fields, draw.randrange(SEEDS), files)

    def variation(self, kind: str, draw: random.Random) -> Ask:
        """By IP-Adapter, without a prompt."""
        fields = {"model": self._target.full, "num_inference_steps": "4"}
        image = draw.randrange(VARIANTS)
        return self._form(kind, VARIATIONS, fields, draw.randrange(SEEDS), {"image": image})

    def preprocess(self, kind: str, draw: random.Random) -> Ask:
        """A control map."""
        name, image = draw.choice(("depth", "canny")), draw.randrange(VARIANTS)
        files = {"image": ("image.png", self._pictures[image])}
        request = self._request("POST", f"/v1/preprocess/{name}", files=files)
        size = _size(self._pictures[image])
        return Ask(kind, request, Map(self._probes, f"{name} {image}", size))

    def bad(self, kind: str, draw: random.Random) -> Ask:
        """What must be refused, and how."""
        fine: Body = {"model": self._target.models[0], "prompt": "a cat"}
        status, change = draw.choice(BAD)
        request = self._request("POST", GENERATIONS, json=fine | change)
        return Ask(kind, request, refusals=frozenset({status}), wants_refusal=True)

    def looking(self, kind: str, draw: random.Random) -> Ask:
        """What shows the service's state."""
        path, *words = draw.choice(LOOKS)
        return Ask(kind, self._request("GET", path), Says(tuple(words)))

    # Several requests that belong together.

    async def by_url(self, asker: Asker, draw: random.Random, leaving: Leaving | None) -> None:
        """A picture in the storage, and the picture."""
        body = dict(draw.choice(self._bodies)) | {"response_format": "url"}
        answer = await asker.ask(self.generation("by URL", body), leaving)
        if answer is None:
            return
        (image,) = json.loads(answer.body)["data"]
        expected = self._expected(body, {})
        request = httpx.Request("GET", image["url"])
        await asker.ask(Ask("stored picture", request, lambda got: expected.file(got.body)))

    async def named_map(self, asker: Asker, draw: random.Random, leaving: Leaving | None) -> None:
        """A control map, and a picture by its name. A store that was lost meanwhile knows it no
        more, and says so."""
        answer = await asker.ask(self.preprocess("preprocess", draw))
        if answer is None:
            return
        name = answer.headers["x-map-id"]
        control = {"type": name.split("-")[1], "image": name}
        body = self._full(draw) | {"controls": [control]}
        await asker.ask(self.generation("named map", body, REFUSALS | {404}), leaving)

    async def video(self, asker: Asker, draw: random.Random, leaving: Leaving | None) -> None:
        """A job from its start to its file; in place of leaving it is cancelled."""
        body = {
            "model": self._target.full,
            "prompt": draw.choice(PROMPTS),
            "num_frames": 8,
            "num_inference_steps": 4,
            "output_format": "webp",
            "seed": draw.randrange(SEEDS),
            "timeout_s": PATIENCE_FOR_VIDEO_S,
        }
        answer = await asker.ask(Ask("video call", self._request("POST", VIDEOS, json=body)))
        if answer is None:
            return
        place = f"{VIDEOS}/{json.loads(answer.body)['id']}"
        job = asker.ledger.asked("video")
        try:
            ending = await self._video_ending(asker, place, draw.random() * 3 if leaving else None)
        except asyncio.CancelledError:
            asker.ledger.ended(job, Ending("cancelled", "the run ended"))
            raise
        asker.ledger.ended(job, ending)

    async def _video_ending(self, asker: Asker, place: str, cancel_s: float | None) -> Ending:
        now = asyncio.get_running_loop().time
        until = now() + PATIENCE_FOR_VIDEO_S + 30
        cancel_at = None if cancel_s is None else now() + cancel_s
        lost = 0
        while now() < until:
            await asyncio.sleep(POLL_S)
            if cancel_at is not None and now() > cancel_at:
                await asker.ask(Ask("video call", self._request("DELETE", place)))
                return Ending("cancelled", "deleted")
            request = self._request("GET", place)
            answer = await asker.ask(Ask("video call", request, refusals=REFUSALS | {404}))
            if answer is None:
                lost += 1
                if lost == 5:
                    return Ending("failed", "lost video", "five polls in turn were not answered")
                continue
            lost, card = 0, json.loads(answer.body)
            if card["status"] == "failed":
                refused = card["error"]["code"] in ("deadline_exceeded", "queue_full", "not_ready")
                outcome: Outcome = "refused" if refused else "failed"
                return Ending(outcome, f"video {card['error']['code']}", str(card["error"]))
            if card["status"] == "completed":
                content = Ask("video call", self._request("GET", f"{place}/content"))
                file = await asker.ask(content)
                return Ending("answered") if file else Ending("failed", "lost video", "no file")
        return Ending("failed", "no answer", "the job has not ended in its time")

    # How they are made.

    def _body(self, draw: random.Random) -> Body:
        width, height = draw.choice(self._target.sizes)
        guidance = draw.choice((0.0, 0.0, 4.0))
        body: Body = {
            "model": draw.choice(self._target.models),
            "prompt": draw.choice(PROMPTS),
            "size": f"{width}x{height}",
            "num_inference_steps": draw.choice((1, 4, 4, 6, 12)),
            "eta": draw.choice((0.0, 0.3, 1.0)),
            "guidance_scale": guidance,
            "seed": draw.randrange(SEEDS),
        }
        return body | ({"negative_prompt": "a red ball"} if guidance else {})

    def _full(self, draw: random.Random) -> Body:
        return {
            "model": self._target.full,
            "prompt": draw.choice(PROMPTS[:2]),
            "num_inference_steps": 4,
            "seed": draw.randrange(SEEDS),
        }

    def generation(self, kind: str, body: Body, refusals: frozenset[int] = REFUSALS) -> Ask:
        """A request of this body, which has a seed, and what its answer must hold."""
        expected = self._expected(body, {})
        judge: Judge = expected.stream if body.get("stream") else expected.body
        return Ask(kind, self._request("POST", GENERATIONS, json=body), judge, refusals)

    def _form(
        self, kind: str, route: str, fields: dict[str, str], seed: int, pictures: dict[str, int]
    ) -> Ask:
        files = {
            name: (f"{name}.png", _mask(number) if name == "mask" else self._pictures[number])
            for name, number in pictures.items()
        }
        expected = self._expected({**fields, "seed": seed}, pictures)
        request = self._request("POST", route, data={**fields, "seed": str(seed)}, files=files)
        return Ask(kind, request, expected.body)

    def _expected(self, body: Body, pictures: Mapping[str, int]) -> Pictures:
        """What the answer must hold. Requests that mean the same picture have the same key."""
        same = {name: value for name, value in body.items() if name not in BESIDE}
        key = json.dumps([same, pictures], sort_keys=True)
        output_format = str(body.get("output_format", "png"))
        size = str(body.get("size", ""))
        width, _, height = size.partition("x")
        seed, n = body.get("seed"), body.get("n", 1)
        assert isinstance(seed, int)
        assert isinstance(n, int)
        return Pictures(
            self._probes,
            key if output_format == "png" else None,
            n,
            (int(width), int(height)) if size else None,
            output_format,
            seed,
            urls=body.get("response_format") == "url",
        )

    def _url_of(self, draw: random.Random) -> str:
        picture = draw.choice(self._pictures)
        return "data:image/png;base64," + base64.b64encode(picture).decode()

    def _request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: dict[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
    ) -> httpx.Request:
        return httpx.Request(
            method, self._url + path, json=json, data=data, files=files, headers=self._headers
        )


# Fields that change nothing of the picture of one seed.
BESIDE = (
    *("n", "seed", "priority", "timeout_s", "output_format", "response_format"),
    *("stream", "partial_images"),
)
BAD: tuple[tuple[int, Body], ...] = (
    (400, {"size": "63x64"}),
    (400, {"n": 1000}),
    (400, {"num_inference_steps": 0}),
    (400, {"prompt": "ball " * 200}),
    (400, {"guidance": 3}),
    (400, {"controls": [{"type": "depth", "image": "https://169.254.169.254/latest"}]}),
    (400, {"controls": [{"type": "depth", "image": "data:image/png;base64,AAAA"}]}),
    (404, {"model": "no-such-model"}),
    (404, {"loras": [{"name": "no-such-style"}]}),
)
LOOKS = (
    ("/healthz", "ok"),
    ("/readyz", "ready"),
    ("/metrics", "tcd_engine_pending_images"),
    ("/v1/models", "checkpoint"),
)


def _asked(kind: str, make: Callable[[str, random.Random], Ask]) -> Doing:
    async def doing(asker: Asker, draw: random.Random, leaving: Leaving | None) -> None:
        ask = make(kind, draw)
        may_leave = ask.request.method == "POST"
        await asker.ask(ask, leaving if may_leave else None)

    return doing


def _picture(number: int) -> bytes:
    """A PNG of a few coloured blocks, another for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return _png(np.kron(blocks, np.ones((16, 16, 1), np.uint8)))


def _mask(number: int) -> bytes:
    """White where it is to be made anew: a part of the picture, another for each number."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 8 * (number + 1) :] = 255
    return _png(mask)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        return image.size
