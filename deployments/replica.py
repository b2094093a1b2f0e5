"""The replica of Serve that this process is."""

from ray import serve
from ray.serve.exceptions import RayServeException


def own_name() -> str | None:
    """Its full name, by which its actor is found; `None`: this process is none."""
    try:
        return serve.get_replica_context().replica_id.to_full_id_str()
    except RayServeException:
        return None
