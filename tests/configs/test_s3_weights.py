"""A whole model from S3 (moto's server, over HTTP): the same image, and what an outage does."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import numpy as np
import pytest

from configs import s3
from configs.app import Limits, ModelArgs, ModelUserConfig
from configs.s3 import Listing, cache_root
from configs.sources import Layout, Source, SourceChanged, SourceError, SourceUnavailable, fetch
from deployments.contracts.errors import NotReady
from deployments.contracts.jobs import ImageJob, LoraWeight, Pixels
from deployments.diffusion.engine.adapters.files import lora_file
from tests.conftest import model_args
from tests.http_server import serving
from tests.object_store import BUCKET, ObjectStore

JOB = ImageJob(
    "job", "a red fox", (3,), 128, 128, num_inference_steps=2, loras=(LoraWeight("ink", 0.7),)
)
ROOT = f"s3://{BUCKET}/weights"
IN_S3 = ModelArgs(
    name="sd15",
    family="sd15",
    checkpoint=f"{ROOT}/sd15",
    tcd_lora=f"{ROOT}/tcd-lora",
    dtype="float32",
    device="cpu",
)
INK = f"{ROOT}/loras/ink.safetensors"


@pytest.fixture
def weights(
    object_store: ObjectStore, demo_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    """A store with a checkpoint, its TCD-LoRA and a style, and an empty cache here."""
    monkeypatch.setenv("TCD_CACHE", str(tmp_path / "cache"))
    upload(object_store, demo_models / "sd15", "weights/sd15")
    upload(object_store, demo_models / "tcd-lora" / "sd15", "weights/tcd-lora")
    upload(object_store, demo_models / "loras" / "sd15", "weights/loras")
    return object_store


def upload(store: ObjectStore, folder: Path, prefix: str) -> None:
    client = store.client
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def image(args: ModelArgs, ink: str) -> Pixels:
    import torch

    from deployments.diffusion.engine.engine import Engine
    from deployments.diffusion.engine.models.components import load

    torch.set_num_threads(1)
    engine = Engine(load(args), ModelUserConfig(loras={"ink": ink}, limits=Limits()))
    try:
        return engine.generate(JOB)[0].pixels
    finally:
        engine.stop()


def test_the_image_is_that_of_local_folders(weights: ObjectStore, demo_models: Path) -> None:
    ink = str(demo_models / "loras" / "sd15" / "ink.safetensors")
    local = image(model_args(demo_models, "sd15"), ink)
    assert np.array_equal(image(IN_S3, INK), local)


def test_an_outage_names_what_could_not_be_had(weights: ObjectStore) -> None:
    weights.stop()
    try:
        with pytest.raises(SourceUnavailable, match=IN_S3.checkpoint):
            fetch(IN_S3.checkpoint)
    finally:
        weights.start()
    assert fetch(IN_S3.checkpoint).is_dir()


def test_an_outage_while_a_style_is_brought(
    weights: ObjectStore, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from deployments.diffusion.engine.adapters import shelf
    from deployments.diffusion.engine.engine import Engine
    from deployments.diffusion.engine.models.components import load

    torch.set_num_threads(1)
    monkeypatch.setattr(shelf, "REMEMBER_FAILURE_S", 0.0)
    config = ModelUserConfig(loras={"ink": INK}, limits=Limits())
    engine = Engine(load(model_args(demo_models, "sd15")), config)
    try:
        weights.stop()
        try:
            with pytest.raises(NotReady, match="lora 'ink': its source cannot be reached now"):
                engine.generate(JOB)
            plain = ImageJob("plain", "a red fox", (3,), 128, 128, num_inference_steps=1)
            assert len(engine.generate(plain)) == 1
        finally:
            weights.start()
        assert len(engine.generate(JOB)) == 1
    finally:
        engine.stop()


def test_what_does_not_exist_is_no_outage(weights: ObjectStore) -> None:
    for uri in (f"{ROOT}/nothing", "s3://elsewhere/weights"):
        with pytest.raises(SourceError, match=uri) as caught:
            fetch(uri)
        assert not isinstance(caught.value, SourceUnavailable)


def test_a_connection_that_breaks_leaves_nothing_half_written(
    weights: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{IN_S3.checkpoint}/unet/diffusion_pytorch_model.safetensors"
    with cutting(weights.url) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(SourceUnavailable, match=uri):
            fetch(uri)
    assert not [path for path in cache_root().rglob("*") if path.is_file()]
    monkeypatch.setenv("AWS_ENDPOINT_URL", weights.url)
    assert fetch(uri).stat().st_size > 0


@contextmanager
def cutting(target: str) -> Iterator[str]:
    """The URL of a proxy that breaks off in the middle of every file."""

    class Proxy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._pass_on()

        def do_GET(self) -> None:
            self._pass_on()

        def _pass_on(self) -> None:
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            answer = httpx.request(self.command, target + self.path, headers=headers)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            is_file = "list-type" not in self.path
            self.wfile.write(answer.content[: len(answer.content) // 2 if is_file else None])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with serving(Proxy) as url:
        yield url


def test_a_file_that_is_replaced_while_it_is_fetched_is_listed_again(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCD_CACHE", str(tmp_path))
    uri, client = f"s3://{BUCKET}/a.safetensors", object_store.client
    client.put_object(Bucket=BUCKET, Key="a.safetensors", Body=b"before")
    contents = [b"second", b"third!"]
    listed = s3.list_objects

    def replaced(source: Source, variant: str | None, layout: Layout) -> Listing:
        listing = listed(source, variant, layout)
        if contents:
            client.put_object(Bucket=BUCKET, Key="a.safetensors", Body=contents.pop(0))
        return listing

    monkeypatch.setattr(s3, "list_objects", replaced)
    with pytest.raises(SourceChanged, match=uri):
        fetch(uri)  # as often as that
    assert fetch(uri).read_bytes() == b"third!"
    contents.append(b"fourth")
    client.put_object(Bucket=BUCKET, Key="a.safetensors", Body=b"passes")
    assert fetch(uri).read_bytes() == b"fourth"


@pytest.fixture
def style(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    """A store with a style of diffusers, which is here, too."""
    monkeypatch.setenv("TCD_CACHE", str(tmp_path))
    put(object_store, "style/pytorch_lora_weights.safetensors", b"before")
    put(object_store, "style/adapter_config.json", b"{}")
    fetch(STYLE)
    return object_store


STYLE = f"s3://{BUCKET}/style"


def put(store: ObjectStore, key: str, body: bytes) -> None:
    store.client.put_object(Bucket=BUCKET, Key=key, Body=body)


def delete(store: ObjectStore, key: str) -> None:
    store.client.delete_object(Bucket=BUCKET, Key=key)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_deleted_there_is_not_read_here(style: ObjectStore) -> None:
    delete(style, "style/pytorch_lora_weights.safetensors")
    delete(style, "style/adapter_config.json")
    put(style, "style/adapter_model.safetensors", b"after")
    folder = fetch(STYLE)
    assert names(folder) == {"adapter_model.safetensors", "adapter_model.safetensors.etag"}
    assert lora_file(folder).read_bytes() == b"after"


def test_what_another_reader_of_the_prefix_brought_stays(style: ObjectStore) -> None:
    put(style, "style/model_index.json", b"{}")
    put(style, "style/unet/model.fp16.safetensors", b"half")
    folder = fetch(STYLE, variant="fp16", layout="pipeline")
    half = "unet/model.fp16.safetensors"
    assert {half, "pytorch_lora_weights.safetensors"} < names(folder)
    assert {half, "model_index.json"} < names(fetch(STYLE))
    assert half in names(fetch(STYLE, layout="pipeline_configs"))


def test_what_another_process_brings_meanwhile_stays(
    style: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have found there what was put there since this one asked."""
    delete(style, "style/pytorch_lora_weights.safetensors")
    put(style, "style/adapter_model.safetensors", b"after")
    listed = s3.list_objects

    def meanwhile(source: Source, variant: str | None, layout: Layout) -> Listing:
        listing = listed(source, variant, layout)
        monkeypatch.setattr(s3, "list_objects", listed)
        put(style, "style/pytorch_lora_weights.safetensors", b"again!")
        put(style, "style/new.safetensors", b"new")
        assert len(names(fetch(STYLE))) == 8  # the other process
        return listing

    monkeypatch.setattr(s3, "list_objects", meanwhile)
    folder = fetch(STYLE)
    assert (folder / "pytorch_lora_weights.safetensors").read_bytes() == b"again!"
    assert (folder / "new.safetensors").read_bytes() == b"new"
    assert len(names(folder)) == 8


def test_a_file_that_became_a_prefix(style: ObjectStore) -> None:
    put(style, "other", b"file")
    uri = f"s3://{BUCKET}/other"
    assert fetch(uri).read_bytes() == b"file"
    delete(style, "other")
    put(style, "other/other/a.safetensors", b"below")
    assert (fetch(uri) / "other" / "a.safetensors").read_bytes() == b"below"
