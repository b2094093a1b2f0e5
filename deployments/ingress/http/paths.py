"""Which paths speak the language of AUTOMATIC1111's API; all others speak OpenAI's."""

from starlette.types import Scope

A1111 = ("/sdapi/", "/controlnet/")
PING_PATH = "/internal/ping"  # of A1111, too, but asked without a key


def path_of(scope: Scope) -> str:
    """The path of a request, without the route prefix that the application stands below."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def speaks_a1111(scope: Scope) -> bool:
    """Whether a request's path is one of AUTOMATIC1111's."""
    return path_of(scope).startswith(A1111)
