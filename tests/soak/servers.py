"""What the service under soak depends on: S3, a hub, a disk, the clock; each can fail."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import boto3
from moto.server import ThreadedMotoServer

from configs.app import FolderStorage, S3Storage
from configs.keys import fresh_key
from demo.service import ROOT, free_port
from tests.fake_hub import fake_hub
from tests.soak import cluster
from tests.soak.disk import SmallDisk, small_disk
from tests.soak.gate import Gate

StorageKind = Literal["folder", "s3"]
DISK_MB = 16
DISTANT = 30  # style adapters in S3, and as many on the hub
KEYS = ("first", "second")
LIMITS = {"running": 16, "waiting": 64}  # images
REPO = "soak/styles"
STYLE = ROOT / "demo/weights/loras/sd15/ink.safetensors"
PICTURE = ROOT / "docs/images/demo.png"


@dataclass(frozen=True)
class Servers:
    """What the service depends on; S3 and the hub behind gates.

    Attributes:
        keys: its two keys, as their holders say them.
        keys_file, clock, broken: as `cluster.Outside` has them.
    """

    s3: Gate
    hub: Gate
    disk: SmallDisk
    clock: Path
    broken: Path
    keys: tuple[str, ...]
    keys_file: Path

    def outside(self, storage: StorageKind) -> cluster.Outside:
        """As the service knows them. `storage`: where its pictures by URL go."""
        bucket = f"s3://{cluster.BUCKET}"
        return cluster.Outside(
            storage=FolderStorage(kind="folder", path=str(self.disk.folder))
            if storage == "folder"
            else S3Storage(kind="s3", bucket=cluster.BUCKET, endpoint_url=self.s3.url),
            keys=self.keys_file,
            clock=self.clock,
            broken=self.broken,
            s3=self.s3.url,
            hub=self.hub.url,
            s3_styles={f"s3-{i}": f"{bucket}/styles/{i}.safetensors" for i in _distant()},
            hub_styles={f"hub-{i}": f"{REPO}/{i}.safetensors" for i in _distant()},
            s3_pictures=tuple(f"{bucket}/pictures/{i}.png" for i in range(3)),
        )


@asynccontextmanager
async def running_servers(folder: Path) -> AsyncIterator[Servers]:
    """S3, a hub, and a disk."""
    style = STYLE.read_bytes()
    files = {f"{i}.safetensors": style for i in _distant()}
    port, clock = free_port(), folder / "clock"
    clock.write_bytes(bytes(8))
    broken = folder / "broken"
    broken.mkdir()
    keys, entries = zip(*(fresh_key(name) for name in KEYS), strict=True)
    keys_file = folder / "keys.json"
    limited = [entry.model_copy(update=LIMITS).model_dump(mode="json") for entry in entries]
    keys_file.write_text(json.dumps(limited))
    with (
        fake_hub({REPO: files}) as hub,
        _s3(port, style),
        small_disk(folder / "files", DISK_MB) as disk,
    ):
        hub_port = int(hub.url.rpartition(":")[2])
        async with Gate(port).listening() as s3_gate, Gate(hub_port).listening() as hub_gate:
            yield Servers(s3_gate, hub_gate, disk, clock, broken, keys, keys_file)


@contextmanager
def _s3(port: int, style: bytes) -> Iterator[None]:
    """moto's server, with styles and pictures."""
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket=cluster.BUCKET)
        for i in _distant():
            client.put_object(Bucket=cluster.BUCKET, Key=f"styles/{i}.safetensors", Body=style)
        for i in range(3):
            key = f"pictures/{i}.png"
            client.put_object(Bucket=cluster.BUCKET, Key=key, Body=PICTURE.read_bytes())
        yield
    finally:
        server.stop()


def _distant() -> Sequence[int]:
    return range(DISTANT)
