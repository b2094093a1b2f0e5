"""Words of a model's own: what diffusers makes of prompts with them, and files that are none."""

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.families import FamilyName
from deployments.diffusion.engine.adapters.reader import LoraError
from deployments.diffusion.engine.models.components import Components, load
from deployments.diffusion.engine.prompts.encoder import Prompt, PromptEmbeds, PromptEncoder
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from tests.conftest import demo_loras, model_args

WIDTH, SECOND_WIDTH = 32, 64  # of the text encoders; the second is sdxl's


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def saved(folder: Path, name: str, **tensors: Tensor) -> str:
    save_file(tensors, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def loaded(models: Path, family: FamilyName, embeddings: Mapping[str, str]) -> Components:
    return load(model_args(models, family).model_copy(update={"embeddings": dict(embeddings)}))


def encoded(parts: Components, *texts: str) -> list[PromptEmbeds]:
    tokenize = Tokenizers(parts.tokenizers, parts.words).tokenize
    with torch.inference_mode():
        return PromptEncoder(parts, 0).encode([Prompt(tokenize(text, "prompt")) for text in texts])


def test_words_are_what_diffusers_makes_of_them(demo_models: Path, tmp_path: Path) -> None:
    one, three = vectors(1, 1), vectors(3, 2)
    parts = loaded(
        demo_models,
        "sd15",
        {
            "<cat-toy>": saved(tmp_path, "one", **{"<cat-toy>": one[0]}),
            "bad-hands-5": saved(tmp_path, "three", emb_params=three),
        },
    )
    pipe = StableDiffusionPipeline.from_pretrained(demo_models / "sd15", local_files_only=True)
    pipe.load_textual_inversion({"<cat-toy>": one[0]}, token="<cat-toy>")
    pipe.load_textual_inversion({"bad-hands-5": three}, token="bad-hands-5")
    texts = ["a <cat-toy> in the snow", "bad-hands-5, a red bad-hands-5 fox", "a red fox"]
    for text, found in zip(texts, encoded(parts, *texts), strict=True):
        with torch.inference_mode():
            expected, _ = pipe.encode_prompt(text, "cpu", 1, False)
        torch.testing.assert_close(found.hidden, expected[0])


def test_words_stand_between_what_are_no_letters(demo_models: Path, tmp_path: Path) -> None:
    parts = loaded(demo_models, "sd15", {"toy": saved(tmp_path, "toy", emb_params=vectors(2))})
    tokenize = Tokenizers(parts.tokenizers, parts.words).tokenize
    first, last = parts.words["toy"][0]

    def uses(text: str) -> int:
        ids = tokenize(text, "prompt").ids[0][0]
        return sum(pair == (first, last) for pair in pairwise(ids))

    assert [uses(text) for text in ("toy", "a Toy, a TOY.", "(toy)", "toys", "untoy", "toy_x")] == [
        *(1, 2, 1, 0, 0, 0)
    ]
    assert tokenize("a toy", "prompt").tokens == tokenize("a", "prompt").tokens + 2
    long = tokenize("toy " * 40, "prompt")
    assert (long.tokens, len(long.ids[0])) == (80, 2)
    weighed = tokenize("a (toy:1.5)", "prompt", "weighted")
    assert weighed.weights is not None
    assert weighed.weights[0][0].count(1.5) == 2


def test_sdxl_has_pairs_and_its_pooled_embedding_is_that_of_the_end(
    demo_models: Path, tmp_path: Path
) -> None:
    """Also where the configuration is of the older kind, which takes the highest id for the end."""
    shutil.copytree(demo_models / "sdxl", tmp_path / "sdxl")
    config = tmp_path / "sdxl" / "text_encoder_2" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 2}))
    pair = {"clip_l": torch.randn(2, WIDTH), "clip_g": torch.randn(2, SECOND_WIDTH)}
    args = model_args(demo_models, "sdxl").model_copy(
        update={
            "checkpoint": str(tmp_path / "sdxl"),
            "embeddings": {"toy": saved(tmp_path, "toy", **pair)},
        }
    )
    parts = load(args)
    encoder = parts.text_encoders[1]
    (found,) = encoded(parts, "a toy fox")
    ids = Tokenizers(parts.tokenizers, parts.words).tokenize("a toy fox", "prompt").ids[1][0]
    end = ids.index(parts.tokenizers[1].eos_token_id)
    with torch.inference_mode():
        states = encoder(torch.tensor([ids]), output_hidden_states=True)
        last = encoder.get_submodule("text_model")(torch.tensor([ids]))[0][0, end]
        expected = encoder.get_submodule("text_projection")(last)
    assert found.pooled is not None
    torch.testing.assert_close(found.pooled, expected)
    torch.testing.assert_close(found.hidden[:, WIDTH:], states.hidden_states[-2][0])


@pytest.mark.parametrize("part", ["emb_params", "string_to_param.*"])
def test_a_style_brings_its_word_along(part: str, demo_models: Path, tmp_path: Path) -> None:
    """The word is what it would be in a file of its own, and the style as without it."""
    style = load_file(demo_loras(demo_models, "sd15")["papercut"])
    both = saved(tmp_path, "both", **style, **{f"bundle_emb.Fold.{part}": vectors(2)})
    parts = loaded(
        demo_models,
        "sd15",
        {"fold": both, "alone": saved(tmp_path, "alone", emb_params=vectors(2))},
    )
    from_style, alone = encoded(parts, "a fold", "a alone")
    torch.testing.assert_close(from_style.hidden, alone.hidden, rtol=0, atol=0)
    plain = parts.lora_reader.read(Path(demo_loras(demo_models, "sd15")["papercut"]))
    torch.testing.assert_close(parts.lora_reader.read(Path(both)).flat, plain.flat, rtol=0, atol=0)
    other = saved(tmp_path, "other", **style, **{f"bundle_emb.crease.{part}": vectors(2)})
    with pytest.raises(LoraError, match=r"brings along the word 'crease'.* embeddings too"):
        parts.lora_reader.read(Path(other))
    with pytest.raises(ValueError, match=r"embeddings\.fold: .* brings along 'crease', not 'fold'"):
        loaded(demo_models, "sd15", {"fold": other})


WRONG: dict[str, tuple[FamilyName, dict[str, Tensor], str]] = {
    "of another width": ("sd15", {"emb_params": torch.ones(2, 768)}, "768 numbers.*another family"),
    "of sdxl": ("sd15", {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 32)}, "one tensor"),
    "of sd15": ("sdxl", {"emb_params": torch.ones(1, 32)}, "clip_l and clip_g is needed"),
    "no vectors": ("sd15", {"x": torch.ones(1, 2, 32)}, "holds no vectors"),
    "a number": ("sd15", {"x": torch.ones(())}, "holds no vectors"),
    "not finite": ("sd15", {"x": torch.full((1, 32), torch.nan)}, "not finite"),
}


@pytest.mark.parametrize("what", WRONG)
def test_files_that_are_none(what: str, demo_models: Path, tmp_path: Path) -> None:
    family, tensors, why = WRONG[what]
    with pytest.raises(ValueError, match=rf"embeddings\.toy: .*{why}"):
        loaded(demo_models, family, {"toy": saved(tmp_path, "toy", **tensors)})


def test_no_other_format_is_read(demo_models: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"embeddings\.toy: toy\.pt is a pickle"):
        loaded(demo_models, "sd15", {"toy": str(tmp_path / "toy.pt")})
