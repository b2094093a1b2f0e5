"""The production configs on stand-ins in the hub's own cache layout: only the bytes differ."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from configs.app import ModelArgs, ModelUserConfig, PreprocessorArgs, ServiceArgs
from configs.sources import fetch, parse
from deployments.contracts.jobs import (
    Asset,
    ControlUse,
    Embeds,
    ImageJob,
    IpAdapterUse,
    LoraWeight,
    Pixels,
)
from graphs.check.agreement import SINGLETONS, deployments_of
from tests.hub_cache import lay_out

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "production").glob("*.yaml"))
ON_CPU = {"device": "cpu", "dtype": "float32"}
PICTURE: Pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


class Case(NamedTuple):
    """A model of a config, and what the config says of the service beside it."""

    config: str
    args: ModelArgs
    user_config: ModelUserConfig
    service: ServiceArgs


@cache
def read(path: Path) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))


def service_of(path: Path) -> ServiceArgs:
    return ServiceArgs.model_validate(read(path).applications[0].args)


def cases() -> Iterator[Case]:
    for path in CONFIGS:
        for application in read(path).applications[1:]:
            args = ModelArgs.model_validate(application.args)
            user_config = application.deployments[0].user_config
            yield Case(
                path.stem, args, ModelUserConfig.model_validate(user_config), service_of(path)
            )


@pytest.fixture(scope="module", autouse=True)
def hub(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A filled cache, and no hub."""
    folder = tmp_path_factory.mktemp("hub")
    lay_out(folder, demo_models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.mark.parametrize("case", tuple(cases()), ids=lambda case: f"{case.config}-{case.args.name}")
def test_a_model_loads_and_makes_an_image_with_all_it_has(case: Case) -> None:
    import torch

    from deployments.diffusion.engine.engine import Engine
    from deployments.diffusion.engine.models.components import load

    torch.set_num_threads(1)
    args = case.args.model_copy(update=ON_CPU)
    side = case.user_config.limits.min_side
    ready = np.resize(PICTURE, (side, side, 3))
    assets: list[Asset] = [ready, np.full((side, side), 255, np.uint8)]
    controls = []
    for kind in args.controls:
        controls.append(ControlUse(kind, (len(assets),)))
        assets.append(ready)
    ip_adapters = []
    for name, adapter in args.named_ip_adapters.items():
        ip_adapters.append(IpAdapterUse(name, (len(assets),)))
        assets.append(embeds(case.service.image_encoders[adapter.image_encoder]))
    engine = Engine(load(args), case.user_config)
    try:
        masked = engine.components.takes_mask
        job = ImageJob(
            "job",
            "a papercut of a mountain",
            (0,),
            side,
            side,
            num_inference_steps=2,
            loras=tuple(LoraWeight(name) for name in case.user_config.loras),
            image=0 if masked else None,
            mask=1 if masked else None,
            strength=0.99 if masked else 1.0,
            controls=tuple(controls),
            ip_adapters=tuple(ip_adapters),
        )
        (image,) = engine.generate(job, assets)
        assert image.pixels.shape == (side, side, 3)
        assert image.pixels.std() > 0
        if args.motion_adapter is not None:
            motions = tuple(LoraWeight(name, 1.2) for name in case.user_config.motion_loras)
            (video,) = engine.generate(
                ImageJob("video", "a girl", (0,), side, side, num_frames=4, motion_loras=motions)
            )
            assert video.pixels.shape == (4, side, side, 3)
    finally:
        engine.stop()


def embeds(args: PreprocessorArgs) -> Embeds:
    from preprocessors.image_encoder import ImageEncoder

    encoder = ImageEncoder(fetch(args.checkpoint), args.device, args.dtype)
    (embedding,) = encoder.encode([PICTURE], hidden=False)
    return np.stack([embedding, encoder.unconditional(hidden=False)])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_preprocessors_load_and_work(path: Path) -> None:
    from preprocessors.depth import DepthEstimator

    service = service_of(path)
    if service.depth is not None:
        depth = service.depth
        estimator = DepthEstimator(fetch(depth.checkpoint), depth.device, depth.dtype)
        (made,) = estimator.estimate([PICTURE], [(128, 96)])
        assert made.shape == (96, 128, 3)
    for args in service.image_encoders.values():
        assert np.isfinite(embeds(args)).all()


def test_the_models_of_the_guide_are_all_there() -> None:
    said = "".join(path.read_text() for path in CONFIGS)
    for hub_id in (
        "stabilityai/stable-diffusion-xl-base-1.0",
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "cagliostrolab/animagine-xl-3.0",
        "TheLastBen/Papercut_SDXL",
        "diffusers/controlnet-depth-sdxl-1.0",
        "diffusers/controlnet-canny-sdxl-1.0",
        "h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors",
        "h94/IP-Adapter/sdxl_models/image_encoder",
        "Intel/dpt-hybrid-midas",
        "frankjoshua/toonyou_beta6",
        "guoyww/animatediff-motion-adapter-v1-5",
        "guoyww/animatediff-motion-lora-zoom-in/diffusion_pytorch_model.safetensors",
        "h1t/TCD-SDXL-LoRA",
        "h1t/TCD-SD15-LoRA",
        "h1t/TCD-SD21-base-LoRA",
    ):
        assert hub_id in said
        assert parse(hub_id).kind == "hub"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_deployment_has_a_place_and_grows(path: Path) -> None:
    for application in read(path).applications:
        for deployment in application.deployments:
            options = deployment.model_dump(exclude_unset=True).get("ray_actor_options", {})
            assert options.get("num_gpus", 0) == (1 if deployment.name == "Diffusion" else 0)
            if deployment.name not in SINGLETONS:
                assert autoscales(deployment), deployment.name


def test_gpu_nodes_run_diffusion_and_nothing_else() -> None:
    (guide,) = (path for path in CONFIGS if path.stem == "guide")
    service = service_of(guide)
    for application in read(guide).applications:
        for deployment in application.deployments:
            node = "gpu" if deployment.name == "Diffusion" else "cpu"
            assert deployment.ray_actor_options.label_selector == {"tcd-node": node}
    names = {deployment.name for deployment in read(guide).applications[0].deployments}
    # All that the graph has: one that is not named would run anywhere.
    assert names == set(deployments_of(service))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_model_is_not_away_while_it_is_replaced(path: Path) -> None:
    for application in read(path).applications[1:]:
        (deployment,) = application.deployments
        assert deployment.max_surge_percent > 0


def autoscales(deployment: DeploymentSchema) -> bool:
    config = deployment.autoscaling_config
    return isinstance(config, dict) and config["min_replicas"] < config["max_replicas"]
