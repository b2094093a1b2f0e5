"""Tiny checkpoints of the real architectures, and pictures to put through them."""

from pathlib import Path

import numpy as np
import pytest

from preprocessors.pixels import Pixels

DPT_SIDE = 64
CLIP_SIDE = 32


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dpt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DPT-hybrid checkpoint (ViT over a BiT backbone), laid out as `Intel/dpt-hybrid-midas`."""
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

    folder = tmp_path_factory.mktemp("dpt-hybrid")
    torch.manual_seed(0)
    config = DPTConfig(
        is_hybrid=True,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=DPT_SIDE,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 32, 32, 32],
        fusion_hidden_size=16,
        reassemble_factors=[1, 1, 1, 0.5],
        backbone_featmap_shape=[1, 64, DPT_SIDE // 16, DPT_SIDE // 16],
        backbone_config={
            "model_type": "bit",
            "global_padding": "same",
            "layer_type": "bottleneck",
            "depths": [1, 1, 1],
            "hidden_sizes": [16, 32, 64],
            "embedding_size": 16,
            "num_groups": 4,
            "out_features": ["stage1", "stage2", "stage3"],
            "embedding_dynamic_padding": True,
        },
    )
    model = DPTForDepthEstimation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the default is so small that every depth would be the same
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
        model.head.head[4].weight.abs_()  # or the last ReLU may leave nothing
    model.save_pretrained(folder)
    DPTImageProcessorPil(
        size={"height": DPT_SIDE, "width": DPT_SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP vision checkpoint, laid out as `h94/IP-Adapter`'s `models/image_encoder`."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("image_encoder")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=CLIP_SIDE,
        patch_size=8,
        projection_dim=24,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Pixels]:
    """Four of different sizes: shapes, noise, a wide one, a single row; read-only."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:72, :96]
    shapes = np.stack([x * 2, y * 3, 255 * (np.hypot(x - 40, y - 30) < 20)], axis=-1)
    pictures = [
        shapes.clip(0, 255).astype(np.uint8),
        generator.integers(0, 256, (50, 41, 3), np.uint8),
        generator.integers(0, 256, (10, 90, 3), np.uint8).cumsum(axis=1).astype(np.uint8),
        generator.integers(0, 256, (1, 30, 3), np.uint8),
    ]
    for picture in pictures:
        picture.flags.writeable = False  # as they arrive through a handle
    return pictures
