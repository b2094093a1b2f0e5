"""A call that many ask for at once, and that is made once for all of them."""

import threading
from collections.abc import Callable

from deployments.contracts.errors import StorageUnavailable


class Shared:
    """Who waits for a call that began after he came shares it, and how it failed: a storage that
    hangs is asked by one at a time."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._calling = threading.Lock()
        self._calls = 0
        self._failed: Exception | None = None

    def run(self) -> None:
        """Returns when the call has been made since."""
        before = self._calls
        with self._calling:
            if self._calls == before:
                self._make()
            elif self._failed is not None:
                raise StorageUnavailable(str(self._failed)) from self._failed

    def _make(self) -> None:
        self._calls += 1
        try:
            self._call()
        except Exception as error:
            self._failed = error
            raise
        self._failed = None
