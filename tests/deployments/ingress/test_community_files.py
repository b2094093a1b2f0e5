"""Adapter files as people find them, over HTTP: each makes the picture that a model makes whose
weights were changed by plain arithmetic, and rows of all kinds share their calls."""

import base64
import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, TCDScheduler
from numpy.typing import NDArray
from PIL import Image
from ray.serve import RunTarget

from configs.app import Limits, ModelUserConfig
from graphs.model import DIFFUSION
from tests.community import Community, community
from tests.serving import Served, beside, plain_model

LEVELS = 2
VISIBLE = 10  # levels that a change must make somewhere, or nothing is judged
UNLISTED = "My Style (v1.0)"
MODEL, PROMPT, WEIGHT = "community", "a red fox in the snow", 0.8
Picture = NDArray[np.int16]


@pytest.fixture(scope="module")
def pipe(demo_models: Path) -> StableDiffusionPipeline:
    """diffusers' own, with the TCD-LoRA fused."""
    torch.set_num_threads(1)
    made = StableDiffusionPipeline.from_pretrained(demo_models / "sd15", local_files_only=True)
    made.scheduler = TCDScheduler.from_config(made.scheduler.config)
    made.load_lora_weights(demo_models / "tcd-lora" / "sd15")
    made.fuse_lora()
    made.unload_lora_weights()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def files(
    pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory
) -> list[Community]:
    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return community(models, tmp_path_factory.mktemp("community"))


@pytest.fixture(scope="module")
def folder(files: list[Community], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them under a name that no configuration lists."""
    folder = tmp_path_factory.mktemp("found")
    shutil.copy(files[0].path, folder / f"{UNLISTED}.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(
    served: Served, files: list[Community], folder: Path, demo_models: Path
) -> Iterator[Served]:
    """A model of its own in the running service, with all of them."""
    args = plain_model(demo_models, "sd15", MODEL)
    config = ModelUserConfig(
        loras={file.name: str(file.path) for file in files},
        loras_from=str(folder),
        limits=Limits(max_side=512),
    )
    deployment = DIFFUSION.options(user_config=config.model_dump())
    with beside(RunTarget(deployment.bind(args), name=f"model-{MODEL}", route_prefix=None)):
        served.wait_until_ready(MODEL)
        yield served


def draw(served: Served, *names: str, seed: int = 3) -> Picture:
    answer = httpx.post(
        f"{served.url}/v1/images/generations",
        json={
            "model": MODEL,
            "prompt": PROMPT,
            "seed": seed,
            "loras": [{"name": name, "weight": WEIGHT} for name in names],
        },
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(file))).astype(np.int16)


@contextmanager
def changed(pipe: StableDiffusionPipeline, file: Community) -> Iterator[None]:
    """W + weight * (what it becomes - W), and back."""
    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    before = {
        (model, name): models[model].get_parameter(name).detach().clone()
        for model, name in file.changed
    }
    with torch.no_grad():
        for (model, name), became in file.changed.items():
            parameter = models[model].get_parameter(name)
            old = parameter.double()
            parameter.copy_(old + WEIGHT * (became - old))
        try:
            yield
        finally:
            for (model, name), old in before.items():
                models[model].get_parameter(name).copy_(old)


def expected(pipe: StableDiffusionPipeline, seed: int = 3) -> Picture:
    image = pipe(
        PROMPT,
        height=128,
        width=128,
        num_inference_steps=4,
        guidance_scale=0.0,
        eta=0.3,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return np.asarray(image).astype(np.int16)


def apart(some: Picture, others: Picture) -> int:
    return int(np.abs(some - others).max())


def test_each_file_does_what_its_numbers_say(
    model: Served, files: list[Community], pipe: StableDiffusionPipeline
) -> None:
    assert len(files) >= 40
    plain = expected(pipe)
    assert apart(draw(model), plain) <= LEVELS
    wrong: dict[str, int] = {}
    for file in files:
        with changed(pipe, file):
            theirs = expected(pipe)
        assert apart(theirs, plain) >= VISIBLE, f"{file.name} changes nothing to be seen"
        if (levels := apart(draw(model, file.name), theirs)) > LEVELS:
            wrong[file.name] = levels
    assert wrong == {}


def test_eight_kinds_in_one_batch_are_eight_single_runs(model: Served) -> None:
    kinds = ["lora-peft", "locon-kohya", "loha-lycoris", "lokr-kohya", "full-kohya"]
    kinds += ["dora-lycoris", "norms-comfyui", "peft-biases"]
    alone = {kind: draw(model, kind) for kind in kinds}
    steps = model.engine_figure("rows_total", MODEL)
    calls = model.engine_figure("steps_total", MODEL)
    with ThreadPoolExecutor(len(kinds)) as crowd:
        together = dict(zip(kinds, crowd.map(lambda kind: draw(model, kind), kinds), strict=True))
    rows = model.engine_figure("rows_total", MODEL) - steps
    calls = model.engine_figure("steps_total", MODEL) - calls
    assert rows / calls > 2, "they hardly shared a call"
    for kind in kinds:
        assert apart(together[kind], alone[kind]) <= LEVELS, kind


def test_two_kinds_in_one_row(
    model: Served, files: list[Community], pipe: StableDiffusionPipeline
) -> None:
    """Their changes of the weights add up."""
    one, other = (
        next(file for file in files if file.name == name) for name in ("loha-kohya", "norms-kohya")
    )
    assert not one.changed.keys() & other.changed.keys()
    with changed(pipe, one), changed(pipe, other):
        theirs = expected(pipe)
    assert apart(draw(model, one.name, other.name), theirs) <= LEVELS


def test_an_adapter_that_is_not_listed_is_found_by_its_name(
    model: Served, files: list[Community], folder: Path
) -> None:
    assert np.array_equal(draw(model, UNLISTED), draw(model, files[0].name))
    card = httpx.get(f"{model.url}/v1/models/{MODEL}", timeout=30).json()
    assert card["loras_from"] == str(folder)
    assert UNLISTED not in card["loras"]
    assert UNLISTED not in httpx.get(f"{model.url}/metrics", timeout=30).text
    shutil.copy(files[0].path, folder / "added.safetensors")
    assert np.array_equal(draw(model, "added"), draw(model, UNLISTED))


@pytest.mark.parametrize("name", ["nowhere", f"../{UNLISTED}", "/etc/passwd", "..", "a\u0000b"])
def test_a_name_that_is_nowhere_is_a_404_that_names_the_field(model: Served, name: str) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "loras": [{"name": name}]}
    answer = httpx.post(f"{model.url}/v1/images/generations", json=body, timeout=30)
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["param"] == "loras"
