"""ControlNet-Unions and T2I-Adapters in mixed batches: each row is what diffusers makes alone."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, MultiAdapter, T2IAdapter
from PIL import Image
from torch import Tensor

from configs.app import ControlArgs, Limits, ModelUserConfig
from configs.families import FamilyName
from configs.union_modes import UNION_MODES, UnionMode
from deployments.contracts.jobs import ControlUse
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from tests.control_models import write_adapter, write_union
from tests.deployments.diffusion.engine.oracle import Answer, assert_same, distance
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import Checkpoint, Net, Task, make_all, task

LIMITS = Limits(max_batch=64, max_running=64, max_step_ms=float("inf"))
CLEARLY_DIFFERENT = 1e-2


@dataclass(frozen=True)
class Made:
    """Controls beside the stand-in's own, as diffusers has them."""

    union: ControlNetUnionModel | None
    modes: dict[str, UnionMode]
    adapters: dict[str, T2IAdapter]


class Steered:
    """diffusers' own pipelines for each kind of control; models are those of `Pipelines`."""

    def __init__(self, checkpoint: Checkpoint, made: Made) -> None:
        self._pipelines, self._made = Pipelines(checkpoint), made
        self._base: Any = self._pipelines._base(adapted=False)
        self.nets = self._pipelines._nets
        self._xl = "XL" if checkpoint.family == "sdxl" else ""

    def image(self, one: Task) -> Answer:
        """What comes of a task alone. T2I-Adapters beside a ControlNet, or for some of the steps
        only, have no pipeline in diffusers: their features are put into the UNet's calls."""
        job, made = one.job, self._made
        features = [use for use in job.controls if use.type in made.adapters]
        nets = [use for use in job.controls if use.type not in made.adapters]
        with ExitStack() as stack:
            if features and not nets and all((use.start, use.end) == (0, 1) for use in features):
                pipe, more = self._adapter_pipeline(one, features)
            else:
                pipe, more = self._net_pipeline(one, nets)
                if features:
                    stack.enter_context(self._fed(one, features))
            pipe.set_progress_bar_config(disable=True)
            latents: Tensor = pipe(
                prompt=job.prompt,
                negative_prompt=job.negative_prompt,
                height=job.height,
                width=job.width,
                num_inference_steps=job.num_inference_steps,
                eta=job.eta,
                guidance_scale=job.guidance_scale,
                generator=torch.Generator().manual_seed(job.seeds[0]),
                output_type="latent",
                **more,
            ).images
        vae = self._base.vae
        with torch.inference_mode():
            image = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        pixels = self._base.image_processor.postprocess(image)[0]
        return Answer(latents[0].numpy(), np.asarray(pixels), ())

    def _adapter_pipeline(
        self, one: Task, uses: Sequence[ControlUse]
    ) -> tuple[Any, dict[str, object]]:
        adapters = [self._made.adapters[use.type] for use in uses]
        maps = [_map(one, use, adapter) for use, adapter in zip(uses, adapters, strict=True)]
        scales = [use.conditioning_scale for use in uses]
        cls = getattr(diffusers, f"StableDiffusion{self._xl}AdapterPipeline")
        alone = len(uses) == 1
        pipe = cls.from_pipe(self._base, adapter=adapters[0] if alone else MultiAdapter(adapters))
        return pipe, {
            "image": maps[0] if alone else maps,
            "adapter_conditioning_scale": scales[0] if alone else scales,
        }

    def _net_pipeline(self, one: Task, uses: Sequence[ControlUse]) -> tuple[Any, dict[str, object]]:
        if not uses:
            return self._base, {}
        maps = [_map(one, use) for use in uses]
        given = {
            "controlnet_conditioning_scale": [use.conditioning_scale for use in uses],
            "control_guidance_start": [use.start for use in uses],
            "control_guidance_end": [use.end for use in uses],
        }
        modes = [UNION_MODES[self._made.modes[u.type]] for u in uses if u.type in self._made.modes]
        if modes:
            assert len(modes) == len(uses), "diffusers has no pipeline for both kinds of nets"
            alone, union = len(uses) == 1, self._made.union
            pipe = diffusers.StableDiffusionXLControlNetUnionPipeline.from_pipe(
                self._base, controlnet=union if alone else [union] * len(uses)
            )
            return pipe, {"control_image": maps, "control_mode": modes, **given}
        cls = getattr(diffusers, f"StableDiffusion{self._xl}ControlNetPipeline")
        nets = [self._pipelines._net(use.type) for use in uses]
        if len(nets) == 1:  # of several, none pools
            pipe = cls.from_pipe(self._base, controlnet=nets[0])
            return pipe, {"image": maps[0], **{key: value[0] for key, value in given.items()}}
        return cls.from_pipe(self._base, controlnet=nets), {"image": maps, **given}

    @contextmanager
    def _fed(self, one: Task, uses: Sequence[ControlUse]) -> Iterator[None]:
        """Gives the UNet the features of adapters, with each of its calls."""
        steps, taken = one.job.num_inference_steps, 0

        def feed(_: object, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            nonlocal taken
            total: list[Tensor] = []
            for use in uses:
                adapter = self._made.adapters[use.type]
                pixels = np.asarray(_map(one, use, adapter), dtype=np.float32) / 255
                map_ = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None]
                on = taken >= use.start * steps and taken + 1 <= use.end * steps
                levels = [level * use.conditioning_scale * on for level in adapter(map_)]
                total = [a + b for a, b in zip(total, levels, strict=True)] if total else levels
            taken += 1
            rows = len(args[0])
            return args, kwargs | {
                "down_intrablock_additional_residuals": [t.repeat(rows, 1, 1, 1) for t in total]
            }

        hook = self._base.unet.register_forward_pre_hook(feed, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _map(one: Task, use: ControlUse, adapter: T2IAdapter | None = None) -> Image.Image:
    map_ = Image.fromarray(np.asarray(one.assets[use.maps[0]], dtype=np.uint8))
    return map_.convert("L") if adapter is not None and adapter.config.in_channels == 1 else map_


@contextmanager
def engine_of(
    checkpoint: Checkpoint, sources: dict[str, tuple[Path, str | None]]
) -> Iterator[Engine]:
    torch.set_num_threads(1)
    args = checkpoint.args()
    more = {
        kind: ControlArgs.model_validate({"source": str(source), "mode": mode})
        for kind, (source, mode) in sources.items()
    }
    args = args.model_copy(update={"controls": {**args.controls, **more}})
    engine = Engine(load(args), ModelUserConfig(limits=LIMITS))
    try:
        yield engine
    finally:
        engine.stop()


def small(name: str, *nets: Net, **fields: object) -> Task:
    return task(name, nets=nets, **{"width": 128, "height": 96, **fields})  # type: ignore[arg-type]


def assert_all_are_as_alone(engine: Engine, tasks: list[Task], truth: Steered) -> None:
    """All of them together."""
    made = make_all(engine, tasks)
    for one in tasks:
        try:
            assert_same(made[one.job.job_id, 0], truth.image(one))
        except AssertionError as error:
            raise AssertionError(f"{one.job.job_id}: {error}") from error
    for one, other in combinations(tasks, 2):
        if one.job.seeds == other.job.seeds:
            first, second = (made[t.job.job_id, 0].latents for t in (one, other))
            assert distance(first, second) > CLEARLY_DIFFERENT, (one.job.job_id, other.job.job_id)


def test_all_kinds_of_controls_share_a_batch(demo_models: Path, tmp_path: Path) -> None:
    checkpoint, base = Checkpoint(demo_models, "sdxl", "sdxl"), demo_models / "sdxl"
    union, sketch, grey = (tmp_path / name for name in ("union", "sketch", "grey"))
    modes: dict[str, UnionMode] = {"openpose": "openpose", "relief": "depth", "tile": "tile"}
    made = Made(
        write_union(base, union),
        modes,
        {
            "sketch": write_adapter(base, sketch, "full_adapter_xl"),
            "grey": write_adapter(base, grey, "full_adapter_xl", 1),
        },
    )
    sources: dict[str, tuple[Path, str | None]] = {kind: (union, modes[kind]) for kind in modes}
    sources |= {"sketch": (sketch, None), "grey": (grey, None)}
    guided: dict[str, object] = {"guidance_scale": 3.0, "negative_prompt": "dark"}
    tasks = [
        small("plain"),
        small("net", Net("depth", 0.7)),
        small("mode", Net("openpose", 0.7)),
        small("another mode", Net("relief", 0.7)),
        small("guided mode", Net("tile", 0.9, 0.0, 0.5), **guided, num_inference_steps=4),
        small("two modes", Net("openpose", 0.4, 0.0, 0.7), Net("tile", 0.6), num_inference_steps=5),
        small("adapter", Net("sketch", 0.8)),
        small("grey adapter", Net("grey", 0.8), seeds=(5,), eta=0.0),
        small("two adapters", Net("sketch", 0.5), Net("grey", 0.4)),
        small("guided adapter", Net("sketch", 0.8), **guided, prompt="night, stars"),
        small("first steps", Net("sketch", 0.8, 0.0, 0.5), num_inference_steps=6),
        small("last steps", Net("grey", 0.8, 0.5, 1.0), num_inference_steps=4, **guided),
        small("adapter and net", Net("sketch", 0.8), Net("canny", 0.7), num_inference_steps=5),
        small("adapter and mode", Net("tile", 0.5), Net("sketch", 0.6, 0.3, 1.0), **guided),
    ]
    with engine_of(checkpoint, sources) as engine:
        assert_all_are_as_alone(engine, tasks, Steered(checkpoint, made))


@pytest.mark.parametrize(("family", "kind"), [("sd15", "full_adapter"), ("sd15", "light_adapter")])
def test_adapters_of_sd15(family: FamilyName, kind: str, demo_models: Path, tmp_path: Path) -> None:
    checkpoint, base = Checkpoint(demo_models, family, family), demo_models / family
    made = Made(None, {}, {"sketch": write_adapter(base, tmp_path, kind)})
    odd: dict[str, object] = {"width": 136, "height": 88}  # levels of odd sides
    tasks = [
        small("plain", **odd),
        small("adapter", Net("sketch", 0.8), **odd),
        small("guided", Net("sketch", 0.8), **odd, guidance_scale=2.5),
        small("adapter and net", Net("sketch", 0.8), Net("depth", 0.7), **odd),
    ]
    with engine_of(checkpoint, {"sketch": (tmp_path, None)}) as engine:
        assert_all_are_as_alone(engine, tasks, Steered(checkpoint, made))


def test_modes_of_a_union_do_not_see_each_other(demo_models: Path, tmp_path: Path) -> None:
    """Those of diffusers do: its union's attention goes through the batch. Several rows of one call
    are each what they are alone, where nothing else is."""
    base = demo_models / "sdxl"
    theirs = write_union(base, tmp_path)
    checkpoint = Checkpoint(demo_models, "sdxl", "sdxl")
    with engine_of(checkpoint, {"depth": (tmp_path, None), "canny": (tmp_path, None)}) as engine:
        ours = engine.components.controls.nets["depth"].net
        assert ours is engine.components.controls.nets["canny"].net
    source = torch.Generator().manual_seed(0)
    sample, maps = torch.randn(2, 4, 8, 8, generator=source), torch.rand(2, 3, 64, 64)
    hidden = torch.randn(2, 7, ours.config.cross_attention_dim, generator=source)
    pooled = ours.config.projection_class_embeddings_input_dim
    pooled -= 6 * ours.config.addition_time_embed_dim
    texts = torch.randn(2, pooled, generator=source)
    among_all = torch.eye(8)[[1, 3]]

    def said(net: ControlNetUnionModel, rows: list[int], modes: list[Any]) -> list[Tensor]:
        added = {"text_embeds": texts[rows], "time_ids": torch.ones(len(rows), 6)}
        with torch.inference_mode():
            down, mid = net(
                sample[rows],
                torch.tensor([500] * len(rows)),
                encoder_hidden_states=hidden[rows],
                controlnet_cond=[maps[rows]],
                control_type=among_all[rows],
                control_type_idx=modes,
                added_cond_kwargs=added,
                return_dict=False,
            )
        return [*down, mid]

    alone = [said(theirs, [0], [1]), said(theirs, [1], [3])]
    together = said(ours, [0, 1], [torch.tensor([1, 3])])
    mixed = said(theirs, [0, 1], [torch.tensor([1, 3])])
    for row in range(2):
        for one, both in zip(alone[row], together, strict=True):
            assert distance(both[row].numpy(), one[0].numpy()) < 1e-4
        apart = distance(mixed[0][row].numpy(), alone[row][0][0].numpy())
        assert apart > 1e-3, apart


def test_a_net_that_pools_its_maps_leaves_unconditional_twins_alone(
    demo_models: Path, tmp_path: Path
) -> None:
    """As control_v11e_sd15_shuffle, beside another net and rows with neither."""
    folder = demo_models / "controlnet" / "sd15" / "depth"
    net = ControlNetModel.from_pretrained(folder)
    net.register_to_config(global_pool_conditions=True)
    net.save_pretrained(tmp_path)
    checkpoint = Checkpoint(demo_models, "sd15", "sd15")
    guided: dict[str, object] = {"guidance_scale": 3.0}
    tasks = [
        small("plain"),
        small("pooled", Net("shuffle", 0.8)),
        small("guided", Net("shuffle", 0.8), **guided),
        small("depth, guided", Net("canny", 0.8), **guided),
    ]
    truth = Steered(checkpoint, Made(None, {}, {}))
    truth.nets["shuffle"] = net.eval()
    with engine_of(checkpoint, {"shuffle": (tmp_path, None)}) as engine:
        assert_all_are_as_alone(engine, tasks, truth)
        both = small("both", Net("shuffle", 0.8), Net("canny", 0.8))
        assert make_all(engine, [both])
