"""What a Serve config says of tracing: whether spans have somewhere to go."""

import os
from collections.abc import Iterator

from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema

from graphs.check.schemas import one_line

EXPORTER = "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"
RATIO = "RAY_SERVE_TRACING_SAMPLING_RATIO"


def untraceable(config: ServeDeploySchema) -> Iterator[str]:
    """What would keep every replica from starting."""
    said = config.tracing_config
    if said is None or not said.enabled or not said.exporter_import_path:
        return
    try:
        found = import_attr(said.exporter_import_path)
    except Exception as error:  # an import may raise anything
        yield f"tracing_config.exporter_import_path: {one_line(error)}"
        return
    if not callable(found):
        yield (
            f"tracing_config.exporter_import_path: {said.exporter_import_path} is no function: it "
            "is called without arguments and returns a list of span processors"
        )


def tracing_advice(config: ServeDeploySchema) -> Iterator[str]:
    """What Serve's proxies do not read in the file."""
    said = config.tracing_config
    if said is None or not said.enabled or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return
    for name in (EXPORTER, RATIO):
        if not os.environ.get(name):
            yield (
                f"tracing_config: {name} is not set here; nodes must have it: Serve's proxies read "
                "it alone, and without them a trace begins at the ingress, whatever `traceparent` "
                "the client sent"
            )
