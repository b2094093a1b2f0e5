"""Where jobs are kept, for how long, and how they are made."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.frozen import Frozen, Host


class TemporaryJobs(Frozen):
    """Below the system's temporary folder of the node that runs `JobStore`: jobs survive the death
    of every process, not that of the node or of the cluster."""

    kind: Literal["temporary"] = "temporary"


class FolderJobs(Frozen):
    """In a folder that all nodes of the service share (on one node, any), with locks: a local disk,
    NFS 4, EFS, Lustre. Jobs survive whatever the folder does.

    Attributes:
        path: absolute, or relative to the project's root.
    """

    kind: Literal["folder"]
    path: str = Field(min_length=1)


class S3Jobs(Frozen):
    """In an S3 bucket with conditional writes and deletes (`If-None-Match`, `If-Match`), as
    Amazon's has them. One that ignores a condition is refused.

    Attributes:
        prefix: put before the name of every object.
        endpoint_url: as in `S3Storage`.
    """

    kind: Literal["s3"]
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")
    prefix: str = "tcd-jobs/"
    endpoint_url: str | None = Field(None, pattern=r"^https?://\S+$")


class WebhookArgs(Frozen):
    """Who may be told of what becomes of jobs, and how they know that it is true.

    Attributes:
        secret_env: name of the environment variable with the secret that signs what is sent, as
            Standard Webhooks has it: "whsec_" and the base64 of 24 to 64 bytes. Several, separated
            by spaces, sign it each: to change one without a gap.
        allowed_hosts: hosts that a `webhook_url` may name, by name alone. A service that calls
            whatever it is told to reaches what its callers cannot.
        allow_http: also by plain http, which anybody on the way can read.
    """

    secret_env: str = Field(min_length=1)
    allowed_hosts: tuple[Host, ...] = Field(min_length=1)
    allow_http: bool = False


class JobsArgs(Frozen):
    """Jobs: videos, images with `async: true`, and whatever came with an `Idempotency-Key`.

    Attributes:
        max_images: unfinished jobs of images; shared between callers as `max_videos` is.
        max_batches: unfinished at a time; shared between callers, too.
        batch_at_once: jobs of the lowest priority, as lines of batches, that one replica of
            `JobWorker` works on. No replica is started for them.
        max_file_mb: MiB of one input file of a batch.
        keep_s: from the end of a job of images until it is forgotten, with what came of it. (Of
            videos: `video_ttl_s`.)
        budget_mb: MiB of what came of them, all together; above it the oldest go first. (Of
            videos: `video_cache_mb`.)
        at_once: that one replica of `JobWorker` works on; it computes little by itself.
        lease_s: a job whose worker has been silent for so long is taken by another.
        poll_s: how often a worker looks for jobs that it was not told of; at most a quarter of
            `lease_s`.
        webhooks: who may be told of them; `None`: a request with `webhook_url` is refused.
    """

    storage: Annotated[TemporaryJobs | FolderJobs | S3Jobs, Field(discriminator="kind")] = (
        TemporaryJobs()
    )
    max_images: int = Field(1000, ge=1)
    max_batches: int = Field(32, ge=1)
    batch_at_once: int = Field(4, ge=1, le=256)
    max_file_mb: int = Field(32, ge=1, le=512)
    keep_s: float = Field(86_400.0, gt=0)
    budget_mb: int = Field(4096, ge=1)
    at_once: int = Field(8, ge=1, le=256)
    lease_s: float = Field(30.0, ge=2)
    poll_s: float = Field(1.0, ge=0.05)
    webhooks: WebhookArgs | None = None

    @model_validator(mode="after")
    def _looks_see_leases(self) -> Self:
        """Whoever looks too seldom cannot tell a worker that is silent from his own sleep."""
        if self.poll_s > self.lease_s / 4:
            raise ValueError(
                f"poll_s is {self.poll_s:g}; at most a quarter of lease_s, {self.lease_s / 4:g}"
            )
        return self
