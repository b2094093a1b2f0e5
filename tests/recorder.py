"""A tracer of this process, and what it has recorded."""

from functools import cache
from random import SystemRandom

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator


def recorder() -> InMemorySpanExporter:
    """One that has recorded nothing yet. A process has one tracer, which stays: spans are made
    below one that a test begins."""
    found = _recorder()
    found.clear()
    return found


class _Ids(IdGenerator):
    """The SDK's own draws from `random`, which no thread may while Hypothesis draws."""

    def generate_span_id(self) -> int:
        return SystemRandom().randrange(1, 2**64)

    def generate_trace_id(self) -> int:
        return SystemRandom().randrange(1, 2**128)


@cache
def _recorder() -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(id_generator=_Ids())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter
