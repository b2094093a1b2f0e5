"""How many replicas a model wants: by the work that comes and waits, not by the number of requests.

In the Serve config, under the deployment's `autoscaling_config`:

    policy:
      policy_function: deployments.diffusion.autoscaling:ByWork
      policy_kwargs: {utilization: 0.5, target_s: 10}

Ray pickles a policy with what it uses of this module: `ByWork` and `ByPendingWork` need no project
where Serve's controller runs, `SharedGpus` does.
"""

from dataclasses import replace
from math import ceil, inf

from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.diffusion.pool import pool_of
from deployments.diffusion.shares import Claim, granted

SPARE = 0.2  # of the replicas that work wants: so many too many are kept rather than ended

Decision = tuple[float, dict[str, object]]


class ByPendingWork:
    """Wants so many replicas that each has `target_s` seconds of work before it: cheap and slow.

    Serve applies bounds, delays and smoothing factors to what is returned.

    Args:
        target_s: seconds of UNet and VAE, by each replica's own measured times. Above 0.
    """

    def __init__(self, target_s: float = 10.0) -> None:
        self._target_s = above_zero("target_s", target_s)

    def __call__(self, ctx: AutoscalingContext) -> "Decision":
        """Called by Serve's controller. As many as now until a replica has reported."""
        pending_s = (ctx.aggregated_metrics or {}).get("pending_seconds", {})
        if not pending_s:
            return ctx.target_num_replicas, {}
        return sum(pending_s.values()) / self._target_s, {}


class ByWork:
    """Wants so many replicas that what comes in keeps each busy for `utilization` of its time, and
    that what waits is done in `target_s` besides.

    An image of 50 steps counts for more than one of 4. What comes in says so before a queue does:
    a queue grows when replicas are full, and a new one takes its time to start. One that is
    not wanted goes only when a fifth more work would not want it either. Serve applies bounds,
    delays and smoothing factors to what is returned.

    Args:
        utilization: share of what a replica can do in full calls, by its own measured times. Above
            0, at most 1; less is faster and dearer.
        target_s: seconds in which further replicas would do what waits. Above 0.
    """

    def __init__(self, utilization: float = 0.5, target_s: float = 10.0) -> None:
        if not 0 < utilization <= 1:
            raise ValueError(f"utilization is {utilization}; it must be above 0, at most 1")
        self._utilization = utilization
        self._target_s = above_zero("target_s", target_s)

    def __call__(self, ctx: AutoscalingContext) -> "Decision":
        """Called by Serve's controller. As many as now until a replica has reported."""
        wanted = self.wanted(ctx)
        if wanted is None:
            return ctx.target_num_replicas, {}
        return float(steady(wanted, ctx.target_num_replicas)), {}

    def wanted(self, ctx: AutoscalingContext) -> float | None:
        """Replicas, 0 or more, not rounded; `None`: no replica has reported."""
        said = ctx.aggregated_metrics or {}
        if not said.get("pending_seconds"):
            return None
        arriving = sum(said.get("arriving_seconds", {}).values())
        pending_s = sum(said["pending_seconds"].values())
        return arriving / self._utilization + pending_s / self._target_s


class SharedGpus:
    """Wants what `ByWork` wants, and gets its share of the GPUs of a pool, which other models use,
    too: each in an application of its own, with the same `pool` and `gpus`.

    `min_replicas` is a model's floor. Beyond the floors GPUs go by priority times work
    (`deployments.diffusion.shares`). Serve's factors do not act on a share, but for the first
    replicas of a model at zero, of which there are `upscaling_factor`; `initial_replicas` are
    there before a share is known. `make check-config` refuses both.

    Args:
        pool: name of the GPUs that are shared.
        gpus: how many there are, of one replica each. 1 or more.
        priority: how much this model's work counts beside that of others. Above 0.
        utilization, target_s: as `ByWork` has them.
    """

    def __init__(
        self,
        pool: str,
        gpus: int,
        priority: float = 1.0,
        utilization: float = 0.5,
        target_s: float = 10.0,
    ) -> None:
        if gpus < 1:
            raise ValueError(f"gpus is {gpus}; it must be 1 or more")
        self._priority = above_zero("priority", priority)
        self._work = ByWork(utilization, target_s)
        self._pool = pool_of(pool)
        self._pool.join(self)
        self._gpus = gpus

    def __call__(self, ctx: AutoscalingContext) -> "Decision":
        """Called by Serve's controller. Wants as many as now until a replica has reported."""
        name, held, now = str(ctx.deployment_id), ctx.target_num_replicas, ctx.current_time or 0.0
        floor, most = ctx.capacity_adjusted_min_replicas, ctx.capacity_adjusted_max_replicas
        wanted = self._work.wanted(ctx)
        if wanted is None:
            wanted = float(held)
        alone = min(max(steady(wanted, held), floor), most)
        claim = Claim(wanted, alone, held, floor, self._priority)
        self._pool.tell(self, name, claim, now)
        given = granted(self._gpus, name, self._pool.claims(now))
        # Taken from now on, so that no other takes it, too, while Serve's delay is on.
        self._pool.tell(self, name, replace(claim, held=max(held, given)), now)
        return exactly(given, ctx), {}


def above_zero(name: str, value: float) -> float:
    """The value of an argument. Raises `ValueError` if it is not above 0, or not finite."""
    if not 0 < value < inf:  # not a number, too
        raise ValueError(f"{name} is {value}; it must be above 0, and finite")
    return value


def steady(wanted: float, now: int) -> int:
    """Whole replicas for what is wanted: not fewer than now for a little less work."""
    return max(ceil(wanted), min(now, ceil(wanted * (1 + SPARE))))


def exactly(replicas: int, ctx: AutoscalingContext) -> float:
    """What becomes so many replicas by Serve's `upscaling_factor` and `downscaling_factor`, which
    act on the difference from those that run and could carry a share past its pool."""
    config: AutoscalingConfig | None = ctx.config
    running, more = ctx.current_num_replicas, replicas - ctx.current_num_replicas
    if config is None or not running or not more:
        return float(replicas)
    up, down = config.get_upscaling_factor(), config.get_downscaling_factor()
    return running + (more - 0.5) / (up if more > 0 else down)  # Serve rounds up
