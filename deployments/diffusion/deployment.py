"""The Serve shell around one engine: submit, stream, health, figures."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from ray import serve

from configs.app import ModelArgs, ModelUserConfig
from configs.families import FAMILIES
from deployments.contracts.cards import CardDefaults, CardLimits, ModelCard
from deployments.contracts.errors import EngineFault, TcdError
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import (
    Asset,
    Completed,
    FailedImage,
    FinishedImage,
    ImageJob,
    ImageResult,
    JobEvent,
    PartialImage,
    Progress,
    StreamEvent,
    Usage,
    real_steps,
)
from deployments.contracts.refusal import Refusal, refusing
from deployments.diffusion.metrics import EngineMetrics

if TYPE_CHECKING:
    from deployments.diffusion.engine.engine import Engine

PATCH = 16  # pixels a side of what the usage figures count as one image token


class Diffusion:
    """One replica: one checkpoint, one engine, one device."""

    def __init__(self, args: ModelArgs) -> None:
        # The heavy imports belong to the replica: whoever builds the graph needs none of them.
        from deployments.diffusion.engine.engine import Engine
        from deployments.diffusion.engine.models.components import load

        self._args = args
        self._config = ModelUserConfig()
        self._created = int(time.time())
        replica = serve.get_replica_context().replica_id.unique_id
        self._engine = Engine(load(args), self._config, name=replica)
        self._metrics = EngineMetrics(args.name)

    def reconfigure(self, user_config: dict[str, object]) -> None:
        """Takes new style adapters and limits while serving. Called by Serve; idempotent."""
        self._config = ModelUserConfig.model_validate(user_config)
        self._engine.reconfigure(self._config)

    @refusing
    async def submit(self, job: ImageJob, *assets: Asset) -> ImageResult:
        """Makes all images of a job. Cancelling the call cancels the job."""
        images: dict[int, FinishedImage] = {}
        call = _Call(self._engine, job)
        async for event in call.events(assets, progress=False):
            if isinstance(event, FinishedImage):
                images[event.image_index] = event
        ordered = [images[index] for index in sorted(images)]
        return ImageResult(
            model=self._args.name,
            images=tuple(image.pixels for image in ordered),
            seeds=tuple(image.seed for image in ordered),
            width=job.width,
            height=job.height,
            usage=call.usage,
        )

    async def stream(self, job: ImageJob, *assets: Asset) -> AsyncIterator[StreamEvent | Refusal]:
        """Progress, partial and finished images of a job as they come, then `Completed`."""
        call = _Call(self._engine, job)
        try:
            async for event in call.events(assets, progress=True):
                yield event
        except TcdError as error:
            yield Refusal(error)
            return
        yield Completed(self._args.name, call.usage)

    @refusing
    async def check(self, job: ImageJob) -> None:
        """Refuses a job without arrays for what `submit` would refuse it."""
        self._engine.check(job)

    async def figures(self) -> EngineFigures:
        """The engine at this moment."""
        return self._engine.figures()

    async def describe(self) -> ModelCard:
        """This model's entry in the catalogue."""
        args, config = self._args, self._config
        side = FAMILIES[args.family].default_size
        defaults = args.defaults
        adapter, loaded = args.ip_adapter, self._engine.components.ip_adapter
        tokens = self._engine.components.max_prompt_tokens
        return ModelCard(
            id=args.name,
            created=self._created,
            family=args.family,
            tasks=self._tasks(),
            checkpoint=args.checkpoint,
            dtype=args.dtype,
            tcd_lora=args.tcd_lora,
            loras=dict(config.loras),
            controls=dict(args.controls),
            ip_adapter=None if adapter is None else adapter.adapter,
            motion_adapter=args.motion_adapter,
            motion_loras=dict(config.motion_loras),
            image_encoder=None if adapter is None else adapter.image_encoder,
            image_encoder_hidden=loaded is not None and loaded.reads.hidden,
            defaults=CardDefaults(
                width=defaults.width or side,
                height=defaults.height or side,
                num_inference_steps=defaults.num_inference_steps,
                eta=defaults.eta,
                guidance_scale=defaults.guidance_scale,
            ),
            limits=CardLimits(
                max_prompt_tokens=tokens,
                max_frames=self._engine.max_frames,
                **config.limits.model_dump(include=set(CardLimits.model_fields) - {"max_frames"}),
            ),
        )

    def check_health(self) -> None:
        """Called by Serve every `health_check_period_s`: a replica whose engine broke is replaced.
        Publishes the engine's figures, too."""
        self._metrics.publish(self._engine.figures())
        if self._engine.fault is not None:
            raise EngineFault(f"the engine broke: {self._engine.fault}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: what an autoscaling policy may look at (`ByPendingWork` does)."""
        figures = self._engine.figures()
        return {
            "pending_steps": float(figures.pending_steps),
            "pending_seconds": figures.pending_seconds,
        }

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop()

    def _tasks(self) -> list[str]:
        parts = self._engine.components
        if parts.takes_mask:
            tasks = ["inpainting"]
        else:
            tasks = ["text-to-image", "image-to-image", "inpainting"]
        if self._args.ip_adapter is not None:
            tasks.append("image-variation")
        if self._args.motion_adapter is not None:
            tasks.append("video")
        return tasks


class _Call:
    """A job in the engine, as a handle call sees it."""

    def __init__(self, engine: "Engine", job: ImageJob) -> None:
        self._engine = engine
        self._job = job
        self._prompt_tokens = 0

    async def events(
        self, assets: Sequence[Asset], *, progress: bool
    ) -> AsyncIterator[Progress | PartialImage | FinishedImage]:
        """The job's events up to its last image; raises what an image failed with."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[JobEvent] = asyncio.Queue()

        def sink(event: JobEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._prompt_tokens = self._engine.submit(self._job, sink, assets, progress=progress)
        left = len(self._job.seeds)
        try:
            while left:
                event = await events.get()
                if isinstance(event, FailedImage):
                    raise event.error
                left -= isinstance(event, FinishedImage)
                yield event
        finally:
            if left:
                self._engine.cancel(self._job.job_id)

    @property
    def usage(self) -> Usage:
        """What the job costs, once the engine has taken it."""
        job = self._job
        patches = -(-job.width // PATCH) * -(-job.height // PATCH) * (job.num_frames or 1)
        return Usage(
            prompt_tokens=self._prompt_tokens,
            image_tokens=patches * len(job.seeds),
            denoising_steps=real_steps(job.num_inference_steps, job.strength) * len(job.seeds),
        )
