"""A request's walk without a cluster: limits, processes that die under it, models not yet up."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import (
    ActorDiedError,
    ObjectLostError,
    OwnerDiedError,
    RayTaskError,
    ReferenceCountingAssertionError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from configs.app import ServiceArgs
from configs.names import Names
from deployments.contracts.api import PreprocessForm
from deployments.contracts.cards import Availability
from deployments.contracts.errors import (
    DeadlineExceeded,
    EngineFault,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    QueueFull,
)
from deployments.contracts.jobs import (
    Caller,
    Completed,
    FailedImage,
    FinishedImage,
    ImageJob,
    ImageRequest,
    ImageResult,
    PartialImage,
    Pixels,
    Progress,
    StreamEvent,
    Usage,
    VideoRequest,
)
from deployments.contracts.refusal import Refusal
from deployments.contracts.tokens import TokenizeBody
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request import deaths, full
from deployments.ingress.request import service as service_module
from deployments.ingress.request.assembly import Assembled, Assembler, Outline
from deployments.ingress.request.service import Service
from tests.deployments.ingress.fakes import FakeModel, Method, following, heard, outlook

TIMEOUT_S = 0.05
ALICE, BOB = Caller("alice"), Caller("bob")
USAGE = Usage(0, 0, 0)
GREY = np.full((64, 64, 3), 128, np.uint8)
MADE = ImageResult("sd15", (GREY,), (0,), 64, 64, USAGE)
LATENTS = np.zeros((4, 8, 8), np.float32)
STEP = Progress(0, 1, 4)
PARTIAL = PartialImage(0, 0, 1, GREY)
FINISHED = FinishedImage(0, 0, GREY, LATENTS)
FAILED = FailedImage(1, GenerationFailed("its numbers left the finite range"))
DONE = Completed("sd15", USAGE)
DIED = ActorDiedError()


def task_error(cause: Exception) -> Exception:
    """As Ray raises what a call raised on the other side."""
    return cast(Exception, RayTaskError("f", "...", cause).as_instanceof_cause())


LOST = [
    DIED,
    ObjectLostError("00", None, ""),
    OwnerDiedError("00", None, ""),
    ReferenceCountingAssertionError("00", None, ""),
    RayServeException("an upstream actor died"),
    task_error(DIED),
    task_error(OwnerDiedError("00", None, "")),
    task_error(RayServeException("an upstream actor died")),
    Refusal(EngineFault("the engine broke")),
]
Outcome = object  # what a call comes to: an answer, or an error that it raises


class Replicas(FakeModel):
    """A model whose calls come to these outcomes, one after the other.

    Attributes:
        jobs: those that it was asked for.
    """

    def __init__(self, *outcomes: Outcome) -> None:
        super().__init__("sd15")
        self.outcomes = list(outcomes)
        self.jobs: list[ImageJob] = []
        self.submit = Method(self._submit)
        self.check = Method(self._submit)
        self.stream = SimpleNamespace(remote=self._stream)

    async def _submit(self, job: ImageJob, *_: object) -> object:
        self.jobs.append(job)
        outcome = self.outcomes.pop(0)
        if outcome is never:
            await never()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _stream(self, job: ImageJob, *_: object) -> "Events":
        self.jobs.append(job)
        return Events(cast("list[object]", self.outcomes.pop(0)))


class Events:
    """The answer to a stream: events, and an error perhaps."""

    def __init__(self, outcomes: list[object]) -> None:
        self._outcomes = list(outcomes)

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> object:
        if not self._outcomes:
            raise StopAsyncIteration
        outcome = self._outcomes.pop(0)
        if outcome is never:
            await never()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self) -> None:
        """A handle's."""


class FakeAssembler:
    """Makes every request ready, unless it is to fail with `outcomes` first."""

    def __init__(self, *outcomes: Exception) -> None:
        self.outcomes = list(outcomes)
        self.forgot = 0
        self.maps = self

    async def outline(self, *_: object) -> Outline:
        if self.outcomes:
            raise self.outcomes.pop(0)
        return Outline("sd15", ImageJob("job", "a", (0,), 64, 64), {})

    async def assemble(self, *asked: object) -> Assembled:
        return Assembled((await self.outline(*asked)).job)

    async def forget_failed(self, _: object) -> None:
        self.forgot += 1
        raise DIED  # what died may be the map store itself

    async def preprocess(self, *_: object) -> None:
        await never()


class WithMaps(FakeAssembler):
    """Makes requests ready that have an array each.

    Attributes:
        made: those arrays, as long as somebody holds them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Pixels]] = []

    async def assemble(self, *asked: object) -> Assembled:
        array = GREY.copy()
        self.made.append(weakref.ref(array))
        return Assembled((await self.outline(*asked)).job, (array,))


async def never(*_: object) -> None:
    """What does not end."""
    await asyncio.Event().wait()


def run(
    model: FakeModel,
    use: Callable[[Service], Awaitable[Any]],
    assembler: object = None,
    availability: Availability = "ready",
    replicas: int = 1,
    **args: Any,
) -> Any:
    """What a service makes of a request to this model."""

    async def walk() -> Any:
        tasks = ("text-to-image", "video")
        known = replace(outlook("sd15", availability, model, tasks=tasks), replicas=replicas)
        async with following(known) as (catalogue, _):
            settings = ServiceArgs(default_model="sd15", **args)
            made = cast(Assembler, assembler or FakeAssembler())
            return await asyncio.wait_for(use(Service(settings, catalogue, made)), 10)

    return asyncio.run(walk())


async def generated(service: Service) -> ImageResult:
    return await service.generate(ImageRequest("a"), Caller("someone", 2.0))


async def streamed(service: Service) -> list[StreamEvent]:
    return [event async for event in service.stream(ImageRequest("a"), Caller("someone", 2.0))]


async def animated(service: Service) -> object:
    return await service.animate(VideoRequest("a"), lambda _: None, Caller("someone", 2.0))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "FAULT_PAUSE_S", 0.0)
    monkeypatch.setattr(service_module, "GRACE_S", 0.0)


@pytest.mark.parametrize("timeout_s", [None, 2 * TIMEOUT_S])
@pytest.mark.parametrize("use", ["generate", "stream"])
def test_a_map_that_never_comes(timeout_s: float | None, use: str) -> None:
    request = ImageRequest("a", timeout_s=timeout_s)

    async def asked(service: Service) -> None:
        if use == "generate":
            await service.generate(request)
        async for _ in service.stream(request):
            pass

    stuck = SimpleNamespace(assemble=never)
    with pytest.raises(DeadlineExceeded, match=f"within {timeout_s or TIMEOUT_S:g} s"):
        run(FakeModel("sd15"), asked, stuck, request_timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("use", ["generate", "stream"])
def test_more_time_than_a_request_may_have(use: str) -> None:
    image = ImageRequest("a", timeout_s=301)

    async def asked(service: Service) -> None:
        if use == "generate":
            await service.generate(image)
        async for _ in service.stream(image):
            pass

    with pytest.raises(InvalidRequest, match="timeout_s is 301; 300 at most") as refused:
        run(Replicas(), asked)
    assert refused.value.param == "timeout_s"


def test_a_video_may_have_an_hour() -> None:
    video = VideoRequest("a", timeout_s=3600)

    async def made(service: Service) -> None:
        assert (await service.check_job(video)).model == "sd15"
        await service.animate(video, lambda _: None)

    model = Replicas(None, [FINISHED, DONE])
    run(model, made)
    assert [job.timeout_s for job in model.jobs] == pytest.approx([3600, 3600], abs=1)


def test_a_videos_pictures_have_more_time_than_its_replica_to_say_yes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are fetched, and may wait for those of others."""
    monkeypatch.setattr(service_module, "CHECK_S", TIMEOUT_S)

    class Slow(FakeAssembler):
        async def outline(self, *_: object) -> Outline:
            await asyncio.sleep(4 * TIMEOUT_S)
            return await super().outline()

    def checked(**args: Any) -> Any:
        return run(Replicas(None), lambda s: s.check_job(VideoRequest("a")), Slow(), **args)

    assert checked().model == "sd15"
    with pytest.raises(DeadlineExceeded, match=f"within {2 * TIMEOUT_S:g} s"):
        checked(request_timeout_s=2 * TIMEOUT_S)
    with pytest.raises(DeadlineExceeded, match=f"within {TIMEOUT_S:g} s"):
        run(Replicas(never), lambda s: s.check_job(VideoRequest("a")))


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_video_that_waits_for_a_place_holds_no_maps(
    monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    monkeypatch.setattr(deaths, "FULL_PAUSE_S", (TIMEOUT_S, TIMEOUT_S))
    assembler = WithMaps()
    made = assembler.made

    async def asked(service: Service) -> object:
        making = asyncio.create_task(animated(service))
        while not made or made[0]() is not None:
            await asyncio.sleep(0)
        assert len(made) == 1, "they are gone only when it asks again"
        return await making

    full = [[Refusal(QueueFull("the queue is full", ms))] for ms in range(replicas)]
    run(Replicas(*full, [FINISHED, DONE]), asked, assembler, replicas=replicas)
    assert len(made) == 2


def test_a_preprocessor_that_never_comes() -> None:
    with pytest.raises(DeadlineExceeded, match=f"within {TIMEOUT_S:g} s"):
        run(
            FakeModel("sd15"),
            lambda service: service.preprocess("depth", b"", PreprocessForm()),
            request_timeout_s=TIMEOUT_S,
        )


@pytest.mark.parametrize("use", [generated, streamed, animated])
def test_a_replica_that_is_silent(use: Callable[[Service], Awaitable[Any]]) -> None:
    outcome: object = never if use is generated else [STEP, never]
    with pytest.raises(DeadlineExceeded, match=f"within {TIMEOUT_S:g} s"):
        run(Replicas(outcome), use, request_timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("lost", LOST, ids=lambda lost: type(lost).__name__)
def test_what_died_is_asked_for_again(lost: object) -> None:
    assembler = FakeAssembler()
    model = Replicas(lost, MADE)
    assert run(model, generated, assembler) == MADE
    assert len(model.jobs) == 2
    assert assembler.forgot == isinstance(lost, Exception)


@pytest.mark.parametrize("lost", LOST[:-1], ids=lambda lost: type(lost).__name__)
def test_a_store_that_dies_is_asked_again(lost: Exception) -> None:
    assert run(Replicas(MADE), generated, FakeAssembler(lost)) == MADE
    events = [PARTIAL, DONE]
    assert run(Replicas(events), streamed, FakeAssembler(lost)) == events


@pytest.mark.parametrize("lost", LOST[:-1], ids=lambda lost: type(lost).__name__)
def test_what_dies_twice_is_not_there(lost: object) -> None:
    with pytest.raises(NotReady, match="went away"):
        run(Replicas(lost, lost), generated)


def test_an_engine_that_breaks_twice() -> None:
    fault = Refusal(EngineFault("the engine broke"))
    with pytest.raises(EngineFault):
        run(Replicas(fault, fault), generated)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), QueueFull),
        (DeploymentUnavailableError(cast(Any, "sd15")), NotReady),
        (Refusal(GenerationFailed("x")), GenerationFailed),
        (task_error(GenerationFailed("x")), GenerationFailed),
        (task_error(ValueError("x")), ValueError),
    ],
)
def test_what_is_not_asked_again(error: object, wanted: type[Exception]) -> None:
    model = Replicas(error)
    with pytest.raises(wanted):
        run(model, generated)
    assert len(model.jobs) == 1


@pytest.mark.parametrize("begun", [[], [STEP], [STEP, STEP]])
@pytest.mark.parametrize("lost", LOST, ids=lambda lost: type(lost).__name__)
def test_a_stream_that_has_shown_nothing_is_asked_for_again(
    begun: list[object], lost: object
) -> None:
    model = Replicas([*begun, lost], [STEP, PARTIAL, FINISHED, DONE])
    events = run(model, streamed)
    assert [type(event) for event in events[-4:]] == [
        Progress,
        PartialImage,
        FinishedImage,
        Completed,
    ]
    assert len(events) == len(begun) + 4


@pytest.mark.parametrize("shown", [PARTIAL, FINISHED, FAILED], ids=lambda e: type(e).__name__)
def test_a_stream_that_has_shown_something_ends(shown: object) -> None:
    model = Replicas([STEP, shown, DIED], [DONE])
    with pytest.raises(NotReady, match="went away"):
        run(model, streamed)
    assert len(model.jobs) == 1


def test_a_stream_that_dies_twice() -> None:
    with pytest.raises(NotReady, match="went away"):
        run(Replicas([STEP, DIED], [STEP, DIED]), streamed)


def test_a_stream_that_is_read_on_by_another_task_ends_in_its_own_error() -> None:
    async def read(service: Service) -> None:
        events = service.stream(ImageRequest("a"))
        assert await anext(events) == STEP

        async def rest() -> None:
            async for _ in events:
                pass

        with pytest.raises(DeadlineExceeded):
            await asyncio.create_task(rest())

    run(Replicas([STEP, never]), read, request_timeout_s=10 * TIMEOUT_S)


def test_images_that_fail_beside_others() -> None:
    some = ImageResult("sd15", (GREY,), (0,), 64, 64, USAGE, failed=(FAILED,))
    mask = np.zeros((64, 64), np.uint8)
    ready = Assembled(ImageJob("job", "a", (0, 1), 64, 64), original=GREY + 1, mask=mask)

    async def assemble(*_: object) -> Assembled:
        return ready

    assembler = SimpleNamespace(assemble=assemble)
    result = run(Replicas(some), generated, assembler)
    assert result.failed == (FAILED,)
    (image,) = result.images
    assert (image == GREY + 1).all()  # the mask keeps everything
    events = run(Replicas([FAILED, FINISHED, DONE]), streamed)
    assert events == [FAILED, FINISHED, DONE]


@pytest.mark.parametrize("use", [generated, streamed, animated])
def test_for_whom_it_is_done(use: Callable[[Service], Awaitable[Any]]) -> None:
    model = Replicas(MADE if use is generated else [FINISHED, DONE])
    run(model, use)
    assert model.jobs[0].caller == Caller("someone", 2.0)


@pytest.mark.parametrize("make", [ImageRequest, VideoRequest])
def test_what_has_the_lowest_priority_takes_turns_of_its_own(make: Callable[..., Any]) -> None:
    async def asked(service: Service) -> None:
        request = make("a", priority=-10)
        if isinstance(request, VideoRequest):
            await service.animate(request, lambda _: None, Caller("someone", 2.0))
        else:
            await service.generate(request, Caller("someone", 2.0))

    model = Replicas(MADE if make is ImageRequest else [FINISHED, DONE])
    run(model, asked)
    assert model.jobs[0].caller == Caller("someone (background)", 0.2, background=True)


def test_a_video_waits_for_its_place_and_survives_its_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deaths, "FULL_PAUSE_S", (0.01, 0.02))
    full = [Refusal(QueueFull("full", 3_600_000))]
    model = Replicas(full, full, [STEP, DIED], [STEP, FINISHED, DONE])
    assert run(model, animated).seed == FINISHED.seed
    assert len(model.jobs) == 4


@pytest.mark.parametrize("replicas", [1, 2, 3, 9])
@pytest.mark.parametrize("use", [generated, streamed])
def test_who_finds_no_room_is_asked_of_another_replica(
    use: Callable[[Service], Awaitable[Any]], replicas: int
) -> None:
    said = [QueueFull(f"room in {ms} ms", ms) for ms in (3000, 2000, 4000)]
    outcomes = [Refusal(full) if use is generated else [Refusal(full)] for full in said]
    asked = min(replicas, 3)

    model = Replicas(*outcomes * 3)
    with pytest.raises(QueueFull) as refused:
        run(model, use, replicas=replicas)
    soonest = min(said[:asked], key=lambda full: full.retry_after_ms)
    assert refused.value.args == soonest.args
    assert [job.refused_elsewhere for job in model.jobs] == [False, True, True][:asked]
    assert len({job.job_id for job in model.jobs}) == 1  # by which the router knows it again

    made: object = MADE if use is generated else [FINISHED, DONE]
    model = Replicas(*outcomes[: asked - 1], made)
    assert run(model, use, replicas=replicas) == made
    assert {replace(job, timeout_s=None, refused_elsewhere=False) for job in model.jobs} == {
        replace(model.jobs[0], timeout_s=None)
    }


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("use", [generated, streamed])
def test_what_is_refused_is_gone_without_the_collector(
    use: Callable[[Service], Awaitable[Any]], replicas: int
) -> None:
    """A crowd's pictures would wait for it together."""
    assembler = WithMaps()
    made = assembler.made

    async def asked(service: Service) -> None:
        for full_ms in (0, 60_000):
            model.outcomes = [refusal(full_ms) for _ in range(5 * replicas)]
            for _ in range(5):
                with pytest.raises(QueueFull):
                    await use(service)

    def refusal(full_ms: int) -> object:
        full = Refusal(QueueFull("full", 60_000, full_ms))
        return full if use is generated else [full]

    model = Replicas()
    gc.disable()
    try:
        run(model, asked, assembler, replicas=replicas)
        assert len(made) == 10
        assert not [array for array in made if array() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("use", [generated, streamed, animated])
def test_where_there_was_no_room_just_now_no_replica_is_asked(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[Service], Awaitable[Any]]
) -> None:
    monkeypatch.setattr(deaths, "FULL_PAUSE_S", (0.3, 0.4))
    refusal = Refusal(QueueFull("full", 60_000, 60_000))
    made: object = MADE if use is generated else [FINISHED, DONE]

    async def asked(service: Service) -> None:
        for _ in range(3):
            with pytest.raises(QueueFull):
                await generated(service)
        if use is animated:  # which waits for its place
            assert await animated(service)
            return
        with pytest.raises(QueueFull, match="a moment ago: full"):
            await use(service)
        await asyncio.sleep(full.MOST_S)
        assert await use(service) == made

    model = Replicas(refusal, made)
    run(model, asked)
    assert len(model.jobs) == 2


def test_the_second_replica_has_what_is_left_of_the_time() -> None:
    class Slow(Replicas):
        async def _submit(self, job: ImageJob, *_: object) -> object:
            answer = await super()._submit(job)
            await asyncio.sleep(TIMEOUT_S)
            return answer

    model = Slow(*[Refusal(QueueFull("full", 2000))] * 2, MADE)
    assert run(model, generated, replicas=3, request_timeout_s=60) == MADE
    first, second, third = (job.timeout_s for job in model.jobs)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first - second >= TIMEOUT_S
    assert second - third >= TIMEOUT_S


@pytest.mark.parametrize("availability", ["asleep", "starting"])
@pytest.mark.parametrize("use", [generated, streamed, animated])
def test_a_model_that_does_not_start_in_time(
    use: Callable[[Service], Awaitable[Any]], availability: Availability
) -> None:
    outcome: object = never if use is generated else [never]
    with pytest.raises(NotReady, match=f"is being started and was not ready within {TIMEOUT_S:g}"):
        run(Replicas(outcome), use, availability=availability, request_timeout_s=TIMEOUT_S)


def test_a_video_of_a_model_that_is_not_up_is_checked_when_it_is_made() -> None:
    model = Replicas()
    outline = run(model, lambda s: s.check_job(VideoRequest("a")), availability="asleep")
    assert outline.model == "sd15"
    assert model.jobs == []


def test_how_a_prompt_is_read_wakes_no_model() -> None:
    model = FakeModel("sd15", replicas=0)
    model.asleep = True

    async def read() -> None:
        asleep = outlook("sd15", "asleep", model, described=False)
        async with following(asleep) as (catalogue, _):
            service = Service(
                ServiceArgs(default_model="sd15"), catalogue, cast(Assembler, FakeAssembler())
            )
            await service.tokens(TokenizeBody(prompt="a", model="sd15"))

    with pytest.raises(NotReady, match="no replica of model 'sd15' runs now"):
        asyncio.run(read())
    assert model.asked == []


@pytest.mark.parametrize("use", [generated, streamed, animated])
def test_a_request_that_waits_is_told_when_its_model_is_given_up(
    use: Callable[[Service], Coroutine[Any, Any, Any]],
) -> None:
    async def walk() -> None:
        model = Replicas(never if use is generated else [never])
        tasks = ("text-to-image", "video")
        starting = outlook("sd15", "starting", model, tasks=tasks)
        async with following(starting) as (catalogue, directory):
            args = ServiceArgs(default_model="sd15")
            service = Service(args, catalogue, cast(Assembler, FakeAssembler()))
            asking = asyncio.create_task(use(service))
            await heard()
            directory.say(outlook("sd15", "failed", model, state="DEPLOY_FAILED", tasks=tasks))
            await asyncio.wait_for(asking, 30)

    with pytest.raises(NotReady, match="model 'sd15' does not run: deploy_failed"):
        asyncio.run(walk())


def test_a_name_of_several_models_is_one_of_them_to_the_end() -> None:
    """By their weights; also where a replica dies, and another is asked; of those that a key may
    ask, and that would answer."""

    class Picky(Quota):
        def may_ask(self, caller: Caller, model: str) -> bool:
            return caller != ALICE or model == "two"

    async def walk() -> None:
        replicas = {name: Replicas() for name in ("one", "two", "gone")}
        outlooks = [
            outlook(name, "failed" if name == "gone" else "ready", model)
            for name, model in replicas.items()
        ]
        async with following(*outlooks) as (catalogue, directory):
            settings = ServiceArgs(aliases={"public": {"one": 1, "gone": 1}})
            service = Service(settings, catalogue, cast(Assembler, FakeAssembler()), Picky())

            async def made(caller: Caller = BOB) -> str:
                for model in replicas.values():
                    model.outcomes = [DIED, MADE]
                    model.jobs.clear()
                await service.generate(ImageRequest("a", model="public"), caller)
                (asked,) = [name for name, model in replicas.items() if model.jobs]
                assert len(replicas[asked].jobs) == 2
                return asked

            assert {await made() for _ in range(20)} == {"one"}
            assert directory.said is not None
            shared = Names({"public": {"one": 1.0, "two": 1.0}})
            directory.said = replace(directory.said, names=shared, number=2)
            directory.say_it()
            await heard()
            assert {await made() for _ in range(40)} == {"one", "two"}
            assert {await made(ALICE) for _ in range(20)} == {"two"}

    asyncio.run(walk())


def test_a_process_that_has_just_begun_hears_the_names_first() -> None:
    async def walk() -> ImageResult:
        model = Replicas(MADE)
        async with following() as (catalogue, directory):
            service = Service(ServiceArgs(), catalogue, cast(Assembler, FakeAssembler()))
            asked = asyncio.create_task(service.generate(ImageRequest("a", model="public")))
            await asyncio.sleep(0.05)
            directory.say(outlook("one", "ready", model))
            assert directory.said is not None
            directory.said = replace(directory.said, names=Names({"public": {"one": 1.0}}))
            return await asyncio.wait_for(asked, 30)

    assert asyncio.run(walk()) == MADE
