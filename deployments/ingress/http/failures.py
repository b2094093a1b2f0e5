"""Errors as responses."""

from fastapi.responses import JSONResponse
from starlette.types import Scope

from deployments.contracts.errors import InvalidRequest
from deployments.ingress.answer.failures import Failure
from deployments.ingress.http.paths import speaks_a1111


def answer(refusal: Failure) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(refusal.body.model_dump(), refusal.status, refusal.headers)


def answer_to(scope: Scope, refusal: Failure) -> JSONResponse:
    """An error as the response to a request. On A1111's paths it says its message again as FastAPI
    does, and how else keys are read there."""
    if not speaks_a1111(scope):
        return answer(refusal)
    content = {**refusal.body.model_dump(), "detail": refusal.body.error.message}
    basic = {"www-authenticate": 'Bearer, Basic realm="tcd"'} if refusal.status == 401 else {}
    return JSONResponse(content, refusal.status, refusal.headers | basic)


def named_as_sent(error: InvalidRequest, within: str, sent: str) -> InvalidRequest:
    """An error of a picture that is named `within` here, and `sent` to who sent it."""
    if error.param != within:
        return error
    return InvalidRequest(str(error).replace(within, sent, 1), sent)
