"""What `Objects` promise, of a folder and of a bucket."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from deployments.contracts.errors import StorageUnavailable
from deployments.jobs import bucket, folder
from deployments.jobs.bucket import BucketObjects
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Objects, Stored, Written
from tests.http_server import serving
from tests.object_store import BUCKET, CREDENTIALS, ObjectStore

COPIES = 8


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return FolderObjects(tmp_path)
    store: ObjectStore = request.getfixturevalue("object_store")
    return BucketObjects(store.client, BUCKET, "tcd/")


def names(objects: Objects, prefix: str) -> list[str]:
    return [one.name for one in objects.listed(prefix)]


def test_a_list_tells_what_was_written_since(objects: Objects) -> None:
    began = time.time()
    first = objects.create("jobs/a", b"1")
    objects.create("jobs/b", b"1")
    before = list(objects.listed("jobs/"))
    assert list(objects.listed("jobs/")) == before
    assert first is not None
    second = objects.replace("jobs/a", b"2", first.tag)
    a, b = objects.listed("jobs/")
    assert second is not None
    assert (before[0].version, a.version) == (first.version, second.version)
    assert a.version != before[0].version
    assert b == before[1]
    assert began - 2 <= a.changed_at <= time.time() + 2


def test_what_has_been_written_since_is_not_deleted(objects: Objects) -> None:
    first = objects.create("jobs/a", b"1")
    assert first is not None
    second = objects.replace("jobs/a", b"2", first.tag)
    assert second is not None
    objects.delete("jobs/a", first.tag)
    assert objects.read("jobs/a") == (b"2", second.tag)
    objects.delete("jobs/a", second.tag)
    assert objects.read("jobs/a") is None
    objects.delete("jobs/a", second.tag)


def test_a_file_is_written_once_and_replaced_by_who_saw_it_last(objects: Objects) -> None:
    assert objects.read("jobs/a") is None
    assert objects.replace("jobs/a", b"0", "any") is None
    first = objects.create("jobs/a", b"1")
    assert first is not None
    assert objects.create("jobs/a", b"2") is None
    stored = objects.read("jobs/a")
    assert stored is not None
    assert stored == (b"1", first.tag)
    second = objects.replace("jobs/a", b"3", first.tag)
    assert second is not None
    assert objects.replace("jobs/a", b"4", first.tag) is None
    assert objects.read("jobs/a") == (b"3", second.tag)


def test_a_write_whose_answer_was_lost_is_told_when_it_is_made_again(objects: Objects) -> None:
    first = objects.create("jobs/a", b"mine")
    again = objects.create("jobs/a", b"mine")
    assert first is not None
    assert again is not None
    assert again.tag == first.tag
    newer = objects.replace("jobs/a", b"mine, too", first.tag)
    again = objects.replace("jobs/a", b"mine, too", first.tag)
    assert newer is not None
    assert again is not None
    assert again.tag == newer.tag


def test_names_are_in_order_and_what_is_deleted_is_gone(objects: Objects) -> None:
    for name in ("jobs/b", "jobs/a", "results/a-1", "results/a-0"):
        objects.create(name, b"x")
    assert names(objects, "jobs/") == ["jobs/a", "jobs/b"]
    assert names(objects, "results/a-") == ["results/a-0", "results/a-1"]
    assert names(objects, "nothing/") == []
    objects.delete("jobs/a")
    objects.delete("jobs/a")
    assert names(objects, "jobs/") == ["jobs/b"]
    assert objects.read("jobs/a") is None


def test_of_many_writers_one_wins(objects: Objects) -> None:
    """Each time, in threads that begin together."""

    def race(write: Callable[[bytes], Written | None]) -> list[str]:
        start, won = threading.Barrier(COPIES), list[str]()

        def run(number: int) -> None:
            start.wait()
            if (written := write(f"writer {number}".encode())) is not None:
                won.append(written.tag)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(COPIES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return won

    (tag,) = race(lambda content: objects.create("jobs/a", content))
    for turn in range(5):
        (tag,) = race(partial(_replace, objects, tag, turn))
        stored = objects.read("jobs/a")
        assert stored is not None
        assert stored.tag == tag


def _replace(objects: Objects, tag: str, turn: int, content: bytes) -> Written | None:
    return objects.replace("jobs/a", content + b", %d" % turn, tag)


def test_a_storage_that_is_away_says_so(object_store: ObjectStore, tmp_path: Path) -> None:
    away = BucketObjects(object_store.client, BUCKET)
    missing = BucketObjects(object_store.client, "no-such-bucket")
    calls: list[Callable[[Objects], Any]] = [
        lambda objects: objects.create("a", b""),
        lambda objects: objects.replace("a", b"", "tag"),
        lambda objects: objects.delete("a"),
        lambda objects: list(objects.listed("")),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable, match="s3://no-such-bucket does not answer"):
            call(missing)
    object_store.stop()
    calls.append(lambda objects: objects.read("a"))
    for call in calls:
        with pytest.raises(StorageUnavailable, match=f"s3://{BUCKET} does not answer"):
            call(away)
    object_store.start()
    (tmp_path / "files").write_text("no folder")
    with pytest.raises(StorageUnavailable, match="the folder of jobs does not answer"):
        FolderObjects(tmp_path).create("jobs/a", b"")


def test_a_write_fails_whose_file_was_cleaned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, sync = FolderObjects(tmp_path), os.fsync

    def cleaned(file: int) -> None:
        for new in (tmp_path / folder.NEW).iterdir():
            new.unlink()
        sync(file)

    monkeypatch.setattr(os, "fsync", cleaned)
    with pytest.raises(StorageUnavailable, match="No such file"):
        objects.create("a", b"x")


def test_others_write_while_a_big_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the disk before it takes the lock, which other names share."""
    monkeypatch.setattr(folder, "LOCK_FILES", 1)
    monkeypatch.setattr(folder, "PATIENCE_S", 0.2)
    objects, sync = FolderObjects(tmp_path), os.fsync
    writing, go = threading.Event(), threading.Event()

    def slow(file: int) -> None:
        if os.fstat(file).st_size == 1000:
            writing.set()
            assert go.wait(30)
        sync(file)

    monkeypatch.setattr(os, "fsync", slow)
    big = threading.Thread(target=objects.create, args=("files/big", b"x" * 1000))
    big.start()
    try:
        assert writing.wait(30)
        assert objects.create("jobs/a", b"1") is not None
        assert objects.read("files/big") is None
    finally:
        go.set()
        big.join()
    assert objects.read("files/big") is not None
    assert list((tmp_path / folder.NEW).iterdir()) == []


def test_a_name_that_is_taken_for_absent_is_given_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client of NFS may, for a while after another has given it."""
    other, objects = FolderObjects(tmp_path), FolderObjects(tmp_path)
    theirs = other.create("jobs/a", b"theirs")
    assert theirs is not None
    read, late = FolderObjects.read, list[str]()

    def stale(self: FolderObjects, name: str) -> Stored | None:
        late.append(name)
        return None if len(late) <= 2 else read(self, name)

    monkeypatch.setattr(FolderObjects, "read", stale)
    assert objects.create("jobs/a", b"mine") is None
    assert other.read("jobs/a") == (b"theirs", theirs.tag)


def test_a_folder_without_links_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    objects = FolderObjects(tmp_path)
    assert objects.create("jobs/a", b"1") is not None
    assert objects.create("jobs/a", b"2") is None
    assert [one.name for one in objects.listed("")] == ["jobs/a"]


def test_who_meets_anothers_write_in_a_bucket_tries_again(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PAUSE_S", 0.01)
    client = object_store.client
    objects = BucketObjects(client, BUCKET)
    assert objects.read("jobs/a") is None  # it is proven
    conflicts = [bucket.CONFLICTS - 1]
    body = b"<Error><Code>ConditionalRequestConflict</Code><Message>again</Message></Error>"

    def conflict(request: Any, **_: Any) -> AWSResponse | None:
        if request.method != "PUT" or not conflicts[0]:
            return None
        conflicts[0] -= 1
        raw = BytesIO(body)
        raw.stream = lambda **_: iter([body])  # type: ignore[attr-defined]
        return AWSResponse(request.url, 409, HTTPHeaders(), raw)

    client.meta.events.register("before-send.s3", conflict)
    assert objects.create("jobs/a", b"1") is not None
    conflicts[0] = bucket.CONFLICTS
    with pytest.raises(StorageUnavailable, match="ConditionalRequestConflict"):
        objects.create("jobs/b", b"1")
    assert objects.create("jobs/b", b"1") is not None


def test_what_is_written_outlives_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, and each folder that names it, are on the disk before the write is answered."""
    synced, sync = list[str](), os.fsync

    def noted(file: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{file}"), tmp_path))
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    FolderObjects(tmp_path).create("files/a/x", b"1")
    assert synced[0].startswith(f"{folder.NEW}/")
    assert set(synced[1:]) == {"files/files/a", "files/files", "files"}


@pytest.mark.parametrize(
    ("method", "header", "said"),
    [
        ("PUT", "If-None-Match", "If-None-Match of a PUT"),
        ("PUT", "If-Match", "If-Match of a PUT"),
        ("DELETE", "If-Match", "If-Match of a DELETE"),
    ],
)
def test_a_bucket_that_ignores_a_condition_is_refused(
    object_store: ObjectStore, method: str, header: str, said: str
) -> None:
    def ignores(request: Any, **_: Any) -> None:
        if request.method == method:
            request.headers.pop(header, None)

    client = object_store.client
    client.meta.events.register("before-send.s3", ignores)
    objects = BucketObjects(client, BUCKET, "tcd/")
    for call in (lambda: objects.create("jobs/a", b"1"), lambda: list(objects.listed("jobs/"))):
        with pytest.raises(StorageUnavailable, match=f"s3://{BUCKET} does not keep {said}"):
            call()
    assert object_store.keys() == []


def test_so_is_one_that_keeps_none(object_store: ObjectStore) -> None:
    def spoils(request: Any, **_: Any) -> None:
        if request.method == "PUT" and "If-Match" in request.headers:
            del request.headers["If-Match"]
            request.headers["If-Match"] = '"never"'

    client = object_store.client
    client.meta.events.register("before-send.s3", spoils)
    with pytest.raises(StorageUnavailable, match="does not keep If-Match of a PUT"):
        BucketObjects(client, BUCKET).read("jobs/a")


def test_a_list_that_was_cut_is_no_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with serving(Cut) as url:
        objects = BucketObjects(boto3.client("s3", endpoint_url=url), BUCKET)
        objects._proven = True
        with pytest.raises(StorageUnavailable, match="the answer did not come whole"):
            list(objects.listed("open/"))


def _hold(path: Path, held: Any) -> None:
    with FolderObjects(path)._locked("jobs/a"):
        held.set()
        signal.pause()


def test_a_dead_writer_holds_no_lock_and_one_that_hangs_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PATIENCE_S", 0.2)
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    writer = spawn.Process(target=_hold, args=(tmp_path, held))
    writer.start()
    try:
        assert held.wait(30)
        with pytest.raises(StorageUnavailable, match="its writer hangs"):
            FolderObjects(tmp_path).create("jobs/a", b"1")
    finally:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    assert FolderObjects(tmp_path).create("jobs/a", b"1") is not None
