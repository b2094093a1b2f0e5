"""Brackets in prompts mean what they mean to those who write them elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.diffusion.engine.prompts.emphasis import emphasised

READ: dict[str, list[tuple[str, float]]] = {
    "": [("", 1)],
    "a fox": [("a fox", 1)],
    "a (red) fox": [("a ", 1), ("red", 1.1), (" fox", 1)],
    "a ((red)) fox": [("a ", 1), ("red", 1.21), (" fox", 1)],
    "a [red] fox": [("a ", 1), ("red", 1 / 1.1), (" fox", 1)],
    "a (red:1.3) fox": [("a ", 1), ("red", 1.3), (" fox", 1)],
    "a (red: 1.3 ) fox": [("a ", 1), ("red", 1.3), (" fox", 1)],
    "(a:.5)(b:2)": [("a", 0.5), ("b", 2)],
    "(a:0)": [("a", 0)],
    "(a:-1)": [("a", -1)],
    "(very (dark:1.5) night)": [("very ", 1.1), ("dark", 1.65), (" night", 1.1)],
    "((dark) night:2)": [("dark", 2.2), (" night", 2)],
    "[(dark:1.1)]": [("dark", 1.0)],
    r"a \(red\) fox": [("a (red) fox", 1)],
    r"\[x\] \\ (y)": [(r"[x] \ ", 1), ("y", 1.1)],
    "12:30 o'clock": [("12:30 o'clock", 1)],
    "ratio 1:2)": [("ratio 1:2)", 1)],
    "a smile :)": [("a smile :)", 1)],
    "an (open end": [("an ", 1), ("open end", 1.1)],
    "an [open end": [("an ", 1), ("open end", 1 / 1.1)],
    "closed] early)": [("closed] early)", 1)],
    "(a]": [("a]", 1.1)],
    "()": [("", 1)],
    "(:1.2)": [("", 1)],
}


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    found = emphasised(text)
    assert [part for part, _ in found] == [part for part, _ in READ[text]]
    assert [weight for _, weight in found] == pytest.approx([w for _, w in READ[text]])


def test_long_texts_of_brackets_and_digits() -> None:
    assert emphasised("(a" * 3) == [("a", 1.1), ("a", 1.1 * 1.1), ("a", 1.1 * 1.1 * 1.1)]
    deep = emphasised("(a" * 10_000)
    assert deep[-1][1] == float("inf")
    assert emphasised("(" * 10_000 + "a" + ")" * 10_000)[0][0] == "a"
    digits = "a:" + "1" * 20_000
    assert emphasised(f"({digits})") == [(digits, 1.1)]


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\")))
def test_without_brackets_it_is_the_text(text: str) -> None:
    assert emphasised(text) == [(text, 1.0)]


@given(st.text(alphabet="ab ()[]\\:.1"))
def test_any_text_is_read(text: str) -> None:
    """Only brackets, escapes and weights are left out, and nothing is invented."""
    left = iter(text)
    assert all(letter in left for part, _ in emphasised(text) for letter in part)
