"""Our service beside what people would pick instead, on the CPU. Results in markdown.

    python -m benchmarks.peers [--quick] [--only litserve,...] [--traffic uniform,...]
        [--scales 1,4] [--clients 1,8,32] [--seconds 10] [--repetitions 5] [--out FILE]
        [--set litserve:batch=16,threads=2]

Each server is started with the same checkpoint, and asked the same requests; ours and one other
are up at a time, and take turns. Before that their pictures are compared.
"""

import argparse
import json
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from benchmarks.models import Model, write_model
from benchmarks.peers.contestants import contestant
from benchmarks.peers.pictures import compare
from benchmarks.peers.report import (
    TITLES,
    busiest,
    print_match,
    print_processes,
    print_rest,
    print_settings,
    print_starts,
)
from benchmarks.peers.running import Server, our_service, with_churn
from benchmarks.peers.settings import LIMITS, OURS, PEERS, Name, Settings, changed
from benchmarks.peers.traffic import KINDS, Kind
from benchmarks.peers.turns import Contestant, Match, Pace, Rest, at_rest, play
from benchmarks.report import machine

BURST = 32
OTHERS: tuple[Name, ...] = (*PEERS, *LIMITS)
Word = TypeVar("Word", bound=str)


@dataclass(frozen=True)
class Asked:
    """The command line."""

    others: Sequence[Name]
    traffic: Sequence[Kind]
    scales: Sequence[int]
    clients: Sequence[int]
    burst: int
    pace: Pace
    rest_s: float
    settings: dict[Name, Settings]
    out: Path | None


@dataclass
class Results:
    """All that was measured."""

    matches: list[Match] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    starts: list[tuple[int, Name, float]] = field(default_factory=list)


def main() -> None:
    """The command line."""
    asked = parsed()
    print(f"## Peers\n\n{machine()}; {asked.pace.repetitions} turns of {asked.pace.seconds:g} s\n")
    print_settings(asked.settings, [OURS, *asked.others])
    results = Results()
    with tempfile.TemporaryDirectory() as folder:
        for scale in asked.scales:
            model = write_model(Path(folder) / str(scale), scale)
            plain = [kind for kind in asked.traffic if kind != "churn"]
            if plain:
                measure(model, plain, asked, results, churn=False)
            if "churn" in asked.traffic:
                churning = with_churn(model, Path(folder) / str(scale))
                measure(churning, ["churn"], asked, results, churn=True)
    report(results)


def measure(
    model: Model, kinds: Sequence[Kind], asked: Asked, results: Results, *, churn: bool
) -> None:
    """All others in turn beside ours, with this traffic."""
    with our_service(model, asked.settings[OURS], churn=churn) as ours:
        results.starts.append((model.scale, OURS, ours.first_image_s))
        for name in asked.others:
            with contestant(name, model, asked.settings[name], churn=churn) as opponent:
                if isinstance(opponent, Server):
                    results.starts.append((model.scale, name, opponent.first_image_s))
                    levels = max(compare(ours, opponent, kind) for kind in kinds)
                    told = f"pictures differ by {levels} levels of 255 at most"
                    print(f"x{model.scale}, {TITLES[name]}: {told}\n", flush=True)
                    if asked.rest_s and not churn:
                        results.rests += at_rest(model.scale, [ours, opponent], asked.rest_s)
                for kind in kinds:
                    matches(ours, opponent, kind, model.scale, asked, results)


def matches(
    ours: Contestant,
    opponent: Contestant,
    kind: Kind,
    scale: int,
    asked: Asked,
    results: Results,
) -> None:
    """One traffic with each number of clients."""
    counts = [asked.burst] if kind == "bursts" else asked.clients
    for count in counts:
        match = Match(scale, kind, count, opponent.name)
        play(match, ours, opponent, asked.pace)
        results.matches.append(match)
        print_match(match, header=count == counts[0])
        if asked.out is not None:
            write(asked.out, asked, results)
    print(flush=True)


def report(results: Results) -> None:
    """What is not said while it is measured."""
    print_processes(busiest(results.matches))
    if results.rests:
        print_rest(results.rests)
    print_starts(results.starts)


def write(out: Path, asked: Asked, results: Results) -> None:
    """All of it as JSON, so far."""
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: asdict(value) for name, value in asked.settings.items()}
    told = {"machine": machine(), "settings": settings, **asdict(results)}
    out.write_text(json.dumps(told, indent=1) + "\n")


def parsed(arguments: Sequence[str] | None = None) -> Asked:
    """Ends the program for a wrong word."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--quick", action="store_true", help="two turns of 4 s, less of all")
    parser.add_argument("--only", default=",".join(OTHERS), help="of the others")
    parser.add_argument("--traffic", default=",".join(KINDS))
    parser.add_argument("--scales", default=None, help="of the UNet's width (1,4)")
    parser.add_argument("--clients", default=None, help="at a time (1,8,32)")
    parser.add_argument("--burst", type=int, default=BURST, help="requests of one burst")
    parser.add_argument("--seconds", type=float, default=None, help="of a turn, at least (10)")
    parser.add_argument("--repetitions", type=int, default=None, help="turns of each (5)")
    parser.add_argument("--rest-s", type=float, default=None, help="at rest; 0: not measured (20)")
    parser.add_argument("--set", action="append", default=[], metavar="SERVER:KEY=VALUE,...")
    parser.add_argument("--out", type=Path, default=None, help="a file for all turns, as JSON")
    found = parser.parse_args(arguments)
    quick: bool = found.quick
    try:
        return Asked(
            others=_chosen(found.only, OTHERS),
            traffic=_chosen(found.traffic, KINDS),
            scales=_numbers(found.scales or ("1" if quick else "1,4")),
            clients=_numbers(found.clients or ("8" if quick else "1,8,32")),
            burst=found.burst,
            pace=Pace(
                found.seconds or (4 if quick else 10), found.repetitions or (2 if quick else 5)
            ),
            rest_s=found.rest_s if found.rest_s is not None else (5 if quick else 20),
            settings=changed(found.set),
            out=found.out,
        )
    except ValueError as error:
        parser.error(str(error))


def _chosen(text: str, known: Sequence[Word]) -> list[Word]:
    words = text.split(",")
    unknown = set(words) - set(known)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: none of {', '.join(known)}")
    return [word for word in known if word in words]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _end(*_: object) -> NoReturn:
    raise SystemExit("ended by SIGTERM")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)  # else a server that stands still would stay behind
    main()
