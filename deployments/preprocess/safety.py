"""The Serve shell around the safety checker."""

import asyncio
from collections.abc import Sequence

from ray import serve

from configs.app import SafetyArgs
from configs.needs import Need
from configs.sources import fetch
from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import Pixels
from deployments.contracts.refusal import refusing
from deployments.contracts.verdict import Verdict
from deployments.preprocess.work import MAX_BATCH, Work, made, one_fails_alone
from deployments.starting import starting


class Safety:
    """A safety checker, batched."""

    def __init__(self, args: SafetyArgs) -> None:
        with starting([Need(args.checkpoint)]):
            from preprocessors.safety import SafetyChecker

        self._model: SafetyChecker = SafetyChecker(fetch(args.checkpoint), args.device, args.dtype)
        self._work = Work()

    @refusing
    async def look(self, image: Pixels) -> Verdict:
        """What is to be said of a picture. Refused with `GenerationFailed` if that cannot be."""
        return made(await self._batch(image))

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def _batch(self, images: list[Pixels]) -> list[Verdict | GenerationFailed]:
        with self._work.of(len(images)):
            return self._work.counted(await asyncio.to_thread(one_fails_alone, self._look, images))

    def _look(self, images: Sequence[Pixels]) -> list[Verdict]:
        return [
            Verdict(tuple(map(float, seen.concepts)), tuple(map(float, seen.special)))
            for seen in self._model.margins(images)
        ]
