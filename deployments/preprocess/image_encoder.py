"""The Serve shell around the image encoder."""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
from ray import serve

from configs.app import PreprocessorArgs
from configs.needs import Need
from configs.sources import fetch
from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import Embeds, Pixels
from deployments.contracts.maps import MapSpec
from deployments.preprocess.work import MAX_BATCH, Work, made, one_fails_alone
from deployments.starting import starting


class ImageEncoder:
    """CLIP vision embeddings for IP-Adapters, batched."""

    def __init__(self, args: PreprocessorArgs) -> None:
        with starting([Need(args.checkpoint)]):
            from preprocessors.image_encoder import ImageEncoder as Encoder

        self._model: Encoder = Encoder(fetch(args.checkpoint), args.device, args.dtype)
        self._work = Work()

    async def encode(self, image: Pixels, spec: MapSpec) -> Embeds:
        """(2, ...) float32: the embedding of the picture, and that of no picture."""
        embedding = made(await (self._hidden(image) if spec.hidden else self._projected(image)))
        return np.stack([embedding, self._model.unconditional(hidden=spec.hidden)])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def _projected(self, images: list[Pixels]) -> list[Embeds | GenerationFailed]:
        return await self._encode(images, hidden=False)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def _hidden(self, images: list[Pixels]) -> list[Embeds | GenerationFailed]:
        return await self._encode(images, hidden=True)

    async def _encode(
        self, images: Sequence[Pixels], *, hidden: bool
    ) -> list[Embeds | GenerationFailed]:
        work = partial(self._model.encode, hidden=hidden)
        with self._work.of(len(images)):
            return self._work.counted(await asyncio.to_thread(one_fails_alone, work, images))
