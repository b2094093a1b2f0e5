"""`make check-config` of what lies elsewhere: against a hub and an S3 of this machine."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from configs import sources
from configs.sources import fetch
from graphs.check.__main__ import main
from tests.fake_hub import FakeHub, fake_hub
from tests.object_store import BUCKET, ObjectStore

PIPELINE = {
    "model_index.json": b'{"unet": ["diffusers", "UNet2DConditionModel"]}',
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"unet" * 9,
}
REPOS = {
    "owner/base": PIPELINE,
    "owner/tcd": {"pytorch_lora_weights.safetensors": b"tcd" * 9},
    "owner/pickled": {"pytorch_lora_weights.bin": b"tcd" * 9},
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of the hub and of S3."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TCD_CACHE", str(tmp_path / "s3"))
    return tmp_path


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(REPOS) as running:
        reach(monkeypatch, running.url)
        yield running


def reach(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The hub is there."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def config(folder: Path, user_config: object = None, **args: object) -> Path:
    """A model of its own, behind a service that needs nothing."""
    service = {
        "name": "tcd",
        "route_prefix": "/",
        "import_path": "graphs.service:build",
        "args": {"default_model": "one", "depth": None},
    }
    application = {
        "name": "model-one",
        "route_prefix": None,
        "import_path": "graphs.model:build",
        "args": {
            "name": "one",
            "family": "sd15",
            "checkpoint": "owner/base",
            "tcd_lora": "owner/tcd",
            **args,
        },
        "deployments": [{"name": "Diffusion", "user_config": user_config or {}}],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [service, application]}))
    return path


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command. Returns its exit code and what it says of its one config, line by line."""

    def run(path: Path, *options: str) -> tuple[object, list[str]]:
        monkeypatch.setattr(sys, "argv", ["check", *options, str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith(f"{path}: ") for line in lines)
        return ended.value.code, [line.removeprefix(f"{path}: ") for line in lines]

    return run


def test_what_is_there(hub: FakeHub, tmp_path: Path, check: Any) -> None:
    assert check(config(tmp_path)) == (0, ["as it should be"])
    assert hub.sent == {}  # nothing came


def test_what_is_not_there(
    hub: FakeHub, object_store: ObjectStore, tmp_path: Path, check: Any
) -> None:
    object_store.client.put_object(Bucket=BUCKET, Key="ink.safetensors", Body=b"ink")
    loras = {
        "ink": f"s3://{BUCKET}/ink.safetensors",
        "neon": f"s3://{BUCKET}/neon.safetensors",
        "gone": "owner/gone",
        "lost": "owner/tcd/lost.safetensors",
        "pickled": "owner/pickled",
    }
    code, said = check(config(tmp_path, {"loras": loras}, variant="fp16"))
    assert code == 1
    at = "model-one.Diffusion.user_config.loras"
    for line in (
        "model-one.args.checkpoint: hub owner/base: no safetensors of variant fp16 are there",
        f"{at}.neon: s3://{BUCKET}/neon.safetensors: nothing is stored there",
        f"{at}.gone: hub owner/gone could not be fetched",
        f"{at}.lost: hub owner/tcd/lost.safetensors: the repository has no such file",
        f"{at}.pickled: hub owner/pickled: no safetensors are there",
    ):
        assert [each for each in said if each.startswith(line)], (line, said)
    assert len(said) == 5


def test_one_source_of_several_places(hub: FakeHub, tmp_path: Path, check: Any) -> None:
    _, said = check(config(tmp_path, {"loras": {"a": "owner/gone", "b": "owner/gone"}}))
    assert [line.split(": ")[0].rpartition(".")[2] for line in said] == ["a", "b"]


def test_a_hub_that_is_silent(
    cache: Path, black_hole: str, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unknown what is there; nothing is wrong. The others are not asked one by one."""
    reach(monkeypatch, black_hole)
    monkeypatch.setattr(sources, "HUB_PATIENCE_S", 1)
    loras = {f"style{n}": f"owner/style{n}" for n in range(60)}
    began = time.monotonic()
    code, said = check(config(cache, {"loras": loras}))
    assert time.monotonic() - began < 20
    assert code == 0
    *named, last = said
    assert all(line.startswith("unknown: model-one.") for line in named)
    assert 1 <= len(named) <= 8
    left = 62 - len(named)
    assert last == f"unknown: {left} more on the hub, which does not answer: not looked up"


def test_offline(hub: FakeHub, object_store: ObjectStore, tmp_path: Path, check: Any) -> None:
    """What a start would fetch: what is not here yet."""
    object_store.client.put_object(Bucket=BUCKET, Key="ink.safetensors", Body=b"ink")
    object_store.client.put_object(Bucket=BUCKET, Key="neon/neon.safetensors", Body=b"neon")
    ink, neon = f"s3://{BUCKET}/ink.safetensors", f"s3://{BUCKET}/neon"
    path = config(tmp_path, {"loras": {"ink": ink, "neon": neon}})
    object_store.stop()  # nobody is asked
    at = "model-one.Diffusion.user_config.loras"
    everything = {
        "would be fetched: model-one.args.checkpoint: owner/base",
        "would be fetched: model-one.args.tcd_lora: owner/tcd",
        f"would be fetched: {at}.ink: {ink}",
        f"would be fetched: {at}.neon: {neon}",
    }
    code, said = check(path, "--offline")
    assert code == 0
    assert set(said) == everything
    object_store.start()
    fetch("owner/tcd")
    fetch(neon)
    _, said = check(path, "--offline")
    assert set(said) == {line for line in everything if not line.endswith(("owner/tcd", neon))}
    fetch(ink)
    fetch("owner/base", layout="pipeline")
    assert check(path, "--offline") == (0, ["as it should be"])
    # A download that broke off.
    (unet,) = (tmp_path / "hub" / "models--owner--base").rglob("unet/*.safetensors")
    unet.unlink()
    assert check(path, "--offline")[1] == [
        "would be fetched: model-one.args.checkpoint: owner/base"
    ]


def test_an_application_that_asks_otherwise(hub: FakeHub, tmp_path: Path, check: Any) -> None:
    """With an endpoint or a token of its own, this machine cannot tell what it would find."""
    path = config(tmp_path, {"loras": {"gone": "owner/gone"}})
    whole = yaml.safe_load(path.read_text())
    whole["applications"][1]["runtime_env"] = {"env_vars": {"HF_TOKEN": "x"}}
    path.write_text(yaml.safe_dump(whole))
    says = "unknown: model-one: its runtime_env sets HF_TOKEN: hub and S3 were not asked"
    assert check(path) == (0, [says])


def test_where_adapters_are_looked_for_by_name(
    hub: FakeHub, object_store: ObjectStore, tmp_path: Path, check: Any
) -> None:
    folder = tmp_path / "styles"
    (folder / "peft").mkdir(parents=True)
    for path in ("ink.safetensors", "peft/adapter_model.safetensors"):
        (folder / path).write_bytes(b"style")
        object_store.client.put_object(Bucket=BUCKET, Key=f"styles/{path}", Body=b"style")
    at, bucket = "model-one.Diffusion.user_config.loras_from", f"s3://{BUCKET}/styles/"
    held = f"{at}: {bucket} holds 2 adapters"
    assert check(config(tmp_path, {"loras_from": bucket})) == (0, [held])
    _, said = check(config(tmp_path, {"loras_from": bucket}), "--offline")
    assert held not in said  # and S3 was not asked
    here = config(tmp_path, {"loras_from": str(folder)})
    assert check(here) == (0, [f"{at}: {folder} holds 2 adapters"])
    code, said = check(config(tmp_path, {"loras_from": str(tmp_path / "nowhere")}))
    assert (code, said) == (1, [f"{at}: {tmp_path / 'nowhere'} is no folder on this machine"])
    code, said = check(config(tmp_path, {"loras_from": "s3://elsewhere/styles/"}))
    assert code == 1
    assert said[0].startswith(f"{at}: s3://elsewhere/styles/ could not be listed: ")
    object_store.stop()
    try:
        code, said = check(config(tmp_path, {"loras_from": bucket}))
        assert code == 0
        assert said[0].startswith(f"unknown: {at}: {bucket} could not be listed: ")
    finally:
        object_store.start()
