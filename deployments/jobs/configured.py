"""The storage of jobs that the configuration asks for."""

import asyncio

from ray.serve.handle import DeploymentHandle

from configs.jobs import FolderJobs, JobsArgs, S3Jobs
from configs.s3 import storage_client
from configs.sources import PROJECT_ROOT
from deployments.jobs.bucket import BucketObjects
from deployments.jobs.folder import FolderObjects
from deployments.jobs.near import NearObjects
from deployments.jobs.objects import Objects
from deployments.jobs.remote import RemoteObjects

CONNECTIONS = 96  # at least as many as there are threads that ask: 52 of an ingress, 70 of a worker


def make_objects(args: JobsArgs, store: DeploymentHandle[object] | None) -> Objects:
    """To be called on the event loop. `store`: the handle of the `JobStore`, where one is
    configured."""
    storage = args.storage
    if isinstance(storage, S3Jobs):
        client = storage_client(storage.endpoint_url, CONNECTIONS)
        return BucketObjects(client, storage.bucket, storage.prefix)
    if isinstance(storage, FolderJobs):
        return FolderObjects(PROJECT_ROOT / storage.path)
    if store is None:
        raise ValueError("temporary jobs need the JobStore")
    return NearObjects(RemoteObjects(store, asyncio.get_running_loop()))
