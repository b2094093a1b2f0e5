"""OpenAI's moderations, of pictures."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from deployments.contracts.api import PICTURE, RequestBody
from deployments.contracts.jobs import Name
from deployments.contracts.verdict import Verdict

MAX_PICTURES = 64  # of one request; the service's `max_request_pictures` is less, as a rule
SEXUAL = "sexual"  # what the published checkpoint looks for
CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit"),
    *("illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent"),
    *(SEXUAL, "sexual/minors", "violence", "violence/graphic"),
)
NO_TEXT = 'is not read: no model of texts is here, {"type": "image_url", "image_url": {"url"}} is'


def _picture(entry: object) -> object:
    if isinstance(entry, str) or (isinstance(entry, dict) and entry.get("type") == "text"):
        raise ValueError(f"a text {NO_TEXT}")
    return entry


def _pictures(entries: object) -> object:
    if isinstance(entries, str):
        raise ValueError(f"a text {NO_TEXT}")
    return entries


class ImageUrl(RequestBody):
    """Where a picture is."""

    url: str = Field(description=PICTURE)


class ModeratedPicture(RequestBody):
    """A picture that is to be judged."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ModerationsBody(RequestBody):
    """`POST /v1/moderations`."""

    input: Annotated[
        list[Annotated[ModeratedPicture, BeforeValidator(_picture)]],
        Field(min_length=1, max_length=MAX_PICTURES),
        BeforeValidator(_pictures),
    ]
    model: Name | None = Field(None, description="ignored: there is one, which the answer names")

    @property
    def pictures(self) -> dict[str, str]:
        """The pictures by their fields."""
        return {
            f"input.{index}.image_url.url": entry.image_url.url
            for index, entry in enumerate(self.input)
        }


class ModerationResult(BaseModel):
    """What is said of one picture: OpenAI's categories, and what the safety checker counts itself.

    All that it looks for counts as `sexual`; of what it does not look for, the applied input types
    are empty.
    """

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float] = Field(
        description="from 0 to 1; of `sexual`: above 0.5 it is flagged"
    )
    category_applied_input_types: dict[str, list[Literal["text", "image"]]]
    concept_scores: list[float] = Field(
        description="of each concept, as diffusers counts it: above 0 it is found"
    )

    @classmethod
    def of(cls, verdict: Verdict) -> "ModerationResult":
        """As `moderation: auto` has it."""
        scores = verdict.scores("auto")
        flagged, highest = bool(verdict.found("auto")), max(scores, default=-1.0)
        return cls(
            flagged=flagged,
            categories=dict.fromkeys(CATEGORIES, False) | {SEXUAL: flagged},
            category_scores=dict.fromkeys(CATEGORIES, 0.0)
            | {SEXUAL: min(max((1 + highest) / 2, 0.0), 1.0)},
            category_applied_input_types={c: ["image"] if c == SEXUAL else [] for c in CATEGORIES},
            concept_scores=list(scores),
        )


class ModerationsAnswer(BaseModel):
    """The answer: a result for each picture, in order."""

    id: str
    model: str = Field(description="the safety checker's source")
    results: list[ModerationResult]
