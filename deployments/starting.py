"""How a replica starts: it imports what it computes with while its weights are brought."""

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress

from configs.needs import Need
from configs.sources import SourceError, fetch, parse

AT_ONCE = 4  # sources


@contextmanager
def starting(needs: Iterable[Need]) -> Iterator[None]:
    """Brings weights, several sources at a time, while what is within imports torch, diffusers and
    transformers. Ends when all are here. Raises `SourceError`.

    No garbage is collected within: what modules are made of stays, and the collector would look at
    it again and again, a seventh of the seconds until a model's replica has its modules.
    """
    sources = list(dict.fromkeys(needs))
    _import_clients(sources)
    threads = ThreadPoolExecutor(AT_ONCE, "weights")
    try:
        with _without_collector():
            brought = [threads.submit(_bring, need) for need in sources]
            yield
        for one in as_completed(brought):
            one.result()
    finally:
        # What is wrong with one source is told at once.
        threads.shutdown(wait=False, cancel_futures=True)


def _import_clients(needs: Iterable[Need]) -> None:
    """Here, since two threads that import modules which need each other may see half of one."""
    kinds = set[str]()
    for need in needs:
        with suppress(SourceError):  # of which is told when it is fetched
            kinds.add(parse(need.source).kind)
    if "s3" in kinds:
        import boto3  # noqa: F401
    if "hub" in kinds:
        import huggingface_hub  # noqa: F401


def _bring(need: Need) -> None:
    fetch(need.source, variant=need.variant, layout=need.layout)


@contextmanager
def _without_collector() -> Iterator[None]:
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
