"""Everything that is wrong with a Serve config on the machine that asks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from configs.shape import misshapen
from graphs.check.accepted import Accepted, accepted
from graphs.check.agreement import advice, disagreements
from graphs.check.files import wrong_files
from graphs.check.fits import unfit_files
from graphs.check.schemas import as_ray_reads, one_line, refused


class Unreadable(Exception):
    """A file that holds no YAML. `str(error)` says why."""


def written(config: object) -> Iterator[str]:
    """What is wrong with a Serve config, as YAML reads it, wherever its files are: a line each,
    with its place."""
    shapeless = list(misshapen(config))
    yield from shapeless
    if shapeless or not isinstance(config, dict):
        return
    yield from refused(config)
    taken, lines = as_ray_reads(config)
    yield from lines
    if taken is not None:
        yield from disagreements(taken)


def applications_of(config: object) -> Iterator[Accepted]:
    """What our own schemas accept of each application; nothing of a config that is misshapen."""
    if isinstance(config, dict) and not any(misshapen(config)):
        yield from map(accepted, config["applications"])


def problems(config: object) -> Iterator[str]:
    """What is wrong with a config and with the files that it names, by what their headers say."""
    yield from written(config)
    for application in applications_of(config):
        yield from wrong_files(application)


def problems_of(path: Path) -> Iterator[str]:
    """What is wrong with a file on this machine. Whether weights fit each other takes seconds, and
    is looked at where nothing else is wrong."""
    try:
        config = read_yaml(path)
    except Unreadable as error:
        yield str(error)
        return
    found = list(problems(config))
    yield from found
    if not found:
        for application in applications_of(config):
            yield from unfit_files(application)


def advice_of(path: Path, *, machine: bool = True) -> Iterator[str]:
    """What would do better in a file with which nothing is wrong: a line each, with its place.
    `machine`: on this machine, too."""
    yield from advice(ServeDeploySchema.model_validate(read_yaml(path)), machine=machine)


def read_yaml(path: Path) -> object:
    """What a file holds. Raises `Unreadable`."""
    try:
        return yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Unreadable(f"it is no YAML: {one_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} stands twice", problem_mark=node.value[place][0].start_mark
                )
        return node
