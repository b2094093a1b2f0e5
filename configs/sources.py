"""Where weights come from: a hub id, an `s3://` URI, or a path; each brought to a local path.

`fetch` is the one door through which checkpoints, TCD-LoRAs, styles and preprocessor
weights enter. Only configuration, tokenizer and safetensors files are brought: no pickles.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

PEFT_CONFIG = "adapter_config.json"  # beside an adapter: what PEFT says of its alphas
PROJECT_ROOT = Path(__file__).resolve().parent.parent
CONFIG_SUFFIXES = (".json", ".txt", ".model")
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
PIPELINE_PARTS = (
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "unet",
    "vae",
)
HTTP_LATER = (408, 425, 429)  # of the statuses that blame the request, those that pass
HUB_PATIENCE_S = 30  # for an answer of the hub, and between any two pieces of it
# Other weights beside the plain ones, as hub repositories name them.
VARIANTS = ("fp16", "bf16", "non_ema")
# What of a folder is brought: all of it; of a diffusers pipeline what is read here; the latter
# without weights.
Layout = Literal["any", "pipeline", "pipeline_configs"]
_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<path>[\w./-]+?))?(?:@(?P<revision>[\w./-]+))?"
)


class SourceError(Exception):
    """A source that is malformed, missing or out of reach. `str(error)` names it."""


class SourceUnavailable(SourceError):
    """A source that cannot be reached now, and may be there later."""


class SourceChanged(SourceUnavailable):
    """A source that was another one, or gone, when it was fetched than when it was looked at."""


@dataclass(frozen=True)
class Source:
    """A parsed source.

    Attributes:
        kind: "local", "s3" or "hub".
        location: absolute path, `s3://` URI, or `owner/name` of a hub repository.
        file: a single file inside a hub repository.
        folder: a folder inside a hub repository; neither: the whole repository.
        revision: branch, tag, commit or `refs/pr/N` of a hub repository.
    """

    kind: Literal["local", "s3", "hub"]
    location: str
    file: str | None = None
    folder: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        path = self.file or self.folder
        at = f"@{self.revision}" if self.revision else ""
        return (f"{self.location}/{path}" if path else self.location) + at


@dataclass(frozen=True)
class Patterns:
    """Which paths of a hub repository, or below a prefix in S3, are brought, as shell patterns
    whose `*` crosses `/`."""

    allow: list[str]
    ignore: list[str]

    def match(self, path: str) -> bool:
        """Whether a path is brought."""
        wanted = any(fnmatchcase(path, pattern) for pattern in self.allow)
        return wanted and not any(fnmatchcase(path, pattern) for pattern in self.ignore)


def parse(text: str) -> Source:
    """Reads a source as a config writes it.

    An `s3://` URI; an absolute path; a path relative to the project's root that exists; or
    `owner/name[/path][@revision]` on the hub, where a path that ends in a suffix is a file, and
    else a folder. A path below a folder of the project is none on the hub. Raises
    `SourceError` for anything else, and for a pickle that would be brought here to be refused.
    """
    if text.startswith("s3://"):
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+/.+", text):
            raise SourceError(f"{text!r} is not of the form s3://bucket/key")
        if (reason := pickle_refused(text)) is not None:
            raise SourceError(reason)
        return Source("s3", text)
    local = PROJECT_ROOT / text
    if text and local.exists():
        return Source("local", str(local))
    hub = _HUB_ID.fullmatch(text)
    if hub is not None and hub["path"] and (PROJECT_ROOT / text.partition("/")[0]).is_dir():
        hub = None  # a path into a folder that is here
    path = hub["path"] if hub is not None else None
    strange = path is not None and not all(part.strip(".") for part in path.split("/"))
    if hub is None or strange or text.startswith((".", "/")):
        where = "" if text.startswith("/") else f" below {PROJECT_ROOT}"
        raise SourceError(
            f"{text!r} does not exist{where}, and is neither an s3:// URI "
            "nor a hub id of the form owner/name[/path][@revision]"
        )
    is_file = path is not None and re.search(r"\.[A-Za-z]\w*$", path) is not None
    if path is not None and (reason := pickle_refused(path)) is not None:
        raise SourceError(reason)
    file, folder = (path, None) if is_file else (None, path)
    return Source("hub", hub["repo"], file, folder, hub["revision"])


def pickle_refused(name: str) -> str | None:
    """Why a file of this name is never opened, if it is a pickle."""
    if not name.endswith(PICKLES):
        return None
    return (
        f"{name} is a pickle, which can run code when it is opened: none ever is. Convert it to "
        "safetensors first (docs/files.md says how)"
    )


def format_refused(name: str) -> str | None:
    """Why a single file of weights of this name is never opened, if it is not."""
    if Path(name).suffix == ".safetensors":
        return None
    return pickle_refused(name) or f"{name} is not a safetensors file; no other format is read"


def state(text: str) -> str:
    """What tells a local source from what stood there before: its files' places on the disk, sizes
    and times of change. Empty for what lies elsewhere or is not there: such a source is looked at
    when it is fetched."""
    path = PROJECT_ROOT / text
    if text.startswith("s3://") or not path.exists():
        return ""
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    described = folder / PEFT_CONFIG
    found = [file.stat() for file in (*files, described) if file.exists()]
    return " ".join(f"{f.st_ino}.{f.st_size}.{f.st_mtime_ns}.{f.st_ctime_ns}" for f in found)


def fetch(
    text: str, *, variant: str | None = None, layout: Layout = "any", offline: bool = False
) -> Path:
    """Brings a source to this machine and returns its local file or folder.

    Args:
        text: the source, as `parse` reads it.
        variant: with a folder that is not here, bring weights of this variant ("fp16") only; the
            plain weights where a folder that is no pipeline has none of it.
        layout: what of such a folder is brought.
        offline: nobody is asked: what was brought before is returned, as it is.

    Raises `SourceError` when it cannot be had; nothing half-written is left behind.
    """
    source = parse(text)
    if source.kind == "local":
        return Path(source.location)
    if source.kind == "s3":
        from configs import s3

        return s3.brought(source) if offline else s3.bring(source, variant, layout)
    if source.file is not None:
        return _fetch_hub_file(source, source.file, offline)
    return _fetch_hub_folder(source, variant, layout, offline)


def patterns(folder: str | None, variant: str | None, layout: Layout) -> Patterns:
    """The files that `fetch` brings of a hub repository, a folder in it, or a prefix in S3."""
    weights = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else []
    ignore = [] if variant else [f"*.{other}{end}" for other in VARIANTS for end in (".*", "-*")]
    wanted = [f"*{suffix}" for suffix in CONFIG_SUFFIXES]
    if layout != "pipeline_configs":
        wanted += weights or ["*.safetensors"]
    inside = "" if folder is None else f"{folder}/"
    if layout == "any":
        return Patterns([inside + pattern for pattern in wanted], ignore)
    parts = [f"{part}/{pattern}" for part in PIPELINE_PARTS for pattern in wanted]
    return Patterns([inside + path for path in ("model_index.json", *parts)], ignore)


def _fetch_hub_file(source: Source, file: str, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download

    with hub_errors(source):
        return Path(
            hf_hub_download(
                source.location, file, revision=source.revision, local_files_only=offline
            )
        )


def _fetch_hub_folder(source: Source, variant: str | None, layout: Layout, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    for tried in _tried_variants(variant, layout):
        wanted = patterns(source.folder, tried, layout)
        with hub_errors(source):
            root = Path(
                snapshot_download(
                    source.location,
                    revision=source.revision,
                    allow_patterns=wanted.allow,
                    ignore_patterns=wanted.ignore,
                    local_files_only=offline,
                )
            )
        folder = root / (source.folder or "")
        weights = (path.relative_to(root).as_posix() for path in folder.rglob("*.safetensors"))
        if layout == "pipeline_configs" or any(map(wanted.match, weights)):
            return folder
    raise _no_weights(source, variant)


def published(folder: Path, variant: str | None) -> str | None:
    """The variant that a folder of one model's weights is to be read in: the plain one, `None`,
    where it has none of that."""
    return variant if any(folder.glob(f"*.{variant}.safetensors")) else None


def select(
    paths: Iterable[str], source: Source, variant: str | None, layout: Layout
) -> frozenset[str]:
    """Those of a listed folder's paths that `fetch` brings. Raises `SourceError` if no weights are
    among them that can be read."""
    listed = tuple(paths)
    for tried in _tried_variants(variant, layout):
        wanted = patterns(source.folder, tried, layout)
        chosen = frozenset(filter(wanted.match, listed))
        if layout == "pipeline_configs" or any(path.endswith(".safetensors") for path in chosen):
            return chosen
    raise _no_weights(source, variant)


def _tried_variants(variant: str | None, layout: Layout) -> tuple[str | None, ...]:
    """A folder that is no pipeline may have plain weights only."""
    return (variant, None) if variant and layout == "any" else (variant,)


def _no_weights(source: Source, variant: str | None) -> SourceError:
    cached = " (or offline, in the cache)" if source.kind == "hub" else ""
    kind = "hub " if source.kind == "hub" else ""
    return SourceError(
        f"{kind}{source}: no safetensors{f' of variant {variant}' if variant else ''} are there"
        f"{cached}; nothing else is read"
    )


def refused(status: int) -> bool:
    """Whether an answer of this status says no, and would say so again."""
    return 400 <= status < 500 and status not in HTTP_LATER


@contextmanager
def hub_errors(source: Source) -> Iterator[None]:
    """What the hub client raises, as a `SourceError` that names the source. It is given
    `HUB_PATIENCE_S`."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hooks = get_session().event_hooks["request"]
    if _be_patient not in hooks:
        hooks.append(_be_patient)
    try:
        yield
    except Exception as error:  # the hub client raises some twenty unrelated classes
        # Of most refusals the client says that nothing is in its cache; its cause is the answer.
        answered = next(
            (e for e in (error, error.__cause__) if isinstance(e, HfHubHTTPError)), None
        )
        lasts = isinstance(error, HFValidationError) or (
            answered is not None and refused(answered.response.status_code)
        )
        raise (SourceError if lasts else SourceUnavailable)(
            f"hub {source} could not be fetched ({type(error).__name__}: {error}); "
            "for a local path, check that it exists"
        ) from error


def _be_patient(request: Any) -> None:  # of whichever httpx the hub client uses
    """Bounds what the hub client asks without a time limit: listings, for which it would wait for
    ever."""
    limits: dict[str, float | None] = request.extensions["timeout"]
    for phase, limit in limits.items():
        limits[phase] = HUB_PATIENCE_S if limit is None else limit
