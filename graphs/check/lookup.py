"""Whether what an application names is in its bucket and on the hub, and what of it is here."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from configs import hub, s3
from configs.needs import Need
from configs.sources import Source, SourceError, SourceUnavailable, fetch, parse
from graphs.check.accepted import Accepted
from graphs.check.findings import Findings
from graphs.check.schemas import one_line

AT_ONCE = 8
WEIGHED = ("text_encoder", "text_encoder_2", "unet", "vae")  # parts of a pipeline
ACCESS = ("HF_", "HUGGING", "AWS_")  # variables that say where the hub and S3 are, and who asks
NAMES = {"hub": "on the hub", "s3": "in S3"}


def look_up(applications: Iterable[Accepted], found: Findings) -> None:
    """Asks the hub and S3 for all that applications name there, and adds what it finds; nothing is
    brought. Whoever does not answer is asked no more."""
    silent: set[str] = set()
    passed_over: Counter[str] = Counter()

    def look(need: Need) -> tuple[list[str], str] | None:
        source = parse(need.source)
        if source.kind in silent:
            passed_over[source.kind] += 1
            return None
        try:
            _list(source, need)
        except SourceUnavailable as error:
            silent.add(source.kind)
            return found.unknown, one_line(error)
        except SourceError as error:
            return found.wrong, one_line(error)
        return None

    asked: list[Accepted] = []
    for application in applications:
        own = [name for name in application.sets if name.startswith(ACCESS)]
        if own and _elsewhere([application]):
            found.unknown.append(
                f"{application.name}: its runtime_env sets {own[0]}: hub and S3 were not asked"
            )
        else:
            asked.append(application)
    wanted = _elsewhere(asked)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for need, said in zip(wanted, pool.map(look, wanted), strict=True):
            if said is not None:
                lines, line = said
                lines += [f"{place}: {line}" for place in wanted[need]]
    for kind, count in passed_over.items():
        found.unknown.append(f"{count} more {NAMES[kind]}, which does not answer: not looked up")


def not_here(applications: Iterable[Accepted]) -> Iterator[str]:
    """What a start on this machine would fetch, a line each with its places; nobody is asked."""
    for need, places in _elsewhere(applications).items():
        if not _is_here(need):
            variant = "" if need.variant is None else f" (variant {need.variant})"
            yield f"{', '.join(places)}: {need.source}{variant}"


def _is_here(need: Need) -> bool:
    """Whether all of a source that is read was brought, as far as the names of files tell."""
    try:
        path = fetch(need.source, variant=need.variant, layout=need.layout, offline=True)
    except SourceError:
        return False
    if need.layout == "any" or path.is_file():
        return path.exists()
    try:
        index = json.loads((path / "model_index.json").read_text())
    except (OSError, ValueError):
        return False
    parts = [part for part in WEIGHED if part in index]
    return need.layout == "pipeline_configs" or all(
        any((path / part).glob("*.safetensors")) for part in parts
    )


def _elsewhere(applications: Iterable[Accepted]) -> dict[Need, list[str]]:
    """What is not on this machine, each with the places that name it."""
    wanted: dict[Need, list[str]] = {}
    for application in applications:
        for place, _, need in application.needs():
            try:
                source = parse(need.source)
            except SourceError:
                continue  # which is said already
            if source.kind != "local":
                wanted.setdefault(need, []).append(place)
    return wanted


def _list(source: Source, need: Need) -> None:
    """Raises `SourceError` if nothing of a source could be fetched."""
    if source.kind == "s3":
        s3.list_objects(source, need.variant, need.layout)
    else:
        hub.list_files(source, need.variant, need.layout)
