"""The id of the request that is being answered, as Serve carries it from process to process: it
stands in the answer (`x-request-id`) and in the log lines of every replica on the way."""

from ray.serve.context import _get_serve_request_context, _set_request_context


def request_id() -> str:
    """Empty where no request is being answered."""
    context = _get_serve_request_context()
    return "" if context is None else context.request_id


def begin(request_id: str) -> None:
    """What this task does from now on, in other replicas too, has this id."""
    _set_request_context(request_id=request_id)
