"""The peers' benchmark: what is asked."""

import json
from collections import Counter
from itertools import islice

import pytest

from benchmarks.peers import traffic
from benchmarks.peers.servers.wire import Body, LoraBody, grouped
from benchmarks.peers.traffic import BLOCK, CHURNING, GUIDED, KINDS, STEPS, Kind, Request


def first(kind: Kind, seed: int = 0, count: int = 4 * BLOCK) -> list[Request]:
    return list(islice(traffic.requests(kind, seed), count))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_says_what_is_asked(kind: Kind) -> None:
    assert first(kind) == first(kind)
    assert first(kind) != first(kind, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_comes_twice(kind: Kind) -> None:
    assert len({(request.prompt, request.seed) for request in first(kind)}) == 4 * BLOCK


def test_uniform_requests_share_a_call() -> None:
    rows = [Body.model_validate_json(request.body("m")) for request in first("uniform")]
    assert [len(group) for group in grouped(rows).values()] == [4 * BLOCK]


def test_mixed_requests_come_in_fixed_shares() -> None:
    asked = first("mixed")
    each = 4 * BLOCK // len(STEPS)
    assert Counter(request.steps for request in asked) == Counter(list(STEPS) * each)
    assert sum(request.guidance == GUIDED for request in asked) == 4 * BLOCK // 3
    assert sum(bool(request.loras) for request in asked) > 4 * BLOCK / 2
    assert {request.negative_prompt for request in asked if not request.guidance} == {None}


def test_churn_asks_for_every_adapter() -> None:
    assert {request.loras[0][0] for request in first("churn")} == set(CHURNING)


def test_a_body_says_all_of_a_request() -> None:
    body = json.loads(Request("a fox", 3, 6, GUIDED, (("ink", 0.5),)).body("m"))
    assert body == {
        "model": "m",
        "prompt": "a fox",
        "negative_prompt": "blurry",
        "seed": 3,
        "num_inference_steps": 6,
        "eta": 0.3,
        "guidance_scale": GUIDED,
        "size": "128x128",
        "loras": [{"name": "ink", "weight": 0.5}],
    }


def row(**changes: object) -> Body:
    return Body.model_validate({"model": "m", "prompt": "a", "size": "8x8", "seed": 0, **changes})


def test_rows_are_grouped_by_what_a_call_has_once() -> None:
    ink, neon = LoraBody(name="ink"), LoraBody(name="neon", weight=0.5)
    rows = [
        row(loras=[ink, neon]),
        row(),
        row(guidance_scale=0.5, seed=5, prompt="b", negative_prompt="c"),
        row(loras=[neon, ink]),
        row(guidance_scale=2.0),
        row(loras=[ink]),
        row(size="16x8"),
        row(eta=0.1),
        row(num_inference_steps=5),
    ]
    assert list(grouped(rows).values()) == [[0, 3], [1, 2], [4], [5], [6], [7], [8]]
