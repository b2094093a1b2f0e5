"""Textual inversions that adapter files bring along: `bundle_emb.WORD.PART`, as kohya-ss and
OneTrainer write them. A part is `emb_params`, `string_to_param.*`, or `clip_l` and `clip_g`."""

from collections.abc import Iterable

_PREFIX = "bundle_emb."


def is_bundled(name: str) -> bool:
    """Whether a tensor is of a textual inversion, and none of the adapter's."""
    return name.startswith(_PREFIX)


def bundled_words(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of the tensors of a file, those of textual inversions: by word, by part."""
    words: dict[str, dict[str, str]] = {}
    for name in filter(is_bundled, names):
        word, _, part = name.removeprefix(_PREFIX).partition(".")
        words.setdefault(word, {})[part] = name
    return words
