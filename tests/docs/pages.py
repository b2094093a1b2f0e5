"""Pages of Markdown as GitHub reads them: their anchors, their links, and their blocks of code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_REASON = re.compile(r"<!-- not run: (.+) -->\n\Z")
_SLUG = slugify(case="lower")


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        line: of its fence, from 1.
        reason: why no test runs it, by the comment `<!-- not run: REASON -->` on the line before.
    """

    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of code of a page, in their order."""
    text = page.read_text()
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        lines = (line.removeprefix(fence[1]) for line in fence[3].splitlines())
        said = _REASON.search(before)
        yield Block(
            before.count("\n") + 1, fence[2], "\n".join(lines) + "\n", said[1] if said else None
        )


def prose(page: Path) -> str:
    """A page without its blocks and its words of code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))


def links(page: Path) -> list[str]:
    """Where a page leads to, as it says it: pictures too."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text())):
        name = _SLUG(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", ""), "-")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found
