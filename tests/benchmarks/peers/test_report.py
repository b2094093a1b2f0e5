"""The peers' benchmark: settings, processes, tables."""

import os
import subprocess
import sys

import pytest

from benchmarks.peers.processes import Seen, cpu_between, memory_mib, role, seen
from benchmarks.peers.report import busiest, print_match
from benchmarks.peers.servers.options import Options, parsed
from benchmarks.peers.settings import BEST, changed
from benchmarks.peers.turns import Match, Turn
from demo.service import ROOT

SERVERS = ("fastapi_lock", "ray_tutorial", "ray_batch")  # the fourth needs LitServe


def test_options_survive_the_command_line() -> None:
    options = Options(1, "a", "b", {"ink": "x=y"}, keep=2, batch=3, wait_ms=4.5, threads=2)
    assert parsed(options.arguments()) == options


def test_settings_are_changed_by_name() -> None:
    settings = changed(["litserve:batch=16,wait_ms=2.5", "ours:threads=2"])
    assert (settings["litserve"].batch, settings["litserve"].wait_ms) == (16, 2.5)
    assert settings["ours"].threads == 2
    assert settings["fastapi"] == BEST["fastapi"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nobody:batch=1", "names none of ours, "),
        ("litserve:batches=1", "'batches' is none of"),
        ("litserve", "'' is none of"),
        ("ours:batch=x", "'x'"),
    ],
)
def test_wrong_settings_are_refused(wrong: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed([wrong])


@pytest.mark.parametrize(
    ("comm", "command", "name"),
    [
        ("ray::ServeRepl", ["ray::ServeReplica:model-sd15:Diffusion"], "Diffusion"),
        ("ray::ServeRepl", ["ray::ServeReplica:tcd:ImageEncoder-sd15.handle"], "ImageEncoder-sd15"),
        ("ray::ProxyActo", ["ray::ProxyActor.run"], "proxy"),
        ("raylet", ["/x/ray/core/src/ray/raylet/raylet", "--port=1"], "raylet"),
        ("python", ["/x/python", "-u", "/x/ray/_private/log_monitor.py"], "log monitor"),
        ("peer-worker", ["/x/python", "-m", "y"], "worker"),
        ("python3.11", ["/x/python3.11", "-c", "z"], "python child"),
    ],
)
def test_processes_have_roles(comm: str, command: list[str], name: str) -> None:
    assert role(comm, command, root=False) == name


def test_cpu_is_summed_by_role() -> None:
    before = {1: Seen("main", 1.0), 2: Seen("worker", 5.0), 4: Seen("gone", 9.0)}
    after = {1: Seen("main", 1.5), 2: Seen("worker", 6.0), 3: Seen("worker", 0.25)}
    assert cpu_between(before, after) == {"main": 0.5, "worker": 1.25}


def test_this_process_is_seen() -> None:
    assert seen(os.getpid())[os.getpid()].role == "main"
    assert memory_mib(os.getpid())["main"] > 1


def test_a_match_is_a_row_of_medians(capsys: pytest.CaptureFixture[str]) -> None:
    match = Match(1, "uniform", 8, "litserve")
    for ours, theirs in ((10.0, 5.0), (30.0, 10.0), (20.0, 20.0)):
        for side, rate in ((match.ours, ours), (match.theirs, theirs)):
            side.append(Turn(rate, 1 / rate, 1, 1, None, 9, {"main": 0.1, "x": 0.2}, 0.001, {}))
    print_match(match, header=True)
    *_, row = capsys.readouterr().out.splitlines()
    assert row == (
        "| LitServe | 8 | 20.00 | 10.00 | 2.00 (1.00 to 3.00) | 0.05, 0.10 | 1.00, 1.00 "
        "| 1.00, 1.00 | 0.300, 0.300 | 1.0, 1.0 |"
    )


def test_the_busiest_match_of_each_is_kept() -> None:
    few, many = Match(1, "uniform", 1, "fastapi"), Match(1, "uniform", 32, "fastapi")
    other = Match(1, "mixed", 8, "fastapi")
    assert busiest([many, other, few]) == [many, other]


def test_peers_import_nothing_of_ours() -> None:
    modules = ", ".join(f"benchmarks.peers.servers.{server}" for server in SERVERS)
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    ours = ("deployments", "configs", "graphs", "demo", "preprocessors")
    assert not [name for name in done.stdout.split() if name.split(".")[0] in ours]
