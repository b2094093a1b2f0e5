"""A tracer of this process, and what it has recorded."""

from functools import cache

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def recorder() -> InMemorySpanExporter:
    """One that has recorded nothing yet. A process has one tracer, which stays: spans are made
    below one that a test begins."""
    found = _recorder()
    found.clear()
    return found


@cache
def _recorder() -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter
