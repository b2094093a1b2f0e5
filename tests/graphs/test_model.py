"""The graph of a model application, as Serve takes it."""

import pytest
from ray.serve._private import build_app

from configs.app import ModelArgs
from graphs.model import ROUTER, build

ARGS = ModelArgs(name="sd15", family="sd15", checkpoint="somewhere", tcd_lora="somewhere")


def test_a_model_has_its_router_behind_serves_haproxy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setattr(build_app, "RAY_SERVE_ENABLE_HA_PROXY", True)
    application = build_app.build_app(build(ARGS), name="model-sd15")
    assert application.ingress_deployment_name == "Entrance"
    model, entrance = application.deployments
    assert (model.name, entrance.name) == ("Diffusion", "Entrance")
    assert model._deployment_config.request_router_config.request_router_class == ROUTER
    scaling = entrance._deployment_config.autoscaling_config
    assert scaling is not None
    assert scaling.min_replicas == 0


def test_elsewhere_it_is_one_deployment() -> None:
    (model,) = build_app.build_app(build(ARGS), name="model-sd15").deployments
    assert model.name == "Diffusion"
