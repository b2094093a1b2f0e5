"""The service with all that it reads from the processes beside it."""

import asyncio

from ray.serve.handle import DeploymentHandle

from configs.app import ServiceArgs
from deployments.contracts.routes import Router
from deployments.ingress.keys.keyring import make_keyring
from deployments.ingress.keys.metrics import KeyMetrics
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.assembly import Assembler
from deployments.ingress.request.catalogue import Catalogue
from deployments.ingress.request.moderation import Moderator
from deployments.ingress.request.pictures import Pictures
from deployments.ingress.request.service import Service
from deployments.replica import own_name
from deployments.tracebacks import leave_out_messages


class Front:
    """What a process needs to answer requests. To be made on its event loop, where it follows the
    directory from then on; what the process logs of errors is without messages, unless
    `args.log_prompts`.

    Args:
        maps, directory: handles of the map store and of the directory.
        route: which preprocessors a request needs (`graphs.routing`).
        safety: handle of the safety checker; `None`: not deployed.
    """

    def __init__(
        self,
        args: ServiceArgs,
        maps: DeploymentHandle[object],
        directory: DeploymentHandle[object],
        route: Router,
        safety: DeploymentHandle[object] | None,
    ) -> None:
        if not args.log_prompts:
            leave_out_messages()
        self.quota = Quota(make_keyring(args))
        catalogue = Catalogue(directory)
        loop = asyncio.get_running_loop()
        self._following = loop.create_task(catalogue.follow())
        self._in_step = loop.create_task(
            self.quota.keep_in_step(directory.exchange.remote, show=KeyMetrics().show)
        )
        assembler = Assembler(Pictures(args), maps, route)
        moderator = Moderator(args.safety, safety)
        self.service = Service(args, catalogue, assembler, self.quota, moderator, own_name())
