"""`POST /v1/tokenize`: how a prompt is read, by the running service."""

from collections.abc import Mapping

import httpx
import pytest

from tests.serving import Served

LONG = "a red ball in the snow, " * 30


def tokenize(served: Served, **body: object) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/tokenize", json=body, timeout=60)


@pytest.mark.parametrize("prompt", ["", "a red ball", LONG])
def test_it_counts_what_usage_counts(served: Served, prompt: str) -> None:
    told = tokenize(served, model="sdxl", prompt=prompt).json()
    made = served.openai().images.generate(
        model="sdxl", prompt=prompt, size="64x64", extra_body={"num_inference_steps": 1}
    )
    assert made.usage is not None
    assert made.usage.input_tokens_details is not None
    assert told["count"] == made.usage.input_tokens_details.text_tokens
    assert told["model"] == "sdxl"
    assert len(told["windows"]) == max(1, -(-told["count"] // 75))
    # A window may end within a word.
    assert "".join("".join(told["windows"]).split()) == "".join(prompt.split())


def test_the_models_are_named_as_everywhere(served: Served) -> None:
    assert tokenize(served, model="gpt-image-1", prompt="a").json()["model"] == "sd15"
    assert tokenize(served, prompt="a").json()["model"] == "sd15"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": "a" * 5000}, 400, "prompt"),
        ({"prompt": "a " * 2000 + "," * 900}, 400, "prompt"),
        ({"prompt": "a", "prompt_syntax": "loud"}, 400, "prompt_syntax"),
        ({"prompt": "a", "model": "none-such"}, 404, "model"),
        ({"prompt": "a", "words": 3}, 400, "words"),
    ],
)
def test_what_is_refused(
    served: Served, body: Mapping[str, object], status: int, param: str
) -> None:
    answer = tokenize(served, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
