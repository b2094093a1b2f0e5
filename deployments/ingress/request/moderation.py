"""Pictures that the safety checker sees before anybody else does.

Nothing is shown of which it has not said that it may be: where it does not answer, the request
fails.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, cast

from ray.serve import metrics
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from configs.app import SafetyArgs
from deployments.contracts.errors import InvalidRequest, Moderated, NotReady, QueueFull
from deployments.contracts.jobs import ImageRequest, Moderation, Pixels, VideoRequest
from deployments.contracts.refusal import Refusal, accepted
from deployments.contracts.verdict import Verdict
from deployments.ingress.discovery.asking import asked
from deployments.ingress.request.deaths import twice
from deployments.ingress.request.workers import together

Kind = Literal["image", "partial_image", "frame", "input"]
LABELS = cast(tuple[str], ("picture", "outcome"))  # Ray's annotation allows one key only


class Moderator:
    """Asks the safety checker.

    Args:
        args: `None`: there is none, and every picture may be shown.
        checker: its handle.
    """

    def __init__(
        self, args: SafetyArgs | None = None, checker: DeploymentHandle[object] | None = None
    ) -> None:
        self._args = args
        self._checker = checker
        self._counted: Counter[tuple[str, str]] = Counter()
        if args is not None:
            self._exported = metrics.Counter("tcd_moderated", "pictures that were checked", LABELS)

    @property
    def counted(self) -> Mapping[tuple[str, str], int] | None:
        """How many pictures were checked here, by kind and outcome; `None`: there is no safety
        checker."""
        return None if self._args is None else dict(self._counted)

    def level_of(self, request: ImageRequest | VideoRequest) -> Moderation | None:
        """How strictly a request's pictures are checked; `None`: they are not. Raises
        `InvalidRequest` if it asks for less than it may."""
        if self._args is None:
            return None
        wanted = request.moderation if isinstance(request, ImageRequest) else None
        if wanted == "low" and self._args.moderation == "auto" and not self._args.allow_low:
            raise InvalidRequest(
                "moderation is low, which this service does not allow: leave it out, or auto",
                "moderation",
            )
        level = wanted or self._args.moderation
        return None if level == "off" else level

    async def check(self, level: Moderation, kind: Kind, pictures: Mapping[str, Pixels]) -> None:
        """Raises `Moderated` if one of these pictures, by what errors call them, is blocked, and
        what `judged` does."""
        verdicts = await self.judged(list(pictures.values()))
        found = [self._found(level, kind, verdict) for verdict in verdicts]
        for name, concepts in zip(pictures, found, strict=True):
            if concepts:
                raise Moderated(
                    f"blocked by the safety checker, which found {_named(concepts)} in {name} "
                    f"(moderation: {level})",
                    "image" if kind == "input" else None,
                )

    async def passes(self, level: Moderation, kind: Kind, picture: Pixels) -> bool:
        """Whether a picture may be shown. Raises what `judged` does."""
        (verdict,) = await self.judged([picture])
        return not self._found(level, kind, verdict)

    async def judged(self, pictures: Sequence[Pixels]) -> list[Verdict]:
        """What the safety checker says of each of these pictures, (height, width, 3) uint8.

        Raises `NotReady` if it does not answer in time, `QueueFull` if too much waits for it, and
        `GenerationFailed` if nothing can be said of one.
        """
        return await together(twice(partial(self._look, picture)) for picture in pictures)

    def _found(self, level: Moderation, kind: Kind, verdict: Verdict) -> tuple[int, ...]:
        found = verdict.found(level)
        outcome = "blocked" if found else "passed"
        self._counted[kind, outcome] += 1
        self._exported.inc(tags={"picture": kind, "outcome": outcome})
        return found

    async def _look(self, picture: Pixels) -> Verdict:
        if self._args is None or self._checker is None:
            raise NotReady("this service has no safety checker")
        response = self._checker.look.remote(picture)
        try:
            return accepted(
                await asked(
                    cast(DeploymentResponse[Verdict | Refusal], response), self._args.timeout_s
                )
            )
        except TimeoutError as error:
            raise NotReady(
                f"the safety checker did not answer within {self._args.timeout_s:g} s; try again"
            ) from error
        except BackPressureError as error:
            raise QueueFull("the safety checker's queue is full") from error


def _named(found: Sequence[int]) -> str:
    """Concepts by their numbers, the only names that they have."""
    numbers = ", ".join(map(str, found))
    return f"concept {numbers}" if len(found) == 1 else f"concepts {numbers}"
