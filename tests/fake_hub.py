"""A server of this machine that speaks as much of the Hugging Face hub as downloads need."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.http_server import serving

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """Repositories of one commit each; safetensors are large files.

    Attributes:
        damaged: paths whose bytes are not those of their hash.
        ignores_ranges: whether it always sends whole files.
        cut: bytes of a large file after which a connection breaks; `None`: it does not.
        ranges: the Range headers of downloads, by path.
        sent: bytes of each path that went out.
    """

    url: str
    repos: dict[str, dict[str, bytes]]
    damaged: set[str] = field(default_factory=set)
    ignores_ranges: bool = False
    cut: int | None = None
    ranges: dict[str, list[str | None]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)


@contextmanager
def fake_hub(repos: Mapping[str, Mapping[str, bytes]]) -> Iterator[FakeHub]:
    """A running hub."""
    hub = FakeHub("", {repo: dict(files) for repo, files in repos.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path):
                self._say(hub.repos.get(match[1]), lambda _: info(match[1]))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
                self._say(hub.repos.get(match[1]), tree)
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._file(hub.repos.get(match[1], {}).get(match[2]), match[2])
            else:
                self._say(None, tree)

        def _say(self, files: dict[str, bytes] | None, make: object) -> None:
            assert callable(make)
            body = json.dumps({"error": "not found"} if files is None else make(files)).encode()
            self.send_response(404 if files is None else 200)
            if files is None:
                self.send_header("x-error-code", "RepoNotFound")
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, data: bytes | None, path: str) -> None:
            if data is None:
                self._say(None, tree)
                return
            etag = sha256(data) if is_large(path) else git_hash(data)
            asked = self.headers["range"]
            wanted = None if hub.ignores_ranges else asked
            begin = int(re.sub(r"\D", "", wanted)) if wanted else 0
            body = (bytes(len(data)) if path in hub.damaged else data)[begin:]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("content-range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("etag", f'"{etag}"')
            self.send_header("x-repo-commit", COMMIT)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            hub.ranges.setdefault(path, []).append(asked)
            breaks = is_large(path) and hub.cut is not None and len(body) > hub.cut
            body = body[: hub.cut] if breaks else body
            self.wfile.write(body)
            hub.sent[path] = hub.sent.get(path, 0) + len(body)
            self.close_connection = breaks

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as hub.url:
        yield hub


def info(repo: str) -> dict[str, object]:
    return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [], "tags": []}


def tree(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for path, data in files.items():
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(data)}
        entry["oid"] = git_hash(data)
        if is_large(path):
            entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
        entries.append(entry)
    return entries


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
