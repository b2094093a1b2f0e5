"""A second front to the running models: it counts what Ray hands to it, and its canny fails."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray._private.serialization import SerializationContext
from ray.serve import Application

from configs.app import ServiceArgs
from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapSpec
from deployments.ingress.deployment import Ingress
from deployments.preprocess.canny import Canny
from graphs.service import graph

Objects = list[tuple[Any, object, object]]  # content, metadata, transport
RAISES, DIES = (1, 2, 3), (3, 2, 1)  # the first pixel of pictures with which canny fails once


class Counted(Ingress):
    """Counts the bytes of all objects that Ray deserialises in its process: arguments of calls
    to it, results of its own calls, and whatever it gets from the object store."""

    async def __init__(self, *arguments: object) -> None:  # type: ignore[misc]
        await super().__init__(*arguments)  # type: ignore[misc,arg-type]
        self._read = 0
        self._lock = threading.Lock()
        plain = SerializationContext.deserialize_objects

        def counted(context: SerializationContext, objects: Objects, *more: Any) -> Any:
            with self._lock:
                self._read += sum(memoryview(o[0]).nbytes for o in objects if o[0] is not None)
            return plain(context, objects, *more)

        SerializationContext.deserialize_objects = counted  # type: ignore[method-assign,assignment]

    async def bytes_read(self) -> int:
        """Since the start."""
        return self._read


class Moody(Canny):
    """Fails once with each of two kinds of pictures. `marks`: a folder to remember it in."""

    def __init__(self, marks: Path) -> None:
        super().__init__()
        self._marks = marks

    async def detect(self, image: Pixels, spec: MapSpec) -> Pixels:
        """As `Canny` does, the second time."""
        first = tuple(np.asarray(image)[0, 0].tolist())
        mark = self._marks / spec.map_id
        if first in (RAISES, DIES) and not mark.exists():
            mark.touch()
            if first == DIES:
                os._exit(1)
            raise RuntimeError("canny has a bad day")
        return await super().detect(image, spec)


def counted(args: ServiceArgs, marks: Path) -> Application:
    """The application; it has no other preprocessor."""
    small = {"num_cpus": 0.1}
    canny = serve.deployment(name="Canny", ray_actor_options=small)(Moody).bind(marks)
    front = serve.deployment(name="Ingress", max_ongoing_requests=1000, ray_actor_options=small)
    return graph(args, front(Counted), canny)
