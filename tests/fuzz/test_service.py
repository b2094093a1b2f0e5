"""`make fuzz`: a service of its own, asked everything that its description allows and much that it
does not, over HTTP. EXAMPLES says how many requests, SEED which."""

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from demo.service import demo_config, running
from tests.fuzz.conformance import (
    AS_DESCRIBED,
    AnyCase,
    no_failure_without_a_reason,
    operations,
)
from tests.fuzz.urls import hostile
from tests.preprocessors.test_image_file_fuzz import mutated

EXAMPLES = int(os.environ.get("EXAMPLES", "3000"))
SEED = int(os.environ.get("SEED", "0"))
CHECKS = [*AS_DESCRIBED, no_failure_without_a_reason]
# How many of all requests each kind gets; a route without parameters is soon asked everything.
SHARES = {"POST /v1/images/generations": 5, "POST /v1/images/edits": 5, "POST /v1/videos": 3}
PICTURES = 6
CHEAP = {"n": 1, "num_inference_steps": 2, "num_frames": 2, "seconds": 0.25, "timeout_s": 20}

pytestmark = [pytest.mark.deep, pytest.mark.timeout(4 * 3600)]


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    os.environ["RAY_OVERRIDE_RESOURCES"] = '{"CPU": 8}'
    with running(demo_config(["sd15"]), "fuzz") as service:
        yield service.url


def many(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many examples of a property, drawn by `SEED`."""
    chosen = settings(
        max_examples=examples,
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: seed(SEED)(chosen(test))


def cheap(case: AnyCase) -> AnyCase:
    """The same request for less work: what it costs is no question here."""
    if isinstance(case.body, dict):
        for name, most in CHEAP.items():
            value = case.body.get(name)
            if isinstance(value, int | float) and value > most:
                case.body[name] = most
    return case


@pytest.mark.timeout(4 * 3600)
def test_every_answer_is_described(service: str) -> None:
    schema = schemathesis.openapi.from_url(f"{service}/openapi.json")
    known = list(operations(schema))
    share = EXAMPLES / (sum(SHARES.get(name, 1) for name, _ in known) + PICTURES)
    statuses: Counter[int] = Counter()
    for name, requests in known:

        @many(int(share * SHARES.get(name, 1)))
        @given(case=requests)
        def ask(case: AnyCase) -> None:
            answer = cheap(case).call(timeout=60)
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        ask()
        print(f"{name}: {dict(statuses)} so far", flush=True)
    assert {200, 400, 404} <= set(statuses)


def test_mutated_pictures(service: str) -> None:
    routes = ("images/edits", "images/variations", "preprocess/canny")
    statuses: Counter[int] = Counter()
    with httpx.Client(timeout=60) as client:

        @many(EXAMPLES // 4)
        @given(route=st.sampled_from(routes), image=mutated(), mask=st.none() | mutated())
        def ask(route: str, image: bytes, mask: bytes | None) -> None:
            files = {"image": image}
            if route == "images/edits" and mask is not None:
                files["mask"] = mask
            fields = {} if route == "preprocess/canny" else FIELDS
            answer = client.post(f"{service}/v1/{route}", data=fields, files=files)
            statuses[answer.status_code] += 1
            assert answer.status_code in (200, 400), answer.text

        ask()
    print(f"mutated pictures: {dict(statuses)}", flush=True)
    assert set(statuses) == {200, 400}


def test_hostile_urls(service: str) -> None:
    with httpx.Client(timeout=60) as client:
        for url in hostile("pictures.example"):
            body = {"prompt": "a", "size": "64x64", "controls": [{"type": "canny", "image": url}]}
            answer = client.post(f"{service}/v1/images/generations", json=body)
            assert answer.status_code in (400, 404), f"{url}: {answer.text}"


def test_it_is_as_well_as_before(service: str) -> None:
    """Nothing is left of all that, and a picture is made."""
    body = {"prompt": "a big red ball, at night", "size": "64x64", "num_inference_steps": 4}
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"{service}/v1/images/generations", json=body)
        assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(b"\x89PNG")
        text = client.get(f"{service}/metrics").text
    assert 'tcd_engine_running_rows{model="sd15"' in text


FIELDS = {"prompt": "a red ball", "size": "64x64", "num_inference_steps": "1"}
