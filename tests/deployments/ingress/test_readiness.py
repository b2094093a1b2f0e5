"""`GET /readyz`: of the ingress, of models, and of models that nobody has deployed."""

import asyncio
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from configs.app import ServiceArgs
from deployments.contracts.cards import Availability
from deployments.ingress.http.app import make_app
from deployments.ingress.request.assembly import Assembler
from deployments.ingress.request.catalogue import Catalogue
from deployments.ingress.request.service import Service
from tests.deployments.ingress.fakes import following, outlook

MODELS: dict[str, Availability] = {
    "one": "ready",
    "dozer": "asleep",
    "dumb": "silent",
    "fresh": "starting",
    "gone": "failed",
}


def client(models: dict[str, Availability]) -> TestClient:
    async def known() -> Catalogue:
        async with following(*(outlook(*model) for model in models.items())) as (catalogue, _):
            return catalogue

    args = ServiceArgs(default_model="one")
    service = Service(args, asyncio.run(known()), cast(Assembler, None))
    desk: Any = None
    return TestClient(make_app(service, desk, args))


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("?models=one", 200),
        ("?models=one,dozer", 200),
        ("?models=one,dumb", 503),
        ("?models=fresh", 503),
        ("?models=gone", 503),
    ],
)
def test_ready(query: str, status: int) -> None:
    answer = client(MODELS).get("/readyz" + query)
    assert answer.status_code == status
    assert answer.json() == {
        "status": "ready" if status == 200 else "not ready",
        "models": dict.fromkeys(MODELS, "RUNNING"),
        "availability": MODELS,
    }


def test_models_that_are_not_deployed_are_named() -> None:
    answer = client(MODELS).get("/readyz?models=one,nobody,nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "no such model: nobody, nothing"


def test_nothing_is_known_yet() -> None:
    answer = client({}).get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "models": {}, "availability": {}}


def test_one_model_that_is_down_takes_no_other_with_it() -> None:
    assert client({"one": "silent", "two": "ready"}).get("/readyz").status_code == 200
    assert client({"one": "failed", "two": "ready"}).get("/readyz").status_code == 200
