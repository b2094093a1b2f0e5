"""The project's licence: its text is here to the letter, and the package names it."""

import hashlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of https://www.apache.org/licenses/LICENSE-2.0.txt.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


@pytest.mark.parametrize("folder", [".", "demo/weights"])
def test_the_text_is_apache_2(folder: str) -> None:
    assert hashlib.sha256((ROOT / folder / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_the_package_names_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE", "NOTICE"]
