"""`tcd animate`: videos, which are jobs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tcd import options
from tcd.asked import body_of, loras
from tcd.following import accepted, ended, keep
from tcd.pictures import source_of
from tcd.saved import prepared
from tcd.screen import Screen, screen
from tcd.service import Service

VIDEOS = "v1/videos"


def animate(
    prompt: Annotated[str, typer.Argument(help="What is to be seen.")],
    frames: Annotated[int, typer.Option("--frames", "-f", min=1)] = 16,
    fps: Annotated[int | None, typer.Option(help="Frames a second, 1 to 60.")] = None,
    motion: Annotated[
        list[str] | None, typer.Option(help="A motion LoRA: NAME or NAME=WEIGHT. Repeatable.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="A picture that it begins as.")] = None,
    model: options.Model = None,
    negative: options.Negative = None,
    steps: options.Steps = None,
    eta: options.Eta = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    seed: options.Seed = None,
    lora: options.Loras = None,
    control: options.Controls = None,
    like: options.Like = None,
    output_format: Annotated[str | None, typer.Option("--format", help="mp4, gif or webp.")] = None,
    out: options.Out = options.HERE,
    later: options.Later = False,
    field: options.Set = None,
    timeout: options.Timeout = options.TIMEOUT_S,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Makes a video of a prompt (AnimateDiff)."""
    body = body_of(
        {
            "num_frames": frames,
            "fps": fps,
            "motion_loras": loras(motion or (), "--motion"),
            "input_reference": None if start is None else source_of(start),
        },
        prompt=prompt,
        model=model,
        negative=negative,
        steps=steps,
        eta=eta,
        guidance=guidance,
        size=size,
        seed=seed,
        lora=lora,
        control=control,
        like=like,
        output_format=output_format,
        field=field,
    )
    with screen(as_json) as shown, Service(url, key, timeout) as service:
        if later:
            accepted(service, VIDEOS, as_json, json=body)
        else:
            make_video(service, body, out, shown, as_json)


def make_video(
    service: Service, body: Mapping[str, Any], out: Path, shown: Screen, as_json: bool
) -> None:
    """Asks for a video, follows it, and keeps its file. Whoever interrupts it stops it."""
    prepared(out)
    job_id = service.json("POST", VIDEOS, "id", json=body)["id"]
    try:
        job = ended(service, job_id, shown)
    except KeyboardInterrupt:
        service.json("POST", f"v1/jobs/{job_id}/cancel", "status")
        raise
    keep(service, job, out, shown, as_json)
