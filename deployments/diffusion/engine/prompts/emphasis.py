"""Emphasis in a prompt, as AUTOMATIC1111 and ComfyUI write it: its parts and their weights.

(word)       1.1 times as strong; ((word)) 1.21 times
[word]       1.1 times weaker
(word:1.3)   1.3 times as strong
\\( \\) \\[ \\]  brackets that are meant
"""

import re
from collections.abc import Iterator

STEP = 1.1
_TOKENS = re.compile(
    r"(?P<escaped>\\[\\()\[\]])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:|\\)"
)
Part = tuple[str, float]


def emphasised(text: str) -> list[Part]:
    """The parts of a text, each with its weight; neighbours of one weight are one part.

    A bracket that nothing closes lasts to the end; one that closes nothing is a part of the text.
    """
    parts: list[Part] = []
    opened: list[tuple[str, int]] = []  # brackets, and where what they hold begins
    for found in _TOKENS.finditer(text):
        bracket = found["open"] or found["close"]
        if found["open"]:
            opened.append((bracket, len(parts)))
        elif found["weight"] and opened and opened[-1][0] == "(":
            _multiply(parts, opened.pop()[1], float(found["weight"]))
        elif found["close"] and opened and opened[-1][0] == ("(" if bracket == ")" else "["):
            _multiply(parts, opened.pop()[1], STEP if bracket == ")" else 1 / STEP)
        else:
            parts.append(((found["escaped"] or "")[1:] or found[0], 1.0))
    for bracket, start in opened:
        _multiply(parts, start, STEP if bracket == "(" else 1 / STEP)
    return list(_merged(parts)) or [("", 1.0)]


def _multiply(parts: list[Part], start: int, factor: float) -> None:
    parts[start:] = [(text, weight * factor) for text, weight in parts[start:]]


def _merged(parts: list[Part]) -> Iterator[Part]:
    text, weight = "", 1.0
    for more, its_weight in parts:
        if text and its_weight != weight:
            yield text, weight
            text = ""
        text, weight = text + more, its_weight
    if text:
        yield text, weight
