"""Jobs that commands wait for, and the files that come of them."""

import json
from pathlib import Path
from typing import Any

import typer

from tcd.saved import saved
from tcd.screen import Screen, note
from tcd.service import Failed, Service, told


def accepted(service: Service, path: str, as_json: bool, **how: Any) -> None:
    """Asks for a job, and says its id."""
    job = service.json("POST", path, "id", **how)
    typer.echo(json.dumps(job) if as_json else job["id"])
    if not as_json:
        note(f"tcd jobs wait {job['id']}")


def ended(service: Service, job_id: str, shown: Screen) -> dict[str, Any]:
    """A job when it has ended. Raises `Failed` if it did so without what was asked for."""
    job: dict[str, Any] = {}
    for event in service.events("GET", f"v1/jobs/{job_id}/events"):
        if event["type"] == "job.partial_image":
            continue
        job = event["job"]
        waits = job.get("queue_position")
        said = job["status"] if waits is None else f"waits for {waits} before it"
        shown.advance(0, job["progress"] / 100, said)
    if job.get("error"):
        raise Failed(f"{job_id} failed: {told(job['error'])}")
    if job.get("status") != "completed":
        raise Failed(f"{job_id} is {job.get('status', 'unknown')}")
    return job


def keep(service: Service, job: dict[str, Any], out: Path, shown: Screen, as_json: bool) -> None:
    """Keeps what came of a job. Raises `Failed` if some of it could not be made."""
    if job["kind"] == "video":
        video = job["video"]
        images, size, kind = [video], video["size"], video["output_format"]
    else:
        result = job["result"]
        images, size, kind = result["data"], result["size"], result["output_format"]
    faults: list[str] = []
    for index, image in enumerate(images):
        if image.get("error"):
            faults.append(f"image {index}: {told(image['error'])}")
            continue
        data = service.content(f"v1/jobs/{job['id']}/content", params={"index": index})
        path = saved(out, str(image["seed"]), kind, data)
        shown.made(path, {"seed": image["seed"], "size": size, "id": job["id"]}, as_json)
    if faults:
        raise Failed("\n".join(faults))
