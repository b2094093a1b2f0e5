"""What a look beyond the file found."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Findings:
    """A line each, with its place.

    Attributes:
        wrong: what a deploy would fail for.
        unknown: what could not be looked at.
    """

    wrong: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
