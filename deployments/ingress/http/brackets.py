"""Nested fields of a form in the flattened spelling of OpenAI's clients: `loras[][name]`.

They send all values of one name together, in order (`openai._base_client`): the first
`loras[][name]` and the first `loras[][weight]` belong to the first entry, whatever stands between.
"""

import re
from collections.abc import Sequence

_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])+)")
MAX_DEPTH = 4
Path = tuple[str, ...]  # of keys; "" stands for the place of an entry of a list


def split_name(name: str) -> tuple[str, Path] | None:
    """("loras", ("", "name")) of "loras[][name]"; `None` for a name of another form."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    keys = tuple(found[2][1:-1].split("]["))
    return (found[1], keys) if len(keys) <= MAX_DEPTH else None


def joined(values: Sequence[tuple[Path, str]]) -> object:
    """What flattened values say together. Raises `ValueError` where that cannot be told."""
    if len(values) == 1 and not values[0][0]:
        return values[0][1]
    heads = {path[0] if path else None for path, _ in values}
    if heads == {""}:
        return _entries([(path[1:], text) for path, text in values])
    if "" in heads or None in heads:
        raise ValueError("a value is given twice, or entries of a list stand beside fields")
    return {
        str(head): joined([(path[1:], text) for path, text in values if path[0] == head])
        for head in dict.fromkeys(path[0] for path, _ in values)
    }


def _entries(values: Sequence[tuple[Path, str]]) -> list[object]:
    """Those of a list: of each path, the first value belongs to the first of them, and so on."""
    columns: dict[Path, list[str]] = {}
    for path, text in values:
        columns.setdefault(path, []).append(text)
    if any("" in path for path in columns):
        raise ValueError(
            "lists within entries of a list cannot be told from further entries; send JSON text"
        )
    counts = {len(column) for column in columns.values()}
    if len(counts) > 1:
        raise ValueError(
            "which values belong together cannot be told; give every entry the same fields, or "
            "send JSON text"
        )
    return [
        joined([(path, column[index]) for path, column in columns.items()])
        for index in range(counts.pop())
    ]
