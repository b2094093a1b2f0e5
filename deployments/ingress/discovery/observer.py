"""Looks at the models so that nobody else has to: what Serve says, and what they say themselves."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar, cast

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from configs.names import Names
from deployments.contracts.cards import Availability, ModelCard
from deployments.contracts.figures import EngineFigures, ModelFigures
from deployments.ingress.discovery.applications import Applications, Seen
from deployments.ingress.discovery.asking import asked
from deployments.ingress.discovery.outlook import Snapshot
from deployments.ingress.discovery.watched import Watched

ANSWER_S = 2.5  # for all replicas of a model to describe it; then for one of them
COUNT_S = 0.5  # for which figures are waited for; what comes later is shown the next time
LEAST_S = 1.0  # between two looks, however often they are asked for
WATCH_S = 20.0
MISSES = 2  # looks in a row without an application: it is gone
COUNTED_EVERY = 5  # looks: figures that nobody asks for
log = logging.getLogger("ray.serve.tcd.directory")
Answer = TypeVar("Answer")


class Observer:
    """Keeps what is known of the models, for all ingresses.

    A silent model, and a controller that is busy, delay nothing: what was last known is told.
    No model is started for being looked at.

    Args:
        period_s: between two looks.

    Attributes:
        names_fault: why newer names of the models are refused.
    """

    def __init__(self, applications: Applications, period_s: float) -> None:
        self._applications = applications
        self._period_s = period_s
        # The controller's calls block; a thread of their own waits for them.
        self._thread = ThreadPoolExecutor(1, "controller")
        self._models: dict[str, Watched] = {}
        self._names: Names | None = None
        self.names_fault: str | None = None
        self._id = uuid.uuid4().hex
        self._snapshot: Snapshot | None = None
        self._news = asyncio.Event()
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._looks = 0

    def rename(self, names: Names) -> None:
        """From now on the models have these names."""
        self._names, self.names_fault = names, None
        self._publish()

    def keep_names(self, fault: str) -> None:
        """Newer names are refused, for this reason; the last ones stay."""
        self.names_fault = fault
        self._publish()

    async def run(self) -> None:
        """Looks again and again."""
        while True:
            await self.look()
            # What is not known yet is looked at as soon as may be.
            await asyncio.sleep(self._period_s if self._looks >= MISSES else LEAST_S)

    async def watch(self, directory: str, number: int) -> Snapshot | None:
        """What is known, as soon as it is something else than the snapshot of this name; after
        `WATCH_S` at the latest. `None`: nothing is known yet."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WATCH_S):
                while self._snapshot is None or self._named(directory, number):
                    await self._news.wait()
        return self._snapshot

    async def look(self) -> Snapshot | None:
        """Asks Serve now, unless that was done within the last second. Never raises."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            if loop.time() - self._looked >= min(LEAST_S, self._period_s):
                self._looked = loop.time()
                try:
                    self._take(await self._blocking(self._applications.look))
                except Exception as error:
                    log.warning("Serve says nothing of the models: %s", error)
        return self._snapshot

    async def figures(self) -> dict[str, ModelFigures]:
        """What the engines of all replicas say of themselves now, by model; those of a model that
        does not answer at once are as old as the last count that it answered, of which there is one
        in `COUNTED_EVERY` looks."""
        up = [model for model in self._models.values() if model.up and model.handle is not None]
        if up:
            counting = [asyncio.create_task(_count_anew(model)) for model in up]
            _, late = await asyncio.wait(counting, timeout=COUNT_S)
            for task in late:
                task.cancel()
        now = asyncio.get_running_loop().time()
        return {
            model.name: ModelFigures(model.figures, now - model.counted)
            for model in up
            if model.figures
        }

    def availability(self) -> dict[str, Availability]:
        """What all models are doing, by name."""
        return {name: model.outlook.availability for name, model in self._models.items()}

    def _named(self, directory: str, number: int) -> bool:
        snapshot = self._snapshot
        return snapshot is not None and (snapshot.directory, snapshot.number) == (directory, number)

    def _take(self, seen: Mapping[str, Seen]) -> None:
        for name, now in seen.items():
            if name not in self._models and not now.ends:
                self._models[name] = Watched(name, now)
            if name in self._models:
                self._models[name].see(now)
        for name, model in list(self._models.items()):
            model.missed += name not in seen
            if model.missed >= MISSES or model.seen.ends:
                del self._models[name]
                for task in model.tasks.values():
                    task.cancel()
        for model in self._models.values():
            model.begin("describe", self._describe)
            fresh = model.figures and self._looks % COUNTED_EVERY
            if model.up and model.handle is not None and not fresh:
                model.begin("count", _count)
        self._looks += 1
        self._publish()

    async def _describe(self, model: Watched) -> None:
        try:
            if model.handle is None:
                handle = self._applications.handle
                model.handle = await self._blocking(lambda: handle(model.name))
                self._publish()
            if not model.asleep:
                model.card = await _card(model.handle, up=model.up)
                model.silent = False
                # Where Serve does not say whether a replica runs, the replica does.
                model.up = model.up or model.seen.replicas is None
        except TimeoutError:
            log.warning("model %s does not answer", model.name)
            model.silent = True
        except DeploymentUnavailableError:
            model.silent = False
            model.up = model.up and model.seen.replicas is not None
        except Exception as error:
            log.info("model %s does not say what it is: %s", model.name, error)
        self._publish()

    def _publish(self) -> None:
        """Tells whoever waits, if anything has changed.

        A directory that has just begun says nothing before it has looked twice: what a single
        look misses is not gone.
        """
        models = {name: self._models[name].outlook for name in sorted(self._models)}
        number = self._snapshot.number if self._snapshot else 0
        now = Snapshot(self._id, number, models, self._names, self.names_fault)
        if self._looks < MISSES or now == self._snapshot:
            return
        self._snapshot = replace(now, number=number + 1)
        self._news.set()
        self._news = asyncio.Event()

    async def _blocking(self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


async def _count_anew(model: Watched) -> None:
    """Returns when figures have come that were asked for after this was called."""
    before = model.tasks.get("count")
    if before is not None:
        await asyncio.wait({before})
    await asyncio.wait({model.begin("count", _count)})


async def _count(model: Watched) -> None:
    assert model.handle is not None
    try:
        said = await model.handle.broadcast("figures").results_async(
            timeout_s=2 * ANSWER_S, return_exceptions=True
        )
    except Exception as error:
        log.warning("no figures of model %s: %s", model.name, error)
        return
    model.figures = tuple(one for one in said if isinstance(one, EngineFigures))
    model.counted = asyncio.get_running_loop().time()


async def _card(handle: DeploymentHandle[object], *, up: bool) -> ModelCard:
    """What a model's replicas say it is; the newest one, where they differ.

    A broadcast goes to the replicas that run, and to none that would have to be started.
    Raises TimeoutError if they are silent, DeploymentUnavailableError if there are none.

    Args:
        up: Serve says that a replica runs.
    """
    try:
        said = await handle.broadcast("describe").results_async(
            timeout_s=ANSWER_S, return_exceptions=True
        )
    except TimeoutError:
        if not up:
            raise
        # One of them is silent. Serve's router finds another one, if there is one.
        response = cast(DeploymentResponse[ModelCard], handle.describe.remote())
        said = [await asked(response, ANSWER_S)]
    cards = [one for one in said if isinstance(one, ModelCard)]
    if not cards:
        raise said[0]
    return max(cards, key=lambda card: card.created)
