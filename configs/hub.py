"""Files of the Hugging Face hub, held to the hashes that the hub says.

The hub client begins a broken file anew and compares sizes only. Large files are therefore brought
here, to where that client looks for them: `blobs/<sha256>` of the repository's cache folder.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile

from configs.sources import (
    Layout,
    Source,
    SourceError,
    SourceUnavailable,
    hub_errors,
    refused,
    select,
)

ATTEMPTS = 5  # without a single byte in between
PAUSE_S = 1.0
PATIENCE = httpx.Timeout(30, connect=10)  # seconds, for an answer and between any two pieces of it
Progress = Callable[[str, int, int], None]  # path, bytes that are there, bytes in all


@dataclass(frozen=True)
class Listing:
    """The files of a source at one commit. Those in `lfs` are the large ones."""

    source: Source
    commit: str
    files: tuple[RepoFile, ...]

    @property
    def folder(self) -> Path:
        """The repository's folder in the hub's cache."""
        name = repo_folder_name(repo_id=self.source.location, repo_type="model")
        return Path(constants.HF_HUB_CACHE).expanduser() / name


def list_files(source: Source, variant: str | None, layout: Layout) -> Listing:
    """What `sources.fetch` brings of a hub source. Raises `SourceError`."""
    with hub_errors(source):
        api = HfApi()
        commit = api.repo_info(source.location, revision=source.revision).sha or ""
        tree = api.list_repo_tree(source.location, recursive=True, revision=commit)
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
    if source.file is not None:
        named = tuple(file for file in files if file.path == source.file)
        if not named:
            raise SourceError(f"hub {source}: the repository has no such file")
        return Listing(source, commit, named)
    chosen = select((file.path for file in files), source, variant, layout)
    return Listing(source, commit, tuple(file for file in files if file.path in chosen))


def bring_large(listing: Listing, progress: Progress) -> None:
    """Brings the large files that are not in the cache, or are there with another hash.

    A broken download goes on where it ended, now or when it is called again. Raises
    `SourceUnavailable` if it cannot go on, `SourceError` for a file that is not what the hub
    says; nothing of that is kept.
    """
    for file in listing.files:
        if file.lfs is None:
            continue
        blob = listing.folder / "blobs" / file.lfs.sha256
        if blob.exists() and _sha256(blob) == file.lfs.sha256:
            progress(file.path, file.size, file.size)
            continue
        blob.unlink(missing_ok=True)
        _bring(listing, file, blob, progress)


def check_small(listing: Listing) -> None:
    """Compares the small files of the snapshot with the hub's. Raises `SourceError`."""
    snapshot = listing.folder / "snapshots" / listing.commit
    for file in listing.files:
        path = snapshot / file.path
        if not path.is_file():
            raise SourceError(f"hub {listing.source}: {file.path} did not come")
        data = path.read_bytes() if file.lfs is None else b""
        if file.lfs is None and _git_hash(data) != file.blob_id:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise SourceError(f"{_damaged(listing, file)}; it was deleted, run this again")


def _bring(listing: Listing, file: RepoFile, blob: Path, progress: Progress) -> None:
    partial = blob.with_name(f"{blob.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SourceError(f"{partial} is being written by another process") from error
        _receive_all(listing, file, out, progress)
    if _sha256(partial) != blob.name:
        partial.unlink()
        raise SourceError(f"{_damaged(listing, file)}; it was not kept")
    os.replace(partial, blob)


def _receive_all(listing: Listing, file: RepoFile, out: BinaryIO, progress: Progress) -> None:
    if out.tell() > file.size:
        _begin_anew(out)
    left = ATTEMPTS
    while (have := out.tell()) < file.size:
        try:
            _receive(listing, file, out, progress)
        except httpx.HTTPStatusError as error:
            if refused(error.response.status_code):
                raise SourceError(f"hub {listing.source}: {file.path}: {error}") from error
            failed: httpx.HTTPError = error
        except httpx.TransportError as error:
            failed = error
        else:
            continue
        left = ATTEMPTS if out.tell() > have else left - 1
        if left == 0:
            raise SourceUnavailable(
                f"hub {listing.source}: {file.path} broke off after {out.tell()} of {file.size} "
                f"bytes ({failed}); run this again to go on from there"
            ) from failed
        time.sleep(PAUSE_S)


def _receive(listing: Listing, file: RepoFile, out: BinaryIO, progress: Progress) -> None:
    url = hf_hub_url(listing.source.location, file.path, revision=listing.commit)
    have = out.tell()
    headers = {"accept-encoding": "identity", "range": f"bytes={have}-"}
    token = get_token()
    if token is not None:  # for gated repositories; not sent on to where the hub redirects
        headers["authorization"] = f"Bearer {token}"
    with httpx.stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=PATIENCE
    ) as answer:
        answer.raise_for_status()
        if answer.status_code != 206:
            _begin_anew(out)  # the server sends all of it
        for chunk in answer.iter_bytes():
            out.write(chunk)
            progress(file.path, out.tell(), file.size)
            if out.tell() > file.size:
                break


def _begin_anew(out: BinaryIO) -> None:
    out.seek(0)
    out.truncate()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _damaged(listing: Listing, file: RepoFile) -> str:
    return f"hub {listing.source}: {file.path} does not have the hash that the hub says"
