"""A hook of mkdocs: links that leave docs/ lead to the repository."""

import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

OUTWARDS = re.compile(r"\]\((\.\.?/[^)\s#]+)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """The page's text with its links to files outside of docs/ as links to the repository."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def rewritten(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        inside = path.startswith("docs/")
        return link[0] if inside else f"]({config.repo_url}/blob/main/{path}"

    return OUTWARDS.sub(rewritten, markdown)
