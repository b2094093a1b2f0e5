"""The running service, as commands speak to it."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_sse import EventSource

REFUSED, UNREACHABLE = 1, 3  # exit codes; 2 is of wrong arguments
CONNECT_S = 10.0
FULL = 429
LONGEST_PAUSE_S = 10.0


class Failed(Exception):
    """What a command ends with: a line for people, and its exit code."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.code = code


class Service:
    """Raises `Failed` for whatever is not answered with success. A service that is full is asked
    again for as long as the request has.

    Args:
        url: where it is, below which its routes are.
        key: of the API, if it asks for one.
        timeout_s: for which an answer is waited for.
        wait: is told each time before it is asked again, with the seconds until then.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout_s: float = 600.0,
        wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limits = httpx.Timeout(timeout_s, connect=CONNECT_S)
        self._url, self._timeout_s, self._wait = url, timeout_s, wait
        self._web = httpx.Client(base_url=f"{url.rstrip('/')}/", headers=headers, timeout=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._web.close()

    def json(self, method: str, path: str, **how: Any) -> Any:
        """An answer's body. `how`: as httpx takes it."""
        return self._answer(method, path, **how).json()

    def content(self, path: str, **how: Any) -> bytes:
        """The file that a path has."""
        return self._answer("GET", path, **how).content

    def posted(self, path: str, **how: Any) -> bytes:
        """The file that a form is answered with."""
        return self._answer("POST", path, **how).content

    def events(self, method: str, path: str, **how: Any) -> Iterator[dict[str, Any]]:
        """Server-sent events, as they come; leaving the iterator closes the connection, which
        cancels what it waits for."""
        answer = self._answer(method, path, stream=True, **how)
        try:
            for event in EventSource(answer).iter_sse():
                data: dict[str, Any] = json.loads(event.data)
                if "error" in data and "type" not in data:
                    raise Failed(told(data["error"]))
                yield data
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            answer.close()

    def _answer(
        self, method: str, path: str, *, stream: bool = False, **how: Any
    ) -> httpx.Response:
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                request = self._web.build_request(method, path.lstrip("/"), **how)
                answer = self._web.send(request, stream=stream)
                if answer.is_success:
                    return answer
                answer.read()
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            pause_s = min(float(answer.headers.get("retry-after-ms", 1000)) / 1e3, LONGEST_PAUSE_S)
            if answer.status_code != FULL or time.monotonic() + pause_s > until:
                raise Failed(
                    _refusal(answer), UNREACHABLE if answer.status_code == 503 else REFUSED
                )
            self._wait(pause_s)
            time.sleep(pause_s)

    def _unreachable(self, error: httpx.HTTPError) -> Failed:
        what = str(error) or type(error).__name__
        return Failed(f"{self._url} does not answer: {what}", UNREACHABLE)


def told(error: Mapping[str, Any]) -> str:
    """An error of the service in a line."""
    param = error.get("param")
    message = str(error.get("message"))
    return message if param is None or param in message else f"{param}: {message}"


def _refusal(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code}: {told(answer.json()['error'])}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}, which is no answer of this service"
