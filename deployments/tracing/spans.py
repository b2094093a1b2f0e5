"""Spans of a request's walk, as children of Serve's own.

Serve sets the tracer up in each of its processes (`tracing_config`). Nothing is made, and nothing
looked at but one context variable, where it did not, or where the request is not sampled.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context

from opentelemetry import trace
from opentelemetry.context import attach
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Value = str | int | float | bool | Sequence[str]
PREFIX = "tcd."  # of the names of spans, and of attributes
NANO = 10**9
_TRACEPARENT = "traceparent"


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[None]:
    """The block as a span, if the request that it belongs to is traced. An error that leaves it is
    recorded by its class alone: its words may quote a prompt."""
    if not _traced():
        yield
        return
    with _started(name, attributes):
        yield


@contextmanager
def root(name: str, submitter: str, **attributes: Value) -> Iterator[None]:
    """The block as a trace of its own, if tracing is on.

    Args:
        submitter: what `traceparent` said where it was asked for: the trace is linked to that.
    """
    context = TraceContextTextMapPropagator().extract({_TRACEPARENT: submitter})
    asked = trace.get_current_span(context).get_span_context()
    links = [Link(asked)] if asked.is_valid else []
    with _started(name, attributes, links):
        yield


def measured(name: str, start: float, end: float, **attributes: Value) -> None:
    """A span that is over, by its Unix times in seconds."""
    if not _traced():
        return
    made = _tracer().start_span(
        PREFIX + name, attributes=_named(attributes), start_time=round(start * NANO)
    )
    made.end(round(end * NANO))


def note(**attributes: Value) -> None:
    """Says more of the current span."""
    current = trace.get_current_span()
    if current.is_recording():
        current.set_attributes(_named(attributes))


def traceparent() -> str:
    """The current span as the header of W3C Trace Context says it; empty if there is none."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_TRACEPARENT, "")


def trace_alone() -> Context:
    """A context that has of the current one the trace and nothing else."""
    context = Context()
    if _traced():
        current = set_span_in_context(trace.get_current_span())
        context.run(lambda: attach(current))
    return context


def _traced() -> bool:
    """Whether there is a span to stand below, which may have ended before what it began."""
    return trace.get_current_span().get_span_context().trace_flags.sampled


@contextmanager
def _started(
    name: str, attributes: Mapping[str, Value], links: Sequence[Link] = ()
) -> Iterator[None]:
    with _tracer().start_as_current_span(
        PREFIX + name,
        kind=SpanKind.INTERNAL,
        attributes=_named(attributes),
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield
        except BaseException as error:
            made.set_attribute("error.type", type(error).__name__)
            raise


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {PREFIX + name: value for name, value in attributes.items()}


def _tracer() -> trace.Tracer:
    return trace.get_tracer("tcd")
