"""The Serve shell around the routing policy: in every process that has a handle to a model.

Serve pickles this module by value, and so whatever it defines; the policy is found by import.
"""

from random import Random
from time import monotonic

from ray.serve._private.common import RequestMetadata
from ray.serve._private.replica_result import ReplicaResult
from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.policy.report import Report
from deployments.diffusion.routing.policy import Policy, Worth
from deployments.diffusion.routing.standing import Asked

JOBS = ("submit", "stream")  # methods of a replica that make images


class AdapterAffinityRouter(FIFOMixin, RequestRouter):
    """Sends a job to the replica that holds its style adapters, unless that has much more to do
    than another one; whatever needs none goes by what replicas have to do.

    In a deployment's options:

        request_router_config:
          request_router_class: deployments.diffusion.router.AdapterAffinityRouter
          request_router_kwargs: {load_s: 1.0}
          request_routing_stats_period_s: 2
    """

    def initialize_state(self, **kwargs: float) -> None:
        """Called by Serve with `request_router_kwargs`, the fields of `Worth`."""
        self._policy = Policy(Worth(**kwargs), Random())
        self._said: dict[str, dict[str, object]] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve when replicas come, go, or report something new."""
        super().update_replicas(replicas)
        before, self._said = self._said, {r.replica_id.unique_id: r.routing_stats for r in replicas}
        self._policy.update(self._said)
        for name, stats in self._said.items():
            if stats != before.get(name) and (report := Report.of(stats)) is not None:
                self._policy.hear(name, report, monotonic())

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Called by Serve when a call found its replica dead."""
        super().on_replica_actor_died(replica_id)
        self._said.pop(replica_id.unique_id, None)
        self._policy.forget(replica_id.unique_id)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Called by Serve: replicas in order of preference, each tried before the next."""
        if pending_request is None:
            return [candidate_replicas]
        # When none of them can be had, Serve waits a moment before it asks again.
        pending_request.routing_context.should_backoff = True
        running = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = self._policy.choose(_asked(pending_request), monotonic())
        return [[running[name]] for name in ranked if name in running]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, _: ReplicaResult
    ) -> None:
        """Called by Serve when a replica has taken a request."""
        self._policy.sent(_asked(pending_request), replica_id.unique_id, monotonic())

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a request has ended."""
        self._policy.done(replica_id.unique_id, internal_request_id)

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        """Whom a chosen replica is for: the request that it was chosen for, not the oldest one.
        Where calls share an id, as those of one request do, the mixin takes the oldest."""
        return self._get_pending_request_matching_internal_request_id(request_metadata)


def _asked(pending: PendingRequest) -> Asked:
    call, method = pending.metadata.internal_request_id, pending.metadata.call_method
    job = pending.args[0] if pending.args and method in JOBS else None
    if isinstance(job, ImageJob):
        return Asked.of(job, call)
    return Asked(f"{call}/{method}", call)
