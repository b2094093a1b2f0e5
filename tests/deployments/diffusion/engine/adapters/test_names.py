"""Every spelling leads to its layer. The second sources are `demo.sgm`, which writes the original
UNet's names by a code of its own, and diffusers' converter."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import nn

from configs.families import FamilyName
from demo.sgm import sgm_layer
from deployments.diffusion.engine.adapters.names import Names, Place, Role, adaptable, split
from deployments.diffusion.engine.models.skeletons import skeletons
from tests.deployments.diffusion.engine.adapters.skeletons import (
    demo_skeletons,
)

KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
QUERY, FC1 = "encoder.layers.1.self_attn.q_proj", "encoder.layers.1.mlp.fc1"
TEXT_OUT = "encoder.layers.1.self_attn.out_proj"


@pytest.fixture(scope="module")
def sd15() -> Names:
    return Names(skeletons("sd15").adaptable)


@pytest.fixture(scope="module")
def sdxl() -> Names:
    return Names(skeletons("sdxl").adaptable)


@pytest.fixture(scope="module")
def animated(demo_models: Path) -> Names:
    """The demo's sd15, with motion modules."""
    return Names(demo_skeletons(demo_models, "sd15"))


BOTH_FAMILIES = [
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight", KEY),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.lora_down.weight", KEY),
    ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight", KEY),
    ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_k.lora_down.weight", KEY),
    (f"unet.{KEY}.lora_A.weight", KEY),
    (f"unet.{KEY}.lora_A.default.weight", KEY),
    (f"unet.{KEY}.lora_A.my_style-2.weight", KEY),
    (f"unet.{KEY}.lora.down.weight", KEY),
    (f"unet.{KEY}.lora_down.weight", KEY),
    (f"{KEY}.lora_A.weight", KEY),
    (f"base_model.model.{KEY}.lora_A.weight", KEY),
    (f"base_model.model.unet.{KEY}.lora_A.weight", KEY),
    (f"unet.base_model.model.{KEY}.lora_A.weight", KEY),
    (f"unet.{KEY.replace('.to_', '.processor.to_')}_lora.down.weight", KEY),
    (f"{KEY.replace('.to_', '.processor.to_')}_lora.down.weight", KEY),
    (f"unet.{OUT.replace('.to_out.0', '.processor.to_out')}_lora.down.weight", OUT),
    (f"unet.{OUT.replace('.to_out.0', '.to_out')}_lora.down.weight", OUT),
    (f"unet.{OUT}.lora_A.weight", OUT),
    (f"unet.{OUT}.lora.down.weight", OUT),
]


@pytest.mark.parametrize(("tensor", "layer"), BOTH_FAMILIES)
def test_a_layer_of_the_unet(tensor: str, layer: str, sd15: Names, sdxl: Names) -> None:
    for names in (sd15, sdxl):
        assert names.find(tensor) == (Place("unet", layer), Role.DOWN)


ENCODERS = [
    (f"text_encoder.text_model.{QUERY}.lora_linear_layer.down.weight", QUERY),
    (f"text_encoder.{QUERY}.lora_linear_layer.down.weight", QUERY),
    ("text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.down.weight", QUERY),
    ("text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.down.weight", TEXT_OUT),
    (f"text_encoder.text_model.{TEXT_OUT}.lora_A.weight", TEXT_OUT),
    (f"text_encoder.text_model.{FC1}.lora_A.weight", FC1),
    (f"text_encoder.{FC1}.lora_A.weight", FC1),
    (f"text_encoder.base_model.model.text_model.{FC1}.lora_A.weight", FC1),
    ("lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight", QUERY),
    ("lora_te1_text_model_encoder_layers_1_mlp_fc1.lora_down.weight", FC1),
    (f"text_encoders.clip_l.transformer.text_model.{FC1}.lora_down.weight", FC1),
    (f"text_encoders.clip_h.transformer.text_model.{FC1}.lora_down.weight", FC1),
]


@pytest.mark.parametrize(("tensor", "layer"), ENCODERS)
def test_a_layer_of_the_first_text_encoder(
    tensor: str, layer: str, sd15: Names, sdxl: Names
) -> None:
    for names in (sd15, sdxl):
        assert names.find(tensor) == (Place("text_encoder", layer), Role.DOWN)


@pytest.mark.parametrize(("tensor", "layer"), ENCODERS)
def test_a_layer_of_the_second_text_encoder(tensor: str, layer: str, sdxl: Names) -> None:
    second = (
        tensor.replace("text_encoder.", "text_encoder_2.")
        .replace("lora_te_", "lora_te2_")
        .replace("lora_te1_", "lora_te2_")
        .replace("clip_l", "clip_g")
        .replace("clip_h", "clip_g")
    )
    found = sdxl.find(second)
    assert found == (Place("text_encoder_2", f"text_model.{layer}"), Role.DOWN)


@pytest.mark.parametrize(
    "name",
    ["text_encoder_2.text_projection.lora.down", "lora_te2_text_projection.lora_down"],
)
def test_the_projection_of_the_second_text_encoder(name: str, sdxl: Names) -> None:
    found = sdxl.find(f"{name}.weight")
    assert found == (Place("text_encoder_2", "text_projection"), Role.DOWN)


def test_a_bare_name_of_an_encoder_is_clear_only_where_there_is_one(
    sd15: Names, sdxl: Names
) -> None:
    bare = f"base_model.model.text_model.{FC1}.lora_A.weight"
    assert sd15.find(bare) == (Place("text_encoder", FC1), Role.DOWN)
    assert sdxl.find(bare) is None


@pytest.mark.parametrize(
    ("tensor", "role"),
    [
        ("lora_unet_conv_in.lora_up.weight", Role.UP),
        ("lora_unet_conv_in.alpha", Role.ALPHA),
        ("unet.conv_in.lora_B.weight", Role.UP),
        ("unet.conv_in.lora_B.default.weight", Role.UP),
        ("unet.conv_in.lora.up.weight", Role.UP),
        ("unet.conv_in.alpha", Role.ALPHA),
    ],
)
def test_roles(tensor: str, role: Role, sd15: Names) -> None:
    assert sd15.find(tensor) == (Place("unet", "conv_in"), role)


MOTION = "down_blocks.0.motion_modules.0.transformer_blocks.0"


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        (f"unet.{MOTION}.attn1.processor.to_q_lora.down.weight", f"{MOTION}.attn1.to_q"),
        (f"unet.{MOTION}.attn2.processor.to_out_lora.down.weight", f"{MOTION}.attn2.to_out.0"),
        (f"unet.{MOTION}.attn1.to_q.lora_A.weight", f"{MOTION}.attn1.to_q"),
        (
            "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
            "attention_blocks.1.processor.to_out_lora.down.weight",
            f"{MOTION}.attn2.to_out.0",
        ),
        # AnimateDiff's domain adapter.
        (f"{KEY.replace('.to_', '.processor.to_')}_lora.down.weight", KEY),
        (f"lora_unet_{KEY.replace('.', '_')}.lora_down.weight", KEY),
    ],
)
def test_the_unet_with_motion_is_asked_for(tensor: str, layer: str, animated: Names) -> None:
    assert animated.find(tensor, "motion_unet") == (Place("motion_unet", layer), Role.DOWN)
    plain = None if ".motion_modules." in layer else (Place("unet", layer), Role.DOWN)
    assert animated.find(tensor) == plain


@pytest.mark.parametrize(
    "tensor",
    [
        "unet.conv_in.weight",
        "unet.conv_in.oft_blocks",
        "unet.conv_in.lora_A.bias",
        "unet.conv_in.hada_w3_a",
        "unet.conv_in.lokr_w1.weight.more",
        "unet.conv_in.set_weight",
        "down.weight",
        "weight",
        "alpha",
        "",
    ],
)
def test_what_is_no_part_of_an_adapter(tensor: str, sd15: Names) -> None:
    assert sd15.find(tensor) is None
    assert split(tensor) is None or tensor == "alpha"


ROLES = {
    "lora_mid.weight": Role.MID,
    "lora_B.bias": Role.UP_BIAS,
    "lora_up.bias": Role.UP_BIAS,
    "lora_magnitude_vector": Role.MAGNITUDE,
    "lora_magnitude_vector.weight": Role.MAGNITUDE,
    "lora_magnitude_vector.default.weight": Role.MAGNITUDE,
    "lora_A.default.weight": Role.DOWN,
    "dora_scale": Role.DORA_SCALE,
    "hada_w1_a": Role.HADA_1A,
    "hada_w1_a.default": Role.HADA_1A,
    "hada_t2": Role.HADA_2T,
    "lokr_w1": Role.KRON_1,
    "lokr_w2_b": Role.KRON_2B,
    "lokr_t2.default": Role.KRON_2T,
    "diff": Role.WEIGHT,
    "diff_b": Role.BIAS,
    "alpha": Role.ALPHA,
}


@pytest.mark.parametrize("mark", ROLES)
def test_the_marks_of_each_role(mark: str, sd15: Names) -> None:
    for layer in ("unet.conv_in", "lora_unet_conv_in", "base_model.model.conv_in"):
        assert sd15.find(f"{layer}.{mark}") == (Place("unet", "conv_in"), ROLES[mark])


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("lora_unet_conv_norm_out.w_norm", "conv_norm_out"),
        ("diffusion_model.out.0.diff", "conv_norm_out"),
        ("lora_unet_output_blocks_0_0_in_layers_0.w_norm", "up_blocks.0.resnets.0.norm1"),
        ("lycoris_mid_block_attentions_0_norm.w_norm", "mid_block.attentions.0.norm"),
        ("unet.middle_block.1.norm.w_norm", "mid_block.attentions.0.norm"),
        ("model.diffusion_model.middle_block.0.out_layers.0.diff", "mid_block.resnets.0.norm2"),
    ],
)
def test_normalisations(tensor: str, layer: str, sd15: Names) -> None:
    assert sd15.find(tensor) == (Place("unet", layer), Role.WEIGHT)


def test_other_layers_are_not_adaptable(demo_models: Path, sd15: Names) -> None:
    assert sd15.find("text_encoder.text_model.embeddings.token_embedding.lora_A.weight") is None
    unet = demo_skeletons(demo_models, "sd15")["unet"]
    attention = unet.get_submodule(KEY.removesuffix(".to_k"))
    attention.processor = nn.ModuleDict({"to_k_ip": nn.Linear(2, 2)})  # as an IP-Adapter does it
    assert not any("_ip" in layer for layer, _ in adaptable(unet))


# Full size, counted by hand.
#
# A block of a transformer holds ten linear layers: four in each of two attentions, two between.
# SDXL: 70 of them (2 x 2 and 2 x 10 on the way down, 10 in the middle, 3 x 10 and 3 x 2 on the
# way up) in 11 transformers with one layer before and one behind: 722. SD 1.5: 16 of one each.
# A ResNet block holds two convolutions and a time projection, and a shortcut where the number of
# channels changes: SDXL 17 with 11 shortcuts, SD 1.5 22 with 14. SDXL has two samplers each way,
# SD 1.5 three. Then the first and the last convolution, two layers of the time embedding, and
# SDXL's two for sizes and pooled text.
SDXL_ATTENTION = 70 * 10 + 11 * 2
SDXL_UNET = SDXL_ATTENTION + 17 * 3 + 11 + 2 * 2 + 2 + 2 + 2
SD15_ATTENTION = 16 * (10 + 2)
SD15_UNET = SD15_ATTENTION + 22 * 3 + 14 + 3 * 2 + 2 + 2
# A layer of CLIP: four in the attention, two behind.
CLIP_L, OPENCLIP_G = 12 * 6, 32 * 6 + 1
PLAIN_UP_BLOCKS = {"sd15": (0,), "sdxl": (2,)}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("sd15", {"unet": SD15_UNET, "text_encoder": CLIP_L}),
        (
            "sdxl",
            {"unet": SDXL_UNET, "text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_G},
        ),
    ],
)
def test_full_size(family: FamilyName, expected: dict[str, int]) -> None:
    models = skeletons(family).adaptable
    names = Names(models)
    for model, count in expected.items():
        layers = [layer for layer, _ in adaptable(models[model])]
        assert len(layers) == count
        for layer in layers:
            assert names.find(f"{model}.{layer}.lora_A.weight") == (Place(model, layer), Role.DOWN)
    unet = [layer for layer, _ in adaptable(models["unet"])]
    attention = SDXL_ATTENTION if family == "sdxl" else SD15_ATTENTION
    assert sum(".attentions." in layer for layer in unet) == attention
    for layer in unet:
        original = sgm_layer(layer, 2, PLAIN_UP_BLOCKS[family])
        for tensor in (
            f"lora_unet_{layer.replace('.', '_')}.alpha",
            f"lora_unet_{original.replace('.', '_')}.alpha",
            f"diffusion_model.{original}.alpha",
        ):
            assert names.find(tensor) == (Place("unet", layer), Role.ALPHA), tensor


def sd_scripts_sdxl() -> Iterator[str]:
    """What sd-scripts calls the transformers' layers of SDXL, whose levels are written out."""
    blocks = {"middle_block_1": 10}
    blocks |= {f"input_blocks_{i}_1": 2 if i < 6 else 10 for i in (4, 5, 7, 8)}
    blocks |= {f"output_blocks_{i}_1": 10 if i < 3 else 2 for i in range(6)}
    inner = [f"attn{a}_to_{x}" for a in (1, 2) for x in ("q", "k", "v", "out_0")]
    inner += ["ff_net_0_proj", "ff_net_2"]
    for block, depth in blocks.items():
        yield f"lora_unet_{block}_proj_in"
        yield f"lora_unet_{block}_proj_out"
        for index in range(depth):
            for name in inner:
                yield f"lora_unet_{block}_transformer_blocks_{index}_{name}"


def test_kohyas_names_of_sdxl_are_all_found_and_all_different(sdxl: Names) -> None:
    found = [sdxl.find(f"{name}.alpha") for name in sd_scripts_sdxl()]
    assert None not in found
    assert len(set(found)) == SDXL_ATTENTION


def test_diffusers_converter_finds_the_same_layers(sdxl: Names) -> None:
    tensors = [
        f"{name}.lora_{half}.weight" for name in sd_scripts_sdxl() for half in ("down", "up")
    ]
    unet = skeletons("sdxl").unet
    converted, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        {name: torch.zeros(1) for name in tensors}, unet_config=unet.config
    )
    peft = convert_unet_state_dict_to_peft(
        {name.removeprefix("unet."): tensor for name, tensor in converted.items()}
    )
    theirs = {name.removesuffix(".weight").rpartition(".")[0] for name in peft}
    found = [sdxl.find(name) for name in tensors]
    assert {place.module for place, _ in filter(None, found)} == theirs


@pytest.mark.parametrize(("family", "plain"), [("sd15", (0,)), ("sd21", (0,)), ("sdxl", (2,))])
def test_the_original_names_follow_the_models_own_blocks(
    family: FamilyName, plain: tuple[int, ...], demo_models: Path
) -> None:
    """The demo has one layer a block, where the published bases have two."""
    unet = demo_skeletons(demo_models, family)["unet"]
    names = Names({"unet": unet})
    for layer, _ in adaptable(unet):
        original = sgm_layer(layer, 1, plain).replace(".", "_")
        found = names.find(f"lora_unet_{original}.lora_up.weight")
        assert found == (Place("unet", layer), Role.UP)
