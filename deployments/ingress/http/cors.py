"""Which pages of other origins may call the service: those that the configuration names."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from deployments.ingress.answer.failures import http_failure
from deployments.ingress.http.failures import answer

METHODS = ("GET", "POST", "DELETE")
# What a page may read of an answer, beside its body.
EXPOSED = (
    *("x-request-id", "x-should-retry", "retry-after", "retry-after-ms", "x-map-id"),
    "openai-poll-after-ms",
)


class Cors(CORSMiddleware):
    """Starlette's, whose refusals have OpenAI's shape. Keys are sent as a header, so no cookies
    are allowed, and `*` allows every origin."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(app, origins, METHODS, allow_headers=["*"], expose_headers=EXPOSED)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to OPTIONS."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        return answer(http_failure(response.status_code, bytes(response.body).decode()))
