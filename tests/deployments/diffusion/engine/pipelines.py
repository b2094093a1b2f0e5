"""diffusers' own pipeline for every task, each run alone; models are shared between them.

`oracle.Oracle` knows text to image and its steps; this knows every task, and its ends only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, TCDScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from deployments.contracts.jobs import ImageJob, Pixels
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.oracle import Answer, distance, told_sizes
from tests.deployments.diffusion.engine.tasks import Checkpoint, Task

INPAINTING_CHANNELS = 9


@dataclass(frozen=True)
class Place:
    """Where pipelines run, and what they compute in."""

    device: torch.device
    dtype: torch.dtype


class Tape:
    """The noise that one pipeline drew, for another that computes in other numbers: a generator
    gives each dtype numbers of its own."""

    def __init__(self) -> None:
        self._drawn: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps everything that is drawn from generators."""
        randn = torch.randn

        def kept(*size: Any, generator: torch.Generator | None = None, **how: Any) -> Tensor:
            drawn = randn(*size, generator=generator, **how)
            if generator is not None:
                self._drawn.append(drawn)
            return drawn

        with _randn(kept):
            yield

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Has generators give the same again, all of it, in the dtype that is asked for."""
        randn, left = torch.randn, iter(self._drawn)

        def again(*size: Any, generator: torch.Generator | None = None, **how: Any) -> Tensor:
            if generator is None:
                return randn(*size, **how)
            return next(left).to(how["dtype"])

        with _randn(again):
            yield
        assert next(left, None) is None, "less noise was asked for"


@contextmanager
def _randn(other: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", other)
        yield


class Pipelines:
    """The pipelines of one checkpoint: TCD-LoRA fused, styles as adapters.

    Those with an IP-Adapter have a UNet of their own: it cannot be taken off again.

    Args:
        place: `None`: on the CPU in float32. Anywhere else they are given the task's embeddings
            of pictures, not the pictures: the engine is judged there, and no image encoder.
    """

    def __init__(self, checkpoint: Checkpoint, place: Place | None = None) -> None:
        self._sees_pictures = place is None
        self._place = place or Place(torch.device("cpu"), torch.float32)
        self._models = checkpoint.models
        self._family = checkpoint.family
        self._folder = checkpoint.models / checkpoint.folder
        self._adapter = checkpoint.adapter
        self._nets: dict[str, ControlNetModel] = {}
        self._bases: dict[bool, Any] = {}
        self._pipes: dict[tuple[bool, str, tuple[str, ...]], Any] = {}
        self._loaded: dict[bool, set[str]] = {False: set(), True: set()}

    def image(self, task: Task, index: int = 0) -> Answer:
        """Image `index` of a job, made alone."""
        return self._make(task, index)

    def models_of(self, *, adapted: bool, nets: Sequence[str]) -> list[nn.Module]:
        """Every model that runs when an image is made with these ControlNets, `adapted` with the
        IP-Adapter."""
        pipe = self._base(adapted)
        encoders = [pipe.image_encoder] if adapted else []
        return [
            pipe.text_encoder,
            pipe.unet,
            pipe.vae.decoder,
            *encoders,
            *(self._net(kind) for kind in nets),
        ]

    def growth(self, task: Task) -> float:
        """How many times larger rounding of the UNet's output is in the final latents.

        A random network can be chaotic: then rounding, which differs between batch sizes,
        grows beyond any tolerance, and the request cannot be held to one.
        """
        change = 1e-6
        source = torch.Generator().manual_seed(0)

        def nudge(_: object, __: object, output: tuple[Tensor]) -> tuple[Tensor]:
            noise = torch.randn(output[0].shape, generator=source)
            return (output[0] * (1 + change * noise),)

        unet: UNet2DConditionModel = self._base(bool(task.job.ip_adapters)).unet
        hook = unet.register_forward_hook(nudge)
        try:
            nudged = self._make(task, 0)
        finally:
            hook.remove()
        return distance(nudged.latents, self._make(task, 0).latents) / change

    def _make(self, task: Task, index: int) -> Answer:
        job = task.job
        pipe = self._pipe(job)
        self._weigh(job)
        latents: list[Tensor] = []

        def last(_: object, __: int, ___: object, values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents[:] = [values["latents"][0].clone()]
            return values

        arguments: dict[str, object] = {
            "prompt": job.prompt,
            "negative_prompt": job.negative_prompt,
            "num_inference_steps": job.num_inference_steps,
            "eta": job.eta,
            "guidance_scale": job.guidance_scale,
            "generator": torch.Generator().manual_seed(job.seeds[index]),
            "callback_on_step_end": last,
            **_pictures(task),
            **self._seen(task),
        }
        if job.image is None or job.mask is not None or job.controls:
            arguments |= {"height": job.height, "width": job.width}
        if job.controls:
            arguments |= {
                "controlnet_conditioning_scale": _alone(
                    [c.conditioning_scale for c in job.controls]
                ),
                "control_guidance_start": _alone([c.start for c in job.controls]),
                "control_guidance_end": _alone([c.end for c in job.controls]),
            }
        arguments |= told_sizes(job)
        if job.ip_adapters:
            pipe.set_ip_adapter_scale(job.ip_adapters[0].scale)
        image = pipe(**arguments).images[0]
        return Answer(latents[0].float().cpu().numpy(), np.asarray(image), ())

    def _base(self, adapted: bool) -> Any:
        if adapted not in self._bases:
            name = "StableDiffusionXL" if self._family == "sdxl" else "StableDiffusion"
            kind = "Inpaint" if self._only_inpaints() else ""
            cls = getattr(diffusers, f"{name}{kind}Pipeline")
            pipe = cls.from_pretrained(self._folder, local_files_only=True, dtype=self._place.dtype)
            pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
            pipe.load_lora_weights(self._models / "tcd-lora" / self._family, adapter_name="tcd")
            pipe.fuse_lora()
            pipe.unload_lora_weights()
            if adapted:
                assert self._adapter is not None
                pipe.load_ip_adapter(
                    self._models / "ip-adapter",
                    subfolder=self._adapter.subfolder,
                    weight_name=self._adapter.weights,
                    image_encoder_folder=self._adapter.encoder,
                )
            self._bases[adapted] = pipe.to(self._place.device)
        return self._bases[adapted]

    def _only_inpaints(self) -> bool:
        config = UNet2DConditionModel.load_config(self._folder, subfolder="unet")
        return bool(config["in_channels"] == INPAINTING_CHANNELS)

    def _pipe(self, job: ImageJob) -> Any:
        adapted = bool(job.ip_adapters)
        types = tuple(control.type for control in job.controls)
        start = "Img2Img" if job.image is not None else ""
        kind = ("ControlNet" if types else "") + ("Inpaint" if job.mask is not None else start)
        key = (adapted, kind, types)
        if key not in self._pipes:
            name = "StableDiffusionXL" if self._family == "sdxl" else "StableDiffusion"
            more = {"controlnet": _alone([self._net(t) for t in types])} if types else {}
            cls = getattr(diffusers, f"{name}{kind}Pipeline")
            base, dtype = self._base(adapted), self._place.dtype
            # Without it, it would have the models of the base in float32.
            self._pipes[key] = cls.from_pipe(base, dtype=dtype, **more)
            self._pipes[key].set_progress_bar_config(disable=True)
        return self._pipes[key]

    def _net(self, kind: str) -> ControlNetModel:
        if kind not in self._nets:
            folder = self._models / "controlnet" / self._family / kind
            net = ControlNetModel.from_pretrained(
                folder, local_files_only=True, torch_dtype=self._place.dtype
            )
            self._nets[kind] = net.to(self._place.device)
        return self._nets[kind]

    def _seen(self, task: Task) -> dict[str, object]:
        """What the IP-Adapter is shown."""
        if not task.job.ip_adapters:
            return {}
        (use,) = task.job.ip_adapters
        if self._sees_pictures:
            return {"ip_adapter_image": [[Image.fromarray(picture) for picture in task.seen]]}
        pairs = torch.from_numpy(np.stack([task.assets[index] for index in use.embeds], axis=1))
        picture, nothing = pairs[:1], pairs[1:]
        guided = task.job.guidance_scale > 1
        embeds = torch.cat([nothing, picture]) if guided else picture
        return {"ip_adapter_image_embeds": [embeds.to(self._place.device, self._place.dtype)]}

    def _weigh(self, job: ImageJob) -> None:
        adapted = bool(job.ip_adapters)
        pipe, loaded = self._base(adapted), self._loaded[adapted]
        sources = demo_loras(self._models, self._family)
        for lora in job.loras:
            if lora.name not in loaded:
                pipe.load_lora_weights(sources[lora.name], adapter_name=lora.name)
                loaded.add(lora.name)
        if job.loras:
            pipe.enable_lora()
            pipe.set_adapters([x.name for x in job.loras], [x.weight for x in job.loras])
        elif loaded:
            pipe.disable_lora()


def _pictures(task: Task) -> dict[str, object]:
    job = task.job
    given: dict[str, object] = {}
    maps = [Image.fromarray(_pixels(task, control.maps[0])) for control in job.controls]
    if job.image is not None:
        given |= {"image": Image.fromarray(_pixels(task, job.image)), "strength": job.strength}
        if maps:
            given["control_image"] = _alone(maps)
    elif maps:
        given["image"] = _alone(maps)
    if job.mask is not None:
        given["mask_image"] = Image.fromarray(_pixels(task, job.mask))
    return given


def _pixels(task: Task, index: int) -> Pixels:
    return np.asarray(task.assets[index], dtype=np.uint8)


def _alone(values: Sequence[object]) -> object:
    """A list of one is spoken of without a list."""
    return values[0] if len(values) == 1 else list(values)
