"""`make check-config` finds what Ray would ignore, and what would take an application down."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from graphs.check import problems

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs" / "production").glob("*.yaml"))]
DEMO = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
SERVICE, MODEL = 0, 1
Edit = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_nothing_is_wrong_with_ours(path: Path, demo_models: Path) -> None:
    assert list(problems(yaml.safe_load(path.read_text()))) == []


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def edit(mapping: dict[str, Any]) -> None:
        mapping[new] = mapping.pop(old)

    return edit


def model(config: dict[str, Any]) -> dict[str, Any]:
    application: dict[str, Any] = config["applications"][MODEL]
    return application


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (rename("http_options", "http_option"), "http_option: Ray knows no such key here; http_o"),
        (
            lambda c: rename("route_prefix", "route_prefx")(model(c)),
            "model-sd15.route_prefx: Ray knows no such key here; route_prefix?",
        ),
        (
            lambda c: rename("num_replicas", "num_replica")(model(c)["deployments"][0]),
            "model-sd15.Diffusion.num_replica: Ray knows no such key here; num_replicas?",
        ),
        (
            lambda c: model(c)["deployments"][0].update(ray_actor_options={"num_gpu": 1}),
            "model-sd15.Diffusion.ray_actor_options.num_gpu: Ray knows no such key here; num_gpus?",
        ),
        (
            lambda c: rename("tcd_lora", "tcd_lroa")(model(c)["args"]),
            "model-sd15.args.tcd_lroa: there is no such key; tcd_lora?",
        ),
        (
            lambda c: model(c)["args"].update(dtype="float8"),
            "model-sd15.args.dtype: Input should be",
        ),
        (
            lambda c: model(c)["deployments"][0]["user_config"]["loras"].update(x="demo/nope/x"),
            "model-sd15.Diffusion.user_config.loras.x: 'demo/nope/x' does not exist",
        ),
        (
            lambda c: model(c)["deployments"][0].update(num_replicas=-1),
            "model-sd15.Diffusion.num_replicas",
        ),
        (lambda c: model(c).update(name="sd15"), "sd15.name: the application of this model is"),
        (
            lambda c: c["applications"][SERVICE]["args"].update(max_imagse=3),
            "tcd.args.max_imagse: there is no such key; max_images?",
        ),
    ],
)
def test_what_is_wrong(edit: Edit, says: str, demo_models: Path) -> None:
    config = copy.deepcopy(DEMO)
    edit(config)
    assert [problem for problem in problems(config) if problem.startswith(says)]


def test_the_command(tmp_path: Path, demo_models: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("[]")
    good = CONFIGS[0]
    ran = subprocess.run(
        [sys.executable, "-m", "graphs.check", bad, good],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "bad.yaml: a Serve config is a mapping" in ran.stdout
    assert "serve_config.yaml: as it should be" in ran.stdout
