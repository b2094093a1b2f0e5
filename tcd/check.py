"""`tcd check`: what adapter files are, and which families' published models they load into."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from configs.families import FamilyName
from deployments.diffusion.engine.adapters.contents import Contents
from deployments.diffusion.engine.adapters.files import LoraError, LoraFile, read_file
from deployments.diffusion.engine.adapters.inspection import Inspection, inspect
from deployments.diffusion.engine.models.skeletons import skeletons

LOADS = "loads"


def check_files(paths: Sequence[Path], families: Sequence[FamilyName], *, as_json: bool) -> bool:
    """Prints what each file is. Returns whether every one loads into one of the families."""
    whole = True
    for path in paths:
        try:
            file = read_file(path)
            found = inspect(file)
        except LoraError as error:
            whole = False
            print(json.dumps({"file": str(path), "error": str(error)}) if as_json else error)
            continue
        verdicts = {family: verdict(file, family) for family in families}
        whole = whole and LOADS in verdicts.values()
        if as_json:
            print(json.dumps({"file": str(path), **asdict(found), "families": verdicts}))
        else:
            print(f"{path}: {told(found)}")
            for family, says in verdicts.items():
                print(f"  {family}: {says}")
    return whole


def verdict(file: LoraFile, family: FamilyName) -> str:
    """`LOADS`, or why the family's published models refuse a file."""
    try:
        _contents(family).of(file)
    except LoraError as error:
        return str(error).removeprefix(f"{file.name} ")
    return LOADS


def told(found: Inspection) -> str:
    """A file in a line."""
    kinds = ", ".join(f"{kind} of {count} layers" for kind, count in found.kinds.items())
    says = [kinds or "no adapter's weights"]
    if found.ranks:
        least, most = found.ranks[0], found.ranks[-1]
        says.append(f"rank {least}" if least == most else f"ranks {least} to {most}")
    says += [" and ".join(found.dtypes), f"{found.nbytes / 2**20:.1f} MiB"]
    if found.words:
        says.append(f"brings along {', '.join(map(repr, found.words))} (name it in embeddings too)")
    if found.looks_like is not None:
        says.append(f"looks like one for {found.looks_like}")
    return "; ".join(says)


@cache
def _contents(family: FamilyName) -> Contents:
    return Contents(skeletons(family), words=None)
