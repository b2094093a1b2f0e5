"""Someone at the page, in Debian's Chromium."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
]
WIDE, PHONE = (1280, 900), (390, 844)
# A file comes to an element, by `drop` or `paste`.
BRING = """(place, [how, type, text]) => {
    const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "picture", { type }));
    const told = { bubbles: true, cancelable: true };
    place.dispatchEvent(how === "drop"
        ? new DragEvent("drop", { ...told, dataTransfer: data })
        : new ClipboardEvent("paste", { ...told, clipboardData: data }));
}"""
# What the browser keeps in one of the page's stores, by key; `null`: all of it.
KEPT = """async ([name, store, key]) => {
    const database = await new Promise((done) => {
        const opening = indexedDB.open(`${name} ${location.pathname}`);
        opening.onsuccess = () => done(opening.result);
    });
    const found = await new Promise((done) => {
        const all = database.transaction(store).objectStore(store);
        const asked = key === null ? all.getAll() : all.get(key);
        asked.onsuccess = () => done(asked.result);
    });
    database.close();
    return found;
}"""
MADE_MS = 120_000  # for a picture, on a machine that does other things too


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. While it is open, `asyncio.run` works in no other way in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visitor:
    """A page with what its console said.

    Attributes:
        told: messages of the console, and errors that nobody caught.
    """

    page: Page
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.told.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        # The browser itself writes a line for each answer that is no success.
        if not message.text.startswith("Failed to load resource"):
            self.told.append(message.text)

    def opens(self, url: str) -> None:
        """The page, ready to be used."""
        self.page.goto(url)
        self.page.locator("#composer").wait_for(timeout=MADE_MS)

    def button(self, name: str, exact: bool = True) -> Locator:
        """By what it says."""
        return self.page.get_by_role("button", name=name, exact=exact)

    def field(self, name: str) -> Locator:
        """By the name of the API's field."""
        return self.page.locator(f'[data-field="{name}"]')

    def section(self, title: str) -> Locator:
        """A part of the form, opened."""
        found = self.page.locator("details.section").filter(
            has=self.page.locator("summary", has_text=title)
        )
        if found.get_attribute("open") is None:
            found.locator("summary").first.click()
        return found

    def easel(self) -> Locator:
        """Where a mask is painted, once the picture is on it."""
        canvas = self.page.locator(".easel canvas[aria-busy=false]")
        canvas.wait_for()
        return canvas

    def choose(self, model: str) -> None:
        """A model, and pictures of the size that the demo's models know."""
        self.field("model").select_option(model)
        self.field("width").fill("64")
        self.field("height").fill("64")

    def give(self, label: str, *files: Path) -> None:
        """Pictures to a place for them."""
        place = self.page.get_by_role("group", name=label, exact=True)
        place.locator("input[type=file]").set_input_files(files)

    def brings(self, label: str, how: str, file: Path) -> None:
        """A picture to a place for them, by `drop` or `paste`."""
        text = base64.b64encode(file.read_bytes()).decode()
        place = self.page.get_by_role("group", name=label, exact=True)
        place.evaluate(BRING, [how, "image/png", text])

    def drops_with(self, said: object) -> None:
        """A picture on the page that says this of how it was made."""
        texts = PngInfo()
        texts.add_text("tcd", json.dumps(said))
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "png", pnginfo=texts)
        self.drops(file.getvalue(), "image/png")

    def drops(self, data: bytes, media_type: str) -> None:
        """A file on the page itself."""
        text = base64.b64encode(data).decode()
        self.page.locator("h1").evaluate(BRING, ["drop", media_type, text])

    @property
    def tiles(self) -> Locator:
        """What the gallery shows."""
        return self.page.locator(".gallery .tile")

    def generate(self, new: int = 1) -> None:
        """Presses the button, and waits until so many more are in the gallery."""
        before = self.tiles.count()
        self.button("Generate").click()
        self.waits_for(before + new)

    def waits_for(self, tiles: int) -> None:
        """Until the gallery has so many, and nothing is in the making."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('.gallery .tile').length >= count"
            " && !document.querySelector('.queue')",
            arg=tiles,
            timeout=MADE_MS,
        )

    def opened(self, index: int = 0) -> Locator:
        """An item of the gallery, looked at closely."""
        self.tiles.nth(index).get_by_role("button").click()
        return self.page.get_by_role("dialog")

    def asked(self) -> dict[str, object]:
        """The body of the request that made the newest item, without its pictures."""
        body: dict[str, object] = self.page.evaluate(
            f"""async () => {{
                const items = await ({KEPT})(["tcd-gallery", "items", null]);
                items.sort((one, other) => other.made - one.made);
                return JSON.parse(JSON.stringify(items[0].request.body));
            }}"""
        )
        return body

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        wider: int = self.page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return wider
