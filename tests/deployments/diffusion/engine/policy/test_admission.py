"""A job that could never run is refused at once, and told which field and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from configs.app import Limits, ModelUserConfig
from configs.families import FamilyName
from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.contracts.jobs import LoraWeight
from deployments.diffusion.engine.adapters.sources import LoraSources
from deployments.diffusion.engine.models.components import Components, load
from deployments.diffusion.engine.policy.admission import Admission
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from tests.conftest import demo_loras, model_args
from tests.deployments.diffusion.engine.harness import image_job, styles

LIMITS = Limits(min_side=64, max_side=256, max_pixels=256 * 128, max_loras=2, max_pending=4)


@pytest.fixture(scope="module")
def components(demo_models: Path) -> Components:
    return load(model_args(demo_models, "sd15"))


def admission_of(components: Components, config: ModelUserConfig) -> Admission:
    tokenize = Tokenizers(components.tokenizers).tokenize
    return Admission(components.capabilities, tokenize, LoraSources(), config)


@pytest.fixture
def admission(components: Components, demo_models: Path) -> Admission:
    config = ModelUserConfig(loras=demo_loras(demo_models, "sd15"), limits=LIMITS)
    return admission_of(components, config)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"width": 56}, "size", "56x128 is not allowed: each side must be a multiple of 8"),
        ({"width": 264}, "size", "from 64 to 256 pixels"),
        ({"height": 264}, "size", "128x264"),
        ({"width": 256, "height": 256}, "size", "the area at most 32768 pixels"),
        ({"seeds": (1, 2, 3, 4, 5)}, "n", "n is 5; this model accepts at most 4"),
        ({"negative_prompt": "red"}, "negative_prompt", "no effect unless guidance_scale is above"),
        ({"negative_prompt": "x", "guidance_scale": 1.0}, "negative_prompt", r"\(it is 1\)"),
        (
            {"prompt": "fox " * 2401},
            "prompt",
            "2401 tokens long; this model reads at most 2400",
        ),
        (
            {"negative_prompt": "fox " * 2500, "guidance_scale": 5.0},
            "negative_prompt",
            "negative_prompt is 2500 tokens long",
        ),
        (
            {"prompt": "a <lora:neon:0.8> fox"},
            "prompt",
            r"holds '<lora:neon:0.8>': name style adapters in loras",
        ),
        (
            {"prompt": "(fox:20)", "prompt_syntax": "weighted"},
            "prompt",
            "the weight 20; at most 10",
        ),
        (
            {"clip_skip": 31},
            "clip_skip",
            r"clip_skip is 31; .* at most \d layers can be passed over",
        ),
        ({"original_size": (64, 64)}, "original_size", "original_size is given; .* no size"),
        ({"target_size": (64, 64)}, "target_size", "leave it out, or ask an sdxl model"),
        ({"loras": styles(neon=1.0, ink=1.0, papercut=1.0)}, "loras", "mixes at most 2"),
        ({"loras": (*styles(neon=1.0), *styles(neon=0.5))}, "loras", "'neon' is named twice"),
        ({"strength": 0.5}, "strength", "strength needs an image"),
    ],
)
def test_the_field_is_named(
    fields: dict[str, Any], param: str, says: str, admission: Admission
) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        admission.admit(image_job(**fields), ())
    assert refused.value.param == param


def test_an_unknown_adapter_is_not_found(admission: Admission) -> None:
    with pytest.raises(NotFound, match="'watercolour' does not exist; this model has: ink, neon"):
        admission.admit(image_job(loras=styles(watercolour=1.0)), ())


def test_the_longest_prompt_is_read_whole(admission: Admission) -> None:
    (spec,) = admission.admit(image_job(prompt="fox " * 75), ()).specs
    assert spec.prompt.tokens == 75
    ((ids,),) = spec.prompt.ids
    assert len(ids) == 77
    assert len(set(ids[1:-1])) == 1, "begin, 75 foxes, end"


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_any_text_of_few_tokens_is_taken(family: FamilyName, demo_models: Path) -> None:
    admission = admission_of(load(model_args(demo_models, family)), ModelUserConfig())
    for text in ("", " ", "صورة قطة", "🦊 in the ❄️", "<|endoftext|>", "\0\n\t"):
        (spec,) = admission.admit(image_job(prompt=text), ()).specs
        assert {len(ids) for (ids,) in spec.prompt.ids} == {77}


@pytest.mark.parametrize(
    ("told", "numbers"),
    [
        ({}, (96, 136, 0, 0, 96, 136)),
        ({"original_size": (48, 64)}, (48, 64, 0, 0, 96, 136)),
        ({"original_size": (48, 64), "target_size": (1, 2)}, (48, 64, 0, 0, 1, 2)),
    ],
)
def test_sdxl_is_told_a_size(
    told: dict[str, Any], numbers: tuple[int, ...], demo_models: Path
) -> None:
    admission = admission_of(load(model_args(demo_models, "sdxl")), ModelUserConfig())
    (spec,) = admission.admit(image_job(width=136, height=96, **told), ()).specs
    assert spec.size_ids == numbers


def test_every_image_of_a_job_is_a_row_of_its_own_seed(admission: Admission) -> None:
    job = image_job(seeds=(7, 8), loras=styles(neon=0.5))
    specs, sources, _ = admission.admit(job, ())
    assert [spec.seed for spec in specs] == [7, 8]
    ((key, weight),) = specs[0].loras
    assert weight == 0.5
    assert list(sources) == [key]


def test_the_same_adapter_has_the_same_key_until_its_source_changes(
    components: Components,
) -> None:
    keys: list[str] = []
    for source in ("a.safetensors", "a.safetensors", "b.safetensors"):
        admission = admission_of(components, ModelUserConfig(loras={"style": source}))
        keys += admission.admit(image_job(loras=styles(style=1.0)), ()).loras
    assert keys[0] == keys[1] != keys[2]


def test_another_file_at_the_same_place_is_another_adapter(
    components: Components, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    admission = admission_of(components, ModelUserConfig(loras={"style": str(file)}))
    keys: list[str] = []
    for content in (b"one", b"one", b"two"):
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)
        keys += admission.admit(image_job(loras=styles(style=1.0)), ()).loras
    assert keys[0] == keys[1] != keys[2]


def test_a_name_with_a_dot_makes_a_key_that_peft_accepts(components: Components) -> None:
    admission = admission_of(components, ModelUserConfig(loras={"style-v1.5": "a.safetensors"}))
    job = image_job(loras=styles(**{"style-v1.5": 1.0}))
    (key,) = admission.admit(job, ()).loras
    assert "." not in key


def test_prompt_tokens_count_both_prompts(admission: Admission) -> None:
    job = image_job(prompt="fox fox", negative_prompt="fox " * 5, guidance_scale=5.0)
    assert admission.admit(job, ()).prompt_tokens == 7
    assert admission.admit(image_job(prompt=""), ()).prompt_tokens == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 51}, "num_inference_steps"),
        ({"eta": 1.01}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"guidance_scale": 30.5}, "guidance_scale"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": (2**63,)}, "seeds"),
        ({"width": 100}, "width"),
        ({"partial_images": 4}, "partial_images"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"priority": 11}, "priority"),
    ],
)
def test_a_job_out_of_range_cannot_be_made(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        image_job(**fields)


def test_a_job_for_no_image_cannot_be_made() -> None:
    with pytest.raises(ValidationError, match="seeds"):
        image_job(seeds=())


@pytest.mark.parametrize("weight", [10.1, -10.1, float("nan")])
def test_a_weight_out_of_range_cannot_be_given(weight: float) -> None:
    with pytest.raises(ValidationError, match="weight"):
        LoraWeight(name="neon", weight=weight)
