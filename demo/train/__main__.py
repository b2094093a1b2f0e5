"""Trains the demo's models from nothing: python -m demo.train [--stage NAME ...] [--device cuda]

Stages run in the order of `demo.train.stages`; one whose model is there is left alone. Each
can be stopped at any time: the same command goes on from its last checkpoint. A model fits the
autoencoder and base that it was trained on: after a new one of these, train what follows with
--again.
"""

import argparse
import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from demo.standins import WEIGHTS
from demo.train.loop import CHECKPOINT
from demo.train.stages import STAGES
from demo.train.workshop import Workshop

ROOT = Path(__file__).resolve().parents[2]


def whole(text: str) -> int:
    """A number of the command line, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def factor(text: str) -> float:
    """Likewise, above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text!r}")
    return value


def main() -> None:
    """The command line."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--stage", nargs="+", choices=names, metavar="NAME", help="see --list; all")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--again", action="store_true", help="train anew what is there")
    begin.add_argument(
        "--further",
        action="store_true",
        help="train on from the last checkpoint, to more steps (--steps-times); where there is "
        "none, from the finished model (text encoders cannot)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=whole, default=1, help="of the CPU (1)")
    parser.add_argument("--steps-times", type=factor, default=1.0, help="train so much longer")
    parser.add_argument("--batch-times", type=whole, default=1, help="larger batches, for a GPU")
    work, models = ROOT / "out" / "train", WEIGHTS
    parser.add_argument("--work", type=Path, default=work, help="of pictures and checkpoints")
    parser.add_argument("--models", type=Path, default=models, help="where finished ones go")
    parser.add_argument("--list", action="store_true", help="name the stages and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for stage in STAGES:
            state = "done" if (arguments.models / stage.output).exists() else "to do"
            print(f"{stage.name:20} {stage.plan.minutes:3} min  {state:6} {stage.output}")
        return
    torch.set_num_threads(arguments.threads)
    shop = Workshop(arguments.work, arguments.models, torch.device(arguments.device))
    chosen = [stage for stage in STAGES if stage.name in (arguments.stage or names)]
    if arguments.further and not arguments.stage:
        parser.error("--further: name the stages (--stage); what fits them has to follow")
    from_finished = [
        stage
        for stage in chosen
        if arguments.further and not (shop.work / stage.name / CHECKPOINT).exists()
    ]
    for stage in from_finished:
        if stage.finished(shop) is None:
            raise SystemExit(
                f"{stage.name}: no checkpoint in {shop.work / stage.name}, and no finished model, "
                "to train on from; --again trains it from nothing"
            )
    for stage in chosen:
        if arguments.again:
            shutil.rmtree(shop.work / stage.name, ignore_errors=True)
        elif (shop.models / stage.output).exists() and not arguments.further:
            print(f"{stage.name}: done already", flush=True)
            continue
        plan = replace(
            stage.plan,
            steps=max(1, round(stage.plan.steps * arguments.steps_times)),
            batch_size=stage.plan.batch_size * arguments.batch_times,
        )
        try:
            replace(stage, plan=plan).run(replace(shop, from_finished=stage in from_finished))
        except FileNotFoundError as error:
            raise SystemExit(
                f"{stage.name}: {error}; if an earlier stage makes it (--list), train that first"
            ) from error


if __name__ == "__main__":
    main()
