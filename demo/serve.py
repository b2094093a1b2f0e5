"""`make serve`: the demo's models on 127.0.0.1:8000, until Ctrl-C or SIGTERM.

python -m demo.serve [CONFIG]
"""

import signal
import sys
from pathlib import Path

from demo.service import ROOT, process
from demo.standins import MODELS, write_all


def main() -> None:
    """Exits with 0 when it was told to stop, with what `serve run` said when that ended itself."""
    # A shell's background job ignores SIGINT, and its children would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "serve_config.yaml"
    try:
        write_all(MODELS)
        with process(config) as service:
            sys.exit(service.wait())
    except KeyboardInterrupt:
        print("stopped", flush=True)


if __name__ == "__main__":
    main()
