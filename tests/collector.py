"""A collector of spans: it takes OTLP over HTTP, and says what came."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.http_server import serving

Value = str | int | float | bool | list[str]


@dataclass(frozen=True)
class Seen:
    """A span as it came; `start` and `end` in seconds of Unix time."""

    trace: str
    id: str
    parent: str
    name: str
    start: float
    end: float
    said: dict[str, Value]
    links: tuple[str, ...]  # ids of spans

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Collector:
    """What came so far."""

    url: str = ""
    spans: list[Seen] = field(default_factory=list)

    def until(self, enough: Callable[[list[Seen]], bool], within_s: float = 30) -> list[Seen]:
        """The spans, once they are enough."""
        end = time.monotonic() + within_s
        while not enough(spans := list(self.spans)):
            assert time.monotonic() < end, sorted((one.trace[:6], one.name) for one in spans)
            time.sleep(0.1)
        return spans


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector, at `Collector.url`."""
    collector = Collector()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            assert self.path == "/v1/traces"
            with lock:
                collector.spans += _read(data)
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as url:
        collector.url = url
        yield collector


def _read(data: bytes) -> Iterator[Seen]:
    request = ExportTraceServiceRequest.FromString(data)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    {one.key: _value(one.value) for one in span.attributes},
                    tuple(link.span_id.hex() for link in span.links),
                )


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [one.string_value for one in value.array_value.values]
    found: Value = getattr(value, kind or "string_value")
    return found
