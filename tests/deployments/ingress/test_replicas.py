"""What runs where."""

from configs.names import Names
from deployments.ingress.http.replicas import _aliases


def test_names_are_told_with_their_shares() -> None:
    names = Names({"style": {"sd15": 3.0, "sdxl": 1.0}, "large": {"sdxl": 1.0}})
    assert _aliases(names, "sd15") == {"style": 0.75}
    assert _aliases(names, "sdxl") == {"style": 0.25, "large": 1.0}
    assert _aliases(names, "sd21") == {}
