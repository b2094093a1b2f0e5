"""`make serve` ends cleanly, whoever else of its process group gets the signal too."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from demo.service import ROOT, demo_config, free_port
from tests.demo.test_run import RAY_NODE


@pytest.mark.parametrize(
    "ending",
    [
        signal.SIGTERM,
        *(pytest.param(other, marks=pytest.mark.deep) for other in (signal.SIGINT, signal.SIGKILL)),
    ],
)
def test_a_signal_to_the_group_stops_it(
    demo_models: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    port, config, log = free_port(), tmp_path / "config.yaml", tmp_path / "log"
    http = {"host": "127.0.0.1", "port": port}
    config.write_text(yaml.safe_dump(demo_config([]) | {"http_options": http}))
    with log.open("wb") as output:
        verb = subprocess.Popen(
            [sys.executable, "-m", "demo.serve", config],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/healthz", verb)
        started = psutil.Process(verb.pid).children(recursive=True)
        assert {process.name() for process in started} >= set(RAY_NODE)
        os.killpg(verb.pid, ending)
        killed = ending is signal.SIGKILL
        assert verb.wait(60) == (-ending if killed else 0), log.read_text()
    finally:
        verb.terminate()
        verb.wait(90)
    _, left = psutil.wait_procs(started, timeout=60)  # who was killed could not wait for them
    assert not left
    said = log.read_text()
    assert killed or said.endswith("stopped\n")
    assert f"starting http://127.0.0.1:{port} (log: out/serve.log)" in said
    for sign in ("Traceback", "*** ", "Check failed", "StackTrace"):
        assert sign not in said


def wait_until_it_answers(url: str, verb: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert verb.poll() is None
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError("it does not answer")


def started_with(config: Path) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "demo.serve", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_who_has_the_port_keeps_it(tmp_path: Path) -> None:
    """Serve's proxy would share it: every other request would go astray."""
    config = tmp_path / "config.yaml"
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve's proxy has it
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        http = {"host": "127.0.0.1", "port": port}
        config.write_text(yaml.safe_dump(demo_config([]) | {"http_options": http}))
        status, said = started_with(config)
    assert status == 1
    assert said == (
        f"http://127.0.0.1:{port} is taken: somebody listens there; "
        f"http_options of {config} say where\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read: "),
        ("", "is no Serve config: it has no list `applications`"),
        ("applications: {}", "is no Serve config: it has no list `applications`"),
        ("a: [", "cannot be read: "),
        ("\udcff", "cannot be read: "),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str | None, why: str) -> None:
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_bytes(text.encode(errors="surrogateescape"))
    status, said = started_with(config)
    assert status == 1
    assert said.startswith(f"{config} {why}")
    assert "Traceback" not in said
