"""Bodies that are deep, long or odd in the way of JSON: refused at once, in the usual shape."""

import httpx
import pytest

from tests.serving import Served

DEPTH = 100_000
LIMIT_S = 5.0
BODIES = {
    "arrays": b"[" * DEPTH,
    "closed arrays": b"[" * DEPTH + b"]" * DEPTH,
    "objects": b'{"a":' * DEPTH,
    "closed objects": b'{"a":' * DEPTH + b"1" + b"}" * DEPTH,
    "a deep prompt": b'{"prompt":' + b"[" * DEPTH + b"]" * DEPTH + b"}",
    "deep adapters": b'{"prompt":"a","loras":' + b"[" * DEPTH + b"]" * DEPTH + b"}",
    "a deep control": b'{"prompt":"a","controls":[' + b'{"image":' * DEPTH + b"1" + b"}" * DEPTH,
    "a deep unknown field": b'{"prompt":"a","x":' + b"[" * DEPTH + b"]" * DEPTH + b"}",
    "a long number": b'{"prompt":"a","seed":' + b"9" * DEPTH + b"}",
    "a long fraction": b'{"prompt":"a","eta":0.' + b"9" * DEPTH + b"x}",
    "a huge exponent": b'{"prompt":"a","eta":1e' + b"9" * 1000 + b"}",
    "many keys": b"{" + b",".join(b'"k%d":1' % i for i in range(DEPTH)) + b"}",
    "the same key": b"{" + b'"prompt":1,' * DEPTH + b'"prompt":1}',
    "many adapters": b'{"prompt":"a","loras":[' + b'{"x":1},' * DEPTH + b"1]}",
    "not a number": b'{"prompt":"a","eta":NaN}',
    "infinity": b'{"prompt":"a","guidance_scale":-Infinity}',
    "a lone surrogate": b'{"prompt":"\\ud800"}',
    "no utf-8": b'{"prompt":"\xff\xfe"}',
    "utf-16": '{"prompt":7}'.encode("utf-16"),
    "a null byte": b'{"prompt":7}\x00',
    "nothing": b"",
}


@pytest.mark.parametrize("route", ["images/generations", "videos"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_refused_at_once(served: Served, route: str, body: bytes) -> None:
    answer = httpx.post(
        f"{served.url}/v1/{route}",
        content=body,
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == 400, answer.text[:300]
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.elapsed.total_seconds() < LIMIT_S
    assert httpx.get(f"{served.url}/healthz", timeout=5).status_code == 200
