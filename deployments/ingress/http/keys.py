"""Whose key a request carries, and the route that shows what was done with it."""

import base64
from typing import cast

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.types import Scope

from configs.keys import KeyEntry
from deployments.contracts.jobs import Caller
from deployments.contracts.usage import KeyJobs, KeyUsagesBody
from deployments.ingress.http.paths import speaks_a1111
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.keys.quota import NO_KEY, Quota

STATE = "tcd_key"  # in a request's state


def noted_key(scope: Scope, key: KeyEntry) -> None:
    """Keeps a request's key for whatever handles or logs it."""
    scope["state"] = {**scope.get("state", {}), STATE: key}


def key_of(scope: Scope) -> KeyEntry | None:
    """The key that a request carries; `None` if it carries none, or none was asked for."""
    return cast(KeyEntry | None, scope.get("state", {}).get(STATE))


def presented_key(scope: Scope) -> str | None:
    """The key that a request shows: as a bearer's, or, on A1111's paths, as the password of
    whatever user."""
    scheme, _, text = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return text.strip()
    if scheme.lower() == "basic" and speaks_a1111(scope):
        try:
            pair = base64.b64decode(text.strip(), validate=True).decode("latin-1")
        except ValueError:
            return None
        return pair.partition(":")[2]
    return None


def caller_of(request: Request) -> Caller:
    """For whom a request is done."""
    key = key_of(request.scope)
    return Caller() if key is None else Caller(key.name, key.weight)


def owner_of(request: Request) -> str | None:
    """Whose videos a request may see; `None`: all."""
    key = key_of(request.scope)
    return None if key is None or key.admin else key.name


def may_see(request: Request, model: str) -> bool:
    """Whether a request's key allows a model."""
    key = key_of(request.scope)
    return key is None or key.may_ask(model)


def key_routes(quota: Quota, desk: Desk) -> APIRouter:
    """The route of usage."""
    router = APIRouter()

    @router.get("/v1/usage", response_model=KeyUsagesBody)
    async def usage(request: Request) -> KeyUsagesBody:
        """What was done with the caller's key since the start, what is under way, and its limits;
        of every key, for one that is `admin`."""
        key = key_of(request.scope)
        kept = await desk.by_owner()
        if key is not None and key.admin:
            keys = quota.usage()
        else:
            keys = [quota.usage_of(NO_KEY if key is None else key.name)]
        if kept is not None:
            for one in keys:
                one.jobs = kept.get(one.key, KeyJobs())
        return KeyUsagesBody(data=keys)

    return router
