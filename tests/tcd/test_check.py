"""`tcd check`: files of full size and others, in a process of its own and in this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.full_size import write_adapter
from configs.families import FAMILIES, FamilyName
from demo.service import ROOT
from deployments.diffusion.engine.adapters.names import adaptable
from deployments.diffusion.engine.models.skeletons import skeletons
from tcd.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["check", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_a_family_loads_into_it_alone(
    family: FamilyName, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "style.safetensors"
    layer, weight = next(
        (name, module.weight)
        for name, module in adaptable(skeletons(family).unet)
        if name.endswith("attn2.to_k")
    )
    spelt = "lora_unet_" + layer.replace(".", "_")
    tensors = {
        f"{spelt}.lora_down.weight": torch.ones(4, weight.shape[1], dtype=torch.float16),
        f"{spelt}.lora_up.weight": torch.ones(weight.shape[0], 4, dtype=torch.float16),
        f"{spelt}.dora_scale": torch.ones(weight.shape[0], 1, dtype=torch.float16),
    }
    save_file(tensors, file)
    code, out = run(capsys, file)
    assert code == 0
    first, *verdicts = out.splitlines()
    assert "DoRA of LoRA of 1 layers; rank 4; float16; " in first
    assert first.endswith(f"looks like one for {family}")
    told = dict(line.strip().split(": ", 1) for line in verdicts)
    assert [name for name, says in told.items() if says == "loads"] == [family]
    assert all(f"looks like one for {family}" in told[name] for name in told if name != family)
    others = [name for name in FAMILIES if name != family]
    assert run(capsys, file, "--family", others[0])[0] == 1


def test_a_full_adapter_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "full.safetensors"
    write_adapter(file, "sd15", 1, 0)
    code, out = run(capsys, "--json", file)
    told = json.loads(out)
    assert code == 0
    assert told["kinds"] == {"LoRA": 264}
    assert told["ranks"] == [1]
    assert told["families"]["sd15"] == "loads"
    assert "looks like one for sd15" in told["families"]["sdxl"]


def test_words_that_a_file_brings_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "full.safetensors"
    write_adapter(file, "sd15", 1, 0)
    save_file(load_file(file) | {"bundle_emb.fold.emb_params": torch.ones(1, 768)}, file)
    code, out = run(capsys, file, "--family", "sd15")
    assert (code, out.splitlines()[1]) == (0, "  sd15: loads")
    assert "brings along 'fold' (name it in embeddings too)" in out


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.safetensors").write_text("nothing")
    save_file({"x.oft_blocks": torch.ones(2, 3, 3)}, tmp_path / "oft.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("text", "oft", "nowhere")]
    code, out = run(capsys, *files)
    assert code == 1
    assert "text.safetensors is not a readable safetensors file" in out
    assert "is OFT, which cannot be mixed row by row" in out
    assert "nowhere.safetensors does not exist" in out


def test_the_command(tmp_path: Path) -> None:
    """As people run it; help does not wait for torch."""
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tcd", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert "check" in shown.stdout
    assert "torch" not in shown.stderr
    wrong = subprocess.run(
        [sys.executable, "-m", "tcd", "check", str(tmp_path / "x.bin")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert wrong.returncode == 1
    assert wrong.stdout == "x.bin does not exist\n"
