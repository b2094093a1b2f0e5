"""moto's S3 server on this machine, spoken to over HTTP as any other S3."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from demo.service import free_port

BUCKET = "pictures"
# Any key is accepted; some must be there.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@cache
def _session() -> Any:
    """It reads boto3's descriptions of S3, which takes long, once."""
    return boto3.session.Session()


@dataclass
class ObjectStore:
    """A server with one bucket."""

    port: int
    server: ThreadedMotoServer

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> Any:
        """A client that asks once."""
        config = Config(retries={"total_max_attempts": 1})
        return _session().client("s3", endpoint_url=self.url, config=config)

    def keys(self) -> list[str]:
        """What the bucket holds."""
        listed = self.client.list_objects_v2(Bucket=BUCKET)
        return [item["Key"] for item in listed.get("Contents", [])]

    def start(self) -> None:
        """Listens, with what was stored before."""
        self.server.start()

    def stop(self) -> None:
        """The outage: nothing listens any more."""
        self.server.stop()


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An empty server, to which the environment points this process's boto3."""
    port = free_port()
    store = ObjectStore(port, ThreadedMotoServer("127.0.0.1", port, verbose=False))
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": store.url}.items():
        monkeypatch.setenv(name, value)
    store.start()
    # Servers of one process share what they store.
    httpx.post(f"{store.url}/moto-api/reset", timeout=60)
    store.client.create_bucket(Bucket=BUCKET)
    try:
        yield store
    finally:
        store.stop()
