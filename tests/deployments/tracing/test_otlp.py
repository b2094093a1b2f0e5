"""Spans on their way to a collector: one that takes them, and one that never answers."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from deployments.tracing import otlp
from deployments.tracing.otlp import exporter
from tests.collector import collecting
from tests.deployments.diffusion.engine.harness import eventually


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A collector that takes connections and never answers. Whoever exports to it has given up when
    this is over: his thread would export the spans of other tests."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        yield
    for thread in threading.enumerate():
        if thread.name.startswith("OtelBatch"):
            thread.join(30)
            assert not thread.is_alive()


def provider() -> TracerProvider:
    """As Serve sets it up."""
    made = TracerProvider(shutdown_on_exit=False)
    for processor in exporter():
        made.add_span_processor(processor)
    return made


def test_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        made = provider()
        tracer = made.get_tracer("test")
        with tracer.start_as_current_span("one", attributes={"deployment": "Ingress"}):
            pass
        for said in (
            {"deployment": "Directory", "call_method": "watch"},
            {"deployment": "Diffusion", "call_method": "figures"},
        ):
            with tracer.start_as_current_span("a poll", attributes=said):
                pass
        made.shutdown()
        (one,) = collector.spans
        assert one.name == "one"
        assert one.said == {"deployment": "Ingress"}


def test_a_collector_that_never_answers_costs_no_request(
    silent: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50")
    monkeypatch.setattr(otlp, "GOODBYE_S", 0.5)
    made = provider()
    tracer = made.get_tracer("test")
    (processor,) = made._active_span_processor._span_processors
    assert isinstance(processor, otlp.WithoutPolls)
    queue = processor._batch_processor._queue
    for _ in range(50):
        with tracer.start_as_current_span("one"):
            pass
    assert eventually(lambda: not queue), "a batch is on its way"
    began = time.perf_counter()
    for _ in range(5000):
        with tracer.start_as_current_span("one"):
            pass
    assert time.perf_counter() - began < 5, "whoever ends a span waits for nobody"
    assert len(queue) == 100, "the rest is dropped"
    began = time.perf_counter()
    made.shutdown()
    assert time.perf_counter() - began < 2, "the process can end"


def test_without_the_package_it_says_what_is_lacking() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"
        "import deployments.tracing.otlp"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tracing by OTLP needs opentelemetry-exporter-otlp-proto")
    assert "ray-serve-tcd[tracing]" in last
