"""Debian's Prometheus, with the files of deploy/prometheus, and what its HTTP API says."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from demo.service import ROOT, free_port
from tests.deploy.test_haproxy import process

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
MUST = "TCD_MUST_RUN"  # set where nothing may be skipped
SCRAPE_S = 3  # the nodes of a service say a lot
Labels = Mapping[str, str]


def binary(name: str) -> str:
    """A program of Debian's package `prometheus`. Skips the test that needs it, or fails it where
    nothing may be skipped."""
    found = shutil.which(name)
    if found is None:
        missing = f"needs {name} of Debian's package prometheus"
        if os.environ.get(MUST):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def promtool(*words: str) -> None:
    """Runs it, and shows what it says if it is not content."""
    ran = subprocess.run([binary("promtool"), *words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def config() -> Any:
    """The file that says what is scraped."""
    return yaml.safe_load(CONFIG.read_text())


def rules() -> Any:
    """The file of rules."""
    return yaml.safe_load(RULES.read_text())


def alerts() -> dict[str, Any]:
    """The alerts of that file, by name."""
    every = (rule for group in rules()["groups"] for rule in group["rules"])
    return {rule["alert"]: rule for rule in every if "alert" in rule}


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    url: str
    began: float

    def query(self, expression: str) -> list[Any]:
        """What it says of an expression now."""
        return self._said("query", query=expression)["result"]  # type: ignore[no-any-return]

    def values(self, expression: str) -> list[float]:
        """All that an expression has been since the beginning, but what is no number."""
        said = self._said(
            "query_range",
            query=expression,
            start=str(self.began),
            end=str(time.time()),
            step="2",
        )
        values = (float(v) for series in said["result"] for _, v in series["values"])
        return [value for value in values if value == value]

    def labels(self, label: str, selector: str) -> list[str]:
        """The values that a label has among some series."""
        params = {"match[]": selector}
        answer = httpx.get(f"{self.url}/api/v1/label/{label}/values", params=params, timeout=30)
        return list(answer.raise_for_status().json()["data"])

    def fired(self, alert: str) -> list[Labels]:
        """The labels with which an alert has fired so far."""
        seen = self.query(f'max_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[1h])')
        return [series["metric"] for series in seen]

    def _said(self, route: str, **params: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{route}", params=params, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


def hurried(target_s: float) -> Any:
    """The rules with nothing to wait for: what an alert watches is as it is, but it fires as soon
    as that is so. What watches scrapes waits for as many as it does in production: nothing is
    scraped yet when rules are first evaluated, and a busy node misses one. `target_s`: the latency
    that is aimed at."""
    said = rules()
    faster = SCRAPE_S / int(config()["global"]["scrape_interval"].removesuffix("s"))
    for group in said["groups"]:
        for rule in group["rules"]:
            waits = rule.pop("for", None)
            if "up{" in rule["expr"]:
                rule["for"] = f"{int(waits.removesuffix('m')) * 60 * faster:.0f}s"
            if rule.get("record") == "tcd:latency_target_seconds":
                rule["expr"] = f"vector({target_s})"
    return said


@contextmanager
def prometheus(folder: Path, nodes: Path, service: str, target_s: float) -> Iterator[Prometheus]:
    """One with the shipped files, but in a hurry.

    Args:
        nodes: Ray's file of what there is to scrape.
        service: its host and port.
    """
    said = config()
    said["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), f"{SCRAPE_S}s")
    ray, tcd = said["scrape_configs"]
    ray["file_sd_configs"][0] |= {"files": [str(nodes)], "refresh_interval": "1s"}
    tcd["static_configs"][0]["targets"] = [service]
    (folder / "rules.yaml").write_text(yaml.safe_dump(hurried(target_s)))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(said))
    address, log = f"127.0.0.1:{free_port()}", folder / "prometheus.log"
    command = [
        binary("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    began = time.time()
    with process(command, {}, log):
        wait_until(lambda: _ready(address), 30, lambda: log.read_text()[-2000:])
        yield Prometheus(f"http://{address}", began)


def wait_until(
    true: Callable[[], object], within_s: float, otherwise: Callable[[], object]
) -> None:
    """Returns when it is true; fails with what is so otherwise."""
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, otherwise()
        time.sleep(0.5)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", timeout=5).is_success
    except httpx.TransportError:
        return False
