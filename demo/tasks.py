"""One request for each task of the guide, as `make demo` sends them."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from demo.client import Client, Picture, data_url
from demo.world.renderer import SIDE, render
from demo.world.scene import Background, Scene, Solid

FIRST = "sdxl"
MODELS = (FIRST, "sdxl-inpainting", "sdxl-ink", "sd15")  # that the tasks ask for, as the guide does
SEED = 7
SNOW = "a big red ball on the left, in the snow"
FRAMES = 8
GIVEN_SIDE = 2 * SIDE  # of pictures that requests bring along: that of sdxl's


@dataclass(frozen=True)
class Drawn:
    """What one task's request brought.

    Attributes:
        asked: the prompt; empty where there is none.
        pictures: one, the frames of a video, or those of several requests.
        given: the picture that came with the request.
        film: whether the pictures are frames.
        seconds: that it took, while others were drawn too.
    """

    task: str
    asked: str
    pictures: tuple[Picture, ...]
    given: Picture | None = None
    film: bool = False
    seconds: float = 0.0


def first_task(client: Client) -> Drawn:
    """A picture of `FIRST`, from which another task starts."""
    return timed(partial(text_to_image, client, FIRST, SNOW))


def tasks_of(model: str, client: Client, ball: Picture) -> Iterator[Drawn]:
    """Each further task of a model with all adapters once it is done. `ball`: a red one on the
    left."""
    tasks: list[Callable[[], Drawn]] = [
        partial(image_to_image, client, model, ball, "a big purple ball on the left, at night"),
        partial(style_mix, client, model, "a big cyan cylinder in the center, on the grass"),
        partial(control, client, model, "canny", "a red cylinder, on the sand"),
        partial(control, client, model, "depth", "a blue cylinder, at night"),
        partial(ip_adapter, client, model),
        partial(one_batch, client, model),
    ]
    yield from at_once(tasks)


def tasks_of_others(client: Client) -> Iterator[Drawn]:
    """Each task of the other models once it is done."""
    tasks: list[Callable[[], Drawn]] = [
        partial(inpainting, client),
        partial(fine_tune, client, "a big green cone in the center, on the sand"),
        partial(video, client, "a small blue ball on the left rolling right, on the grass"),
    ]
    yield from at_once(tasks)


def at_once(tasks: Sequence[Callable[[], Drawn]]) -> Iterator[Drawn]:
    """What tasks bring that are asked for at once, as by several clients, in their order. Whoever
    leaves early waits for none."""
    threads = ThreadPoolExecutor(len(tasks))
    try:
        started = [threads.submit(timed, task) for task in tasks]
        for task in started:
            yield task.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def timed(task: Callable[[], Drawn]) -> Drawn:
    """What a task brings, with the seconds that it took."""
    started = time.perf_counter()
    return replace(task(), seconds=time.perf_counter() - started)


def text_to_image(client: Client, model: str, prompt: str) -> Drawn:
    """Four TCD steps, as everywhere below unless it says otherwise."""
    picture = client.generate({"model": model, "prompt": prompt, "seed": SEED})
    return Drawn(f"{model}: text to image", prompt, (picture,))


def image_to_image(client: Client, model: str, given: Picture, prompt: str) -> Drawn:
    """A picture noised and drawn anew."""
    fields = {"model": model, "prompt": prompt, "strength": "0.9", "num_inference_steps": "8"}
    picture = client.edit({**fields, "seed": str(SEED)}, given)
    return Drawn("image to image", prompt, (picture,), given)


def inpainting(client: Client) -> Drawn:
    """The right half of a scene is a hole."""
    given = _scene("sand", Solid("cone", "yellow", "big", "left"))
    holed = np.asarray(given.convert("RGBA")).copy()
    holed[:, GIVEN_SIDE // 2 :, 3] = 0
    mask = Image.fromarray(holed)
    prompt = "a big yellow cone on the left and a big blue ball on the right, on the sand"
    fields = {"model": "sdxl-inpainting", "prompt": prompt, "seed": str(SEED)}
    return Drawn("inpainting", prompt, (client.edit(fields, given, mask),), mask)


def fine_tune(client: Client, prompt: str) -> Drawn:
    """A community fine-tune, with the TCD-LoRA of its base."""
    picture = client.generate({"model": "sdxl-ink", "prompt": prompt, "seed": SEED})
    return Drawn("community fine-tune", prompt, (picture,))


def style_mix(client: Client, model: str, prompt: str) -> Drawn:
    """Two style LoRAs at once."""
    loras = [{"name": "papercut", "weight": 0.8}, {"name": "neon", "weight": 0.5}]
    picture = client.generate({"model": model, "prompt": prompt, "seed": SEED, "loras": loras})
    return Drawn("styles: papercut 0.8, neon 0.5", prompt, (picture,))


def control(client: Client, model: str, kind: str, prompt: str) -> Drawn:
    """A ControlNet, on what the service's own preprocessor makes of a scene."""
    given = client.preprocess(kind, _scene("grass", Solid("cylinder", "purple", "big", "right")))
    one = {"type": kind, "image": data_url(given), "preprocessed": True, "conditioning_scale": 1.0}
    body = {"model": model, "prompt": prompt, "seed": SEED, "controls": [one]}
    return Drawn(f"{kind} ControlNet", prompt, (client.generate(body),), given)


def ip_adapter(client: Client, model: str) -> Drawn:
    """A picture instead of a prompt."""
    given = _scene("night", Solid("cone", "purple", "big", "center"))
    picture = client.vary({"model": model, "seed": str(SEED)}, given)
    return Drawn("IP-Adapter", "", (picture,), given)


def one_batch(client: Client, model: str) -> Drawn:
    """Four requests at once that have nothing in common but their size: the model's UNet computes
    their rows together."""
    scene = data_url(_scene("sand", Solid("cube", "green", "big", "right")))
    edges = {"type": "canny", "image": scene, "conditioning_scale": 1.0}
    own: list[dict[str, object]] = [
        {"prompt": SNOW, "loras": [{"name": "ink", "weight": 0.9}]},
        {"prompt": "a cyan cone, at night", "loras": [{"name": "neon", "weight": 0.9}]},
        {"prompt": "a yellow cube, in the snow", "controls": [edges], "num_inference_steps": 8},
        {
            "prompt": "a purple ball on the left and a green cone on the right, on the grass",
            "guidance_scale": 2.0,
            "num_inference_steps": 6,
        },
    ]
    asked = [{"model": model, "seed": SEED, **fields} for fields in own]
    with ThreadPoolExecutor(len(asked)) as clients:
        pictures = tuple(clients.map(client.generate, asked))
    return Drawn("four requests in one batch", "ink, neon, canny, guidance", pictures)


def video(client: Client, prompt: str) -> Drawn:
    """AnimateDiff, eight steps."""
    frames = client.video(
        {
            "model": "sd15",
            "prompt": prompt,
            "seed": SEED,
            "num_frames": FRAMES,
            "num_inference_steps": 8,
            "output_format": "webp",
        }
    )
    return Drawn("AnimateDiff", prompt, tuple(frames), film=True)


def _scene(background: Background, solid: Solid) -> Picture:
    return Image.fromarray(render(Scene((solid,), background), SEED, side=GIVEN_SIDE).pixels)
