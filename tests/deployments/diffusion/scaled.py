"""Ray's own autoscaling state around our policies, without a cluster."""

import time

from ray.serve._private.autoscaling_state import AutoscalingStateManager
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

MOST = 8  # replicas of a model


class Scaled:
    """A model's application in Serve's controller: what its replicas and callers say, and how many
    replicas are decided upon. Without delays, where `keys` of the `autoscaling_config` do not
    say others."""

    def __init__(
        self,
        manager: AutoscalingStateManager,
        name: str,
        policy: str,
        kwargs: dict[str, object],
        floor: int = 0,
        **keys: float,
    ) -> None:
        self._manager = manager
        self._id = DeploymentID("Diffusion", app_name=name)
        config = AutoscalingConfig.model_validate(
            {
                "min_replicas": floor,
                "max_replicas": MOST,
                "upscale_delay_s": 0,
                "downscale_delay_s": 0,
                "policy": AutoscalingPolicy(policy_function=policy, policy_kwargs=kwargs),
                **keys,
            }
        )
        self._info = DeploymentInfo(
            deployment_config=DeploymentConfig(autoscaling_config=config, num_replicas=None),
            replica_config=ReplicaConfig.create(lambda: None),
            start_time_ms=0,
            deployer_job_id="",
        )
        self.target = floor
        self.deploy()
        self.run()

    def deploy(self) -> None:
        """Its application is deployed, for the first time or anew."""
        self.target = self._manager.register_deployment(self._id, self._info, self.target)

    def run(self) -> None:
        """As many replicas as were decided upon run."""
        self._replicas = [ReplicaID(f"r{n}", self._id) for n in range(self.target)]
        self._manager.update_running_replica_ids(self._id, self._replicas)

    def say(self, pending_s: float, arriving_s: float) -> None:
        """Each replica says so."""
        now = time.time()
        said = {"pending_seconds": pending_s, "arriving_seconds": arriving_s}
        for replica in self._replicas:
            report = ReplicaMetricReport(
                replica_id=replica,
                timestamp=now,
                metrics={key: [TimeStampedValue(now, value)] for key, value in said.items()},
            )
            self._manager.record_request_metrics_for_replica(report)

    def queue(self, requests: int) -> None:
        """So many wait at a caller's handle."""
        now = time.time()
        self._manager.record_request_metrics_for_handle(
            HandleMetricReport(
                deployment_id=self._id,
                handle_id="caller",
                actor_id="actor",
                handle_source=DeploymentHandleSource.UNKNOWN,
                queued_requests=[TimeStampedValue(now, float(requests))],
                metrics={},
                timestamp=now,
            )
        )

    def decide(self) -> int:
        """The number from now on."""
        decisions = self._manager.get_decision_num_replicas(
            self._id.app_name, {self._id: self.target}
        )
        self.target = decisions[self._id]
        return self.target

    def remove(self) -> None:
        """Its application is deleted."""
        self._manager.deregister_deployment(self._id)
        self._manager.deregister_application(self._id.app_name)
