"""What the clients ask for: endless sequences of requests, the same for every server.

Imports nothing heavy: the load generator is a process that should cost little.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

Kind = Literal["uniform", "mixed", "churn", "bursts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PATH = "/v1/images/generations"  # where all servers are asked
SIDE = 128
ETA = 0.3
UNIFORM_STEPS = 4
BLOCK = 24  # requests in which every step count comes equally often, as does guidance
STEPS = (1, 2, 4, 4, 6, 8, 8, 12)
GUIDED = 5.0
STYLES = ("papercut", "ink", "neon")
STYLED = (0, 1, 1, 1, 2, 2)  # how many styles a request of the mixed traffic has
CHURNING = tuple(f"churn-{number}" for number in range(16))


@dataclass(frozen=True)
class Request:
    """One image."""

    prompt: str
    seed: int
    steps: int = UNIFORM_STEPS
    guidance: float = 0.0
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def negative_prompt(self) -> str | None:
        """Given where it is allowed."""
        return "blurry" if self.guidance else None

    def body(self, model: str) -> bytes:
        """The JSON that all servers read."""
        fields: dict[str, object] = {
            "model": model,
            "prompt": self.prompt,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "eta": ETA,
            "guidance_scale": self.guidance,
            "size": f"{SIDE}x{SIDE}",
            "loras": [{"name": name, "weight": weight} for name, weight in self.loras],
        }
        if self.negative_prompt is not None:
            fields["negative_prompt"] = self.negative_prompt
        return json.dumps(fields).encode()


def requests(kind: Kind, seed: int) -> Iterator[Request]:
    """The requests of one turn; another `seed` gives others of the same kind."""
    source = random.Random(f"{kind} {seed}")
    if kind == "mixed":
        return _mixed(source)
    if kind == "churn":
        return _churn(source)
    return (Request(_prompt(source), _seed(source)) for _ in count())


def _mixed(source: random.Random) -> Iterator[Request]:
    while True:
        steps = list(STEPS) * (BLOCK // len(STEPS))
        guidance = [GUIDED, 0.0, 0.0] * (BLOCK // 3)
        styled = list(STYLED) * (BLOCK // len(STYLED))
        for values in (steps, guidance, styled):
            source.shuffle(values)
        for n, scale, styles in zip(steps, guidance, styled, strict=True):
            names = source.sample(STYLES, styles)
            loras = tuple((name, round(source.uniform(0.2, 1.2), 1)) for name in names)
            yield Request(_prompt(source), _seed(source), n, scale, loras)


def _churn(source: random.Random) -> Iterator[Request]:
    while True:
        loras = ((source.choice(CHURNING), 1.0),)
        yield Request(_prompt(source), _seed(source), loras=loras)


def _prompt(source: random.Random) -> str:
    return f"a red fox in the snow, number {source.randrange(10**6)}"


def _seed(source: random.Random) -> int:
    return source.randrange(2**31)
