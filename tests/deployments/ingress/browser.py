"""The playground in Chromium: the page as it is served, a stand-in for the service behind it."""

import json
import queue
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from deployments.contracts.cards import ModelCard, ModelsBody
from deployments.ingress.http.app import PLAYGROUND
from tests.http_server import serving

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_S = 120

# What a user does, as functions for the tests' scripts. `press` says what came of it.
DRIVER = """
const $ = id => document.getElementById(id);
async function until(met) { while (!met()) await new Promise(wait => setTimeout(wait, 10)); }
function pick(model) { $("model").value = model; $("model").dispatchEvent(new Event("change")); }
async function toggle(field) {
  const section = $(field).closest("details");
  const toggled = new Promise(done => section.addEventListener("toggle", done, { once: true }));
  section.querySelector("summary").click();
  await toggled;
}
async function givePicture(field) {
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
  const picture = await new Promise(done => canvas.toBlob(done));
  const files = new DataTransfer();
  files.items.add(new File([picture], "picture.png", { type: picture.type }));
  $(field).files = files.files;
  $(field).dispatchEvent(new Event("change"));
}
async function press() {
  $("go").click();
  await until(() => !$("go").disabled);
  return { status: $("status").textContent, focus: document.activeElement.id };
}
await until(() => $("model").options.length);
const told = await (async () => { SCRIPT })().catch(error => ({ error: `${error}` }));
await fetch("told", { method: "POST", body: JSON.stringify(told) });
"""


@dataclass(frozen=True)
class Call:
    """A request of the page; `body` is what it sent, if that was JSON."""

    route: str
    body: dict[str, object] | None


@dataclass(frozen=True)
class Seen:
    """What a script saw of the page, and what the page asked the service for."""

    told: dict[str, str]
    calls: list[Call]


def play(cards: Sequence[ModelCard], script: str) -> Seen:
    """Opens the playground of these models and does what a script says; see `DRIVER`."""
    told: queue.Queue[dict[str, str]] = queue.Queue()
    calls: list[Call] = []
    page = PLAYGROUND.read_text().replace(
        "</html>", f'<script type="module">{DRIVER.replace("SCRIPT", script)}</script></html>'
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._answer("text/html", page)
            elif self.path == "/v1/models":
                self._answer("application/json", ModelsBody(data=list(cards)).model_dump_json())
            else:
                self._answer("application/octet-stream", "")

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/told":
                self._answer("text/plain", "")
                told.put(json.loads(sent))
                return
            is_json = self.headers["content-type"] == "application/json"
            calls.append(Call(self.path, json.loads(sent) if is_json else None))
            if self.path == "/v1/videos":
                job = {"id": "one", "status": "completed", "progress": 100}
                self._answer("application/json", json.dumps(job))
            else:
                image = {"image_index": 0, "b64_json": "", "seed": 7, "size": "64x64"}
                self._answer("text/event-stream", f"data: {json.dumps(image)}\n\n")

        def _answer(self, content_type: str, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url, _browsing(f"{url}/") as output:
        try:
            answer = told.get(timeout=TIMEOUT_S)
        except queue.Empty:
            answer = {"error": f"the page tells nothing; Chromium: {output.read_text()}"}
    assert "error" not in answer, answer["error"]
    return Seen(answer, calls)


@contextmanager
def _browsing(url: str) -> Iterator[Path]:
    """Chromium on a page; yields the file of what it prints."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output, profile = Path(folder, "output"), Path(folder, "profile")
        with output.open("wb") as log:
            command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", url]
            browser = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield output
        finally:
            browser.terminate()
            browser.wait(TIMEOUT_S)
