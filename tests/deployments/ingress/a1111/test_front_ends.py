"""What front ends send, as recorded from their sources (`front_ends/`), is answered with all that
they read of it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs.app import FolderStorage
from tests.deployments.ingress.a1111.standins import client
from tests.deployments.ingress.keyed import entry

RECORDED = Path(__file__).with_name("front_ends")
PICTURES = ("images.", "b64_json")


def recordings() -> list[Any]:
    named = [(path.stem, json.loads(path.read_text())) for path in sorted(RECORDED.glob("*.json"))]
    return [
        pytest.param(call, recorded.get("keyless", False), id=f"{name}-{index}")
        for name, recorded in named
        for index, call in enumerate(recorded["calls"])
    ]


def found(answer: Any, place: str) -> Any:
    """What stands at `data.0.url` and the like."""
    for part in place.split("."):
        answer = answer[int(part) if part.isdigit() else part]
    return answer


def asked(call: Any, keyless: bool, tmp_path: Path) -> Any:
    keys = () if keyless else (entry("alice"),)
    storage = FolderStorage(kind="folder", path=str(tmp_path))
    form = call.get("form")
    files = [(n, (f, base64.b64decode(d), kind)) for n, f, d, kind in call.get("files", ())]
    sent: dict[str, Any] = {"json": call.get("json")} if form is None else {"data": form}
    return client(None, *keys, storage=storage).request(
        call["method"], call["path"], headers=call["headers"], files=files or None, **sent
    )


@pytest.mark.parametrize(("call", "keyless"), recordings())
def test_it_works_unchanged(call: Any, keyless: bool, tmp_path: Path) -> None:
    answer = asked(call, keyless, tmp_path)
    assert answer.status_code == call.get("status", 200), answer.text
    said = answer.json()
    for place in call["reads"]:
        value = found(said, place)
        if place.startswith(PICTURES[0]) or place.endswith(PICTURES[1]):
            Image.open(io.BytesIO(base64.b64decode(value, validate=True))).load()
    if "info" in call["reads"]:
        info = json.loads(said["info"])
        assert all(found(info, place) is not None for place in call.get("info", ["seed"]))


def test_open_webui_changes_the_model_only_if_it_is_another() -> None:
    """It reads all options, and sends them back with one changed."""
    front = client()
    options = front.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == "sd15"
    same = front.post("/sdapi/v1/options", json=options)
    assert same.status_code == 200
    assert set(same.json()["ignored"]) == set(options) - {"sd_model_checkpoint"}
    other = front.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": "sdxl"})
    assert other.status_code == 400
    assert "override_settings.sd_model_checkpoint" in other.json()["detail"]
    assert front.get("/sdapi/v1/options").json() == options


def test_an_image_of_dall_e_is_where_its_url_says(tmp_path: Path) -> None:
    call = json.loads((RECORDED / "librechat_dalle3.json").read_text())["calls"][0]
    answer = asked(call, False, tmp_path)
    (file,) = tmp_path.iterdir()
    assert found(answer.json(), "data.0.url").endswith(file.name)


def test_whether_anything_listens_is_told_without_a_key() -> None:
    keyed = client(None, entry("alice"))
    answer = keyed.get("/internal/ping")
    assert (answer.status_code, answer.json()) == (200, {})
    assert keyed.post("/sdapi/v1/refresh-loras").status_code == 401
