"""CLIP's real vocabulary, from a file that open_clip ships, and demo models that read by it."""

import gzip
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTokenizer, PreTrainedModel

from demo.tokenizer import BOS, EOS, MAX_LENGTH, SUFFIX
from deployments.diffusion.engine.models.components import Components

SIZE = 49408
FILE = "bpe_simple_vocab_16e6.txt.gz"


def clip_tokenizer(pad_token: str = EOS) -> CLIPTokenizer:
    """As `openai/clip-vit-large-patch14` has it; sdxl's second pads with "!"."""
    package = find_spec("open_clip")  # which is not imported: it wants torchvision
    assert package is not None
    assert package.origin is not None
    text = gzip.decompress(Path(package.origin).with_name(FILE).read_bytes()).decode()
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    count = SIZE - 2 * len(symbols) - 2
    merges = [(left, right) for left, right in map(str.split, text.splitlines()[1 : 1 + count])]
    merged = [left + right for left, right in merges]
    tokens = [*symbols, *(symbol + SUFFIX for symbol in symbols), *merged, BOS, EOS]
    vocab = {token: index for index, token in enumerate(tokens)}
    assert len(vocab) == SIZE
    return CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=MAX_LENGTH
    )


def with_clip(parts: Components) -> Components:
    """A demo model that reads by CLIP's vocabulary: its tables of tokens are random."""
    pads = [str(tokenizer.pad_token) for tokenizer in parts.tokenizers]
    return replace(
        parts,
        tokenizers=tuple(map(clip_tokenizer, pads)),
        text_encoders=tuple(map(_retabled, parts.text_encoders)),
    )


def _retabled(encoder: nn.Module) -> PreTrainedModel:
    """A text encoder of the same weights but for its table."""
    assert isinstance(encoder, PreTrainedModel)
    config = type(encoder.config).from_dict(
        encoder.config.to_dict()
        | {"vocab_size": SIZE, "bos_token_id": SIZE - 2, "eos_token_id": SIZE - 1}
    )
    torch.manual_seed(0)
    made: PreTrainedModel = type(encoder)(config)
    kept = {n: t for n, t in encoder.state_dict().items() if "token_embedding" not in n}
    missing, strange = made.load_state_dict(kept, strict=False)
    assert ("token_embedding.weight" in missing[0], len(missing), strange) == (True, 1, [])
    return made.eval().requires_grad_(False)
