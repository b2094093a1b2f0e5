"""`make check-config` finds what Ray would ignore, and what would take an application down."""

import copy
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app

from configs.app import PreprocessorArgs, SafetyArgs, ServiceArgs
from graphs.check.__main__ import main
from graphs.check.agreement import SINGLETONS, deployments_of
from graphs.check.config import advice_of, problems, problems_of
from graphs.limits import GRACE_S
from graphs.model import ROUTER
from graphs.service import build

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs" / "production").glob("*.yaml"))]
PLUS = {"plus": {"adapter": "a/b/c.safetensors", "image_encoder": "vit"}}
DEMO = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
SERVICE, MODEL = 0, 1
Edit = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_nothing_is_wrong_with_ours(
    path: Path, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCD_API_KEYS", "as on the nodes")
    assert [*problems_of(path), *advice_of(path)] == []


def test_nothing_is_wrong_with_the_example_of_a_page() -> None:
    page = (ROOT / "docs/videos.md").read_text()
    (example,) = re.findall("```yaml\n(.*?)```", page, re.DOTALL)
    assert list(problems(yaml.safe_load(example))) == []


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def edit(mapping: dict[str, Any]) -> None:
        mapping[new] = mapping.pop(old)

    return edit


def traced(exporter: str, **more: object) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        said = {"enabled": True, "exporter_import_path": exporter}
        config["tracing_config"] = said | more

    return edit


def model(config: dict[str, Any]) -> dict[str, Any]:
    application: dict[str, Any] = config["applications"][MODEL]
    return application


def service(config: dict[str, Any]) -> dict[str, Any]:
    application: dict[str, Any] = config["applications"][SERVICE]
    return application


def routed(**kwargs: object) -> dict[str, object]:
    """A `request_router_config` of ours."""
    return {"request_router_class": ROUTER, "request_router_kwargs": kwargs}


def diffusion(config: dict[str, Any]) -> dict[str, Any]:
    deployment: dict[str, Any] = model(config)["deployments"][0]
    return deployment


def names(config: dict[str, Any], name: str = "Directory", **user_config: object) -> None:
    """Of models, in the `user_config` of a deployment of the service."""
    deployments = service(config)["deployments"]
    found = [one for one in deployments if one["name"] == name]
    if not found:
        found.append({"name": name})
        deployments.append(found[0])
    found[0]["user_config"] = user_config


def several_ingresses(config: dict[str, Any]) -> None:
    del service(config)["args"]["storage"]
    (ingress,) = (d for d in service(config)["deployments"] if d["name"] == "Ingress")
    ingress["num_replicas"] = 2


def limits(**changed: int) -> Edit:
    return lambda config: diffusion(config)["user_config"].update(limits=changed)


def share(config: dict[str, Any], **keys: object) -> None:
    """Has the model share GPUs, with such keys of Serve's beside the policy."""
    scale(config, "SharedGpus", pool="a", gpus=2)
    diffusion(config)["autoscaling_config"].update(keys)


def share_with_another(config: dict[str, Any]) -> None:
    """A second model has the pool's GPUs, which are its floor."""
    share(config, min_replicas=2)
    other = copy.deepcopy(model(config))
    other["name"] = "model-other"
    other["args"]["name"] = "other"
    config["applications"].append(other)
    share(config, min_replicas=0)


def scale(config: dict[str, Any], policy: str, floor: int = 1, **kwargs: object) -> None:
    """Has the model scale by a policy of ours."""
    named = {
        "policy_function": f"deployments.diffusion.autoscaling:{policy}",
        "policy_kwargs": kwargs,
    }
    diffusion(config).pop("num_replicas", None)
    diffusion(config)["autoscaling_config"] = {
        "min_replicas": floor,
        "max_replicas": 4,
        "policy": named,
    }


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda c: model(c)["args"]["controls"].update(
                edges={"source": "a/b", "mode": "edges"}, lines={"source": "a/b", "mode": "lineart"}
            ),
            "model-sd15.args.controls.edges.mode: Input should be 'openpose', 'depth', 'hed'",
        ),
        (
            traced("deployments.tracing.otlp:exporters"),
            "tracing_config.exporter_import_path: module 'deployments.tracing.otlp' has no",
        ),
        (
            traced("nowhere:exporter"),
            "tracing_config.exporter_import_path: No module named 'nowhere'",
        ),
        (
            traced("deployments.tracing.otlp:GOODBYE_S"),
            "tracing_config.exporter_import_path: deployments.tracing.otlp:GOODBYE_S is no",
        ),
        (
            traced("deployments.tracing.otlp:exporter", ratio=1),
            "tracing_config.ratio: Extra inputs",
        ),
        (
            traced("deployments.tracing.otlp:exporter", sampling_ratio=2),
            "tracing_config.sampling_ratio: Value error, sampling_ratio must be",
        ),
        (
            lambda c: model(c)["args"]["controls"].update(edges={"source": "/nowhere"}),
            "model-sd15.args.controls.edges: '/nowhere' does not exist",
        ),
        (rename("http_options", "http_option"), "http_option: Ray knows no such key here; http_o"),
        (
            lambda c: rename("route_prefix", "route_prefx")(model(c)),
            "model-sd15.route_prefx: Ray knows no such key here; route_prefix?",
        ),
        (
            lambda c: rename("num_replicas", "num_replica")(model(c)["deployments"][0]),
            "model-sd15.Diffusion.num_replica: Ray knows no such key here; num_replicas?",
        ),
        (
            lambda c: model(c)["deployments"][0].update(ray_actor_options={"num_gpu": 1}),
            "model-sd15.Diffusion.ray_actor_options.num_gpu: Ray knows no such key here; num_gpus?",
        ),
        (
            lambda c: rename("tcd_lora", "tcd_lroa")(model(c)["args"]),
            "model-sd15.args.tcd_lroa: there is no such key; tcd_lora?",
        ),
        (
            lambda c: model(c)["args"].update(dtype="float8"),
            "model-sd15.args.dtype: Input should be",
        ),
        (
            lambda c: model(c)["deployments"][0]["user_config"]["loras"].update(x="demo/nope/x"),
            "model-sd15.Diffusion.user_config.loras.x: 'demo/nope/x' does not exist",
        ),
        (
            lambda c: model(c)["deployments"][0].update(num_replicas=-1),
            "model-sd15.Diffusion.num_replicas",
        ),
        (
            lambda c: diffusion(c).update(request_router_config={"request_router_clas": ROUTER}),
            "model-sd15.Diffusion.request_router_config.request_router_clas: Ray knows no such key "
            "here; request_router_class?",
        ),
        (
            lambda c: diffusion(c).update(request_router_config={"request_router_class": "a.b.C"}),
            "model-sd15.Diffusion: No module named 'a'",
        ),
        (
            lambda c: diffusion(c).update(request_router_config=routed(load_s=True)),
            "model-sd15.Diffusion.request_router_config.request_router_kwargs: ",
        ),
        (
            lambda c: diffusion(c).update(
                request_router_config={
                    "request_router_class": ":".join(ROUTER.rsplit(".", 1)),
                    "request_router_kwargs": {"load": 2},
                }
            ),
            "model-sd15.Diffusion.request_router_config.request_router_kwargs: ",
        ),
        (
            lambda c: diffusion(c).update(request_router_config=routed(load_s=-1)),
            "model-sd15.Diffusion.request_router_config.request_router_kwargs: load_s is -1; ",
        ),
        (
            lambda c: diffusion(c).update(request_router_config=routed(lod_s=1)),
            "model-sd15.Diffusion.request_router_config.request_router_kwargs: ",
        ),
        (
            lambda c: diffusion(c).update(request_router_config=routed(load_s="soon")),
            "model-sd15.Diffusion.request_router_config.request_router_kwargs: ",
        ),
        (
            lambda c: scale(c, "ByWork", utilisation=0.5),
            "model-sd15.Diffusion.autoscaling_config.policy.policy_kwargs: ",
        ),
        (
            lambda c: scale(c, "ByWork", utilization=2),
            "model-sd15.Diffusion.autoscaling_config.policy.policy_kwargs: utilization is 2; "
            "it must be above 0, at most 1; there are utilization, target_s",
        ),
        (
            lambda c: scale(c, "ByWork", target_s="10"),
            "model-sd15.Diffusion.autoscaling_config.policy.policy_kwargs.target_s: it is '10'; ",
        ),
        (
            lambda c: scale(c, "ByWork", target_s=float("nan")),
            "model-sd15.Diffusion.autoscaling_config.policy.policy_kwargs: target_s is nan; it "
            "must be above 0, and finite; there are utilization, target_s",
        ),
        (
            lambda c: scale(c, "SharedGpus", gpus=2),
            "model-sd15.Diffusion.autoscaling_config.policy.policy_kwargs: ",
        ),
        (
            lambda c: scale(c, "SharedGpus", pool="a", gpus=1.5),
            "model-sd15.Diffusion.autoscaling_config.policy.policy_kwargs.gpus: it is 1.5; ",
        ),
        (
            lambda c: scale(c, "SharedGpus", floor=3, pool="a", gpus=2),
            "model-sd15.Diffusion.autoscaling_config: min_replicas of the models of pool 'a' are ",
        ),
        (
            share_with_another,
            "model-sd15.Diffusion.autoscaling_config.min_replicas: it is 0, and would stay 0: ",
        ),
        (
            lambda c: share(c, upscaling_factor=2),
            "model-sd15.Diffusion.autoscaling_config.upscaling_factor: it is 2; with SharedGpus it "
            "must be 1, or left out",
        ),
        (
            lambda c: share(c, smoothing_factor=0.5),
            "model-sd15.Diffusion.autoscaling_config.smoothing_factor: it is 0.5; with SharedGpus ",
        ),
        (
            lambda c: share(c, initial_replicas=2),
            "model-sd15.Diffusion.autoscaling_config.initial_replicas: it is 2; with SharedGpus it "
            "must be 1, as min_replicas is, or left out",
        ),
        (lambda c: model(c).update(name="sd15"), "sd15.name: the application of this model is"),
        (
            lambda c: c["applications"].append({**model(c), "name": "model-other"}),
            "model-other.args.name: 'sd15' is the model of model-sd15, too; each has its own name",
        ),
        (
            lambda c: service(c)["args"].update(max_imagse=3),
            "tcd.args.max_imagse: there is no such key; max_images?",
        ),
        (
            lambda c: model(c)["args"].update(embeddings={"cat": "a/b/c", "Cat": "a/b/d"}),
            "model-sd15.args: Value error, embeddings: 'cat' and 'Cat' are one word: prompts nam",
        ),
        (
            lambda c: diffusion(c)["user_config"]["limits"].update(max_framse=8),
            "model-sd15.Diffusion.user_config.limits.max_framse: there is no such key; max_frames?",
        ),
        (
            lambda c: service(c)["args"].update(storage={"kind": "folder", "path": "x", "pth": 1}),
            "tcd.args.storage.folder.pth: there is no such key; path?",
        ),
        (
            lambda c: service(c)["args"]["depth"].update(checkpoint="demo/nope/x"),
            "tcd.args.depth.checkpoint: 'demo/nope/x' does not exist",
        ),
        (
            lambda c: model(c)["args"].update(family="sdxl", motion_adapter=None),
            "model-sd15.args.checkpoint: sd15 is a checkpoint of sd15, and family is sdxl: set fa",
        ),
        (
            lambda c: model(c)["args"].update(
                prediction_type="epsilon", rescale_betas_zero_snr=True
            ),
            "model-sd15.args: Value error, rescale_betas_zero_snr needs prediction_type: v_predic",
        ),
        (
            lambda c: model(c)["args"].update(prediction_type="rf"),
            "model-sd15.args.prediction_type: Input should be 'epsilon' or 'v_prediction'",
        ),
        (
            lambda c: model(c)["args"].update(device="gpu"),
            "model-sd15.args.device: String should match pattern '^(auto|(cpu|cuda|",
        ),
        (
            lambda c: model(c)["args"].update(motion_adapter="guoyww/animatediff/mm_sd_v15.ckpt"),
            "model-sd15.args.motion_adapter: mm_sd_v15.ckpt is a pickle, which can run code",
        ),
        (
            lambda c: model(c)["args"].update(motion_schedule={"beta_schedule": "cosine"}),
            "model-sd15.args.motion_schedule.beta_schedule: Input should be 'linear', 'scaled_lin",
        ),
        (
            lambda c: model(c)["args"].update(
                motion_adapter=None, motion_schedule={"timestep_spacing": "trailing"}
            ),
            "model-sd15.args: Value error, motion_schedule is of videos, and the model has no moti",
        ),
        (
            lambda c: model(c)["args"].update(motion_adapter=None),
            "model-sd15.Diffusion.user_config.motion_loras: the model makes no videos",
        ),
        (
            lambda c: service(c)["args"].update(allowed_url_hosts=["https://pictures.example/"]),
            "tcd.args.allowed_url_hosts.0: String should match pattern",
        ),
        # Of what lists and mappings should hold.
        (lambda c: c.update(applications=None), "applications: it is a list of applications"),
        (lambda c: c["applications"].append("tcd"), "applications.8: an application is a mapping"),
        (
            lambda c: model(c).update(deployments={"name": "Diffusion"}),
            "model-sd15.deployments: it is a list",
        ),
        (
            lambda c: model(c)["deployments"].append(3),
            "model-sd15.deployments.1: a deployment is a mapping",
        ),
        (lambda c: model(c).update(args=[1]), "model-sd15.args: Input should be a valid dict"),
        (
            lambda c: diffusion(c).update(user_config="limits"),
            "model-sd15.Diffusion.user_config: Input should be a valid dict",
        ),
        (
            lambda c: diffusion(c)["user_config"].update(loras=["ink"]),
            "model-sd15.Diffusion.user_config.loras: Input should be a valid dict",
        ),
        (lambda c: c.update(http_options=[]), "http_options: Input should be a valid dict"),
        (
            lambda c: service(c)["args"].update(safety={"checkpoint": "nowhere"}),
            "tcd.args.safety.checkpoint: 'nowhere' does not exist below",
        ),
        (
            lambda c: service(c)["args"].update(
                provenance={"certificate": "LICENSE", "key_file": "LICENSE"}
            ),
            "tcd.args.provenance: certificate 'LICENSE' and its key cannot sign",
        ),
        (
            lambda c: service(c)["args"].update(keys={"file": "LICENSE"}),
            f"tcd.args.keys.file: keys file {ROOT / 'LICENSE'}: ",
        ),
        (
            lambda c: service(c)["args"].update(storage={"kind": "folder", "path": "LICENSE/a"}),
            f"tcd.args.storage.path: {ROOT / 'LICENSE'} is no folder",
        ),
        (
            lambda c: service(c)["args"].update(
                jobs={"storage": {"kind": "folder", "path": "LICENSE"}}
            ),
            f"tcd.args.jobs.storage.path: {ROOT / 'LICENSE'} is no folder",
        ),
        (
            lambda c: service(c)["args"].update(
                jobs={"storage": {"kind": "folder", "path": "out/files"}}
            ),
            "tcd.args.jobs.storage.path: files by URL are kept in 'out/files', too (storage.path)",
        ),
        # Of what Ray refuses.
        (
            lambda c: model(c).update(runtime_env={"env_vars": {"HF_HUB_OFFLINE": 1}}),
            "model-sd15.runtime_env: runtime_env['env_vars'] must be of type Dict[str, str]",
        ),
        (
            lambda c: diffusion(c)["ray_actor_options"].update(
                runtime_env={"env_vars": {"HF_HUB_OFFLINE": 1}}
            ),
            "model-sd15.Diffusion.ray_actor_options.runtime_env: runtime_env['env_vars'] must be",
        ),
        (
            lambda c: diffusion(c)["ray_actor_options"].update(num_gpus=1.5),
            "model-sd15.Diffusion.ray_actor_options.num_gpus: it is 1.5; above 1 it must be whole",
        ),
        (
            lambda c: service(c).update(route_prefix="tcd"),
            "tcd.route_prefix: Invalid route_prefix 'tcd', must start with a forward slash",
        ),
        (
            lambda c: c["applications"].append(model(c)),
            'applications: Value error, Found multiple configs for application "model-sd15"',
        ),
        (
            lambda c: model(c).pop("route_prefix"),
            'applications: Value error, Found duplicate applications for route prefix "/"',
        ),
        (
            lambda c: diffusion(c).update(max_queued_requests=-3),
            "model-sd15.Diffusion: Value error, max_queued_requests must be -1",
        ),
        (
            lambda c: diffusion(c).update(autoscaling_config={"min_replicas": 1}),
            "model-sd15.Diffusion: Value error, Manually setting num_replicas is not allowed when",
        ),
        (
            lambda c: service(c)["deployments"][1]["autoscaling_config"].update(min_replicas=2),
            "tcd.Depth.autoscaling_config: Value error, max_replicas (1) must be greater",
        ),
        (
            lambda c: diffusion(c).update(autoscaling_config={"min_replica": 0}),
            "model-sd15.Diffusion.autoscaling_config.min_replica: Ray knows no such key here; min_",
        ),
        (
            lambda c: c.update(controller_options={"runtime_env": {"pip": ["x"]}}),
            "controller_options.runtime_env: Value error",
        ),
        # Of what parts say of each other.
        (
            lambda c: model(c).update(import_path="graphs.model:biuld"),
            "model-sd15.import_path: the graphs here are graphs.service:build and graphs.model:bui",
        ),
        (
            lambda c: model(c).update(route_prefix="/sd15"),
            "model-sd15.route_prefix: null; requests reach a model by the service alone",
        ),
        (
            lambda c: diffusion(c).update(name="Difusion"),
            "model-sd15.Difusion: the deployment of a model is named Diffusion",
        ),
        (
            lambda c: service(c)["args"].update(aliases={"gpt-image-1": "sd51"}),
            "tcd.args.aliases.gpt-image-1: there is no application model-sd51 in this file",
        ),
        (
            lambda c: service(c)["args"].update(aliases={"sdxl": "sd15"}),
            "tcd.args.aliases.sdxl: the application model-sdxl has that name",
        ),
        (
            lambda c: names(c, aliases={"sdxl": {"sd15": 9, "sdxl": 1}}),
            "tcd.Directory.user_config: Value error, the alias 'sdxl' names 'sdxl', which is an al",
        ),
        (
            lambda c: names(c, aliases={"public": {"sd15": 9, "sd51": 1}}),
            "tcd.Directory.user_config.aliases.public: there is no application model-sd51 in this "
            "file",
        ),
        (
            lambda c: names(c, aliases={"public": {"sd15": 0}}),
            "tcd.Directory.user_config.aliases.public.sd15: Input should be greater than 0",
        ),
        (
            lambda c: names(c, default_model="sd51"),
            "tcd.Directory.user_config.default_model: there is no application model-sd51 in this "
            "file",
        ),
        (
            lambda c: names(c, name="Ingress", default_model="sd15"),
            "tcd.Ingress.user_config: of the deployments of the service Directory alone takes one",
        ),
        (
            lambda c: service(c)["args"].update(default_model="sd51"),
            "tcd.args.default_model: there is no application model-sd51 in this file",
        ),
        (
            lambda c: service(c)["args"].update(image_encoders={}),
            "model-sd15.args.ip_adapter.image_encoder: the service has no image encoder 'sd15'; it "
            "has: none",
        ),
        (
            lambda c: model(c)["args"].update(ip_adapter=None, ip_adapters=PLUS),
            "model-sd15.args.ip_adapters.plus.image_encoder: the service has no image encoder "
            "'vit'; it has: sd15",
        ),
        (
            lambda c: model(c)["args"].update(
                ip_adapter=None, ip_adapters={"base": {"adapter": "s3://", "image_encoder": "sd15"}}
            ),
            "model-sd15.args.ip_adapters.base.adapter: ",
        ),
        (
            lambda c: service(c)["args"].pop("depth"),
            "tcd.Depth: there is no such deployment; there are Ingress, ",
        ),
        (
            lambda c: service(c)["deployments"].append({"name": "JobStore", "num_replicas": 2}),
            "tcd.JobStore: one replica remembers for all others",
        ),
        (
            limits(min_side=128),
            "model-sd15.args.defaults.width: 64 is not from min_side 128 to max_side 2048",
        ),
        (
            limits(max_pixels=4000),
            "model-sd15.Diffusion.user_config.limits.max_pixels: 4000 is below the 64x64",
        ),
        (
            lambda c: model(c)["args"].update(warmup=[{"width": 64, "height": 1024}]),
            "model-sd15.args.warmup: 64x1024 is not within model-sd15.Diffusion.user_config.limits",
        ),
        (
            lambda c: model(c)["args"].update(compile="graphs"),
            "model-sd15.args: Value error, compile: graphs needs a CUDA device; device is cpu",
        ),
        (
            limits(max_pending=9),
            "model-sd15.Diffusion.user_config.limits.max_pending: 9 is below the service's max_im",
        ),
        # Of times.
        (
            lambda c: service(c)["args"].update(request_timeout_s=301, max_timeout_s=300),
            "tcd.args: Value error, request_timeout_s 301 is above max_timeout_s 300",
        ),
        (
            lambda c: c["http_options"].update(request_timeout_s=300),
            "http_options.request_timeout_s: 300 is not above max_timeout_s 300: Serve would end",
        ),
        (
            lambda c: c["http_options"].update(port=99999),
            "http_options.port: 99999 is not from 0 to 65535",
        ),
        # Of what the service reads.
        (
            lambda c: service(c)["args"]["depth"].update(checkpoint="demo/weights/sd15"),
            "tcd.args.depth.checkpoint: sd15 has no config.json that can be read",
        ),
        (
            lambda c: service(c)["args"].update(
                safety={"checkpoint": service(c)["args"]["depth"]["checkpoint"]}
            ),
            "tcd.args.safety.checkpoint: dpt-hybrid is of model_type 'dpt'; clip is needed",
        ),
        (
            lambda c: service(c)["args"]["image_encoders"]["sd15"].update(
                checkpoint=service(c)["args"]["depth"]["checkpoint"]
            ),
            "tcd.args.image_encoders.sd15.checkpoint: dpt-hybrid is of model_type 'dpt'; clip_vis",
        ),
    ],
)
def test_what_is_wrong(edit: Edit, says: str, demo_models: Path) -> None:
    config = copy.deepcopy(DEMO)
    edit(config)
    found = list(problems(config))
    assert [problem for problem in found if problem.startswith(says)], found
    assert not [problem for problem in found if "\n" in problem]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            limits(max_batch=16, max_running=7),
            "model-sd15.Diffusion.user_config.limits.max_batch: 16 is above two rows for each",
        ),
        (
            limits(max_pending=2000),
            "model-sd15.Diffusion.max_ongoing_requests: 1000 is below max_pending 2000",
        ),
        (
            lambda c: diffusion(c).update(max_ongoing_requests=100),
            "model-sd15.Diffusion.max_ongoing_requests: 100 is below max_pending 128",
        ),
        (
            lambda c: diffusion(c).update(max_queued_requests=100),
            "model-sd15.Diffusion.max_queued_requests: 100 is below max_pending 128",
        ),
        (
            lambda c: c["http_options"].update(request_timeout_s=310),
            "http_options.request_timeout_s: 310 is below max_timeout_s 300 and 30 for the answer",
        ),
        (
            lambda c: service(c)["args"].update(request_timeout_s=600),
            "tcd.JobWorker.graceful_shutdown_timeout_s: 330 is below max_timeout_s 600",
        ),
        (
            lambda c: diffusion(c).update(graceful_shutdown_timeout_s=60),
            "model-sd15.Diffusion.graceful_shutdown_timeout_s: 60 is below max_timeout_s 300",
        ),
        (
            lambda c: diffusion(c).update(health_check_timeout_s=30),
            "model-sd15.Diffusion.health_check_timeout_s: 30 is not from 5 to 20",
        ),
        (
            lambda c: diffusion(c).update(health_check_period_s=30),
            "model-sd15.Diffusion.health_check_period_s: 30: its figures are told as often",
        ),
        (
            lambda c: model(c)["args"].update(device="cuda"),
            "model-sd15.Diffusion.ray_actor_options: device is cuda, and no num_gpus is asked for",
        ),
        (
            lambda c: diffusion(c)["ray_actor_options"].update(num_gpus=1),
            "model-sd15.Diffusion.ray_actor_options.num_gpus: 1, and device is cpu: the GPU is",
        ),
        (
            lambda c: service(c)["args"].update(keys={"file": "/nowhere/keys.yaml"}),
            "tcd.args.keys.file: '/nowhere/keys.yaml' is not on this machine",
        ),
        (
            lambda c: service(c)["args"].update(keys={"env": "TCD_NOT_SET"}),
            "tcd.args.keys.env: TCD_NOT_SET is not set here",
        ),
        (
            lambda c: service(c)["args"].update(
                provenance={"certificate": "/nowhere/chain.pem", "key_env": "TCD_NOT_SET"}
            ),
            "tcd.args.provenance.certificate: '/nowhere/chain.pem' is not on this machine",
        ),
        (
            lambda c: service(c)["args"].update(
                provenance={"certificate": "LICENSE", "key_env": "TCD_NOT_SET"}
            ),
            "tcd.args.provenance.key_env: TCD_NOT_SET is not set here",
        ),
        (
            lambda c: service(c)["args"].update(api_keys_env="TCD_NOT_SET"),
            "tcd.args.api_keys_env: TCD_NOT_SET is not set here",
        ),
        (
            lambda c: service(c)["args"].update(
                jobs={"webhooks": {"secret_env": "TCD_NOT_SET", "allowed_hosts": ["a.example"]}}
            ),
            "tcd.args.jobs.webhooks.secret_env: TCD_NOT_SET is not set here",
        ),
        (
            lambda c: diffusion(c).update(
                request_router_config={"request_routing_stats_period_s": 5}
            ),
            "model-sd15.Diffusion.request_router_config: it is replaced as a whole; without",
        ),
        (
            several_ingresses,
            "tcd.args.storage: temporary files are on the node that made them",
        ),
        (
            several_ingresses,
            "tcd.args.jobs.storage: jobs are kept on the node of JobStore",
        ),
        (
            lambda c: c["applications"].pop(SERVICE),
            "applications: models, and no service before them: where this file is deployed, none",
        ),
        (
            traced("deployments.tracing.otlp:exporter"),
            "tracing_config: RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH is not set here",
        ),
    ],
)
def test_what_works_is_advised(
    edit: Edit,
    says: str,
    demo_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, path = copy.deepcopy(DEMO), tmp_path / "works.yaml"
    config["applications"] = config["applications"][:2]
    edit(config)
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["check", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert f"{path}: advice: {says}" in said
    assert all(": advice: " in line for line in said.splitlines())


def test_args_that_are_refused_hide_no_encoder(demo_models: Path) -> None:
    config = copy.deepcopy(DEMO)
    service(config)["args"]["max_images"] = 0
    (problem,) = problems(config)
    assert problem.startswith("tcd.args.max_images: ")


def test_times_that_agree(demo_models: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(DEMO)
    service(config)["args"].update(max_timeout_s=100, request_timeout_s=60)
    config["http_options"]["request_timeout_s"] = 100 + GRACE_S
    diffusion(config)["graceful_shutdown_timeout_s"] = 100 + GRACE_S
    path = tmp_path / "agrees.yaml"
    path.write_text(yaml.safe_dump(config))
    assert [*problems_of(path), *advice_of(path)] == []


def test_the_names_of_the_services_deployments() -> None:
    args = ServiceArgs(
        depth=PreprocessorArgs(checkpoint="a/b"),
        image_encoders={"vit": PreprocessorArgs(checkpoint="a/b")},
        safety=SafetyArgs(checkpoint="a/b"),
    )
    for each in (args, ServiceArgs()):
        built = build_app(build(each), name="tcd").deployments
        assert {deployment.name for deployment in built} == set(deployments_of(each))
        single = {each.name for each in built if each.num_replicas == 1} & set(SINGLETONS)
        assert single == set(SINGLETONS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a Serve config is a mapping with `applications`"),
        ("just words", "a Serve config is a mapping with `applications`"),
        ("{}", "applications: it is a list of applications, each a mapping"),
        ("applications: [", "it is no YAML: while parsing a flow node"),
        ("a: 1\n- b", "it is no YAML: while parsing a block mapping"),
        ("a: \t@", "it is no YAML: while scanning for the next token"),
        ("a: !!python/name:os.system", "it is no YAML: could not determine a constructor"),
        ("a: 2026-99-99", "it is no YAML: month must be in 1..12"),
        ("&a {a: *a}", "applications: it is a list of applications, each a mapping"),
        ("&a [*a]: 1", "it is no YAML: while constructing a mapping"),
        ("{a: 1, b: {c: 1, c: 2}}", "it is no YAML: 'c' stands twice"),
        ("[" * 2000, "it is no YAML: maximum recursion depth exceeded"),
        ("\x00", "it is no YAML: unacceptable character"),
    ],
)
def test_files_that_hold_no_config(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    (problem,) = problems_of(path)
    assert problem.startswith(says)
    assert "\n" not in problem


def test_any_value_anywhere(demo_models: Path) -> None:
    """Whatever stands where something else belongs: lines, and no exception."""
    config = {**copy.deepcopy(DEMO), "applications": copy.deepcopy(DEMO["applications"][:2])}
    wrong = [*product(places(config, ()), (None, 3, "x", [3], {"x": 3}))]
    for place, value in random.Random(0).sample(wrong, 60):
        holder: Any = config
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]], before = value, holder[place[-1]]
        for problem in problems(config):
            assert "\n" not in problem, (place, problem)
        holder[place[-1]] = before


def places(value: object, path: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    """The way to every value in a config."""
    inner: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    here = [path] if path else []
    return here + [place for key, each in inner for place in places(each, (*path, key))]


def test_files_that_are_something_else(demo_models: Path, tmp_path: Path) -> None:
    """What the headers of files on this machine tell, wherever they are named."""
    config = copy.deepcopy(DEMO)
    args, changing = model(config)["args"], diffusion(config)["user_config"]
    page, cut = tmp_path / "page.safetensors", tmp_path / "cut.safetensors"
    page.write_text("<!DOCTYPE html><html>404</html>")
    style = "demo/weights/loras/sd15/ink.safetensors"
    whole = (ROOT / style).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    args["tcd_lora"] = args["ip_adapter"]["adapter"]
    args["controls"]["canny"] = args["motion_adapter"] = args["ip_adapter"]["adapter"] = style
    args["embeddings"] = {"cat": args["tcd_lora"], "bundled": style}
    changing["loras"] = {"page": str(page), "cut": str(cut), "ink": style}
    said = [line for line in problems(config) if line.startswith("model-sd15.")]
    adapter = "ink.safetensors is an adapter, not"
    picture = "ip-adapter_sd15.safetensors is an IP-Adapter, not"
    for key, says in {
        "args.tcd_lora": f"{picture} an adapter; it stands in `ip_adapter`",
        "args.controls.canny": f"{adapter} a ControlNet or a T2I-Adapter; adapters stand in `lor",
        "args.motion_adapter": f"{adapter} a motion adapter; ",
        "args.ip_adapter.adapter": f"{adapter} an IP-Adapter; ",
        "args.embeddings.cat": f"{picture} a textual inversion or an adapter; ",
        "Diffusion.user_config.loras.page": "page.safetensors is not a readable safetensors file",
        "Diffusion.user_config.loras.cut": "cut.safetensors is not a readable safetensors file",
    }.items():
        assert [line for line in said if line.startswith(f"model-sd15.{key}: {says}")], (key, said)
    assert len(said) == 7, said


def test_the_command(tmp_path: Path, demo_models: Path) -> None:
    bad, none = tmp_path / "bad.yaml", tmp_path / "none.yaml"
    bad.write_text("[]")
    good = CONFIGS[0]
    ran = subprocess.run(
        [sys.executable, "-m", "graphs.check", bad, none, tmp_path, good],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "bad.yaml: a Serve config is a mapping" in ran.stdout
    assert "none.yaml: it cannot be read: No such file or directory" in ran.stdout
    assert f"{tmp_path}: it cannot be read: Is a directory" in ran.stdout
    assert "serve_config.yaml: as it should be" in ran.stdout
    assert "Traceback" not in ran.stderr
