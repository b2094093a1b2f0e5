"""The Serve shell around what all ingresses share: the observer of the models, the keys' ledger."""

import asyncio
import logging

from ray import serve

from configs.app import ServiceArgs
from configs.names import NamesConfig
from deployments.contracts.figures import AVAILABILITY, NAMES_ERROR, ModelFigures, states
from deployments.contracts.usage import OtherReports, Report
from deployments.exported import Gauges
from deployments.ingress.discovery.applications import Applications
from deployments.ingress.discovery.observer import Observer
from deployments.ingress.discovery.outlook import Snapshot
from deployments.ingress.keys.ledger import Ledger

log = logging.getLogger("ray.serve.tcd.directory")


class Directory:
    """What all ingresses know together. One replica; what it dies with, it finds anew."""

    def __init__(self, args: ServiceArgs) -> None:
        applications = Applications(serve.get_replica_context().app_name)
        self._names = args.names
        self._named = False
        self._observer = Observer(applications, args.discovery_period_s)
        self._ledger = Ledger()
        self._availability = Gauges("tcd_model_availability", AVAILABILITY, ("model", "state"))
        self._names_error = Gauges("tcd_names_config_error", NAMES_ERROR)
        self._observing = asyncio.get_running_loop().create_task(self._observer.run())

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Takes new names of models while everything runs. Called by Serve.

        Raises `ValueError` when it starts. Later what is wrong changes nothing, and is told in
        the log and in the figures.
        """
        try:
            names = self._names.changed(NamesConfig.model_validate(user_config))
        except ValueError as error:
            if not self._named:
                raise
            log.error("the new user_config is refused, the last names stay: %s", error)
            self._observer.keep_names(str(error))
            return
        self._named = True
        self._observer.rename(names)

    async def watch(self, directory: str, number: int) -> Snapshot | None:
        """The models, once they are no longer as in the snapshot of this name; see `Observer`."""
        return await self._observer.watch(directory, number)

    async def look(self) -> Snapshot | None:
        """The models after another look, of which there is one a second at most."""
        return await self._observer.look()

    async def figures(self) -> dict[str, ModelFigures]:
        """What every replica's engine says of itself, by model."""
        return await self._observer.figures()

    async def exchange(self, ingress_id: str, report: Report) -> OtherReports:
        """How the keys stand at one ingress, for how they stand at all others."""
        return self._ledger.exchange(ingress_id, report)

    def check_health(self) -> None:
        """Called by Serve every `health_check_period_s`. Publishes what the models are doing."""
        self._availability.show(states(self._observer.availability()))
        self._names_error.show({(): float(self._observer.names_fault is not None)})
        if self._observing.done():
            raise RuntimeError("the directory looks no more")
