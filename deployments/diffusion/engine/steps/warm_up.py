"""Calls made before requests come, for what is compiled, captured or tuned at first use."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch

from configs.app import WarmSize
from deployments.device import is_of_device, is_out_of_memory
from deployments.diffusion.engine.models.components import Components
from deployments.diffusion.engine.policy.batch import Advanced, Batch
from deployments.diffusion.engine.policy.spec import Control, ImagePrompt, RowSpec, Source
from deployments.diffusion.engine.policy.trajectory import Trajectory
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from deployments.diffusion.engine.steps.compiled import buckets_up_to
from deployments.diffusion.engine.steps.preparation import Order, Preparation
from deployments.diffusion.engine.steps.runner import Runner

NAME = "warm-up"  # of its job, and of the adapter that changes nothing
STATES = 257  # that a CLIP vision encoder has of a picture
Tried = TypeVar("Tried")
log = logging.getLogger("tcd.engine")


class WarmUp:
    """Draws the model's `warm_sizes`: one step each of one row and of several.

    Of the first size also with what changes how blocks are compiled: adapters, pictures to
    resemble, ControlNets, prompts of different lengths. Guidance changes nothing: a twin is a row.
    What fails is said in the log, and a request that asks for it will be told; a device that is
    broken is raised.
    """

    def __init__(self, components: Components, preparation: Preparation, runner: Runner) -> None:
        self._parts = components
        self._preparation = preparation
        self._runner = runner

    def run(self) -> None:
        """To be called before anyone else uses the models."""
        first = True
        for size in self._parts.warm_sizes:
            started = perf_counter()
            plain = self._plain(size)
            graphs = self._runner.graphs
            if graphs is not None:
                graphs.learning = True
                # The largest first: the others find room in its memory.
                for rows in reversed(buckets_up_to(size.rows)):
                    self._tried(self._step, [plain] * rows)
                graphs.learning = False
            for spec in [plain, *(self._others(plain) if first else ())]:
                self._tried(self._step, [spec])
                self._tried(self._step, [spec] * 2)
                if first:
                    self._tried(self._step, [spec, _longer(spec)])
                if spec.image_prompts:
                    blind = replace(spec, image_prompts=())
                    self._tried(self._step, [spec, blind])
                    self._tried(self._step, [spec, _longer(blind)])
            self._tried(self._decode, plain)
            first = False
            log.info(
                "%dx%d is warm after %.1f s; compiled so far: %s",
                *(size.width, size.height, perf_counter() - started),
                self._runner.compiling,
            )

    def _tried(self, call: Callable[[Tried], None], what: Tried) -> None:
        try:
            call(what)
        except Exception as error:
            if is_of_device(error):
                raise
            log.warning("warming up failed", exc_info=error)

    def _plain(self, size: WarmSize) -> RowSpec:
        source = None
        if self._parts.takes_mask:
            nothing = np.zeros((size.height, size.width, 3), np.uint8)
            source = Source(nothing, nothing[:, :, 0])
        return RowSpec(
            prompt=Tokenizers(self._parts.tokenizers).tokenize("", "prompt"),
            seed=0,
            height=size.height,
            width=size.width,
            num_inference_steps=1,
            eta=0.0,
            source=source,
        )

    def _others(self, plain: RowSpec) -> Iterator[RowSpec]:
        """Other kinds of rows that the model can be asked for."""
        parts = self._parts
        if parts.controls.models:
            nothing = np.zeros((plain.height, plain.width, 3), np.uint8)
            controls = tuple(Control(kind, (nothing,)) for kind in parts.controls.models.values())
            yield replace(plain, controls=controls)
        styled = replace(plain, loras=((NAME, 1.0),))
        for name, adapter in islice(parts.ip_adapters.items(), 1):  # of all, blocks see the same
            reads = adapter.reads
            embeds = np.zeros((2, *[STATES] * reads.hidden, reads.width), np.float32)
            prompts = (ImagePrompt(name, (embeds,)),)
            yield replace(plain, image_prompts=prompts)
            yield replace(styled, image_prompts=prompts)
        yield styled

    def _step(self, specs: Sequence[RowSpec]) -> None:
        """One step of these rows, together."""
        bank = self._parts.banks["unet"]
        if any(spec.loras for spec in specs):
            bank.hold(NAME, bank.nothing())
        rows = [Trajectory(f"{NAME}/{slot}", spec, slot=slot) for slot, spec in enumerate(specs)]
        try:
            orders = [Order(row.row_id, row.row_id, row.spec) for row in rows]
            with torch.inference_mode():
                for row, ready in zip(rows, self._preparation.rows(orders), strict=True):
                    self._runner.adopt(row.slot or 0, ready)
            outcome = self._runner.run(Batch(rows[0].key, tuple(rows)))
            self._runner.settle()
            if not isinstance(outcome, Advanced):
                log.warning("warming up %d rows: %s", len(rows), outcome.message)
            elif outcome.failures:
                error = next(iter(outcome.failures.values()))
                log.warning("warming up %d rows failed", len(rows), exc_info=error)
        finally:
            bank.drop(NAME)
            for row in rows:
                self._preparation.forget(row.row_id)
                self._runner.free(row.slot or 0)

    def _decode(self, spec: RowSpec) -> None:
        """One image, by both VAEs."""
        shape = (1, self._parts.latent_channels, *spec.latent_size)
        with torch.inference_mode():
            latents = torch.zeros(shape, dtype=self._parts.dtype, device=self._parts.device)
            for vae in {self._parts.vae, self._parts.preview_vae}:
                try:
                    vae.decode(latents)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    vae.decode(latents, tiled=True)  # as images of this size will be


def _longer(spec: RowSpec) -> RowSpec:
    """The same with a prompt of two windows."""
    ids = tuple(windows * 2 for windows in spec.prompt.ids)
    return replace(spec, prompt=spec.prompt._replace(ids=ids))
