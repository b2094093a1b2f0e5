"""Hub ids: how they are read, which files they bring, and what happens offline."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from configs.sources import (
    Layout,
    Source,
    SourceError,
    SourceUnavailable,
    fetch,
    parse,
    patterns,
)
from tests.hub_cache import add, files_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("owner/name", Source("hub", "owner/name")),
        ("owner/name@v1.0", Source("hub", "owner/name", revision="v1.0")),
        ("owner/name@refs/pr/5", Source("hub", "owner/name", revision="refs/pr/5")),
        ("owner/na.me-1_0", Source("hub", "owner/na.me-1_0")),
        ("owner/name/a.safetensors", Source("hub", "owner/name", file="a.safetensors")),
        (
            "owner/name/models/a.b.safetensors@main",
            Source("hub", "owner/name", file="models/a.b.safetensors", revision="main"),
        ),
        ("owner/name/models", Source("hub", "owner/name", folder="models")),
        (
            "h94/IP-Adapter/sdxl_models/image_encoder@refs/pr/1",
            Source(
                "hub", "h94/IP-Adapter", folder="sdxl_models/image_encoder", revision="refs/pr/1"
            ),
        ),
        ("owner/name/v1.5", Source("hub", "owner/name", folder="v1.5")),
        ("owner/name/sd1.5/unet", Source("hub", "owner/name", folder="sd1.5/unet")),
    ],
)
def test_parse(text: str, source: Source) -> None:
    assert parse(text) == source
    assert str(source) == text


@pytest.mark.parametrize(
    "text",
    [
        "owner",
        "owner/name/",
        "owner/name//unet",
        "owner/name/../other",
        "owner/name/./unet",
        "owner/name@",
        "./owner/name",
        "/owner/name",
        "owner/name@a@b",
        "owner/na me",
    ],
)
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(SourceError, match="owner/name"):
        parse(text)


PIPELINE = [
    "README.md",
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "safety_checker/model.fp16.safetensors",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "vae_1_0/diffusion_pytorch_model.fp16.safetensors",
]


@pytest.mark.parametrize(
    ("variant", "layout", "weights"),
    [
        (None, "pipeline", ["unet/diffusion_pytorch_model.safetensors"]),
        (
            "fp16",
            "pipeline",
            [
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            ],
        ),
        (None, "pipeline_configs", []),
        (
            None,
            "any",
            ["sd_xl_base_1.0.safetensors", "unet/diffusion_pytorch_model.safetensors"],
        ),
    ],
)
def test_which_weights_come(variant: str | None, layout: Layout, weights: list[str]) -> None:
    wanted = patterns(None, variant, layout)
    brought = [path for path in PIPELINE if wanted.match(path)]
    assert [path for path in brought if path.endswith(".safetensors")] == weights
    assert "model_index.json" in brought
    assert "tokenizer/merges.txt" in brought
    assert not [path for path in brought if path.endswith((".bin", ".msgpack", ".md"))]
    inside = patterns("sub/folder", variant, layout)
    assert [path for path in PIPELINE if inside.match(f"sub/folder/{path}")] == brought
    assert not any(map(inside.match, PIPELINE))


def test_a_folder_and_a_file_of_a_repository(cache: Path, tmp_path: Path) -> None:
    files = stored(tmp_path / "files", "a/model.safetensors", "a/config.json", "b.safetensors")
    snapshot = add(cache, "owner/name", files)
    assert fetch("owner/name/a") == snapshot / "a"
    assert fetch("owner/name/b.safetensors") == snapshot / "b.safetensors"
    assert fetch("owner/name") == snapshot
    with pytest.raises(SourceError, match="owner/name/c"):
        fetch("owner/name/c")


def test_a_revision_of_its_own(cache: Path, tmp_path: Path) -> None:
    files = stored(tmp_path / "files", "model.safetensors")
    snapshot = add(cache, "owner/name", files, "refs/pr/5")
    assert fetch("owner/name@refs/pr/5") == snapshot
    with pytest.raises(SourceUnavailable, match="owner/name could not"):
        fetch("owner/name")


def test_a_model_without_the_variant_comes_plain(cache: Path, tmp_path: Path) -> None:
    files = stored(tmp_path / "files", "diffusion_pytorch_model.safetensors")
    snapshot = add(cache, "owner/name", files)
    assert fetch("owner/name", variant="fp16") == snapshot
    with pytest.raises(SourceError, match="variant fp16"):
        fetch("owner/name", variant="fp16", layout="pipeline")


def test_pickles_are_not_enough(cache: Path, tmp_path: Path) -> None:
    add(cache, "owner/name", stored(tmp_path / "files", "config.json", "pytorch_model.bin"))
    with pytest.raises(SourceError, match="owner/name: no safetensors"):
        fetch("owner/name")


def stored(folder: Path, *names: str) -> dict[str, Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"bytes")
    return dict(files_of(folder))
