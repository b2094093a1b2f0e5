"""Where keys come from, and that a changed file is read while the service runs."""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

import pytest

from configs.app import KeysArgs, ServiceArgs
from configs.keys import KeysError, digest
from deployments.ingress.keys import keyring as keyring_module
from deployments.ingress.keys.keyring import LOOK_S, Keyring, make_keyring
from tests.deployments.ingress.keyed import Clock


def text_of(*keys: str, **fields: object) -> str:
    return json.dumps([{"name": key, "sha256": digest(key.encode()), **fields} for key in keys])


def names(keys: Keyring) -> Sequence[str]:
    return [entry.name for entry in keys.entries]


def written(path: Path, text: str) -> None:
    """Writes a file anew, as editors and deployments do."""
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


async def looked(keys: Keyring, clock: Clock) -> None:
    clock.now += LOOK_S
    await keys.renew()


def of_file(path: Path, clock: Clock | None = None) -> Keyring:
    return Keyring(KeysArgs(file=str(path)), clock=clock or Clock())


def test_keys_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCD_TEST_KEYS", text_of("alice", "bob"))
    keys = Keyring(KeysArgs(env="TCD_TEST_KEYS"))
    assert names(keys) == ["alice", "bob"]
    found = keys.find("bob")
    assert found is not None
    assert found.name == "bob"
    assert keys.find("carol") is None
    assert keys.find("") is None
    assert keys.find(digest(b"bob")) is None  # who has read the file has no key


def test_plain_keys_have_names_and_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCD_TEST_KEYS", " one, two:2 ,,one,dr\u00e9i")
    keys = Keyring(plain_env="TCD_TEST_KEYS")
    assert names(keys) == ["key-1", "key-2", "key-3"]
    sent = "dr\u00e9i".encode().decode("latin-1")  # as a header's bytes are read
    for presented, name in (("one", "key-1"), ("two:2", "key-2"), (sent, "key-3")):
        entry = keys.find(presented)
        assert entry is not None
        assert entry.name == name
        assert (entry.running, entry.work_per_minute, entry.models) == (None, None, None)
        assert not entry.admin


def test_both_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(text_of("alice"))
    monkeypatch.setenv("TCD_TEST_KEYS", "plain")
    args = ServiceArgs(keys=KeysArgs(file=str(tmp_path / "keys")), api_keys_env="TCD_TEST_KEYS")
    assert names(make_keyring(args)) == ["alice", "key-1"]
    monkeypatch.setenv("TCD_TEST_KEYS", "alice")
    with pytest.raises(KeysError, match="is that of 'alice', too"):
        make_keyring(args)


def test_without_keys_nobody_needs_one() -> None:
    assert not make_keyring(ServiceArgs()).closed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (text_of("alice", running=0), "key 1 ('alice'): running: "),
        ("[]", "must be a list of keys"),
        (None, "cannot be read (FileNotFoundError)"),
    ],
)
def test_a_wrong_file_at_the_start(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "keys.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(KeysError) as caught:
        of_file(path)
    assert str(caught.value).startswith(f"keys file {path}: ")
    assert says in str(caught.value)


def test_a_wrong_variable_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TCD_TEST_KEYS", raising=False)
    with pytest.raises(KeysError, match=r"TCD_TEST_KEYS.*must be a list of keys"):
        Keyring(KeysArgs(env="TCD_TEST_KEYS"))
    with pytest.raises(KeysError, match=r"api_keys_env is TCD_TEST_KEYS, but .* holds no key"):
        Keyring(plain_env="TCD_TEST_KEYS")


def test_protected_pages_need_a_key_that_opens_them(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(text_of("alice"))
    args = ServiceArgs(keys=KeysArgs(file=str(path)), protect=("metrics",))
    with pytest.raises(KeysError, match="no key is `admin`"):
        make_keyring(args)
    path.write_text(text_of("alice", admin=True))
    assert make_keyring(args).closed


def test_keys_are_named_in_one_place() -> None:
    for wrong in ({}, {"file": "a", "env": "B"}):
        with pytest.raises(ValueError, match="names either file or env"):
            KeysArgs(**wrong)


def test_a_changed_file_is_read(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(text_of("alice"))
    keys = of_file(path, clock)

    async def run() -> None:
        written(path, text_of("bob"))
        clock.now += LOOK_S / 2
        await keys.renew()
        assert names(keys) == ["alice"]  # it is not looked at for every request
        clock.now += LOOK_S / 2
        await keys.renew()
        assert names(keys) == ["bob"]
        assert keys.find("alice") is None
        assert keys.find("bob") is not None

    asyncio.run(run())


def test_a_mounted_secret_is_read(tmp_path: Path) -> None:
    """Kubernetes leads the file through a link to a folder, and turns that link."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys").write_text(text_of(folder))
    same = (tmp_path / "one" / "keys").stat()
    os.utime(tmp_path / "two" / "keys", ns=(same.st_atime_ns, same.st_mtime_ns))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys").symlink_to("..data/keys")
    clock = Clock()
    keys = of_file(tmp_path / "keys", clock)
    assert names(keys) == ["one"]
    (tmp_path / "..tmp").symlink_to("two")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    asyncio.run(looked(keys, clock))
    assert names(keys) == ["two"]


@pytest.mark.parametrize("wrong", [text_of("bob", running=0), "- {", None])
def test_a_wrong_file_keeps_the_last_good_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str | None
) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(text_of("alice"))
    keys = of_file(path, clock)

    async def run() -> None:
        if wrong is None:
            path.unlink()
        else:
            written(path, wrong)
        with caplog.at_level(logging.INFO, "ray.serve.tcd.keys"):
            for _ in range(3):
                await looked(keys, clock)
        assert keys.faulty
        assert names(keys) == ["alice"]
        (record,) = caplog.records  # once, not at every look
        assert record.levelno == logging.ERROR
        assert str(path) in record.getMessage()
        assert digest(b"bob") not in caplog.text
        written(path, text_of("carol"))
        await looked(keys, clock)
        assert not keys.faulty
        assert names(keys) == ["carol"]

    asyncio.run(run())


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(text_of("alice"))
    keys = of_file(path, clock)
    monkeypatch.setattr(keyring_module, "PATIENCE_S", 0.5)
    looks, ends = list[float](), threading.Event()

    def hang() -> None:
        looks.append(clock.now)
        ends.wait(30)

    monkeypatch.setattr(keys, "_changed", hang)

    async def run() -> None:
        started = time.perf_counter()
        try:
            for _ in range(20):
                await looked(keys, clock)
            took = time.perf_counter() - started
        finally:
            ends.set()
        assert took < 5  # one look, and one request that waited for it
        assert len(looks) == 1
        assert names(keys) == ["alice"]

    asyncio.run(run())


def test_what_is_wrong_with_a_file_is_no_news_of_a_request(tmp_path: Path) -> None:
    """A request is there when the file is looked at; the log has its id beside what is its own."""
    request: ContextVar[str] = ContextVar("request", default="none")
    met: list[str] = []

    class Ears(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            met.append(request.get())

    path, clock = tmp_path / "keys", Clock()
    path.write_text(text_of("alice"))
    keys = of_file(path, clock)
    written(path, "- {")

    async def asked() -> None:
        request.set("its id")
        await looked(keys, clock)

    keyring_module.log.addHandler(ears := Ears())
    try:
        asyncio.run(asked())
    finally:
        keyring_module.log.removeHandler(ears)
    assert keys.faulty
    assert met == ["none"]
