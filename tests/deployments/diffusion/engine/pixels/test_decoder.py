"""The decoder's queue: what goes first, what is dropped, and what happens where memory is short."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from threading import Event
from time import monotonic, sleep
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from deployments.contracts.errors import DeadlineExceeded, GenerationFailed
from deployments.diffusion.engine.models.vae import Vae
from deployments.diffusion.engine.pixels import decoder as module
from deployments.diffusion.engine.pixels.decoder import Decoded, Decoder, Latent
from tests.deployments.diffusion.engine.harness import WAIT_S

Answers = list[tuple[str, Decoded | Exception]]


class Bench:
    """A decoder on a tiny VAE that is held until it is let go, and what it answered."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vae = Vae(small_vae())
        self.calls: list[tuple[int, ...]] = []
        self.answers: Answers = []
        self.paces: list[tuple[int, float, bool]] = []
        self.at_gate, self.gate = Event(), Event()
        self.refuse: Callable[[Tensor], None] = lambda _: None
        decode = self.vae.model.decode

        def held(latents: Tensor, **more: object) -> object:
            self.at_gate.set()
            assert self.gate.wait(WAIT_S)
            self.calls.append(tuple(latents.shape))
            self.refuse(latents)
            return decode(latents, **more)

        self.vae.model.decode = held
        self.decoder = Decoder(self.vae, self.vae, lambda *pace: self.paces.append(pace))
        self.put("at the gate", (4, 2, 2))
        assert self.at_gate.wait(WAIT_S)

    def put(
        self,
        name: str,
        shape: tuple[int, ...] = (4, 8, 8),
        *,
        wanted: bool = True,
        deadline: float | None = None,
        preview: bool = False,
    ) -> None:
        latents = torch.randn(shape)
        self.decoder.put(
            Latent(
                latents,
                lambda result: self.answers.append((name, result)),
                lambda: wanted,
                deadline,
                preview,
            )
        )

    def finish(self) -> list[str]:
        """Lets everything through; the names in the order in which they were answered."""
        self.gate.set()
        assert self.decoder.wait_until_idle(WAIT_S)
        return [name for name, _ in self.answers][1:]


def small_vae(**config: object) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        sample_size=64,
        **config,
    ).eval()


class SlowSteps:
    """A stream that waits for what its latents come of."""

    WAIT_S = 0.3

    def wait_event(self, _: object) -> None:
        sleep(self.WAIT_S)


def test_the_time_of_a_call_is_without_the_steps_that_it_waits_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(bench.decoder, "_stream", SlowSteps())
    latent = Latent(torch.randn(4, 8, 8), lambda _: None)
    with bench.decoder._wake:
        bench.decoder._items.append(module._Item(latent, ready=cast(torch.cuda.Event, object())))
    bench.finish()
    (_, seconds, _) = bench.paces[-1]
    assert 0 < seconds < SlowSteps.WAIT_S


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.gate.set()
    made.decoder.close()


def test_finals_go_before_previews_and_equal_sizes_together(bench: Bench) -> None:
    bench.put("preview", preview=True)
    bench.put("a")
    bench.put("wide", (4, 8, 16))
    bench.put("b")
    assert bench.finish() == ["a", "b", "wide", "preview"]
    assert bench.calls[1:] == [(2, 4, 8, 8), (1, 4, 8, 16), (1, 4, 8, 8)]


def test_what_nobody_wants_any_more_is_not_decoded(bench: Bench) -> None:
    bench.put("cancelled", wanted=False)
    bench.put("wanted")
    assert bench.finish() == ["wanted"]
    assert bench.calls[1:] == [(1, 4, 8, 8)]


def test_what_is_late_is_answered_without_being_decoded(bench: Bench) -> None:
    bench.put("late", deadline=monotonic() - 1)
    bench.put("in time", deadline=monotonic() + 60)
    assert bench.finish() == ["late", "in time"]
    assert isinstance(dict(bench.answers)["late"], DeadlineExceeded)
    assert bench.calls[1:] == [(1, 4, 8, 8)]


def test_a_call_is_bounded_by_pixels_and_images(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.decoder._pixels_a_call = 3 * 64
    for n in range(4):
        bench.put(str(n))
    bench.put("larger than a call", (4, 16, 16))
    bench.finish()
    assert [call[0] for call in bench.calls[1:]] == [3, 1, 1]
    monkeypatch.setattr(module, "IMAGES_A_CALL", 2)
    bench.gate.clear()
    bench.at_gate.clear()
    bench.put("gate")
    assert bench.at_gate.wait(WAIT_S)
    for n in range(3):
        bench.put(str(n), (4, 4, 4))
    bench.finish()
    assert [call[0] for call in bench.calls[-2:]] == [2, 1]


def test_the_backlog_counts_finals_queued_and_under_way(bench: Bench) -> None:
    assert bench.decoder.backlog == (1, 4)
    bench.put("a")
    bench.put("b", (4, 2, 8, 8))
    bench.put("preview", preview=True)
    assert bench.decoder.backlog == (3, 4 + 64 + 128)
    assert not bench.decoder.behind
    for n in range(module.IMAGES_A_CALL):
        bench.put(str(n))
    assert bench.decoder.behind
    bench.finish()
    assert bench.decoder.backlog == (0, 0)
    finals = [pixels for pixels, _, preview in bench.paces if not preview]
    assert sum(finals) == 4 + 64 * (1 + module.IMAGES_A_CALL) + 128
    assert all(seconds > 0 for _, seconds, _ in bench.paces)


def test_where_memory_is_short_calls_get_smaller_and_stay_so(bench: Bench) -> None:
    def refuse(latents: Tensor) -> None:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("too many")

    bench.refuse = refuse
    for n in range(4):
        bench.put(str(n))
    assert bench.finish() == ["0", "1", "2", "3"]
    assert [call[0] for call in bench.calls[1:]] == [4, 1, 1, 1, 1]
    bench.gate.clear()
    bench.at_gate.clear()
    bench.put("gate")
    assert bench.at_gate.wait(WAIT_S)
    for n in range(4):
        bench.put(str(n))
    bench.finish()
    assert [call[0] for call in bench.calls[-2:]] == [2, 2]
    assert all(isinstance(answer, Decoded) for _, answer in bench.answers)


def test_a_single_image_without_memory_is_decoded_in_tiles(bench: Bench) -> None:
    whole = Vae(small_vae())
    whole.model.load_state_dict(bench.vae.model.state_dict())
    kept: list[Tensor] = []

    def refuse(latents: Tensor) -> None:
        kept.append(latents)
        raise torch.OutOfMemoryError("too large")

    bench.refuse = refuse
    bench.put("large", (4, 16, 16))
    bench.finish()
    (answer,) = [a for name, a in bench.answers if name == "large"]
    assert isinstance(answer, Decoded), answer
    with torch.inference_mode():
        images = whole.model.decode(kept[-1], return_dict=False)[0][0]
    expected = (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    # Norms see a tile each, which tells most in a VAE as small and random as this one.
    both = answer.pixels.ravel(), expected.permute(1, 2, 0).numpy().ravel()
    assert np.corrcoef(*both)[0, 1] > 0.9, "it is the same picture"
    assert bench.paces[-1][0] == 16 * 16


def test_an_image_that_has_no_memory_in_tiles_either_fails_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(latents: Tensor, **_: object) -> None:
        if latents.shape[-1] == 16:
            raise torch.OutOfMemoryError("too large")

    bench.refuse = refuse
    tiled = bench.vae.model.tiled_decode

    def tiled_too(latents: Tensor, **more: object) -> object:
        refuse(latents)
        return tiled(latents, **more)

    monkeypatch.setattr(bench.vae.model, "tiled_decode", tiled_too)
    bench.put("large", (4, 16, 16))
    bench.put("small")
    bench.finish()
    answers = dict(bench.answers)
    assert isinstance(answers["large"], GenerationFailed)
    assert "too large" in str(answers["large"])
    assert isinstance(answers["small"], Decoded)


def test_previews_are_decoded_by_the_preview_vae() -> None:
    vae, tiny = Vae(small_vae()), Vae(small_vae())
    torch.nn.init.zeros_(tiny.model.decoder.conv_out.weight)
    torch.nn.init.ones_(tiny.model.decoder.conv_out.bias)
    decoder = Decoder(vae, tiny)
    answers: list[Decoded | Exception] = []
    decoder.put(Latent(torch.randn(4, 8, 8), answers.append, preview=True))
    decoder.put(Latent(torch.randn(4, 8, 8), answers.append))
    decoder.close()
    white = [isinstance(a, Decoded) and bool((a.pixels == 255).all()) for a in answers]
    assert sorted(white) == [False, True]


def test_calls_grow_again_when_memory_suffices(bench: Bench) -> None:
    bench.decoder._pixels_a_call = 64
    bench.gate.set()
    for n in range(module.RECOVERY_CALLS):
        bench.put(str(n), (4, 2, 2))
        assert bench.decoder.wait_until_idle(WAIT_S)
    assert bench.decoder._pixels_a_call == 128


def test_a_video_that_has_no_memory_is_decoded_frame_by_frame(bench: Bench) -> None:
    def refuse(latents: Tensor) -> None:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("too many frames")

    bench.refuse = refuse
    bench.vae.model.tiled_decode = bench.vae.model.decode
    bench.put("video", (4, 5, 8, 8))
    bench.finish()
    answer = dict(bench.answers)["video"]
    assert isinstance(answer, Decoded)
    assert answer.pixels.shape == (5, 64, 64, 3)
    assert [call[0] for call in bench.calls[1:]] == [5, 1, 1, 1, 1, 1]


def test_tiles_are_smaller_than_the_pictures_a_vae_was_trained_on() -> None:
    for sample_size in (512, 1024):
        model = small_vae()
        model.register_to_config(sample_size=sample_size)
        Vae(model)
        assert model.tile_latent_min_size * 8 == model.tile_sample_min_size <= sample_size / 2
