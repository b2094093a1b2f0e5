"""Serve's autoscaler in virtual time, around a policy: Serve's own code for factors and delays."""

from collections import deque
from collections.abc import Callable, Mapping
from statistics import mean

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from benchmarks.fleet.replica import Replica
from benchmarks.fleet.routers import DEPLOYMENT, identity

Scale = Callable[[AutoscalingContext], tuple[float, dict[str, object]]]


class Autoscaler:
    """How many replicas there are to be. What replicas say is averaged over the last
    `look_back_period_s`; it is said every `metrics_interval_s`."""

    def __init__(
        self, policy: Scale, config: AutoscalingConfig, replicas: int, model: str = "one"
    ) -> None:
        self.config = config
        self.target = replicas
        self._policy = policy
        self._id = DeploymentID(DEPLOYMENT.name, app_name=model)
        self._state: dict[str, object] = {}
        most = round(config.look_back_period_s / config.metrics_interval_s)
        self._said: dict[str, deque[tuple[float, float, int]]] = {}
        self._most = most
        self.ups, self.downs = 0, 0

    def hear(self, replicas: Mapping[str, Replica]) -> None:
        """What they have to do, and how many requests."""
        self._said = {name: self._said.get(name, deque(maxlen=self._most)) for name in replicas}
        for name, replica in replicas.items():
            self._said[name].append((replica.pending_s, replica.arriving_s, replica.ongoing))

    def decide(self, now: float) -> int:
        """The number from now on."""
        said = {name: values for name, values in self._said.items() if values}
        if not said:
            return self.target
        pending = {identity(n): mean(one for one, _, _ in values) for n, values in said.items()}
        arriving = {identity(n): mean(one for _, one, _ in values) for n, values in said.items()}
        context = AutoscalingContext(
            deployment_id=self._id,
            deployment_name=DEPLOYMENT.name,
            app_name=None,
            current_num_replicas=len(said),
            target_num_replicas=self.target,
            running_replicas=list(pending),
            total_num_requests=sum(mean(one for _, _, one in values) for values in said.values()),
            total_queued_requests=0.0,
            aggregated_metrics={"pending_seconds": pending, "arriving_seconds": arriving},
            raw_metrics=None,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state={},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self.config,
        )
        wanted, _ = self._policy(context)
        scaled = _apply_scaling_factors(wanted, len(said), self.config)
        bounded = min(max(scaled, self.config.min_replicas), self.config.max_replicas)
        target, self._state = _apply_delay_logic(
            bounded, self.target, self.config, self._state, _now=now
        )
        self.ups += target > self.target
        self.downs += target < self.target
        self.target = target
        return target
