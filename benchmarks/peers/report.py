"""Matches as markdown tables."""

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.peers.settings import OURS, Name, Settings
from benchmarks.peers.turns import Match, Rest
from benchmarks.report import print_table, ratios, spread

TITLES: Mapping[Name, str] = {
    "ours": "ours",
    "fastapi": "FastAPI and a lock",
    "ray-tutorial": "Ray Serve, the tutorial's",
    "ray-batch": "Ray Serve, `@serve.batch`",
    "litserve": "LitServe",
    "engine": "our engine alone",
    "bare": "a pipeline in a loop",
}
SHOWN_MS = 0.05  # processes below it are left out


def print_settings(settings: Mapping[Name, Settings], names: Sequence[Name]) -> None:
    """What each is run with."""
    print_table(
        ("server", "settings"), [(TITLES[name], settings[name].shown(name)) for name in names]
    )


def print_match(match: Match, *, header: bool) -> None:
    """A row; the first of a table with its header."""
    if header:
        print(f"### {match.kind}, UNet x{match.scale}\n")
        print("| other | clients | ours, images/s | other, images/s | ours : other |", end="")
        print(" p50, s | p95, s | p99, s | CPU s an image | client's ms |", end="")
        print(" burst, s |" if match.ours[0].burst_s is not None else "")
        print("|---" * (10 + (match.ours[0].burst_s is not None)) + "|")
    ours, theirs = match.ours, match.theirs
    cells = [
        TITLES[match.other],
        str(match.clients),
        f"{median(t.images_s for t in ours):.2f}",
        f"{median(t.images_s for t in theirs):.2f}",
        spread(ratios([t.images_s for t in ours], [t.images_s for t in theirs])),
        _pair([t.p50_s for t in ours], [t.p50_s for t in theirs]),
        _pair([t.p95_s for t in ours], [t.p95_s for t in theirs]),
        _pair([t.p99_s for t in ours], [t.p99_s for t in theirs]),
        _pair([t.all_cpu_s for t in ours], [t.all_cpu_s for t in theirs], 3),
        _pair([t.client_cpu_s * 1e3 for t in ours], [t.client_cpu_s * 1e3 for t in theirs], 1),
    ]
    if ours[0].burst_s is not None:
        cells.append(_pair([t.burst_s or 0.0 for t in ours], [t.burst_s or 0.0 for t in theirs]))
    print(f"| {' | '.join(cells)} |", flush=True)


def print_processes(matches: Sequence[Match]) -> None:
    """CPU and memory by process, of the servers at the most clients of each traffic."""
    rows: list[tuple[str, ...]] = []
    for match in matches:
        for name, turns in ((OURS, match.ours), (match.other, match.theirs)):
            cpu = _by_role([{r: s * 1e3 for r, s in t.cpu_s.items()} for t in turns])
            memory = _by_role([t.memory_mib for t in turns])
            load = f"x{match.scale}, {match.kind}, {match.clients}"
            title = TITLES[name] + (f" (beside {TITLES[match.other]})" if name == OURS else "")
            rows.append((title, load, _listed(cpu, 1), _listed(memory, 0)))
    print("### By process\n")
    print_table(("server", "load", "CPU, ms an image", "memory, MiB"), rows)


def print_rest(rests: Sequence[Rest]) -> None:
    """CPU that servers take of which nobody asks anything."""
    print("### At rest\n")
    print_table(
        ("server", "UNet", "CPU, ms a second"),
        [(TITLES[rest.name], f"x{rest.scale}", _listed(rest.cpu_ms_s, 1)) for rest in rests],
    )


def print_starts(starts: Sequence[tuple[int, Name, float]]) -> None:
    """Seconds from the start until the first image."""
    print("### Until the first image\n")
    print_table(
        ("server", "UNet", "s"),
        [(TITLES[name], f"x{scale}", f"{seconds:.1f}") for scale, name, seconds in starts],
    )


def _pair(ours: Sequence[float], theirs: Sequence[float], digits: int = 2) -> str:
    return f"{median(ours):.{digits}f}, {median(theirs):.{digits}f}"


def _by_role(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    roles = {role for turn in turns for role in turn}
    return {role: median(turn.get(role, 0.0) for turn in turns) for role in roles}


def _listed(values: Mapping[str, float], digits: int) -> str:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    told = [f"{role} {value:.{digits}f}" for role, value in ordered if value >= SHOWN_MS]
    return f"{sum(values.values()):.{digits}f}: {', '.join(told)}"


def busiest(matches: Sequence[Match]) -> list[Match]:
    """Of each server and traffic, the match with the most clients."""
    found: dict[tuple[object, ...], Match] = {}
    for match in sorted(matches, key=lambda match: match.clients):
        found[match.scale, match.kind, match.other] = match
    return list(found.values())
