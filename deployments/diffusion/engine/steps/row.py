"""One row on the device: all that a step needs of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.diffusion.engine.models.image_attention import Seen
from deployments.diffusion.engine.models.schedule import Step
from deployments.diffusion.engine.pixels.sources import SourceLatents
from deployments.diffusion.engine.policy.spec import RowSpec
from deployments.diffusion.engine.prompts.encoder import PromptEmbeds


@dataclass(slots=True)
class Row:
    """An image on its way.

    Attributes:
        latents: (C, h, w), of a video (C, frames, h, w): where it stands.
        x_0: the same: the final latents as the last step estimated them.
        half: the same: of a video with guidance, what the UNet said to the prompt, until it has
            been called without.
        uncond: what its unconditional twin attends to, where guidance is in force.
        controls: what each of the row's controls has of its map, in order: see `RowControl.seen`.
            Of a video one map for all frames, or one of each.
        seen, seen_by_twin: by IP-Adapters, in order.
        beside: (5, h, w) mask and masked picture, for a 9-channel UNet.
        generator: on the CPU; the row's noise comes from it, step by step.
        noise: z of the steps for which it was drawn, on the CPU; `None` where a step draws none.
        ready: of a GPU: reached when all of these are there.
    """

    spec: RowSpec
    steps: tuple[Step, ...]
    latents: Tensor
    x_0: Tensor
    cond: PromptEmbeds
    uncond: PromptEmbeds | None
    source: SourceLatents | None
    controls: tuple[tuple[Tensor, ...], ...]
    seen: tuple[Seen, ...]
    seen_by_twin: tuple[Seen, ...]
    beside: Tensor | None
    generator: torch.Generator
    noise: list[Tensor | None]
    ready: torch.cuda.Event | None = None
    half: Tensor | None = None

    @property
    def awaits_twin(self) -> bool:
        """Whether its step takes another call after the next one, for its unconditional twin."""
        return self.spec.frames is not None and self.uncond is not None and self.half is None

    @property
    def attended(self) -> PromptEmbeds:
        """What it attends to in its next call."""
        return self.cond if self.half is None or self.uncond is None else self.uncond

    @property
    def sees(self) -> tuple[Seen, ...]:
        """What it sees by IP-Adapters in its next call."""
        return self.seen if self.half is None else self.seen_by_twin

    def wait(self) -> None:
        """Lets the current stream go on when the row is there, and keeps its memory until that
        stream is done with it. The host does not wait."""
        if self.ready is None:
            return
        stream = torch.cuda.current_stream(self.latents.device)
        stream.wait_event(self.ready)
        for tensor in self._tensors():
            tensor.record_stream(stream)
        self.ready = None

    def draw(self, steps: int) -> None:
        """Has the noise of so many steps at hand. Each is drawn once, in their order."""
        for step in self.steps[len(self.noise) : steps]:
            self.noise.append(self._drawn() if step.draws else None)

    def _drawn(self) -> Tensor:
        shape = (1, *self.latents.shape)
        return torch.randn(shape, generator=self.generator, dtype=self.latents.dtype)[0]

    def _tensors(self) -> Iterator[Tensor]:
        yield self.latents
        for features in self.controls:
            yield from features
        for embeds in (self.cond, self.uncond):
            if embeds is not None:
                yield embeds.hidden
                if embeds.pooled is not None:
                    yield embeds.pooled
        if self.source is not None:
            yield from (self.source.image, self.source.noise)
            if self.source.mask is not None:
                yield self.source.mask
        for seen in (*self.seen, *self.seen_by_twin):
            yield from (seen.keys_values, *seen.weights)
        if self.beside is not None:
            yield self.beside
