"""One request: sent, perhaps left, and entered in the ledger with its ending."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import httpx

from tests.soak.judging import Answer, Judge, anything, events
from tests.soak.ledger import Ending, Ledger, Outcome

# Refusals that any request may meet: too late, the queue is full, not now (with a reason).
REFUSALS = frozenset({408, 429, 503})
# The same in a stream that has begun with 200.
REFUSING_EVENTS = ("deadline_exceeded", "queue_full", "not_ready", "engine_fault")
Point = Literal["body", "answer", "events", "end"]
POINTS: tuple[Point, ...] = ("body", "answer", "events", "end")
USUAL_S = 0.5  # of a kind that has not been answered yet
IDLE_S = 2.0  # a connection is kept: less than the server does, or both would race
SENT_BEFORE_LEAVING_S = 0.05


@dataclass(frozen=True)
class Leaving:
    """The client goes away: while it sends the body, before anything comes, amid the events of a
    stream, or just before the end. `moment`: a number in 0..1 that says where exactly."""

    point: Point
    moment: float


@dataclass(frozen=True, eq=False)
class Ask:
    """A request, and what may come of it.

    Attributes:
        judge: what is wrong with a success.
        refusals: statuses that are no fault of the service; of bad requests the one that is
            right, and nothing else.
        wants_refusal: a success would be wrong.
    """

    kind: str
    request: httpx.Request
    judge: Judge = anything
    refusals: frozenset[int] = REFUSALS
    wants_refusal: bool = False


class Asker:
    """Sends requests over connections of its own.

    Args:
        patience_s: longer than the service may take for any request.
    """

    def __init__(self, url: str, ledger: Ledger, patience_s: float) -> None:
        self.url = url
        self.ledger = ledger
        self._usual: dict[str, float] = {}
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(patience_s, connect=patience_s),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=IDLE_S),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def ask(self, ask: Ask, leaving: Leaving | None = None) -> Answer | None:
        """The answer, if one came that is right; it is in the ledger in any case."""
        entry = self.ledger.asked(ask.kind)
        try:
            if leaving is None:
                ending, answer = await self._answered(ask)
            else:
                ending, answer = await self._left(ask, leaving)
        except asyncio.CancelledError:
            self.ledger.ended(entry, Ending("cancelled", "the run ended"))
            raise
        self.ledger.ended(entry, ending)
        if ending.outcome == "answered":
            known = self._usual.get(ask.kind, entry.seconds)
            self._usual[ask.kind] = 0.8 * known + 0.2 * entry.seconds
            return answer
        return None

    async def _answered(self, ask: Ask) -> tuple[Ending, Answer | None]:
        try:
            response = await self._client.send(ask.request)
        except httpx.HTTPError as error:
            return Ending("failed", _broken(error), repr(error)), None
        answer = Answer(response.status_code, response.headers, response.content)
        return await asyncio.to_thread(judged, ask, answer), answer

    async def _left(self, ask: Ask, leaving: Leaving) -> tuple[Ending, Answer | None]:
        """Leaves at the point meant, unless the answer is there before."""
        usual = self._usual.get(ask.kind, USUAL_S)
        after = {
            "body": SENT_BEFORE_LEAVING_S,
            "answer": usual * leaving.moment,
            "events": usual * 20,
            "end": usual * (0.85 + 0.2 * leaving.moment),
        }[leaving.point]
        if leaving.point == "body":
            sending = self._answered(Ask(ask.kind, _half_sent(ask.request, leaving.moment)))
        elif leaving.point == "events":
            sending = self._until_event(ask, 1 + int(leaving.moment * 4))
        else:
            sending = self._answered(ask)
        try:
            async with asyncio.timeout(after):
                ending, answer = await sending
        except TimeoutError:
            return Ending("cancelled", f"left: {leaving.point}"), None
        return ending, answer

    async def _until_event(self, ask: Ask, count: int) -> tuple[Ending, Answer | None]:
        """Goes away once so many events have come."""
        body = b""
        try:
            response = await self._client.send(ask.request, stream=True)
            try:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if response.status_code == 200 and body.count(b"\n\n") >= count:
                        return Ending("cancelled", "left: events"), None
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            return Ending("failed", _broken(error), repr(error)), None
        answer = Answer(response.status_code, response.headers, body)
        return await asyncio.to_thread(judged, ask, answer), answer


def some_leaving(draw: random.Random, streams: bool) -> Leaving:
    """A point at random."""
    points = POINTS if streams else tuple(point for point in POINTS if point != "events")
    return Leaving(draw.choice(points), draw.random())


def judged(ask: Ask, answer: Answer) -> Ending:
    """What an answer that came to its end is."""
    request_id = answer.headers.get("x-request-id", "")
    if answer.status < 400:
        return _success(ask, answer, request_id)
    text = answer.body[:300].decode(errors="replace")
    try:
        error = json.loads(answer.body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return Ending("failed", f"plain-text {answer.status}", text, request_id)
    shape = f"{answer.status} {code}"
    if answer.status in ask.refusals and message:
        return Ending("refused", shape, message, request_id)
    return Ending("failed", shape, message, request_id)


def _success(ask: Ask, answer: Answer, request_id: str) -> Ending:
    if ask.wants_refusal:
        return Ending("failed", "accepted", "a bad request was accepted", request_id)
    try:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            for name, data in events(answer.body):
                if name == "error":
                    return _error_event(data, request_id)
            if b".completed" not in answer.body:
                return Ending("failed", "cut stream", answer.body[-200:].decode(), request_id)
        wrong = ask.judge(answer)
    except (ValueError, KeyError) as error:
        wrong = f"it cannot be read: {error!r}"
    if wrong is None:
        return Ending("answered", request_id=request_id)
    return Ending("failed", "wrong answer", wrong, request_id)


def _error_event(data: dict[str, object], request_id: str) -> Ending:
    """A stream that ended in an error: a refusal if its type says that it may be asked again."""
    error = data.get("error")
    code = str(error.get("code")) if isinstance(error, dict) else "none"
    outcome: Outcome = "refused" if code in REFUSING_EVENTS else "failed"
    return Ending(outcome, f"event {code}", str(error)[:300], request_id)


def _broken(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return "cut"
    return "no connection"


def _half_sent(request: httpx.Request, moment: float) -> httpx.Request:
    """The request, of whose body only a part is ever sent."""
    body = request.read()
    part = body[: int(len(body) * moment)]

    async def sent() -> AsyncIterator[bytes]:
        yield part
        await asyncio.Event().wait()

    headers = {"content-length": str(len(body)), "content-type": request.headers["content-type"]}
    return httpx.Request(request.method, request.url, headers=headers, content=sent())
