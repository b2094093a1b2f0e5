"""One trace of one request, through every process of a running service, and its line in the log."""

import base64
import io
import json
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from configs.keys import digest
from demo.service import demo_config, running
from tests.collector import Collector, Seen, collecting
from tests.deploy.prometheus import wait_until

KEY = "some-secret"
EXPORTER = "deployments.tracing.otlp:exporter"
GENERATIONS = "/v1/images/generations"
PROMPT = "a big red ball on the left"
# The walk of a request, below Serve's spans of the replica that takes it.
INGRESS = ["tcd.prepare", "tcd.encode"]
PREPARE = ["tcd.turn", "tcd.fetch"]
REPLICA = ["tcd.admit", "tcd.adapters", "tcd.queue", "tcd.condition", "tcd.steps", "tcd.decode"]
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Traced:
    """The demo's service, what it says of itself, and where it writes its logs."""

    url: str
    collector: Collector
    folder: Path

    def post(self, body: dict[str, object], **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(
            f"{self.url}{GENERATIONS}",
            json=body,
            headers={"authorization": f"Bearer {KEY}", **named},
            timeout=120,
        )

    def log(self, deployment: str) -> list[str]:
        """What its replicas have written."""
        files = self.folder.glob(f"**/serve/replica_{deployment}_*.log")
        return [line for file in files for line in file.read_text().splitlines()]

    def said(self, deployment: str, word: str) -> list[str]:
        """Those of these lines that have a word."""
        return [text for text in self.log(deployment) if word in text]

    def line(self, request_id: str, deployment: str = "tcd_Ingress") -> dict[str, Any]:
        """A request's own, as soon as it is written."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for line in self.log(deployment):
                _, found, text = line.partition(' -- {"id"')
                if found and (said := json.loads('{"id"' + text))["id"] == request_id:
                    assert request_id in line.partition(" -- ")[0]
                    return dict(said)
            time.sleep(0.2)
        raise AssertionError(f"no line of {request_id}")

    def trace(self, trace: str, *names: str) -> list[Seen]:
        """The spans of a trace, once these are among them, and Serve's own around them."""

        def whole(spans: list[Seen]) -> bool:
            mine = [one for one in spans if one.trace == trace]
            ids = {one.id for one in mine}
            orphans = [one for one in mine if one.parent and one.parent not in ids]
            tops = all(one.name.startswith("proxy_http_request") for one in orphans)
            return {*names} <= {one.name for one in mine} and tops

        return [one for one in self.collector.until(whole) if one.trace == trace]


@pytest.fixture(scope="module")
def traced(demo_models: object) -> Iterator[Traced]:
    config: Any = demo_config(["sd15"])
    config["tracing_config"] = {
        "enabled": True,
        "exporter_import_path": EXPORTER,
        "sampling_ratio": 1.0,
    }
    config["applications"][0]["args"]["keys"] = {"env": "TCD_TEST_KEYS"}
    keys = yaml.safe_dump([{"name": "alice", "sha256": digest(KEY.encode())}])
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        collecting() as collector,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH", EXPORTER)
        patch.setenv("RAY_SERVE_TRACING_SAMPLING_RATIO", "1")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        patch.setenv("OTEL_SERVICE_NAME", "tcd")
        patch.setenv("TCD_TEST_KEYS", keys)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 8}')
        with running(config, "tracing") as service:
            yield Traced(service.url, collector, Path(folder))


def picture() -> str:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def request() -> dict[str, object]:
    return {
        "model": "sd15",
        "prompt": PROMPT,
        "seed": 7,
        "num_inference_steps": 4,
        "loras": [{"name": "ink", "weight": 0.8}],
        "controls": [{"type": "depth", "image": picture()}],
    }


@dataclass(frozen=True)
class Answered:
    """The request of which everything below is told."""

    trace: str
    client: str  # the client's span
    seconds: float
    spans: list[Seen]

    def named(self, name: str) -> Seen:
        (found,) = (one for one in self.spans if one.name == name)
        return found

    def below(self, parent: Seen) -> list[Seen]:
        return [one for one in self.spans if one.parent == parent.id]


@pytest.fixture(scope="module")
def answered(traced: Traced) -> Answered:
    """A picture with a depth control and a style adapter, asked for by a client that traces."""
    trace, client = secrets.token_hex(16), secrets.token_hex(8)
    began = time.perf_counter()
    answer = traced.post(request(), traceparent=f"00-{trace}-{client}-01", x_request_id="first")
    seconds = time.perf_counter() - began
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "first"
    spans = traced.trace(
        trace, *INGRESS, *PREPARE, *REPLICA, "replica_handle_request Depth estimate"
    )
    return Answered(trace, client, seconds, spans)


def test_all_spans_are_one_tree_below_the_clients(answered: Answered) -> None:
    ids = [one.id for one in answered.spans]
    assert len(set(ids)) == len(ids)
    (top,) = (one for one in answered.spans if one.parent not in ids)
    assert top.parent == answered.client
    assert top.name.startswith("proxy_http_request")
    assert top.said["request_id"] == "first"
    assert top.said["http.status_code"] == 200


def test_the_walk_of_the_request(answered: Answered) -> None:
    replica = "replica_handle_request"
    ingress = answered.named(f"{replica} Ingress __call__")
    diffusion = answered.named(f"{replica} Diffusion submit")
    ours = [one.name for one in answered.below(ingress) if one.name.startswith("tcd.")]
    assert sorted(ours) == sorted(INGRESS)
    prepare = answered.named("tcd.prepare")
    assert {"tcd.turn", "tcd.fetch"} <= {one.name for one in answered.below(prepare)}
    assert [one.name for one in answered.below(diffusion)] == REPLICA
    # Serve's own are those of the handles: the map store, and through it the depth estimator.
    parents = {one.id: one for one in answered.spans}
    made = answered.named(f"{replica} Depth estimate")
    above = []
    while made.parent in parents:
        made = parents[made.parent]
        above.append(made.name)
    assert f"{replica} MapStore make" in above
    assert "tcd.prepare" in above
    for one in (ingress, diffusion):
        assert one.said["request_id"] == "first"
    assert ingress.said["tcd.model"] == "sd15"
    assert ingress.said["tcd.key"] == "alice"
    assert ingress.said["tcd.outcome"] == "completed"
    assert answered.named("tcd.steps").said["tcd.steps"] == 4
    assert answered.named("tcd.adapters").said["tcd.loras"] == ["ink"]
    assert not any(PROMPT in str(one.said) for one in answered.spans)


def test_times_nest_and_add_up(answered: Answered) -> None:
    slack = 0.02  # of clocks that are read one after the other
    ingress = answered.named("replica_handle_request Ingress __call__")
    diffusion = answered.named("replica_handle_request Diffusion submit")
    stages = [answered.named(name) for name in REPLICA]
    for before, after in pairwise(stages):
        assert abs(before.end - after.start) < slack, (before.name, after.name)
    assert diffusion.start - slack < stages[0].start
    assert stages[-1].end < diffusion.end + slack
    prepare, encode = map(answered.named, INGRESS)
    assert ingress.start < prepare.start
    assert prepare.end < stages[0].start + slack
    assert diffusion.end < encode.start + slack
    assert encode.end < ingress.end < ingress.start + answered.seconds
    spent = sum(one.seconds for one in (*stages, prepare, encode))
    assert ingress.seconds / 2 < spent < ingress.seconds


def test_its_line_says_the_same(traced: Traced, answered: Answered) -> None:
    line = traced.line("first")
    seconds = line.pop("seconds")
    replica = line.pop("replica")
    assert line == {
        "id": "first",
        "route": f"POST {GENERATIONS}",
        "key": "alice",
        "outcome": "completed",
        "status": 200,
        "asked": "sd15",
        "model": "sd15",
        "width": 64,
        "height": 64,
        "n": 1,
        "steps": 4,
        "loras": 1,
        "controls": 1,
        "ip_adapters": 0,
    }
    order = ["prepare", "adapters", "queue", "condition", "steps", "decode", "encode", "total"]
    assert list(seconds) == order
    assert seconds["total"] < answered.seconds
    for stage in order[:-1]:
        assert seconds[stage] == pytest.approx(answered.named(f"tcd.{stage}").seconds, abs=0.005)
    diffusion = answered.named("replica_handle_request Diffusion submit")
    assert diffusion.said["replica_id"] == replica
    everything = [*traced.log("tcd_Ingress"), *traced.log("model-sd15_Diffusion")]
    assert not any(PROMPT in text for text in everything)


def test_a_replicas_lines_have_the_id_of_the_answer(traced: Traced) -> None:
    body = request() | {"loras": [{"name": "nobody"}], "controls": []}
    answer = traced.post(body, x_request_id="refused-by-the-engine")
    assert answer.status_code == 404, answer.text
    line = traced.line("refused-by-the-engine")
    assert (line["outcome"], line["status"], line["code"]) == ("refused", 404, "not_found")
    said = traced.said("model-sd15_Diffusion", "NotFound")
    assert any("refused-by-the-engine" in text for text in said), said


def test_a_job_has_a_trace_of_its_own_that_is_linked_to_whoever_asked(traced: Traced) -> None:
    trace, client = secrets.token_hex(16), secrets.token_hex(8)
    asked = traced.post(
        request() | {"async": True, "controls": []}, traceparent=f"00-{trace}-{client}-01"
    )
    assert asked.status_code == 202, asked.text
    job = asked.json()["id"]

    def done(spans: list[Seen]) -> bool:
        return any(one.said.get("tcd.job") == job and one.name == "tcd.job" for one in spans)

    (found,) = (
        one
        for one in traced.collector.until(done, 60)
        if one.name == "tcd.job" and one.said["tcd.job"] == job
    )
    assert found.parent == ""
    assert found.trace != trace
    (link,) = found.links
    spans = traced.trace(found.trace, "tcd.prepare", "tcd.steps", "tcd.encode")
    assert {one.name for one in spans if one.parent == found.id} >= {"tcd.prepare", "tcd.encode"}
    assert any(one.trace == trace and one.id == link for one in traced.collector.spans)
    accepted, line = traced.line(asked.headers["x-request-id"]), traced.line(job, "tcd_JobWorker")
    assert (accepted["outcome"], accepted["job"]) == ("accepted", job)
    assert (line["outcome"], line["route"], line["key"]) == ("completed", "job image", "alice")
    assert line["seconds"]["steps"] > 0


def test_a_replicas_lines_have_the_id_of_the_job(traced: Traced) -> None:
    long = {"num_inference_steps": 50, "n": 4, "size": "256x256"}
    body = request() | {"async": True, "controls": [], **long}
    job = traced.post(body).json()["id"]
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"{traced.url}/v1/jobs/{job}"
    end = time.monotonic() + 30
    while not httpx.get(url, headers=headers, timeout=30).json()["progress"]:
        assert time.monotonic() < end
    httpx.post(f"{url}/cancel", headers=headers, timeout=30).raise_for_status()
    assert traced.line(job, "tcd_JobWorker")["outcome"] == "cancelled"

    def given_up() -> list[str]:  # which another process hears of, and writes
        return traced.said("model-sd15_Diffusion", "given up")

    wait_until(lambda: any(f" {job} " in text for text in given_up()), 30, given_up)


def test_polls_are_not_traces(traced: Traced) -> None:
    time.sleep(5)
    deployments = {one.said.get("deployment") for one in traced.collector.spans}
    assert not deployments & {"Directory", "JobStore"}
    roots = {one.name for one in traced.collector.spans if not one.parent}
    assert all(name.startswith(("proxy_http_request", "tcd.job")) for name in roots), roots
