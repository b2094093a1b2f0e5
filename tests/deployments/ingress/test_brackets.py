"""Nested fields as OpenAI's clients flatten them into forms."""

from contextlib import suppress

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._qs import Querystring

from deployments.ingress.http.brackets import MAX_DEPTH, joined, split_name

NESTED: dict[object, object] = {
    "loras": [{"name": "ink", "weight": "0.5"}, {"name": "x", "weight": "-1"}],
    "ip_adapter": {"image": ["a", "b"], "scale": "0.4"},
    "controls": [
        {"type": "depth", "image": "a", "end": "1"},
        {"type": "canny", "image": "b", "end": "0.5"},
    ],
}


def flattened(fields: object) -> list[tuple[str, str]]:
    """Name by name."""
    return Querystring(array_format="brackets").stringify_items(fields)  # type: ignore[arg-type]


def sent(fields: dict[object, object]) -> list[tuple[str, str]]:
    """As the official client sends them: all values of one name together."""

    form = openai.OpenAI(api_key="none")._serialize_multipartform(fields)
    return [
        (name, str(text))
        for name, value in form.items()
        for text in (value if isinstance(value, list) else [value])
    ]


def read(pairs: list[tuple[str, str]]) -> dict[str, object]:
    values: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for name, text in pairs:
        found = split_name(name)
        assert found is not None, name
        values.setdefault(found[0], []).append((found[1], text))
    return {name: joined(given) for name, given in values.items()}


def test_what_the_official_client_flattens_is_read() -> None:
    pairs = flattened(NESTED)
    assert ("loras[][name]", "ink") in pairs
    assert read(pairs) == NESTED
    assert sent(NESTED) != pairs
    assert read(sent(NESTED)) == NESTED


def test_a_list_within_an_entry_wants_json() -> None:
    control = {"type": "canny", "image": ["a", "b"]}
    with pytest.raises(ValueError, match=r"lists within entries of a list .* send JSON text"):
        read(sent({"controls": [control]}))


@pytest.mark.parametrize(
    "name", ["loras", "loras[", "[]", "loras[]name", "loras[[]]", "a" + "[b]" * (MAX_DEPTH + 1)]
)
def test_other_names_are_none(name: str) -> None:
    assert split_name(name) is None


@pytest.mark.parametrize(
    "names",
    [
        ["loras[name]", "loras[name]"],
        ["loras[name]", "loras[]"],
        ["loras[]", "loras[name]"],
        ["loras[a]", "loras[a][b]"],
        ["loras[][name]", "loras[][name]", "loras[][weight]"],
        ["loras[][a][]"],
    ],
)
def test_contradictions(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"twice|cannot be told"):
        read([(name, "x") for name in names])


@given(st.lists(st.text("ab[]", max_size=8), max_size=6))
def test_any_names(names: list[str]) -> None:
    """They are read, or refused with ValueError."""
    values = [(found[1], "x") for name in names if (found := split_name(name)) is not None]
    with suppress(ValueError):
        joined(values)
