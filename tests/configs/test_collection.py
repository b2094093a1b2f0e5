"""Adapters that are found by name: in a folder, and in S3 (moto's server, over HTTP)."""

import os
import shutil
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs import copies, s3_collection
from configs.app import ModelUserConfig
from configs.collection import NAME, Collection, collection_at, name_of
from configs.copies import Copies
from configs.sources import SourceChanged, SourceError, SourceUnavailable
from tests.object_store import BUCKET, ObjectStore

BUDGET = 10_000
ROOT = f"s3://{BUCKET}/loras/"
FILES = {
    "ink.safetensors": b"ink",
    "ink-2.safetensors": b"ink two",
    "Add Detail (v1.0).safetensors": b"detail",
    "peft/adapter_model.safetensors": b"peft",
    "peft/adapter_config.json": b"{}",
    "peft/README.md": b"text",
    "diffusers/pytorch_lora_weights.safetensors": b"diffusers",
    "checkpoint/unet/diffusion_pytorch_model.safetensors": b"large",
    "checkpoint/model.safetensors": b"large",
    "notes.txt": b"text",
}
NAMES = {"ink", "ink-2", "Add Detail (v1.0)", "peft", "diffusers"}
HOSTILE = (
    *("", ".", "..", "../ink", "..\\ink", "/etc/passwd", "a/../ink", "a/b", "ink/", "./ink"),
    *("ink\0", "ink\n", " ink", "ink ", "ink.", ".hidden", "-rf", "%2e%2e%2fink", "a%2fb"),
    *(
        "\uff49nk",
        "i\u0307nk",
        "\u202eink",
        "ink\u200b",
        "C:ink",
        "~ink",
        "$HOME",
        "a" * 101,
        "ink*",
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of adapters beside one that is nobody's business."""
    for path, content in FILES.items():
        file = tmp_path / "loras" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "ink.safetensors").write_bytes(b"outside")
    return tmp_path / "loras"


@pytest.fixture
def store(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    """The same in S3, and an empty cache here."""
    monkeypatch.setenv("TCD_CACHE", str(tmp_path / "cache"))
    for path, content in FILES.items():
        object_store.client.put_object(Bucket=BUCKET, Key=f"loras/{path}", Body=content)
    object_store.client.put_object(Bucket=BUCKET, Key="ink.safetensors", Body=b"outside")
    return object_store


def holds(collection: Collection) -> None:
    """It has what `FILES` says, and nothing else."""
    assert collection.count() == len(NAMES)
    for name in NAMES:
        held = collection.find(name)
        assert held is not None
        assert held.bring().read_bytes() in FILES.values()
        assert name in held.where
    ink = collection.find("ink")
    assert ink is not None
    assert (ink.nbytes, ink.bring().read_bytes()) == (3, b"ink")
    peft = collection.find("peft")
    assert peft is not None
    assert peft.bring().with_name("adapter_config.json").read_bytes() == b"{}"
    for name in ("in", "notes.txt", "notes", "checkpoint", "unet", "adapter_model", "INK"):
        assert collection.find(name) is None


def test_a_folder(folder: Path) -> None:
    holds(collection_at(str(folder), BUDGET))


def test_a_prefix_in_s3(store: ObjectStore) -> None:
    holds(collection_at(ROOT, BUDGET))
    holds(collection_at(ROOT.rstrip("/"), BUDGET))


def test_a_whole_bucket(store: ObjectStore) -> None:
    found = collection_at(f"s3://{BUCKET}", BUDGET).find("ink")
    assert found is not None
    assert found.bring().read_bytes() == b"outside"


def test_a_folder_of_more_files_than_are_named_at_a_time(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(7):
        key = f"loras/peft/a{n}/optimizer.pt"
        store.client.put_object(Bucket=BUCKET, Key=key, Body=b"large")
    monkeypatch.setattr(s3_collection, "PAGE", 2)
    found = collection_at(ROOT, BUDGET).find("peft")
    assert found is not None
    assert found.bring().read_bytes() == b"peft"
    assert found.bring().with_name("adapter_config.json").read_bytes() == b"{}"
    monkeypatch.setattr(s3_collection, "MOST_FILES", 4)
    assert collection_at(ROOT, BUDGET).find("peft") is None  # it is not looked for endlessly


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_none(name: str) -> None:
    assert NAME.fullmatch(name) is None
    assert name_of(f"{name}.safetensors") is None


def test_whatever_name_is_allowed_stays_below_the_folder(tmp_path: Path) -> None:
    allowed = [chr(code) for code in range(0x3000) if NAME.fullmatch(f"a{chr(code)}a")]
    assert len(allowed) == 26 * 2 + 10 + len(" ._+()-")
    for name in ("a..a", "a. .a", "a" * 100, *(f"a{one}a" for one in allowed)):
        assert NAME.fullmatch(name)
        path = Path(os.path.normpath(tmp_path / f"{name}.safetensors"))
        assert path.parent == tmp_path
        assert path.name == f"{name}.safetensors"


@pytest.mark.parametrize("root", ["", "s3:/bucket/x", "s3://", "s3://Bucket/x", "a\0b"])
def test_a_root_that_is_none_stops_the_configuration(root: str) -> None:
    with pytest.raises(ValidationError, match="loras_from"):
        ModelUserConfig(loras_from=root)


def test_a_file_that_was_replaced_is_another(folder: Path, store: ObjectStore) -> None:
    for collection in (collection_at(str(folder), BUDGET), collection_at(ROOT, BUDGET)):
        before = collection.find("ink")
        assert before == collection.find("ink")
        assert before is not None
        assert before.bring().read_bytes() == b"ink"
        (folder / "ink.safetensors").write_bytes(b"new")  # as long as it was
        store.client.put_object(Bucket=BUCKET, Key="loras/ink.safetensors", Body=b"new")
        after = collection.find("ink")
        assert after is not None
        assert after.state != before.state
        assert after.bring().read_bytes() == b"new"
        (folder / "ink.safetensors").write_bytes(b"ink")
        store.client.put_object(Bucket=BUCKET, Key="loras/ink.safetensors", Body=b"ink")


def test_links_are_followed_and_pipes_are_none(folder: Path, tmp_path: Path) -> None:
    (folder / "linked.safetensors").symlink_to(tmp_path / "ink.safetensors")
    (folder / "lost.safetensors").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.safetensors")
    collection = collection_at(str(folder), BUDGET)
    linked = collection.find("linked")
    assert linked is not None
    assert linked.bring().read_bytes() == b"outside"
    assert collection.find("lost") is None
    assert collection.find("pipe") is None


def test_what_cannot_be_looked_at_is_not_said_to_be_missing(
    store: ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(SourceUnavailable, match="no folder"):
        collection_at(str(tmp_path / "nowhere"), BUDGET).find("ink")
    with pytest.raises(SourceError, match="NoSuchBucket"):
        collection_at("s3://elsewhere/loras/", BUDGET).find("ink")
    collection = collection_at(ROOT, BUDGET)
    store.stop()
    try:
        with pytest.raises(SourceUnavailable, match="could not be looked up"):
            collection.find("ink")
    finally:
        store.start()
    assert collection.find("ink") is not None


def test_what_was_brought_is_not_brought_again(store: ObjectStore) -> None:
    held = collection_at(ROOT, BUDGET).find("peft")
    assert held is not None
    first = held.bring()
    store.stop()
    try:
        assert held.bring() == first
        first.unlink()
        with pytest.raises(SourceUnavailable):
            held.bring()
    finally:
        store.start()
    assert held.bring().read_bytes() == b"peft"


def test_an_adapter_that_went_between_the_two(store: ObjectStore, tmp_path: Path) -> None:
    held = collection_at(ROOT, BUDGET).find("ink")
    assert held is not None
    store.client.delete_object(Bucket=BUCKET, Key="loras/ink.safetensors")
    with pytest.raises(SourceChanged, match="ink"):
        held.bring()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_adapter_that_was_replaced_between_the_two(store: ObjectStore, tmp_path: Path) -> None:
    collection = collection_at(ROOT, BUDGET)
    for name, path in (("ink", "ink.safetensors"), ("peft", "peft/adapter_model.safetensors")):
        held = collection.find(name)
        assert held is not None
        store.client.put_object(
            Bucket=BUCKET, Key=f"loras/{path}", Body=b"new!"[: len(FILES[path])]
        )
        with pytest.raises(SourceChanged, match=name):
            held.bring()
        assert not [*(tmp_path / "cache").rglob("*.safetensors")]
        store.client.put_object(Bucket=BUCKET, Key=f"loras/{path}", Body=FILES[path])
        assert held.bring().read_bytes() == FILES[path]  # as it was found
        held.bring().unlink()


def test_copies_stay_within_their_budget(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "IN_USE_S", 0.0)
    for n in range(8):
        key = f"loras/many{n}.safetensors"
        store.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(3000))
    collection = collection_at(ROOT, BUDGET)
    brought: list[Path] = []
    for n in (0, 1, 2, 0, 3, 0, 4, 5, 0, 6, 7):
        held = collection.find(f"many{n}")
        assert held is not None
        brought.append(held.bring())
        assert len(brought[-1].read_bytes()) == 3000
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= BUDGET
        assert brought[0].exists()  # which is used all the time
        time.sleep(0.01)
    assert not brought[1].exists()


def test_copies_in_use_stay_and_of_the_others_no_more_go_than_must(tmp_path: Path) -> None:
    kept = Copies(tmp_path, 300)
    long_ago = time.time() - 10 * copies.IN_USE_S
    for age, name in enumerate(("now", "later", "old", "older", "oldest")):
        place = kept.place(name)
        (place / "file").write_bytes(bytes(100))
        if age:
            for path in (place / "file", place):
                os.utime(path, (long_ago - age, long_ago - age))
    kept.make_room(100)
    assert {path.name for path in tmp_path.iterdir()} == {"now", "later"}
    kept.make_room(1000)
    assert {path.name for path in tmp_path.iterdir()} == {"now"}


def test_copies_of_a_place_that_is_asked_no_more_make_room(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "IN_USE_S", 0.0)
    brought: list[Path] = []
    for root in ("before", "now"):
        for n in range(3):
            key = f"{root}/many{n}.safetensors"
            store.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(3000))
            held = collection_at(f"s3://{BUCKET}/{root}/", BUDGET).find(f"many{n}")
            assert held is not None
            brought.append(held.bring())
            time.sleep(0.01)
    assert [path.exists() for path in brought] == [False] * 3 + [True] * 3


def test_a_copy_that_is_taken_while_others_are_deleted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Copies(tmp_path, 0)
    long_ago = time.time() - 10 * copies.IN_USE_S
    for age, name in enumerate(("old", "older", "oldest")):
        place = kept.place(name)
        (place / "file").write_bytes(bytes(100))
        for path in (place / "file", place):
            os.utime(path, (long_ago - age, long_ago - age))
    delete = shutil.rmtree

    def meanwhile(copy: Path, **_: bool) -> None:
        kept.place("older")
        delete(copy)

    monkeypatch.setattr(shutil, "rmtree", meanwhile)
    kept.make_room(0)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("file")] == [
        "older/file"
    ]
