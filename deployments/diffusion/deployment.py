"""The Serve shell around one engine: submit, stream, health, figures."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from pydantic import ValidationError
from ray import get_runtime_context, serve
from ray.util import get_node_ip_address

from configs.app import ModelArgs, ModelUserConfig
from configs.needs import of_model
from deployments.contracts.cards import CardDefaults, CardIpAdapter, CardLimits, ModelCard
from deployments.contracts.errors import EngineFault, TcdError
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import (
    Asset,
    Completed,
    FailedImage,
    FinishedImage,
    ImageJob,
    ImageResult,
    PromptSyntax,
    StreamEvent,
)
from deployments.contracts.refusal import Refusal, refusing
from deployments.contracts.tokens import PromptTokens
from deployments.diffusion.call import AdmissionThreads, Call
from deployments.diffusion.metrics import EngineMetrics
from deployments.diffusion.orphans import Orphans
from deployments.ending import end_process
from deployments.starting import starting
from deployments.tracebacks import leave_out_messages

log = logging.getLogger("ray.serve")  # Serve adds the request's id, and writes the replica's file


class Diffusion:
    """One replica: one checkpoint, one engine, one device."""

    def __init__(self, args: ModelArgs) -> None:
        # These belong to the replica: whoever builds the graph needs none of them.
        with starting(need for _, need in of_model(args)):
            from deployments.diffusion.engine.engine import Engine
            from deployments.diffusion.engine.models.components import load

        self._args = args
        self._config = ModelUserConfig()
        self._config_error: str | None = None
        self._serving = False
        self._created = int(time.time())
        replica = serve.get_replica_context().replica_id.unique_id
        components = load(args)
        self._node, self._device = get_node_ip_address(), _device_name(components.device.type)
        self._engine = Engine(components, self._config, name=replica, on_fault=self.end)
        self._threads = AdmissionThreads()
        self._orphans = Orphans(self._engine.cancel)
        self._metrics = EngineMetrics(args.name)
        if not args.log_prompts:  # what fails before requests come is told whole
            leave_out_messages()

    def reconfigure(self, user_config: dict[str, object]) -> None:
        """Takes new style adapters and limits while serving. Called by Serve; idempotent.

        What is wrong changes nothing of a replica that serves: it keeps the last good
        configuration, and says so in the log, on its card and in its figures. A replica that is
        only starting raises, so that a rolling update stops at it.
        """
        try:
            self._config = ModelUserConfig.model_validate(user_config)
        except ValidationError as error:
            if not self._serving:
                raise
            faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            self._config_error = "; ".join(faults)
            log.error("the new user_config is refused, the last stays: %s", self._config_error)
            return
        for size in self._args.never_asked_for(self._config.limits):
            log.warning("warmup: %dx%d is not within the limits", size.width, size.height)
        self._config_error = None
        self._engine.reconfigure(self._config)

    @refusing
    async def submit(self, job: ImageJob, *assets: Asset) -> ImageResult:
        """Makes the images of a job. Cancelling the call cancels the job.

        Images that fail by themselves are named in the result beside the others. What ends a whole
        job is a refusal, and so is the first image's failure if all of them failed.
        """
        images: dict[int, FinishedImage] = {}
        failed: dict[int, FailedImage] = {}
        started = time.perf_counter()
        call = Call(self._engine, job, self._threads)
        with self._orphans.watching(job):
            async for event in call.events(assets, progress=False):
                if isinstance(event, FinishedImage):
                    images[event.image_index] = event
                elif isinstance(event, FailedImage):
                    failed[event.image_index] = event
        self._metrics.answered(time.perf_counter() - started)
        ordered = [images[index] for index in sorted(images)]
        return ImageResult(
            model=self._args.name,
            images=tuple(image.pixels for image in ordered),
            seeds=tuple(image.seed for image in ordered),
            width=job.width,
            height=job.height,
            usage=call.usage,
            failed=tuple(failed[index] for index in sorted(failed)),
            stages=call.stages,
        )

    async def stream(self, job: ImageJob, *assets: Asset) -> AsyncIterator[StreamEvent | Refusal]:
        """Progress, partial, finished and failed images of a job as they come, then `Completed`;
        or a refusal of the whole job, as `submit` has it."""
        started = time.perf_counter()
        call = Call(self._engine, job, self._threads)
        try:
            with self._orphans.watching(job):
                async for event in call.events(assets, progress=True):
                    yield event
        except TcdError as error:
            yield Refusal(error)
            return
        self._metrics.answered(time.perf_counter() - started)
        yield Completed(self._args.name, call.usage, call.stages)

    @refusing
    async def check(self, job: ImageJob) -> None:
        """Refuses a job for what `submit` would refuse it with, whatever its arrays hold."""
        check = partial(self._engine.check, job)
        checked = self._threads.run(job, check, seeks=self._engine.seeks(job))
        await asyncio.wrap_future(checked)

    @refusing
    async def tokens(self, prompt: str, syntax: PromptSyntax | None) -> PromptTokens:
        """How a prompt is read; `None`: as this model's requests are by default."""
        read = partial(self._engine.tokens, prompt, syntax or self._args.defaults.prompt_syntax)
        return await asyncio.wrap_future(self._threads.plainly(read))

    async def figures(self) -> EngineFigures:
        """The engine at this moment."""
        return self._figures()

    async def describe(self) -> ModelCard:
        """This model's entry in the catalogue."""
        args, config = self._args, self._config
        defaults, (width, height) = args.defaults, args.default_size
        parts = self._engine.components
        ip_adapters = {
            name: CardIpAdapter(
                adapter=one.adapter,
                image_encoder=one.image_encoder,
                hidden=parts.ip_adapters[name].reads.hidden,
            )
            for name, one in args.named_ip_adapters.items()
        }
        first = next(iter(ip_adapters.values()), None)
        return ModelCard(
            id=args.name,
            created=self._created,
            family=args.family,
            tasks=self._tasks(),
            checkpoint=args.checkpoint,
            dtype=args.dtype,
            tcd_lora=args.tcd_lora,
            loras=dict(config.loras),
            loras_from=config.loras_from,
            embeddings=dict(args.embeddings),
            controls={kind: control.source for kind, control in args.controls.items()},
            control_kinds=dict(self._engine.components.controls.kinds),
            ip_adapters=ip_adapters,
            ip_adapter=None if first is None else first.adapter,
            motion_adapter=args.motion_adapter,
            motion_loras=dict(config.motion_loras),
            image_encoder=None if first is None else first.image_encoder,
            image_encoder_hidden=first is not None and first.hidden,
            defaults=CardDefaults(
                width=width,
                height=height,
                num_inference_steps=defaults.num_inference_steps,
                eta=defaults.eta,
                guidance_scale=defaults.guidance_scale,
                prompt_syntax=defaults.prompt_syntax,
                clip_skip=defaults.clip_skip,
            ),
            config_error=self._config_error,
            limits=CardLimits(
                max_prompt_tokens=parts.max_prompt_tokens,
                max_steps=parts.schedule.max_steps,
                max_frames=self._engine.max_frames,
                **config.limits.model_dump(include=set(CardLimits.model_fields) - {"max_frames"}),
            ),
        )

    def check_health(self) -> None:
        """Called by Serve every `health_check_period_s`. Publishes the engine's figures, too.

        A replica whose engine broke has ended by itself (`end`); this is for one that could not.
        """
        self._serving = True  # Serve asks for the first time when the replica has been configured
        self._metrics.publish(self._figures())
        if self._engine.fault is not None:
            raise EngineFault(f"the engine broke: {self._engine.fault}")

    def end(self, fault: Exception) -> None:
        """Ends this process: its engine broke."""
        end_process(log, "the engine broke; this replica ends", fault)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: what an autoscaling policy may look at (`ByWork` does)."""
        figures = self._engine.figures()
        return {
            "pending_steps": float(figures.pending_steps),
            "pending_seconds": figures.pending_seconds,
            "arriving_seconds": figures.arriving_seconds,
        }

    def record_routing_stats(self) -> dict[str, object]:
        """Called by Serve every `request_routing_stats_period_s`: what the routers of this model's
        handles know of this replica."""
        return self._engine.report().stats

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop()

    def _figures(self) -> EngineFigures:
        return replace(
            self._engine.figures(),
            node=self._node,
            device=self._device,
            config_error=int(self._config_error is not None),
        )

    def _tasks(self) -> list[str]:
        parts = self._engine.components
        if parts.takes_mask:
            tasks = ["inpainting"]
        else:
            tasks = ["text-to-image", "image-to-image", "inpainting"]
        if parts.ip_adapters:
            tasks.append("image-variation")
        if self._args.motion_adapter is not None:
            tasks.append("video")
        return tasks


def _device_name(kind: str) -> str:
    """As an operator knows it: a replica sees its own GPU alone, as the first one."""
    if kind != "cuda":
        return kind
    from torch import cuda

    numbers = get_runtime_context().get_accelerator_ids().get("GPU", [])
    return " ".join([cuda.get_device_name(), *(f"#{number}" for number in numbers)])
