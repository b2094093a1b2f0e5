"""Captions to token ids, as the pipelines' tokenizers make them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from demo.base import OPENCLIP_PAD
from demo.tokenizer import EOS, MAX_LENGTH, train

PADS = {"sd15": (EOS,), "sd21": (OPENCLIP_PAD,), "sdxl": (EOS, OPENCLIP_PAD)}


class Tokenizers:
    """Those of a family's text encoders."""

    def __init__(self, family: str) -> None:
        vocabulary = train()
        self._tokenizers = [
            CLIPTokenizer(
                vocab=vocabulary.tokens,
                merges=vocabulary.merges,
                pad_token=pad,
                model_max_length=MAX_LENGTH,
            )
            for pad in PADS[family]
        ]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(texts, encoders, 77) int64."""
        distinct = list(dict.fromkeys(texts))
        ids = torch.stack([self._ids(tokenizer, distinct) for tokenizer in self._tokenizers], 1)
        place = {text: index for index, text in enumerate(distinct)}
        return ids[[place[text] for text in texts]]

    def _ids(self, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
        encoded = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
        ids: Tensor = encoded.input_ids
        return ids
