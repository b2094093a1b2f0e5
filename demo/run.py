"""`make demo`: starts the application, has every task of the guide drawn over HTTP, stops.

Only the models that the tasks ask for are started; everything else is as `serve_config.yaml`
says.
"""

import signal
import sys
import time
from functools import partial

from demo.client import Client, Refused
from demo.gallery import grid
from demo.service import OUT, demo_config, have_written, running, shown
from demo.tasks import MODELS as ASKED
from demo.tasks import Drawn, all_tasks

FRAME_MS = 125


def main() -> None:
    """Prints what it does, how long each part takes, and where the pictures are."""
    started = time.perf_counter()
    # However this ends, the application ends with it. (A shell's background job ignores SIGINT,
    # and its children would.)
    signal.signal(signal.SIGINT, lambda *_: sys.exit("interrupted"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    tell = partial(print, flush=True)
    have_written("--merged")
    with running(demo_config(ASKED), "demo", tell=tell, brief=True) as url, Client(url) as client:
        tell(f"ready after {time.perf_counter() - started:.1f} s")
        drawn: list[Drawn] = []
        try:
            for task in all_tasks(client):
                prompt = f'"{task.asked}"' if task.asked else "(no prompt)"
                tell(f"  {task.seconds:5.2f} s  {task.task}: {prompt}")
                drawn.append(task)
        except Refused as error:
            raise SystemExit(f"the service refused a request: {error}") from error
        picture, video = OUT / "demo.png", OUT / "demo.webp"
        grid(drawn).save(picture)
        first, *others = drawn[-1].pictures
        first.save(video, save_all=True, append_images=others, duration=FRAME_MS, loop=0)
        tell(f"{shown(picture)}: a picture of each task; {shown(video)}: the video")
        tell("stopping")
    tell(f"done in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
