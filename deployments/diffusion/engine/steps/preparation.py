"""Rows made ready: prompts and pictures encoded once a job, noise drawn for each of its images.

It runs beside the step loop, on a thread and, on a GPU, a stream of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import Pixels
from deployments.device import is_of_device, is_out_of_memory
from deployments.diffusion.engine.clock import clock_of
from deployments.diffusion.engine.computing import computing
from deployments.diffusion.engine.models.components import Components
from deployments.diffusion.engine.models.controls.t2i_adapters import features_of
from deployments.diffusion.engine.models.image_attention import Seen
from deployments.diffusion.engine.models.placing import to_device
from deployments.diffusion.engine.models.schedule import Step
from deployments.diffusion.engine.pixels.sources import (
    EncodedSource,
    SourceLatents,
    encode_source,
)
from deployments.diffusion.engine.policy.batch import OutOfMemory
from deployments.diffusion.engine.policy.spec import Control, ImagePrompt, PromptIds, RowSpec
from deployments.diffusion.engine.prompts.encoder import Prompt, PromptEmbeds, PromptEncoder
from deployments.diffusion.engine.pulse import Pulse
from deployments.diffusion.engine.steps.row import Row
from deployments.diffusion.engine.steps.seeing import weights_by_level

# Of a row's noise: a CPU takes 2 ms for that of a step of 1024 x 1024 pixels in half precision. The
# rest is drawn step by step, while a GPU is busy with the step before.
STEPS_DRAWN_AHEAD = 8


@dataclass(frozen=True)
class Order:
    """A row to be made ready. Rows of one job share what does not depend on the seed."""

    row_id: str
    job_key: str
    spec: RowSpec


@dataclass(frozen=True)
class Prepared:
    """A row that is ready, or why it is not. `OutOfMemory`: it may be asked for again."""

    row_id: str
    row: Row | OutOfMemory | GenerationFailed


@dataclass(frozen=True)
class Forgotten:
    """What rows of a job shared has been let go of, and no row of it is being made ready."""

    job_key: str


@dataclass(frozen=True)
class _Shared:
    """What the rows of a job have in common, on the device. `encoding`: of its start picture,
    latent pixels, and what waits for its end and says how many seconds it took."""

    cond: PromptEmbeds
    uncond: PromptEmbeds | None
    source: EncodedSource | None
    controls: tuple[tuple[Tensor, ...], ...]
    seen: tuple[Seen, ...]
    seen_by_twin: tuple[Seen, ...]
    encoding: tuple[int, Callable[[], float]] | None


class Preparation:
    """Makes rows. One thread calls it.

    Noise comes from one CPU generator per row, seeded with its seed, in the order in which a
    diffusers pipeline draws it: the same seed gives the same noise on every device.

    Args:
        encoded: told of every start picture: latent pixels, and the seconds that they took.
    """

    def __init__(
        self,
        components: Components,
        prompt_cache_bytes: int,
        encoded: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self._parts = components
        self._encoded = encoded
        self.prompts = PromptEncoder(components, prompt_cache_bytes)
        self._jobs: dict[str, _Shared] = {}

    @property
    def device(self) -> torch.device:
        """Where the rows go."""
        return self._parts.device

    def rows(self, orders: Sequence[Order]) -> Iterator[Row]:
        """Rows in order, each as soon as it is ready; prompts are encoded in one batch before."""
        new = {order.job_key: order.spec for order in orders if order.job_key not in self._jobs}
        embeds = dict(zip(new, self._embeds(list(new.values())), strict=True))
        for order in orders:
            if order.job_key not in self._jobs:
                self._jobs[order.job_key] = self._shared(order.spec, *embeds[order.job_key])
            yield self._row(order.spec, self._jobs[order.job_key])

    def forget(self, job_key: str) -> None:
        """No more rows of this job will be asked for. What its start picture took is read only now,
        when it was encoded long ago: nobody waits for that."""
        shared = self._jobs.pop(job_key, None)
        if shared is not None and shared.encoding is not None:
            pixels, seconds = shared.encoding
            self._encoded(pixels, seconds())

    def _embeds(self, specs: Sequence[RowSpec]) -> list[tuple[PromptEmbeds, PromptEmbeds | None]]:
        prompts = [self._prompt(spec.prompt, spec) for spec in specs]
        negatives = [
            self._prompt(spec.negative, spec)
            for spec in specs
            if spec.negative is not None and not self._zero_negative(spec)
        ]
        embeds = self.prompts.encode([*prompts, *negatives])
        twins = iter(embeds[len(prompts) :])
        pairs: list[tuple[PromptEmbeds, PromptEmbeds | None]] = []
        for spec, cond in zip(specs, embeds, strict=False):
            uncond = None
            if spec.guided:
                zero = self._zero_negative(spec)
                uncond = self.prompts.zeros(like=cond) if zero else next(twins)
            pairs.append((cond, uncond))
        return pairs

    def _zero_negative(self, spec: RowSpec) -> bool:
        """Whether an absent negative prompt is all zeros here, and it is absent."""
        return self._parts.zero_empty_negative and not spec.negative_given

    def _prompt(self, ids: PromptIds, spec: RowSpec) -> Prompt:
        parts = self._parts
        on_text = {key for name in parts.text_banks for key in parts.banks[name].keys}
        loras = tuple((key, weight) for key, weight in spec.loras if key in on_text)
        return Prompt(ids, loras, spec.clip_skip)

    def _shared(self, spec: RowSpec, cond: PromptEmbeds, uncond: PromptEmbeds | None) -> _Shared:
        parts = self._parts
        source = encoding = None
        if spec.source is not None:
            clock = clock_of(parts.device)
            source = encode_source(
                parts.vae,
                spec.source,
                parts.dtype,
                whole=spec.strength < 1 or not parts.takes_mask,
                masked=parts.takes_mask,
            )
            encoding = source.encoded * spec.key.pixels, clock.stop()
        prompts = [prompt for prompt in spec.image_prompts if prompt.scale > 0]
        pairs = [self._seen(prompt, spec.latent_size) for prompt in prompts]
        return _Shared(
            cond=cond,
            uncond=uncond,
            source=source,
            controls=tuple(self._control(control) for control in spec.controls),
            seen=tuple(seen for seen, _ in pairs),
            seen_by_twin=tuple(nothing for _, nothing in pairs) if spec.guided else (),
            encoding=encoding,
        )

    def _row(self, spec: RowSpec, shared: _Shared) -> Row:
        parts = self._parts
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        schedule = parts.schedule_of(spec.frames)
        steps = schedule.steps(spec.num_inference_steps, spec.eta, spec.strength)
        source = None
        if shared.source is None:
            latents = to_device(self._draw(spec, generator), parts.device)
        else:
            source = shared.source.draw(generator, spec.frames)
            latents = _noised(source, steps[0], whole=spec.strength == 1)
        row = Row(
            spec=spec,
            steps=steps,
            latents=latents,
            x_0=latents,
            cond=shared.cond,
            uncond=shared.uncond,
            source=source,
            controls=shared.controls,
            seen=shared.seen,
            seen_by_twin=shared.seen_by_twin,
            beside=source.beside if source is not None and parts.takes_mask else None,
            generator=generator,
            noise=[],
        )
        row.draw(STEPS_DRAWN_AHEAD)
        return row

    def _draw(self, spec: RowSpec, generator: torch.Generator) -> Tensor:
        """Normal noise in the latents' shape, on the CPU; of a long video, `FreeNoise`'s."""
        shape = (1, self._parts.latent_channels, *spec.latent_size)
        noise = torch.randn(shape, generator=generator, dtype=self._parts.dtype)[0]
        motion = self._parts.motion
        if motion is not None and spec.frames is not None:
            motion.free_noise.shuffle(noise, generator)
        return noise

    def _control(self, control: Control) -> tuple[Tensor, ...]:
        """What a control has of its maps: of each frame a ControlNet's map, or of an image what
        `RowControl.seen` is."""
        maps = tuple(map(self._map, control.maps))
        adapter = self._parts.controls.adapters.get(control.type)
        return maps if adapter is None else features_of(adapter, maps[0])

    def _map(self, pixels: Pixels) -> Tensor:
        """(3, height, width) in [0, 1]."""
        tensor = to_device(torch.from_numpy(pixels.copy()), self._parts.device)
        return (tensor.permute(2, 0, 1).float() / 255).to(self._parts.dtype)

    def _seen(self, prompt: ImagePrompt, latent_size: tuple[int, ...]) -> tuple[Seen, Seen]:
        """What a row sees, and what its unconditional twin does."""
        parts = self._parts
        attention, adapter = parts.image_attention, parts.ip_adapters[prompt.name]
        assert attention is not None
        height, width = latent_size[-2:]
        levels = weights_by_level(prompt.scale, prompt.mask, (height, width), attention.levels)
        sizes = [len(level) for level in levels]
        weights = to_device(torch.cat(levels), parts.device, parts.dtype).split(sizes)
        pairs = torch.from_numpy(np.stack(prompt.embeds))
        pictures, nothing = to_device(pairs, parts.device, parts.dtype).unbind(dim=1)
        return (
            Seen(adapter.keys_values(pictures), weights),
            Seen(adapter.keys_values(nothing), weights),
        )


def _noised(source: SourceLatents, first: Step, *, whole: bool) -> Tensor:
    if whole and source.mask is not None:
        return source.noise  # as diffusers' inpainting starts at strength 1
    return first.alpha_t * source.image + first.sigma_t * source.noise


@dataclass(frozen=True)
class _Forget:
    job_key: str


class Preparer:
    """A thread that makes rows ready, all that wait for it together.

    Args:
        deliver: called on that thread with each row, and with each job that was forgotten; must
            hand it to the engine's thread.
        broken: told of what no row is to blame for: a device that answers nothing any more.

    Attributes:
        pulse: of its thread.
    """

    def __init__(
        self,
        preparation: Preparation,
        deliver: Callable[[Prepared | Forgotten], None],
        broken: Callable[[Exception], None],
    ) -> None:
        self._preparation = preparation
        self._deliver = deliver
        self._broken = broken
        self.pulse = Pulse()
        self._inbox: SimpleQueue[Order | _Forget | None] = SimpleQueue()
        device = preparation.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = computing(self._work, "tcd-prepare", device)
        self._thread.start()

    def put(self, order: Order) -> None:
        """Asks for a row."""
        self._inbox.put(order)

    def forget(self, job_key: str) -> None:
        """Lets go of what rows of a job shared; says so when that is done."""
        self._inbox.put(_Forget(job_key))

    def close(self, wait_for: Callable[[Thread], None] = Thread.join) -> None:
        """Ends the thread after the rows under way, and waits for that."""
        self._inbox.put(None)
        wait_for(self._thread)

    def _work(self) -> None:
        while True:
            self.pulse.rest()
            messages = [self._inbox.get()]
            self.pulse.beat()
            try:
                while True:
                    messages.append(self._inbox.get_nowait())
            except Empty:
                pass
            forgotten = [m.job_key for m in messages if isinstance(m, _Forget)]
            orders = [m for m in messages if isinstance(m, Order)]
            self._prepare([order for order in orders if order.job_key not in forgotten])
            for job_key in forgotten:
                self._let_go(job_key)
            if None in messages:
                return

    def _let_go(self, job_key: str) -> None:
        try:
            self._preparation.forget(job_key)
        except Exception as error:  # of a device that does not even say what it took
            self._broken(error)
        self._deliver(Forgotten(job_key))

    def _prepare(self, orders: Sequence[Order]) -> None:
        """All together; if that fails, each alone: then it shows whose fault it is."""
        delivered = 0
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                self.pulse.beat()
                for order, row in zip(orders, self._preparation.rows(orders), strict=True):
                    row.ready = None if self._stream is None else self._stream.record_event()
                    self._deliver(Prepared(order.row_id, row))
                    delivered += 1
                    self.pulse.beat()
            return
        except Exception as error:
            failure = error.with_traceback(None)  # which would keep the failed tensors alive
        left = orders[delivered:]
        if is_of_device(failure):
            self._broken(failure)
        elif len(left) == 1:
            self._deliver(Prepared(left[0].row_id, _failed(failure)))
        else:
            for order in left:
                self._prepare([order])


def _failed(error: Exception) -> OutOfMemory | GenerationFailed:
    if is_out_of_memory(error):
        return OutOfMemory(str(error))
    return GenerationFailed(f"the image could not be prepared: {error}")
