"""Jobs in this process: a desk and a worker over a folder, without Serve."""

import asyncio
import tempfile
from pathlib import Path

from configs.app import ServiceArgs
from deployments.ingress.jobs.batches import Batches
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.jobs.files import JobFiles
from deployments.ingress.jobs.making import Making
from deployments.ingress.jobs.working import Working
from deployments.ingress.keys.keyring import Keyring, make_keyring
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Objects
from deployments.jobs.queue import JobQueue

NO_JOBS = Path(tempfile.gettempdir()) / "no-jobs-of-tcd"  # a folder that is made with the first


def local_desk(
    service: Service,
    args: ServiceArgs,
    folder: Path,
    keys: Keyring | None = None,
    objects: Objects | None = None,
    tasks: list[asyncio.Task[None]] | None = None,
) -> Desk:
    """A desk whose worker begins, on the event loop, with the first job. It works until that loop
    ends, or until it is cancelled: `tasks` takes it."""
    objects = objects or FolderObjects(folder)
    workers: list[Working] = []
    tasks = [] if tasks is None else tasks

    def nudge() -> None:
        if not workers:
            workers.append(local_worker(service, args, objects))
            tasks.append(asyncio.create_task(workers[0].run()))
        workers[0].nudge()

    return Desk(args, service, keys or make_keyring(args), objects, nudge)


def local_worker(service: Service, args: ServiceArgs, objects: Objects) -> Working:
    """A worker as the deployment makes it."""
    jobs = args.jobs
    working: list[Working] = []
    queue = JobQueue(objects, jobs.lease_s)
    desk = Desk(args, service, make_keyring(args), objects, lambda: working[0].wake(), queue)
    making = Making(
        service,
        Batches(args, desk),
        JobFiles(objects),
        args.request_timeout_s,
        Workers("files", waiting=None),
    )
    made = Working(
        queue,
        making,
        at_once=jobs.at_once,
        batch_at_once=jobs.batch_at_once,
        lease_s=jobs.lease_s,
        poll_s=jobs.poll_s,
        budgets={"video": args.video_cache_mb * 2**20, "image": jobs.budget_mb * 2**20},
    )
    working.append(made)
    return made
