"""Long, weighted and skipped prompts, by CLIP's vocabulary: what compel makes of them, and what is
made by hand."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.families import FamilyName
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import PromptSyntax
from deployments.diffusion.engine.adapters.changes import Effect, Shift
from deployments.diffusion.engine.models.components import Components, load
from deployments.diffusion.engine.policy.spec import MAX_WINDOWS
from deployments.diffusion.engine.prompts.encoder import (
    MOST_WINDOWS,
    Prompt,
    PromptEmbeds,
    PromptEncoder,
)
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from tests.clip import with_clip
from tests.conftest import model_args
from tests.deployments.diffusion.engine.prompts.by_compel import by_compel

FAMILIES: tuple[FamilyName, ...] = ("sd15", "sdxl")
WORD = "a red fox in the snow by the lake at night, "
TEXTS = {"short": WORD, "two windows": WORD * 9, "five windows": WORD * 30}
assert_close = torch.testing.assert_close


@pytest.fixture(scope="module")
def loaded(demo_models: Path) -> Mapping[FamilyName, Components]:
    return {family: with_clip(load(model_args(demo_models, family))) for family in FAMILIES}


def encode(
    parts: Components, *texts: str, syntax: PromptSyntax = "plain", clip_skip: int = 0
) -> list[PromptEmbeds]:
    tokenize = Tokenizers(parts.tokenizers).tokenize
    prompts = [Prompt(tokenize(text, "prompt", syntax), (), clip_skip) for text in texts]
    with torch.inference_mode():
        return PromptEncoder(parts, 0).encode(prompts)


def test_the_vocabulary_is_clips(loaded: Mapping[FamilyName, Components]) -> None:
    """Ids that everybody knows."""
    for parts in loaded.values():
        for ids in Tokenizers(parts.tokenizers).tokenize("a photo of a cat", "prompt").ids:
            assert ids[0][:7] == (49406, 320, 1125, 539, 320, 2368, 49407)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_in_words(family: FamilyName, loaded: Mapping[FamilyName, Components]) -> None:
    """What people are shown of each window is what stands in it, and no more."""
    parts = loaded[family]
    ids = tuple((49408 + index,) for index in range(len(parts.tokenizers)))
    tokenizers = Tokenizers(parts.tokenizers, {"sks": ids})
    text = "a (red:1.2) SKS, by night " * 20
    read = tokenizers.read(text, "prompt", "weighted")
    assert read.count == 20 * 6
    assert len(read.windows) == 2
    assert " ".join(read.windows).replace(" ,", ",") == ("a red sks, by night " * 20).strip()
    assert tokenizers.read("", "prompt").windows == ("",)
    with pytest.raises(InvalidRequest, match="tokens long"):
        tokenizers.read("a " * 75 * (MAX_WINDOWS + 1), "prompt")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_compels(
    family: FamilyName, text: str, loaded: Mapping[FamilyName, Components]
) -> None:
    parts = loaded[family]
    (found,) = encode(parts, TEXTS[text])
    expected = by_compel(parts.tokenizers, parts.text_encoders, [TEXTS[text]], [1.0])[0]
    assert len(found.hidden) % 77 == 0
    assert_close(found.hidden, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_compels(family: FamilyName, loaded: Mapping[FamilyName, Components]) -> None:
    """Above 1; below, compel goes another way."""
    parts = loaded[family]
    (found,) = encode(parts, f"a (red fox:1.4) in the (((snow))), {WORD * 9}", syntax="weighted")
    fragments = ["a ", "red fox", " in the ", "snow", f", {WORD * 9}"]
    weights = [1.0, 1.4, 1.0, 1.1**3, 1.0]
    expected = by_compel(parts.tokenizers, parts.text_encoders, fragments, weights)[0]
    assert_close(found.hidden, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_move_tokens_from_the_empty_text(
    family: FamilyName, loaded: Mapping[FamilyName, Components]
) -> None:
    parts = loaded[family]
    plain, empty = encode(parts, "a red fox", "")
    weights = torch.ones(77)
    tokenizer = parts.tokenizers[0]
    first = len(tokenizer("a").input_ids) - 1
    last = len(tokenizer("a red").input_ids) - 1
    weights[first:last] = 0.3
    (found,) = encode(parts, "a (red:0.3) fox", syntax="weighted")
    expected = empty.hidden + weights[:, None] * (plain.hidden - empty.hidden)
    assert_close(found.hidden, expected)
    if family == "sdxl":
        assert found.pooled is not None
        assert plain.pooled is not None
        assert_close(found.pooled, plain.pooled)
    assert_close(encode(parts, "a (red:1) fox", syntax="weighted")[0].hidden, plain.hidden)
    (brackets,) = encode(parts, "a (red:0.3) fox")
    assert not torch.allclose(brackets.hidden[:77], plain.hidden), "plain brackets are text"


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_passed_over_as_diffusers_does_it(
    family: FamilyName, skip: int, loaded: Mapping[FamilyName, Components]
) -> None:
    parts = loaded[family]
    (found,) = encode(parts, WORD, clip_skip=skip)
    hidden: list[Tensor] = []
    for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
        ids = tokenizer(WORD, padding="max_length", return_tensors="pt").input_ids
        with torch.inference_mode():
            states = encoder(ids, output_hidden_states=True).hidden_states
            if family == "sdxl":
                hidden.append(states[-(skip + 2)][0])
            else:
                norm = encoder.get_submodule("final_layer_norm")
                hidden.append(norm(states[-(skip + 1)])[0])
    assert_close(found.hidden, torch.cat(hidden, dim=-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_side_by_side(family: FamilyName, loaded: Mapping[FamilyName, Components]) -> None:
    """More windows than one call takes, of several kinds, are those of each prompt alone."""
    parts = loaded[family]
    tokenize = Tokenizers(parts.tokenizers).tokenize
    kinds: list[tuple[str, PromptSyntax, int]] = [
        (TEXTS["short"], "plain", 0),
        (f"(({WORD * 20}))", "weighted", 1),
        ("", "weighted", 0),
        (TEXTS["five windows"], "plain", 1),
        ("(fox:1.5)", "weighted", 0),
    ]
    prompts = [
        Prompt(tokenize(f"{number} {text}", "prompt", syntax), (), skip)
        for number, (text, syntax, skip) in enumerate(kinds * 8)
    ]
    assert sum(len(prompt.ids.ids[0]) for prompt in prompts) > MOST_WINDOWS
    encoder = PromptEncoder(parts, 0)
    with torch.inference_mode():
        together = encoder.encode(prompts)
        for prompt, found in zip(prompts, together, strict=True):
            (alone,) = encoder.encode([prompt])
            assert_close(found.hidden, alone.hidden)
            if alone.pooled is not None:
                assert found.pooled is not None
                assert_close(found.pooled, alone.pooled)


def test_an_adapter_on_the_norm_that_skipped_layers_pass(demo_models: Path) -> None:
    """It knows each row by its place among all."""
    parts = load(model_args(demo_models, "sd15"))
    shift = Shift(torch.randn(32), torch.randn(32))
    parts.banks["text_encoder"].hold("style", {"final_layer_norm": Effect(None, (shift,))})
    tokenize = Tokenizers(parts.tokenizers).tokenize
    loras = (("style", 1.0),)
    prompts = [
        Prompt(tokenize(text, "prompt"), styled, skip)
        for text in ("a red fox", "a red ball")
        for styled in (loras, ())
        for skip in (0, 1)
    ]
    encoder = PromptEncoder(parts, 0)
    with torch.inference_mode():
        together = encoder.encode(prompts)
        for prompt, found in zip(prompts, together, strict=True):
            assert_close(found.hidden, encoder.encode([prompt])[0].hidden)
    assert not torch.allclose(together[1].hidden, together[3].hidden)


def test_all_tokens_are_counted(loaded: Mapping[FamilyName, Components]) -> None:
    tokenize = Tokenizers(loaded["sd15"].tokenizers).tokenize
    one = tokenize("fox", "prompt").tokens
    for count in (1, 75, 76, 150, 151, 400):
        found = tokenize("fox " * count, "prompt")
        assert found.tokens == one * count
        assert len(found.ids[0]) == -(-found.tokens // 75)
        assert all(len(window) == 77 for window in found.ids[0])


def test_what_is_not_read(loaded: Mapping[FamilyName, Components]) -> None:
    parts = loaded["sd15"]
    tokenize = Tokenizers(parts.tokenizers).tokenize
    most = parts.max_prompt_tokens
    assert most == MAX_WINDOWS * 75
    with pytest.raises(InvalidRequest, match=rf"negative_prompt is \d+ tokens .* at most {most}"):
        tokenize("a b " * 5000, "negative_prompt")
    with pytest.raises(InvalidRequest, match=r"name style adapters in loras.*\"ink\"") as refused:
        tokenize("a fox <lora:ink:0.8>", "prompt")
    assert refused.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="gives 'fox' the weight 11"):
        tokenize("a (fox:11)", "prompt", "weighted")
    assert tokenize("a (fox:11)", "prompt").tokens
