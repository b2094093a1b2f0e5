"""How long the deployments last, which their graphs and `make check-config` share.

A request for images is given up after at most `max_timeout_s` of the service. Whatever carries it
must last longer: the proxy, which would answer in its own words, and a replica that was told to go.
A service whose `max_timeout_s` is above 300 s says longer times in its Serve config.
"""

from typing import Final, TypedDict


class Lasting(TypedDict):
    """Options of a Serve deployment: how it goes away, and how it is found to hang."""

    graceful_shutdown_timeout_s: float
    health_check_period_s: float
    health_check_timeout_s: float
    max_surge_percent: int


# What a request may take beyond its own time: its answer is encoded, stored and sent.
GRACE_S = 30.0

# Of every deployment, unless the Serve config says otherwise.
LASTING: Final[Lasting] = {
    # A replica that goes first does what it has taken.
    "graceful_shutdown_timeout_s": 300.0 + GRACE_S,
    # One that hangs is replaced once it was silent three times: after half a minute.
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 8.0,
    # A replacement starts before its predecessor stops: one more replica than the target, at
    # least; the predecessor goes on if the replacement cannot start.
    "max_surge_percent": 25,
}
MAX_ONGOING_REQUESTS = 1000  # of a replica; whatever refuses, refuses earlier and says when to ask

# A replica may be busy for so long before it counts as silent, and should not for longer.
HEALTH_CHECK_TIMEOUT_S = (5.0, 20.0)
