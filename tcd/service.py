"""The running service, as commands speak to it."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, cast

import httpx
from httpx_sse import EventSource, SSEError

from tcd.screen import note

REFUSED, WRONG, UNREACHABLE = 1, 2, 3  # exit codes; 2: the arguments
LONGEST_S = 604_800  # a week
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
    again for as long as the request has, and people are told each time.

    Args:
        url: where it is, below which its routes are; or as clients of OpenAI have it, with `/v1`.
        key: of the API, if it asks for one.
        timeout_s: from now on, for all that is asked.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 600.0) -> None:
        if not 0 < timeout_s <= LONGEST_S:
            raise Failed(f"--timeout {timeout_s}: seconds, above 0, at most {LONGEST_S}", WRONG)
        if not url.lower().startswith(("http://", "https://")):
            raise Failed(f"--url {url}: it begins with http:// or https://", WRONG)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise Failed("the API key has letters, or line breaks, that no key has", WRONG)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limits = httpx.Timeout(timeout_s, connect=CONNECT_S)
        self._url, self._timeout_s = url, timeout_s
        self._until = time.monotonic() + timeout_s
        try:
            self._web = httpx.Client(
                base_url=f"{re.sub('(?<=[^/])/v1$', '', url.rstrip('/'))}/",
                headers=headers,
                timeout=limits,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Failed(f"--url {url}: {error}", WRONG) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._web.close()

    def json(self, method: str, path: str, wants: str, **how: Any) -> dict[str, Any]:
        """An answer's body. `wants`: a field that it has. `how`: as httpx takes it."""
        answer = self._answer(method, path, **how)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or wants not in found:
            raise Failed(f"{answer.url}: what answers is not this service", UNREACHABLE)
        return found

    def content(self, path: str, **how: Any) -> bytes:
        """The file that a path has."""
        return self._answer("GET", path, **how).content

    def posted(self, path: str, **how: Any) -> bytes:
        """The file that a form is answered with."""
        return self._answer("POST", path, **how).content

    def events(self, method: str, path: str, **how: Any) -> Iterator[dict[str, Any]]:
        """Server-sent events, as they come, until the time is over; leaving the iterator closes the
        connection, which cancels what it waits for."""
        answer = self._answer(method, path, stream=True, **how)
        timed = cast(httpx.Response, _Timed(answer, self._until))
        try:
            for event in EventSource(timed).iter_sse():
                data: dict[str, Any] = json.loads(event.data)
                if "error" in data and "type" not in data:
                    raise Failed(told(data["error"]))
                yield data
        except TimeoutError:
            raise Failed(f"not done within {self._timeout_s:g} s (--timeout)") from None
        except (httpx.HTTPError, SSEError, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            answer.close()

    def _answer(
        self, method: str, path: str, *, stream: bool = False, **how: Any
    ) -> httpx.Response:
        try:
            request = self._web.build_request(method, path.lstrip("/"), **how)
        except ValueError as error:
            raise Failed(f"this cannot be sent: {error}", WRONG) from None
        while True:
            try:
                answer = self._web.send(request, stream=stream)
                if answer.is_success:
                    return answer
                answer.read()
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            pause_s = _pause_s(answer)
            if answer.status_code != FULL or time.monotonic() + pause_s > self._until:
                raise Failed(
                    _refusal(answer), UNREACHABLE if answer.status_code == 503 else REFUSED
                )
            note(f"the service is full: asked again in {pause_s:.1f} s")
            time.sleep(pause_s)

    def _unreachable(self, error: Exception) -> Failed:
        what = str(error) or type(error).__name__
        return Failed(f"{self._url} does not answer: {what}", UNREACHABLE)


class _Timed:
    """A response whose text comes until a moment of the monotonic clock; then `TimeoutError`."""

    def __init__(self, answer: httpx.Response, until: float) -> None:
        self.headers = answer.headers
        self._answer = answer
        self._until = until

    def iter_text(self) -> Iterator[str]:
        for text in self._answer.iter_text():
            if time.monotonic() > self._until:
                raise TimeoutError
            yield text


def _pause_s(answer: httpx.Response) -> float:
    try:
        pause_s = float(answer.headers.get("retry-after-ms", 1000)) / 1e3
    except ValueError:
        return 1.0
    return min(max(pause_s, 0.1), LONGEST_PAUSE_S)


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
