"""Runs batches on the device and owns its memory, slot by slot.

One `run` is one denoising step of every row of a batch: rows new to the device are encoded
and given their noise, the UNet is called once, and each row takes its own TCD step.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from deployments.contracts.jobs import Pixels
from deployments.diffusion.engine.adapters.stack import RowWeights
from deployments.diffusion.engine.models.components import Components
from deployments.diffusion.engine.pixels.sources import SourceLatents, encode_source
from deployments.diffusion.engine.policy.batch import Advanced, Batch, Outcome, OutOfMemory
from deployments.diffusion.engine.policy.spec import ImagePrompt, PromptIds, RowSpec
from deployments.diffusion.engine.prompts.encoder import Prompt, PromptEmbeds, PromptEncoder
from deployments.diffusion.engine.steps.conditioning import RowControl, RowPrompt, UNetInput
from deployments.diffusion.engine.steps.tcd import Step, coefficients, tcd_step

RUN_AHEAD = 2  # UNet calls queued on a GPU before the host waits for the oldest


@dataclass(slots=True)
class _Row:
    """One row on the device."""

    spec: RowSpec
    steps: tuple[Step, ...]
    generator: torch.Generator
    latents: Tensor  # (C, H / 8, W / 8)
    x_0: Tensor
    cond: PromptEmbeds
    uncond: PromptEmbeds | None
    source: SourceLatents | None
    maps: tuple[Tensor, ...]  # of the row's controls, in order
    seen: RowPrompt | None
    seen_by_twin: RowPrompt | None
    noise: Tensor | None = None  # drawn for the next step and not used yet


class Runner:
    """The device side of the engine. One thread calls it.

    Noise comes from one CPU generator per row, seeded with its seed, in the order in which a
    diffusers pipeline draws it: the same seed gives the same noise on every device.
    """

    def __init__(self, components: Components, prompt_cache_bytes: int) -> None:
        self._parts = components
        self.prompts = PromptEncoder(components, prompt_cache_bytes)
        self._rows: dict[int, _Row] = {}
        self._in_flight: deque[torch.cuda.Event] = deque()

    def run(self, batch: Batch) -> Outcome:
        """Takes one step with every row of a batch; every row holds a slot."""
        started = perf_counter()
        try:
            with torch.inference_mode():
                self._admit(batch)
                self._denoise(batch)
        except torch.OutOfMemoryError as error:
            if self._parts.device.type == "cuda":
                torch.cuda.empty_cache()
            return OutOfMemory(str(error))
        self._wait_for_older_steps()
        return Advanced({}, perf_counter() - started)

    def latents(self, slot: int) -> Tensor:
        """(C, H / 8, W / 8): where the row of a slot stands."""
        return self._rows[slot].latents

    def estimate(self, slot: int) -> Tensor:
        """(C, H / 8, W / 8): x_0 as the row's last step estimated it."""
        return self._rows[slot].x_0

    def free(self, slot: int) -> None:
        """Forgets the row of a slot, if it holds one."""
        self._rows.pop(slot, None)

    def _admit(self, batch: Batch) -> None:
        new = [row for row in batch.rows if row.slot not in self._rows]
        prompts = [self._prompt(row.spec.prompt, row.spec) for row in new]
        negatives = [
            self._prompt(row.spec.negative, row.spec)
            for row in new
            if row.spec.negative is not None
        ]
        embeds = self.prompts.encode([*prompts, *negatives])
        twins = iter(embeds[len(prompts) :])
        for row, cond in zip(new, embeds, strict=False):
            assert row.slot is not None
            uncond = next(twins) if row.spec.guided else None
            if uncond and self._parts.zero_empty_negative and not row.spec.negative_given:
                uncond = self.prompts.zeros(like=cond)
            self._rows[row.slot] = self._new_row(row.spec, cond, uncond)

    def _new_row(self, spec: RowSpec, cond: PromptEmbeds, uncond: PromptEmbeds | None) -> _Row:
        parts = self._parts
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        steps = parts.schedule.steps(spec.num_inference_steps, spec.eta, spec.strength)
        source = None
        if spec.source is None:
            latents = self._draw(spec, generator).to(parts.device)
        else:
            whole = spec.strength == 1
            source = encode_source(
                parts.vae,
                spec.source,
                generator,
                parts.dtype,
                only_masked=whole and parts.takes_mask,
            )
            latents = self._noised(source, steps[0], whole=whole)
        return _Row(
            spec=spec,
            steps=steps,
            generator=generator,
            latents=latents,
            x_0=latents,
            cond=cond,
            uncond=uncond,
            source=source,
            maps=tuple(self._map(control.pixels) for control in spec.controls),
            seen=self._seen(spec.image_prompt, 0),
            seen_by_twin=self._seen(spec.image_prompt, 1) if spec.guided else None,
        )

    def _noised(self, source: SourceLatents, first: Step, *, whole: bool) -> Tensor:
        if whole and source.mask is not None:
            return source.noise  # as diffusers' inpainting starts at strength 1
        return first.alpha_t * source.image + first.sigma_t * source.noise

    def _map(self, pixels: Pixels) -> Tensor:
        """(3, height, width) in [0, 1]."""
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        return tensor.to(self._parts.device, self._parts.dtype)

    def _seen(self, prompt: ImagePrompt | None, which: int) -> RowPrompt | None:
        """The image tokens of a row (`which` 0) or of its unconditional twin (1)."""
        adapter = self._parts.ip_adapter
        if prompt is None or adapter is None:
            return None
        embeds = np.stack([pair[which] for pair in prompt.embeds])
        tokens = adapter.tokens(torch.from_numpy(embeds).to(self._parts.device, self._parts.dtype))
        return RowPrompt(tokens, prompt.scale)

    def _prompt(self, ids: PromptIds, spec: RowSpec) -> Prompt:
        stacks = self._parts.lora_stacks
        on_text = {
            key
            for name, stack in stacks.items()
            if name.startswith("text_encoder")
            for key in stack.keys
        }
        return Prompt(ids, tuple((key, w) for key, w in spec.loras if key in on_text))

    def _draw(self, spec: RowSpec, generator: torch.Generator) -> Tensor:
        shape = (1, self._parts.latent_channels, *spec.latent_size)
        return torch.randn(shape, generator=generator, dtype=self._parts.dtype)[0]

    def _denoise(self, batch: Batch) -> None:
        rows = [self._rows[row.slot] for row in batch.rows if row.slot is not None]
        cursors = [row.cursor for row in batch.rows]
        steps = [row.steps[cursor] for row, cursor in zip(rows, cursors, strict=True)]
        latents = torch.stack([row.latents for row in rows])
        output = self._predict(rows, cursors, latents)
        z = self._noise(rows, steps).to(self._parts.device)
        x_prev, x_0 = tcd_step(
            latents,
            output,
            coefficients(steps, self._parts.device),
            z,
            self._parts.schedule.prediction_type,
        )
        for index, (row, step) in enumerate(zip(rows, steps, strict=True)):
            row.latents, row.x_0, row.noise = x_prev[index], x_0[index], None
            if row.source is not None and not self._parts.takes_mask:
                row.latents = row.source.blended(row.latents, step.alpha_prev, step.sigma_prev)

    def _predict(self, rows: Sequence[_Row], cursors: Sequence[int], latents: Tensor) -> Tensor:
        """What the UNet says for each row, guidance applied: (B, C, H / 8, W / 8)."""
        parts = self._parts
        twins = [index for index, row in enumerate(rows) if row.uncond is not None]
        order = [*range(len(rows)), *twins]
        embeds = [row.cond for row in rows] + [row.uncond for row in rows if row.uncond]
        timesteps = [rows[index].steps[cursors[index]].t for index in order]
        call = UNetInput(
            sample=torch.cat([latents, latents[twins]]) if twins else latents,
            timesteps=torch.tensor(timesteps).to(parts.device),
            hidden=torch.stack([e.hidden for e in embeds]),
            added=self._added([rows[index].spec for index in order], embeds),
        )
        loras = [dict(rows[index].spec.loras) for index in order]
        frames = rows[0].spec.frames
        if frames is not None:
            return self._guided(rows, twins, self._predict_video(call, frames, loras))
        parts.lora_stacks["unet"].set_rows(loras, parts.device, parts.dtype)
        if parts.ip_adapter is not None:
            seen = [row.seen for row in rows] + [rows[index].seen_by_twin for index in twins]
            parts.ip_adapter.prompts.set_rows(seen)
        controls = [self._controls(rows[index], cursors[index]) for index in order]
        residuals = parts.controlnets.residuals(call, controls)
        output: Tensor = parts.unet(
            self._unet_sample(call.sample, [rows[index] for index in order]),
            call.timesteps,
            encoder_hidden_states=call.hidden,
            added_cond_kwargs=call.added,
            down_block_additional_residuals=residuals and residuals.down,
            mid_block_additional_residual=residuals and residuals.mid,
            return_dict=False,
        )[0]
        return self._guided(rows, twins, output)

    def _predict_video(self, call: UNetInput, frames: int, loras: Sequence[RowWeights]) -> Tensor:
        """What the motion UNet says: (1 or 2, C, frames, H / 8, W / 8)."""
        parts = self._parts
        assert parts.motion_unet is not None
        parts.lora_stacks["motion_unet"].set_rows(loras, parts.device, parts.dtype)
        output: Tensor = parts.motion_unet(
            call.sample,
            call.timesteps,
            encoder_hidden_states=call.hidden.repeat_interleave(frames, dim=0),
            return_dict=False,
        )[0]
        return output

    def _guided(self, rows: Sequence[_Row], twins: Sequence[int], output: Tensor) -> Tensor:
        """Guidance, where it is in force: the twins' outputs stand behind all others."""
        if not twins:
            return output
        cond, uncond = output[: len(rows)], output[len(rows) :]
        scale = torch.tensor([rows[i].spec.guidance_scale for i in twins], dtype=output.dtype)
        scale = scale.to(output.device).view(-1, *[1] * (output.ndim - 1))
        guided = uncond + scale * (cond[list(twins)] - uncond)
        return cond.index_copy(0, torch.tensor(twins, device=output.device), guided)

    def _controls(self, row: _Row, cursor: int) -> list[RowControl]:
        return [
            RowControl(control.type, tensor, control.scale_at(cursor, row.spec.steps))
            for control, tensor in zip(row.spec.controls, row.maps, strict=True)
        ]

    def _unet_sample(self, sample: Tensor, rows: Sequence[_Row]) -> Tensor:
        """The latents, with mask and masked picture beside them for a 9-channel UNet."""
        if not self._parts.takes_mask:
            return sample
        beside = [
            torch.cat([row.source.mask, row.source.masked_image])
            for row in rows
            if row.source and row.source.mask is not None and row.source.masked_image is not None
        ]
        return torch.cat([sample, torch.stack(beside)], dim=1)

    def _added(
        self, specs: Sequence[RowSpec], embeds: Sequence[PromptEmbeds]
    ) -> dict[str, Tensor] | None:
        """sdxl's pooled text and its six numbers: original size, crop corner, target size."""
        pooled = [e.pooled for e in embeds if e.pooled is not None]
        if not pooled:
            return None
        ids = [(s.height, s.width, 0, 0, s.height, s.width) for s in specs]
        time_ids = torch.tensor(ids, dtype=self._parts.dtype).to(self._parts.device)
        return {"text_embeds": torch.stack(pooled), "time_ids": time_ids}

    def _noise(self, rows: Sequence[_Row], steps: Sequence[Step]) -> Tensor:
        """Each row's z, zeros where its step draws none. Drawn once, even if a step is retried."""
        for row, step in zip(rows, steps, strict=True):
            if row.noise is None:
                row.noise = (
                    self._draw(row.spec, row.generator)
                    if step.draws
                    else torch.zeros(row.latents.shape, dtype=self._parts.dtype)
                )
        return torch.stack([row.noise for row in rows if row.noise is not None])

    def _wait_for_older_steps(self) -> None:
        """Keeps the host at most `RUN_AHEAD` steps ahead of a GPU, so that joins stay prompt."""
        if self._parts.device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        self._in_flight.append(event)
        if len(self._in_flight) > RUN_AHEAD:
            self._in_flight.popleft().synchronize()
