from collections import Counter

import pytest
from pydantic import ValidationError

from configs.app import ServiceArgs
from configs.names import Names, NamesConfig

CANARY = {"sdxl": {"sdxl-1": 9, "sdxl-2": 1}}
DRAWS = 20_000


def test_aliases_are_names_of_models() -> None:
    names = ServiceArgs(default_model="gpt-image-1", aliases={"gpt-image-1": "sdxl"}).names
    asked = (None, "gpt-image-1", "sd15")
    assert [names.main(name) for name in asked] == ["sdxl", "sdxl", "sd15"]
    assert [names.drawn(name) for name in asked] == ["sdxl", "sdxl", "sd15"]
    assert Names().main(None) is Names().drawn(None) is None


def test_an_alias_of_an_alias_is_refused() -> None:
    for aliases in ({"a": "b", "b": "sdxl"}, {"a": {"a": 1, "b": 1}}):
        with pytest.raises(ValidationError, match="which is an alias itself"):
            NamesConfig.model_validate({"aliases": aliases})
        with pytest.raises(ValidationError, match="which is an alias itself"):
            ServiceArgs.model_validate({"aliases": aliases})


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "much", 1e7])
def test_weights_are_above_nothing(weight: object) -> None:
    with pytest.raises(ValidationError, match=r"aliases\.sdxl\.sdxl-2"):
        NamesConfig.model_validate({"aliases": {"sdxl": {"sdxl-1": 1, "sdxl-2": weight}}})


def test_an_alias_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"aliases\.sdxl"):
        NamesConfig.model_validate({"aliases": {"sdxl": {}}})


def test_requests_are_shared_out_by_weight() -> None:
    names = Names().changed(NamesConfig.model_validate({"aliases": CANARY}))
    drawn = Counter(names.drawn("sdxl") for _ in range(DRAWS))
    assert drawn.keys() == {"sdxl-1", "sdxl-2"}
    assert abs(drawn["sdxl-2"] / DRAWS - 0.1) < 0.01
    assert names.main("sdxl") == "sdxl-1"
    assert names.drawn("sdxl-2") == "sdxl-2"


def test_of_models_that_cannot_answer_none_is_drawn() -> None:
    names = Names().changed(NamesConfig.model_validate({"aliases": CANARY}))

    def drawn(*fit: set[str]) -> set[str | None]:
        return {names.drawn("sdxl", *(models.__contains__ for models in fit)) for _ in range(200)}

    assert drawn({"sdxl-2"}) == {"sdxl-2"}
    assert drawn({"sdxl-2"}, {"sdxl-1"}) == {"sdxl-2"}  # what comes first is kept to
    assert drawn(set()) == {"sdxl-1", "sdxl-2"}  # it is said why, of either


def test_what_changes_replaces_what_was() -> None:
    names = ServiceArgs(default_model="sd15", aliases={"a": "sd15", "b": "sdxl"}).names
    changed = names.changed(NamesConfig.model_validate({"aliases": {"b": "sd21"}}))
    assert [changed.main(name) for name in ("a", "b", None)] == ["sd15", "sd21", "sd15"]
    assert names.changed(NamesConfig(default_model="b")).main(None) == "sdxl"


def test_an_alias_of_an_alias_is_found_wherever_it_is_said() -> None:
    said = ServiceArgs(aliases={"sdxl": "pictures"}).names
    with pytest.raises(ValueError, match="'sdxl' names 'pictures', which is an alias itself"):
        said.changed(NamesConfig.model_validate({"aliases": {"pictures": "sdxl-1"}}))
