"""Files that are no checkpoint of the family: each is refused with what it is, by its header."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from configs.app import ModelArgs, VaeArgs
from configs.families import FAMILIES
from configs.sources import SourceError, fetch
from deployments.diffusion.engine.models.checkpoints.checkpoint import read_checkpoint
from deployments.diffusion.engine.models.checkpoints.fitness import check_vae
from deployments.diffusion.engine.models.checkpoints.header import WrongFile, read_header
from deployments.diffusion.engine.models.checkpoints.identity import identify
from graphs.check.config import problems
from tcd.__main__ import main

Shapes = dict[str, tuple[int, ...]]
CPU = torch.device("cpu")
UNET, CLIP, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "decoder."


def unet(channels: int = 320, inputs: int = 4, prompts: int = 768, blocks: int = 16) -> Shapes:
    """What tells a UNet: its first layer, and a block of attention for each of its own."""
    linear = prompts != 768
    shapes: Shapes = {
        f"{UNET}input_blocks.0.0.weight": (channels, inputs, 3, 3),
        f"{UNET}input_blocks.1.1.proj_in.weight": (8, 8) if linear else (8, 8, 1, 1),
    }
    for n in range(blocks):
        shapes[f"{UNET}b.{n}.1.transformer_blocks.0.attn2.to_k.weight"] = (8, prompts)
    return shapes


CLIP_L: Shapes = {f"{CLIP}final_layer_norm.weight": (768,)}
SD_VAE: Shapes = {
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "first_stage_model.encoder.down.0.block.0.norm1.weight": (128,),
}
SD15 = unet() | CLIP_L | SD_VAE
SD21 = unet(prompts=1024) | {"cond_stage_model.model.ln_final.weight": (1024,)} | SD_VAE
LABELS: Shapes = {f"{UNET}label_emb.0.0.weight": (1280, 2816)}
SDXL = (
    unet(prompts=2048, blocks=70)
    | LABELS
    | {
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
    }
    | SD_VAE
)


def without(shapes: Shapes, prefix: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}


def written(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float16,
    metadata: dict[str, str] | None = None,
) -> Path:
    file = folder / "odd.safetensors"
    save_file({n: torch.empty(s, dtype=dtype) for n, s in shapes.items()}, file, metadata=metadata)
    return file


WRONG: dict[str, tuple[Shapes, str]] = {
    "sdxl": (SDXL, "is a checkpoint of sdxl, and family is sd15: set family: sdxl"),
    "sd21": (SD21, "is a checkpoint of sd21, and family is sd15: set family: sd21"),
    "refiner": (unet(384, prompts=1280) | LABELS, "is of the refiner of SDXL; sd15, sd21, sdxl"),
    "unclip": (unet(prompts=1024) | LABELS, "is of an unCLIP of Stable Diffusion 2"),
    "x4 upscaler": (
        unet(256, 7, 1024) | {f"{UNET}label_emb.weight": (1000, 8)},
        "is of the x4 upscaler",
    ),
    "lcm": (
        SD15 | {f"{UNET}time_embed.cond_proj.weight": (320, 256)},
        "is of a latent consistency model, whose UNet is told the guidance",
    ),
    "no kernel": (
        SD15 | {f"{UNET}input_blocks.0.0.weight": (320,)},
        "is of a UNet without prompts",
    ),
    "no first layer": (
        {f"{UNET}input_blocks.0.0.bias": (320,)} | CLIP_L,
        "is of a UNet without prompts",
    ),
    "ssd-1b": (
        unet(prompts=2048, blocks=28) | LABELS,
        "is of a UNet like sdxl's with other blocks (SSD-1B",
    ),
    "bk-sdm": (unet(blocks=9) | CLIP_L, "is of a UNet like sd15's with other blocks"),
    "sd3": (
        {f"{UNET}joint_blocks.0.context_block.attn.qkv.weight": (8, 8)} | SD_VAE,
        "is of Stable Diffusion 3; sd15",
    ),
    "flux": ({f"{UNET}double_blocks.0.img_attn.qkv.weight": (8, 8)}, "is of Flux or one of its"),
    "flux alone": ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "is of Flux or one of its kin"),
    "cascade": ({"down_blocks.1.0.channelwise.0.weight": (8, 8)}, "is of Stable Cascade"),
    "pixart": ({"transformer_blocks.0.scale_shift_table": (6, 8)}, "is of a diffusion transformer"),
    "edm": (SD15 | {"edm_mean": (4,), "edm_std": (4,)}, "was trained by EDM; TCD's steps need the"),
    "cosxl": (SD15 | {"edm_vpred.sigma_max": (1,)}, "was trained by EDM"),
    "pix2pix": (
        unet(inputs=8) | CLIP_L,
        "UNet has 8 input channels: a picture beside the latents (InstructPix2Pix); 4 and 9",
    ),
    "depth": (unet(inputs=5) | CLIP_L, "5 input channels: a depth map beside the latents"),
    "unet alone": (unet(), "is a UNet alone, no checkpoint: it has no text encoders. Give the"),
    "bare unet": (
        {name.removeprefix(UNET): shape for name, shape in unet().items()},
        "is a UNet alone, no checkpoint",
    ),
    "unet and vae": (unet() | SD_VAE, "has no text_encoder: give the whole checkpoint"),
    "diffusers unet": (
        {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
        "is a UNet in diffusers' names, part of a folder, no checkpoint",
    ),
    "ema": ({"model_ema.diffusion_modelinput_blocks00weight": (8,)}, "is EMA weights alone, no"),
    "lora": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)},
        "is an adapter, no checkpoint; adapters stand in `loras` or in `tcd_lora`",
    ),
    "lora by checkpoints' names": (
        {f"{UNET}input_blocks.0.0.lora_A.weight": (4, 8)},
        "is an adapter, no checkpoint",
    ),
    "norms": ({f"{CLIP}encoder.layers.0.layer_norm1.w_norm": (8,)}, "is an adapter, no"),
    "vae": (
        {"decoder.conv_in.weight": (8, 4, 3, 3), "decoder.up.0.block.0.norm1.weight": (8,)},
        "is a VAE, no checkpoint; another VAE than the checkpoint's stands in `vae.source`",
    ),
    "controlnet": (
        {"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)},
        "is a ControlNet, no checkpoint; it stands in `controls`",
    ),
    "diffusers controlnet": (
        {
            "controlnet_cond_embedding.conv_in.weight": (8, 3, 3, 3),
            "down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3),
        },
        "is a ControlNet, no checkpoint",
    ),
    "faceid": (
        {"image_proj.proj.0.weight": (8, 8), "ip_adapter.0.to_q_lora.down.weight": (8, 8)},
        "is an IP-Adapter, no checkpoint",
    ),
    "lllite": (
        {"lllite_unet_input_blocks_4_1.down.0.weight": (8, 8)},
        "is a ControlNet-LLLite, no checkpoint; it is not read",
    ),
    "control-lora": (
        {"lora_controlnet": (0,), "input_hint_block.0.weight": (8, 8, 3, 3)},
        "is a Control-LoRA, no checkpoint; it is not read",
    ),
    "ip-adapter": (
        {"image_proj.proj.weight": (8, 8)},
        "is an IP-Adapter, no checkpoint; it stands",
    ),
    "motion": (
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (8,)},
        "is a motion adapter, no checkpoint; it stands in `motion_adapter`",
    ),
    "embedding": (
        {"emb_params": (2, 768)},
        "is a textual inversion, no checkpoint; it stands in `em",
    ),
    "tiny autoencoder": ({"decoder.layers.0.weight": (8, 4, 3, 3)}, "is a tiny autoencoder, no"),
    "text encoder": (
        {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)},
        "is a text encoder alone, no checkpoint",
    ),
    "image encoder": (
        {"vision_model.encoder.layers.0.mlp.fc1.weight": (8, 8)},
        "is an image encoder, no checkpoint",
    ),
    "upscaler": ({"conv_first.weight": (8, 3, 3, 3)}, "is an upscaler, no checkpoint"),
    "nothing": ({"x": (1,)}, "is nothing that is known, no checkpoint"),
    "scaled fp8": (SD15 | {"scaled_fp8": (0,)}, "is quantised, with scales beside its numbers"),
    "nf4": (SD15 | {f"{UNET}input_blocks.1.1.proj_in.weight.absmax": (1,)}, "is quantised, with"),
    "no vae": (
        without(SD15, "first_stage_model."),
        "has no VAE: name one in vae.source (stable-diffusion-v1-5/stable-diffusion-v1-5/vae is",
    ),
    "zero snr": (SD15 | {"ztsnr": (0,)}, "set prediction_type: v_prediction, or rescale_betas_ze"),
}


def args_of(checkpoint: Path | str, folder: Path, **more: object) -> ModelArgs:
    given = {"config": str(folder), "dtype": "float32", "device": "cpu", "tcd_lora": None} | more
    return ModelArgs.model_validate(
        {"name": "odd", "family": "sd15", "checkpoint": str(checkpoint), **given}
    )


def checked(args: ModelArgs) -> list[str]:
    """What `make check-config` says."""
    application = {
        "name": "model-odd",
        "route_prefix": None,
        "import_path": "graphs.model:build",
        "args": args.model_dump(exclude_unset=True),
    }
    return list(problems({"applications": [application]}))


def refused(args: ModelArgs) -> str:
    """What the start of a model says; `make check-config` says the same."""
    with pytest.raises(WrongFile) as caught:
        read_checkpoint(args, FAMILIES[args.family], torch.float32, CPU)
    found = checked(args)
    assert [line for line in found if str(caught.value) in line], found
    return str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_by_its_header(
    name: str, demo_models: Path, tmp_path: Path
) -> None:
    shapes, says = WRONG[name]
    file = written(tmp_path, shapes)
    assert says in refused(args_of(file, demo_models / "sd15"))


@pytest.mark.parametrize(
    ("dtype", "metadata", "says"),
    [
        (torch.int8, None, "holds numbers of type I8, which are not read"),
        (torch.float16, {"modelspec.predict_key": "rf"}, "was trained by flow matching"),
    ],
)
def test_numbers_and_words_that_are_not_read(
    dtype: torch.dtype,
    metadata: dict[str, str] | None,
    says: str,
    demo_models: Path,
    tmp_path: Path,
) -> None:
    file = written(tmp_path, SD15, dtype, metadata)
    assert says in refused(args_of(file, demo_models / "sd15"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.safetensors", b"", "is not a readable safetensors file"),
        ("x.safetensors", b"<html>404</html>" * 9, "is not a readable safetensors file"),
        ("x.safetensors", pickle.dumps({}), "is not a readable safetensors file"),
        ("x.ckpt", b"x", "x.ckpt is a pickle, which can run code when it is opened: none ever is"),
        ("x.pth", b"x", "is a pickle"),
        ("x.gguf", b"x", "x.gguf is not a safetensors file; no other format is read"),
    ],
)
def test_no_safetensors_file(
    name: str, content: bytes, says: str, demo_models: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in refused(args_of(tmp_path / name, demo_models / "sd15"))


@pytest.mark.parametrize("source", ["owner/name/model.ckpt", "s3://bucket/model.bin"])
def test_a_pickle_is_not_even_brought(source: str) -> None:
    with pytest.raises(SourceError, match=r"is a pickle.*Convert it to safetensors first"):
        fetch(source)


def scheduler(**said: object) -> Callable[[Path], object]:
    """A scheduler's configuration with other values; `None` leaves out."""

    def change(folder: Path) -> None:
        file = folder / "scheduler" / "scheduler_config.json"
        config = json.loads(file.read_text()) | said
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


def config(**said: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "unet" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | said))

    return change


def only_pickles(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )


def only_halves(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))


def a_file_in_a_folder(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "model.safetensors").touch()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (scheduler(_class_name="EDMEulerScheduler"), "EDMEulerScheduler: it was trained by EDM"),
        (
            scheduler(_class_name="FlowMatchEulerDiscreteScheduler"),
            "its scheduler is FlowMatchEulerDiscreteScheduler: it was trained by flow matching",
        ),
        (scheduler(use_flow_sigmas=True), "it was trained by flow matching"),
        (scheduler(timestep_type="continuous"), "it was trained by EDM"),
        (
            scheduler(beta_schedule=None, beta_start=None, beta_end=None, trained_betas=None),
            "it was trained by something else",
        ),
        (scheduler(prediction_type="flow_prediction"), "its prediction_type is 'flow_prediction'"),
        (config(_class_name="FluxTransformer2DModel"), "which has no UNet of sd15, sd21, sdxl"),
        (config(use_linear_projection=True), "is a checkpoint of sd21, and family is sd15"),
        (config(addition_embed_type="text_time"), "is a checkpoint of sdxl, and family is sd15"),
        (
            config(addition_embed_type="text_time", cross_attention_dim=1280),
            "is of the refiner of SDXL",
        ),
        (config(time_cond_proj_dim=256), "is of a latent consistency model"),
        (config(num_class_embeds=1000), "is of a network with classes"),
        (config(in_channels=8), "UNet has 8 input channels"),
        (only_halves, "odd has no safetensors in unet but those of variant fp16: set variant: f"),
        (only_pickles, "has no safetensors in unet: diffusion_pytorch_model.bin is a pickle"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "has no text_encoder"),
        (lambda f: shutil.rmtree(f / "vae"), "has no vae"),
        (lambda f: shutil.rmtree(f / "unet"), "which has no UNet of"),
        (lambda f: shutil.rmtree(f / "scheduler"), "has no scheduler/scheduler_config.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is no JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "holds no mapping"),
        (a_file_in_a_folder, "no model_index.json; for a single file name it: model.safetensors"),
    ],
)
def test_a_wrong_folder(
    change: Callable[[Path], object], says: str, demo_models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo_models / "sd15", tmp_path / "odd")
    change(folder)
    assert says in refused(args_of(folder, folder))


@pytest.mark.parametrize(
    ("key", "shapes", "says"),
    [
        (
            "controls.canny",
            {"lllite_unet.up.0.weight": (8, 8)},
            "is a ControlNet-LLLite, not a ControlNet or a T2I-Adapter; it is not read",
        ),
        ("ip_adapter.adapter", {"emb_params": (2, 768)}, "is a textual inversion, not an IP-Adap"),
        ("ip_adapters.one.adapter", {"x": (1,)}, "is nothing that is known, not an IP-Adapter"),
        ("motion_adapter", {"image_proj.x": (8,)}, "not a motion adapter; it stands in `ip_adap"),
        ("controls.canny", {"control_model.x": (8,)}, None),
        ("controls.canny", {"adapter.body.0.resnets.0.block1.weight": (8,)}, None),
    ],
)
def test_a_config_is_told_of_wrong_files_beside_a_checkpoint(
    key: str, shapes: Shapes, says: str | None, demo_models: Path, tmp_path: Path
) -> None:
    given: object = str(written(tmp_path, shapes))
    for name in reversed(key.split(".")):
        given = {name: given}
        if name == "adapter":
            given["image_encoder"] = "vit"
    assert isinstance(given, dict)
    args = args_of(demo_models / "sd15", demo_models / "sd15", **given)
    found = [line for line in checked(args) if f".args.{key}: " in line]
    assert (len(found) == 1 and says in found[0]) if says else found == []


def test_a_part_of_a_folder(demo_models: Path) -> None:
    folder = demo_models / "sd15" / "unet"
    assert "it is a UNet2DConditionModel alone" in refused(args_of(folder, folder))
    odd = args_of(demo_models / "sd15", demo_models, variant="fp16")
    assert "sd15 has no safetensors of variant fp16 in unet" in refused(odd)


def test_a_configuration_of_another_family(demo_models: Path, tmp_path: Path) -> None:
    file = written(tmp_path, SD15)
    says = "sdxl is a checkpoint of sdxl, and family is sd15"
    assert says in refused(args_of(file, demo_models / "sdxl"))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (WRONG["lora"][0], "is an adapter, no VAE"),
        (WRONG["tiny autoencoder"][0], "is a tiny autoencoder, no VAE"),
        (unet() | CLIP_L, "is a checkpoint, no VAE"),
        (
            {"decoder.conv_in.weight": (8, 16, 3, 3), "decoder.up.0.block.0.norm1.weight": (8,)},
            "is a VAE of 16 latent channels, as Stable Diffusion 3 and Flux have",
        ),
    ],
)
def test_a_wrong_vae(shapes: Shapes, says: str, demo_models: Path, tmp_path: Path) -> None:
    file = written(tmp_path, shapes)
    with pytest.raises(WrongFile, match=says):
        check_vae(identify(read_header(file)))
    args = args_of(demo_models / "sd15", demo_models, vae=VaeArgs(source=str(file)).model_dump())
    with pytest.raises(WrongFile, match=rf"vae odd\.safetensors: .*{says}"):
        read_checkpoint(args, FAMILIES["sd15"], torch.float32, CPU)


@pytest.mark.parametrize(
    ("shapes", "says", "code"),
    [
        (
            SDXL | {"v_pred": (0,), "ztsnr": (0,)},
            "a checkpoint of sdxl; says v_prediction; zero terminal SNR; BF16; 9.1 MiB",
            0,
        ),
        (unet(inputs=9) | CLIP_L, "a checkpoint of sd15; for inpainting; BF16; ", 0),
        (unet() | CLIP_L, "; without VAE", 0),
        (SD15 | {"edm_mean": (4,)}, "a checkpoint of sd15; trained by EDM; ", 1),
        (WRONG["vae"][0], "a VAE; BF16; ", 0),
        (WRONG["sd3"][0], "a checkpoint of Stable Diffusion 3; ", 1),
        (SD15 | {"model_ema.decay": (1,)}, "; with VAE; EMA weights, which are not read", 0),
    ],
)
def test_tcd_check_tells_what_it_is(
    shapes: Shapes, says: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, shapes, torch.bfloat16)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(file)])
    first, *verdicts = capsys.readouterr().out.splitlines()
    assert ended.value.code == code
    assert says in first
    assert len(verdicts) == 3
    assert any(line.endswith(": loads") for line in verdicts) == (code == 0)
    with pytest.raises(SystemExit):
        main(["check", "--json", str(file)])
    assert json.loads(capsys.readouterr().out)["kind"] in ("a checkpoint", "a VAE")


def test_headers_are_read_without_torch() -> None:
    code = "import sys; import deployments.diffusion.engine.models.checkpoints.fitness; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
