"""Emphasis in a prompt, as AUTOMATIC1111 and ComfyUI write it: its parts and their weights.

(word)       1.1 times as strong; ((word)) 1.21 times
[word]       1.1 times weaker
(word:1.3)   1.3 times as strong
\\( \\) \\[ \\]  brackets that are meant
"""

import re
from collections.abc import Iterator, Sequence

STEP = 1.1
# No repetition is tried twice over: texts are strangers'.
_TOKENS = re.compile(
    r"(?P<escaped>\\[\\()\[\]])"
    r"|(?P<open>[(\[])"
    r"|:\s{0,8}(?P<weight>[+-]?(?:\d{1,6}(?:\.\d{0,9})?|\.\d{1,9}))\s{0,8}\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:|\\)"
)
_BRACKETS = {"(": ")", "[": "]"}
Part = tuple[str, float]


def emphasised(text: str) -> list[Part]:
    """The parts of a text, each with its weight; neighbours of one weight are one part.

    A bracket that nothing closes lasts to the end; one that closes nothing is a part of the text.
    """
    tokens = list(_TOKENS.finditer(text))
    factors, closing = _matched(tokens)
    return list(_merged(_weighed(tokens, factors, closing))) or [("", 1.0)]


def _matched(tokens: Sequence[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """By what each opening bracket multiplies, and which tokens close one."""
    factors: dict[int, float] = {}
    closing: set[int] = set()
    opened: list[int] = []
    for place, token in enumerate(tokens):
        if token["open"]:
            opened.append(place)
            factors[place] = STEP if token["open"] == "(" else 1 / STEP
        elif opened and (token["weight"] or token["close"]):
            bracket = tokens[opened[-1]]["open"]
            if _BRACKETS[bracket] == (token["close"] or ")"):
                if token["weight"]:
                    factors[opened[-1]] = float(token["weight"])
                opened.pop()
                closing.add(place)
    return factors, closing


def _weighed(
    tokens: Sequence[re.Match[str]], factors: dict[int, float], closing: set[int]
) -> Iterator[Part]:
    weights = [1.0]  # within each bracket that is open
    for place, token in enumerate(tokens):
        if place in factors:
            weights.append(weights[-1] * factors[place])
        elif place in closing:
            weights.pop()
        else:
            yield (token["escaped"] or "")[1:] or token[0], weights[-1]


def _merged(parts: Iterator[Part]) -> Iterator[Part]:
    texts: list[str] = []
    weight = 1.0
    for text, its_weight in parts:
        if texts and its_weight != weight:
            yield "".join(texts), weight
            texts = []
        texts.append(text)
        weight = its_weight
    if texts:
        yield "".join(texts), weight
