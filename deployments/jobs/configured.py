"""The storage of jobs that the configuration asks for."""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle

from configs.jobs import FolderJobs, JobsArgs, S3Jobs
from configs.sources import PROJECT_ROOT
from deployments.jobs.bucket import BucketObjects
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Objects
from deployments.jobs.remote import RemoteObjects

CONNECTIONS = 32


def make_objects(args: JobsArgs, store: DeploymentHandle[object] | None) -> Objects:
    """To be called on the event loop. `store`: the handle of the `JobStore`, where one is
    configured."""
    storage = args.storage
    if isinstance(storage, S3Jobs):
        return BucketObjects(_client(storage), storage.bucket, storage.prefix)
    if isinstance(storage, FolderJobs):
        return FolderObjects(PROJECT_ROOT / storage.path)
    if store is None:
        raise ValueError("temporary jobs need the JobStore")
    return RemoteObjects(store, asyncio.get_running_loop())


def _client(storage: S3Jobs) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=CONNECTIONS,
    )
    return boto3.session.Session().client("s3", endpoint_url=storage.endpoint_url, config=config)
