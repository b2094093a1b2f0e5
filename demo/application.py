"""`serve run` of a config for as long as a demo lasts: without Ray's dashboard, which takes as long
to start as a model, and without waiting at the end for requests, of which there are none.

python -m demo.application CONFIG MODEL

This model is there first: what takes longest, its imports, is begun a moment before the service,
and the other models once both run. All at once, each would wait for the imports of all.
"""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
import yaml
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.serve.scripts import run

from demo.service import POLL_S, Config, address, only, up


def main() -> None:
    """Until it is interrupted."""
    file, model = sys.argv[1:]
    config, first = yaml.safe_load(Path(file).read_text()), f"model-{model}"
    ray.init(address="local", namespace="serve", include_dashboard=False)
    with suppress(KeyboardInterrupt):
        deploy(only(config, first))
        while not has_begun(first):
            time.sleep(POLL_S)
        deploy(only(config, "tcd", first))
        while not up(address(config), model).ready:
            time.sleep(POLL_S)
        deploy(config)
        signal.pause()
    ray.shutdown()


def deploy(config: Config) -> None:
    """Has Serve run what is in a config, and nothing else."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        run.main([str(file), "--non-blocking"], standalone_mode=False)


def has_begun(application: str) -> bool:
    """Whether its processes are being started, or never will be."""
    seen = serve.status().applications[application]
    built = any(one.replica_states for one in seen.deployments.values())
    return built or seen.status not in (ApplicationStatus.NOT_STARTED, ApplicationStatus.DEPLOYING)


if __name__ == "__main__":
    main()
