"""Token ids to the embeddings that the UNet attends to, with a cache."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deployments.diffusion.engine.adapters.bank import RowWeights
from deployments.diffusion.engine.models.checkpoint import TEXT_ENCODERS
from deployments.diffusion.engine.models.components import Components
from deployments.diffusion.engine.models.placing import to_device
from deployments.diffusion.engine.policy.spec import PromptIds


class PromptEmbeds(NamedTuple):
    """`hidden`: (77, width), what the UNet attends to; `pooled`: (width,) for sdxl."""

    hidden: Tensor
    pooled: Tensor | None

    @property
    def nbytes(self) -> int:
        """Device memory it takes."""
        return sum(tensor.nbytes for tensor in self if tensor is not None)


@dataclass(frozen=True)
class Prompt:
    """One text to encode, and the weights of the adapters on its text encoders."""

    ids: PromptIds
    loras: tuple[tuple[str, float], ...] = ()


class PromptEncoder:
    """Encodes prompts in batches and remembers the most recent ones. One thread calls it.

    Args:
        cache_bytes: device memory for remembered embeddings; 0 remembers nothing.
    """

    def __init__(self, components: Components, cache_bytes: int) -> None:
        self._components = components
        self._cache: OrderedDict[Prompt, PromptEmbeds] = OrderedDict()
        self._cached_bytes = 0
        self.cache_bytes = cache_bytes

    def encode(self, prompts: Sequence[Prompt]) -> list[PromptEmbeds]:
        """Embeddings of each prompt, in order; equal prompts are encoded once."""
        known = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if missing:
            try:
                known |= zip(missing, self._encode(missing), strict=True)
            finally:
                for name in self._components.text_banks:
                    self._components.banks[name].clear()  # or an adapter that goes would stay
        for prompt, embeds in known.items():
            self._remember(prompt, embeds)
        return [known[prompt] for prompt in prompts]

    def zeros(self, like: PromptEmbeds) -> PromptEmbeds:
        """What sdxl takes for an absent negative prompt."""
        pooled = None if like.pooled is None else torch.zeros_like(like.pooled)
        return PromptEmbeds(torch.zeros_like(like.hidden), pooled)

    def _remember(self, prompt: Prompt, embeds: PromptEmbeds) -> None:
        if prompt not in self._cache:
            self._cached_bytes += embeds.nbytes
        self._cache[prompt] = embeds
        self._cache.move_to_end(prompt)
        while self._cached_bytes > self.cache_bytes:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes

    def _encode(self, prompts: Sequence[Prompt]) -> list[PromptEmbeds]:
        parts = self._components
        hidden: list[Tensor] = []
        pooled: Tensor | None = None
        loras: list[RowWeights] = [dict(prompt.loras) for prompt in prompts]
        for index, encoder in enumerate(parts.text_encoders):
            listed = torch.tensor([prompt.ids.ids[index] for prompt in prompts])
            ids = to_device(listed, parts.device)
            bank = parts.banks[TEXT_ENCODERS[index]]
            bank.weigh(to_device(torch.tensor(bank.mix(loras)), parts.device))
            if parts.family.text_encoders == 1:
                hidden.append(encoder(ids)[0])
                continue
            output = encoder(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            if output[0].ndim == 2:
                pooled = output[0].to(parts.dtype)
        joined = torch.cat(hidden, dim=-1).to(parts.dtype)
        return [
            # Clones: a view would keep the whole batch alive for as long as one is cached.
            PromptEmbeds(joined[i].clone(), None if pooled is None else pooled[i].clone())
            for i in range(len(prompts))
        ]
