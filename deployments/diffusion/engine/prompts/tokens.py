"""Texts to token ids, for all text encoders of a checkpoint."""

from collections.abc import Sequence
from threading import Lock

from transformers import CLIPTokenizer

from deployments.contracts.errors import InvalidRequest
from deployments.diffusion.engine.policy.spec import PromptIds

MAX_CHARS = 20_000  # of one text; 75 tokens are hardly a thousand


class Tokenizers:
    """Tokenises for all text encoders of a checkpoint. Thread-safe."""

    def __init__(self, tokenizers: Sequence[CLIPTokenizer]) -> None:
        self._tokenizers = tuple(tokenizers)
        self._lock = Lock()  # the tokenizers keep padding and truncation as mutable state

    def tokenize(self, text: str, param: str) -> PromptIds:
        """Token ids of a text.

        Raises `InvalidRequest` naming `param` when a text encoder cannot read it whole:
        nothing is cut off in silence.
        """
        if len(text) > MAX_CHARS:  # tokenising takes time in proportion
            raise InvalidRequest(
                f"{param} is {len(text)} characters long; at most {MAX_CHARS} are read", param
            )
        ids: list[tuple[int, ...]] = []
        tokens = 0
        for tokenizer in self._tokenizers:
            with self._lock:
                whole: list[int] = tokenizer(text, verbose=False).input_ids
            length = len(whole) - 2  # without the marks of begin and end
            room = tokenizer.model_max_length - 2
            if length > room:
                raise InvalidRequest(
                    f"{param} is {length} tokens long; this model reads at most {room}", param
                )
            tokens = max(tokens, length)
            ids.append((*whole, *[tokenizer.pad_token_id] * (room - length)))
        return PromptIds(tuple(ids), tokens)
