"""Any contestant by its name."""

from contextlib import AbstractContextManager

from benchmarks.models import Model
from benchmarks.peers.limits import alone
from benchmarks.peers.running import our_service, peer_server
from benchmarks.peers.settings import LIMITS, OURS, PEERS, Name, Settings
from benchmarks.peers.turns import Contestant


def contestant(
    name: Name, model: Model, settings: Settings, *, churn: bool
) -> AbstractContextManager[Contestant]:
    """Started when the block begins, and stopped when it ends."""
    if name == OURS:
        return our_service(model, settings, churn=churn)
    for peer in PEERS:
        if peer == name:
            return peer_server(peer, model, settings, churn=churn)
    (limit,) = (limit for limit in LIMITS if limit == name)
    return alone(limit, model, settings, churn=churn)
