"""Nested fields of a form in the flattened spelling of OpenAI's clients: `loras[][name]`."""

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
    """What flattened values say together, in the order in which they came.

    An entry of a list is a new one where the one before has the key already.
    Raises `ValueError` where they contradict each other.
    """
    whole: object = None
    for path, text in values:
        whole = _put(whole, path, text)
    return whole


def _put(into: object, path: Path, text: str) -> object:
    if not path:
        if into is not None:
            raise ValueError("a value is given twice")
        return text
    key, rest = path[0], path[1:]
    if key:
        if into is not None and not isinstance(into, dict):
            raise ValueError(f"{key!r} is named beside entries of a list")
        fields = into or {}
        fields[key] = _put(fields.get(key), rest, text)
        return fields
    if into is not None and not isinstance(into, list):
        raise ValueError("entries of a list are named beside fields")
    entries = into or []
    if rest and entries and not _has(entries[-1], rest):
        entries[-1] = _put(entries[-1], rest, text)
    else:
        entries.append(_put(None, rest, text))
    return entries


def _has(entry: object, path: Path) -> bool:
    """Whether an entry has a value there already."""
    for key in path:
        if not key:  # a list in it takes further ones
            return False
        if not isinstance(entry, dict) or key not in entry:
            return not isinstance(entry, dict)
        entry = entry[key]
    return True
