"""The commands that speak to the running service."""

import base64
import ipaddress
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from demo.service import ROOT
from tcd.__main__ import main
from tests.deployments.ingress.images import png
from tests.http_server import serving
from tests.serving import Served

PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
SMALL = ("--model", "sd15", "--size", "64x64")


class Told:
    """What a command ended with."""

    def __init__(self, code: int, out: str, error: str) -> None:
        self.code, self.out, self.error = code, out, error

    @property
    def files(self) -> list[Path]:
        """The first word of each line."""
        return [Path(line.split()[0]) for line in self.out.splitlines()]


@pytest.fixture
def tcd(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> Any:
    """Runs a command in an empty folder, against the service that `TCD_URL` names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TCD_URL", served.url)

    def run(*words: object) -> Told:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        said = capsys.readouterr()
        code = ended.value.code or 0
        if isinstance(code, str):  # which Python prints
            return Told(1, said.out, said.err + code)
        return Told(code, said.out, said.err)

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def close(one: Path, other: Path) -> bool:
    return int(np.abs(pixels(one) - pixels(other)).max()) <= 2


def picture(name: str) -> Path:
    path = Path(name)
    path.write_bytes(png(PICTURE))
    return path


def test_images_are_named_by_their_seeds(tcd: Any, served: Served) -> None:
    told = tcd("generate", "a red ball", *SMALL, "--seed", 5, "-n", 2, "--lora", "ink=0.7")
    assert told.code == 0, told.error
    assert told.out.splitlines() == ["5.png  64x64", "6.png  64x64"]
    body = {
        "prompt": "a red ball",
        "model": "sd15",
        "size": "64x64",
        "seed": 6,
        "loras": [{"name": "ink", "weight": 0.7}],
    }
    answer = httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=60).json()
    Path("direct.png").write_bytes(base64.b64decode(answer["data"][0]["b64_json"]))
    assert close(Path("6.png"), Path("direct.png"))
    # One that is there is not written over.
    assert tcd("generate", "a red ball", *SMALL, "--seed", 5).out.split()[0] == "5-2.png"


def test_as_json(tcd: Any) -> None:
    told = tcd("generate", "a", *SMALL, "--seed", 1, "--json", "--out", "some/where")
    (line,) = map(json.loads, told.out.splitlines())
    assert line == {"file": "some/where/1.png", "seed": 1, "size": "64x64", "index": 0}
    assert told.error == ""


def test_all_fields_reach_the_request(tcd: Any) -> None:
    source = picture("photo.png")
    told = tcd(
        *("generate", "a red ball", *SMALL, "--seed", 3, "--steps", 3, "--eta", 0.1),
        *("--guidance", 2, "--negative", "snow", "--format", "webp", "--lora", "ink"),
        *("--control", f"canny={source}@0.6", "--like", f"{source}@0.3"),
        *("--set", "clip_skip=1", "--set", "prompt_syntax=weighted"),
    )
    assert (told.code, told.out) == (0, "3.webp  64x64\n"), told.error
    said = json.loads(tcd("again", "3.webp", "--say").out)
    assert said["loras"] == [{"name": "ink", "weight": 1.0}]
    assert said["controls"][0]["type"] == "canny"
    assert said["controls"][0]["conditioning_scale"] == 0.6
    assert said["ip_adapter"]["scale"] == 0.3
    given = {
        "num_inference_steps": 3,
        "eta": 0.1,
        "guidance_scale": 2.0,
        "negative_prompt": "snow",
        "output_format": "webp",
        "clip_skip": 1,
        "prompt_syntax": "weighted",
    }
    assert {name: said[name] for name in given} == given


def test_again(tcd: Any) -> None:
    source = picture("photo.png")
    made = tcd("generate", "a red ball", *SMALL, "--seed", 4, "--like", source)
    assert made.code == 0, made.error
    (first,) = made.files
    refused = tcd("again", first)
    assert refused.code == 1
    assert "ip_adapter.image[0] (sha256:" in refused.error
    assert "--picture" in refused.error
    told = tcd("again", first, "--picture", source, "--out", "again")
    assert told.code == 0, told.error
    assert (Path("again") / first).read_bytes() == first.read_bytes()
    other = tcd("again", first, "--picture", source, "--seed", 9)
    assert other.files == [Path("9.png")]
    assert tcd("again", source).code == 1
    assert "does not say how it was made" in tcd("again", source).error
    Path("text.png").write_text("no picture")
    assert "is no picture" in tcd("again", "text.png").error


def test_edits(tcd: Any) -> None:
    source = picture("photo.png")
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:32] = 255
    Path("mask.png").write_bytes(png(mask))
    told = tcd("edit", source, "a red ball", "--mask", "mask.png", *SMALL, "--seed", 2)
    assert told.code == 0, told.error
    (made,) = told.files
    assert (pixels(made)[32:] == PICTURE[32:]).all()
    assert (pixels(made)[:32] != PICTURE[:32]).any()
    again = tcd("again", made, "--picture", source, "--picture", "mask.png", "-o", "again")
    assert again.code == 0, again.error
    assert (Path("again") / made).read_bytes() == made.read_bytes()


def test_maps(tcd: Any) -> None:
    source = picture("photo.png")
    told = tcd("preprocess", "canny", source, "--set", "low_threshold=10")
    assert (told.code, told.out) == (0, "photo-canny.png\n"), told.error
    assert set(np.unique(pixels(Path("photo-canny.png")))) <= {0, 255}
    assert tcd("preprocess", "pose", source).code == 2


def test_videos(tcd: Any) -> None:
    source = picture("photo.png")
    told = tcd(
        *("animate", "a ball", *SMALL, "--frames", 4, "--seed", 8, "--format", "webp"),
        *("--start", source, "--motion", "zoom-in=0.5", "--fps", 4),
    )
    assert (told.code, told.out) == (0, "8.webp  64x64\n"), told.error
    assert Image.open("8.webp").n_frames == 4  # type: ignore[attr-defined]
    again = tcd("again", "8.webp", "--picture", source, "-o", "again")
    assert again.code == 0, again.error
    assert Path("again/8.webp").read_bytes() == Path("8.webp").read_bytes()


def test_jobs(tcd: Any) -> None:
    job_id = tcd("generate", "a red ball", *SMALL, "--seed", 1, "-n", 2, "--later").out.strip()
    assert tcd("jobs", "wait", job_id).out.splitlines() == ["1.png  64x64", "2.png  64x64"]
    assert job_id in tcd("jobs", "list", "--limit", 5).out
    listed = [json.loads(line) for line in tcd("jobs", "list", "--json").out.splitlines()]
    assert job_id in [job["id"] for job in listed]
    assert json.loads(tcd("jobs", "show", job_id).out)["status"] == "completed"
    late = tcd("jobs", "cancel", job_id)
    assert (late.code, late.out) == (1, "")
    assert f"{job_id} is completed: there was nothing to stop" in late.error
    assert tcd("jobs", "delete", job_id).code == 0
    gone = tcd("jobs", "wait", job_id)
    assert gone.code == 1
    assert "does not exist" in gone.error
    video = tcd("animate", "a", *SMALL, "--frames", 24, "--steps", 50, "--later").out.strip()
    assert tcd("jobs", "cancel", video).out == f"{video} is cancelled\n"
    stopped = tcd("jobs", "wait", video)
    assert (stopped.code, stopped.out) == (1, "")
    assert "is cancelled" in stopped.error


def test_brackets_are_no_markup(tcd: Any) -> None:
    prompt = "a [cat|dog] in [red:blue:0.5] snow [/b]"
    job_id = tcd("generate", prompt, *SMALL, "--later").out.strip()
    listed = tcd("jobs", "list").out
    assert any(job_id in line and "[cat|dog]" in line for line in listed.splitlines())
    assert tcd("jobs", "wait", job_id).code == 0


def test_a_picture_that_is_named_in_a_prompt(tcd: Any) -> None:
    made = tcd("generate", "sha256: is a hash", *SMALL, "--seed", 4)
    again = tcd("again", made.files[0], "-o", "again")
    assert again.code == 0, again.error
    assert (Path("again") / made.files[0]).read_bytes() == made.files[0].read_bytes()


def test_pictures_that_cannot_be_read(tcd: Any) -> None:
    bomb = PngInfo()
    bomb.add_text("tcd", "[" * 100_000)
    Image.fromarray(PICTURE).save("deep.png", pnginfo=bomb)
    bomb = PngInfo()
    bomb.add_text("tcd", "x" * 3_000_000, zip=True)
    Image.fromarray(PICTURE).save("large.png", pnginfo=bomb)
    for name in ("deep.png", "large.png"):
        told = tcd("again", name)
        assert (told.code, told.out) == (1, "")
        assert name in told.error
    source = picture("photo.png")
    made = tcd("edit", source, "a red ball", *SMALL, "--seed", 2)
    Path("other.png").write_bytes(png(255 - PICTURE))
    (again,) = tcd("again", made.files[0], "--set", "image=other.png", "-o", "again").files
    assert not close(again, made.files[0])
    told = tcd("again", made.files[0], "--set", "image=https://example.com/a.png")
    assert told.code == 2
    assert "no file" in told.error


def test_a_folder_that_cannot_be_is_told_before_anything_is_made(tcd: Any) -> None:
    Path("file").write_text("")
    for words in (["generate", "a"], ["animate", "a"], ["preprocess", "canny", picture("a.png")]):
        told = tcd(*words, "--out", "file")
        assert told.code == 1
        assert "--out file: " in told.error


def test_a_service_that_is_none(tcd: Any) -> None:
    class Other(BaseHTTPRequestHandler):
        body = b""

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *_: object) -> None:
            pass

    for body in (b"<html>", b"{}", b"[1]"):
        Other.body = body
        with serving(Other) as url:
            for words in (["models"], ["models", "a"], ["jobs", "list"], ["jobs", "wait", "a"]):
                told = tcd(*words, "--url", url)
                assert told.code == 3, words
                assert url in told.error


def test_jobs_are_waited_for_as_long_as_was_said(tcd: Any) -> None:
    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b": nothing new\n\n")
                    time.sleep(0.1)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Silent) as url:
        told = tcd("jobs", "wait", "image_1", "--timeout", 1, "--url", url)
    assert told.code == 1
    assert "not done within 1 s" in told.error


def test_on_a_terminal_the_last_that_stands_is_what_was_made(
    served: Served, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    words = ["generate", "a", *SMALL, "--steps", "8", "-n", "3", "--seed", "7"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tcd", *words],
        cwd=tmp_path,
        env={**os.environ, "TCD_URL": served.url, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # it ends so
        while chunk := os.read(ours, 4096):
            said += chunk
    os.close(ours)
    assert process.wait(30) == 0
    lines = said.decode().split("\r\n")
    assert any("image 0: step" in line for line in lines)
    *_, first, second, third, last = lines
    assert first.endswith("7.png  64x64")
    assert (second, third, last) == ("8.png  64x64", "9.png  64x64", "")


def test_models(tcd: Any) -> None:
    told = tcd("models")
    (line,) = (line for line in told.out.splitlines() if line.split()[0] == "sd15")
    assert "ink" in line
    assert "128x128" in line
    (line,) = (line for line in told.out.splitlines() if line.split()[0] == "animagine")
    assert "papercut, and others, by name" in line
    assert json.loads(tcd("models", "sd15").out)["family"] == "sd15"
    assert {json.loads(line)["id"] for line in tcd("models", "--json").out.splitlines()} >= {
        "sd15",
        "sdxl",
    }
    assert tcd("models", "nope").code == 1


def test_where_models_run(tcd: Any, served: Served) -> None:
    told = tcd("models", "sd15", "--where", "--json")
    (replica,) = json.loads(told.out)["replicas"]
    assert served.logs is not None
    assert list(served.logs.glob(f"replica_model-sd15_Diffusion_{replica['id']}*"))
    assert ipaddress.ip_address(replica["node"])
    assert replica["device"] == "cpu"
    table = tcd("models", "--where").out
    (line,) = (line for line in table.splitlines() if line.split()[:1] == ["sd15"])
    assert line.split()[1:] == [
        *["ready", "gpt-image-1", "100%"],
        *[replica["id"], replica["node"], "cpu", "0", "0.0"],
    ]
    assert tcd("models", "nope", "--where").code == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["generate", "a", "--steps", "99"], 1, "num_inference_steps"),
        (["generate", "a", "--model", "nope"], 1, "sd15"),
        (["generate", "a", "--lora", "nope"], 1, "ink"),
        (["generate", "a", "--lora", "ink=much"], 2, "'much' is no number"),
        (["generate", "a", "--lora", "ink=nan"], 2, "'nan' is no number"),
        (["generate", "a", "--guidance", "nan"], 2, "cannot be sent"),
        (["generate", "a", "--set", "eta=Infinity"], 2, "cannot be sent"),
        (["generate", "a", "--timeout", "-1"], 2, "--timeout"),
        (["generate", "a", "--timeout", "nan"], 2, "--timeout"),
        (["generate", "a", "--key", "schlüssel"], 2, "key"),
        (["generate", "a", "--url", "no url"], 2, "no url"),
        (["edit", "[/x].png", "a"], 1, "[/x].png: No such file"),
        (["edit", "[red]x.png", "a"], 1, "[red]x.png: No such file"),
        (["jobs", "show", ""], 2, "no id"),
        (["jobs", "show", "../models"], 2, "no id"),
        (["jobs", "show", "image_0"], 1, "does not exist"),
        (["fetch", "nowhere.yaml"], 1, "nowhere.yaml"),
        (["generate", "a", "--control", "canny"], 2, "TYPE=PICTURE"),
        (["generate", "a", "--control", "canny=none.png"], 1, "No such file"),
        (["generate", "a", "--set", "seed"], 2, "FIELD=VALUE"),
        (["generate", "a", "--set", "async=true"], 2, "--later"),
        (["generate", "a", "--set", "nonsense=1"], 1, "nonsense"),
        (["generate", "a", "--steps", "many"], 2, "--steps"),
        (["generate", "a", "--url", "http://127.0.0.1:9"], 3, "http://127.0.0.1:9"),
        (["edit", "none.png", "a"], 1, "No such file"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_what_is_wrong(tcd: Any, words: Sequence[str], code: int, said: str) -> None:
    told = tcd(*words)
    assert told.code == code, told.error
    assert said in told.error
    assert "Traceback" not in told.error
    assert told.out == ""


def test_a_video_that_is_interrupted_is_stopped(served: Served, tmp_path: Path) -> None:
    words = ["animate", "a", *SMALL, "--frames", "24", "--steps", "50"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tcd", *words],
        cwd=tmp_path,
        env={**os.environ, "TCD_URL": served.url, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )

    def newest() -> dict[str, Any]:
        jobs = httpx.get(f"{served.url}/v1/jobs?kind=video&limit=1").json()["data"]
        return jobs[0] if jobs and jobs[0]["prompt"] == "a" else {"status": "none"}

    until = time.monotonic() + 60
    while newest()["status"] not in ("queued", "in_progress"):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert newest()["status"] == "cancelled"
    assert not list(tmp_path.iterdir())


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "edit", "animate", "again", "preprocess", "models", "check", "fetch"]
    for command in [[], *([word] for word in words), ["jobs"], ["jobs", "wait"]]:
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
        assert "Usage: " in capsys.readouterr().out
