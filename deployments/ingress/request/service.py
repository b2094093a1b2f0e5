"""A request's walk through the graph: fill the gaps, find the replica, wait, translate.

The HTTP routes and the Python handle both end here.

What the death of a process costs, of a replica or of what stands behind it, is one more try: seeded
work may be done twice. A request waits for a replica for as long as its own limit allows, whether
that has to be woken, is being replaced, or is started for the first time; it does not wait for a
model that Serve has given up.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TypeVar, cast

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from configs.app import TIMEOUT_S, ServiceArgs
from configs.names import Names
from deployments.contracts.api import PreprocessForm
from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    QueueFull,
    Unchecked,
)
from deployments.contracts.jobs import (
    BACKGROUND,
    Caller,
    Completed,
    Control,
    FailedImage,
    FinishedImage,
    ImageInput,
    ImageJob,
    ImageRequest,
    ImageResult,
    PartialImage,
    Pixels,
    Progress,
    StreamEvent,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.refusal import Refusal, accepted
from deployments.contracts.tokens import PromptTokens, TokenizeBody, TokensBody
from deployments.contracts.verdict import Verdict
from deployments.contracts.work import work_of
from deployments.ingress.discovery.asking import asked
from deployments.ingress.keys.lease import Lease
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.assembly import Assembled, Assembler, Outline
from deployments.ingress.request.budget import check
from deployments.ingress.request.catalogue import Catalogue, Model
from deployments.ingress.request.course import current, stage
from deployments.ingress.request.deaths import (
    FAILURES,
    died,
    pause,
    translated,
    twice,
    wait_for_room,
)
from deployments.ingress.request.elsewhere import Elsewhere
from deployments.ingress.request.full import Full
from deployments.ingress.request.moderation import Kind, Moderator
from deployments.ingress.request.pictures import Brought
from deployments.ingress.request.workers import together
from deployments.tracing.spans import span

_TokensResponse = DeploymentResponse[PromptTokens | Refusal]
OnProgress = Callable[[Progress], None]
Said = TypeVar("Said")
Request = TypeVar("Request", ImageRequest, VideoRequest, ImageRequest | VideoRequest)
NOBODY = Caller()
CHECK_S = 10.0  # for a replica to say whether it would take a job
LEAST_S = 0.001
NAMES_S = 5.0  # for the directory to say what models are called, when a process begins
GRACE_S = 2.0  # the replica itself ends a late job; the ingress only waits no longer than this
FORGET_S = 5.0
# A stream that has shown one of these cannot begin anew.
SHOWN = (PartialImage, FinishedImage, FailedImage)
log = logging.getLogger("ray.serve.tcd.service")


class Service:
    """Answers image requests with the models that run.

    Args:
        name: full name of the replica of Serve that this is in; `None`: in none.
    """

    def __init__(
        self,
        args: ServiceArgs,
        catalogue: Catalogue,
        assembler: Assembler,
        quota: Quota | None = None,
        moderator: Moderator | None = None,
        name: str | None = None,
    ) -> None:
        self._args = args
        self._name = name
        self.catalogue = catalogue
        self.assembler = assembler
        self.moderator = moderator or Moderator()
        self._quota = quota or Quota()
        self._full = Full()

    async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
        """Makes all images of a request; raises a `TcdError` if it can make none."""
        timeout_s = self.time_of(request)
        until = asyncio.get_running_loop().time() + timeout_s
        current().asks(request)
        request = await self._meant(request, caller, timeout_s)

        async def ask() -> tuple[Assembled, ImageResult]:
            model, ready = await self._assembled(request, until, lease)
            return ready, await self._submit(model, ready)

        within = self._within(timeout_s, request.model)
        with self._quota.lease(caller, request.n) as lease, translated(), within:
            ready, result = await twice(ask)
            images = result.images
            if ready.original is not None:
                images = await asyncio.to_thread(lambda: tuple(map(ready.restored, images)))
            seen = dict(zip(map(_of_seed, result.seeds), images, strict=True))
            current().made(result.stages, len(result.failed))
            await self._check(request, "image", seen, until)
            lease.made(len(images))
        return replace(result, images=images, recipe=ready.recipe)

    async def stream(
        self, request: ImageRequest, caller: Caller = NOBODY, timeout_s: float | None = None
    ) -> AsyncGenerator[StreamEvent]:
        """A request's events as they come; raises a `TcdError` if it cannot go on.

        If a process dies before the first picture, all begins anew, `Progress` too.

        Args:
            timeout_s: how long it may last, where no connection waits for it; `None`: as long as
                the request says.
        """
        if timeout_s is None:
            timeout_s = self.time_of(request)
        until = asyncio.get_running_loop().time() + timeout_s
        current().asks(request)
        request = await self._meant(request, caller, timeout_s)
        begun = False
        within = self._within(timeout_s, request.model)
        with self._quota.lease(caller, request.n) as lease, translated(), within:
            for last_try in (False, True):
                try:
                    model, ready = await self._assembled(request, until, lease)
                    async with aclosing(self._events(model, ready)) as events:
                        async for event in events:
                            _note(event)
                            answered = await _answered(event, ready)
                            if await self._may_be_seen(request, answered, until):
                                begun = begun or isinstance(event, SHOWN)
                                lease.made(isinstance(event, FinishedImage))
                                yield answered
                    return
                except FAILURES as error:
                    if begun or last_try or not died(error):
                        raise
                    await pause(error)

    async def card(self, model: str | None, caller: Caller = NOBODY) -> ModelCard:
        """Of the model that a request means. Raises a `TcdError` if it may not have it."""
        timeout_s = self._args.request_timeout_s
        with translated(), self._within(timeout_s, model):
            async with asyncio.timeout(timeout_s):
                lease = self._quota.lease(caller, 1)
                request = await self._meant(ImageRequest("", model=model), caller, timeout_s)
                return (await self._model(request, lease)).card

    async def animate(
        self, request: VideoRequest, progress: OnProgress, caller: Caller = NOBODY
    ) -> VideoResult:
        """Makes a video; tells `progress` of every step. Waits while the model's queue is full,
        and while the key has used up its work."""
        timeout_s = self.time_of(request)
        until = asyncio.get_running_loop().time() + timeout_s
        current().asks(request)
        request = await self._meant(request, caller, timeout_s)

        async def ask() -> VideoResult:
            model, ready = await self._assembled(request, until, lease)
            return await self._animate(model, ready, request.fps, progress)

        within = self._within(timeout_s, request.model)
        with self._quota.lease(caller, 1) as lease, translated(), within:
            while True:
                try:
                    result = await twice(ask)
                    break
                except QueueFull as error:
                    async with asyncio.timeout_at(until):
                        await wait_for_room(error)
            frames = {f"frame {place}": frame for place, frame in enumerate(result.frames, 1)}
            await self._check(request, "frame", frames, until)
            lease.made(1)
        return result

    async def check_job(
        self, request: ImageRequest | VideoRequest, caller: Caller = NOBODY
    ) -> Outline:
        """What is known of a job that is to be done later on. Raises a `TcdError` if it cannot be.

        Its pictures have as long as those of an image: they may come slowly, and many others' may
        be read before them.
        """
        timeout_s = request.timeout_s or self._args.request_timeout_s
        current().asks(request)
        request = await self._meant(request, caller, timeout_s)
        pictures_s = min(timeout_s, self._args.request_timeout_s)
        images = request.n if isinstance(request, ImageRequest) else 1
        self._quota.check(caller, images)
        with translated():
            async with self._limited(CHECK_S, request.model):
                check(request, self._args)
                self.moderator.level_of(request)
                model = await self._model(request, self._quota.lease(caller, images))
            with stage("prepare"):
                async with self._limited(pictures_s, request.model):
                    outline = await self.assembler.outline(request, model.card)
            current().becomes(outline.job)
            if not self.catalogue.up(model.card.id):
                return outline  # the replica that is started for it checks it
            job = replace(outline.job, timeout_s=timeout_s, caller=caller)
            async with self._limited(CHECK_S, request.model):
                response = model.handle.check.remote(job)
                answer = await asked(cast(DeploymentResponse[Refusal | None], response))
        accepted(answer)
        return outline

    async def _animate(
        self, model: Model, ready: Assembled, fps: int, progress: OnProgress
    ) -> VideoResult:
        video: FinishedImage | None = None
        async for event in self._events(model, ready):
            _note(event)
            match event:
                case Progress():
                    progress(event)
                case FinishedImage():
                    video = event
                case FailedImage():
                    raise event.error
                case Completed() if video is not None:
                    return VideoResult(
                        event.model, video.pixels, video.seed, fps, event.usage, ready.recipe
                    )
        raise NotReady("the model's replica ended before the video was done")

    async def preprocess(
        self,
        preprocessor: str,
        image: ImageInput,
        form: PreprocessForm,
        caller: Caller = NOBODY,
    ) -> tuple[str, Pixels]:
        """The id of a picture's control map, and the map: (height, width, 3) uint8."""
        control = Control(
            preprocessor,
            image,
            low_threshold=form.low_threshold,
            high_threshold=form.high_threshold,
        )
        current().does(preprocessor)
        timeout_s = self._args.request_timeout_s
        with self._quota.lease(caller, 1) as lease, translated():
            try:
                async with asyncio.timeout(timeout_s):
                    await lease.turn()
                    found = await twice(lambda: self.assembler.preprocess(control))
            except TimeoutError as error:
                raise _late(timeout_s) from error
            lease.made(1)
        return found

    async def tokens(self, asked_for: TokenizeBody, caller: Caller = NOBODY) -> TokensBody:
        """How a model reads a prompt. Raises `NotReady` where no replica of it runs: none is
        started for this."""
        request = ImageRequest(asked_for.prompt, model=asked_for.model)
        request = await self._meant(request, caller, CHECK_S)
        with translated():
            async with self._limited(CHECK_S, request.model):
                check(request, self._args)
                model = await self._model(request, self._quota.lease(caller, 1), wake=False)
                response = model.handle.tokens.remote(asked_for.prompt, asked_for.prompt_syntax)
                read = accepted(await asked(cast(_TokensResponse, response)))
        return TokensBody(
            model=model.card.id,
            count=read.count,
            max_model_len=model.card.limits.max_prompt_tokens,
            windows=list(read.windows),
        )

    async def moderate(
        self, pictures: Mapping[str, ImageInput], caller: Caller = NOBODY
    ) -> list[Verdict]:
        """What the safety checker says of pictures, which are given by the fields they came in."""
        current().does("moderation")
        timeout_s = self._args.request_timeout_s
        with self._quota.lease(caller, 1) as lease, translated(), self._within(timeout_s, None):
            async with asyncio.timeout(timeout_s):
                await lease.turn()
                brought = await self.assembler.pictures.bring(pictures)
                return await together(map(self._judged, brought.values()))

    async def _judged(self, brought: Brought) -> Verdict:
        async with self.assembler.pictures.decoded(brought) as (loaded,):
            (verdict,) = await self.moderator.judged([loaded.pixels])
            return verdict

    async def _check(
        self,
        request: ImageRequest | VideoRequest,
        kind: Kind,
        pictures: Mapping[str, Pixels],
        until: float,
    ) -> None:
        """Raises `Moderated` if one of a request's pictures, by what errors call them, is
        blocked."""
        level = self.moderator.level_of(request)
        if level is None:
            return
        if kind == "input":
            async with asyncio.timeout_at(until):
                await self.moderator.check(level, kind, pictures)
        else:
            await _of_drawn(lambda: self.moderator.check(level, kind, pictures), until)

    async def _may_be_seen(self, request: ImageRequest, event: StreamEvent, until: float) -> bool:
        """Whether an event is told: a partial image that is blocked is left out. Raises
        `Moderated` for a finished one."""
        if isinstance(event, FinishedImage):
            await self._check(request, "image", {_of_seed(event.seed): event.pixels}, until)
        level = self.moderator.level_of(request)
        if level is None or not isinstance(event, PartialImage):
            return True
        pixels = event.pixels
        return await _of_drawn(lambda: self.moderator.passes(level, "partial_image", pixels), until)

    @contextmanager
    def _asking(self, model: Model, job: ImageJob) -> Iterator[Elsewhere]:
        """Where replicas are asked for a job, one after the other while they have no room."""
        replicas = self.catalogue.replicas(model.card.id)
        with self._full.asking(model.card.id, job, replicas):
            yield Elsewhere(job, replicas)

    async def _submit(self, model: Model, ready: Assembled) -> ImageResult:
        with self._asking(model, ready.job) as elsewhere:
            while True:
                try:
                    return await self._submit_once(model, ready)
                except QueueFull as error:
                    ready = replace(ready, job=elsewhere.after(error))

    async def _submit_once(self, model: Model, ready: Assembled) -> ImageResult:
        response = cast(
            DeploymentResponse[ImageResult | Refusal],
            model.handle.submit.remote(ready.job, *ready.assets),
        )
        try:
            async with self.catalogue.waiting(model.card.id, self._patience(model, ready.job)):
                return accepted(await asked(response))
        except (RayError, RayServeException):
            await self._forget_failed(ready)
            raise

    async def _events(self, model: Model, ready: Assembled) -> AsyncGenerator[StreamEvent]:
        """A job's events from the replica that has room; leaving the iterator cancels the job."""
        with self._asking(model, ready.job) as elsewhere:
            while True:
                try:
                    async with aclosing(self._events_once(model, ready)) as events:
                        async for event in events:
                            yield event
                    return
                except QueueFull as error:  # the first that such a replica says, and the last
                    ready = replace(ready, job=elsewhere.after(error))

    async def _events_once(self, model: Model, ready: Assembled) -> AsyncGenerator[StreamEvent]:
        events = cast(
            DeploymentResponseGenerator[StreamEvent | Refusal],
            model.handle.options(stream=True).stream.remote(ready.job, *ready.assets),
        )
        until = self._patience(model, ready.job)
        try:
            while True:
                # A limit for each event: whoever reads on may be another task than who began.
                async with self.catalogue.waiting(model.card.id, until):
                    event = await anext(events, None)
                if event is None:
                    return
                if isinstance(event, Refusal):
                    raise event.error
                yield event
        except (RayError, RayServeException):
            await self._forget_failed(ready)
            raise
        finally:
            events.cancel()

    async def _forget_failed(self, ready: Assembled) -> None:
        """Best effort: the map store may be what died."""
        try:
            async with asyncio.timeout(FORGET_S):
                await self.assembler.maps.forget_failed(ready.map_ids)
        except (TimeoutError, RayError, RayServeException) as error:
            log.warning("the map store does not answer: %r", error)

    async def _assembled(
        self, request: ImageRequest | VideoRequest, until: float, lease: Lease
    ) -> tuple[Model, Assembled]:
        """`until`: on the clock of the event loop; the job has what is left of the time."""
        with stage("prepare"):
            return await self._prepared(request, until, lease)

    async def _prepared(
        self, request: ImageRequest | VideoRequest, until: float, lease: Lease
    ) -> tuple[Model, Assembled]:
        check(request, self._args)
        self.moderator.level_of(request)
        async with asyncio.timeout_at(until):
            model = await self._model(request, lease)
            with span("turn"):
                await lease.turn()
            ready = await self.assembler.assemble(request, model.card)
        current().becomes(ready.job)
        if ready.start is not None:
            await self._check(request, "input", {"the picture to start from": ready.start}, until)
        lease.charge(work_of(ready.job))
        left = until - asyncio.get_running_loop().time()
        left = min(max(left, LEAST_S), TIMEOUT_S)  # sums of floats may be a little more
        background = request.priority == BACKGROUND
        caller = lease.caller.in_background if background else lease.caller
        job = replace(ready.job, timeout_s=left, caller=caller, asked_by=self._name)
        return model, replace(ready, job=job)

    def time_of(self, request: ImageRequest | VideoRequest) -> float:
        """Seconds that a request has for which a connection waits; raises `InvalidRequest` if it
        wants more than it may. For a video none does: it may have whatever it can say."""
        wanted, most = request.timeout_s, self._args.max_timeout_s
        if wanted is None:
            return self._args.request_timeout_s
        if wanted > most and not isinstance(request, VideoRequest):
            raise InvalidRequest(f"timeout_s is {wanted:g}; {most:g} at most", "timeout_s")
        return wanted

    @property
    def names(self) -> Names:
        """What models are called now."""
        return self.catalogue.names or self._args.names

    async def _meant(self, request: Request, caller: Caller, within_s: float) -> Request:
        """A request with the model that it means from now on. Of several one is drawn, of those
        that the caller may ask, and that would answer, if there are such. A process that has just
        begun hears first what the names are."""
        await self.catalogue.known(min(within_s, NAMES_S))
        model = self.names.drawn(
            request.model,
            lambda name: self._quota.may_ask(caller, name),
            self.catalogue.would_answer,
        )
        return replace(request, model=model)

    async def _model(
        self, request: ImageRequest | VideoRequest, lease: Lease, *, wake: bool = True
    ) -> Model:
        """The model of a request whose name is settled. `wake`: whether a replica may be started
        for it."""
        name = request.model or await self.catalogue.only()
        lease.check(name, request.priority)  # what it may not ask it is told nothing of
        model = await self.catalogue.find(name, wake=wake)
        current().means(model.card.id)
        if isinstance(request, VideoRequest) and "video" not in model.card.tasks:
            able = [card.id for card in await self.catalogue.cards() if "video" in card.tasks]
            raise InvalidRequest(
                f"model {model.card.id!r} makes no videos; models that do: "
                f"{', '.join(able) or 'none'}",
                "model",
            )
        return model

    def _patience(self, model: Model, job: ImageJob) -> float | None:
        """Until when a job's answer is waited for, on the clock of the event loop."""
        if job.timeout_s is None:
            return None
        grace_s = GRACE_S if self.catalogue.answers(model.card.id) else 0.0
        return asyncio.get_running_loop().time() + job.timeout_s + grace_s

    @asynccontextmanager
    async def _limited(self, timeout_s: float, model: str | None) -> AsyncIterator[None]:
        """A part of a request, which has a time of its own."""
        with self._within(timeout_s, model):
            async with asyncio.timeout(timeout_s):
                yield

    @contextmanager
    def _within(self, timeout_s: float, model: str | None) -> Iterator[None]:
        """Whoever finds that a request is too late, it is said with the time that it had."""
        try:
            yield
        except (TimeoutError, DeadlineExceeded) as error:
            absence = self.catalogue.absence(self.names.main(model), timeout_s)
            raise absence or _late(timeout_s) from error


async def _of_drawn(look: Callable[[], Awaitable[Said]], until: float) -> Said:
    """What the safety checker says of what has been drawn, which is not drawn anew for its sake: it
    waits for room in the checker's queue. Raises `Unchecked` if that does not answer."""
    async with asyncio.timeout_at(until):
        while True:
            try:
                with translated():
                    return await look()
            except QueueFull as error:
                await wait_for_room(error)
            except NotReady as error:
                raise Unchecked(str(error)) from error


async def _answered(event: StreamEvent, ready: Assembled) -> StreamEvent:
    """A replica's event as the caller sees it."""
    if not isinstance(event, PartialImage | FinishedImage):
        return event
    pixels = await asyncio.to_thread(ready.restored, event.pixels)
    if isinstance(event, PartialImage):
        return replace(event, pixels=pixels)
    return replace(event, pixels=pixels, recipe=ready.recipe)


def _note(event: StreamEvent) -> None:
    """What a replica's event says of the request's course."""
    if isinstance(event, Completed | FinishedImage):
        current().made(event.stages)
    elif isinstance(event, FailedImage):
        current().made(event.stages, failed=1)


def _of_seed(seed: int) -> str:
    return f"the image of seed {seed}"


def _late(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"the request was not done within {timeout_s:g} s")
