"""Courses of what does not come by HTTP: calls by handle."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from configs.app import ServiceArgs
from deployments.contracts.jobs import Caller
from deployments.ingress.answer.failures import failure
from deployments.ingress.request.course import Course, begin
from deployments.request_id import request_id


@contextmanager
def called(method: str, caller: Caller, args: ServiceArgs) -> Iterator[None]:
    """The block as a call of another Ray application, which has a task of its own."""
    course = Course(request_id(), log_prompts=args.log_prompts)
    course.key = caller.name or None
    begin(course)
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        course.tell(method, "cancelled")
        raise
    except Exception as error:
        refusal = failure(error)
        course.fails(refusal.status, refusal.body.error)
        course.tell(method, "refused")
        raise
    course.tell(method, "completed")
