"""`Objects` in another process: those of the `JobStore`, which is asked by its handle."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, cast

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.contracts.errors import StorageUnavailable
from deployments.contracts.refusal import Refusal, accepted
from deployments.jobs.objects import Listed, Stored, Written
from deployments.jobs.place import Place

PATIENCE_S = 30.0  # for one answer: the store is started anew in a few seconds
Answer = TypeVar("Answer")


class RemoteObjects:
    """The objects of a job store. Not to be called on the event loop.

    Args:
        loop: the event loop of this process.
    """

    def __init__(self, store: DeploymentHandle[object], loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop

    def read(self, name: str) -> Stored | None:
        """As `Objects`."""
        return cast(Stored | None, self._ask("read", name))

    def create(self, name: str, content: bytes) -> Written | None:
        """As `Objects`."""
        return cast(Written | None, self._ask("create", name, content))

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        """As `Objects`."""
        return cast(Written | None, self._ask("replace", name, content, tag))

    def delete(self, name: str, tag: str | None = None) -> None:
        """As `Objects`."""
        self._ask("delete", name, tag)

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `Objects`."""
        yield from cast(list[Listed], self._ask("listed", prefix))

    def place(self) -> Place:
        """Where they are. Raises `StorageUnavailable`."""
        return cast(Place, self._ask("place"))

    def _ask(self, method: str, *args: object) -> object:
        """Asked once more if the store dies under the call: each may be made twice."""
        for last in (False, True):
            try:
                return self._in_time(self._call(method, args))
            except (RayError, RayServeException, TimeoutError) as error:
                if last or isinstance(error, TimeoutError):
                    raise StorageUnavailable(
                        f"the job store does not answer ({type(error).__name__})"
                    ) from error
        raise AssertionError

    def _in_time(self, asked: Coroutine[Any, Any, Answer]) -> Answer:
        answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return answer.result(PATIENCE_S)
        except TimeoutError:
            answer.cancel()  # nobody waits for it any more
            raise

    async def _call(self, method: str, args: tuple[object, ...]) -> object:
        response = getattr(self._store, method).remote(*args)
        return accepted(await cast(DeploymentResponse[object | Refusal], response))
