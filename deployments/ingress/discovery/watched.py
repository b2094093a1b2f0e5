"""A model under the directory's eyes."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.contracts.cards import Availability, ModelCard
from deployments.contracts.figures import EngineFigures
from deployments.ingress.discovery.applications import Seen
from deployments.ingress.discovery.outlook import Outlook


@dataclass
class Watched:
    """One model, as it is known so far.

    Attributes:
        seen: what Serve said of it last.
        up: a replica has started; asleep: none is to run.
        replicas: how many have started.
        missed, failed: looks in a row that did not find it, or found that Serve has given it up.
        silent: it did not answer when it was last asked.
        figures, counted: of its replicas, and when they came, on the event loop's clock.
        tasks: what it is being asked.
    """

    name: str
    seen: Seen
    up: bool = False
    asleep: bool = False
    replicas: int = 0
    missed: int = 0
    failed: int = 0
    silent: bool = False
    card: ModelCard | None = None
    handle: DeploymentHandle[object] | None = None
    figures: tuple[EngineFigures, ...] = ()
    counted: float = float("-inf")
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)

    def see(self, seen: Seen) -> None:
        """Takes what Serve says. Of what it does not say the last stays true."""
        self.seen = seen
        self.missed = 0
        self.failed = self.failed + 1 if seen.failed else 0
        if seen.replicas is not None:
            self.replicas, self.asleep = seen.replicas.up, seen.replicas.asleep
            self.up = self.replicas > 0

    @property
    def outlook(self) -> Outlook:
        """What is told of it."""
        state, card = self.seen.state, self.card
        return Outlook(self.name, state, self._availability, card, self.handle, self.replicas)

    @property
    def _availability(self) -> Availability:
        if self.up and self.silent:
            return "silent"
        if self.up and self.card is not None:
            return "ready"
        if self.asleep:
            return "asleep"
        # Between the end of a replica and the start of the next one, a look may find none.
        return "failed" if self.failed > 1 and not self.up else "starting"

    def begin(self, name: str, ask: "Ask") -> "asyncio.Task[None]":
        """A task that asks the model; the one of this name that still runs, if there is one."""
        task = self.tasks.get(name)
        if task is None or task.done():
            task = self.tasks[name] = asyncio.create_task(ask(self))
        return task


Ask = Callable[[Watched], Coroutine[Any, Any, None]]
