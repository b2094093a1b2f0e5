"""Stand-ins for what is behind handles: responses, a model, a directory. No cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any, cast

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.contracts.cards import Availability, CardDefaults, CardLimits, ModelCard
from deployments.contracts.figures import EngineFigures, ModelFigures
from deployments.contracts.usage import OtherReports, Report
from deployments.ingress.discovery.outlook import Outlook, Snapshot
from deployments.ingress.request.catalogue import Catalogue

Handle = DeploymentHandle[object]


def card(name: str, created: int = 0, tasks: tuple[str, ...] = ("text-to-image",)) -> ModelCard:
    """Of a model that makes 64x64 pictures."""
    limits = dict.fromkeys(CardLimits.model_fields, 64)
    return ModelCard(
        id=name,
        created=created,
        family="sd15",
        tasks=list(tasks),
        checkpoint="somewhere",
        dtype="float32",
        tcd_lora=None,
        loras={},
        defaults=CardDefaults(
            width=64, height=64, num_inference_steps=4, eta=0.3, guidance_scale=0.0
        ),
        limits=CardLimits(**limits),
    )


class Response:
    """What a handle's call comes to."""

    def __init__(self, answer: Awaitable[Any]) -> None:
        self._answer = asyncio.ensure_future(answer)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer.__await__()

    def cancel(self) -> None:
        """A handle's."""
        self._answer.cancel()


class Method:
    """One method of a handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call

    def remote(self, *args: Any) -> Response:
        return Response(self._call(*args))


class Broadcast:
    """A call to all replicas."""

    def __init__(self, answers: Awaitable[list[Any]]) -> None:
        self._answers = answers

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        return await asyncio.wait_for(self._answers, timeout_s)


class FakeModel:
    """The handle of a model whose replicas are as its attributes say.

    Attributes:
        replicas: how many run. A call to none waits; with `asleep`, it starts one.
        silent: so many of them, the first ones, do not answer.
        asked: the methods that were called, broadcasts in brackets.
    """

    def __init__(self, name: str, replicas: int = 1) -> None:
        self.card = card(name)
        self.replicas = replicas
        self.silent = 0
        self.asleep = False
        self.asked: list[str] = []
        self.describe = Method(self._describe)

    @property
    def handle(self) -> Handle:
        return cast(Handle, self)

    def options(self, **_: bool) -> Any:
        """A handle's."""
        return self

    async def _describe(self) -> ModelCard:
        self.asked.append("describe")
        if self.asleep:
            self.replicas, self.asleep = 1, False
        while self.replicas <= self.silent:
            await asyncio.sleep(0.01)
        return self.card

    def broadcast(self, method: str) -> Broadcast:
        self.asked.append(f"[{method}]")

        async def answers() -> list[Any]:
            if not self.replicas:
                raise DeploymentUnavailableError(cast(Any, self.card.id))
            while self.silent:
                await asyncio.sleep(0.01)
            one = self.card if method == "describe" else EngineFigures(self.card.id, steps_total=7)
            return [one] * self.replicas

        return Broadcast(answers())


class FakeDirectory:
    """The handle of a directory that says what it is told to say."""

    def __init__(self) -> None:
        self.said: Snapshot | None = None
        self.looks = 0
        self.at_a_look: Callable[[], None] = lambda: None
        self._news = asyncio.Event()
        self.watch = Method(self._watch)
        self.look = Method(self._look)
        self.exchange = Method(self._exchange)
        self.figures = Method(self._figures)

    def say(self, *models: Outlook, directory: str = "one") -> None:
        """What is known from now on."""
        number = (
            1 if self.said is None or self.said.directory != directory else self.said.number + 1
        )
        self.said = Snapshot(directory, number, {model.name: model for model in models})
        self.say_it()

    def say_it(self) -> None:
        """What `said` is now."""
        self._news.set()
        self._news = asyncio.Event()

    async def _watch(self, directory: str, number: int) -> Snapshot:
        while self.said is None or (self.said.directory, self.said.number) == (directory, number):
            await self._news.wait()
        return self.said

    async def _figures(self) -> dict[str, ModelFigures]:
        return {}

    async def _exchange(self, _: str, __: Report) -> OtherReports:
        return OtherReports()

    async def _look(self) -> Snapshot | None:
        self.looks += 1
        self.at_a_look()
        return self.said


def outlook(
    name: str,
    availability: Availability = "ready",
    handle: object = None,
    *,
    described: bool = True,
    state: str = "RUNNING",
    tasks: tuple[str, ...] = ("text-to-image",),
) -> Outlook:
    """What a directory may say of a model."""
    known = card(name, tasks=tasks) if described else None
    return Outlook(name, state, availability, known, cast(Handle, handle or FakeModel(name)))


def knowing(*models: Outlook) -> Catalogue:
    """A catalogue that has heard of these models, and hears nothing more."""
    catalogue = Catalogue(cast(Handle, FakeDirectory()))
    catalogue._take(Snapshot("one", 1, {model.name: model for model in models}))
    return catalogue


@asynccontextmanager
async def following(*models: Outlook) -> AsyncIterator[tuple[Catalogue, FakeDirectory]]:
    """A catalogue that has heard of these models, and its directory; it hears more of it."""
    directory = FakeDirectory()
    catalogue = Catalogue(cast(Handle, directory))
    task = asyncio.create_task(catalogue.follow())
    if models:
        directory.say(*models)
        await heard()
    try:
        yield catalogue, directory
    finally:
        task.cancel()


async def heard() -> None:
    """Lets everything happen that can happen at once."""
    for _ in range(10):
        await asyncio.sleep(0)
