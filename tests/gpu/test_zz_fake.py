"""Memory that really runs out: batches halve, what cannot be done fails alone, nothing is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from configs.app import Limits, VaeArgs
from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import FinishedImage
from deployments.diffusion.engine.engine import Engine
from tests.conftest import model_args
from tests.deployments.diffusion.engine.harness import Listener, eventually, image_job
from tests.deployments.diffusion.engine.oracle import PIXEL_TOLERANCE, distance, levels_apart
from tests.gpu.conftest import EngineOn
from tests.gpu.judging import CLEARLY_WRONG
from tests.gpu.memory import allocated, only, peak, settle

pytestmark = pytest.mark.gpu
MIB = 2**20
ROWS = 32
KEPT = 8 * MIB  # what an idle engine may hold more than before: the latents it decoded last
CROWD = image_job("crowd", seeds=(1, 2, 3, 4), num_inference_steps=3)


def unet_needs(engine: Engine, rows: int, side: int) -> int:
    """Bytes of a UNet call, for pictures of `side` pixels."""
    parts = engine.components
    width = int(parts.unet.config.cross_attention_dim)
    sample = torch.zeros(rows, 4, side // 8, side // 8, device=parts.device, dtype=parts.dtype)
    hidden = torch.zeros(rows, 77, width, device=parts.device, dtype=parts.dtype)
    times = torch.full((rows,), 500.0, device=parts.device)
    return peak(parts.device, lambda: parts.unet(sample, times, encoder_hidden_states=hidden))


def vae_needs(engine: Engine, side: int, *, tiled: bool = False) -> int:
    """Bytes of decoding one picture."""
    parts = engine.components
    latents = torch.zeros(1, 4, side // 8, side // 8, device=parts.device)
    return peak(parts.device, lambda: parts.vae.decode(latents, tiled=tiled))


def warm(engine: Engine, device: torch.device) -> None:
    """Has every thread of the engine bring what it keeps."""
    engine.generate(replace(CROWD, job_id="warm"))
    settle(device)


def assert_same_latents(some: list[FinishedImage], others: list[FinishedImage]) -> None:
    """Of their pixels no more is known than their shape: where memory is short they may have been
    decoded in tiles, which these VAEs do not bear."""
    by_seed = {image.seed: image for image in others}
    assert {image.seed for image in some} == set(by_seed)
    for image in some:
        error = distance(image.latents, by_seed[image.seed].latents)
        assert error <= CLEARLY_WRONG, f"seed {image.seed} is {error:.1e} off"
        assert image.pixels.shape == by_seed[image.seed].pixels.shape


def test_a_batch_that_does_not_fit_is_halved(
    demo_models: Path, cuda: torch.device, engine_on: EngineOn
) -> None:
    limits = Limits(max_batch=ROWS, max_running=ROWS)
    engine = engine_on(model_args(demo_models, "sd15"), limits=limits)
    warm(engine, cuda)
    job = image_job("many", width=128, height=128, seeds=tuple(range(ROWS)), num_inference_steps=2)
    expected = engine.generate(job)
    one, all_, decoded = (
        unet_needs(engine, 1, 128),
        unet_needs(engine, ROWS, 128),
        vae_needs(engine, 128),
    )
    room = max(int(0.6 * all_), int(1.2 * (one + decoded)))
    say(one=one, all=all_, decoded=decoded, room=room)
    assert room < 0.9 * all_, "a batch needs hardly more than an image: nothing would run out"
    before = allocated(cuda)
    with only(cuda, room):
        made = engine.generate(replace(job, job_id="in little memory"))
        limit = engine.figures().batch_limit
    assert_same_latents(made, expected)
    assert limit < ROWS, "memory never ran out"
    assert engine.figures().failed_total == 0
    assert eventually(lambda: allocated(cuda) <= before + KEPT), "something is kept"
    assert_same_latents(engine.generate(replace(job, job_id="again")), expected)


def test_an_image_that_does_not_fit_fails_alone(
    demo_models: Path, cuda: torch.device, engine_on: EngineOn
) -> None:
    engine = engine_on(model_args(demo_models, "sd15"))
    warm(engine, cuda)
    expected = engine.generate(CROWD)
    large = image_job("large", width=512, height=512, num_inference_steps=1)
    needs = unet_needs(engine, 1, 512)
    crowd_needs = unet_needs(engine, len(CROWD.seeds), 128) + vae_needs(engine, 128)
    room = needs // 2
    say(large=needs, crowd=crowd_needs, room=room)
    assert crowd_needs < room
    before = allocated(cuda)
    listener = Listener(engine)
    with only(cuda, room):
        crowds = [replace(CROWD, job_id=f"crowd {n}") for n in range(3)]
        listener.submit(crowds[0], large, *crowds[1:])
        listener.wait()
    assert isinstance(listener.error("large"), GenerationFailed)
    assert "memory" in str(listener.error("large"))
    for job in crowds:
        made = [listener.image(job.job_id, index) for index in range(len(job.seeds))]
        assert_same_latents(made, expected)
    assert engine.fault is None
    assert eventually(lambda: allocated(cuda) <= before + KEPT), "something is kept"
    assert engine.generate(replace(large, job_id="in all memory"))


def test_a_picture_that_does_not_fit_the_vae_is_decoded_in_tiles(
    demo_models: Path, cuda: torch.device, engine_on: EngineOn
) -> None:
    args = model_args(demo_models, "sd15").model_copy(update={"vae": VaeArgs(dtype="float32")})
    engine = engine_on(args, torch.float32)
    warm(engine, cuda)
    side = 256
    step, whole, tiled = (
        unet_needs(engine, 1, side),
        vae_needs(engine, side),
        vae_needs(engine, side, tiled=True),
    )
    room = (max(step, tiled) + whole) // 2
    say(step=step, whole=whole, tiled=tiled, room=room)
    if room > 0.9 * whole:
        pytest.skip("the UNet needs as much memory as the VAE")
    vae = engine.components.vae
    assert isinstance(vae.model, AutoencoderKL)
    in_tiles = count_tiled(vae.model)
    job = image_job("large", width=side, height=side, num_inference_steps=2)
    with only(cuda, room):
        (image,) = engine.generate(job)
    assert [tuple(latents.shape) for latents in in_tiles] == [(1, 4, side // 8, side // 8)]
    latents = torch.from_numpy(image.latents)[None].to(cuda)
    with torch.inference_mode():
        decoded = vae.decode(latents, tiled=True)[0]
    pixels = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    shown = pixels.permute(1, 2, 0).cpu().numpy()
    assert levels_apart(image.pixels, shown) <= PIXEL_TOLERANCE


def count_tiled(vae: AutoencoderKL) -> list[Tensor]:
    """Collects what is decoded in tiles from now on."""
    seen: list[Tensor] = []
    tiled_decode = vae.tiled_decode

    def counted(latents: Tensor, **more: object) -> object:
        seen.append(latents)
        return tiled_decode(latents, **more)

    vae.tiled_decode = counted
    return seen


def say(**sizes: int) -> None:
    """Prints sizes in MiB, for whoever looks at a failure."""
    print(", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in sizes.items()))
