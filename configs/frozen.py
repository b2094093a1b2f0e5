"""What all configuration models share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Host = Annotated[str, Field(pattern=r"^[^\s/:?#@]+$")]  # its name alone


class Frozen(BaseModel):
    """The base of every one: immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
