"""What runs where: the body of `GET /v1/replicas`."""

from typing import Literal

from pydantic import BaseModel, Field

from deployments.contracts.cards import Availability


class ReplicaCard(BaseModel):
    """One replica of a model, as it was a moment ago; its numbers as in `ENGINE_HELP`."""

    id: str = Field(description="as Serve names it, in its log files and figures")
    node: str = Field(description="address of the node that it runs on, as Ray knows it")
    device: str = Field(description="cpu, or the name of the GPU, and its number on the node")
    running_rows: int
    pending_images: int
    pending_seconds: float
    images_total: int
    loras_resident: int
    device_memory_bytes: int


class ModelReplicas(BaseModel):
    """A model, what it is doing, and where."""

    model: str
    object: Literal["model.replicas"] = "model.replicas"
    availability: Availability
    aliases: dict[str, float] = Field(
        description="names that stand for it, each with the share of its requests, 0 to 1"
    )
    replicas: list[ReplicaCard] = Field(description="those that said something, by their id")
    age_s: float | None = Field(description="how long ago they said so; null: none ever did")


class ReplicasBody(BaseModel):
    """All models of the service."""

    object: Literal["list"] = "list"
    data: list[ModelReplicas]
