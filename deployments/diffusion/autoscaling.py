"""How many replicas a model wants: by the work that waits, not by the number of requests.

In the Serve config, under the deployment's `autoscaling_config`:

    policy:
      policy_function: deployments.diffusion.autoscaling:ByPendingWork
      policy_kwargs: {target_s: 10}
"""

from ray.serve.config import AutoscalingContext


class ByPendingWork:
    """Wants so many replicas that each has `target_s` seconds of work before it.

    An image of 50 steps counts for more than one of 4, and a request for ten images for more
    than one. Serve applies bounds, delays and smoothing factors to what is returned.

    Args:
        target_s: seconds of UNet time, by each replica's own measured step time. Above 0.
    """

    def __init__(self, target_s: float = 10.0) -> None:
        if target_s <= 0:
            raise ValueError(f"target_s is {target_s}; it must be above 0")
        self._target_s = target_s

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, object]]:
        """Called by Serve's controller. As many as now until a replica has reported."""
        pending_s = (ctx.aggregated_metrics or {}).get("pending_seconds", {})
        if not pending_s:
            return ctx.target_num_replicas, {}
        return sum(pending_s.values()) / self._target_s, {}
