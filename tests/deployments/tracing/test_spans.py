"""Spans as a tracer of the SDK records them; nothing without one that records."""

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.tracing.spans import measured, note, root, span, trace_alone, traceparent
from tests.recorder import recorder


@pytest.fixture
def made() -> InMemorySpanExporter:
    return recorder()


def by_name(made: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {one.name: one for one in made.get_finished_spans()}


def test_spans_stand_below_the_request_and_in_each_other(made: InMemorySpanExporter) -> None:
    with trace.get_tracer("serve").start_as_current_span("request") as request:
        with span("prepare", model="sd15"):
            measured("fetch", 10.0, 10.5, pictures=2)
        note(outcome="completed")
    spans = by_name(made)
    assert set(spans) == {"request", "tcd.prepare", "tcd.fetch"}
    prepare, fetch = spans["tcd.prepare"], spans["tcd.fetch"]
    assert prepare.parent == request.get_span_context()
    assert fetch.parent == prepare.context
    assert dict(prepare.attributes or {}) == {"tcd.model": "sd15"}
    assert (fetch.start_time, fetch.end_time) == (10 * 10**9, 105 * 10**8)
    assert dict(fetch.attributes or {}) == {"tcd.pictures": 2}
    assert dict(spans["request"].attributes or {}) == {"tcd.outcome": "completed"}


def test_nothing_is_made_of_what_is_not_traced(made: InMemorySpanExporter) -> None:
    with span("prepare"):
        measured("fetch", 10.0, 10.5)
        note(outcome="completed")
        assert traceparent() == ""
    assert made.get_finished_spans() == ()


def test_an_error_is_named_and_not_quoted(made: InMemorySpanExporter) -> None:
    with (
        trace.get_tracer("serve").start_as_current_span("request", record_exception=False),
        pytest.raises(ValueError, match="secret"),
        span("prepare"),
    ):
        raise ValueError("a secret prompt")
    (prepare,) = (one for one in made.get_finished_spans() if one.name == "tcd.prepare")
    assert dict(prepare.attributes or {}) == {"error.type": "ValueError"}
    assert prepare.events == ()
    assert "secret" not in prepare.to_json()


def test_a_root_is_linked_to_whoever_asked(made: InMemorySpanExporter) -> None:
    with trace.get_tracer("serve").start_as_current_span("request") as request:
        asked = traceparent()
    with root("job", asked, job="image_1"), span("prepare"):
        pass
    with root("job", "no such thing", job="image_2"):
        pass
    first, second = (one for one in made.get_finished_spans() if one.name == "tcd.job")
    assert first.parent is second.parent is None
    (link,) = first.links
    assert link.context.span_id == request.get_span_context().span_id
    assert first.context.trace_id != request.get_span_context().trace_id
    assert second.links == ()
    assert by_name(made)["tcd.prepare"].parent == first.context


def test_a_task_that_belongs_to_nobody_has_the_trace_alone(made: InMemorySpanExporter) -> None:
    async def later() -> None:
        with span("later"):
            pass

    async def live() -> None:
        with trace.get_tracer("serve").start_as_current_span("request"):
            task = asyncio.create_task(later(), context=trace_alone())
        await task

    asyncio.run(live())
    spans = by_name(made)
    assert spans["tcd.later"].parent == spans["request"].context
