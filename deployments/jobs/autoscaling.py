"""How many workers the jobs want.

In the Serve config, under the `autoscaling_config` of `JobWorker`:

    policy: {policy_function: "deployments.jobs.autoscaling:ByOpenJobs"}
"""

from ray.serve.config import AutoscalingContext

OPEN_JOBS = "open_jobs"  # what a worker tells Serve


class ByOpenJobs:
    """Wants so many workers that each has as many jobs as it works on at a time.

    Args:
        at_once: jobs of a worker, 1 or more; by default as `jobs.at_once` is by default.
    """

    def __init__(self, at_once: int = 8) -> None:
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}; it must be 1 or more")
        self._at_once = at_once

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, object]]:
        """Called by Serve's controller. Every worker sees the same jobs: the latest look counts."""
        seen = (ctx.aggregated_metrics or {}).get(OPEN_JOBS, {})
        if not seen:
            return max(1, ctx.target_num_replicas), {}  # of none, none would ever tell
        return max(seen.values()) / self._at_once, {}
