"""`make serve`: the demo's models on 127.0.0.1:8000, until Ctrl-C or SIGTERM.

python -m demo.serve [CONFIG]
"""

import errno
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from demo.service import (
    OUT,
    ROOT,
    Config,
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
    config = read(path)
    url = address(config)
    if is_taken(url):
        raise SystemExit(
            f"{url} is taken: somebody listens there; http_options of {path} say where"
        )
    OUT.mkdir(exist_ok=True)
    log = OUT / "serve.log"
    try:
        have_written()
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


def read(path: Path) -> Config:
    """A Serve config. Raises SystemExit for what is none."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise SystemExit(f"{path} is no Serve config: it has no list `applications`")
    return config


def is_taken(url: str) -> bool:
    """Whether somebody listens there. Serve's proxies share a port with whoever has it, and each
    would get a part of the requests."""
    try:
        host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    except ValueError:  # Ray says what is wrong with it
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not who has just gone
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


if __name__ == "__main__":
    main()
