"""`configs.fetch --to`: weights of a hub of this machine, put into an S3 of this machine."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import fetch as fetching
from configs import mirror, s3
from configs.mirror import Mirror, mirror_at
from configs.sources import SourceError, SourceUnavailable, fetch
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from tests.object_store import BUCKET, ObjectStore

ROOT = Path(__file__).resolve().parents[2]
PART = 5 * 2**20  # the least that S3 takes for a part
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
REPOS = {
    "owner/base": {
        "model_index.json": b"{}",
        UNET: os.urandom(300_000),
        "unet/diffusion_pytorch_model.safetensors": b"not asked for",
        "vae/diffusion_pytorch_model.fp16.safetensors": b"vae" * 1000,
    },
    "owner/adapters": {
        "styles/ink.safetensors": b"ink" * 100,
        "encoder/config.json": b"{}",
        "encoder/model.safetensors": b"encoder" * 100,
    },
}
TO = f"s3://{BUCKET}/weights"
BASE = f"{TO}/owner/base/{COMMIT}"
ADAPTERS = f"{TO}/owner/adapters/{COMMIT}"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(REPOS) as running:
        yield running


def config(
    folder: Path, tcd_lora: str | None = None, encoder: str = "owner/adapters/encoder"
) -> Path:
    model = {"name": "one", "family": "sd15", "checkpoint": "owner/base", "variant": "fp16"}
    loras = {"ink": "owner/adapters/styles/ink.safetensors"}
    applications = [
        {
            "name": "tcd",
            "import_path": "graphs.service:build",
            "args": {"image_encoders": {"vit": {"checkpoint": encoder}}},
        },
        {
            "name": "model-one",
            "import_path": "graphs.model:build",
            "args": {**model, "tcd_lora": tcd_lora},
            "deployments": [{"name": "Diffusion", "user_config": {"loras": loras}}],
        },
    ]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": applications}))
    return path


def run(path: Path, home: Path, hub_url: str, to: str = TO) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tcd", "fetch", str(path), "--to", to],
        cwd=ROOT,
        env={**os.environ, **settings, "TCD_CACHE": str(home / "s3")},
        capture_output=True,
        text=True,
        check=False,
    )


def stored(store: ObjectStore) -> dict[str, bytes]:
    client, keys = store.client, store.keys()
    return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def test_a_config_can_be_served_from_where_it_was_put(
    hub: FakeHub, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = tmp_path / "mine.safetensors"
    lora.write_bytes(b"mine" * 100)
    done = run(config(tmp_path, str(lora)), tmp_path, hub.url)
    assert done.returncode == 0, done.stderr
    local = f"weights/absolute{lora}"
    base = {path: data for path, data in REPOS["owner/base"].items() if data != b"not asked for"}
    assert stored(object_store) == {
        **{f"weights/owner/base/{COMMIT}/{path}": data for path, data in base.items()},
        **{f"weights/owner/adapters/{COMMIT}/{p}": d for p, d in REPOS["owner/adapters"].items()},
        local: lora.read_bytes(),
    }
    assert f"  in {BASE}: 3 sent, 0 were there" in done.stdout
    assert "100% of 0.3 MB" in done.stderr
    said = done.stdout.partition("To serve from there, say in the config:\n")[2].splitlines()
    places = dict(line.strip().split(": ", 1) for line in said)
    assert places == {
        "model-one.args.checkpoint": BASE,
        "model-one.args.tcd_lora": f"s3://{BUCKET}/{local}",
        "model-one.Diffusion.user_config.loras.ink": f"{ADAPTERS}/styles/ink.safetensors",
        "tcd.args.image_encoders.vit.checkpoint": f"{ADAPTERS}/encoder",
    }
    # What replicas do with such sources.
    monkeypatch.setenv("TCD_CACHE", str(tmp_path / "node"))
    folder = fetch(places["model-one.args.checkpoint"], variant="fp16", layout="pipeline")
    assert {path: (folder / path).read_bytes() for path in base} == base
    encoder = fetch(places["tcd.args.image_encoders.vit.checkpoint"])
    assert (encoder / "model.safetensors").read_bytes() == b"encoder" * 100
    assert fetch(places["model-one.args.tcd_lora"]).read_bytes() == lora.read_bytes()

    again = run(config(tmp_path, str(lora)), tmp_path, hub.url)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" 0 sent, ") == 4
    there = run(config(tmp_path, f"s3://{BUCKET}/{local}"), tmp_path, hub.url)
    assert there.returncode == 0, there.stderr
    assert "tcd_lora" not in there.stdout  # it is in S3 already


def test_of_a_folder_of_this_machine_what_is_read_is_put_there(
    hub: FakeHub, object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(name.encode())
    done = run(config(tmp_path, encoder=str(folder)), tmp_path, hub.url)
    assert done.returncode == 0, done.stderr
    assert f"vit.checkpoint: {TO}/absolute{folder}\n" in done.stdout
    local = f"weights/absolute{folder}/"
    keys = filter(lambda key: key.startswith("weights/absolute/"), object_store.keys())
    assert sorted(keys) == [f"{local}config.json", f"{local}model.safetensors"]


def test_a_path_in_the_project_is_another_than_the_same_from_the_root(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    outside, inside = tmp_path / "mine", project / tmp_path.relative_to("/") / "mine"
    for folder in (outside, inside):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(str(folder).encode())
    monkeypatch.setattr(fetching, "PROJECT_ROOT", project)
    path = config(tmp_path, str(outside), encoder=str(inside))
    settings = yaml.safe_load(path.read_text())
    model = settings["applications"][1]
    model["args"]["checkpoint"] = str(inside / "model.safetensors")
    model["args"]["config"] = str(outside)
    del model["deployments"]
    path.write_text(yaml.safe_dump(settings))
    fetching.fetch_all(path, [], TO)
    assert stored(object_store) == {
        f"weights/local{outside}/model.safetensors": str(inside).encode(),
        f"weights/absolute{outside}/model.safetensors": str(outside).encode(),
    }


def test_errors_are_sentences(hub: FakeHub, object_store: ObjectStore, tmp_path: Path) -> None:
    strange = run(config(tmp_path), tmp_path, hub.url, to="bucket/prefix")
    absent = run(config(tmp_path), tmp_path, hub.url, to="s3://elsewhere/weights")
    for ran, said in (
        (strange, "error: 'bucket/prefix' is not of the form s3://bucket/prefix"),
        (absent, "error: s3://elsewhere/weights/owner/base/"),
    ):
        assert ran.returncode == 1
        assert ran.stderr.splitlines()[-1].startswith(said), ran.stderr
        assert "Traceback" not in ran.stderr
    assert "could not be stored" in absent.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://weights", Mirror("weights", "")),
        ("s3://weights/", Mirror("weights", "")),
        ("s3://weights/a/b/", Mirror("weights", "a/b/")),
    ],
)
def test_a_place_in_s3(text: str, expected: Mirror) -> None:
    assert mirror_at(text) == expected
    assert mirror_at(text).uri("owner/name") == f"s3://weights/{expected.prefix}owner/name"


def test_no_place_in_s3() -> None:
    for text in ("", "weights", "s3://", "s3:///x", "https://weights/x", "s3://Weights"):
        with pytest.raises(SourceError, match="is not of the form s3://bucket/prefix"):
            mirror_at(text)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was asked of S3 that stores anything: the operation, and the number of a part."""
    counted: list[tuple[str, int]] = []
    make = s3.client

    def counting() -> Any:
        client = make()
        for name in ("PutObject", "UploadPart"):
            client.meta.events.register(
                f"provide-client-params.s3.{name}",
                lambda params, name=name, **_: counted.append((name, params.get("PartNumber", 0))),
            )
        return client

    monkeypatch.setattr(s3, "client", counting)
    monkeypatch.setattr(mirror, "PART", PART)
    return counted


def quiet(*_: object) -> None:
    pass


def test_a_large_file_goes_on_after_the_last_part_that_arrived(
    object_store: ObjectStore, tmp_path: Path, sent: list[tuple[str, int]]
) -> None:
    large = tmp_path / "large.safetensors"
    large.write_bytes(os.urandom(3 * PART + 1000))
    files = [("a/large.safetensors", large)]
    seen: list[int] = []

    def breaks_off(_: str, have: int, size: int) -> None:
        seen.append(have)
        if have == 2 * PART:
            object_store.stop()

    with pytest.raises(SourceUnavailable, match="could not be stored"):
        mirror_at(TO).put(files, breaks_off)
    object_store.start()
    assert object_store.keys() == []  # nothing that is half there
    sent.clear()
    assert mirror_at(TO).put(files, lambda *told: seen.append(told[1])) == 1
    assert sent == [("UploadPart", 3), ("UploadPart", 4)]
    assert seen == [PART, 2 * PART, PART, 2 * PART, 3 * PART, 3 * PART + 1000]
    assert stored(object_store) == {"weights/a/large.safetensors": large.read_bytes()}
    sent.clear()
    assert mirror_at(TO).put(files, quiet) == 0
    assert sent == []


def test_a_part_that_is_not_the_files_is_sent_again(
    object_store: ObjectStore, tmp_path: Path, sent: list[tuple[str, int]]
) -> None:
    large = tmp_path / "large.safetensors"
    large.write_bytes(os.urandom(2 * PART))
    key = "weights/large.safetensors"
    begun = object_store.client.create_multipart_upload(Bucket=BUCKET, Key=key)
    for number in (1, 2):
        body = large.read_bytes()[:PART] if number == 1 else bytes(PART)
        object_store.client.upload_part(
            Bucket=BUCKET, Key=key, UploadId=begun["UploadId"], PartNumber=number, Body=body
        )
    assert mirror_at(TO).put([("large.safetensors", large)], quiet) == 1
    assert sent == [("UploadPart", 2)]
    assert stored(object_store) == {key: large.read_bytes()}


@pytest.mark.parametrize("size", [0, 1000, PART, PART + 1])
def test_what_s3_holds_is_compared(
    object_store: ObjectStore, tmp_path: Path, sent: list[tuple[str, int]], size: int
) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(os.urandom(size))
    key = "weights/a.safetensors"
    object_store.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(size))
    assert mirror_at(TO).put([("a.safetensors", file)], quiet) == int(size > 0)
    assert stored(object_store) == {key: file.read_bytes()}
    assert mirror_at(TO).put([("a.safetensors", file)], quiet) == 0


def test_where_keys_of_kms_hide_the_contents_the_hash_beside_them_counts(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}
    object_store.client.put_bucket_encryption(
        Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]}
    )
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"a" * 1000)
    assert mirror_at(TO).put([("a.safetensors", file)], quiet) == 1
    head = object_store.client.head_object(Bucket=BUCKET, Key="weights/a.safetensors")
    assert head["ServerSideEncryption"] == "aws:kms"
    assert head["Metadata"] == {"md5": hashlib.md5(b"a" * 1000).hexdigest()}
    assert mirror_at(TO).put([("a.safetensors", file)], quiet) == 0
    file.write_bytes(b"b" * 1000)
    assert mirror_at(TO).put([("a.safetensors", file)], quiet) == 1
    # moto's tags are MD5s all the same: only the one beside the file is of its contents here.
    said = {"md5": hashlib.md5(b"b" * 1000).hexdigest()}
    object_store.client.put_object(
        Bucket=BUCKET, Key="weights/a.safetensors", Body=b"c" * 1000, Metadata=said
    )
    assert mirror_at(TO).put([("a.safetensors", file)], quiet) == 0
