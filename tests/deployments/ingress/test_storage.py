"""`response_format: "url"`: files in a folder and in S3 (moto's server, over HTTP), without Ray."""

import asyncio
import io
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from configs.app import FolderStorage, S3Storage, ServiceArgs, StorageArgs
from deployments.contracts.jobs import Caller, ImageRequest, ImageResult, Usage
from deployments.ingress.answer import storage as storage_module
from deployments.ingress.answer.storage import THREADS
from deployments.ingress.http.app import make_app
from deployments.ingress.request.service import NOBODY, Service
from tests.deployments.ingress.local_jobs import local_desk
from tests.object_store import BUCKET, ObjectStore

GENERATIONS = "/v1/images/generations"
BODY = {"prompt": "a red ball", "seed": 3, "n": 2, "response_format": "url"}
PICTURES = tuple(
    np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8) for seed in range(2)
)


class TwoPictures(Service):
    """Makes the same two pictures for everybody, without a model."""

    def __init__(self) -> None:
        pass

    async def generate(self, request: ImageRequest, _: Caller = NOBODY) -> ImageResult:
        images = PICTURES[: request.n]
        seeds = tuple(range(request.seed or 0, (request.seed or 0) + request.n))
        return ImageResult("none", images, seeds, 24, 16, Usage(0, 0, 0))


def app(storage: StorageArgs | None, **args: Any) -> FastAPI:
    kept, known = tempfile.TemporaryDirectory(), ServiceArgs(storage=storage, **args)
    served = make_app(TwoPictures(), local_desk(TwoPictures(), known, Path(kept.name)), known)
    served.state.jobs = kept  # it goes with the application
    return served


def client(storage: StorageArgs | None, **args: Any) -> TestClient:
    return TestClient(app(storage, **args), base_url="http://service.test")


def folder(path: Path, public_url: str | None = None) -> FolderStorage:
    return FolderStorage(kind="folder", path=str(path), public_url=public_url)


def bucket(**more: Any) -> S3Storage:
    return S3Storage(kind="s3", bucket=BUCKET, **more)


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def file_of(picture: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def error_of(answer: Any) -> dict[str, str]:
    error: dict[str, str] = answer.json()["error"]
    return error


def test_a_folder_shown_by_the_service(tmp_path: Path) -> None:
    served = client(folder(tmp_path / "new" / "files"))
    answer = served.post(GENERATIONS, json=BODY)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [set(image) for image in data] == [{"url", "seed"}] * 2
    assert [image["seed"] for image in data] == [3, 4]
    for image, picture in zip(data, PICTURES, strict=True):
        assert image["url"].startswith("http://service.test/v1/files/")
        shown = served.get(image["url"])
        assert shown.status_code == 200
        assert shown.headers["content-type"] == "image/png"
        assert shown.headers["x-content-type-options"] == "nosniff"
        assert (pixels(shown.content) == picture).all()
    names = [Path(image["url"]).stem for image in data]
    assert len(set(names)) == 2
    assert all(len(name) == 43 for name in names)  # 256 bits
    assert sorted(path.stem for path in (tmp_path / "new" / "files").iterdir()) == sorted(names)


@pytest.mark.parametrize(("output_format", "shown"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats(tmp_path: Path, output_format: str, shown: str) -> None:
    served = client(folder(tmp_path))
    body = {**BODY, "n": 1, "output_format": output_format}
    url = served.post(GENERATIONS, json=body).json()["data"][0]["url"]
    answer = served.get(url)
    assert answer.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(answer.content)).format == shown


@pytest.mark.parametrize("route", ["edits", "variations"])
def test_forms(tmp_path: Path, route: str) -> None:
    served = client(folder(tmp_path))
    answer = served.post(
        f"/v1/images/{route}",
        data={"prompt": "a red ball", "response_format": "url"},
        files={"image": ("picture.png", file_of(PICTURES[0]), "image/png")},
    )
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    assert (pixels(served.get(image["url"]).content) == PICTURES[0]).all()


def test_a_folder_shown_by_another_server(tmp_path: Path) -> None:
    served = client(folder(tmp_path, "https://pictures.test/tcd/"))
    (image,) = served.post(GENERATIONS, json={**BODY, "n": 1}).json()["data"]
    (path,) = tmp_path.iterdir()
    assert image["url"] == f"https://pictures.test/tcd/{path.name}"


def test_below_a_route_prefix(tmp_path: Path) -> None:
    served = TestClient(app(folder(tmp_path)), base_url="http://service.test", root_path="/tcd")
    (image,) = served.post("/tcd" + GENERATIONS, json={**BODY, "n": 1}).json()["data"]
    assert image["url"].startswith("http://service.test/tcd/v1/files/")
    assert served.get(image["url"]).status_code == 200


def test_only_files_that_were_given_out_are_shown(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    secret = tmp_path / ("s" * 43 + ".png")
    hidden = files / ".tmpabc"
    config = files / "config.json"
    for path in (secret, hidden, config):
        path.write_text("secret")
    served = client(folder(files))
    tried = [
        secret.name,
        f"../{secret.name}",
        f"..%2f{secret.name}",
        f"%2e%2e/{secret.name}",
        f"..%5c{secret.name}",
        f"x/../../{secret.name}",
        str(secret),
        str(secret).replace("/", "%2f"),
        hidden.name,
        config.name,
        secret.name + "%00",
        secret.name + "%0a",
        "",
        "..",
    ]
    for name in tried:
        answer = served.get(f"/v1/files/{name}")
        assert answer.status_code == 404, name
        assert "secret" not in answer.text.replace(secret.name, "")


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    served = client(folder(tmp_path / "file"))
    refused(served.post(GENERATIONS, json=BODY), "folder")
    # Nothing but the path of that one request is hurt.
    assert served.post(GENERATIONS, json={**BODY, "response_format": "b64_json"}).is_success


def refused(answer: Any, says: str) -> None:
    assert answer.status_code == 503, answer.text
    error = error_of(answer)
    assert error["code"] == "storage_unavailable"
    assert error["type"] == "server_error"
    assert says in error["message"]
    assert "b64_json" in error["message"]
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
def test_without_storage(stream: bool) -> None:
    answer = client(None).post(GENERATIONS, json={**BODY, "stream": stream})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == "response_format"
    assert "storage" in error["message"]  # `storage: null`: the operator wants none
    assert client(None).get("/v1/files/" + "s" * 43 + ".png").status_code == 404


def test_events_have_no_urls(tmp_path: Path) -> None:
    answer = client(folder(tmp_path)).post(GENERATIONS, json={**BODY, "stream": True})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "response_format"


@pytest.mark.parametrize("prefix", ["", "/tcd"])
def test_files_are_shown_without_a_key_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("TCD_TEST_KEYS", "good")
    keyed = app(folder(tmp_path), api_keys_env="TCD_TEST_KEYS")
    served = TestClient(keyed, base_url="http://service.test", root_path=prefix)
    key = {"authorization": "Bearer good"}
    (image,) = served.post(prefix + GENERATIONS, json={**BODY, "n": 1}, headers=key).json()["data"]
    assert served.get(image["url"]).status_code == 200
    assert served.post(prefix + GENERATIONS, json=BODY).status_code == 401
    assert served.get(prefix + "/v1/models").status_code == 401


def test_s3_with_presigned_urls(object_store: ObjectStore) -> None:
    served = client(bucket(prefix="images/", presign_s=77))
    data = served.post(GENERATIONS, json=BODY).json()["data"]
    for image, picture in zip(data, PICTURES, strict=True):
        shown = httpx.get(image["url"])
        assert shown.status_code == 200
        assert shown.headers["content-type"] == "image/png"
        assert (pixels(shown.content) == picture).all()
        parts = urlsplit(image["url"])
        assert f"http://{parts.netloc}" == object_store.url
        assert parse_qs(parts.query)["X-Amz-Expires"] == ["77"]
        assert "X-Amz-Signature" in parts.query
    keys = object_store.keys()
    assert len(keys) == 2
    assert all(key.startswith("images/") and len(Path(key).stem) == 43 for key in keys)


def test_the_endpoint_may_be_configured(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    served = client(bucket(endpoint_url=object_store.url))
    (image,) = served.post(GENERATIONS, json={**BODY, "n": 1}).json()["data"]
    assert httpx.get(image["url"]).status_code == 200


def test_an_outage_of_s3_and_its_end(object_store: ObjectStore) -> None:
    served = client(bucket())
    assert served.post(GENERATIONS, json=BODY).is_success
    object_store.stop()
    answer = served.post(GENERATIONS, json=BODY)
    refused(answer, "S3")
    assert object_store.url not in answer.text  # who asks need not know the inside
    assert served.post(GENERATIONS, json={**BODY, "response_format": "b64_json"}).is_success
    object_store.start()
    assert served.post(GENERATIONS, json=BODY).is_success
    assert len(object_store.keys()) >= 4  # a try of the request that failed may still come through


def test_a_bucket_that_does_not_exist(object_store: ObjectStore) -> None:
    served = client(S3Storage(kind="s3", bucket="elsewhere"))
    refused(served.post(GENERATIONS, json=BODY), "S3")


def test_a_storage_that_hangs_holds_nobody_else_up(
    object_store: ObjectStore, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "PATIENCE_S", 4.0)

    async def ask(url: str) -> None:
        transport = httpx.ASGITransport(app(bucket(endpoint_url=url)))
        async with httpx.AsyncClient(transport=transport, base_url="http://service.test") as http:
            stuck = [asyncio.create_task(http.post(GENERATIONS, json=BODY)) for _ in range(40)]
            while sum(t.name.startswith("tcd-storage") for t in threading.enumerate()) < THREADS:
                await asyncio.sleep(0.01)
            plain = await http.post(GENERATIONS, json={**BODY, "response_format": "b64_json"})
            assert plain.is_success
            assert not any(task.done() for task in stuck)
            for answer in await asyncio.gather(*stuck):
                refused(answer, "no answer")

    asyncio.run(ask(black_hole))
