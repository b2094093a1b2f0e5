"""ControlNet-Unions and T2I-Adapters in mixed batches: each row is what diffusers makes of it alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetUnionModel, T2IAdapter
from PIL import Image
from torch import Tensor

from configs.app import ControlArgs, Limits, ModelArgs, ModelUserConfig
from configs.families import FamilyName
from configs.union_modes import UNION_MODES
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from tests.control_models import write_adapter, write_union
from tests.deployments.diffusion.engine.oracle import Answer, assert_same, distance
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import Checkpoint, Net, Task, make_all, task

LIMITS = Limits(max_batch=64, max_running=64, max_step_ms=float("inf"))
CLEARLY_DIFFERENT = 1e-2


class Steered(Pipelines):
    """diffusers' pipelines for controls of all kinds: ControlNets by the pipelines for them, unions by
    theirs, as often as their modes are named, adapters by a hook on the UNet."""

    def __init__(
        self, checkpoint: Checkpoint, unions: dict[str, int], union: Any, adapters: dict[str, Any]
    ) -> None:
        super().__init__(checkpoint)
        self._union, self._modes, self._adapters = union, unions, adapters
        self._adapted: dict[str, Any] = {}
