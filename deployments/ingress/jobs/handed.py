"""Jobs of other Ray applications: handed in, followed and fetched by handle."""

from collections.abc import AsyncIterator

from pydantic import ValidationError

from configs.app import ServiceArgs
from deployments.contracts.errors import Cancelled, DeadlineExceeded
from deployments.contracts.job_cards import JobCard, JobResult
from deployments.contracts.jobs import Caller, ImageRequest, VideoRequest
from deployments.contracts.videos import VideoFormat
from deployments.ingress.answer.failures import error_of, invalid
from deployments.ingress.jobs.asked import Asked, ImageAsked, VideoAsked
from deployments.ingress.jobs.cards import images_body, job_card
from deployments.ingress.jobs.desk import Desk, check_key
from deployments.jobs.record import JobRecord


class Handed:
    """A desk as callers in Python know it. Where they name no caller, they see every job."""

    def __init__(self, args: ServiceArgs, desk: Desk) -> None:
        self._args = args
        self._desk = desk

    async def submit(
        self,
        request: ImageRequest | VideoRequest,
        caller: Caller,
        key: str | None,
        video_format: VideoFormat,
        webhook_url: str | None,
    ) -> JobCard:
        """Accepts a job."""
        if key is not None:
            check_key(key)
        said = {"request": request, "metadata": self._args.metadata, "webhook_url": webhook_url}
        asked: Asked
        try:
            if isinstance(request, VideoRequest):
                asked = VideoAsked.model_validate(said | {"output_format": video_format})
            else:
                asked = ImageAsked.model_validate(said)
        except ValidationError as error:
            raise invalid(error) from None
        base_url = (self._args.public_url or "").rstrip("/")  # for whoever is told of it
        return await self._card(await self._desk.submit(asked, key, caller, base_url=base_url))

    async def result(self, job_id: str, caller: Caller, timeout_s: float | None) -> JobResult:
        """What came of a job, as soon as it has ended."""
        record = await self._desk.get(job_id, caller.name or None)
        try:
            record = await self._desk.ended(record, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"job {job_id!r} has not ended within {timeout_s:g} s") from None
        if record.error is not None:
            raise error_of(record.error.code, record.error.message, record.error.param)
        if record.status == "cancelled":
            raise Cancelled(f"job {job_id!r} was cancelled")
        roles: list[str | None] = ["video"]
        if record.kind == "image":
            roles = [image.url for image in images_body(record).data]
        files = [
            None if role is None else (await self._desk.file(record, role))[0] for role in roles
        ]
        return JobResult(await self._card(record), tuple(files))

    async def events(self, job_id: str, caller: Caller) -> AsyncIterator[JobCard]:
        """A job as it stands, whenever that has changed."""
        record = await self._desk.get(job_id, caller.name or None)
        async for now in self._desk.followed(record):
            if now is not None:
                yield await self._card(now)

    async def cancel(self, job_id: str, caller: Caller) -> JobCard:
        """Stops a job."""
        return await self._card(await self._desk.cancel(job_id, caller.name or None))

    async def delete(self, job_id: str, caller: Caller) -> None:
        """Forgets a job."""
        await self._desk.delete(job_id, caller.name or None)

    async def _card(self, record: JobRecord) -> JobCard:
        return job_card(record, await self._desk.position(record))
