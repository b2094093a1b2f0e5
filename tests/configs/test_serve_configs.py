"""Every Serve config of the project is one that Ray accepts and whose graphs can be built."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from configs.app import ModelArgs, ModelUserConfig, ServiceArgs
from configs.sources import parse
from graphs.check.agreement import deployments_of
from graphs.model import build as build_model
from graphs.service import build as build_service

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    ROOT / "serve_config.yaml",
    *sorted((ROOT / "configs" / "production").glob("*.yaml")),
    *sorted((ROOT / "deploy" / "kubernetes").glob("*/serve.yaml")),
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_config(path: Path, demo_models: Path) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    names = [application.name for application in config.applications]
    assert names[0] == "tcd"
    assert len(set(names)) == len(names)
    for application in config.applications:
        if application.import_path == "graphs.service:build":
            service = ServiceArgs.model_validate(application.args)
            build_service(service)
            named = {deployment.name for deployment in application.deployments}
            assert named <= set(deployments_of(service))
            continue
        (deployment,) = application.deployments
        assert application.import_path == "graphs.model:build"
        args = ModelArgs.model_validate(application.args)
        build_model(args)
        assert application.name == f"model-{args.name}"
        assert application.route_prefix is None
        assert deployment.name == "Diffusion"
        user_config = ModelUserConfig.model_validate(deployment.user_config)
        adapter = () if args.ip_adapter is None else (args.ip_adapter.adapter,)
        controls = (control.source for control in args.controls.values())
        sources = (args.checkpoint, *controls, *adapter, *user_config.loras.values())
        for source in sources if args.tcd_lora is None else (*sources, args.tcd_lora):
            parse(source)


def test_the_demo_stays_on_this_machine() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    assert config["http_options"]["host"] == "127.0.0.1"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_replica_that_hangs_keeps_no_device(path: Path) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    options = config.controller_options
    assert options is not None
    assert options.runtime_env == {"env_vars": {"RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}}
