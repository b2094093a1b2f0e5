"""`make serve`: the demo's models on 127.0.0.1:8000, until Ctrl-C or SIGTERM.

python -m demo.serve [CONFIG]
"""

import signal
import sys
from functools import partial
from pathlib import Path

import yaml

from demo.service import (
    OUT,
    ROOT,
    Running,
    address,
    failed,
    have_written,
    process,
    shown,
)

tell = partial(print, flush=True)


def main() -> None:
    """Exits with 0 when it was told to stop, with what `serve run` said when that ended itself."""
    # A shell's background job ignores SIGINT, and its children would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "serve_config.yaml"
    config = yaml.safe_load(path.read_text())
    OUT.mkdir(exist_ok=True)
    log = OUT / "serve.log"
    try:
        have_written()
        url = address(config)
        tell(f"starting {url} (log: {shown(log)})")
        with log.open("wb") as output, process(path, output) as service:
            Running(config, url, log, service, tell).wait_until_ready()
            tell(f"ready: {url}/ is a page to try it, {url}/docs the API; Ctrl-C stops it")
            ended = service.wait()
            if ended:
                tell(failed(f"the application ended with {ended}", log))
            sys.exit(ended)
    except KeyboardInterrupt:
        tell("stopped")


if __name__ == "__main__":
    main()
