"""`tcd jobs`: what was asked for with `--later`, and videos."""

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tcd import options
from tcd.following import ended, keep
from tcd.saved import prepared
from tcd.screen import printed, screen
from tcd.service import Failed, Service


def checked_id(job_id: str) -> str:
    """What stands in a path."""
    if not job_id.replace("_", "").replace("-", "").isalnum():
        raise typer.BadParameter(f"{job_id!r} is no id of a job")
    return job_id


jobs = typer.Typer(help="Jobs of the service: videos, and what was asked for with --later.")
JobId = Annotated[str, typer.Argument(metavar="ID", callback=checked_id, help="Of a job.")]


@jobs.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """The newest jobs."""
    with Service(url, key) as service:
        found = service.json("GET", "v1/jobs", "data", params={"limit": limit})["data"]
    table = Table("id", "status", "%", "model", "prompt", box=None, header_style="bold")
    for job in found:
        if as_json:
            typer.echo(json.dumps(job))
        waits = job["queue_position"]
        status = job["status"] if waits is None else f"{job['status']}, {waits} before it"
        cells = (job["id"], status, str(job["progress"]), job["model"], job["prompt"][:60])
        table.add_row(*map(Text, cells))
    if not as_json:
        printed(table)


@jobs.command()
def show(
    job_id: JobId,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """How a job stands, as JSON."""
    with Service(url, key) as service:
        typer.echo(json.dumps(service.json("GET", f"v1/jobs/{job_id}", "status"), indent=2))


@jobs.command()
def wait(
    job_id: JobId,
    out: options.Out = options.HERE,
    timeout: options.Timeout = options.TIMEOUT_S,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Follows a job to its end, and keeps what came of it."""
    prepared(out)
    with screen(as_json) as shown, Service(url, key, timeout) as service:
        keep(service, ended(service, job_id, shown), out, shown, as_json)


@jobs.command()
def cancel(
    job_id: JobId,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Stops a job at its next step."""
    with Service(url, key) as service:
        job = service.json("POST", f"v1/jobs/{job_id}/cancel", "status")
        if job["status"] != "cancelled":
            raise Failed(f"{job_id} is {job['status']}: there was nothing to stop")
        typer.echo(f"{job_id} is cancelled")


@jobs.command()
def delete(
    job_id: JobId,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Stops a job, and has it forgotten with all that came of it."""
    with Service(url, key) as service:
        service.json("DELETE", f"v1/jobs/{job_id}", "deleted")
        typer.echo(f"{job_id} is deleted")
