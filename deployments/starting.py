"""How a replica starts: it imports what it computes with while its weights are brought."""

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

from configs.needs import Need
from configs.sources import SourceError, fetch, parse

AT_ONCE = 4  # sources, of which those of the hub count as one


@contextmanager
def starting(needs: Iterable[Need]) -> Iterator[None]:
    """Brings weights, several at a time, while what is within imports torch, diffusers and
    transformers. Ends when all are here. Raises `SourceError`.

    No garbage is collected within: what modules are made of stays, and the collector would look at
    it again and again, a seventh of the seconds until a model's replica has its modules.
    """
    lanes = list(_lanes(dict.fromkeys(needs)))
    threads = ThreadPoolExecutor(AT_ONCE, "weights")
    try:
        with _without_collector():
            brought = [threads.submit(_bring, lane) for lane in lanes]
            yield
        for one in as_completed(brought):
            one.result()
    finally:
        # What is wrong with one source is told at once.
        threads.shutdown(wait=False, cancel_futures=True)


def _lanes(needs: Iterable[Need]) -> Iterator[list[Need]]:
    """What is brought one after the other: of the hub all, whose client is one for the process, and
    is closed under the others by whoever cannot connect. (It fetches a source's files at once.)

    Imports the clients here: two threads that import modules which need each other may see half of
    one.
    """
    of_hub: list[Need] = []
    for need in needs:
        try:
            kind = parse(need.source).kind
        except SourceError:
            kind = "local"  # of which is told when it is fetched
        if kind == "hub":
            import huggingface_hub  # noqa: F401

            of_hub.append(need)
            continue
        if kind == "s3":
            import boto3  # noqa: F401
        yield [need]
    yield of_hub


def _bring(needs: Iterable[Need]) -> None:
    for need in needs:
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
