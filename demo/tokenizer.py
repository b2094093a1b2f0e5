"""The demo models' CLIP tokenizer: byte-level BPE trained on `words.txt`.

Same pre-tokenisation, special tokens and files as `openai/clip-vit-large-patch14`,
with a vocabulary of 3 thousand tokens instead of 49 thousand. All families share it;
they differ only in the padding token, as the real ones do.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

WORDS = Path(__file__).with_name("words.txt")
VOCAB_SIZE = 3000
BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
SUFFIX = "</w>"
MAX_LENGTH = 77


class Vocabulary(NamedTuple):
    """Tokens in id order, and the merges in rank order."""

    tokens: dict[str, int]
    merges: list[tuple[str, str]]

    @property
    def bos_token_id(self) -> int:
        """The last id but one."""
        return self.tokens[BOS]

    @property
    def eos_token_id(self) -> int:
        """The last id."""
        return self.tokens[EOS]


def read_words() -> list[str]:
    """The distinct words of `words.txt`, sorted."""
    lines = WORDS.read_text(encoding="utf-8").splitlines()
    return sorted({word for line in lines if not line.startswith("#") for word in line.split()})


@cache
def train() -> Vocabulary:
    """Train the merges; the same words give the same vocabulary on every run.

    Ids follow CLIP: the 256 byte symbols ("!" is 0), the same at the end of a word,
    one token for each merge, then start and end of text.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [symbol + SUFFIX for symbol in symbols]
    backend = Tokenizer(BPE(end_of_word_suffix=SUFFIX))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # The trainer numbers word-ending symbols in the order of a randomly seeded hash map, and
    # breaks ties between merges by number. Naming them all beforehand makes it deterministic.
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        min_frequency=1,
        special_tokens=symbols + ends,
        initial_alphabet=symbols,
        end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    backend.train_from_iterator(read_words(), trainer)
    merges = [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]
    # Two merges can make the same token.
    merged = dict.fromkeys(left + right for left, right in merges)
    tokens = [*symbols, *ends, *merged, BOS, EOS]
    return Vocabulary({token: index for index, token in enumerate(tokens)}, merges)


def write_tokenizer(folder: Path, *, pad_token: str = EOS) -> None:
    """Write a `CLIPTokenizer` folder.

    It holds what `save_pretrained` writes, and the `vocab.json`, `merges.txt` and
    `special_tokens_map.json` of the repositories on the hub.
    """
    vocabulary = train()
    tokenizer = CLIPTokenizer(
        vocab=vocabulary.tokens,
        merges=vocabulary.merges,
        pad_token=pad_token,
        model_max_length=MAX_LENGTH,
    )
    tokenizer.save_pretrained(str(folder))
    merges = "".join(f"{left} {right}\n" for left, right in vocabulary.merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    write_json(folder / "vocab.json", vocabulary.tokens)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad_token, "unk_token": EOS}
    write_json(folder / "special_tokens_map.json", special)


def write_json(file: Path, value: object) -> None:
    """Write `value` as the Hugging Face libraries do: indented UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
