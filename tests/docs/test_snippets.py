"""Each block of the README and the tutorials is run, or says why it is not; all of them parse."""

import subprocess
from pathlib import Path

import pytest
import yaml

from graphs.check.config import problems
from tests.docs.pages import DOCS, ROOT, Block, blocks
from tests.docs.snippets import Reader, compiled, whole
from tests.serving import Served

PAGES = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("*.md"))]
BLOCKS = [(page, block) for page in PAGES for block in blocks(page)]
RUN = ("bash", "python", "yaml")
SHOWN = ("", "text")  # what a program prints, and the map of files
READ = ("nginx",)  # of programs that are not here


def named(value: object) -> str:
    return value.stem if isinstance(value, Path) else str(getattr(value, "line", value))


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=named)
def test_a_block_parses_and_is_run_or_says_why_not(
    page: Path, block: Block, demo_models: Path
) -> None:
    assert block.language in (*RUN, *SHOWN, *READ)
    match block.language:
        case "bash":
            subprocess.run(["bash", "-n", "-c", block.text], check=True, timeout=10)
        case "python":
            compiled(block.text)
        case "yaml":
            yaml.safe_load(block.text)
            if block.reason is None:
                assert list(problems(whole(block.text))) == []
        case "nginx":
            assert block.text.count("{") == block.text.count("}") > 0
    if block.language in READ:
        assert block.reason is not None, "nothing here can run it: say so"


FOLLOWED = [
    page
    for page in PAGES
    if any(one.language in ("bash", "python") and one.reason is None for one in blocks(page))
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", FOLLOWED, ids=named)
def test_a_reader_gets_what_the_page_says(page: Path, tmp_path: Path, served: Served) -> None:
    """What a block prints is what the page shows right below it, if it shows something."""
    reader = Reader(tmp_path, served)
    printed = None
    try:
        for block in blocks(page):
            if block.language == "text" and printed is not None:
                assert block.text.strip() == printed.strip(), f"{page.name}:{block.line}"
            runs = block.language in RUN and block.reason is None
            printed = reader.follow(block) if runs else None
    finally:
        reader.leave()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "false\necho goes on\n"),
        ("bash", "curl -sf http://127.0.0.1:8000/healthz\n"),
        ("python", "assert await __import__('asyncio').sleep(0, False)\n"),
        ("yaml", "- {name: model-a, import_path: graphs.model:build, args: {nme: a}}\n"),
    ],
)
def test_a_reader_notices_what_fails(language: str, text: str, tmp_path: Path) -> None:
    reader = Reader(tmp_path, Served("http://127.0.0.1:9"))
    with pytest.raises(AssertionError):
        reader.follow(Block(1, language, text, None))
