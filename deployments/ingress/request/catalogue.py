"""The model applications that run: found by name, asked for their cards, kept fresh."""

import asyncio
import logging
import time
from dataclasses import dataclass

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import InvalidRequest, NotFound, NotReady
from deployments.contracts.figures import EngineFigures

APP_PREFIX = "model-"
RUNNING = "RUNNING"  # of a replica
ANSWER_TIMEOUT_S = 5.0
log = logging.getLogger("tcd.catalogue")


@dataclass(frozen=True)
class _Seen:
    """What Serve says of a model's application.

    Attributes:
        answers: a replica runs, whatever else is going on (another one is starting, or has
            died, or a new configuration was refused); or one is started by the first request.
    """

    status: str
    answers: bool


@dataclass(frozen=True)
class Model:
    """A model that can be asked."""

    card: ModelCard
    handle: DeploymentHandle[object]


class Catalogue:
    """Knows the applications named `model-<name>` of this Serve instance.

    Args:
        period_s: how old its knowledge may get before a look-up renews it.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._models: dict[str, Model] = {}
        self._states: dict[str, str] = {}
        self._renewed = float("-inf")
        self._renewing = asyncio.Lock()

    async def find(self, name: str) -> Model:
        """The model of this name; `NotFound`, or `NotReady` if no replica of it runs."""
        await self._renew(at_least_s=self._period_s)
        if name not in self._models:
            await self._renew(at_least_s=0.2)
        if name in self._models:
            return self._models[name]
        if name in self._states:
            raise NotReady(f"model {name!r} is {self._states[name].lower()}")
        known = ", ".join(sorted(self._states)) or "none is deployed"
        raise NotFound(f"model {name!r} does not exist; models: {known}", "model")

    async def only(self) -> Model:
        """The model, if there is just one."""
        await self._renew(at_least_s=self._period_s)
        if not self._states:
            await self._renew(at_least_s=0.2)
            if not self._states:
                raise NotReady("no model is deployed")
        if len(self._states) > 1:
            raise InvalidRequest(f"model is required: one of {sorted(self._states)}", "model")
        return await self.find(next(iter(self._states)))

    async def cards(self) -> list[ModelCard]:
        """The cards of the models that run, by name."""
        await self._renew(at_least_s=self._period_s)
        return [self._models[name].card for name in sorted(self._models)]

    async def states(self) -> dict[str, str]:
        """ "RUNNING" or what else Serve says, by model name."""
        await self._renew(at_least_s=0.2)
        return dict(sorted(self._states.items()))

    async def ready(self) -> bool:
        """Whether there are models, and every one of them can be asked."""
        await self._renew(at_least_s=0.2)
        return bool(self._states) and self._models.keys() == self._states.keys()

    async def figures(self) -> dict[str, list[EngineFigures]]:
        """What every replica's engine says of itself, by model; silent ones are left out."""
        await self._renew(at_least_s=self._period_s)

        async def ask(model: Model) -> list[EngineFigures]:
            response = model.handle.broadcast("figures")
            try:
                return list(await response.results_async(timeout_s=ANSWER_TIMEOUT_S))
            except Exception as error:
                log.warning("no figures of %s: %s", model.card.id, error)
                return []

        models = dict(self._models)
        answers = await asyncio.gather(*(ask(model) for model in models.values()))
        return dict(zip(models, answers, strict=True))

    async def _renew(self, at_least_s: float) -> None:
        """Looks again if the last look is older than this; one look at a time."""
        if time.monotonic() - self._renewed <= at_least_s:
            return
        async with self._renewing:
            if time.monotonic() - self._renewed > at_least_s:
                await self._look()
                self._renewed = time.monotonic()

    async def _look(self) -> None:
        seen = await asyncio.to_thread(_seen)
        found = await asyncio.gather(*(self._ask(name) for name in seen if seen[name].answers))
        self._models = {model.card.id: model for model in found if model is not None}
        self._states = {name: app.status for name, app in seen.items()}

    async def _ask(self, name: str) -> Model | None:
        try:
            known = self._models.get(name)
            handle = (
                known.handle
                if known is not None
                else await asyncio.to_thread(serve.get_app_handle, APP_PREFIX + name)
            )
            card = await asyncio.wait_for(handle.describe.remote(), ANSWER_TIMEOUT_S)
            return Model(card, handle)
        except Exception as error:
            log.warning("model %s does not answer: %s", name, error)
            return known


def _seen() -> dict[str, _Seen]:
    """The model applications, by model name."""
    found: dict[str, _Seen] = {}
    for app, overview in serve.status().applications.items():
        if app.startswith(APP_PREFIX):
            states = [s for d in overview.deployments.values() for s in d.replica_states]
            answers = overview.status == ApplicationStatus.RUNNING or RUNNING in states
            found[app.removeprefix(APP_PREFIX)] = _Seen(str(overview.status.value), answers)
    return found
