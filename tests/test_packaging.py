"""The two wheels of the project, and the small one installed where there is nothing else.

They are built of a copy, since setuptools leaves files behind. pip brings what they need.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from email.parser import Parser
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.http_server import serving
from tests.serving import Served

ROOT = Path(__file__).parents[1]
FILES = ("LICENSE", "NOTICE", "README.md", "pyproject.toml")
FOLDERS = ("client", "configs", "demo", "deployments", "graphs", "preprocessors", "tcd")
PLAYGROUND = "deployments/ingress/http/playground"
HEAVY = ("torch", "ray", "diffusers", "transformers", "fastapi", "boto3")
COMMANDS = (
    *("generate", "edit", "animate", "again", "preprocess", "models", "check", "fetch"),
    *("jobs", "jobs list", "jobs show", "jobs wait", "jobs cancel", "jobs delete"),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("sources")
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    for name in FOLDERS:
        ignored = ["__pycache__", *(["models", "weights"] if name == "demo" else [])]
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*ignored))
    return copy


def wheel(folder: Path, out: Path) -> Path:
    """What pip builds of a folder."""
    pip("wheel", "--no-deps", "--wheel-dir", out, folder)
    (built,) = out.glob("*.whl")
    return built


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    ran = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def names_in(built: Path) -> set[str]:
    with ZipFile(built) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def version_of(built: Path) -> str:
    with ZipFile(built) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return str(Parser().parsestr(archive.read(metadata).decode())["version"])


def modules_in(*packages: str) -> set[str]:
    return {str(f.relative_to(ROOT)) for name in packages for f in (ROOT / name).rglob("*.py")}


@pytest.fixture(scope="module")
def small_wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(sources / "client", tmp_path_factory.mktemp("client"))


class Installed:
    """The client in an environment of its own."""

    def __init__(self, folder: Path, built: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        pip("--python", self.python, "install", "-c", ROOT / "constraints.txt", built)
        self._folder = folder

    def run(self, *command: object, url: str = "", cwd: Path | None = None) -> Any:
        """A program of this environment, which sees no other."""
        words = [str(self._folder / "bin" / str(command[0])), *map(str, command[1:])]
        hidden = ("PYTHON", "TCD_", "VIRTUAL_ENV")
        variables = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        return subprocess.run(
            words,
            cwd=cwd or self._folder,
            env=variables | {"TCD_URL": url, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def client(small_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("environment") / "venv", small_wheel)


def test_the_whole_wheel(sources: Path, small_wheel: Path, tmp_path: Path) -> None:
    built = wheel(sources, tmp_path)
    names = names_in(built)
    packages = ("configs", "deployments", "graphs", "preprocessors", "tcd")
    assert names >= modules_in(*packages)
    assert names >= {f"{package}/py.typed" for package in packages}
    shown = [file for file in (ROOT / PLAYGROUND).rglob("*") if file.is_file()]
    assert shown
    assert names >= {
        str(file.relative_to(ROOT)) for file in shown if "__pycache__" not in file.parts
    }
    assert version_of(built) == version_of(small_wheel)


def test_the_small_wheel(small_wheel: Path) -> None:
    names = names_in(small_wheel)
    modules = {name for name in names if name.endswith(".py")}
    contracts = modules_in("tcd", "configs", "deployments/contracts")
    assert modules == contracts | {"deployments/__init__.py"}
    assert names >= {f"{package}/py.typed" for package in ("configs", "deployments", "tcd")}
    with ZipFile(small_wheel) as archive:
        texts = [Path(name).name for name in archive.namelist() if ".dist-info/" in name]
    assert {"LICENSE", "NOTICE"} <= set(texts)


def test_each_requirement_is_one_of_the_project() -> None:
    def project(path: str) -> Any:
        return tomllib.loads((ROOT / path).read_text())["project"]

    whole, small = project("pyproject.toml"), project("client/pyproject.toml")
    asked = {*small["dependencies"], *small["optional-dependencies"]["fetch"]}
    assert asked <= set(whole["dependencies"])
    assert small["scripts"] == whole["scripts"]


@pytest.mark.parametrize("module", HEAVY)
def test_it_brings_nothing_heavy(client: Installed, module: str) -> None:
    ran = client.run("python", "-c", f"import {module}")
    assert f"No module named '{module}'" in ran.stderr


def test_the_types_of_handles(client: Installed) -> None:
    code = """
import json, pickle, importlib, pkgutil
import configs.app, deployments.contracts
from deployments.contracts.jobs import ImageRequest, LoraWeight
for module in pkgutil.iter_modules(deployments.contracts.__path__):
    importlib.import_module(f"deployments.contracts.{module.name}")
request = ImageRequest("a red ball", model="sdxl", loras=(LoraWeight("ink", 0.7),))
assert pickle.loads(pickle.dumps(request)) == request
print(request.loras[0].name)
"""
    ran = client.run("python", "-W", "error", "-c", code)
    assert (ran.returncode, ran.stdout) == (0, "ink\n"), ran.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(client: Installed, command: str) -> None:
    ran = client.run("tcd", *command.split(), "--help")
    assert ran.returncode == 0, ran.stderr
    assert f"Usage: tcd {command}".strip() in ran.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["check", "a.safetensors"],
            "error: tcd check needs torch, diffusers, safetensors: "
            "install ray-serve-tcd in place of ray-serve-tcd-client\n",
        ),
        (
            ["fetch", "a.yaml"],
            "error: tcd fetch needs yaml, huggingface_hub, boto3: "
            "install ray-serve-tcd-client[fetch]\n",
        ),
    ],
)
def test_what_it_lacks_is_said(client: Installed, words: Sequence[str], said: str) -> None:
    ran = client.run("tcd", *words)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", said)


def test_it_asks_a_service(client: Installed) -> None:
    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": []}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Models) as url:
        ran = client.run("tcd", "models", url=url)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["model", "family", "size", "tasks", "styles", "controls"]


def test_it_draws(client: Installed, served: Served, tmp_path: Path) -> None:
    words = ["generate", "a red ball", "-m", "sd15", "--size", "64x64", "--seed", "7"]
    drawn = client.run("tcd", *words, url=served.url, cwd=tmp_path)
    assert (drawn.returncode, drawn.stdout) == (0, "7.png  64x64\n"), drawn.stderr
    again = client.run("tcd", "again", "7.png", "--json", url=served.url, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "7-2.png").read_bytes() == (tmp_path / "7.png").read_bytes()
    assert "sd15" in client.run("tcd", "models", url=served.url).stdout
