"""`serve run` of a config for as long as a demo lasts: without Ray's dashboard, which takes as long
to start as a model, and without waiting at the end for requests, of which there are none.

python -m demo.application CONFIG
"""

import signal
import sys
from contextlib import suppress

import ray
from ray.serve.scripts import run


def main() -> None:
    """Until it is interrupted."""
    ray.init(address="local", namespace="serve", include_dashboard=False)
    run.main([sys.argv[1], "--non-blocking"], standalone_mode=False)
    with suppress(KeyboardInterrupt):
        signal.pause()
    ray.shutdown()


if __name__ == "__main__":
    main()
