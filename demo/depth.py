"""Writes a small random depth estimator of the architecture of Intel/dpt-hybrid-midas."""

from pathlib import Path

import torch
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation

from demo.init import fill, generator
from demo.tokenizer import write_json

IMAGE_SIZE = 192  # 384 in the real one
WIDTHS = (16, 32, 48)  # of the convolutional stages
HIDDEN_SIZE = 48
FUSION_SIZE = 16
GAINS = {
    "position_embeddings": 0.2,
    "convolution2": 0.7,
}
PREPROCESSOR = {
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "ensure_multiple_of": 1,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "DPTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "keep_aspect_ratio": False,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "size_divisor": None,
}


def write_depth_estimator(folder: Path) -> None:
    """Write the estimator: weights, configuration, and that of the preprocessor."""
    config = depth_config()
    # The constructor draws weights, which are then overwritten: leave the caller's state alone.
    with torch.random.fork_rng(devices=[]):
        model = DPTForDepthEstimation(config)
    fill(model, generator("dpt-hybrid"), GAINS)
    keep_depth_positive(model)
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def depth_config() -> DPTConfig:
    """The real configuration with fewer and narrower layers."""
    backbone = BitConfig(
        global_padding="same",
        layer_type="bottleneck",
        depths=[2, 2, 3],
        out_features=["stage1", "stage2", "stage3"],
        embedding_dynamic_padding=True,
        embedding_size=16,
        hidden_sizes=list(WIDTHS),
        num_groups=8,
    )
    return DPTConfig(
        is_hybrid=True,
        backbone_config=backbone,
        image_size=IMAGE_SIZE,
        backbone_featmap_shape=[1, WIDTHS[-1], IMAGE_SIZE // 16, IMAGE_SIZE // 16],
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        backbone_out_indices=[0, 1, 2, 3],
        readout_type="project",
        reassemble_factors=[1, 1, 1, 0.5],
        neck_hidden_sizes=[*WIDTHS[:2], HIDDEN_SIZE, HIDDEN_SIZE],
        neck_ignore_stages=[0, 1],
        fusion_hidden_size=FUSION_SIZE,
        use_batch_norm_in_fusion_residual=False,
        dtype="float32",
    )


@torch.no_grad()
def keep_depth_positive(model: DPTForDepthEstimation) -> None:
    """The last layer sums up; else its activation would cut off half of the map."""
    layer = model.head.head[4]
    layer.weight.abs_()
    layer.bias.fill_(0.5)
