"""A browser for the tests of a module, and visitors whose consoles have to stay silent."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.deployments.ingress.playground.visitor import CHROMIUM, WIDE, Visitor, chromium

Visit = Callable[..., Visitor]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All need the browser."""
    here = Path(__file__).parent
    for item in items:
        if CHROMIUM is None and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs Debian's package chromium"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module: see `chromium`."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens a page at a URL, as a new visitor; at the end no console may have said anything."""
    visitors: list[Visitor] = []

    def come(url: str, window: tuple[int, int] = WIDE, scheme: str = "light") -> Visitor:
        width, height = window
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )
        visitor = Visitor(context.new_page())
        visitors.append(visitor)
        visitor.opens(url)
        return visitor

    yield come
    for visitor in visitors:
        visitor.page.context.close()
    assert [visitor.told for visitor in visitors] == [[] for _ in visitors]
