"""Several IP-Adapters on one UNet, and masks: what diffusers' pipelines make of each row alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    UNet2DConditionModel,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import Attention
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs.app import IpAdapterArgs, ModelArgs, ModelUserConfig
from configs.families import FamilyName
from configs.sources import SourceError
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import Asset, Embeds, ImageJob, IpAdapterUse, Mask
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.models.image_attention import ImageAttention, Seen, Sight
from deployments.diffusion.engine.models.ip_adapter import CrossAttention, load_ip_adapters
from tests.conftest import demo_loras, model_args
from tests.deployments.diffusion.engine.harness import image_job
from tests.deployments.diffusion.engine.oracle import (
    LATENT_TOLERANCE,
    Answer,
    assert_same,
    distance,
    tcd_pipeline,
)
from tests.deployments.diffusion.engine.steps.walk import Walk, Watch, left_on_the_host
from tests.deployments.diffusion.engine.tasks import HEIGHT, WIDTH, Task, make_all
from tests.deployments.diffusion.engine.test_tasks import CLEARLY_DIFFERENT, ROOMY, make_together

HIDDEN, STATES = 48, 6  # of the stand-ins' vit-h; any number of states is read
PROJECTED: dict[FamilyName, int] = {"sd15": 32, "sdxl": 40}
FILES: dict[FamilyName, dict[str, str]] = {
    "sd15": {
        "base": "models/ip-adapter_sd15.safetensors",
        "plus": "models/ip-adapter-plus_sd15.safetensors",
    },
    "sdxl": {
        "base": "sdxl_models/ip-adapter_sdxl.safetensors",
        "plus": "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
    },
}
Sees = tuple[str, int, float, Mask | None]  # an adapter, how many pictures, scale, where


def full_adapter(plus: Path, file: Path) -> Path:
    """An adapter of the third kind (`ip-adapter-full-face`): the layers of a plus adapter behind
    a projection of every state by itself."""
    layers = {name: t for name, t in load_file(plus).items() if name.startswith("ip_adapter.")}
    width = layers["ip_adapter.1.to_k_ip.weight"].shape[1]
    source = torch.Generator().manual_seed(5)
    shapes = {"0": (HIDDEN, HIDDEN), "2": (width, HIDDEN)}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=source) / HIDDEN**0.5
        layers[f"image_proj.proj.{name}.weight"] = weight
        layers[f"image_proj.proj.{name}.bias"] = torch.zeros(shape[0])
    layers["image_proj.proj.3.weight"] = torch.ones(width)
    layers["image_proj.proj.3.bias"] = torch.zeros(width)
    save_file(layers, file)
    return file


def adapter_files(models: Path, family: FamilyName, folder: Path) -> dict[str, Path]:
    files = {name: models / "ip-adapter" / file for name, file in FILES[family].items()}
    if family == "sd15":
        files["full"] = full_adapter(files["plus"], folder / "full.safetensors")
    return files


def model_with(models: Path, family: FamilyName, files: Mapping[str, Path]) -> ModelArgs:
    adapters = {
        name: IpAdapterArgs(adapter=str(file), image_encoder="any") for name, file in files.items()
    }
    return model_args(models, family).model_copy(update={"ip_adapters": adapters})


def embeds(family: FamilyName, name: str, number: int) -> Embeds:
    """(2, ...) float32: of a picture of that number, and of no picture."""
    shape = (PROJECTED[family],) if name == "base" else (STATES, HIDDEN)
    return np.random.default_rng(number).normal(size=(2, *shape)).astype(np.float32)


def seeing(family: FamilyName, job_id: str, sees: Sequence[Sees] = (), **fields: object) -> Task:
    """A job that sees pictures, other ones with every adapter."""
    job = image_job(job_id, **{"width": WIDTH, "height": HEIGHT, **fields})
    assets: list[Asset] = []
    uses: list[IpAdapterUse] = []
    for place, (name, count, scale, mask) in enumerate(sees):
        places = tuple(range(len(assets), len(assets) + count))
        assets += [embeds(family, name, 10 * place + number) for number in range(count)]
        uses.append(IpAdapterUse(name, places, scale, None if mask is None else len(assets)))
        if mask is not None:
            assets.append(mask)
    return Task(image_job(**{**vars(job), "ip_adapters": tuple(uses)}), tuple(assets))


def half(width: int = WIDTH, height: int = HEIGHT, *, right: bool = False) -> Mask:
    """White on one half but for a slanted edge, with greys that count as white and as black."""
    yy, xx = np.mgrid[:height, :width]
    inside = (xx + yy / 4 < width / 2) ^ right
    return np.where(inside, 200, 100).astype(np.uint8)


class Oracle:
    """diffusers' pipeline with all adapters of a model at once."""

    def __init__(self, models: Path, family: FamilyName, files: Mapping[str, Path]) -> None:
        self._pipe = tcd_pipeline(models, family)
        self._pipe.load_ip_adapter(
            [str(file.parent) for file in files.values()],
            subfolder="",
            weight_name=[file.name for file in files.values()],
            image_encoder_folder=None,
        )
        self._family, self._names = family, list(files)

    def image(self, task: Task) -> Answer:
        """The image of a job. Entries of one adapter have masks, all or none, and with them one
        picture each: then it is one adapter with pictures of different regions."""
        job, scales, shown, masks = task.job, [], [], []
        for name in self._names:
            uses = [use for use in job.ip_adapters if use.name == name]
            pairs = [task.assets[index] for use in uses for index in use.embeds]
            absent = [np.zeros_like(embeds(self._family, name, 0))]
            together = torch.from_numpy(np.stack(pairs or absent, axis=1))
            picture, nothing = together[:1], together[1:]
            shown.append(torch.cat([nothing, picture]) if job.guidance_scale > 1 else picture)
            regions = [task.assets[use.mask] for use in uses if use.mask is not None]
            masks.append(_prepared(regions, job) if regions else None)
            by_region = [use.scale for use in uses]
            scales.append(by_region if regions else by_region[0] if uses else 0.0)
        self._pipe.set_ip_adapter_scale(scales)
        latents: list[Tensor] = []

        def last(_: object, __: int, ___: object, values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents[:] = [values["latents"][0].clone()]
            return values

        image = self._pipe(
            prompt=job.prompt,
            height=job.height,
            width=job.width,
            num_inference_steps=job.num_inference_steps,
            eta=job.eta,
            guidance_scale=job.guidance_scale,
            generator=torch.Generator().manual_seed(job.seeds[0]),
            ip_adapter_image_embeds=shown,
            cross_attention_kwargs={"ip_adapter_masks": masks} if any_of(masks) else None,
            callback_on_step_end=last,
        ).images[0]
        return Answer(latents[0].numpy(), np.asarray(image), ())


def any_of(masks: Sequence[Tensor | None]) -> bool:
    return any(mask is not None for mask in masks)


def _prepared(regions: Sequence[Asset], job: ImageJob) -> Tensor:
    """(1, pictures, height, width), as diffusers' documentation has it."""
    pictures = [Image.fromarray(np.asarray(region)) for region in regions]
    made = IPAdapterMaskProcessor().preprocess(pictures, height=job.height, width=job.width)
    assert isinstance(made, Tensor)
    return made.reshape(1, len(regions), job.height, job.width)


def crowd(family: FamilyName) -> list[Task]:
    """Rows of every kind; no two see the same."""
    left, right = half(), half(right=True)
    guided: dict[str, object] = {"guidance_scale": 3.0}
    asked: dict[str, tuple[Sequence[Sees], dict[str, object]]] = {
        "nothing": ((), {}),
        "base": ((("base", 1, 0.8, None),), {"num_inference_steps": 6}),
        "plus, guided": ((("plus", 1, 0.7, None),), guided),
        "two pictures of plus": ((("plus", 2, 0.6, None),), {}),
        "both": ((("plus", 1, 0.5, None), ("base", 3, 0.5, None)), {}),
        "a region": ((("base", 1, 1.2, left),), {}),
        "two regions, guided": ((("plus", 1, 0.9, left), ("plus", 1, 0.6, right)), guided),
        "a region, the other everywhere": (
            (("base", 1, 0.9, right), ("plus", 2, 0.4, None)),
            guided,
        ),
        "nothing, guided": ((), guided),
    }
    if family == "sd15":
        asked["all three"] = (
            (("full", 1, 0.5, None), ("base", 1, 0.4, left), ("plus", 1, 0.4, None)),
            guided,
        )
        asked["full"] = ((("full", 2, 0.8, None),), {"num_inference_steps": 5})
    return [
        seeing(family, name, sees, seeds=(seed,), **fields)
        for seed, (name, (sees, fields)) in enumerate(asked.items())
    ]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_rows_of_different_adapters_and_regions(
    family: FamilyName, demo_models: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    files = adapter_files(demo_models, family, tmp_path)
    oracle, tasks = Oracle(demo_models, family, files), crowd(family)
    config = ModelUserConfig(loras=demo_loras(demo_models, family), limits=ROOMY)
    engine = Engine(load(model_with(demo_models, family, files)), config)
    try:
        together = make_together(engine, tasks)
        alone = make_all(engine, tasks[3:4]) | make_all(engine, tasks[6:7])
        tall = seeing(
            family,
            "tall",
            (("base", 1, 0.9, half(96, 160)), ("plus", 1, 0.9, half(96, 160, right=True))),
            width=96,
            height=160,
        )
        other = make_all(engine, [tall])
    finally:
        engine.stop()
    for task in tasks:
        expected = oracle.image(task)
        for made in (together, alone):
            if (task.job.job_id, 0) in made:
                assert_same(made[task.job.job_id, 0], expected)
    assert_same(other["tall", 0], oracle.image(tall))


def test_what_does_not_act_changes_nothing(demo_models: Path, tmp_path: Path) -> None:
    """At a size whose halves are odd, where diffusers would not find a mask's size: one that is
    white everywhere is none, and a scale of 0 is no picture."""
    torch.set_num_threads(1)
    files = adapter_files(demo_models, "sd15", tmp_path)
    odd: dict[str, Any] = {"width": 136, "height": 104, "num_inference_steps": 2}
    white = np.full((104, 136), 255, np.uint8)
    tasks = [
        seeing("sd15", "everywhere", (("plus", 2, 0.8, None),), **odd),
        seeing("sd15", "white", (("plus", 2, 0.8, white),), **odd),
        seeing("sd15", "a half", (("plus", 2, 0.8, half(136, 104)),), **odd),
        seeing("sd15", "nothing", **odd),
        seeing("sd15", "scale 0", (("plus", 2, 0.0, None),), **odd),
    ]
    engine = Engine(load(model_with(demo_models, "sd15", files)), ModelUserConfig())
    try:
        everywhere, as_white, a_half, nothing, unscaled = (
            made for task in tasks for made in make_all(engine, [task]).values()
        )
        for wrong, says in (
            (IpAdapterUse("face", (0, 1)), "'face': this model has base, plus, full"),
            (IpAdapterUse("base", (0, 1)), "(2, 32)"),
            (IpAdapterUse("plus", (0, 1), 1.0, 0), "(104, 136) uint8 is needed"),
        ):
            job = image_job(**{**vars(tasks[0].job), "ip_adapters": (wrong,)})
            with pytest.raises(InvalidRequest) as caught:
                engine.submit(job, lambda _: None, tasks[0].assets)
            assert caught.value.param == "ip_adapter"
            assert says in caught.value.message
    finally:
        engine.stop()
    assert distance(as_white.latents, everywhere.latents) < LATENT_TOLERANCE
    assert np.array_equal(unscaled.latents, nothing.latents)
    for other in (everywhere, nothing):
        assert distance(a_half.latents, other.latents) > CLEARLY_DIFFERENT


class OneLayer(UNet2DConditionModel):
    """A UNet that is one layer of attention."""

    def __init__(self, layer: Attention) -> None:
        nn.Module.__init__(self)
        self._layer = layer

    @property
    def attn_processors(self) -> dict[str, object]:
        return {"it": self._layer.processor}

    def set_attn_processor(self, processor: dict[str, Any]) -> None:
        self._layer.set_processor(processor["it"])


def test_attention_is_the_sum_of_plain_attentions() -> None:
    """Several pictures in one region, rows that see nothing, tokens of different numbers."""
    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    layer = Attention(8, cross_attention_dim=6, heads=2, dim_head=4, bias=False).eval()
    attention = ImageAttention(OneLayer(layer), [CrossAttention("it", 0, 8)])
    pixels, prompts = drawn(3, 12, 8), drawn(3, 5, 6)
    seen = {(0, 0): (3, drawn(12)), (2, 0): (8, drawn(12)), (2, 1): (2, drawn(12))}
    kv = {key: (drawn(count, 8), drawn(count, 8)) for key, (count, _) in seen.items()}
    made = {key: Seen(torch.cat(kv[key], dim=1), (seen[key][1],)) for key in seen}
    sights = [
        Sight((0, 2), (made[0, 0], made[2, 0]), torch.tensor([0.0, 2]), torch.tensor([3.0, 8])),
        Sight((2,), (made[2, 1],), torch.tensor([2.0]), torch.tensor([2.0])),
    ]

    def plain(row: int) -> Tensor:
        def attended(keys: Tensor, values: Tensor) -> Tensor:
            heads = []
            for part in (slice(0, 4), slice(4, 8)):
                scores = layer.to_q(pixels[row])[:, part] @ keys[:, part].T / 4**0.5
                heads.append(scores.softmax(-1) @ values[:, part])
            return torch.cat(heads, dim=1)

        total = attended(layer.to_k(prompts[row]), layer.to_v(prompts[row]))
        for key, (_, weights) in seen.items():
            if key[0] == row:
                total = total + weights[:, None] * attended(*kv[key])
        out: Tensor = layer.to_out[0](total)
        return out

    with torch.inference_mode():
        attention.show(sights)
        together = layer(pixels, encoder_hidden_states=prompts)
        torch.testing.assert_close(together, torch.stack([plain(row) for row in range(3)]))
        attention.show([])
        blind = layer(pixels, encoder_hidden_states=prompts)
    torch.testing.assert_close(blind[1], together[1])
    assert not attention.in_use


def changed(file: Path, to: Path, **more: Tensor) -> Path:
    save_file(load_file(file) | more, to)
    return to


def test_files_that_are_no_adapter_of_this_model(demo_models: Path, tmp_path: Path) -> None:
    base = demo_models / "ip-adapter" / FILES["sd15"]["base"]
    sdxl = demo_models / "ip-adapter" / FILES["sdxl"]["base"]
    tensors = load_file(base)
    lora = {"ip_adapter.0.to_k_lora.down.weight": torch.ones(1)}
    face = {f"image_proj.proj.{n}.weight": torch.ones(4, 4) for n in (0, 2)}
    save_file(
        {name: t for name, t in tensors.items() if "image_proj.proj" not in name} | face,
        tmp_path / "face.safetensors",
    )
    infinite = tensors["ip_adapter.1.to_k_ip.weight"].clone()
    infinite[0, 0] = float("inf")
    (tmp_path / "cut.safetensors").write_bytes(base.read_bytes()[:1000])
    style = demo_models / "loras" / "sd15" / "neon.safetensors"
    cases: list[tuple[Path, str]] = [
        (sdxl, "another family"),
        (tmp_path / "face.safetensors", "FaceID"),
        (changed(base, tmp_path / "lora.safetensors", **lora), "FaceID"),
        (style, "no IP-Adapter"),
        (tmp_path / "cut.safetensors", "eader"),
        (tmp_path / "none.safetensors", "not"),
        (
            changed(
                base, tmp_path / "inf.safetensors", **{"ip_adapter.1.to_k_ip.weight": infinite}
            ),
            "not finite",
        ),
        (
            changed(base, tmp_path / "odd.safetensors", **{"image_proj.more": torch.ones(1)}),
            "no known kind",
        ),
    ]
    unet = load(model_args(demo_models, "sd15")).unet
    for file, says in cases:
        args = {"mine": IpAdapterArgs(adapter=str(file), image_encoder="any")}
        with pytest.raises((ValueError, SourceError), match=says) as caught:
            load_ip_adapters(args, unet)
        assert file.name in str(caught.value)


def test_a_step_uploads_once_whatever_its_rows_see(demo_models: Path, tmp_path: Path) -> None:
    files = adapter_files(demo_models, "sd15", tmp_path)
    walk = Walk(model_with(demo_models, "sd15", files), "float16")
    try:
        with Watch() as watch:
            rows = walk.join(*crowd("sd15")[5:8])  # regions, guided and not
            for _ in range(2):
                before = len(watch.uploads)
                walk.step(rows)
                assert len(watch.uploads) == before + 1
        assert left_on_the_host(walk.parts) == []
    finally:
        walk.close()
