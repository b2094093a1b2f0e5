"""Spans to a collector, by OTLP over HTTP: the `exporter_import_path` of Serve's `tracing_config`.

    tracing_config:
      enabled: true
      exporter_import_path: deployments.tracing.otlp:exporter
      sampling_ratio: 1.0

Where to, and with which headers, timeout and queue, the usual variables of OpenTelemetry say
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_BSP_MAX_QUEUE_SIZE`, ...), in the environment of the nodes.
"""

from threading import Thread

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
except ImportError as error:
    raise ImportError(
        "tracing by OTLP needs opentelemetry-exporter-otlp-proto-http: "
        "pip install 'ray-serve-tcd[tracing]'"
    ) from error


def exporter() -> list[SpanProcessor]:
    """Called by Serve in each of its processes."""
    return [WithoutPolls(OTLPSpanExporter())]


# Processes ask these all the time, on nobody's behalf: each look would be a trace.
POLLED = ("Directory", "JobStore")
POLLS = ("describe", "figures", "nudge")
GOODBYE_S = 5.0  # for the collector to take what is left when a process ends


class WithoutPolls(BatchSpanProcessor):
    """Hands spans on in batches, on a thread of its own; what it has no room for is dropped. Calls
    that belong to no request are left out."""

    def on_end(self, span: ReadableSpan) -> None:
        """A span has ended."""
        said = span.attributes or {}
        if said.get("deployment") not in POLLED and said.get("call_method") not in POLLS:
            super().on_end(span)

    def shutdown(self) -> None:
        """Called when the process ends, which a collector that hangs does not hold up for long."""
        ending = Thread(target=super().shutdown, daemon=True)
        ending.start()
        ending.join(GOODBYE_S)
