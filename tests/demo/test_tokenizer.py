"""The demo tokenizer takes any text, keeps prompts short, and loads from either set of files."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from demo.tokenizer import EOS, MAX_LENGTH, VOCAB_SIZE, read_words, train, write_tokenizer

LONG_PROMPT = (
    "a photograph of an old wooden house by the lake, green hills behind it, "
    "soft morning light, mist over water"
)
FOREIGN = ("صورة قطة على سطح القمر", "🦊 in the ❄️", "naïve café, 東京タワー")


@pytest.fixture(scope="module", params=[EOS, "!"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, pad_token=request.param)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def test_every_byte_is_in_the_vocabulary() -> None:
    tokens = list(train().tokens)
    assert len(tokens) == VOCAB_SIZE
    assert tokens[0] == "!"
    assert all(len(token) == 1 for token in tokens[:256])
    assert tokens[256:512] == [token + "</w>" for token in tokens[:256]]
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]


@pytest.mark.parametrize("text", FOREIGN)
def test_any_text_round_trips(tokenizer: CLIPTokenizer, text: str) -> None:
    decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    # CLIP's decoder puts a space after every word and sign.
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_prompt_lengths(tokenizer: CLIPTokenizer) -> None:
    assert len(LONG_PROMPT.split()) == 20
    assert len(tokenizer(LONG_PROMPT).input_ids) < 45
    assert tokenizer("").input_ids == [VOCAB_SIZE - 2, VOCAB_SIZE - 1]
    assert tokenizer.model_max_length == MAX_LENGTH
    lengths = [len(tokenizer(word).input_ids) - 2 for word in read_words()]
    assert sum(lengths) < 2 * len(lengths)


def test_padding(tokenizer: CLIPTokenizer) -> None:
    padded = tokenizer("fox", padding="max_length").input_ids
    assert len(padded) == MAX_LENGTH
    assert padded[-1] == tokenizer.pad_token_id == train().tokens[tokenizer.pad_token]


def test_hub_files_give_the_same_tokens(
    folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """`vocab.json` and `merges.txt`, all that many repositories have, suffice."""
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    from_hub_files = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ("a red fox in the snow", LONG_PROMPT, "what a day!", *FOREIGN):
        assert from_hub_files(text).input_ids == tokenizer(text).input_ids
    assert from_hub_files.pad_token_id == tokenizer.pad_token_id
