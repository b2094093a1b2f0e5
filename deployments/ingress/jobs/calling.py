"""Webhooks: who asked for a job is told what becomes of it, as Standard Webhooks has it.

Each event is delivered at least once, those of a job in their order: what has been delivered stands
in the job's record, and one worker at a time delivers. A receiver that is away is asked again,
later and later, until the job is forgotten. Such retries have half of the places at most: one
receiver that hangs does not stop the others' events.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import math
import os
import re
import time
from datetime import UTC, datetime
from random import SystemRandom
from urllib.parse import urlsplit

import httpx
from ray.serve import metrics

from configs.jobs import WebhookArgs
from deployments.contracts.errors import InvalidRequest, StorageUnavailable
from deployments.ingress.jobs.cards import job_card
from deployments.ingress.request.workers import Workers
from deployments.jobs.queue import JobQueue
from deployments.jobs.record import JobRecord

PREFIX = "whsec_"
SECRET_BYTES = (24, 64)
ANSWER_S = 15.0  # for a receiver to say that it has the event
AT_ONCE = 8
RETRIES = AT_ONCE // 2  # of them; the others are for receivers that nothing is known against
WAITS_S = (2.0, 300.0)  # after the first failure, and at most; each twice the one before
LOOK_S = 1.0
MAX_URL_CHARS = 2048
UNSEEN = re.compile(r"[\x00-\x20\x7f-\uffff]")
log = logging.getLogger("ray.serve.tcd.webhooks")


class Signer:
    """Signs events. Raises `ValueError` if the variable holds no secret, or one of another form."""

    def __init__(self, args: WebhookArgs) -> None:
        texts = os.environ.get(args.secret_env, "").split()
        if not texts:
            raise ValueError(f"jobs.webhooks.secret_env is {args.secret_env}: it holds no secret")
        self._secrets = [_secret(text, args.secret_env) for text in texts]

    def headers(self, event_id: str, sent_at: int, body: bytes) -> dict[str, str]:
        """Those that tell a receiver that an event is from here. `sent_at`: Unix time."""
        signed = f"{event_id}.{sent_at}.".encode() + body
        signatures = [
            base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
            for secret in self._secrets
        ]
        return {
            "content-type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }


class Calling:
    """Delivers events.

    Args:
        queue: of a worker, which looks at the jobs often.
    """

    def __init__(self, queue: JobQueue, args: WebhookArgs) -> None:
        self._queue = queue
        self._told = metrics.Counter(
            "tcd_webhooks", "webhooks that were sent, by outcome", ("outcome",)
        )
        self._signer = Signer(args)
        self._io = Workers("work on webhooks", waiting=None)
        self._web = httpx.AsyncClient(timeout=ANSWER_S, follow_redirects=False)
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}  # by job, on this process's clock
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Delivers until it is cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except StorageUnavailable as error:
                    log.warning("webhooks wait: %s", error)
                except Exception:
                    log.exception("a look for webhooks failed")
                await asyncio.sleep(LOOK_S)
        finally:
            calls = list(self._calls)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await self._web.aclose()

    async def _look(self) -> None:
        while len(self._calls) < AT_ONCE:
            now = time.monotonic()
            waiting = {job_id for job_id, until in self._not_before.items() if until > now}
            retries = sum(self._not_before.get(job_id) == math.inf for job_id in self._failures)
            if retries >= RETRIES:
                waiting |= self._failures.keys()
            job = await self._io.run(self._queue.take_call, waiting)
            if job is None:
                break
            self._not_before[job.id] = math.inf  # until the call has ended
            call = asyncio.create_task(self._call(job))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        if not self._calls:
            await self._forget()

    async def _forget(self) -> None:
        """Jobs that are gone need no plan any more."""
        known = {job.id for job in self._queue.seen_open()}  # whoever is to be told is open
        for job_id in [job_id for job_id in self._failures if job_id not in known]:
            del self._failures[job_id]
            self._not_before.pop(job_id, None)

    async def _call(self, job: JobRecord) -> None:
        event = job.untold
        assert event is not None
        heard = False
        try:
            heard = await self._delivered(job, event)
            self._told.inc(tags={"outcome": "delivered" if heard else "failed"})
        finally:
            self._plan(job, heard)
            await asyncio.shield(self._ended(job, event if heard else None))

    async def _delivered(self, job: JobRecord, event: str) -> bool:
        assert job.webhook_url is not None
        body = json.dumps(event_of(job, event)).encode()
        headers = self._signer.headers(f"{job.id}-{event}", int(time.time()), body)
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._web.post(job.webhook_url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            log.info("%s of %s was not delivered: %r", event, job.id, error)
            return False
        if not answer.is_success:
            log.info("%s of %s was answered with %d", event, job.id, answer.status_code)
        return answer.is_success

    async def _ended(self, job: JobRecord, told: str | None) -> None:
        try:
            await self._io.run(self._queue.end_call, job, told)
        except StorageUnavailable as error:
            log.warning("a webhook will be delivered again: %s", error)

    def _plan(self, job: JobRecord, heard: bool) -> None:
        """When this process is to try again."""
        if heard:
            self._failures.pop(job.id, None)
            self._not_before.pop(job.id, None)
            return
        count = self._failures[job.id] = self._failures.get(job.id, 0) + 1
        first_s, most_s = WAITS_S
        wait_s = min(first_s * 2 ** min(count - 1, 20), most_s) * SystemRandom().uniform(0.8, 1.2)
        self._not_before[job.id] = time.monotonic() + wait_s


def check_webhook(url: str, args: WebhookArgs | None) -> None:
    """Raises `InvalidRequest` for a URL that is not to be called."""
    if args is None:
        raise InvalidRequest(
            "this service calls nobody: `jobs.webhooks` is not configured", "webhook_url"
        )
    try:
        parts = urlsplit(url)
        host = None if parts.port == 0 or UNSEEN.search(url) else parts.hostname
    except ValueError:
        host = None
    schemes = ("https://", "http://") if args.allow_http else ("https://",)
    if (
        host is None
        or not url.lower().startswith(schemes)
        or parts.username
        or len(url) > MAX_URL_CHARS
    ):
        raise InvalidRequest(
            f"webhook_url must be a URL that begins with {' or '.join(schemes)}, without a user",
            "webhook_url",
        )
    if host not in args.allowed_hosts:
        raise InvalidRequest(
            f"webhook_url names {host!r}; allowed hosts: {', '.join(args.allowed_hosts)} "
            "(jobs.webhooks.allowed_hosts)",
            "webhook_url",
        )


def event_of(job: JobRecord, event: str) -> dict[str, object]:
    """What is told of a job: its card, as it stands when that is told."""
    at = job.started_at if event == "job.in_progress" else job.ended_at
    when = datetime.fromtimestamp(at or 0.0, UTC).isoformat().replace("+00:00", "Z")
    card = job_card(job, base_url=job.base_url)
    return {"type": event, "timestamp": when, "data": card.model_dump(mode="json")}


def _secret(text: str, variable: str) -> bytes:
    least, most = SECRET_BYTES
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(PREFIX) or not least <= len(secret) <= most:
        raise ValueError(
            f"jobs.webhooks.secret_env is {variable}: it must hold {PREFIX} and the base64 of "
            f"{least} to {most} bytes"
        )
    return secret
