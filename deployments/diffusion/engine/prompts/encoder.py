"""Token ids to the embeddings that the UNet attends to, with a cache."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deployments.diffusion.engine.adapters.bank import RowWeights
from deployments.diffusion.engine.models.checkpoints.checkpoint import final_norm
from deployments.diffusion.engine.models.checkpoints.identity import TEXT_ENCODERS
from deployments.diffusion.engine.models.components import Components
from deployments.diffusion.engine.models.placing import to_device
from deployments.diffusion.engine.policy.spec import PromptIds

MOST_WINDOWS = 64  # of one call of a text encoder


class PromptEmbeds(NamedTuple):
    """`hidden`: (windows * 77, width), what the UNet attends to; `pooled`: (width,) for sdxl, of
    the first window."""

    hidden: Tensor
    pooled: Tensor | None

    @property
    def nbytes(self) -> int:
        """Device memory it takes."""
        return sum(tensor.nbytes for tensor in self if tensor is not None)


@dataclass(frozen=True)
class Prompt:
    """One text to encode, the weights of the adapters on its text encoders, and how many of their
    last layers are passed over."""

    ids: PromptIds
    loras: tuple[tuple[str, float], ...] = ()
    clip_skip: int = 0


class _Window(NamedTuple):
    ids: tuple[int, ...]
    prompt: Prompt


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
        encoders = range(len(parts.text_encoders))
        read = [self._read(index, prompts) for index in encoders]  # by encoder, then by prompt
        found: list[PromptEmbeds] = []
        for of_prompt in zip(*read, strict=True):
            hidden = torch.cat([states for states, _ in of_prompt], dim=-1)
            found.append(PromptEmbeds(hidden.to(parts.dtype), of_prompt[-1][1]))
        return found

    def _read(self, index: int, prompts: Sequence[Prompt]) -> list[tuple[Tensor, Tensor | None]]:
        """What one text encoder says of each prompt: (windows * 77, width), and pooled."""
        windows = [
            _Window(ids, prompt) for prompt in prompts for ids in self._window_ids(index, prompt)
        ]
        states: list[Tensor] = []
        pooled: list[Tensor | None] = []
        for start in range(0, len(windows), MOST_WINDOWS):
            for hidden, its_pooled in self._call(index, windows[start : start + MOST_WINDOWS]):
                states.append(hidden)
                pooled.append(its_pooled)
        found: list[tuple[Tensor, Tensor | None]] = []
        place = 0
        for prompt in prompts:
            count = len(prompt.ids.ids[index])
            # Copies: a view would keep the whole batch alive for as long as one is cached.
            hidden = torch.cat(states[place : place + count])
            first = pooled[place]
            place += count
            if prompt.ids.weights is not None:
                hidden = self._emphasised(hidden, states[place], prompt.ids.weights[index])
                place += 1
            found.append((hidden, None if first is None else first.clone()))
        return found

    def _window_ids(self, index: int, prompt: Prompt) -> Iterator[tuple[int, ...]]:
        """The windows of a prompt, and where it has weights an empty one behind them."""
        yield from prompt.ids.ids[index]
        if prompt.ids.weights is not None:
            tokenizer = self._components.tokenizers[index]
            pads = [tokenizer.pad_token_id] * (tokenizer.model_max_length - 2)
            yield (tokenizer.bos_token_id, tokenizer.eos_token_id, *pads)

    def _emphasised(
        self, hidden: Tensor, empty: Tensor, weights: Sequence[Sequence[float]]
    ) -> Tensor:
        """empty + weight * (hidden - empty), token by token."""
        device = self._components.device
        flat = to_device(torch.tensor([w for window in weights for w in window]), device)
        empty = empty.repeat(len(weights), 1)
        return empty + flat[:, None].to(hidden.dtype) * (hidden - empty)

    def _call(
        self, index: int, windows: Sequence[_Window]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(77, width) of each window, and sdxl's pooled embedding."""
        parts = self._components
        encoder = parts.text_encoders[index]
        bank = parts.banks[TEXT_ENCODERS[index]]
        loras: list[RowWeights] = [dict(window.prompt.loras) for window in windows]
        bank.weigh(to_device(torch.tensor(bank.mix(loras)), parts.device))
        ids = to_device(torch.tensor([window.ids for window in windows]), parts.device)
        two = parts.family.text_encoders == 2
        layers = two or any(window.prompt.clip_skip for window in windows)
        output = encoder(ids, output_hidden_states=layers)
        # Of all rows at once: an adapter on the norm knows each by its place.
        normed = {
            skip: final_norm(encoder)(output.hidden_states[-1 - skip])
            for skip in {window.prompt.clip_skip for window in windows} - {0}
            if not two
        }
        for row, window in enumerate(windows):
            skip = window.prompt.clip_skip
            if two:
                hidden = output.hidden_states[-2 - skip][row]
            elif skip:
                hidden = normed[skip][row]
            else:
                hidden = output[0][row]
            yield hidden, output[0][row].to(parts.dtype) if output[0].ndim == 2 else None
