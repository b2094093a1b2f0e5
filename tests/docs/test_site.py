"""The site of the documentation: it builds without a warning, its links lead somewhere, and reading
it asks nobody else for anything."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml

from tests.docs.pages import ROOT

HERE = "http://site/"
# What a browser asks for by itself, by element and attribute.
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
NOT_LOADED = {"canonical", "prev", "next", "edit"}  # relations of a <link>


class Page(HTMLParser):
    """What a page links to, what it loads, its anchors, and its paragraphs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.paragraphs: list[str] = []
        self._code = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.add(named["href"])
        for name, value in named.items():
            if (tag, name) in LOADED and named.get("rel") not in NOT_LOADED:
                self.loaded.add(value)
        if tag == "p":
            self.paragraphs.append("")
        self._code += tag in ("code", "pre")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "pre")

    def handle_data(self, data: str) -> None:
        if self.paragraphs and not self._code:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The pages of the site by their paths; what else is in it as empty ones."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING -" not in built.stderr
    files = (file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): Page(file.read_text() if file.suffix == ".html" else "")
        for file in files
    }


def pages(site: dict[str, Page]) -> dict[str, Page]:
    return {name: page for name, page in site.items() if name.endswith(".html")}


def test_links_and_anchors_are_there(site: dict[str, Page]) -> None:
    missing = []
    for name, page in pages(site).items():
        if name == "404.html":
            continue  # its links begin at the site's root, wherever that will be
        for link in page.links | page.loaded:
            parts = urlsplit(urljoin(HERE + name, link))
            if parts.netloc != "site":
                continue
            path, anchor = unquote(parts.path).lstrip("/") or "index.html", unquote(parts.fragment)
            path = f"{path}index.html" if path.endswith("/") else path
            there = site.get(path)
            if there is None or (anchor and anchor not in there.anchors):
                missing.append((name, link))
    assert missing == []


def test_links_out_of_the_docs_lead_to_files_of_the_repository(site: dict[str, Page]) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("repo_url:"))
    repository = f"{yaml.safe_load(line)['repo_url']}/blob/main/"
    links = {link for page in pages(site).values() for link in page.links}
    led = {link.removeprefix(repository) for link in links if link.startswith(repository)}
    assert {"README.md", "deploy/haproxy.cfg"} <= {link.partition("#")[0] for link in led}
    assert [link for link in led if not (ROOT / link.partition("#")[0]).exists()] == []


def test_reading_it_needs_no_network(site: dict[str, Page]) -> None:
    loaded = {link for page in pages(site).values() for link in page.loaded}
    assert [link for link in loaded if urlsplit(link).netloc] == []
    assert not any("api.github.com" in str(page.loaded) for page in pages(site).values())


def test_lists_and_tables_are_seen_as_such(site: dict[str, Page]) -> None:
    """GitHub's Markdown sees a list right below a paragraph; the site's wants a line between."""
    lines = [
        (name, line)
        for name, page in pages(site).items()
        for paragraph in page.paragraphs
        for line in paragraph.splitlines()
    ]
    assert [(name, line) for name, line in lines if line.startswith(("- ", "| "))] == []


def test_each_page_is_shown_in_the_navigation(site: dict[str, Page]) -> None:
    home = site["index.html"].links
    sources = [file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")]
    assert [
        str(one) for one in map(Path, sources) if str(one.with_suffix(".html")) not in home
    ] == []
