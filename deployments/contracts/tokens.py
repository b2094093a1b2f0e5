"""How a model reads a text: `POST /v1/tokenize`."""

from dataclasses import dataclass

from pydantic import BaseModel, Field

from deployments.contracts.api import RequestBody
from deployments.contracts.jobs import Name, PromptSyntax, Text


class TokenizeBody(RequestBody):
    """`POST /v1/tokenize`."""

    model: Name | None = Field(None, description="a name from `GET /v1/models`")
    prompt: Text
    prompt_syntax: PromptSyntax | None = Field(None, description="as of images")


@dataclass(frozen=True)
class PromptTokens:
    """A text as a model's text encoders read it.

    Attributes:
        count: of the encoder that reads the most.
        windows: what stands in each window that it is read in.
    """

    count: int
    windows: tuple[str, ...]


class TokensBody(BaseModel):
    """The answer of `POST /v1/tokenize`."""

    model: str
    count: int = Field(description="tokens of the text, without begin and end marks")
    max_model_len: int = Field(description="tokens that the model reads at most")
    windows: list[str] = Field(description="what stands in each window that it is read in")
