"""Who gets how many of the GPUs that several models share. Neither Ray nor a clock."""

from collections.abc import Mapping
from dataclasses import dataclass

KEEPING = 1.25  # times as much as for a new one counts what a model wants of a GPU that it has


@dataclass(frozen=True)
class Claim:
    """What a model wants.

    Attributes:
        wanted: replicas for its work, 0 or more, not rounded.
        alone: whole ones that it would have if all GPUs were its own.
        held: replicas that it has been given, whether Serve has begun to start them or not.
        floor: replicas that it always gets; at most `alone`.
        priority: how much its work counts beside that of others; above 0.
    """

    wanted: float
    alone: int
    held: int
    floor: int = 0
    priority: float = 1.0


def shares(gpus: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """Replicas for each model: all that they want if the GPUs suffice; else everyone's floor, and
    the rest one by one to whoever has least for its priority times its work (D'Hondt's rule).

    Never more than `gpus` together, but for floors that are more themselves. What a model has
    counts `KEEPING` times, so that a GPU changes hands only for a clear difference.
    """
    given = {name: claim.floor for name, claim in claims.items()}

    def worth(name: str) -> tuple[float, str]:
        claim, next_one = claims[name], given[name] + 1
        kept = KEEPING if next_one <= claim.held else 1.0
        return kept * claim.priority * claim.wanted / next_one, name

    for _ in range(gpus - sum(given.values())):
        short = [name for name, claim in claims.items() if given[name] < claim.alone]
        if not short:
            break
        given[max(short, key=worth)] += 1
    return given


def granted(gpus: int, name: str, claims: Mapping[str, Claim]) -> int:
    """A model's share now: more than it has only of GPUs that the others have let go."""
    held = claims[name].held
    free = gpus - sum(claim.held for claim in claims.values())
    most = max(claims[name].floor, held + max(0, free))
    return min(shares(gpus, claims)[name], most)
