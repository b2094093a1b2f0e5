"""`response_format: "url"` where no storage is configured: a folder of the node, for a while."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from configs.app import ServiceArgs, TemporaryStorage
from deployments.ingress.answer import temporary
from deployments.ingress.answer.temporary import TemporaryStore, folder_of
from deployments.ingress.http.app import make_app
from tests.deployments.ingress.local_jobs import local_desk
from tests.deployments.ingress.test_storage import (
    BODY,
    GENERATIONS,
    PICTURES,
    TwoPictures,
    pixels,
    refused,
)

MIB = 2**20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of these services go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "SWEEP_S", 0.0)
    return folder_of("tcd")


def client(name: str = "tcd", **storage: Any) -> TestClient:
    args = ServiceArgs(storage=TemporaryStorage(**storage)) if storage else ServiceArgs()
    desk = local_desk(TwoPictures(), args, Path(tempfile.gettempdir()) / "jobs")
    app = make_app(TwoPictures(), desk, args, name=name)
    return TestClient(app, base_url="http://service.test")


def urls(served: TestClient, n: int = 1) -> list[str]:
    answer = served.post(GENERATIONS, json={**BODY, "n": n})
    assert answer.status_code == 200, answer.text
    return [image["url"] for image in answer.json()["data"]]


def made_so_long_ago(folder: Path, url: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / url.rpartition("/")[2], (then, then))


def test_every_ingress_of_a_node_has_the_files_of_all(folder: Path) -> None:
    one, other = client(), client()
    for url, picture in zip(urls(one, 2), PICTURES, strict=True):
        assert url.startswith("http://service.test/v1/files/")
        for served in (one, other):
            shown = served.get(url)
            assert shown.headers["content-type"] == "image/png"
            assert (pixels(shown.content) == picture).all()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_another_service_of_the_node_has_its_own() -> None:
    (url,) = urls(client())
    answer = client("tcd-127.0.0.1:6380").get(url)
    assert answer.status_code == 404
    assert "on the node that made them" in answer.json()["error"]["message"]


def test_what_has_expired_is_not_shown_and_then_deleted(folder: Path) -> None:
    served = client(keep_s=100)
    old, young = urls(served, 2)
    made_so_long_ago(folder, old, 101)
    made_so_long_ago(folder, young, 50)
    assert served.get(old).status_code == 404
    assert served.get(young).status_code == 200
    assert len(list(folder.iterdir())) == 2
    urls(served)
    assert len(list(folder.iterdir())) == 2
    assert served.get(young).status_code == 200


def test_what_a_dead_process_had_begun_is_deleted(folder: Path) -> None:
    served = client(keep_s=100)
    (url,) = urls(served)
    dead, writing = folder / ".tmpdead", folder / ".tmpwriting"
    for path, seconds in ((dead, 601), (writing, 200)):
        path.write_bytes(b"half a file")
        made_so_long_ago(folder, path.name, seconds)
    urls(served)
    assert not dead.exists()
    assert writing.exists()
    assert served.get(url).status_code == 200


def test_it_is_deleted_while_nothing_is_stored(folder: Path) -> None:
    (url,) = urls(client(keep_s=100))
    made_so_long_ago(folder, url, 101)
    with client(keep_s=100):  # a process that begins
        until = time.monotonic() + 10
        while list(folder.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_the_oldest_go_first_above_the_budget(folder: Path) -> None:
    served = client(budget_mb=1)
    first, second = urls(served, 2)
    made_so_long_ago(folder, first, 20)
    made_so_long_ago(folder, second, 10)
    (folder / first.rpartition("/")[2]).write_bytes(bytes(MIB))
    made_so_long_ago(folder, first, 20)
    (third,) = urls(served)
    assert [served.get(url).status_code for url in (first, second, third)] == [404, 200, 200]


def test_the_newest_is_kept_however_large(folder: Path) -> None:
    (url,) = urls(client(budget_mb=1))
    (folder / url.rpartition("/")[2]).write_bytes(bytes(2 * MIB))
    store = TemporaryStore(TemporaryStorage(budget_mb=1), folder, None)
    store.sweep()
    assert client().get(url).status_code == 200


def test_files_of_others_are_left_alone(folder: Path) -> None:
    served = client(keep_s=1)
    urls(served)
    other = folder / "notes.txt"
    other.write_text("mine")
    os.utime(other, (0, 0))
    urls(served)
    assert other.read_text() == "mine"


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def a_link(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)


def a_file(folder: Path) -> None:
    folder.write_text("no folder")


@pytest.mark.parametrize("prepare", [open_to_all, a_link, a_file])
def test_a_folder_that_somebody_else_has_prepared(prepare: Any, folder: Path) -> None:
    prepare(folder)
    served = client()
    refused(served.post(GENERATIONS, json=BODY), "not of this user alone")
    name = "s" * 43 + ".png"
    if folder.is_dir():
        (folder / name).write_bytes(b"planted")
    assert served.get(f"/v1/files/{name}").status_code == 404
    with served:
        pass
    assert not folder.is_dir() or (folder / name).exists()


@pytest.mark.parametrize("name", ["x", "..%2f" + "s" * 43 + ".png", "s" * 43 + ".png%00"])
def test_other_names(name: str) -> None:
    served = client()
    urls(served)
    assert served.get(f"/v1/files/{name}").status_code == 404
