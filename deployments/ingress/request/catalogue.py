"""The models that can be asked: what the directory last said of them.

A request reads what is known and waits neither for Serve's controller nor for another model. What
the directory said stays true while it is silent, dead, or beginning anew.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import cast

from ray.serve.handle import DeploymentHandle, DeploymentResponse

from configs.names import Names
from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import InvalidRequest, NotFound, NotReady
from deployments.contracts.figures import ModelFigures
from deployments.ingress.discovery.asking import asked
from deployments.ingress.discovery.outlook import Outlook, Snapshot

WATCH_S = 30.0  # the directory itself answers within 20 s
RETRY_S = 1.0
FIRST_S = 5.0  # for the first snapshot, where the asker has no limit of its own
SEEK_S = 1.0  # between two searches for models that nobody knows
SEEK_PATIENCE_S = 2.0
FIGURES_S = 2.0
NONE_KNOWN = "nothing is known of the models yet; try again"
log = logging.getLogger("ray.serve.tcd.catalogue")


@dataclass(frozen=True)
class Model:
    """A model that can be asked."""

    card: ModelCard
    handle: DeploymentHandle[object]


class Catalogue:
    """Knows the models of this Serve instance.

    Args:
        directory: the handle of the deployment that looks at them.
    """

    def __init__(self, directory: DeploymentHandle[object]) -> None:
        self._directory = directory
        self._snapshot: Snapshot | None = None
        self._models: dict[str, Outlook] = {}
        self._news = asyncio.Event()
        self._waiting: dict[str, set[asyncio.Timeout]] = {}
        self._seeking: asyncio.Task[None] | None = None
        self._sought = float("-inf")
        self._figures: dict[str, ModelFigures] = {}
        self._counted = 0.0

    async def follow(self) -> None:
        """Takes what the directory says, for as long as the process lives."""
        while True:
            known = self._snapshot
            name, number = (known.directory, known.number) if known else ("", 0)
            try:
                self._take(await self._say(self._directory.watch.remote(name, number), WATCH_S))
            except Exception as error:
                log.warning("the directory of models does not answer: %r", error)
                await asyncio.sleep(RETRY_S)

    async def known(self, within_s: float) -> None:
        """Returns when the directory has said something, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._begun()

    async def find(self, name: str, *, wake: bool = True) -> Model:
        """The model of this name.

        One that has never been described is asked what it is: where no replica of it runs, that
        starts one, and this waits for it, as long as the caller allows. Raises `NotFound`, or
        `NotReady` if the model will not run.

        Args:
            wake: otherwise none is started for this: `NotReady` where no replica runs.
        """
        await self._begun()
        if name not in self._models:
            await self._seek()
        while True:
            known = self._models.get(name)
            if known is None:
                models = ", ".join(self._models) or "none is deployed"
                raise NotFound(f"model {name!r} does not exist; models: {models}", "model")
            if known.availability == "failed":
                raise _failed(known)
            if not (wake or known.up):
                raise NotReady(f"no replica of model {name!r} runs now")
            if known.handle is not None:
                break
            await self._news.wait()
        if known.card is not None:
            return Model(known.card, known.handle)
        response = cast(DeploymentResponse[ModelCard], known.handle.describe.remote())
        async with self.waiting(name, None):
            card = await asked(response)
        if name in self._models:
            self._models[name] = replace(self._models[name], card=card)
        return Model(card, known.handle)

    async def only(self) -> str:
        """The name of the model, if there is just one."""
        await self._begun()
        if not self._models:
            await self._seek()
            if not self._models:
                raise NotReady("no model is deployed")
        if len(self._models) > 1:
            raise InvalidRequest(
                f"model is required: one of {', '.join(sorted(self._models))}", "model"
            )
        return next(iter(self._models))

    @asynccontextmanager
    async def waiting(self, name: str, until: float | None) -> AsyncIterator[None]:
        """Raises TimeoutError at `until`, on the event loop's clock, or as soon as the model has
        failed and nothing of it is left: `absence` tells which."""
        async with asyncio.timeout_at(until) as limit:
            self._waiting.setdefault(name, set()).add(limit)
            try:
                yield
            finally:
                self._waiting[name].discard(limit)

    def absence(self, name: str | None, limit_s: float) -> NotReady | None:
        """Why a request had no answer within its limit, if that is because no replica ran."""
        if self._snapshot is None:
            return NotReady(NONE_KNOWN)
        known = self._models.get(name or "")
        if known is None or known.up:
            return None
        if known.availability == "failed":
            return _failed(known)
        return NotReady(
            f"model {name!r} is being started and was not ready within {limit_s:g} s; try again"
        )

    def answers(self, name: str) -> bool:
        """Whether a replica of the model answered when it was last asked."""
        return name in self._models and self._models[name].availability == "ready"

    @property
    def names(self) -> Names | None:
        """Of the models, as the directory says; `None`: it does not."""
        return None if self._snapshot is None else self._snapshot.names

    @property
    def names_fault(self) -> str | None:
        """Why newer names are refused."""
        return None if self._snapshot is None else self._snapshot.names_fault

    def would_answer(self, name: str) -> bool:
        """Whether a request to the model would be answered, if only after it has been woken."""
        return name in self._models and self._models[name].answers

    def replicas(self, name: str) -> int:
        """How many replicas of the model ran when it was last looked at."""
        return self._models[name].replicas if name in self._models else 0

    def up(self, name: str) -> bool:
        """Whether a replica of the model runs."""
        return name in self._models and self._models[name].up

    async def cards(self) -> list[ModelCard]:
        """The cards of all models but those that have failed, by name."""
        try:
            async with asyncio.timeout(FIRST_S):
                await self._begun()
        except TimeoutError as error:
            raise NotReady(NONE_KNOWN) from error
        models = (self._models[name] for name in sorted(self._models))
        return [m.card for m in models if m.card is not None and m.availability != "failed"]

    def outlooks(self) -> Mapping[str, Outlook]:
        """All models, by name."""
        return {name: self._models[name] for name in sorted(self._models)}

    def ready(self, default: Iterable[str], wanted: Sequence[Iterable[str]] = ()) -> bool:
        """Whether one of each of the `wanted` models answers; without any, whether this process can
        serve: some model answers. When a service begins, a default model is waited for."""
        if wanted:
            return all(any(map(self.would_answer, names)) for names in wanted)
        first = [self._models[name] for name in default if name in self._models]
        if first and all(one.availability == "starting" and one.card is None for one in first):
            return False
        return any(model.answers for model in self._models.values())

    async def figures(self) -> dict[str, ModelFigures]:
        """What every replica's engine says of itself, by model; the last known if the directory is
        silent."""
        clock = asyncio.get_running_loop().time
        try:
            response = cast(
                DeploymentResponse[dict[str, ModelFigures]], self._directory.figures.remote()
            )
            self._figures = await asked(response, FIGURES_S)
            self._counted = clock()
        except Exception as error:
            log.warning("the directory of models has no figures: %r", error)
        since = clock() - self._counted
        return {
            name: replace(model, age_s=model.age_s + since) for name, model in self._figures.items()
        }

    def _take(self, snapshot: Snapshot | None) -> None:
        known = self._snapshot
        if snapshot is None or (
            known is not None
            and known.directory == snapshot.directory
            and known.number >= snapshot.number
        ):
            return
        self._snapshot = snapshot
        before, self._models = self._models, dict(snapshot.models)
        for name, model in self._models.items():
            last = before.get(name)
            handle = last.handle if last is not None else None
            if handle is None and model.handle is not None:
                # From here on its router hears of the model's replicas, before a request needs it.
                handle = model.handle.options(stream=False)
            # One handle a model; and a directory that has just begun knows no cards.
            card = model.card or (last.card if last is not None else None)
            self._models[name] = replace(model, card=card, handle=handle)
        for name, model in self._models.items():
            for limit in self._waiting.get(name, ()) if model.availability == "failed" else ():
                if not limit.expired():
                    limit.reschedule(asyncio.get_running_loop().time())
        self._news.set()
        self._news = asyncio.Event()

    async def _begun(self) -> None:
        while self._snapshot is None:
            await self._news.wait()

    async def _seek(self) -> None:
        """Has the directory look now, unless that was done within the last second."""
        clock = asyncio.get_running_loop().time
        if self._seeking is None or self._seeking.done():
            if clock() - self._sought < SEEK_S:
                return
            self._sought = clock()
            self._seeking = asyncio.create_task(self._look())
        await asyncio.wait({self._seeking})

    async def _look(self) -> None:
        try:
            self._take(await self._say(self._directory.look.remote(), SEEK_PATIENCE_S))
        except Exception as error:
            log.warning("the directory of models does not look: %r", error)

    async def _say(self, response: object, patience_s: float) -> Snapshot | None:
        return await asked(cast(DeploymentResponse[Snapshot | None], response), patience_s)


def _failed(model: Outlook) -> NotReady:
    return NotReady(f"model {model.name!r} does not run: {model.state.lower()}")
