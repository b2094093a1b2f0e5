"""`python -m configs.fetch` as its users run it, against a hub and an S3 of this machine."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from configs.fetch import ConfigError, needs
from configs.needs import Need
from configs.sources import fetch
from demo.service import free_port
from tests.fake_hub import COMMIT, FakeHub, fake_hub, sha256
from tests.object_store import BUCKET, ObjectStore

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = random.Random(0).randbytes(3_000_000)
DAMAGED = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
UNET = "unet/diffusion_pytorch_model.safetensors"
REPOS = {
    "owner/base": {
        "model_index.json": b"{}",
        "unet/config.json": b'{"in_channels": 4}',
        UNET: WEIGHTS,
        "vae/diffusion_pytorch_model.safetensors": b"vae" * 1000,
        "base.safetensors": b"never read" * 100,
        "unet/diffusion_pytorch_model.bin": b"a pickle",
    },
    "owner/tcd": {"pytorch_lora_weights.safetensors": b"tcd" * 100, "README.md": b"read me"},
    "owner/adapters": {
        "styles/ink.safetensors": b"ink" * 100,
        "encoder/config.json": b"{}",
        "encoder/model.safetensors": b"encoder" * 100,
    },
}
MODEL = {"name": "one", "family": "sd15", "checkpoint": "owner/base", "tcd_lora": "owner/tcd"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(REPOS) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path, MODEL, {"loras": {"ink": "owner/adapters/styles/ink.safetensors"}})


def write(folder: Path, model: Mapping[str, object], user_config: Mapping[str, object]) -> Path:
    deployment = {"name": "Diffusion", "user_config": user_config}
    application = {
        "name": "model-one",
        "import_path": "graphs.model:build",
        "args": dict(model),
        "deployments": [deployment],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


def run(config: Path, home: Path, hub_url: str, *more: str) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "configs.fetch", str(config), *more],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def snapshot(home: Path, repo: str = "owner/base") -> Path:
    return home / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_that_is_read_comes_and_is_checked(
    hub: FakeHub, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(config, tmp_path, hub.url)
    assert done.returncode == 0, done.stderr
    assert files(snapshot(tmp_path)) == {
        "model_index.json",
        "unet/config.json",
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert (snapshot(tmp_path) / UNET).read_bytes() == WEIGHTS
    assert files(snapshot(tmp_path, "owner/tcd")) == {"pytorch_lora_weights.safetensors"}
    assert files(snapshot(tmp_path, "owner/adapters")) == {"styles/ink.safetensors"}
    assert f"4 files, 3.0 MB, hashes as the hub says; commit {COMMIT}" in done.stdout
    assert "100% of 3.0 MB" in done.stderr
    # Replicas find it all, without the hub.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("owner/base", layout="pipeline") == snapshot(tmp_path)
    assert fetch("owner/adapters/styles/ink.safetensors").stat().st_size == 300
    sent = dict(hub.sent)
    again = run(config, tmp_path, hub.url)
    assert again.returncode == 0, again.stderr
    assert hub.sent == sent  # nothing comes twice


def test_a_broken_download_goes_on_where_it_ended(
    hub: FakeHub, config: Path, tmp_path: Path
) -> None:
    hub.cut = 1_000_000
    done = run(config, tmp_path, hub.url)  # it breaks twice, and goes on by itself
    assert done.returncode == 0, done.stderr
    assert hub.sent[UNET] == len(WEIGHTS)
    assert hub.ranges[UNET] == ["bytes=0-", "bytes=1000000-", "bytes=2000000-"]


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_run_goes_on_where_the_one_before_was_stopped(
    hub: FakeHub, config: Path, tmp_path: Path, ignores_ranges: bool
) -> None:
    partial = snapshot(tmp_path).parents[1] / "blobs" / f"{sha256(WEIGHTS)}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:2_500_000])
    hub.ignores_ranges = ignores_ranges  # then it comes whole, and is right all the same
    done = run(config, tmp_path, hub.url)
    assert done.returncode == 0, done.stderr
    assert hub.ranges[UNET] == ["bytes=2500000-"]
    assert (snapshot(tmp_path) / UNET).read_bytes() == WEIGHTS
    assert not partial.exists()


def test_a_file_with_another_hash_is_not_kept(hub: FakeHub, config: Path, tmp_path: Path) -> None:
    hub.damaged = {UNET}
    done = run(config, tmp_path, hub.url)
    assert done.returncode == 1
    assert f"hub owner/base: {UNET} does not have the hash" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (snapshot(tmp_path) / UNET).exists()
    hub.damaged = set()
    assert run(config, tmp_path, hub.url).returncode == 0
    assert (snapshot(tmp_path) / UNET).read_bytes() == WEIGHTS


def test_what_was_damaged_on_this_disk_is_found(hub: FakeHub, config: Path, tmp_path: Path) -> None:
    assert run(config, tmp_path, hub.url).returncode == 0
    large = (snapshot(tmp_path) / UNET).resolve()
    large.write_bytes(DAMAGED)
    assert run(config, tmp_path, hub.url).returncode == 0
    assert (snapshot(tmp_path) / UNET).read_bytes() == WEIGHTS

    small = (snapshot(tmp_path) / "unet/config.json").resolve()
    small.write_bytes(b'{"in_channels": 9}')
    done = run(config, tmp_path, hub.url)
    assert done.returncode == 1
    assert "unet/config.json does not have the hash" in done.stderr
    assert run(config, tmp_path, hub.url).returncode == 0
    assert (snapshot(tmp_path) / "unet/config.json").read_bytes() == b'{"in_channels": 4}'


def test_errors_are_sentences(hub: FakeHub, config: Path, tmp_path: Path) -> None:
    unreachable = run(config, tmp_path, f"http://127.0.0.1:{free_port()}")
    assert unreachable.returncode == 1
    assert "hub owner/base could not be fetched" in unreachable.stderr
    unknown = run(config, tmp_path, hub.url, "--model", "two")
    assert unknown.returncode == 1
    assert "no model 'two'; models: one" in unknown.stderr
    missing = write(tmp_path, {**MODEL, "tcd_lora": "owner/nothing"}, {})
    gone = run(missing, tmp_path, hub.url)
    assert gone.returncode == 1
    assert "hub owner/nothing could not be fetched" in gone.stderr
    pickled = write(tmp_path, {**MODEL, "checkpoint": "owner/base", "variant": "fp16"}, {})
    other = run(pickled, tmp_path, hub.url)
    assert other.returncode == 1
    assert "no safetensors of variant fp16" in other.stderr
    assert "Traceback" not in unreachable.stderr + unknown.stderr + gone.stderr + other.stderr


def test_s3(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCD_CACHE", str(tmp_path / "cache"))
    client = object_store.client
    for key, data in (("base/model_index.json", b"{}"), (f"base/{UNET}", WEIGHTS)):
        client.put_object(Bucket=BUCKET, Key=key, Body=data)
    model = {**MODEL, "checkpoint": f"s3://{BUCKET}/base", "tcd_lora": None}
    config = write(tmp_path, model, {})
    done = run(config, tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "2 files, 3.0 MB, as S3 holds them" in done.stdout

    (brought,) = (tmp_path / "cache").rglob("*.safetensors")
    brought.write_bytes(DAMAGED)
    damaged = run(config, tmp_path, "http://127.0.0.1:9")
    assert damaged.returncode == 1
    assert "is not what S3 holds" in damaged.stderr
    assert run(config, tmp_path, "http://127.0.0.1:9").returncode == 0
    assert brought.read_bytes() == WEIGHTS

    object_store.stop()
    try:
        out = run(config, tmp_path, "http://127.0.0.1:9")
        assert out.returncode == 1
        assert f"s3://{BUCKET}/base could not be fetched" in out.stderr
    finally:
        object_store.start()


def test_what_a_model_of_the_guide_needs() -> None:
    guide = yaml.safe_load((ROOT / "configs" / "production" / "guide.yaml").read_text())
    assert needs(guide, ["sdxl"]) == [
        Need("stabilityai/stable-diffusion-xl-base-1.0", "fp16", "pipeline"),
        Need("h1t/TCD-SDXL-LoRA"),
        Need("diffusers/controlnet-depth-sdxl-1.0", "fp16"),
        Need("diffusers/controlnet-canny-sdxl-1.0", "fp16"),
        Need("h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors"),
        Need("TheLastBen/Papercut_SDXL/papercut.safetensors"),
        Need("Intel/dpt-hybrid-midas@refs/pr/5"),
        Need("h94/IP-Adapter/sdxl_models/image_encoder"),
    ]
    everything = needs(guide)
    assert len(set(everything)) == len(everything)
    assert set(needs(guide, ["sdxl", "sd15"])) < set(everything)
    single = {**MODEL, "checkpoint": "owner/base/base.safetensors"}
    assert needs({"applications": [{"import_path": "graphs.model:build", "args": single}]}) == [
        Need("owner/base/base.safetensors", None, "pipeline"),
        Need("stable-diffusion-v1-5/stable-diffusion-v1-5", None, "pipeline_configs"),
        Need("owner/tcd"),
    ]
    safe = {"import_path": "graphs.service:build", "args": {"safety": {"checkpoint": "owner/safe"}}}
    for models in ((), (MODEL["name"],)):  # no model answers without it
        both = [safe, {"import_path": "graphs.model:build", "args": MODEL}]
        assert Need("owner/safe") in needs({"applications": both}, models)
    with pytest.raises(ConfigError, match="no model application"):
        needs({"applications": []})


ONE = {"name": "Diffusion"}


def model(deployments: object) -> list[dict[str, object]]:
    application = {"name": "model-one", "import_path": "graphs.model:build", "args": MODEL}
    return [{**application, "deployments": deployments}]


def test_a_deployment_that_says_nothing() -> None:
    for deployments in ([], [ONE], [{**ONE, "user_config": None}]):
        assert needs({"applications": model(deployments)}) == [
            Need("owner/base", None, "pipeline"),
            Need("owner/tcd"),
        ]


@pytest.mark.parametrize(
    ("applications", "said"),
    [
        (None, "applications: it is a list"),
        ([None], r"applications\.0: an application is a mapping"),
        (model(None), r"model-one\.deployments: it is a list"),
        (model([None]), r"model-one\.deployments\.0: a deployment is a mapping"),
        (model([ONE, {"name": "Other"}]), r"model-one\.Other: the deployment of a model is named"),
        (model([ONE, ONE]), r"model-one\.Diffusion stands twice"),
    ],
)
def test_what_is_no_config_is_named(applications: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        needs({"applications": applications})
