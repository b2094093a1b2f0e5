"""Runs the blocks of a page one after the other, as a reader would who copies them."""

import ast
import asyncio
import contextlib
import inspect
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from ray import serve

from configs.app import ModelArgs
from graphs.check.config import problems
from graphs.model import DIFFUSION
from tests.docs.pages import ROOT, Block
from tests.serving import Served

LOCAL = "http://127.0.0.1:8000"
BASH_S = 240
NO_SETUP = 'make() { command make --silent --old-file=.venv/.ready "$@"; }\n'


def whole(text: str) -> object:
    """A Serve config of a block: applications alone stand beside those of the demo."""
    said = yaml.safe_load(text)
    if not isinstance(said, list):
        return said
    demo = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    names = [application["name"] for application in said]
    others = [one for one in demo["applications"] if one["name"] not in names]
    return demo | {"applications": [*others, *said]}


def compiled(code: str) -> Any:
    """Python as in a notebook: `await` stands anywhere."""
    return compile(code, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


class Reader:
    """Someone with a checkout, in which files may be written, and the service at `LOCAL`.

    Models of the CPU that a page's YAML names are deployed into that service until `leave`.
    """

    def __init__(self, folder: Path, served: Served) -> None:
        self._folder, self._served = folder, served
        self._names: dict[str, Any] = {}
        self._deployed: list[str] = []
        (ROOT / "out").mkdir(exist_ok=True)  # where paths of a config begin at the project's own
        for entry in ROOT.iterdir():
            if entry.name not in (".git", ".venv"):
                (folder / entry.name).symlink_to(entry)
        (folder / ".venv").symlink_to(sys.prefix)

    def follow(self, block: Block) -> str:
        """Does what a block says. Returns what it printed."""
        text = block.text.replace(LOCAL, self._served.url)
        if block.language == "bash":
            return self._bash(text)
        if block.language == "python":
            return self._python(text)
        if block.language == "yaml":
            self._yaml(text)
        return ""

    def leave(self) -> None:
        for name in self._deployed:
            serve.delete(name)

    def _bash(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", NO_SETUP + text],
            cwd=self._folder,
            env={
                **os.environ,
                "TCD_URL": self._served.url,
                "PYTHONPATH": str(ROOT),
                "HF_HUB_CACHE": str(self._folder / "hub"),  # nothing was fetched before
            },
            capture_output=True,
            text=True,
            timeout=BASH_S,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _python(self, text: str) -> str:
        with contextlib.chdir(self._folder), contextlib.redirect_stdout(io.StringIO()) as printed:
            waiting = eval(compiled(text), self._names)
            if inspect.iscoroutine(waiting):
                asyncio.run(waiting)
        return printed.getvalue()

    def _yaml(self, text: str) -> None:
        assert list(problems(whole(text))) == []
        first = text.splitlines()[0]
        if first.startswith("# ") and first.endswith(".yaml"):
            (self._folder / first.removeprefix("# ")).write_text(text)
        said = yaml.safe_load(text)
        for application in said if isinstance(said, list) else said["applications"]:
            if application["args"].get("device") == "cpu":
                self._deploy(application)

    def _deploy(self, application: dict[str, Any]) -> None:
        args = ModelArgs.model_validate(application["args"])
        (said,) = application["deployments"]
        options = {key: value for key, value in said.items() if key != "name"}
        target = DIFFUSION.options(**options).bind(args)
        self._deployed.append(application["name"])
        serve.run(target, name=application["name"], route_prefix=None)
        self._served.wait_until_ready(args.name)
