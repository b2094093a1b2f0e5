"""The stand-in models hold what their recipe promises, seen through diffusers' own pipelines."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, TCDScheduler
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTokenizer, PreTrainedModel

from demo import standins
from demo.base import FAMILIES
from demo.lora import STYLES
from demo.tokenizer import MAX_LENGTH, VOCAB_SIZE
from tests.demo.sampling import PROMPT, Pipeline, change, sample

ROOT = Path(__file__).parents[2]
OTHER_PROMPT = "a blue whale in the ocean at night"


def lora_file(models: Path, name: str, family: str) -> Path:
    if name == "tcd":
        return models / "tcd-lora" / family / "pytorch_lora_weights.safetensors"
    return models / "loras" / family / f"{name}.safetensors"


def keys_in(file: Path) -> list[str]:
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def adapted_layers(module: torch.nn.Module, adapter: str) -> int:
    return sum(adapter in getattr(layer, "lora_A", {}) for layer in module.modules())


def text_encoders(pipe: Pipeline) -> dict[str, PreTrainedModel]:
    return {name: part for name, part in pipe.components.items() if name.startswith("text_enc")}


def digests(out: Path) -> dict[str, str]:
    return {
        file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in standins.files_in(out)
    }


# The folder as a whole


def test_another_process_writes_the_same_bytes(models: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.standins", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    here = digests(models)
    here.pop(standins.MERGED_STAMP, None)  # `make demo` may have been here before
    assert digests(tmp_path) == here
    *folders, total = done.stdout.splitlines()
    named = {(ROOT / line.split("  ")[0]).resolve() for line in folders}
    files = [file for file in standins.files_in(tmp_path) if file.name != standins.STAMP]
    assert [file for file in files if not named & {file, *file.parents}] == []
    assert total.endswith(" s")


def test_everything_is_small_and_safetensors(models: Path) -> None:
    files = standins.files_in(models)
    assert sum(file.stat().st_size for file in files) < 100e6
    assert {file.suffix for file in files} == {".json", ".safetensors", ".txt"}


def test_an_up_to_date_folder_is_left_alone(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in standins.files_in(models)}
    standins.write_all(models)
    assert "up to date" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in standins.files_in(models)} == before


def test_a_missing_or_short_file_is_noticed(models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    stamp = copy / standins.STAMP
    recipe = standins.recipe_hash()
    assert standins.is_current(stamp, recipe)
    assert not standins.is_current(stamp, "another recipe")
    lora = lora_file(copy, "ink", "sd15")
    lora.write_bytes(lora.read_bytes()[:-1])
    assert not standins.is_current(stamp, recipe)
    lora.unlink()
    assert not standins.is_current(stamp, recipe)


def test_unknown_names_are_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sd15, sd21, sdxl"):
        standins.write_base("sd3", tmp_path)
    with pytest.raises(ValueError, match="scale"):
        standins.write_base("sd15", tmp_path, scale=0)
    with pytest.raises(ValueError, match="sd15, sd21, sdxl"):
        standins.write_tcd_lora("sd3", models / "sd15", tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="papercut, ink, neon"):
        standins.write_style_lora("oil", "sd15", models / "sd15", tmp_path / "lora.safetensors")


# The bases


def test_base_makes_a_picture(pipe: Pipeline) -> None:
    image = pipe(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert isinstance(image, Image.Image)
    assert image.size == (128, 128)
    pixels = np.asarray(image)
    assert pixels.std(axis=(0, 1)).min() > 15
    assert np.isin(pixels, (0, 255)).mean() < 0.3


def test_latents_stay_bounded(pipe: Pipeline, plain_latents: torch.Tensor) -> None:
    assert plain_latents.abs().max() < 40
    assert sample(pipe, steps=50).abs().max() < 40
    assert sample(pipe, steps=8, guidance_scale=5.0).abs().max() < 100


def test_unet_output_is_of_order_one(pipe: Pipeline) -> None:
    outputs: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: tuple[torch.Tensor]) -> None:
        outputs.append(output[0])

    handle = pipe.unet.register_forward_hook(keep)
    sample(pipe, steps=1)
    handle.remove()
    assert 0.5 < outputs[0].std() < 1.1


def test_prompt_matters(pipe: Pipeline, plain_latents: torch.Tensor) -> None:
    assert change(sample(pipe, OTHER_PROMPT), plain_latents) > 0.1


def test_encoder_gives_unit_latents(pipe: Pipeline) -> None:
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
    assert 0.3 < mean.std() * pipe.vae.config.scaling_factor < 3


def test_text_encoders_agree_with_the_tokenizers(pipe: Pipeline) -> None:
    for name, encoder in text_encoders(pipe).items():
        tokenizer = pipe.components[name.replace("text_encoder", "tokenizer")]
        config = encoder.config
        assert isinstance(tokenizer, CLIPTokenizer)
        assert config.vocab_size == len(tokenizer) == VOCAB_SIZE
        assert config.bos_token_id == tokenizer.bos_token_id == VOCAB_SIZE - 2
        assert config.eos_token_id == tokenizer.eos_token_id == VOCAB_SIZE - 1
        assert config.pad_token_id == tokenizer.pad_token_id


def test_pooled_output_is_that_of_the_first_end_token(pipe: Pipeline) -> None:
    tokens = pipe.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    first = tokens[0].tolist().index(pipe.tokenizer.eos_token_id)
    assert first < MAX_LENGTH - 1
    with torch.no_grad():
        output = pipe.text_encoder(tokens)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, first])


def test_scale_widens_the_unet_alone(models: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    standins.write_base("sd21", tmp_path, scale=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    wide, narrow = digests(tmp_path), digests(models / "sd21")
    assert {name for name in narrow if wide[name] != narrow[name]} == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.block_out_channels == [64, 64, 96, 96]
    assert sample(pipe).abs().max() < 40


def test_a_fine_tune_has_other_weights_of_the_same_shapes(models: Path) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(
        models / "sdxl-animagine", local_files_only=True
    )
    base = StableDiffusionXLPipeline.from_pretrained(models / "sdxl", local_files_only=True)
    for pipeline in (pipe, base):
        pipeline.scheduler = TCDScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
    assert change(sample(pipe), sample(base)) > 0.1
    assert pipe.unet.config.cross_attention_dim == base.unet.config.cross_attention_dim
    pipe.load_lora_weights(lora_file(models, "tcd", "sdxl"))
    assert change(sample(pipe), sample(base)) > 0.1


# The LoRAs


@pytest.mark.parametrize("name", ["tcd", *STYLES])
def test_lora_loads_whole_and_changes_the_latents(
    models: Path, pipe: Pipeline, family: str, plain_latents: torch.Tensor, name: str
) -> None:
    file = lora_file(models, name, family)
    parts = {"unet": pipe.unet} | text_encoders(pipe)
    pipe.load_lora_weights(file, adapter_name=name)
    try:
        pipe.set_adapters([name], [1.0])
        with_lora = sample(pipe)
        found = sum(adapted_layers(part, name) for part in parts.values())
    finally:
        pipe.unload_lora_weights()
    written = [key for key in keys_in(file) if re.search(r"(lora_down|lora\.down|lora_A)\.", key)]
    written += [key for key in keys_in(file) if ".lora_linear_layer.down." in key]
    assert found == len(written) > 0
    assert 0.05 < change(with_lora, plain_latents) < 2
    assert with_lora.abs().max() < 60
    assert torch.equal(sample(pipe), plain_latents)


def test_ink_changes_the_text_encoders(models: Path, pipe: Pipeline, family: str) -> None:
    tokens = pipe.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    encoders = text_encoders(pipe)
    with torch.no_grad():
        plain = {name: encoder(tokens)[0] for name, encoder in encoders.items()}
    pipe.load_lora_weights(lora_file(models, "ink", family), adapter_name="ink")
    try:
        with torch.no_grad():
            inked = {name: encoder(tokens)[0] for name, encoder in encoders.items()}
    finally:
        pipe.unload_lora_weights()
    assert plain.keys() == inked.keys()
    assert len(plain) == (2 if family == "sdxl" else 1)
    for name in plain:
        assert change(inked[name], plain[name]) > 0.05


def test_papercut_is_scaled_by_its_alpha(models: Path, pipe: Pipeline, family: str) -> None:
    pipe.load_lora_weights(lora_file(models, "papercut", family), adapter_name="papercut")
    try:
        scalings = {
            layer.scaling["papercut"]
            for layer in pipe.unet.modules()
            if "papercut" in getattr(layer, "lora_A", {})
        }
    finally:
        pipe.unload_lora_weights()
    assert scalings == {0.5}


def test_formats(models: Path) -> None:
    kohya = re.compile(r"lora_unet_[a-z0-9_]+\.(lora_down\.weight|lora_up\.weight|alpha)")
    peft = re.compile(r"unet\.[a-z0-9_.]+\.lora_[AB]\.weight")
    diffusers = re.compile(
        r"unet\.[a-z0-9_.]+\.lora\.(down|up)\.weight"
        r"|text_encoder(_2)?\.text_model\.[a-z0-9_.]+\.lora_linear_layer\.(down|up)\.weight"
    )
    expected = {
        ("tcd", "sd15"): kohya,
        ("tcd", "sd21"): peft,
        ("tcd", "sdxl"): peft,
        **{("papercut", family): kohya for family in FAMILIES},
        **{("ink", family): diffusers for family in FAMILIES},
        **{("neon", family): peft for family in FAMILIES},
    }
    for (name, family), pattern in expected.items():
        keys = keys_in(lora_file(models, name, family))
        assert [key for key in keys if not pattern.fullmatch(key)] == []
    sgm = keys_in(lora_file(models, "papercut", "sdxl"))
    assert all(re.match("lora_unet_(input_blocks|middle_block|output_blocks)_", key) for key in sgm)


def test_neon_reaches_every_kind_of_layer(models: Path, family: str) -> None:
    keys = " ".join(keys_in(lora_file(models, "neon", family)))
    for part in (
        "attn1.to_q",
        "attn2.to_out.0",
        "conv1",
        "time_emb_proj",
        "time_embedding.linear_1",
    ):
        assert f"{part}.lora_A" in keys


def test_seeds_give_different_loras_of_one_kind(models: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, file in enumerate(files):
        standins.write_style_lora("neon", "sd15", models / "sd15", file, seed=seed)
    assert len({file.read_bytes() for file in files}) == 3
    assert files[0].read_bytes() == lora_file(models, "neon", "sd15").read_bytes()
    assert keys_in(files[1]) == keys_in(files[0])
