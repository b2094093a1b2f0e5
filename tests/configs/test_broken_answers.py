"""A server that breaks off is one that cannot be reached now: whoever asked is told to try again,
never that nothing is there."""

import asyncio
from pathlib import Path

import pytest
from huggingface_hub import constants

from configs.sources import SourceUnavailable, fetch
from tests.fake_hub import fake_hub
from tests.object_store import BUCKET, ObjectStore
from tests.soak import gate
from tests.soak.gate import Gate, Mode

STYLE = bytes(900_000)
CUTS = (1, 40, 150, 300, 400, 600, 900, 2000)  # bytes: within the status, the head, the body
BROKEN: list[tuple[Mode, int]] = [("down", 0), ("lies", 0), *(("cuts", cut) for cut in CUTS)]


@pytest.mark.parametrize(("mode", "cut"), BROKEN)
def test_an_s3_that_breaks_off(
    mode: Mode,
    cut: int,
    object_store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    object_store.client.put_object(Bucket=BUCKET, Key="a.safetensors", Body=STYLE)
    monkeypatch.setattr(gate, "CUT_BYTES", cut)
    monkeypatch.setenv("TCD_CACHE", str(tmp_path))

    async def ask() -> None:
        async with Gate(object_store.port).listening() as s3:
            monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
            s3.change(mode)
            with pytest.raises(SourceUnavailable, match=f"s3://{BUCKET}/a.safetensors"):
                await asyncio.to_thread(fetch, f"s3://{BUCKET}/a.safetensors")
            s3.change("open")
            path = await asyncio.to_thread(fetch, f"s3://{BUCKET}/a.safetensors")
            assert path.read_bytes() == STYLE

    asyncio.run(ask())


@pytest.mark.parametrize(("mode", "cut"), [*BROKEN[:2], *BROKEN[2::2]])  # asked again for 5 s
def test_a_hub_that_breaks_off(
    mode: Mode, cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "CUT_BYTES", cut)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    async def ask(port: int) -> None:
        async with Gate(port).listening() as hub:
            monkeypatch.setattr(constants, "ENDPOINT", hub.url)
            template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            hub.change(mode)
            with pytest.raises(SourceUnavailable, match="some/styles"):
                await asyncio.to_thread(fetch, "some/styles/a.safetensors")
            hub.change("open")
            path = await asyncio.to_thread(fetch, "some/styles/a.safetensors")
            assert path.read_bytes() == STYLE

    with fake_hub({"some/styles": {"a.safetensors": STYLE}}) as hub:
        asyncio.run(ask(_port(hub.url)))


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
