"""What a training run makes of its stage's plan."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from demo.train import workshop
from demo.train.loop import Settings
from demo.train.workshop import Plan, Workshop


@pytest.mark.parametrize(
    ("able", "computes"),
    [({"avx512_f": True, "amx_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True}, False)],
)
def test_bfloat16_is_for_processors_that_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, able: dict[str, bool], computes: bool
) -> None:
    train = Mock(return_value=[])
    monkeypatch.setattr(workshop, "train", train)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    shop = Workshop(tmp_path, tmp_path, torch.device("cpu"))
    shop.train("a stage", Mock(), Plan(8, 2, 1e-3, 1, bfloat16=True))
    settings: Settings = train.call_args.args[1]
    assert settings.bfloat16 is computes
