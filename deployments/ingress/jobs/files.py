"""The files of jobs, in whatever keeps objects."""

from collections.abc import Collection

from deployments.contracts.errors import NotFound, StorageUnavailable
from deployments.ingress.answer.storage import new_name
from deployments.jobs.objects import Objects
from deployments.jobs.record import JobFile, JobRecord


class JobFiles:
    """Files in the folders of jobs. Calls block, and raise `StorageUnavailable`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def write(self, folder: str, role: str, data: bytes, suffix: str, media_type: str) -> JobFile:
        """A new file."""
        name = new_name(suffix)
        if self._objects.create(folder + name, data) is None:
            raise StorageUnavailable(f"there is a file {folder + name!r}, and nobody wrote it")
        return JobFile(name=name, role=role, media_type=media_type, size=len(data))

    def read(self, record: JobRecord, name: str) -> bytes:
        """A file of a job. Raises `NotFound` if it is gone."""
        stored = self._objects.read(record.folder + name)
        if stored is None:
            raise NotFound(f"a file of job {record.id!r} is gone", "job_id")
        return stored.content

    def keep(self, record: JobRecord, names: Collection[str]) -> None:
        """Removes all files of a job but these."""
        for file in list(self._objects.listed(record.folder)):
            if file.name.removeprefix(record.folder) not in names:
                self._objects.delete(file.name)

    def remove(self, folder: str, name: str) -> None:
        """Removes a file, if it is there."""
        self._objects.delete(folder + name)
