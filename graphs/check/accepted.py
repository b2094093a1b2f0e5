"""What an application of a Serve config says, as far as our own schemas accept it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from configs.app import ModelArgs, ModelUserConfig, ServiceArgs
from configs.needs import Need, of_model, of_service, of_user_config
from graphs.model import DIFFUSION

MODEL, SERVICE = "graphs.model:build", "graphs.service:build"
DIRECTORY = "Directory"  # the deployment of the service that takes a `user_config`
Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class Accepted:
    """An application; `None`: it is of the other graph, or that part of it is refused.

    Attributes:
        name: the application's.
        sets: environment variables that its `runtime_env` sets.
    """

    name: str
    service: ServiceArgs | None = None
    model: ModelArgs | None = None
    user_config: ModelUserConfig | None = None
    sets: tuple[str, ...] = ()

    def needs(self) -> Iterator[tuple[str, str, Need]]:
        """The weights that it names: place in the file, key below `args` or `user_config`."""
        if self.service is not None:
            for key, need in of_service(self.service):
                yield f"{self.name}.args.{key}", key, need
        if self.model is not None:
            for key, need in of_model(self.model):
                yield f"{self.name}.args.{key}", key, need
        if self.user_config is not None:
            for key, need in of_user_config(self.user_config):
                yield f"{self.name}.{DIFFUSION.name}.user_config.{key}", key, need

    def of(self, deployments: Collection[str]) -> "Accepted":
        """What of it these of its deployments read."""
        service = self.service
        if service is not None:
            encoders = {
                name: encoder
                for name, encoder in service.image_encoders.items()
                if f"ImageEncoder-{name}" in deployments
            }
            parts = {
                "image_encoders": encoders,
                "depth": service.depth if "Depth" in deployments else None,
                "safety": service.safety if "Safety" in deployments else None,
                "provenance": service.provenance if "Ingress" in deployments else None,
            }
            service = service.model_copy(update=parts)
        own = DIFFUSION.name in deployments
        return Accepted(
            self.name,
            service=service,
            model=self.model if own else None,
            user_config=self.user_config if own else None,
        )


def accepted(application: Mapping[str, Any]) -> Accepted:
    """Reads an application as YAML gives it."""
    name, kind = str(application.get("name", "?")), application.get("import_path")
    args = application.get("args") or {}
    environment = application.get("runtime_env")
    variables = environment.get("env_vars") if isinstance(environment, dict) else None
    sets = tuple(map(str, variables)) if isinstance(variables, dict) else ()
    if kind == SERVICE:
        return Accepted(name, service=read(ServiceArgs, args), sets=sets)
    if kind != MODEL:
        return Accepted(name)
    deployments = application.get("deployments", ())
    given: Mapping[str, Any] = next(
        (each for each in deployments if each.get("name") == DIFFUSION.name), {}
    )
    user_config = given.get("user_config") or {}
    return Accepted(
        name,
        model=read(ModelArgs, args),
        user_config=read(ModelUserConfig, user_config),
        sets=sets,
    )


def read(schema: type[Schema], value: object) -> Schema | None:
    """A value as a schema reads it; `None`: it refuses it."""
    try:
        return schema.model_validate(value)
    except ValidationError:
        return None
