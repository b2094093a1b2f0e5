"""The job store of the running service, by its handle."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve

from deployments.jobs.near import NearObjects
from deployments.jobs.remote import RemoteObjects
from tests.serving import Served


@contextmanager
def turning() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_what_is_written_by_handle_and_in_the_folder_is_the_same(served: Served) -> None:
    with turning() as loop:
        remote = RemoteObjects(serve.get_deployment_handle("JobStore", "tcd"), loop)
        assert remote.place().is_seen  # this is the store's machine
        near = NearObjects(remote)
        near.read("test/a")
        assert near.asks is not None
        near.asks.join()
        first = remote.create("test/a", b"1")
        assert first is not None
        assert near.create("test/a", b"other") is None
        second = near.replace("test/a", b"2", first.tag)
        assert second is not None
        assert remote.replace("test/a", b"3", first.tag) is None
        assert remote.read("test/a") == near.read("test/a") == (b"2", second.tag)
        (listed,) = remote.listed("test/")
        assert [listed] == list(near.listed("test/"))
        assert (listed.name, listed.version) == ("test/a", second.version)
        remote.delete("test/a", second.tag)
        assert near.read("test/a") is None
