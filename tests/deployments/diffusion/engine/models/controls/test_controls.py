"""Control files as people have them: what is read, and what is refused for what reason."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from PIL import Image
from torch import Tensor

from configs.app import ControlArgs
from configs.families import FAMILIES, FamilyName
from demo.controlnet import GAINS
from demo.init import fill, generator
from deployments.diffusion.engine.models.controls.controls import Controls, read_controls
from deployments.diffusion.engine.models.controls.t2i_adapters import features_of
from deployments.diffusion.engine.models.skeletons import on_meta
from tests.control_models import (
    WEIGHTS,
    original_adapter,
    original_net,
    same,
    save,
    tensors_in,
    write_adapter,
    write_union,
)

MODES = "openpose, depth, hed, pidi, scribble, ted, canny, lineart, anime_lineart, mlsd, normal, "


def unet_of(models: Path, family: FamilyName) -> UNet2DConditionModel:
    """Of a stand-in, without weights."""
    config = UNet2DConditionModel.load_config(models / family, subfolder="unet")
    return on_meta(UNet2DConditionModel, config)


def read(unet: UNet2DConditionModel, **sources: object) -> Controls:
    """Controls by type: a source, or a source and a mode."""
    args = {
        kind: ControlArgs(source=str(source[0]), mode=source[1])
        if isinstance(source, tuple)
        else ControlArgs(source=str(source))
        for kind, source in sources.items()
    }
    return read_controls(args, None, unet, torch.float32)


def refusal(unet: UNet2DConditionModel, source: object) -> str:
    """Why a source is refused as the control `depth`."""
    with pytest.raises(ValueError, match=r"^controls\.depth: ") as caught:
        read(unet, depth=source)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_net_is_the_same_in_a_folder_and_in_a_file_of_either_names(
    family: FamilyName, demo_models: Path, tmp_path: Path
) -> None:
    folder = demo_models / "controlnet" / family / "depth"
    unet, weights, original = unet_of(demo_models, family), tensors_in(folder), original_net(folder)
    config = ControlNetModel.load_config(folder)
    # diffusers, too, finds the folder's weights in the file, but for those that it forgets.
    converted = convert_controlnet_checkpoint(dict(original), config)
    forgotten = {name for name in weights if name.startswith("add_embedding.")}
    assert converted.keys() == weights.keys() - forgotten
    assert all(torch.equal(converted[name], weights[name]) for name in converted)
    inside = {f"control_model.{name}": tensor for name, tensor in original.items()}
    in_checkpoint = inside | {"model.diffusion_model.out.2.weight": torch.zeros(1)}
    files = {
        "diffusers": save(weights, tmp_path / "diffusers.safetensors"),
        "original": save(original, tmp_path / "original.safetensors"),
        "inside": save(inside, tmp_path / "inside.safetensors"),
        "in_checkpoint": save(in_checkpoint, tmp_path / "checkpoint.safetensors"),
    }
    controls = read(unet, folder=folder, **files)
    assert set(controls.kinds.values()) == {"controlnet"}
    truth = said_by(ControlNetModel.from_pretrained(folder), unet)
    for kind, one in controls.nets.items():
        assert same(one.net, weights), kind
        for ours, theirs in zip(said_by(one.net, unet), truth, strict=True):
            assert torch.equal(ours, theirs), kind


def test_a_file_of_shuffled_pictures_is_pooled_by_its_name(
    demo_models: Path, tmp_path: Path
) -> None:
    """As control_v11e_sd15_shuffle_fp16.safetensors: only its configuration ever said so."""
    folder = demo_models / "controlnet" / "sd15" / "depth"
    file = save(original_net(folder), tmp_path / "control_v11e_sd15_Shuffle_fp16.safetensors")
    unet = unet_of(demo_models, "sd15")
    (read_net,) = read(unet, shuffle=file).nets.values()
    truth = ControlNetModel.from_pretrained(folder)
    truth.register_to_config(global_pool_conditions=True)
    for ours, theirs in zip(said_by(read_net.net, unet), said_by(truth, unet), strict=True):
        assert torch.equal(ours, theirs)


def said_by(net: ControlNetModel, unet: UNet2DConditionModel) -> list[Tensor]:
    """What a net says of some latents and a map.

    Its weights are copied first: those of a file lie in memory where the file has them, and the
    last bit of a convolution depends on its operands' alignment.
    """
    copies = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(copies, assign=True)
    source = torch.Generator().manual_seed(0)
    added = None
    if unet.config.addition_embed_type is not None:
        pooled = unet.config.projection_class_embeddings_input_dim
        pooled -= 6 * unet.config.addition_time_embed_dim
        added = {
            "text_embeds": torch.randn(1, pooled, generator=source),
            "time_ids": torch.ones(1, 6),
        }
    with torch.inference_mode():
        down, mid = net.eval()(
            torch.randn(1, 4, 8, 8, generator=source),
            torch.tensor([500]),
            encoder_hidden_states=torch.randn(
                1, 7, unet.config.cross_attention_dim, generator=source
            ),
            controlnet_cond=torch.rand(1, 3, 64, 64, generator=source),
            added_cond_kwargs=added,
            return_dict=False,
        )
    return [*down, mid]


@pytest.mark.parametrize(
    "blocks",
    [
        {"transformer_layers_per_block": [0, 0, 1]},
        {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"},
    ],
    ids=["mid", "small"],
)
def test_nets_smaller_than_their_unet(
    blocks: dict[str, object], demo_models: Path, tmp_path: Path
) -> None:
    """As diffusers/controlnet-canny-sdxl-1.0-mid and -small."""
    unet = unet_of(demo_models, "sdxl")
    config = ControlNetModel.load_config(demo_models / "controlnet" / "sdxl" / "depth") | blocks
    net = ControlNetModel.from_config(config)
    fill(net, generator("smaller"), GAINS)
    net.save_pretrained(tmp_path / "folder")
    file = save(net.state_dict(), tmp_path / "net.safetensors")
    for one in read(unet, folder=tmp_path / "folder", file=file).nets.values():
        for ours, theirs in zip(said_by(one.net, unet), said_by(net, unet), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_of_any_precision(dtype: torch.dtype, demo_models: Path, tmp_path: Path) -> None:
    weights = tensors_in(demo_models / "controlnet" / "sd15" / "depth")
    file = save(weights, tmp_path / "net.safetensors", dtype)
    net = read(unet_of(demo_models, "sd15"), depth=file).nets["depth"].net
    assert same(net, {name: tensor.to(dtype).float() for name, tensor in weights.items()})


def test_a_folder_of_several_parts_and_variants(demo_models: Path, tmp_path: Path) -> None:
    net = ControlNetModel.from_pretrained(demo_models / "controlnet" / "sd15" / "depth")
    unet, weights = unet_of(demo_models, "sd15"), net.state_dict()
    net.save_pretrained(tmp_path / "parts", max_shard_size="300KB")
    net.half().save_pretrained(tmp_path / "parts", variant="fp16")
    # What else xinsir's folder holds.
    save(
        {"task_embedding": torch.zeros(8, 8)},
        tmp_path / "parts" / f"{WEIGHTS[:-12]}_promax.safetensors",
    )
    assert len(list((tmp_path / "parts").glob("*-of-*"))) > 2
    args = {"depth": ControlArgs(source=str(tmp_path / "parts"))}
    for variant, truth in ((None, weights), ("fp16", net.state_dict()), ("bf16", weights)):
        found = read_controls(args, variant, unet, torch.float32).nets["depth"].net
        assert same(found, {name: tensor.float() for name, tensor in truth.items()})


def test_a_union_is_one_net_of_several_modes(demo_models: Path, tmp_path: Path) -> None:
    unet, base = unet_of(demo_models, "sdxl"), demo_models / "sdxl"
    union = write_union(base, tmp_path / "union")
    weights = union.state_dict()
    file = save(weights, tmp_path / "diffusion_pytorch_model_promax.safetensors")
    folder = tmp_path / "union"
    controls = read(unet, depth=file, scribble=file, lines=(file, "anime_lineart"), tile=folder)
    assert set(controls.kinds.values()) == {"controlnet-union"}
    modes = {kind: one.mode for kind, one in controls.nets.items()}
    assert modes == {"depth": 1, "scribble": 2, "lines": 3, "tile": 6}
    nets = {kind: one.net for kind, one in controls.nets.items()}
    assert nets["depth"] is nets["scribble"] is nets["lines"] is not nets["tile"]
    assert list(controls.models.values()) == ["lines", "tile"]
    assert all(same(net, weights) for net in nets.values())


def test_a_mode_that_is_none_is_refused_with_those_that_are(
    demo_models: Path, tmp_path: Path
) -> None:
    unet, base = unet_of(demo_models, "sdxl"), demo_models / "sdxl"
    write_union(base, tmp_path, modes=6)
    for wanted in (tmp_path, (tmp_path, "tile"), (tmp_path, "repaint")):
        with pytest.raises(
            ValueError, match=r"controls\.edges: it is a ControlNet-Union"
        ) as caught:
            read(unet, edges=wanted)
        assert str(caught.value).endswith(f"must be one of {MODES}segment")
    assert "has no mode 'tile'" in str(refusal(unet, (tmp_path, "tile")))
    plain = demo_models / "controlnet" / "sdxl" / "depth"
    assert "mode is of a ControlNet-Union" in refusal(unet, (plain, "depth"))
    # The folder's own configuration may not say how many modes there are.
    described = tmp_path / "config.json"
    told = json.loads(described.read_text())
    del told["num_control_type"]
    described.write_text(json.dumps(told))
    assert read(unet, segment=tmp_path).nets["segment"].mode == 5


@pytest.mark.parametrize(
    ("family", "kind", "channels"),
    [
        ("sd15", "full_adapter", 3),
        ("sd15", "full_adapter", 1),
        ("sd15", "light_adapter", 3),
        ("sd21", "full_adapter", 3),
        ("sdxl", "full_adapter_xl", 3),
        ("sdxl", "full_adapter_xl", 1),
    ],
)
def test_an_adapter_is_the_same_in_a_folder_and_in_a_file_of_either_names(
    family: FamilyName, kind: str, channels: int, demo_models: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(demo_models / family, tmp_path / "folder", kind, channels)
    files = {
        "diffusers": save(adapter.state_dict(), tmp_path / "diffusers.safetensors"),
        "original": save(original_adapter(adapter), tmp_path / "original.safetensors"),
    }
    controls = read(unet_of(demo_models, family), folder=tmp_path / "folder", **files)
    assert set(controls.kinds.values()) == {"t2i-adapter"}
    map_ = torch.rand(1, channels, 64, 96, generator=torch.Generator().manual_seed(0))
    for found in controls.adapters.values():
        assert same(found, adapter.state_dict())
        for ours, theirs in zip(found(map_), adapter(map_), strict=True):
            assert torch.equal(ours, theirs)


def test_what_is_refused_says_what_it_looks_like(demo_models: Path, tmp_path: Path) -> None:
    unet = unet_of(demo_models, "sd15")

    def file(*names: str, shape: tuple[int, ...] = (4, 4)) -> Path:
        return save({name: torch.zeros(shape) for name in names}, tmp_path / "x.safetensors")

    nothing = "x.safetensors is neither a ControlNet nor a T2I-Adapter; "
    cases: list[tuple[Path, str]] = [
        (demo_models / "loras" / "sd15" / "ink.safetensors", "it looks like a LoRA"),
        (demo_models / "sd15-community.safetensors", "it looks like a checkpoint"),
        (demo_models / "sd15" / "unet", "it looks like a UNet"),
        (demo_models / "sd15" / "vae", "it looks like a VAE"),
        (demo_models / "motion-adapter" / "sd15", "it looks like part of AnimateDiff"),
        (demo_models / "ip-adapter" / "models" / "ip-adapter_sd15.safetensors", "an IP-Adapter"),
        (demo_models / "sd15", "sd15 holds 0 safetensors files"),
    ]
    for source, says in cases:
        assert says in refusal(unet, source), source
    made: list[tuple[tuple[str, ...], str]] = [
        (("lora_controlnet", "input_hint_block.0.weight"), "it looks like a Control-LoRA"),
        (("lllite_unet_input_blocks_4_1.down.0.weight",), "it looks like a ControlNet-LLLite"),
        (("down_blocks.0.base_to_ctrl.0.weight",), "it looks like a ControlNet-XS"),
        (("difference", "control_model.zero_convs.0.0.weight"), "between a ControlNet and a UNet"),
        (("controlnet_blocks.0.weight",), "one for other networks"),
        (("body.0.skep.weight", "conv_in.weight"), "a T2I-Adapter of the first version"),
        (("something", "else"), "it holds else, something"),
        (("emb_params",), "it holds emb_params"),
        (("body.0.in_conv.weight", "body.0.body.0.block1.weight"), "maps in 4 channels"),
        (("controlnet_cond_embedding.conv_in.weight", "controlnet_mid_block.weight"), "x.saf"),
    ]
    for names, says in made:
        assert says in refusal(unet, file(*names)), names
    assert nothing in refusal(unet, file("something"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a file")
    assert "broken" in refusal(unet, broken)
    pickle = tmp_path / "model.pth"
    pickle.write_bytes(b"x")
    assert "is a pickle, which can run code" in refusal(unet, pickle)


def test_what_was_made_for_another_model_is_refused(demo_models: Path, tmp_path: Path) -> None:
    nets, unets = demo_models / "controlnet", {f: unet_of(demo_models, f) for f in FAMILIES}
    for family, other in permutations(FAMILIES, 2):
        assert "does not fit this model" in refusal(unets[family], nets / other / "depth")
        file = save(original_net(nets / other / "depth"), tmp_path / "net.safetensors")
        assert "does not fit this model" in refusal(unets[family], file)
    write_union(demo_models / "sdxl", tmp_path / "union")
    assert "it looks like one for sdxl" in refusal(unets["sd15"], tmp_path / "union")
    write_adapter(demo_models / "sdxl", tmp_path / "xl", "full_adapter_xl")
    assert "it looks like one for sdxl" in refusal(unets["sd15"], tmp_path / "xl")
    write_adapter(demo_models / "sd15", tmp_path / "light", "light_adapter")
    assert "it looks like one for sd15" in refusal(unets["sdxl"], tmp_path / "light")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_file_that_is_not_whole_is_refused(
    family: FamilyName, demo_models: Path, tmp_path: Path
) -> None:
    unet = unet_of(demo_models, family)
    weights = original_net(demo_models / "controlnet" / family / "depth")
    for name in ("conv_in", "input_hint_block.14.bias", "zero_convs.1.0.weight", "middle_block"):
        left = {n: tensor for n, tensor in weights.items() if name not in n}
        left = (
            left
            if len(left) < len(weights)
            else {n: t for n, t in weights.items() if "0.0" not in n}
        )
        says = refusal(unet, save(left, tmp_path / "net.safetensors"))
        assert "lacks" in says or "is neither" in says
    more = weights | {"surplus.weight": torch.zeros(1)}
    assert "'surplus.weight'" in refusal(unet, save(more, tmp_path / "net.safetensors"))
    more = weights | {"zero_convs.1.0.weight": torch.zeros(2, 2, 1, 1)}
    assert "is needed" in refusal(unet, save(more, tmp_path / "net.safetensors"))
    nine = torch.cat([weights["input_blocks.0.0.weight"]] * 3, dim=1)[:, :9]
    more = weights | {"input_blocks.0.0.weight": nine}
    assert "latents of 9 channels" in refusal(unet, save(more, tmp_path / "net.safetensors"))
    hint = weights["input_hint_block.0.weight"]
    more = weights | {"input_hint_block.0.weight": torch.cat([hint, hint], dim=1)}
    assert "maps of 6 channels" in refusal(unet, save(more, tmp_path / "net.safetensors"))


def test_what_an_adapter_makes_of_colours_and_of_sides_that_it_cannot_divide(
    demo_models: Path, tmp_path: Path
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (104, 72, 3), np.uint8)
    map_ = torch.from_numpy(picture).permute(2, 0, 1) / 255
    grey = write_adapter(demo_models / "sd15", tmp_path / "grey", "full_adapter", 1)
    luminance = torch.from_numpy(np.array(Image.fromarray(picture).convert("L"))) / 255
    with torch.inference_mode():
        ours, theirs = features_of(grey, map_), grey(luminance[None, None])
    for one, other in zip(ours, theirs, strict=True):  # Pillow rounds to levels of 255
        assert (one - other[0]).abs().max() < 0.02 * other.abs().max()

    # The UNet's sides are those of the latents, 13 x 9, halved and rounded up.
    xl = write_adapter(demo_models / "sdxl", tmp_path / "xl", "full_adapter_xl")
    with torch.inference_mode():
        levels = features_of(xl, map_)
    assert [tuple(level.shape[1:]) for level in levels] == [(7, 5), (7, 5), (4, 3), (4, 3)]
    continued = np.pad(picture, ((0, 8), (0, 8), (0, 0)), mode="edge")
    with torch.inference_mode():
        theirs = xl(torch.from_numpy(continued).permute(2, 0, 1)[None] / 255)
    for one, other in zip(levels, theirs, strict=True):
        torch.testing.assert_close(one, other[0])
