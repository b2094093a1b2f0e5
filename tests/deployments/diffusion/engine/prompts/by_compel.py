"""What compel makes of a prompt: a judge of long and of weighted ones."""

from collections.abc import Sequence

import torch
from compel import EmbeddingsProvider, ReturnedEmbeddingsType
from compel.embeddings_provider import SplitLongTextMode
from torch import Tensor, nn
from transformers import CLIPTokenizer


def by_compel(
    tokenizers: Sequence[CLIPTokenizer],
    text_encoders: Sequence[nn.Module],
    fragments: list[str],
    weights: list[float],
) -> Tensor:
    """(1, windows * 77, width): fragments of a text by their weights, in windows."""
    kind = (
        ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
        if len(text_encoders) == 1
        else ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    )
    hidden = [
        EmbeddingsProvider(
            tokenizer,
            encoder,
            truncate=False,
            returned_embeddings_type=kind,
            split_long_text_mode=SplitLongTextMode.BRUTAL,
        ).get_embeddings_for_weighted_prompt_fragments([fragments], [weights])
        for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True)
    ]
    return torch.cat(hidden, dim=-1)
