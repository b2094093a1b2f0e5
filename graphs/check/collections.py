"""How many adapters there are where a model looks for them by name (`loras_from`)."""

from collections.abc import Iterator, Sequence

from configs.collection import collection_at
from configs.sources import PROJECT_ROOT, SourceError, SourceUnavailable
from graphs.check.accepted import Accepted
from graphs.check.findings import Findings
from graphs.check.schemas import one_line
from graphs.model import DIFFUSION


def not_a_folder(application: Accepted) -> Iterator[str]:
    """A line, with its place, for what is no folder on this machine."""
    for place, root in _roots(application):
        if not root.startswith("s3:") and not (PROJECT_ROOT / root).is_dir():
            yield f"{place}: {PROJECT_ROOT / root} is no folder on this machine"


def counted(
    applications: Sequence[Accepted], found: Findings, *, s3: bool, machine: bool
) -> Iterator[str]:
    """A line for each, with its place; adds what is wrong to `found`.

    Args:
        s3: ask it.
        machine: look into folders of this machine.
    """
    for application in applications:
        own = [name for name in application.sets if name.startswith("AWS_")]
        for place, root in _roots(application):
            there = root.startswith("s3:")
            if not (s3 if there else machine):
                continue
            if there and own:
                found.unknown.append(f"{place}: the runtime_env sets {own[0]}: S3 was not asked")
                continue
            try:
                many = collection_at(root, 0).count()
                yield f"{place}: {root} holds {many} adapter{'' if many == 1 else 's'}"
            except SourceUnavailable as error:
                found.unknown.append(f"{place}: {one_line(error)}")
            except (SourceError, OSError) as error:
                found.wrong.append(f"{place}: {one_line(error)}")


def _roots(application: Accepted) -> Iterator[tuple[str, str]]:
    config = application.user_config
    if config is not None and config.loras_from is not None:
        yield f"{application.name}.{DIFFUSION.name}.user_config.loras_from", config.loras_from
