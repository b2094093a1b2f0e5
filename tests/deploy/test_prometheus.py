"""deploy/prometheus and deploy/grafana beside the running service: a real Prometheus scrapes it,
every panel has data, and alerts fire when what they watch is caused.

What needs hours, a GPU or a compiler is caused in made-up series alone: test_alerts.py.
"""

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.dashboard.modules.metrics.dashboards.default_dashboard_panels import (
    DEFAULT_GRAFANA_ROWS,
)
from ray.serve._private.common import ReplicaState

from configs.keys import digest
from demo.client import Client
from demo.service import ENVIRONMENT, ROOT, START_TIMEOUT_S, demo_config, free_port
from demo.tasks import SNOW, tasks_of, text_to_image, video
from tests.deploy.prometheus import (
    SCRAPE_S,
    Prometheus,
    alerts,
    binary,
    prometheus,
    wait_until,
)
from tests.serving import serve_deploy
from tests.soak.processes import Process, of_kind

DASHBOARD = ROOT / "deploy" / "grafana" / "tcd.json"
METRICS = ROOT / "docs" / "metrics.md"
pytestmark = pytest.mark.timeout(600)
KEY = "some-secret"
STYLES = ("papercut", "ink", "neon")
NO_GPU = ("ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available")
# What happens in made-up series alone.
NOT_CAUSED = {"TcdCompileFails", "TcdJobsWait", "TcdOutOfMemory", "TcdPreprocessorFails"}
AT_THE_END = {"TcdServiceDown", "TcdBlind"}
OF_MODEL = {"model": "sd15"}
# What is caused in the running service, and of what the alert is.
CAUSED: dict[str, dict[str, str]] = {
    "TcdAdapterFails": OF_MODEL,
    "TcdAdaptersThrash": OF_MODEL,
    "TcdConfigRefused": OF_MODEL,
    "TcdDeployFailed": {"application": "model-broken"},
    "TcdErrors": {},
    "TcdJobStorageAway": {},
    "TcdJobsFail": {"kind": "image"},
    "TcdKeysRefused": {},
    "TcdModelBehind": OF_MODEL,
    "TcdModelUnavailable": {"model": "broken", "state": "failed"},
    "TcdQueueFull": {"route": "/v1/images/generations"},
    "TcdReplicasBreak": {"application": "tcd", "deployment": "Canny"},
    "TcdReplicasMissing": {"application": "model-nowhere", "deployment": "Diffusion"},
    "TcdSlow": {"route": "/v1/images/generations"},
}
PATIENCE_S = 90.0  # a replica that broke is one after a minute without health


@dataclass
class Monitored:
    """The demo's service with one model, and a Prometheus beside it.

    Attributes:
        applications: as they are deployed.
    """

    url: str
    folder: Path
    applications: list[dict[str, Any]]
    seen: Prometheus = field(init=False)

    @property
    def keys(self) -> Path:
        return self.folder / "keys.yaml"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    def deploy(self) -> None:
        """As `serve deploy` does it."""
        serve_deploy(*self.applications)

    def model(self) -> dict[str, Any]:
        """The model's application."""
        (found,) = (one for one in self.applications if one["name"] == "model-sd15")
        return found

    def post(self, path: str, body: dict[str, object], timeout_s: float = 120) -> httpx.Response:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=timeout_s)

    def draw(self, **fields: object) -> httpx.Response:
        return self.post("/v1/images/generations", {"prompt": "a red ball", **fields})

    def until_fired(self, alert: str, cause: Callable[[], object]) -> None:
        """Goes on causing it: of what begins and is over between two scrapes there is no rate."""

        def fired() -> bool:
            cause()
            return bool(self.seen.fired(alert))

        wait_until(fired, PATIENCE_S, lambda: (alert, self.seen.query(alerts()[alert]["expr"])))


def applications(folder: Path) -> list[dict[str, Any]]:
    """Those of the demo with one model, and little room in it."""
    config: Any = demo_config(["sd15"])
    service, model = config["applications"]
    service["args"] |= {
        "keys": {"file": str(folder / "keys.yaml")},
        "jobs": {
            "storage": {"kind": "folder", "path": str(folder / "jobs")},
            "webhooks": {
                "secret_env": "TCD_TEST_WEBHOOKS",
                "allowed_hosts": ["127.0.0.1"],
                "allow_http": True,
            },
        },
    }
    (folder / "broken.safetensors").write_bytes(b"no adapter")
    (diffusion,) = model["deployments"]
    broken = {f"broken-{i}": str(folder / "broken.safetensors") for i in range(3)}
    diffusion["user_config"]["loras"] |= broken
    diffusion["user_config"]["limits"] |= {"max_pending": 8, "lora_budget_mb": 4}
    return [service, model]


@pytest.fixture(scope="module")
def monitored(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    binary("prometheus")
    folder, port = tmp_path_factory.mktemp("monitored"), free_port()
    one = Monitored(f"http://127.0.0.1:{port}", folder, applications(folder))
    entry = {"name": "alice", "sha256": digest(KEY.encode()), "admin": True}
    one.keys.write_text(yaml.safe_dump([entry]))
    one.jobs.mkdir()
    with (
        tempfile.TemporaryDirectory(
            prefix="ray", dir="/tmp", ignore_cleanup_errors=True
        ) as session,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("TCD_TEST_WEBHOOKS", "whsec_" + "QUJD" * 10)
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_port=free_port(),
            num_cpus=16,
            object_store_memory=200 * 2**20,
            _temp_dir=session,
            _system_config={"metrics_report_interval_ms": 1000},
            log_to_driver=False,
        )
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            one.deploy()
            wait_until(lambda: _ready(one.url), START_TIMEOUT_S, serve.status)
            nodes = Path(session) / "prom_metrics_service_discovery.json"
            with prometheus(folder, nodes, f"127.0.0.1:{port}", target_s=0.001) as one.seen:
                yield one
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def drawn(monitored: Monitored) -> Monitored:
    """After the traffic of `make demo`, what it does not ask for, and one request that is wrong."""
    with Client(monitored.url, KEY) as client:
        (ball,) = text_to_image(client, "sd15", SNOW).pictures
        list(tasks_of("sd15", client, ball))
        video(client, "a small blue ball on the left rolling right, on the grass")
        for side in (72, 80):  # of a histogram that has just come nothing is a rate yet
            time.sleep(2 * SCRAPE_S)
            client.preprocess("canny", ball.resize((side, side)))
    hook = f"http://127.0.0.1:{free_port()}/"  # where nobody is
    job = monitored.draw(**{"async": True, "webhook_url": hook})
    assert job.status_code == 202, job.text
    assert monitored.draw(model="none").status_code == 404
    return monitored


@pytest.fixture(scope="module")
def troubled(drawn: Monitored) -> Monitored:
    """After everything that alerts watch has been caused."""
    broken = json.loads(json.dumps(drawn.model()))
    broken |= {"name": "model-broken"}
    broken["args"] |= {"name": "broken", "checkpoint": str(drawn.folder / "nothing")}
    nowhere = json.loads(json.dumps(drawn.model()))
    nowhere |= {"name": "model-nowhere"}
    nowhere["args"] |= {"name": "nowhere"}
    nowhere["deployments"][0]["ray_actor_options"] = {"num_cpus": 0.1, "resources": {"moon": 1}}
    drawn.applications += [broken, nowhere]
    drawn.model()["deployments"][0]["user_config"]["limits"]["max_side"] = "wide"
    drawn.deploy()  # TcdDeployFailed, TcdModelUnavailable, TcdReplicasMissing, TcdConfigRefused

    for name in ("broken-0", "broken-1", "broken-2"):  # TcdAdapterFails
        assert not drawn.draw(loras=[{"name": name, "weight": 1}]).is_success
    jobs = [{"async": True, "loras": [{"name": "broken-0", "weight": 1}]}] * 3  # TcdJobsFail
    for one in jobs:
        assert drawn.draw(**one).status_code == 202

    def change_styles() -> None:
        for style in STYLES:
            assert drawn.draw(loras=[{"name": style, "weight": 1}]).is_success

    def crowd() -> None:
        with ThreadPoolExecutor(40) as clients:
            answers = list(clients.map(lambda _: drawn.draw(n=2), range(40)))
        assert {answer.status_code for answer in answers} == {200, 429}

    drawn.until_fired("TcdAdaptersThrash", change_styles)
    drawn.until_fired("TcdQueueFull", crowd)
    with suppress(httpx.ReadTimeout):  # TcdModelBehind
        large = {"prompt": "a", "size": "512x512", "num_inference_steps": 50, "n": 6}
        drawn.post("/v1/images/generations", large, timeout_s=12)
    for _ in range(3):  # TcdReplicasBreak
        (canny,) = of_kind("tcd/Canny")
        os.kill(canny.pid, signal.SIGKILL)
        wait_until(partial(_replaced, canny), 60, serve.status)
    drawn.until_fired("TcdJobsFail", lambda: None)
    drawn.keys.write_text("- {name: 7")  # TcdKeysRefused
    drawn.jobs.rename(drawn.folder / "away")  # TcdJobStorageAway, and TcdErrors
    drawn.jobs.write_text("")

    def hand_in() -> None:
        assert drawn.draw(**{"async": True}).status_code == 503

    drawn.until_fired("TcdErrors", hand_in)
    return drawn


def test_the_dashboard_is_one() -> None:
    """What Grafana asks of a dashboard: ids of their own, places that do not overlap, a data source
    that can be chosen."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    asking = [panel for panel in panels if panel["type"] != "row"]
    for panel in asking:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "state-timeline"
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    assert variables == {"datasource", "route", "model", "application"}


def panels() -> Iterator[tuple[str, str]]:
    """Each query of the dashboard, with what stands above it and its variables filled in."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "30s")
            for variable in ("route", "model", "application"):
                expression = expression.replace(f"${variable}", ".*")
            assert "$" not in expression, expression
            yield f"{panel['title']}: {target['legendFormat']}", expression


def test_every_panel_has_data(drawn: Monitored) -> None:
    wanted = {
        title: query for title, query in panels() if not any(name in query for name in NO_GPU)
    }

    def empty() -> list[str]:
        return [title for title, query in wanted.items() if not drawn.seen.values(query)]

    wait_until(lambda: not empty(), 60, empty)


def test_panels_of_gpus_ask_what_ray_asks() -> None:
    """No GPU is here: the names are held to those of Ray's own dashboard."""
    asked = [
        target.expr
        for row in DEFAULT_GRAFANA_ROWS
        for panel in row.panels
        for target in panel.targets
    ]
    for name in NO_GPU:
        assert any(name in expression for expression in asked)


def test_every_variable_has_values(drawn: Monitored) -> None:
    found = {}
    for one in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if one["type"] == "query":
            text = one["query"]["query"].removeprefix("label_values(").removesuffix(")")
            selector, _, label = text.rpartition(", ")
            found[one["name"]] = drawn.seen.labels(label, selector.replace("$model", ".*"))
    assert found["model"] == ["sd15"]
    assert found["application"] == ["model-sd15"]
    assert "/v1/images/generations" in found["route"]


def test_the_docs_name_every_metric(drawn: Monitored) -> None:
    documented = set(re.findall(r"`(tcd_\w+)`", METRICS.read_text()))

    def exported() -> set[str]:
        named = drawn.seen.labels("__name__", '{__name__=~"ray_tcd_.*"}')
        shown = httpx.get(f"{drawn.url}/metrics", timeout=30).text
        names = {name.removeprefix("ray_") for name in named} | set(
            re.findall(r"^(tcd_\w+)", shown, re.MULTILINE)
        )
        return {
            re.sub(r"(?<=_seconds)_(bucket|sum|count)$", "", name)
            for name in names
            if not name.endswith("_created")
        }

    unseen = {"tcd_moderated_total"}  # without a safety checker
    # A job's webhook is tried after the job, its metric is scraped after that.
    wait_until(lambda: exported() >= documented - unseen, 60, lambda: documented - exported())
    assert exported() == documented - unseen


def test_nothing_fires_while_all_is_well(drawn: Monitored) -> None:
    """But for the latency, whose target is a millisecond here; and what is just being started lacks
    replicas, where an alert has nothing to wait for."""
    fired = {name for name in alerts() if drawn.seen.fired(name)}
    assert fired - {"TcdReplicasMissing"} == {"TcdSlow"}


def test_each_alert_is_caused_or_cannot_be() -> None:
    assert {*CAUSED, *NOT_CAUSED, *AT_THE_END} == alerts().keys()


@pytest.mark.deep  # minutes
@pytest.mark.parametrize("name", CAUSED)
def test_an_alert_fires_when_it_should(name: str, troubled: Monitored) -> None:
    seen, wanted = troubled.seen, CAUSED[name].items()
    wait_until(
        lambda: any(wanted <= labels.items() for labels in seen.fired(name)),
        PATIENCE_S,
        lambda: (seen.fired(name), seen.query(alerts()[name]["expr"])),
    )


@pytest.mark.deep
def test_alerts_fire_when_nothing_is_there(troubled: Monitored) -> None:
    serve.shutdown()
    ray.shutdown()

    def quiet() -> list[str]:
        return [name for name in AT_THE_END if not troubled.seen.fired(name)]

    wait_until(lambda: not quiet(), PATIENCE_S, quiet)


def _replaced(canny: Process) -> bool:
    """Whether another replica serves in its place: one that dies before it does so broke nothing
    that ran, as Serve counts."""
    states = serve.status().applications["tcd"].deployments["Canny"].replica_states
    return states == {ReplicaState.RUNNING: 1} and of_kind("tcd/Canny") not in ([], [canny])


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz?models=sd15", timeout=5).is_success
    except httpx.TransportError:
        return False
