"""What a server says no to lasts, unless it says that it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from huggingface_hub import constants

from configs.sources import SourceError, SourceUnavailable, fetch
from tests.http_server import serving
from tests.object_store import CREDENTIALS


@contextmanager
def answering(status: int, body: bytes = b"", **headers: str) -> Iterator[str]:
    """The URL of a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # as http.server has it

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url:
        yield url


@pytest.mark.parametrize("source", ["some/styles/a.safetensors", "some/styles"])
@pytest.mark.parametrize(
    ("status", "headers", "lasts"),
    [
        (401, {"x_error_code": "GatedRepo"}, True),
        (403, {"x_error_code": "GatedRepo"}, True),
        (403, {"x_error_message": "Access to this resource is disabled."}, True),
        (403, {}, True),
        (404, {}, True),  # as mirrors and proxies say it
        (404, {"x_error_code": "RepoNotFound"}, True),
        (404, {"x_error_code": "RevisionNotFound"}, True),
        (410, {}, True),
        (451, {}, True),
        (429, {}, False),
        (500, {}, False),
        (503, {}, False),
    ],
)
def test_of_the_hub(
    source: str,
    status: int,
    headers: dict[str, str],
    lasts: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with answering(status, b'{"error": "no"}', **headers) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(SourceError, match="some/styles") as caught:
            fetch(source)
    assert isinstance(caught.value, SourceUnavailable) is not lasts


@pytest.mark.parametrize(
    ("status", "code", "lasts"),
    [
        (403, "AccessDenied", True),
        (403, "InvalidAccessKeyId", True),
        (404, "NoSuchBucket", True),
        (400, "ExpiredToken", False),
        (400, "RequestTimeout", False),
        (403, "RequestTimeTooSkewed", False),
        (409, "OperationAborted", False),
        (429, "TooManyRequests", False),
        (503, "SlowDown", False),
        (500, "InternalError", False),
    ],
)
def test_of_s3(status: int, code: str, lasts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    with answering(status, body, content_type="application/xml") as url:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SourceError, match="s3://bucket/a") as caught:
            fetch("s3://bucket/a.safetensors")
    assert isinstance(caught.value, SourceUnavailable) is not lasts


@pytest.mark.parametrize(
    "setting", [{"AWS_PROFILE": "nobody"}, {"AWS_ENDPOINT_URL": "no-scheme:9000"}]
)
def test_a_client_of_s3_that_is_set_up_wrongly(
    setting: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CREDENTIALS, **setting}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match="s3://bucket/a") as caught:
        fetch("s3://bucket/a.safetensors")
    assert not isinstance(caught.value, SourceUnavailable)


def test_a_listing_without_tags_or_a_name_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every store gives what S3 gives."""
    monkeypatch.setenv("TCD_CACHE", str(tmp_path))
    body = (
        b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a.safetensors</Key>"
        b"<Size>0</Size></Contents></ListBucketResult>"
    )
    with answering(200, body, content_type="application/xml") as url:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SourceUnavailable, match="did not come whole"):
            fetch("s3://bucket/a.safetensors")  # the object is the listing: not of its size
