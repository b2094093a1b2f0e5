"""The oracles, loaded once a session and only when a test asks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.families import FamilyName
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.oracle import Oracle

Oracles = Callable[[FamilyName], Oracle]


@pytest.fixture(scope="session")
def oracle_of(demo_models: Path) -> Oracles:
    """The oracle of a family, with the demo's styles."""
    made: dict[FamilyName, Oracle] = {}

    def get(family: FamilyName) -> Oracle:
        if family not in made:
            made[family] = Oracle(demo_models, family, demo_loras(demo_models, family))
        return made[family]

    return get
