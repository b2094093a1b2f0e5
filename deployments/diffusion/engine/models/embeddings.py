"""Textual inversion: words of a model's own, with vectors behind its text encoders' tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from configs.sources import fetch
from deployments.diffusion.engine.adapters.bundled import bundled_words
from deployments.diffusion.engine.adapters.files import LoraError, lora_file

Words = dict[str, tuple[tuple[int, ...], ...]]  # by word, of each text encoder its ids
# How sdxl's files name the vectors of its two text encoders.
_PAIRS = ("clip_l", "clip_g")


def add_embeddings(
    sources: Mapping[str, str],
    text_encoders: Sequence[nn.Module],
    tokenizers: Sequence[CLIPTokenizer],
) -> Words:
    """Gives text encoders the words of a model's `embeddings`.

    Args:
        sources: by word; each of one safetensors file, which may be an adapter's that brings the
            word along.

    Raises `ValueError` naming the word whose file is none, or of another family.
    """
    words: Words = {}
    for word, source in sources.items():
        try:
            tables = [_table(encoder) for encoder in text_encoders]
            widths = [table.embedding_dim for table in tables]
            vectors = read_embedding(word, lora_file(fetch(source)), widths)
            words[word] = tuple(map(_appended, tables, vectors))
        except (LoraError, SafetensorError, ValueError) as error:
            raise ValueError(f"embeddings.{word}: {error}") from error
    if words:
        for encoder, tokenizer in zip(text_encoders, tokenizers, strict=True):
            _find_end(encoder, tokenizer)
    return words


def read_embedding(word: str, file: Path, widths: Sequence[int]) -> list[Tensor]:
    """A word's vectors, (n, width) for each text encoder. Raises `ValueError` if a file has none of
    these widths."""
    encoders = len(widths)
    tensors = _parts(word, load_file(file))
    if encoders == len(_PAIRS) and set(tensors) == set(_PAIRS):
        found = [tensors[name] for name in _PAIRS]
    elif encoders == 1 and len(tensors) == 1:  # A1111's emb_params, or diffusers' own word
        found = list(tensors.values())
    else:
        needed = " and ".join(_PAIRS) if encoders > 1 else "one tensor"
        held = ", ".join(sorted(tensors)[:4]) or "nothing"
        raise ValueError(f"{file.name} holds {held}; {needed} is needed: is it of another family?")
    if any(tensor.ndim not in (1, 2) for tensor in found):
        raise ValueError(f"{file.name} holds no vectors")
    for tensor, width in zip(found, widths, strict=True):
        if tensor.shape[-1] != width:
            raise ValueError(
                f"its vectors have {tensor.shape[-1]} numbers, the text encoder's {width}: is it "
                "of another family?"
            )
        if not tensor.float().isfinite().all():
            raise ValueError("it holds numbers that are not finite")
    return [tensor.view(-1, tensor.shape[-1]) for tensor in found]


def _parts(word: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a word: all of a file, or of an adapter's those of the word alone."""
    bundled = {found.lower(): parts for found, parts in bundled_words(tensors).items()}
    if not bundled:
        return tensors
    if word.lower() not in bundled:
        raise ValueError(f"the file brings along {', '.join(map(repr, bundled))}, not {word!r}")
    return {part: tensors[name] for part, name in bundled[word.lower()].items()}


def _appended(table: nn.Embedding, vectors: Tensor) -> tuple[int, ...]:
    """The ids of vectors that now stand behind a text encoder's table."""
    first = len(table.weight)
    whole = torch.cat([table.weight.detach(), vectors.to(table.weight)])
    table.weight = nn.Parameter(whole, requires_grad=False)
    table.num_embeddings = len(whole)
    return tuple(range(first, len(whole)))


def _table(encoder: nn.Module) -> nn.Embedding:
    """A text encoder's vectors by token."""
    for name, module in encoder.named_modules():
        if name.endswith("token_embedding") and isinstance(module, nn.Embedding):
            return module
    raise ValueError("the text encoder has no table of tokens")


def _find_end(encoder: nn.Module, tokenizer: CLIPTokenizer) -> None:
    """Has the pooled embedding taken where the text ends. Older configurations have it taken at
    the highest id, which a word of one's own has now."""
    for module in encoder.modules():
        if isinstance(module, CLIPTextModel):
            module.eos_token_id = tokenizer.eos_token_id
