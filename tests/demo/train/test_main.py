"""The command line names its stages and leaves alone what is there."""

import json
import sys
from pathlib import Path

import pytest

from demo.train.__main__ import main
from demo.train.stage import Stage
from demo.train.stages import STAGES
from demo.train.workshop import Workshop


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    places = ("--work", str(folder / "work"), "--models", str(folder / "models"))
    monkeypatch.setattr(sys, "argv", ["demo.train", *places, *arguments])
    main()


def finished(figures: Path, stage: str) -> None:
    """A model's folder with the figures of its card."""
    figures.parent.mkdir(parents=True)
    figures.write_text(json.dumps({"stage": stage, "steps": 5, "seconds": 60.0}))


def test_stages_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "models" / "sd15" / "vae").mkdir(parents=True)
    run(monkeypatch, tmp_path, "--list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [stage.name for stage in STAGES]
    assert [line.split()[0] for line in lines if " done " in line] == ["vae"]


def test_what_is_there_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "models" / "dpt-hybrid").mkdir(parents=True)
    run(monkeypatch, tmp_path, "--stage", "depth")
    assert capsys.readouterr().out == "depth: done already\n"
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "option", ["--steps-times=-1", "--steps-times=nan", "--batch-times=0", "--threads=0.5"]
)
def test_numbers_that_train_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    option: str,
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--stage", "depth", option)
    assert option.split("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_goes_on_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Not all, from the autoencoder on, which then fits no base."""
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--further")
    assert "--stage" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["canny-sd15", "text-sd15"])
def test_what_cannot_go_on_is_said_before_anything_trains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    """A ControlNet that is not there, and text encoders, whose heads are not kept."""
    finished(tmp_path / "models" / "dpt-hybrid" / "README.json", "depth")
    finished(tmp_path / "models" / "sd15" / "text_encoder" / "README.json", "text-sd15")
    ran: list[str] = []
    monkeypatch.setattr(Stage, "run", lambda self, _: ran.append(self.name))
    with pytest.raises(SystemExit, match=f"{stage}: no checkpoint"):
        run(monkeypatch, tmp_path, "--stage", "depth", stage, "--further")
    assert not ran


def test_figures_of_another_stage_are_no_finished_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Text encoders that were trained anew have their card where the base had its own."""
    finished(tmp_path / "models" / "sd15" / "README.json", "text-sd15")
    (tmp_path / "models" / "sd15" / "unet").mkdir()
    with pytest.raises(SystemExit, match="sd15: no checkpoint"):
        run(monkeypatch, tmp_path, "--stage", "sd15", "--further")


def test_nothing_to_train_on_from_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "models" / "motion-loras" / "zoom-in.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"trained")
    with pytest.raises(SystemExit, match="zoom-in: no checkpoint"):
        run(monkeypatch, tmp_path, "--stage", "zoom-in", "--further")
    assert model.read_bytes() == b"trained"


def test_anew_and_further_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--stage", "depth", "--again", "--further")
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(("checkpoint", "begins"), [(False, True), (True, False)])
def test_further_begins_with_the_finished_model_where_there_is_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: bool, begins: bool
) -> None:
    finished(tmp_path / "models" / "dpt-hybrid" / "README.json", "depth")
    if checkpoint:
        (tmp_path / "work" / "depth").mkdir(parents=True)
        (tmp_path / "work" / "depth" / "checkpoint.pt").touch()
    shops: list[Workshop] = []
    monkeypatch.setattr(Stage, "run", lambda _, shop: shops.append(shop))
    run(monkeypatch, tmp_path, "--stage", "depth", "--further")
    assert [shop.from_finished for shop in shops] == [begins]


def test_a_missing_model_of_an_earlier_stage_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"tcd-sd15: .*earlier stage"):
        run(monkeypatch, tmp_path, "--stage", "tcd-sd15")


def test_an_unknown_stage_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--stage", "sd99")
