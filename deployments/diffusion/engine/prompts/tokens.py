"""Texts to token ids, for all text encoders of a checkpoint.

A text encoder reads 77 tokens. A longer text is read in windows of 75, with begin and end marks
each, whose embeddings stand one after the other.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from threading import Lock

from transformers import CLIPTokenizer

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import PromptSyntax
from deployments.contracts.tokens import PromptTokens
from deployments.diffusion.engine.policy.spec import MAX_WINDOWS, PromptIds
from deployments.diffusion.engine.prompts.emphasis import emphasised

MAX_CHARS = 20_000  # of one text: tokenising takes time in proportion
MAX_EMPHASIS = 10.0
_LORA_TAG = re.compile(r"<(?:lora|lyco|lycoris|hypernet):([^:>]*)[^>]*>", re.IGNORECASE)
_Weighed = tuple[list[int], list[float]]  # tokens, and how strongly each acts


class Tokenizers:
    """Tokenises for all text encoders of a checkpoint. Thread-safe.

    Args:
        embeddings: ids by word that are not of the vocabulary (textual inversion), of each
            text encoder. Words are found in any case, between what are no letters.
    """

    def __init__(
        self,
        tokenizers: Sequence[CLIPTokenizer],
        embeddings: Mapping[str, Sequence[Sequence[int]]] | None = None,
    ) -> None:
        self._tokenizers = tuple(tokenizers)
        self._embeddings = {word.lower(): ids for word, ids in (embeddings or {}).items()}
        words = sorted(map(re.escape, self._embeddings), key=len, reverse=True)
        self._words = re.compile(rf"(?<!\w)({'|'.join(words)})(?!\w)", re.IGNORECASE)
        self._lock = Lock()  # the tokenizers keep padding and truncation as mutable state

    def tokenize(self, text: str, param: str, syntax: PromptSyntax = "plain") -> PromptIds:
        """Token ids of a text.

        Raises `InvalidRequest` naming `param` when a text encoder cannot read it whole:
        nothing is cut off in silence.
        """
        if len(text) > MAX_CHARS:
            raise InvalidRequest(
                f"{param} is {len(text)} characters long; at most {MAX_CHARS} are read", param
            )
        if (tag := _LORA_TAG.search(text)) is not None:
            raise InvalidRequest(
                f"{param} holds {tag[0][:60]!r}: name style adapters in loras, as "
                f'[{{"name": "{tag[1][:60]}", "weight": 1}}]',
                param,
            )
        parts = [(text, 1.0)] if syntax == "plain" else emphasised(text)
        for part, weight in parts:
            if abs(weight) > MAX_EMPHASIS:
                raise InvalidRequest(
                    f"{param} gives {part[:60]!r} the weight {weight:g}; at most "
                    f"{MAX_EMPHASIS:g} is read",
                    param,
                )
        read = [self._tokens(index, parts) for index in range(len(self._tokenizers))]
        longest = max(len(tokens) for tokens, _ in read)
        rooms = [tokenizer.model_max_length - 2 for tokenizer in self._tokenizers]
        windows = max(
            1, *(-(-len(tokens) // room) for (tokens, _), room in zip(read, rooms, strict=True))
        )
        if windows > MAX_WINDOWS:
            raise InvalidRequest(
                f"{param} is {longest} tokens long; this model reads at most "
                f"{MAX_WINDOWS * min(rooms)}",
                param,
            )
        weighed = any(weight != 1 for _, weights in read for weight in weights)
        return PromptIds(
            tuple(
                tuple(self._windows(tokenizer, tokens, windows))
                for tokenizer, (tokens, _) in zip(self._tokenizers, read, strict=True)
            ),
            longest,
            tuple(
                tuple(_weights(weights, room, windows))
                for (_, weights), room in zip(read, rooms, strict=True)
            )
            if weighed
            else None,
        )

    def read(self, text: str, param: str, syntax: PromptSyntax = "plain") -> PromptTokens:
        """A text as it is read; for people. Raises what `tokenize` does."""
        ids = self.tokenize(text, param, syntax)
        return PromptTokens(ids.tokens, tuple(map(self._said, ids.ids[0])))

    def _said(self, window: Sequence[int]) -> str:
        """A window of the first text encoder in words; those with embeddings as their words."""
        tokenizer = self._tokenizers[0]
        words = {ids[0][0]: word for word, ids in self._embeddings.items()}
        marks = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        said: list[str] = []
        for known, run in groupby(window, key=lambda one: one < len(tokenizer)):
            if known:
                said.append(tokenizer.decode([one for one in run if one not in marks]))
            else:
                said += [words[one] for one in run if one in words]
        return " ".join(" ".join(said).split())

    def _tokens(self, index: int, parts: Sequence[tuple[str, float]]) -> _Weighed:
        """What one text encoder reads, without marks."""
        tokens: list[int] = []
        weights: list[float] = []
        for text, weight in parts:
            for piece, embedding in self._pieces(text):
                ids = embedding[index] if embedding is not None else self._ids(index, piece)
                tokens += ids
                weights += [weight] * len(ids)
        return tokens, weights

    def _pieces(self, text: str) -> Iterator[tuple[str, Sequence[Sequence[int]] | None]]:
        """A text, cut where words stand that have embeddings of their own."""
        if not self._embeddings:
            yield text, None
            return
        for number, piece in enumerate(self._words.split(text)):
            if number % 2:
                yield piece, self._embeddings[piece.lower()]
            elif piece.strip():
                yield piece, None

    def _ids(self, index: int, text: str) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizers[index](text, verbose=False).input_ids
        return ids[1:-1]

    def _windows(
        self, tokenizer: CLIPTokenizer, tokens: Sequence[int], windows: int
    ) -> Iterator[tuple[int, ...]]:
        room = tokenizer.model_max_length - 2
        for start in range(0, windows * room, room):
            window = tokens[start : start + room]
            pads = [tokenizer.pad_token_id] * (room - len(window))
            yield (tokenizer.bos_token_id, *window, tokenizer.eos_token_id, *pads)


def _weights(weights: Sequence[float], room: int, windows: int) -> Iterator[tuple[float, ...]]:
    """Of each token of each window; marks and padding have 1."""
    for start in range(0, windows * room, room):
        window = weights[start : start + room]
        yield (1.0, *window, 1.0, *[1.0] * (room - len(window)))
