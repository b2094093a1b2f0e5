"""Rows taken through preparation and steps by hand, in one thread, on a device without data."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from queue import SimpleQueue
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from configs.app import Dtype, Limits, ModelArgs, ModelUserConfig
from deployments.diffusion.engine.adapters.shelf import LoraRead, LoraShelf, LoraSlow
from deployments.diffusion.engine.adapters.sources import LoraSources
from deployments.diffusion.engine.models.components import Components, load
from deployments.diffusion.engine.policy.admission import Admission
from deployments.diffusion.engine.policy.batch import Advanced, Batch
from deployments.diffusion.engine.policy.spec import LoraSource
from deployments.diffusion.engine.policy.trajectory import Trajectory
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from deployments.diffusion.engine.steps.preparation import Order, Preparation
from deployments.diffusion.engine.steps.runner import Runner
from tests.deployments.diffusion.engine.harness import WAIT_S
from tests.deployments.diffusion.engine.tasks import Task

MIB = 2**20
COPIES = ("aten._to_copy.default", "aten.copy_.default")
# What Components hold that belongs to the host.
ON_THE_HOST = ("schedule", "motion_schedule", "tokenizers", "lora_reader")


# What operations gave for tensors of these shapes, and what was seen of them. Torch takes long to
# find out; without data it is the same each time.
_known: dict[Hashable, tuple[Any, list[str], list[int]]] = {}


class LeftBehind(AssertionError):
    """Something that belongs on the device is on the host."""


class Watch(TorchDispatchMode):
    """Sees every operation of this thread, taken apart as far as torch takes it apart.

    Attributes:
        uploads: sizes of the copies from the host to the device, in order.
        names: the operations, in order.

    Raises `LeftBehind` where an operation reads from the host and from the device, but for the
    copies that bring something over, and single numbers, which travel with the call.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uploads: list[int] = []
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        read = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        if not (read and all(tensor.is_meta for tensor in read) and _makes_new(func)):
            return self._watched(func, args, given, read)
        key = func, _told_apart(args), _told_apart(list(given.items()))
        if key in _known:
            made, names, uploads = _known[key]
            self.names += names
            self.uploads += uploads
        else:
            named, uploaded = len(self.names), len(self.uploads)
            made = self._watched(func, args, given, read)
            if not all(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(made)):
                return made
            _known[key] = made, self.names[named:], self.uploads[uploaded:]
        return tree_map_only(Tensor, _another, made)

    def _watched(
        self, func: Any, args: tuple[Any, ...], given: dict[str, Any], read: Sequence[Tensor]
    ) -> Any:
        with self:
            parts = func.decompose(*args, **given)
        if parts is not NotImplemented:
            return parts
        name = str(func)
        self.names.append(name)
        if name in COPIES:
            result = func(*args, **given)
            if result.is_meta and not read[-1].is_meta:
                self.uploads.append(read[-1].numel())
            return result
        if len({tensor.device.type for tensor in read if tensor.ndim > 0}) > 1:
            shapes = ", ".join(f"{t.device.type} {tuple(t.shape)}" for t in read)
            raise LeftBehind(f"{name} mixes {shapes}")
        return func(*args, **given)


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operation changes nothing that it is given, and gives nothing back of it."""
    schema = func._schema
    return not schema.is_mutable and all(one.alias_info is None for one in schema.returns)


def _another(made: Tensor) -> Tensor:
    return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device="meta")


def _told_apart(value: object) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_told_apart, value))
    return type(value), value


class Walk:
    """A model on the meta device, and its rows."""

    def __init__(
        self,
        args: ModelArgs,
        dtype: Dtype = "float32",
        *,
        loras: Mapping[str, str] | None = None,
        motion_loras: Mapping[str, str] | None = None,
    ) -> None:
        self.parts = load(args.model_copy(update={"device": "meta", "dtype": dtype}))
        config = ModelUserConfig(
            loras=dict(loras or {}), motion_loras=dict(motion_loras or {}), limits=Limits()
        )
        tokenize = Tokenizers(self.parts.tokenizers).tokenize
        origin = LoraSources()
        self._admission = Admission(self.parts.capabilities, tokenize, origin, config)
        self._preparation = Preparation(self.parts, 64 * MIB)
        self._runner = Runner(self.parts)
        self._read: SimpleQueue[LoraRead | LoraSlow] = SimpleQueue()
        self._shelf = LoraShelf(
            self.parts.banks,
            self.parts.lora_reader,
            origin,
            self.parts.device,
            64 * MIB,
            self._read.put,
        )
        self._slots = 0

    def close(self) -> None:
        """Ends the shelf's threads."""
        self._shelf.close()

    @torch.inference_mode()
    def join(self, *tasks: Task) -> list[Trajectory]:
        """The rows of these tasks, made ready together and each in its slot."""
        orders: list[Order] = []
        rows: list[Trajectory] = []
        for one in tasks:
            specs, loras, _ = self._admission.admit(one.job, one.assets)
            self._bring(one.job.job_id, loras)
            for index, spec in enumerate(specs):
                row_id = f"{one.job.job_id}/{index}"
                orders.append(Order(row_id, one.job.job_id, spec))
                rows.append(Trajectory(row_id, spec, slot=self._slots))
                self._slots += 1
        for row, ready in zip(rows, self._preparation.rows(orders), strict=True):
            assert row.slot is not None
            self._runner.adopt(row.slot, ready)
        return rows

    def step(self, rows: Sequence[Trajectory]) -> None:
        """One step of these rows, which must be of one key."""
        outcome = self._runner.run(Batch(rows[0].key, tuple(rows)))
        assert isinstance(outcome, Advanced)
        for error in outcome.failures.values():
            raise error
        for row in rows:
            row.advance()

    @torch.inference_mode()
    def finish(self, rows: Sequence[Trajectory]) -> None:
        """All steps that are left, together as long as there are any, then decodes each row."""
        while left := [row for row in rows if row.cursor < row.steps]:
            self.step(left)
        for row in rows:
            assert row.slot is not None
            latents, estimate = self._runner.latents(row.slot), self._runner.estimate(row.slot)
            for numbers in (latents, estimate):
                assert numbers.is_meta
                assert numbers.dtype == self.parts.dtype
                assert tuple(numbers.shape) == (4, *row.spec.latent_size)
            if row.spec.frames is None:
                pixels = self.parts.vae.decode(latents[None])
                assert pixels.shape == (1, 3, row.spec.height, row.spec.width)
                assert self.parts.preview_vae.decode(estimate[None]).shape == pixels.shape
            self._runner.free(row.slot)

    def _bring(self, job_id: str, loras: dict[str, LoraSource]) -> None:
        settled = self._shelf.request(job_id, loras)
        while loras and not settled:
            settled = self._shelf.take(self._read.get(timeout=WAIT_S))
        assert [job.error for job in settled] == [None] * len(settled)


def left_on_the_host(parts: Components) -> list[str]:
    """Where a tensor of the host hangs on a model's parts: attributes, one after the other."""
    things = {name: value for name, value in vars(parts).items() if name not in ON_THE_HOST}
    return [name for name, tensor in _tensors(things, "", set()) if not tensor.is_meta]


def _tensors(thing: object, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor within reach, and the way to it; what functions enclose included."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield name, thing
        return
    for step, inner in _inside(thing):
        yield from _tensors(inner, f"{name}.{step}", seen)


def _inside(thing: object) -> list[tuple[object, object]]:
    if isinstance(thing, Mapping):
        return list(thing.items())
    if isinstance(thing, list | tuple | set | frozenset):
        return list(enumerate(thing))
    if isinstance(thing, FunctionType):
        return [(f"<{i}>", cell.cell_contents) for i, cell in enumerate(thing.__closure__ or ())]
    if isinstance(thing, type) or (callable(thing) and not isinstance(thing, nn.Module)):
        return []
    return list(getattr(thing, "__dict__", {}).items())
