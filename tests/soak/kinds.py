"""The kinds of requests that a soak sends, each drawn at random out of a few that come again."""

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Mapping

import httpx

from tests.soak.asking import REFUSALS, Ask, Asker, Leaving
from tests.soak.judging import Map, Probes, Says
from tests.soak.ledger import Ending, Outcome
from tests.soak.making import (
    EDITS,
    GENERATIONS,
    PROMPTS,
    SEEDS,
    VARIANTS,
    VARIATIONS,
    Body,
    Making,
    Target,
    size_of,
)

S3_STYLE, HUB_STYLE = "style from S3", "style from the hub"
VIDEOS = "/v1/videos"
BODIES = 10  # that pictures from text are asked with
PATIENCE_FOR_VIDEO_S = 120.0
POLL_S = 0.5

Doing = Callable[[Asker, random.Random, Leaving | None], Awaitable[None]]
BAD: tuple[tuple[int, Body], ...] = (
    (400, {"size": "63x64"}),
    (400, {"n": 1000}),
    (400, {"num_inference_steps": 0}),
    (400, {"prompt": "ball " * 2000}),
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


class Kinds:
    """Draws one caller's requests. The same seed gives the same few variants of each kind."""

    def __init__(
        self, url: str, target: Target, probes: Probes, seed: int, key: str | None = None
    ) -> None:
        self._target = target
        self._probes = probes
        self._s3_styles = itertools.cycle(target.s3_styles)
        self._hub_styles = itertools.cycle(target.hub_styles)
        self.making = Making(url, target, probes, key)
        draw = random.Random(seed)
        self._bodies = [self.making.body(draw) for _ in range(BODIES)]

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
        return self.making.generation(kind, body)

    def many(self, kind: str, draw: random.Random) -> Ask:
        """Up to four images."""
        return self.making.generation(
            kind, dict(draw.choice(self._bodies)) | {"n": draw.randint(2, 4)}
        )

    def styles(self, kind: str, draw: random.Random) -> Ask:
        """One adapter or two."""
        names = draw.sample(self._target.loras, draw.randint(1, 2))
        loras = [{"name": name, "weight": draw.choice((0.5, 1.0))} for name in names]
        return self.making.generation(kind, dict(draw.choice(self._bodies)) | {"loras": loras})

    def s3_style(self, kind: str, draw: random.Random) -> Ask:
        """An adapter that is fetched from S3, the next of them each time."""
        loras = [{"name": next(self._s3_styles), "weight": 1.0}]
        return self.making.generation(
            kind, self.making.full(draw) | {"loras": loras, "timeout_s": 20}
        )

    def hub_style(self, kind: str, draw: random.Random) -> Ask:
        """The same from the hub."""
        loras = [{"name": next(self._hub_styles), "weight": 1.0}]
        return self.making.generation(
            kind, self.making.full(draw) | {"loras": loras, "timeout_s": 20}
        )

    def s3_picture(self, kind: str, draw: random.Random) -> Ask:
        """A picture to resemble that the service fetches. What cannot be fetched is refused."""
        image = draw.choice(self._target.s3_pictures)
        body = self.making.full(draw) | {"ip_adapter": {"image": image}, "timeout_s": 20}
        return self.making.generation(kind, body, REFUSALS | {400})

    def resembling(self, kind: str, draw: random.Random) -> Ask:
        """By IP-Adapter, beside a prompt."""
        adapter = {"image": self.making.url_of(draw), "scale": 0.5}
        return self.making.generation(kind, self.making.full(draw) | {"ip_adapter": adapter})

    def control(self, kind: str, draw: random.Random) -> Ask:
        """Depth or canny, made by the service; both at times."""
        kinds = draw.choice((["depth"], ["canny"], ["depth", "canny"]))
        controls = [{"type": name, "image": self.making.url_of(draw)} for name in kinds]
        return self.making.generation(kind, self.making.full(draw) | {"controls": controls})

    def ready_control(self, kind: str, draw: random.Random) -> Ask:
        """A map that comes along."""
        image = self.making.url_of(draw)
        control = {"type": "canny", "image": image, "preprocessed": True, "end": 0.6}
        return self.making.generation(kind, self.making.full(draw) | {"controls": [control]})

    def stream(self, kind: str, draw: random.Random) -> Ask:
        """Server-sent events with partial images."""
        more = {"stream": True, "partial_images": draw.randint(0, 3), "n": draw.randint(1, 2)}
        return self.making.generation(kind, dict(draw.choice(self._bodies)) | more)

    def hurried(self, kind: str, draw: random.Random) -> Ask:
        """More steps than its time allows, mostly."""
        more = {"num_inference_steps": 50, "timeout_s": draw.choice((0.05, 0.3, 1.0))}
        return self.making.generation(kind, dict(draw.choice(self._bodies)) | more)

    def edit(self, kind: str, draw: random.Random) -> Ask:
        """Image to image."""
        fields = {"model": self._target.full, "prompt": draw.choice(PROMPTS), "strength": "0.8"}
        image = draw.randrange(VARIANTS)
        return self.making.form(kind, EDITS, fields, draw.randrange(SEEDS), {"image": image})

    def inpainting(self, kind: str, draw: random.Random) -> Ask:
        """With a mask."""
        fields = {"model": self._target.full, "prompt": draw.choice(PROMPTS)}
        files = {"image": draw.randrange(VARIANTS), "mask": draw.randrange(VARIANTS)}
        return self.making.form(kind, EDITS, fields, draw.randrange(SEEDS), files)

    def variation(self, kind: str, draw: random.Random) -> Ask:
        """By IP-Adapter, without a prompt."""
        fields = {"model": self._target.full, "num_inference_steps": "4"}
        image = draw.randrange(VARIANTS)
        return self.making.form(kind, VARIATIONS, fields, draw.randrange(SEEDS), {"image": image})

    def preprocess(self, kind: str, draw: random.Random) -> Ask:
        """A control map."""
        name, image = draw.choice(("depth", "canny")), draw.randrange(VARIANTS)
        files = {"image": ("image.png", self.making.pictures[image])}
        request = self.making.request("POST", f"/v1/preprocess/{name}", files=files)
        size = size_of(self.making.pictures[image])
        return Ask(kind, request, Map(self._probes, f"{name} {image}", size))

    def bad(self, kind: str, draw: random.Random) -> Ask:
        """What must be refused, and how."""
        fine: Body = {"model": self._target.models[0], "prompt": "a cat"}
        status, change = draw.choice(BAD)
        request = self.making.request("POST", GENERATIONS, json=fine | change)
        return Ask(kind, request, refusals=frozenset({status}), wants_refusal=True)

    def looking(self, kind: str, draw: random.Random) -> Ask:
        """What shows the service's state."""
        path, *words = draw.choice(LOOKS)
        return Ask(kind, self.making.request("GET", path), Says(tuple(words)))

    # Several requests that belong together.

    async def by_url(self, asker: Asker, draw: random.Random, leaving: Leaving | None) -> None:
        """A picture in the storage, and the picture."""
        body = dict(draw.choice(self._bodies)) | {"response_format": "url"}
        answer = await asker.ask(self.making.generation("by URL", body), leaving)
        if answer is None:
            return
        (image,) = json.loads(answer.body)["data"]
        if not image["url"].startswith(asker.url):
            return  # kept by another server, which may be down meanwhile
        expected = self.making.expected(body, {})
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
        width, height = size_of(answer.body)
        body = self.making.full(draw) | {"controls": [control], "size": f"{width}x{height}"}
        await asker.ask(self.making.generation("named map", body, REFUSALS | {404}), leaving)

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
        answer = await asker.ask(Ask("video call", self.making.request("POST", VIDEOS, json=body)))
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
                await asker.ask(Ask("video call", self.making.request("DELETE", place)))
                return Ending("cancelled", "deleted")
            request = self.making.request("GET", place)
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
                content = Ask("video call", self.making.request("GET", f"{place}/content"))
                file = await asker.ask(content)
                return Ending("answered") if file else Ending("failed", "lost video", "no file")
        return Ending("failed", "no answer", "the job has not ended in its time")


def _asked(kind: str, make: Callable[[str, random.Random], Ask]) -> Doing:
    async def doing(asker: Asker, draw: random.Random, leaving: Leaving | None) -> None:
        ask = make(kind, draw)
        may_leave = ask.request.method == "POST"
        await asker.ask(ask, leaving if may_leave else None)

    return doing
