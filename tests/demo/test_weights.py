"""The trained models in the project: all of the recipe's, small, in half precision, with cards."""

import json

from safetensors import safe_open

from demo.standins import WEIGHTS, files_in
from demo.train.stages import STAGES

MOST_BYTES = 95e6


def test_they_are_small() -> None:
    assert sum(file.stat().st_size for file in files_in(WEIGHTS)) <= MOST_BYTES


def test_every_tensor_is_in_half_precision() -> None:
    for file in WEIGHTS.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, file


def test_no_config_names_the_folder_that_it_came_from() -> None:
    for file in WEIGHTS.rglob("config.json"):
        assert not json.loads(file.read_text()).get("_name_or_path"), file


def test_every_model_is_there_and_has_a_card() -> None:
    told = set()
    for file in WEIGHTS.rglob("*.md"):
        text = file.read_text()
        for part in ("license: apache-2.0", "## Data", "- Steps: ", "- Time: ", "- Losses"):
            assert part in text, file
        told.add(json.loads(file.with_suffix(".json").read_text())["stage"])
    for stage in STAGES:
        assert (WEIGHTS / stage.output).exists(), stage.name
        # The card of a base stands in for that of its text encoders.
        assert stage.name in told or stage.name.startswith("text-"), stage.name
