"""Jobs that are handed in from Python."""

from pathlib import Path
from typing import Any

import pytest

from configs.jobs import JobsArgs, WebhookArgs
from deployments.contracts.jobs import ImageRequest
from deployments.ingress.jobs.calling import event_of
from deployments.ingress.jobs.handed import Handed
from tests.deployments.ingress.jobs.test_working import ALICE, ARGS, House, run

HOOKS = WebhookArgs(secret_env="TCD_TEST_WEBHOOKS", allowed_hosts=("hooks.example",))


@pytest.mark.parametrize("public_url", ["https://pictures.example/tcd", None])
def test_whoever_is_told_of_one_can_fetch_its_images(
    tmp_path: Path, public_url: str | None
) -> None:
    """Where the service is said to be; without that nobody knows, and there are paths alone."""

    async def live(house: House) -> None:
        house.replica.go.set()
        house.hire()
        handed = Handed(house.args, house.desk)
        request = ImageRequest("a red ball")
        card = await handed.submit(request, ALICE, None, "mp4", "https://hooks.example/")
        done = await house.until(await house.desk.get(card.id), "completed")
        told: Any = event_of(done, "job.completed")["data"]
        url = told["result"]["data"][0]["url"]
        path = f"/v1/jobs/{card.id}/files/{done.results[0].name}"
        assert url == (public_url or "") + path

    jobs = JobsArgs(**ARGS.jobs.model_dump() | {"webhooks": HOOKS})
    args = ARGS.model_copy(update={"public_url": public_url, "jobs": jobs})
    run(House(tmp_path, args), live)
