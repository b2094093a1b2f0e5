"""Lists of keys: what they may say, and that a wrong one is named without being shown."""

import json
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import yaml

from configs.keys import KeyEntry, KeysError, digest, fresh_key, main, read_keys

HASH = digest(b"a key")
SECRET = "tcd-this-is-the-key-itself"


def listed(**fields: object) -> str:
    return json.dumps([{"name": "alice", "sha256": HASH, **fields}])


def test_yaml_and_json() -> None:
    text = f"""
    - {{name: alice, sha256: {HASH.upper()}, weight: 2, running: 4, waiting: 8, max_priority: 0}}
    - name: bob@example.com
      sha256: {digest(b"another")}
      work_per_minute: 1000000
      models: [sd15, sdxl]
      admin: true
    """
    alice, bob = read_keys(text)
    assert alice == KeyEntry(
        name="alice", sha256=HASH, weight=2.0, running=4, waiting=8, max_priority=0
    )
    assert (bob.models, bob.admin, bob.running, bob.weight) == (("sd15", "sdxl"), True, None, 1.0)
    assert read_keys(json.dumps(yaml.safe_load(text))) == (alice, bob)


def test_allowed_models() -> None:
    free, bound, none = (
        KeyEntry(name="a", sha256=HASH, models=models) for models in (None, ("sd15",), ())
    )
    assert free.may_ask("sd15")
    assert bound.may_ask("sd15")
    assert not bound.may_ask("sdxl")
    assert not none.may_ask("sd15")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a list"),
        ("[]", "must be a list"),
        ("{}", "must be a list"),
        ("alice", "must be a list"),
        ("- {name: alice", "neither YAML nor JSON in line 1"),
        ("- 2020-99-99", "neither YAML nor JSON"),
        ("[" * 500, "neither YAML nor JSON"),
        ("[alice]", "key 1: "),
        (json.dumps([{"name": "alice"}]), "key 1 ('alice'): sha256: Field required"),
        (json.dumps([{"sha256": HASH}]), "key 1: name: Field required"),
        (listed(sha256=SECRET), "key 1 ('alice'): sha256: "),
        (listed(sha256=HASH[:-1]), "key 1 ('alice'): sha256: "),
        (listed(name=f"{SECRET} it is"), "key 1: name: "),
        (listed(name=""), "key 1: name: "),
        (listed(weight=0), "('alice'): weight: Input should be greater than or equal to 0.001"),
        (listed(weight=float("nan")), "('alice'): weight: "),
        (listed(running=0), "('alice'): running: "),
        (listed(running="many"), "('alice'): running: "),
        (listed(waiting=-1), "('alice'): waiting: "),
        (listed(waiting=3), "('alice'): waiting has no effect without running"),
        (listed(work_per_minute=0), "('alice'): work_per_minute: "),
        (listed(max_priority=11), "('alice'): max_priority: "),
        (listed(models="sd15"), "('alice'): models: "),
        (listed(models=["No Model"]), "('alice'): models.0: "),
        (listed(admin="perhaps"), "('alice'): admin: "),
        (listed(runing=3), "('alice'): runing: there is no such field; fields: name, sha256, "),
        (
            json.dumps([{"name": "alice", "sha256": HASH}, {"name": "alice", "sha256": "0" * 64}]),
            "key 'alice': name: is given to two keys",
        ),
        (
            json.dumps([{"name": "alice", "sha256": HASH}, {"name": "bob", "sha256": HASH}]),
            "key 'bob': sha256: is that of 'alice', too",
        ),
    ],
)
def test_a_wrong_list_is_named_and_not_shown(text: str, says: str) -> None:
    with pytest.raises(KeysError) as caught:
        read_keys(text)
    assert says in str(caught.value)
    logged = "".join(traceback.format_exception(caught.value))
    assert SECRET not in logged
    assert HASH not in logged


def test_fresh_keys() -> None:
    made = [fresh_key("alice") for _ in range(100)]
    assert len({key for key, _ in made}) == 100
    for key, entry in made:
        assert len(key) == len("tcd-") + 43  # 256 bits
        assert entry.sha256 == digest(key.encode())
        assert key not in entry.model_dump_json()


def test_the_command_line() -> None:
    command = [sys.executable, "-m", "configs.keys", "alice"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    key = first.rpartition(" ")[2]
    (entry,) = read_keys(second.partition(":")[2])
    assert entry == KeyEntry(name="alice", sha256=digest(key.encode()))


def test_a_name_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["keys", "a b"])
    with pytest.raises(SystemExit):
        main()
    assert "NAME: " in capsys.readouterr().err


def test_the_operations_page_explains_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = page.partition("\n## Keys\n")[2].partition("\n## ")[0]
    explained = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert ["name", "sha256", *explained] == list(KeyEntry.model_fields)
