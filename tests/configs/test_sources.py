"""Local paths, and what of a bucket is brought: pages of keys, single files, only what changed."""

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from configs.collection import collection_at
from configs.s3 import cache_root
from configs.sources import (
    PROJECT_ROOT,
    Layout,
    Source,
    SourceError,
    SourceUnavailable,
    fetch,
    parse,
)
from tests.http_server import serving
from tests.object_store import BUCKET, ObjectStore


@pytest.fixture
def store(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    """An empty bucket, and an empty cache here."""
    monkeypatch.setenv("TCD_CACHE", str(tmp_path / "cache"))
    return object_store


def put(store: ObjectStore, files: Mapping[str, bytes]) -> None:
    client = store.client
    for key, body in files.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=body)


def brought(folder: Path) -> dict[str, bytes]:
    """The files of a folder, the cache's own notes left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".etag"
    }


def test_a_local_file_and_a_local_folder_are_used_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(b"weights")
    assert parse(str(file)) == Source("local", str(file))
    assert fetch(str(file)) == file
    assert fetch(str(tmp_path)) == tmp_path


def test_a_relative_path_is_relative_to_the_project_wherever_we_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch("configs/sources.py") == PROJECT_ROOT / "configs" / "sources.py"
    (tmp_path / "here.safetensors").touch()
    with pytest.raises(SourceError, match=r"'here\.safetensors' does not exist below"):
        fetch("here.safetensors")


@pytest.mark.parametrize("text", ["/no/such/place", "./nowhere", "../x/y", "nowhere", "", "a b/c"])
def test_a_path_that_does_not_exist_says_what_a_source_may_be(text: str) -> None:
    with pytest.raises(SourceError, match="neither an s3:// URI nor a hub id"):
        fetch(text)


@pytest.mark.parametrize("text", ["s3://", "s3://bucket", "s3://bucket/", "s3://Bucket/key"])
def test_an_s3_uri_without_bucket_or_key_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="not of the form s3://bucket/key"):
        fetch(text)


def test_a_folder_of_more_keys_than_one_page_is_brought_whole(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # S3 and moto have pages of 1000
    files = {f"many/{n // 5}/{n}.safetensors": str(n).encode() for n in range(25)}
    put(store, files)
    assert len(store.keys()) == 10
    folder = fetch(f"s3://{BUCKET}/many")
    assert brought(folder) == {key.removeprefix("many/"): body for key, body in files.items()}


def test_only_what_is_read_is_brought(store: ObjectStore) -> None:
    put(
        store,
        {
            "model/model_index.json": b"{}",
            "model/unet/weights.safetensors": b"weights",
            "model/unet/weights.bin": b"a pickle",
            "model/notes.md": b"notes",
            "model-2/model_index.json": b"another model, whose name begins alike",
        },
    )
    for uri in (f"s3://{BUCKET}/model", f"s3://{BUCKET}/model/"):
        assert brought(fetch(uri)) == {
            "model_index.json": b"{}",
            "unet/weights.safetensors": b"weights",
        }


def test_a_single_file_is_brought_as_a_file(store: ObjectStore) -> None:
    put(
        store,
        {
            "loras/ink.safetensors": b"ink",
            "loras/ink.safetensors.json": b"{}",
            "loras/ink.safetensors/odd.json": b"{}",
        },
    )
    file = fetch(f"s3://{BUCKET}/loras/ink.safetensors")
    assert (file.name, file.read_bytes()) == ("ink.safetensors", b"ink")


def test_the_marker_that_consoles_put_for_a_folder_is_no_file(store: ObjectStore) -> None:
    put(store, {"model/": b"", "model/a.json": b"a", "model/b.safetensors": b"b"})
    for uri in (f"s3://{BUCKET}/model", f"s3://{BUCKET}/model/"):
        assert brought(fetch(uri)) == {"a.json": b"a", "b.safetensors": b"b"}
    put(store, {"empty/": b""})
    with pytest.raises(SourceError, match="nothing is stored there"):
        fetch(f"s3://{BUCKET}/empty")


def test_what_has_not_changed_is_not_brought_again(store: ObjectStore) -> None:
    put(store, {"model/a.json": b"a", "model/b.safetensors": b"b"})
    folder = fetch(f"s3://{BUCKET}/model")
    before = {path.name: path.stat().st_ino for path in folder.glob("*.json")}
    put(store, {"model/b.safetensors": b"new"})
    assert fetch(f"s3://{BUCKET}/model") == folder
    after = {path.name: path.stat().st_ino for path in folder.glob("*.json")}
    assert after["a.json"] == before["a.json"]
    assert brought(folder) == {"a.json": b"a", "b.safetensors": b"new"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_what_is_brought_says_the_umask(
    store: ObjectStore, umask: int, mode: int
) -> None:
    put(store, {"model/a.safetensors": b"a"})
    before = os.umask(umask)
    try:
        folder = fetch(f"s3://{BUCKET}/model")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {oct(mode)}


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_nothing_more_is_named(store: ObjectStore) -> None:
    put(store, {"loras/ink.safetensors": bytes(3_000_000)})
    held = collection_at(f"s3://{BUCKET}/loras/", 10_000_000).find("ink")
    assert held is not None
    said = rf"s3://{BUCKET}/loras/ink.* could not be kept in {cache_root()}/.*TCD_CACHE.* too large"
    with files_of_at_most(1_000_000):
        with pytest.raises(SourceUnavailable, match=said):
            fetch(f"s3://{BUCKET}/loras/ink.safetensors")
        with pytest.raises(SourceUnavailable, match=said):
            held.bring()
    assert not [path for path in cache_root().rglob("*") if path.is_file()]
    assert held.bring().stat().st_size == 3_000_000


def test_a_cache_that_cannot_be_made_is_named(store: ObjectStore) -> None:
    put(store, {"loras/ink.safetensors": b"ink"})
    held = collection_at(f"s3://{BUCKET}/loras/", 10_000_000).find("ink")
    assert held is not None
    cache_root().touch()
    said = rf"s3://{BUCKET}/loras/ink.* could not be kept in {cache_root()}/.*Not a directory"
    with pytest.raises(SourceUnavailable, match=said):
        fetch(f"s3://{BUCKET}/loras/ink.safetensors")
    with pytest.raises(SourceUnavailable, match=said):
        held.bring()


PIPELINE = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"plain",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "vae/diffusion_pytorch_model.safetensors": b"plain",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"half",
}
BESIDE = (
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "v1-5-pruned.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
)


@pytest.mark.parametrize(
    ("variant", "layout", "left"),
    [
        (None, "pipeline", (".fp16.",)),
        ("fp16", "pipeline", ("model.safetensors",)),
        (None, "pipeline_configs", (".safetensors",)),
    ],
)
def test_of_a_pipeline_only_what_is_read_is_asked_for(
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    variant: str | None,
    layout: Layout,
    left: tuple[str, ...],
) -> None:
    put(store, {f"p/{path}": body for path, body in PIPELINE.items()})
    put(store, {f"p/{path}": b"not read" for path in BESIDE})
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        """Writes down which files are asked for, and passes the question on."""

        def do_GET(self) -> None:
            self._answer("GET")
            if "list-type" not in self.path:
                asked.append(self.path.removeprefix(f"/{BUCKET}/p/").partition("?")[0])

        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def _answer(self, method: str) -> None:
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            answer = httpx.request(method, store.url + self.path, headers=headers)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Proxy) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        fetch(f"s3://{BUCKET}/p", variant=variant, layout=layout)
    assert sorted(asked) == sorted(
        path for path in PIPELINE if not any(part in path for part in left)
    )


def test_a_variant_that_is_not_there(store: ObjectStore) -> None:
    put(store, {"net/config.json": b"{}", "net/model.safetensors": b"plain"})
    assert "model.safetensors" in brought(fetch(f"s3://{BUCKET}/net", variant="fp16"))
    put(store, {"p/model_index.json": b"{}", "p/unet/model.safetensors": b"plain"})
    with pytest.raises(SourceError, match="/p: no safetensors of variant fp16 are there; nothing"):
        fetch(f"s3://{BUCKET}/p", variant="fp16", layout="pipeline")
    put(store, {"pickles/pytorch_model.bin": b"a pickle", "pickles/config.json": b"{}"})
    with pytest.raises(SourceError, match="/pickles: no safetensors are there; nothing else"):
        fetch(f"s3://{BUCKET}/pickles")


def test_nothing_is_written_outside_the_cache(store: ObjectStore, tmp_path: Path) -> None:
    put(store, {"model/a.safetensors": b"a", "model/../../../../out.json": b"out"})
    with pytest.raises(SourceError, match="leads out of its folder"):
        fetch(f"s3://{BUCKET}/model")
    assert not list(tmp_path.rglob("out.json"))
