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
from demo.service import OUT, START_TIMEOUT_S, demo_config, have_written, shown, starting
from demo.tasks import FIRST, MODELS, Drawn, first_task, tasks_of, tasks_of_others

FRAME_MS = 125
tell = partial(print, flush=True)


def main() -> None:
    """Prints what it does, how long each part takes, and where the pictures are."""
    started = time.perf_counter()
    # However this ends, the application ends with it. (A shell's background job ignores SIGINT,
    # and its children would.)
    signal.signal(signal.SIGINT, lambda *_: sys.exit("interrupted"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    have_written("--merged")
    with (
        starting(demo_config(MODELS), "demo", first=FIRST, tell=tell) as service,
        Client(service.url) as client,
    ):
        service.wait_until_ready(FIRST, patience_s=START_TIMEOUT_S)
        try:
            drawn = [told(first_task(client))]
            (ball,) = drawn[0].pictures
            ball.save(OUT / "first.png")
            took = time.perf_counter() - started
            tell(f"{shown(OUT / 'first.png')}: the first picture, after {took:.1f} s")
            drawn += map(told, tasks_of(FIRST, client, ball))
            service.wait_until_ready(patience_s=START_TIMEOUT_S)
            drawn += map(told, tasks_of_others(client))
        except Refused as error:
            raise SystemExit(f"the service refused a request: {error}") from error
        picture, video = OUT / "demo.png", OUT / "demo.webp"
        grid(drawn).save(picture)
        (film,) = (task.pictures for task in drawn if task.film)
        film[0].save(video, save_all=True, append_images=film[1:], duration=FRAME_MS, loop=0)
        tell(f"{shown(picture)}: a picture of each task; {shown(video)}: the video")
        tell("stopping")
    tell(f"done in {time.perf_counter() - started:.1f} s")


def told(task: Drawn) -> Drawn:
    """A task, once a line says that it is done."""
    prompt = f'"{task.asked}"' if task.asked else "(no prompt)"
    tell(f"  {task.seconds:5.2f} s  {task.task}: {prompt}")
    return task


if __name__ == "__main__":
    main()
