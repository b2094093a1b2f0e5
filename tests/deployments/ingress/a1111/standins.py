"""The web application over models that are none, with keys or without."""

from typing import Any

from starlette.testclient import TestClient

from configs.app import KeysArgs, ServiceArgs
from configs.keys import KeyEntry
from deployments.contracts.cards import CardLimits, ModelCard
from deployments.ingress.discovery.outlook import Outlook
from deployments.ingress.http.app import make_app
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.service import Service
from tests.deployments.ingress.fakes import knowing
from tests.deployments.ingress.keyed import Keys, NoMaps, Replica
from tests.deployments.ingress.keyed import card as plain_card

ALIASES = {"gpt-image-1": "sdxl", "dall-e-3": "sdxl"}


def card(name: str = "sd15", **more: Any) -> ModelCard:
    """Of a model with everything, in any usual size."""
    limits = CardLimits(**{**plain_card(name).limits.model_dump(), "max_side": 2048})
    known: dict[str, Any] = {
        "family": name,
        "limits": limits.model_copy(update={"max_pixels": 2048 * 2048}),
        "loras": {"ink": f"somewhere/{name}-ink.safetensors"},
        "controls": {"canny": "somewhere/canny", "depth": "somewhere/depth"},
        "image_encoder": "sd15",
        "embeddings": {"easynegative": "somewhere/easynegative.safetensors"},
    }
    return plain_card(name).model_copy(update={**known, **more})


def client(replica: Replica | None = None, *keys: KeyEntry, **args: Any) -> TestClient:
    """Of the application over a replica that is done with everything at once."""
    if replica is None:
        replica = Replica()
        replica.go.set()
    handle: Any = replica
    named = KeysArgs(env="TCD_TEST_KEYS") if keys else None  # not read: `keys` are what it holds
    known = ServiceArgs(default_model="sd15", aliases=ALIASES, keys=named, **args)
    models = [Outlook(n, "RUNNING", "ready", card(n), handle) for n in ("sd15", "sdxl")]
    quota = Quota(Keys(*keys))
    desk: Any = None
    service = Service(known, knowing(*models), NoMaps(known), quota)
    return TestClient(make_app(service, desk, known, quota), base_url="http://service.test")


def refusal(answer: Any, status: int) -> dict[str, str]:
    """The error of an answer, which must be the same in both languages."""
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert set(said) == {"error", "detail"}
    assert said["detail"] == said["error"]["message"]
    error: dict[str, str] = said["error"]
    return error
