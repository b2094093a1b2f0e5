"""How a replica starts: weights come while modules are imported, and the collector rests."""

import gc
import socket
import threading
import time
from pathlib import Path

import pytest

from configs.needs import Need
from configs.sources import SourceError, fetch
from deployments.starting import starting
from tests.deployments.diffusion.engine.harness import eventually
from tests.object_store import BUCKET, CREDENTIALS, ObjectStore


def test_the_collector_rests_within() -> None:
    with starting([]):
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), starting([]):
        raise ImportError
    assert gc.isenabled()


def test_who_wants_no_collector_gets_none() -> None:
    gc.disable()
    try:
        with starting([]):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_all_weights_come_within(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCD_CACHE", str(tmp_path))
    names = [f"weights/{n}.safetensors" for n in range(6)]
    for name in names:
        object_store.client.put_object(Bucket=BUCKET, Key=name, Body=name.encode())
    sources = [f"s3://{BUCKET}/{name}" for name in names]

    def here() -> bool:
        return {file.read_text() for file in tmp_path.rglob("*.safetensors")} == set(names)

    with starting(map(Need, sources)):
        assert eventually(here, 60)
    object_store.stop()
    try:
        assert all(fetch(source, offline=True).is_file() for source in sources)
    finally:
        object_store.start()


def test_what_is_wrong_with_one_is_told_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCD_CACHE", str(tmp_path))
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        needs = [Need(f"s3://{BUCKET}/a"), Need("nowhere"), Need(f"s3://{BUCKET}/b")]
        began = time.monotonic()
        with pytest.raises(SourceError, match="'nowhere'"), starting(needs):
            pass
        assert time.monotonic() - began < 15  # the others are tried for half a minute
    for thread in threading.enumerate():
        if thread.name.startswith("weights"):
            thread.join(60)  # what it asks is not there any more
            assert not thread.is_alive()


def test_what_fails_within_goes_first() -> None:
    with pytest.raises(ImportError), starting([Need("nowhere")]):
        raise ImportError
