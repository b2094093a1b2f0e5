"""Every relative link of a page leads to a file that is there, and to an anchor that is there."""

import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links


def wrong(page: Path, link: str) -> str | None:
    """What is wrong with a link; `None`: nothing, or it leaves the project."""
    if "://" in link or link.startswith("mailto:"):
        return None
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return f"{link}: there is no such file"
    if target.is_file() and target not in tracked():
        return f"{link}: the file is not in the repository"
    if anchor and anchor not in anchors(target):
        return f"{link}: there is no such heading"
    return None


@cache
def tracked() -> set[Path]:
    """The files of the repository, or of the working tree that are to be in it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {ROOT / name for name in done.stdout.splitlines()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [said for link in links(page) if (said := wrong(page, link)) is not None] == []


def test_what_is_wrong_is_found() -> None:
    page = ROOT / "README.md"
    assert wrong(page, "docs/nowhere.md") == "docs/nowhere.md: there is no such file"
    assert wrong(page, "docs/jobs.md#nothing") == "docs/jobs.md#nothing: there is no such heading"
    assert wrong(page, "../elsewhere.md") is not None
    assert wrong(page, "docs/jobs.md#batches") is None
