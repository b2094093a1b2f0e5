"""`tcd check`: what files of weights are, and which families they are for."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from configs.families import FamilyName
from deployments.diffusion.engine.adapters.contents import Contents
from deployments.diffusion.engine.adapters.files import LoraError, LoraFile, lora_file, read_file
from deployments.diffusion.engine.adapters.inspection import Inspection, inspect
from deployments.diffusion.engine.adapters.lineage import MOTION
from deployments.diffusion.engine.models.checkpoints.fitness import (
    INPAINTING_CHANNELS,
    PLACES,
    check_checkpoint,
    check_vae,
)
from deployments.diffusion.engine.models.checkpoints.header import WrongFile, read_header
from deployments.diffusion.engine.models.checkpoints.identity import (
    ADAPTER,
    CHECKPOINT,
    VAE,
    Identity,
    identify,
)
from tcd.parts import READERS, models_of, motion_contents, refusal

LOADS = "loads"


def check_files(paths: Sequence[Path], families: Sequence[FamilyName], *, as_json: bool) -> bool:
    """Prints what each file is. Returns whether every one loads into one of the families."""
    whole = True
    for path in paths:
        try:
            if (weights := _whole_weights(path)) is not None:
                whole = _tell_weights(path, weights, families, as_json=as_json) and whole
                continue
            file = read_file(path)
            found = inspect(file)
        except LoraError as error:
            whole = False
            print(json.dumps({"file": str(path), "error": str(error)}) if as_json else error)
            continue
        contents = motion_contents if found.looks_like == MOTION else _contents
        verdicts = {family: verdict(file, contents(family)) for family in families}
        whole = whole and LOADS in verdicts.values()
        if as_json:
            print(json.dumps({"file": str(path), **asdict(found), "families": verdicts}))
        else:
            print(f"{path}: {told(found)}")
            for family, says in verdicts.items():
                print(f"  {family}: {says}")
    return whole


def verdict(file: LoraFile, contents: Contents) -> str:
    """`LOADS`, or why models of these contents refuse a file."""
    try:
        contents.of(file)
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
    if found.looks_like == MOTION:
        says.append("of motion layers; it stands in `motion_loras`")
    elif found.looks_like is not None:
        says.append(f"looks like one for {found.looks_like}")
    return "; ".join(says)


def _whole_weights(path: Path) -> Identity | None:
    """What a file is that holds networks, not changes of some; `None`: it is something else."""
    try:
        found = identify(read_header(lora_file(path)))
    except (LoraError, WrongFile):
        return None  # those who read adapters say why
    return None if found.kind in (None, ADAPTER) else found


def _tell_weights(
    path: Path, found: Identity, families: Sequence[FamilyName], *, as_json: bool
) -> bool:
    """Prints what such a file is. Returns whether it is for one of the families."""
    verdicts = {family: _weights_verdict(path, found, family) for family in families}
    if as_json:
        told = {**asdict(found), "parts": sorted(found.parts)}
        print(json.dumps({"file": str(path), **told, "families": verdicts}))
    else:
        print(f"{path}: {told_weights(found)}")
        for family, says in verdicts.items():
            print(f"  {family}: {says}")
    return LOADS in verdicts.values()


def _weights_verdict(path: Path, found: Identity, family: FamilyName) -> str:
    if found.kind is not None and found.kind in READERS:
        return refusal(found.kind, path, family) or LOADS
    try:
        if found.kind == VAE:
            check_vae(found)
        else:
            check_checkpoint(found, family)
    except WrongFile as error:
        return str(error)
    return LOADS


def told_weights(found: Identity) -> str:
    """Networks in a line."""
    of = found.family or found.network
    says = [f"{found.kind} of {of}" if of else str(found.kind)]
    if found.kind is not None and found.kind in READERS:
        says[0] += PLACES[found.kind]
    if found.in_channels == INPAINTING_CHANNELS:
        says.append("for inpainting")
    if found.process is not None:
        says.append(f"trained by {found.process}")
    if found.prediction_type is not None:
        says.append(f"says {found.prediction_type}")
    if found.zero_snr:
        says.append("zero terminal SNR")
    says += [" and ".join(found.dtypes), f"{found.nbytes / 2**20:.1f} MiB"]
    if found.kind == CHECKPOINT:
        says.append("with VAE" if "vae" in found.parts else "without VAE")
    if found.ema:
        says.append("EMA weights, which are not read")
    return "; ".join(says)


@cache
def _contents(family: FamilyName) -> Contents:
    return Contents(models_of(family).adaptable, words=None)
