"""How a replica imports what it computes with: torch, diffusers, transformers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """No garbage is collected within. What modules are made of stays, and the collector would look
    at it again and again: a seventh of the seconds until a model's replica has its modules."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
