"""Layer names of kohya files, as published SDXL LoRAs have them."""

import pytest

from demo.kohya import kohya_layer


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("conv_in", "input_blocks_0_0"),
        ("time_embedding.linear_2", "time_embed_2"),
        ("down_blocks.1.resnets.1.conv2", "input_blocks_5_0_out_layers_3"),
        ("down_blocks.1.attentions.0.proj_in", "input_blocks_4_1_proj_in"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block_2_emb_layers_1"),
        ("mid_block.attentions.0.proj_out", "middle_block_1_proj_out"),
        ("up_blocks.1.resnets.2.conv_shortcut", "output_blocks_5_0_skip_connection"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
    ],
)
def test_kohya_names_of_the_real_sdxl(layer: str, expected: str) -> None:
    assert kohya_layer(layer, family="sdxl", layers_per_block=2) == f"lora_unet_{expected}"


def test_kohya_names_of_the_older_families() -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    expected = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert kohya_layer(layer, family="sd15", layers_per_block=2) == expected
