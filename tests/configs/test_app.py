"""The configuration tree refuses what it does not know, names it, and does not change."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from configs.app import (
    MAX_FRAMES,
    PROMPT_CHARS,
    TIMEOUT_S,
    Defaults,
    IpAdapterArgs,
    Limits,
    ModelArgs,
    ModelUserConfig,
    PreprocessorArgs,
    ServiceArgs,
)
from configs.families import FAMILIES
from deployments.contracts.jobs import MAX_ENTRIES, MAX_TEXT, VideoRequest

MODEL = {"name": "sd15", "family": "sd15", "checkpoint": "a/b", "tcd_lora": None}
VALID: dict[type[BaseModel], dict[str, object]] = {
    Defaults: {},
    Limits: {},
    ModelArgs: dict(MODEL),
    IpAdapterArgs: {"adapter": "a/b/c.safetensors", "image_encoder": "clip"},
    ModelUserConfig: {},
    PreprocessorArgs: {"checkpoint": "a/b"},
    ServiceArgs: {},
}


def test_ip_adapters_stand_in_one_place() -> None:
    one = VALID[IpAdapterArgs]
    plus = {**one, "image_encoder": "vit-h"}
    alone = ModelArgs.model_validate({**MODEL, "ip_adapter": one})
    assert list(alone.named_ip_adapters) == ["default"]
    several = ModelArgs.model_validate({**MODEL, "ip_adapters": {"plus": plus, "base": one}})
    assert list(several.named_ip_adapters) == ["plus", "base"]
    assert ModelArgs.model_validate(MODEL).named_ip_adapters == {}
    with pytest.raises(ValidationError, match="both given; put all of them into ip_adapters"):
        ModelArgs.model_validate({**MODEL, "ip_adapter": one, "ip_adapters": {"plus": plus}})


@pytest.mark.parametrize("model", VALID)
def test_an_unknown_key_is_named(model: type[BaseModel]) -> None:
    assert model.model_validate(VALID[model])
    with pytest.raises(ValidationError, match="max_bacth") as refused:
        model.model_validate({**VALID[model], "max_bacth": 4})
    assert refused.value.errors()[0]["type"] == "extra_forbidden"


def test_an_unknown_key_is_named_at_any_depth() -> None:
    with pytest.raises(ValidationError, match=r"limits\.max_bacth"):
        ModelUserConfig.model_validate({"limits": {"max_bacth": 4}})
    with pytest.raises(ValidationError, match=r"defaults\.steps"):
        ModelArgs.model_validate({**MODEL, "defaults": {"steps": 4}})


@pytest.mark.parametrize("model", VALID)
def test_it_does_not_change(model: type[BaseModel]) -> None:
    config = model.model_validate(VALID[model])
    for name in model.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, getattr(config, name))


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        (Defaults, "num_inference_steps", 51),
        (Defaults, "num_inference_steps", 0),
        (Defaults, "eta", 1.1),
        (Defaults, "guidance_scale", -1),
        (Defaults, "width", 100),
        (Limits, "max_batch", 1),
        (Limits, "max_running", 0),
        (Limits, "max_pending", 0),
        (Limits, "min_side", 100),
        (Limits, "max_side", 0),
        (Limits, "lora_budget_mb", 0),
        (Limits, "aging_steps", 0),
        (Limits, "max_pixels", "many"),
        (ModelArgs, "name", "Stable Diffusion"),
        (ModelArgs, "name", "-sd15"),
        (ModelArgs, "name", "s" * 65),
        (ModelArgs, "family", "sd35"),
        (ModelArgs, "dtype", "int8"),
        (ModelArgs, "checkpoint", None),
        (ModelUserConfig, "loras", {"Ink Wash": "a/b"}),
        (ModelUserConfig, "loras", {"ink": None}),
        (ServiceArgs, "max_images", 65),
        (ServiceArgs, "request_timeout_s", 0),
    ],
)
def test_a_value_out_of_range_is_named(model: type[BaseModel], key: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate({**VALID[model], key: value})
    assert {error["loc"][0] for error in refused.value.errors()} == {key}


def test_sides_must_be_in_order() -> None:
    with pytest.raises(ValidationError, match="min_side 512 is above max_side 256"):
        Limits(min_side=512, max_side=256)


def test_leaving_out_the_tcd_lora_must_be_said() -> None:
    """A checkpoint without one makes noise at 4 steps; `null` is for those fused beforehand."""
    without = {key: value for key, value in MODEL.items() if key != "tcd_lora"}
    with pytest.raises(ValidationError, match="tcd_lora"):
        ModelArgs.model_validate(without)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_familys_default_size_is_within_the_default_limits(family: object) -> None:
    from configs.families import Family

    assert isinstance(family, Family)
    limits = Limits()
    assert limits.min_side <= family.default_size <= limits.max_side
    assert family.default_size % 8 == 0


def test_limits_of_a_request_fit_together() -> None:
    limits = ServiceArgs()
    assert limits.max_image_pixels <= limits.max_request_pixels <= limits.max_decoding_pixels
    for wrong in (
        {"max_image_pixels": 10**8, "max_request_pixels": 10**7},
        {"max_image_bytes": 10**8, "max_request_bytes": 10**7},
        {"max_request_pixels": 10**8, "max_decoding_pixels": 10**7},
        {"request_timeout_s": 301, "max_timeout_s": 300},
        {"max_timeout_s": TIMEOUT_S + 1},
        {"max_request_entries": MAX_ENTRIES + 1},
    ):
        with pytest.raises(ValidationError, match=r"max_|less than or equal"):
            ServiceArgs.model_validate(wrong)
    assert ServiceArgs(max_request_entries=MAX_ENTRIES)


@pytest.mark.parametrize(
    ("said", "follows"),
    [
        ({}, (40 * 2**20, 2 * 4096**2, 4 * 4096**2, 300)),
        ({"request_timeout_s": 600}, (40 * 2**20, 2 * 4096**2, 4 * 4096**2, 600)),
        ({"max_image_bytes": 10**8}, (10**8, 2 * 4096**2, 4 * 4096**2, 300)),
        ({"max_image_pixels": 36 * 10**6}, (40 * 2**20, 36 * 10**6, 4 * 4096**2, 300)),
        ({"max_image_pixels": 10**8}, (40 * 2**20, 10**8, 10**8, 300)),
        (
            {"max_image_pixels": 64, "max_timeout_s": None},
            (40 * 2**20, 2 * 4096**2, 4 * 4096**2, 300),
        ),
        (
            {"max_timeout_s": 400, "request_timeout_s": 9},
            (40 * 2**20, 2 * 4096**2, 4 * 4096**2, 400),
        ),
    ],
)
def test_limits_that_are_left_out_follow(said: dict[str, Any], follows: tuple[float, ...]) -> None:
    limits = ServiceArgs.model_validate(said)
    assert follows == (
        limits.max_request_bytes,
        limits.max_request_pixels,
        limits.max_decoding_pixels,
        limits.max_timeout_s,
    )


def test_more_than_any_request_may_have_counts_as_that() -> None:
    limits = ServiceArgs(max_prompt_chars=2 * MAX_TEXT, request_timeout_s=7200)
    assert limits.max_prompt_chars == MAX_TEXT == PROMPT_CHARS
    assert limits.request_timeout_s == limits.max_timeout_s == TIMEOUT_S
    assert VideoRequest("a", timeout_s=TIMEOUT_S)
    with pytest.raises(ValidationError, match="timeout_s"):
        VideoRequest("a", timeout_s=TIMEOUT_S + 1)
    assert Limits(max_frames=1000).max_frames == MAX_FRAMES
    assert VideoRequest("a", num_frames=MAX_FRAMES)
    with pytest.raises(ValidationError, match="num_frames"):
        VideoRequest("a", num_frames=MAX_FRAMES + 1)


def test_protected_pages_need_keys_that_name_an_admin() -> None:
    with pytest.raises(ValidationError, match="which only keys can name"):
        ServiceArgs(protect=("metrics",), api_keys_env="SOME_KEYS")


def test_what_is_warm_by_default() -> None:
    def sizes(**args: object) -> list[tuple[int, int, int]]:
        model = ModelArgs.model_validate({**MODEL, **args})
        return [(size.width, size.height, size.rows) for size in model.warm_sizes]

    assert sizes() == []
    assert sizes(compile="blocks") == [(512, 512, 8)]
    assert sizes(compile="blocks", family="sdxl", defaults={"height": 64}) == [(1024, 64, 8)]
    assert sizes(compile="blocks", warmup=[]) == []
    with pytest.raises(ValidationError, match="graphs needs a warmup size"):
        sizes(compile="graphs", warmup=[])
    assert sizes(warmup=[{"width": 64, "height": 72, "rows": 16}]) == [(64, 72, 16)]


@pytest.mark.parametrize("size", [{"width": 65, "height": 64}, {"width": 64}, {"rows": 0}, "64x64"])
def test_a_warm_size_is_one(size: object) -> None:
    with pytest.raises(ValidationError, match="warmup"):
        ModelArgs.model_validate({**MODEL, "warmup": [size]})


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu:1"])
def test_graphs_are_refused_where_there_can_be_none(device: str) -> None:
    assert ModelArgs.model_validate({**MODEL, "compile": "graphs", "device": "cuda:1"})
    with pytest.raises(ValidationError, match=f"graphs needs a CUDA device; device is {device}"):
        ModelArgs.model_validate({**MODEL, "compile": "graphs", "device": device})


def test_a_warm_size_that_nobody_may_ask_for_is_found() -> None:
    sizes = [{"width": w, "height": h} for w, h in ((64, 64), (512, 256), (56, 64), (64, 520))]
    args = ModelArgs.model_validate({**MODEL, "warmup": sizes})
    limits = Limits(min_side=64, max_side=512, max_pixels=512 * 255)
    outside = [(size.width, size.height) for size in args.never_asked_for(limits)]
    assert outside == [(512, 256), (56, 64), (64, 520)]
    assert args.model_copy(update={"warmup": None}).never_asked_for(limits) == ()
