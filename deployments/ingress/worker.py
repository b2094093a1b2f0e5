"""The Serve shell around a worker: it does the jobs that wait, wherever they were handed in."""

import asyncio

from ray.serve.handle import DeploymentHandle

from configs.app import ServiceArgs
from deployments.contracts.errors import NotReady
from deployments.contracts.routes import Router
from deployments.ingress.answer.provenance import make_provenance
from deployments.ingress.front import Front
from deployments.ingress.jobs.batches import Batches
from deployments.ingress.jobs.calling import Calling
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.jobs.files import JobFiles
from deployments.ingress.jobs.making import Making
from deployments.ingress.jobs.working import Working
from deployments.ingress.request.workers import Workers
from deployments.jobs.autoscaling import OPEN_JOBS
from deployments.jobs.configured import make_objects
from deployments.jobs.queue import JobQueue
from deployments.jobs.record import Kind

MIB = 2**20
PATIENCE_S = 20.0  # for jobs that are being done when a worker is told to go


class JobWorker:
    """Takes jobs from the storage that all workers share, and does them."""

    def __init__(
        self,
        args: ServiceArgs,
        maps: DeploymentHandle[object],
        directory: DeploymentHandle[object],
        store: DeploymentHandle[object] | None,
        route: Router,
        safety: DeploymentHandle[object] | None,
    ) -> None:
        jobs = args.jobs
        self._front = Front(args, maps, directory, route, safety)
        service = self._front.service
        objects = make_objects(jobs, store)
        budgets: dict[Kind, int] = {
            "video": args.video_cache_mb * MIB,
            **dict.fromkeys(("image", "batch", "file"), jobs.budget_mb * MIB),
        }
        queue = JobQueue(objects, jobs.lease_s)
        self._working = Working(
            queue,
            Making(
                service,
                Batches(
                    args,
                    Desk(args, service, self._front.quota.keys, objects, self._wake, queue),
                ),
                JobFiles(objects),
                args.request_timeout_s,
                Workers("work on files of jobs", waiting=None),
                make_provenance(args.provenance),
            ),
            at_once=jobs.at_once,
            batch_at_once=jobs.batch_at_once,
            lease_s=jobs.lease_s,
            poll_s=jobs.poll_s,
            budgets=budgets,
            log_prompts=args.log_prompts,
        )
        loop = asyncio.get_running_loop()
        self._run = loop.create_task(self._working.run())
        if jobs.webhooks is not None:
            self._calling = loop.create_task(Calling(queue, jobs.webhooks).run())

    async def nudge(self) -> None:
        """There may be work, or some that was called off."""
        self._working.nudge()

    def _wake(self) -> None:
        self._working.wake()

    def check_health(self) -> None:
        """Called by Serve."""
        if self._run.done():
            raise NotReady("the worker's loop has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: what `ByOpenJobs` looks at."""
        return {OPEN_JOBS: float(self._working.open)}

    async def __del__(self) -> None:
        """Called by Serve, when a replica is told to go."""
        if hasattr(self, "_run"):
            await self._working.stop(PATIENCE_S)
            self._run.cancel()
