"""What files are signed with, to say that they were made by a machine."""

from typing import Literal

from pydantic import Field, model_validator

from configs.frozen import Frozen


class ProvenanceArgs(Frozen):
    """A C2PA manifest in every picture and video: see docs/safety.md. Needs c2pa-python, which
    `pip install 'ray-serve-tcd[c2pa]'` brings.

    Attributes:
        certificate: path of the chain of certificates as PEM, the signing one first; absolute, or
            relative to the project's root.
        key_file: path of its private key, as PEM in PKCS#8.
        key_env: name of the environment variable that holds the key instead.
        algorithm: of the key, as C2PA names it.
    """

    certificate: str = Field(min_length=1)
    key_file: str | None = None
    key_env: str | None = None
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"

    @model_validator(mode="after")
    def _one_key(self) -> "ProvenanceArgs":
        if (self.key_file is None) == (self.key_env is None):
            raise ValueError("names either key_file or key_env")
        return self
