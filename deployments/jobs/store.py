"""The Serve shell around a folder of one node: what every process of the service can reach, where
nothing else is configured."""

import asyncio
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import ray
from ray import serve

from deployments.contracts.refusal import refusing
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Listed, Stored, Written
from deployments.jobs.place import Place, place_of

THREADS = 16
Answer = TypeVar("Answer")


class JobStore:
    """`deployments.jobs.objects.Objects`, by handle. What it has written is there again when it has
    died and is started anew on the same node."""

    def __init__(self) -> None:
        name = serve.get_replica_context().app_name
        cluster = ray.get_runtime_context().gcs_address  # a node may run several
        folder = folder_of(f"{name}-{cluster}")
        self._objects = FolderObjects(folder)
        self._place = place_of(folder)
        self._threads = ThreadPoolExecutor(THREADS, "tcd-jobs")

    @refusing
    async def place(self) -> Place:
        """Whoever sees this folder may use it as `FolderObjects` himself."""
        return self._place

    @refusing
    async def read(self, name: str) -> Stored | None:
        """As `Objects`."""
        return await self._run(self._objects.read, name)

    @refusing
    async def create(self, name: str, content: bytes) -> Written | None:
        """As `Objects`."""
        return await self._run(self._objects.create, name, content)

    @refusing
    async def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        """As `Objects`."""
        return await self._run(self._objects.replace, name, content, tag)

    @refusing
    async def delete(self, name: str, tag: str | None = None) -> None:
        """As `Objects`."""
        await self._run(self._objects.delete, name, tag)

    @refusing
    async def listed(self, prefix: str) -> list[Listed]:
        """As `Objects`."""
        return await self._run(lambda: list(self._objects.listed(prefix)))

    async def _run(self, call: Callable[..., Answer], *args: object) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


def folder_of(service: str) -> Path:
    """Of the service of this name, which nobody but this user of the node can look into."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", service)
    folder = Path(tempfile.gettempdir()) / f"tcd-jobs-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not of this user alone")
    folder.chmod(0o700)
    return folder
