"""Servers that accept and never answer are given up: by S3's client and by the hub's."""

from functools import partial
from pathlib import Path
from time import monotonic

import pytest
from huggingface_hub import constants

from configs import s3, sources
from configs.sources import SourceUnavailable, fetch


def test_an_s3_that_does_not_answer_is_given_up(
    black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", black_hole)
    monkeypatch.setattr(s3, "client", partial(s3.client, read_s=0.2))
    began = monotonic()
    with pytest.raises(SourceUnavailable, match="s3://bucket/style"):
        fetch("s3://bucket/style.safetensors")
    assert monotonic() - began < 10


def test_a_hub_that_does_not_answer_is_given_up(
    black_hole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", black_hole)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        black_hole + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "HUB_PATIENCE_S", 1)
    began = monotonic()
    with pytest.raises(SourceUnavailable, match="owner/name"):
        fetch("owner/name")
    assert monotonic() - began < 30
