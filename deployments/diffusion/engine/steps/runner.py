"""Runs batches on the device and owns its memory, slot by slot.

One `run` is one denoising step of every row of a batch: the numbers of the step are uploaded,
the UNet is called once, and each row takes its own TCD step. The host never waits for the device
in between; it stays at most `RUN_AHEAD` steps ahead of it.

A step is computed first and taken by its rows then, so that it can be computed again for others.
If one raises, each of its rows is tried alone: those that raise alone are to blame and fail, the
others take the step together. An engine is at fault if the device failed, if no row raises alone,
or if a plain row, which no request made, cannot take a step either.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deployments.device import is_of_device, is_out_of_memory
from deployments.diffusion.engine.adapters.bank import Bank
from deployments.diffusion.engine.clock import InFlight, clock_of
from deployments.diffusion.engine.models.components import Components
from deployments.diffusion.engine.models.image_attention import Seen
from deployments.diffusion.engine.models.schedule import Step
from deployments.diffusion.engine.policy.batch import (
    Advanced,
    Batch,
    Measured,
    Outcome,
    OutOfMemory,
)
from deployments.diffusion.engine.policy.compiling import EAGER, Compiling
from deployments.diffusion.engine.policy.spec import RowSpec
from deployments.diffusion.engine.policy.trajectory import Trajectory
from deployments.diffusion.engine.prompts.encoder import PromptEmbeds
from deployments.diffusion.engine.steps.compiled import CudaCapture, Graphs
from deployments.diffusion.engine.steps.conditioning import (
    ControlPlan,
    Residuals,
    RowControl,
    UNetInput,
)
from deployments.diffusion.engine.steps.row import Row
from deployments.diffusion.engine.steps.seeing import SeenPlan
from deployments.diffusion.engine.steps.staging import Numbers
from deployments.diffusion.engine.steps.tcd import coefficients, tcd_step

PLAIN_SIDE = 64  # pixels, of the row that shows whether the engine itself is well
RUN_AHEAD = 2  # UNet calls queued on a GPU before the host waits for the oldest
log = logging.getLogger("tcd.engine")


class _Placed(NamedTuple):
    """A row, and the steps that it has taken."""

    row: Row
    cursor: int


class _Stepped(NamedTuple):
    """A row, and where a step takes it; `half`: what it has of a step that takes two calls."""

    row: Row
    latents: Tensor
    x_0: Tensor
    half: Tensor | None = None


@dataclass(frozen=True)
class _Call:
    """The rows of a UNet call, and where the step's numbers about them are staged.

    Attributes:
        rows: those with guidance first.
        cursors: steps that each has taken.
        guided: how many of them have twins in this call, which stand behind all rows. A video's is
            called for afterwards.
        noise: of each row; `None` where its step draws none.
        tokens: of each row's prompt; `None`: all have as many.
    """

    rows: tuple[Row, ...]
    cursors: tuple[int, ...]
    guided: int
    numbers: Numbers
    timesteps: int
    coefficients: int
    guidance: int
    adapters: int
    size_ids: int
    seen: SeenPlan
    controls: ControlPlan
    noise: tuple[int | None, ...]
    tokens: int | None

    @property
    def with_twins(self) -> tuple[Row, ...]:
        """All rows that the UNet computes; a twin is the row once more."""
        return (*self.rows, *self.rows[: self.guided])

    @property
    def attended(self) -> list[PromptEmbeds]:
        """What each of them attends to."""
        return _attended(self.rows, self.guided)


class Runner:
    """The device side of the engine. One thread calls it.

    Args:
        beat: called before each UNet call: a batch that fails takes several.

    Attributes:
        graphs: of UNet calls, if the model is to have any.
    """

    def __init__(self, components: Components, beat: Callable[[], None] = lambda: None) -> None:
        self._parts = components
        self._beat = beat
        self._plain_steps = components.schedule.steps(1, 0.0)
        self._rows: dict[int, Row] = {}
        self._in_flight: deque[InFlight] = deque()
        self.graphs: Graphs | None = None
        if components.compile == "graphs":
            self.graphs = Graphs(self.call_unet, CudaCapture(components.device))

    @property
    def compiling(self) -> Compiling:
        """What became of `ModelArgs.compile`."""
        compiler, graphs = self._parts.compiler, self.graphs
        told = EAGER
        if compiler is not None:
            told = Compiling(int(compiler.works), compiler.compiles, compiler.failures)
        if graphs is None:
            return told
        failures = told.failures + graphs.failures
        told = told._replace(failures=failures, replays=graphs.replays)
        return told._replace(level=2) if graphs else told

    def adopt(self, slot: int, row: Row) -> None:
        """Gives a row its slot."""
        row.wait()
        self._rows[slot] = row

    def run(self, batch: Batch) -> Outcome:
        """Takes one step with every row of a batch, or half of one; every row holds a slot.

        Raises what no row is to blame for; no row has taken the step then.
        """
        failures: dict[str, Exception] = {}
        clock = clock_of(self._parts.device)
        stepped = self._tried(self._placed(batch.rows))
        if isinstance(stepped, Exception) and not is_out_of_memory(stepped):
            blamed = self._blamed(batch.rows, stepped)
            if isinstance(blamed, OutOfMemory):
                return blamed
            failures = blamed
            batch = Batch(batch.key, tuple(r for r in batch.rows if r.row_id not in failures))
            if not batch.rows:
                return Advanced(failures)
            clock = clock_of(self._parts.device)
            stepped = self._tried(self._placed(batch.rows))
            if isinstance(stepped, Exception) and not is_out_of_memory(stepped):
                raise stepped
        if isinstance(stepped, Exception):
            return OutOfMemory(str(stepped))
        for row, latents, estimate, half in stepped:
            row.latents, row.x_0, row.half = latents, estimate, half
        self._in_flight.append(InFlight(batch.key, batch.unet_rows, clock.stop()))
        return Advanced(failures, self._wait_for_older_steps())

    def settle(self) -> None:
        """Waits for the steps under way, and forgets how long they took."""
        while self._in_flight:
            self._in_flight.popleft().wait()

    def _placed(self, rows: Sequence[Trajectory]) -> list[_Placed]:
        return [_Placed(self._rows[r.slot], r.cursor) for r in rows if r.slot is not None]

    def _tried(self, placed: Sequence[_Placed]) -> Sequence[_Stepped] | Exception:
        """A step of these rows, which none of them has taken, or what kept it from being made.
        Raises what the device itself failed with."""
        self._beat()
        try:
            with torch.inference_mode():
                return self._step(self._plan(placed))
        except Exception as error:
            if is_of_device(error):
                raise
            if not is_out_of_memory(error):
                log.warning("a step of %d rows failed", len(placed), exc_info=error)
            failure = error.with_traceback(None)  # which would keep the failed tensors alive
        if is_out_of_memory(failure) and self._parts.device.type == "cuda":
            torch.cuda.empty_cache()
        return failure

    def _blamed(
        self, rows: Sequence[Trajectory], error: Exception
    ) -> dict[str, Exception] | OutOfMemory:
        """Those of the rows that cannot take a step even alone, by row id; `OutOfMemory` if there
        is none, but some found no memory. Raises `error` if all can, or if a plain row cannot."""
        failures: dict[str, Exception] = {}
        short: OutOfMemory | None = None
        for row in rows:
            tried = self._tried(self._placed([row]))
            if isinstance(tried, Exception) and is_out_of_memory(tried):
                short = OutOfMemory(str(tried))
            elif isinstance(tried, Exception):
                failures[row.row_id] = tried
        plain = self._tried([_Placed(_plain(self._placed(rows)[0].row, self._plain_steps), 0)])
        if isinstance(plain, Exception) and not is_out_of_memory(plain):
            raise error
        if not failures and short is None:
            raise error
        return failures or short or {}

    def latents(self, slot: int) -> Tensor:
        """(C, H / 8, W / 8): where the row of a slot stands."""
        return self._rows[slot].latents

    def estimate(self, slot: int) -> Tensor:
        """(C, H / 8, W / 8): x_0 as the row's last step estimated it."""
        return self._rows[slot].x_0

    def free(self, slot: int) -> None:
        """Forgets the row of a slot, if it holds one, and what it saw."""
        row = self._rows.pop(slot, None)
        if row is not None and row.seen:
            parts = self._parts
            unet = parts if row.spec.frames is None else parts.motion
            if unet is not None and unet.image_attention is not None:
                unet.image_attention.show([])  # or it would keep them until its next call

    def _plan(self, rows_of_step: Sequence[_Placed]) -> _Call:
        """Puts all numbers of a step together and starts their upload."""
        placed = sorted(rows_of_step, key=lambda one: one.row.uncond is None)
        rows, cursors = zip(*placed, strict=True)
        steps = [row.steps[cursor] for row, cursor in placed]
        guided = sum(row.uncond is not None for row in rows if row.spec.frames is None)
        twice = [*range(len(rows)), *range(guided)]
        specs = [rows[index].spec for index in twice]
        tokens = [len(embeds.hidden) for embeds in _attended(rows, guided)]
        seen = _seen(rows, guided)
        frames = rows[0].spec.frames or 1
        # A video is alone: its frames are the rows that see pictures and are controlled.
        framed = [(place, frame) for place in range(len(twice)) for frame in range(frames)]
        numbers = Numbers(self._parts.device)
        call = _Call(
            rows=rows,
            cursors=cursors,
            guided=guided,
            numbers=numbers,
            timesteps=numbers.put([steps[index].t for index in twice]),
            coefficients=numbers.put(coefficients(steps)),
            guidance=numbers.put([row.spec.guidance_scale for row in rows]),
            adapters=numbers.put(self._bank(specs).mix([dict(spec.loras) for spec in specs])),
            size_ids=numbers.put([spec.size_ids for spec in specs]),
            seen=SeenPlan([seen[place] for place, _ in framed], numbers),
            controls=ControlPlan(
                self._parts.controls,
                [_controls(placed[twice[place]], frame) for place, frame in framed],
                [tokens[place] for place, _ in framed],
                twins=len(rows) * frames if rows[0].half is None else 0,
                numbers=numbers,
            ),
            noise=tuple(_put_noise(row, cursor, numbers) for row, cursor in placed),
            tokens=None if len(set(tokens)) == 1 else numbers.put(tokens),
        )
        numbers.upload()
        return call

    def _bank(self, specs: Sequence[RowSpec]) -> Bank:
        """The adapters of the UNet that computes these rows."""
        return self._parts.banks["unet" if specs[0].frames is None else "motion_unet"]

    def _step(self, call: _Call) -> Sequence[_Stepped]:
        """Where the step takes each row of the call."""
        latents = torch.stack([row.latents for row in call.rows])
        output = self._predict(call, latents)
        if call.rows[0].awaits_twin:
            (row,) = call.rows
            return [_Stepped(row, row.latents, row.x_0, output[0])]
        output = self._guided(call, output)
        x_prev, x_0 = tcd_step(
            latents,
            output,
            call.numbers[call.coefficients],
            _noise(call, latents),
            self._parts.schedule.prediction_type,
        )
        rows = zip(call.rows, call.cursors, x_prev.unbind(), strict=True)
        stepped = [self._put_back(row, cursor, new) for row, cursor, new in rows]
        estimates = x_0.unbind()
        return [_Stepped(*one) for one in zip(call.rows, stepped, estimates, strict=True)]

    def _put_back(self, row: Row, cursor: int, latents: Tensor) -> Tensor:
        """`latents` after a step; what a mask keeps is the noised picture again."""
        if row.source is None or self._parts.takes_mask:
            return latents
        step = row.steps[cursor]
        return row.source.blended(latents, step.alpha_prev, step.sigma_prev)

    def _predict(self, call: _Call, latents: Tensor) -> Tensor:
        """What the UNet says for each row of the call: (B, C, H / 8, W / 8)."""
        parts, numbers = self._parts, call.numbers
        embeds = call.attended
        hidden = nn.utils.rnn.pad_sequence([e.hidden for e in embeds], batch_first=True)
        heeded = None
        if call.tokens is not None:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            heeded = places < numbers[call.tokens][:, None]
        given = UNetInput(
            sample=torch.cat([latents, latents[: call.guided]]) if call.guided else latents,
            timesteps=numbers[call.timesteps],
            hidden=hidden,
            added=self._added(embeds, numbers[call.size_ids]),
            heeded=heeded,
        )
        self._bank([call.rows[0].spec]).weigh(numbers[call.adapters])
        frames = call.rows[0].spec.frames
        if frames is not None:
            return self._predict_video(call, given, frames)
        pictures = False
        if parts.image_attention is not None:
            call.seen.show(parts.image_attention, numbers)
            pictures = parts.image_attention.in_use
        residuals = call.controls.residuals(given, numbers)
        given = replace(given, sample=self._unet_sample(given.sample, call.with_twins))
        output: Tensor | None = None
        plain = not (pictures or residuals or parts.banks["unet"].in_use)
        if self.graphs is not None and plain and heeded is None:
            output = self.graphs.run(given)
        return self.call_unet(given, residuals) if output is None else output

    def call_unet(self, given: UNetInput, residuals: Residuals | None = None) -> Tensor:
        """What the UNet says of `given`, with adapters and pictures as they are on it now."""
        output: Tensor = self._parts.unet(
            given.sample,
            given.timesteps,
            encoder_hidden_states=given.hidden,
            encoder_attention_mask=given.heeded,
            added_cond_kwargs=given.added,
            down_block_additional_residuals=residuals and residuals.down,
            mid_block_additional_residual=residuals and residuals.mid,
            down_intrablock_additional_residuals=residuals and residuals.inside,
            return_dict=False,
        )[0]
        return output

    def _predict_video(self, call: _Call, given: UNetInput, frames: int) -> Tensor:
        """What the motion UNet says: (1, C, frames, H / 8, W / 8)."""
        motion = self._parts.motion
        assert motion is not None
        if motion.image_attention is not None:
            call.seen.show(motion.image_attention, call.numbers)
        added = given.added
        apart = UNetInput(
            sample=given.sample[0].transpose(0, 1),
            timesteps=given.timesteps.expand(frames),
            hidden=given.hidden.expand(frames, -1, -1),
            added=added and {name: one.expand(frames, -1) for name, one in added.items()},
        )
        residuals = call.controls.residuals(apart, call.numbers)
        output: Tensor = motion.unet(
            given.sample,
            given.timesteps,
            encoder_hidden_states=apart.hidden,
            added_cond_kwargs=added,
            down_block_additional_residuals=residuals and residuals.down,
            mid_block_additional_residual=residuals and residuals.mid,
            return_dict=False,
        )[0]
        return output

    def _guided(self, call: _Call, output: Tensor) -> Tensor:
        """Guidance, where it is in force, in float32: of each row, no longer of its twin."""
        scale = call.numbers[call.guidance].view(-1, *[1] * (output.ndim - 1))
        half = call.rows[0].half
        if half is not None:
            return output + scale * (half - output)
        if not call.guided:
            return output
        cond, plain, uncond = output.split([call.guided, len(call.rows) - call.guided, call.guided])
        return torch.cat([uncond + scale[: call.guided] * (cond - uncond), plain])

    def _unet_sample(self, sample: Tensor, rows: Sequence[Row]) -> Tensor:
        """The latents, with mask and masked picture beside them for a 9-channel UNet."""
        if not self._parts.takes_mask:
            return sample
        beside = [row.beside for row in rows if row.beside is not None]
        return torch.cat([sample, torch.stack(beside)], dim=1)

    def _added(self, embeds: Sequence[PromptEmbeds], size_ids: Tensor) -> dict[str, Tensor] | None:
        """sdxl's pooled text and its six numbers."""
        pooled = [e.pooled for e in embeds if e.pooled is not None]
        if not pooled:
            return None
        return {"text_embeds": torch.stack(pooled), "time_ids": size_ids.to(self._parts.dtype)}

    def _wait_for_older_steps(self) -> Measured | None:
        """Keeps the host at most `RUN_AHEAD` steps ahead of a GPU, so that joins stay prompt."""
        ahead = RUN_AHEAD if self._parts.device.type == "cuda" else 0
        if len(self._in_flight) <= ahead:
            return None
        return self._in_flight.popleft().wait()


def _attended(rows: Sequence[Row], guided: int) -> list[PromptEmbeds]:
    """What each row of a call attends to, and behind them the twins of the first `guided`."""
    twins = [row.uncond for row in rows[:guided] if row.uncond is not None]
    return [*(row.attended for row in rows), *twins]


def _seen(rows: Sequence[Row], guided: int) -> list[tuple[Seen, ...]]:
    """What each row of a call sees, and behind them the twins of the first `guided`."""
    return [*(row.sees for row in rows), *(row.seen_by_twin for row in rows[:guided])]


def _plain(like: Row, steps: tuple[Step, ...]) -> Row:
    """A row of the same kind, small, with nothing of what its request asked for: no adapters,
    pictures, controls or guidance, and zeros for latents."""
    spec = RowSpec(
        prompt=like.spec.prompt,
        seed=0,
        height=PLAIN_SIDE,
        width=PLAIN_SIDE,
        num_inference_steps=1,
        eta=0.0,
        frames=None if like.spec.frames is None else 1,
    )
    channels = len(like.latents)
    return replace(
        like,
        spec=spec,
        steps=steps,
        latents=like.latents.new_zeros(channels, *spec.latent_size),
        uncond=None,
        source=None,
        controls=(),
        seen=(),
        seen_by_twin=(),
        beside=None if like.beside is None else like.beside.new_zeros(5, *spec.latent_size),
        noise=[],
        ready=None,
        half=None,
    )


def _controls(placed: _Placed, frame: int) -> list[RowControl]:
    """A row's controls in its next step; of a video those of a frame."""
    row, cursor = placed
    controls: list[RowControl] = []
    for control, seen in zip(row.spec.controls, row.controls, strict=True):
        if row.spec.frames is not None:
            seen = (seen[frame if len(seen) > 1 else 0],)
        scale = control.scale_at(cursor, row.spec.steps)
        controls.append(RowControl(control.type, seen, scale))
    return controls


def _put_noise(row: Row, cursor: int, numbers: Numbers) -> int | None:
    row.draw(cursor + 1)
    z = row.noise[cursor]
    return None if z is None else numbers.put(z)


def _noise(call: _Call, like: Tensor) -> Tensor:
    """Each row's z, zeros where its step draws none: (B, C, H / 8, W / 8), or one zero for all."""
    if all(place is None for place in call.noise):
        return like.new_zeros(())
    zeros = None
    drawn: list[Tensor] = []
    for place in call.noise:
        if place is not None:
            drawn.append(call.numbers[place])
            continue
        if zeros is None:
            zeros = torch.zeros(like.shape[1:], dtype=torch.float32, device=like.device)
        drawn.append(zeros)
    return torch.stack(drawn)
