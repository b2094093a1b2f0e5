"""What deployments count of themselves: shown by `/metrics`, exported by every Ray node."""

from collections.abc import Mapping
from dataclasses import dataclass

from deployments.contracts.cards import AVAILABILITIES, Availability

AVAILABILITY = "1: this is what the model is doing"
NAMES_ERROR = "1 while newer names of models are refused and the last good ones are in force"
# Upper bounds of histograms of times that somebody waits for.
SECONDS = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
ENGINE_HELP = {
    "pending_images": "images accepted and not yet answered",
    "running_rows": "rows that hold device memory",
    "pending_steps": "UNet rows still to be computed, guidance twins counted",
    "pending_seconds": "how long everything accepted will take, by measured times of UNet and VAE",
    "arriving_seconds": "seconds of work that came in each second of the last 30, in full calls",
    "decoding_images": "images that wait for the VAE or are in it",
    "decode_seconds": "how long these will take, by the measured time of latent pixels",
    "seconds_per_row_step": "measured time of a UNet call per row of it, moving average",
    "begun_total": "images that took their first step",
    "wait_seconds_total": "how long these had waited for it, all together",
    "steps_total": "UNet calls",
    "timed_steps_total": "UNet calls that were timed: on a GPU not each is",
    "timed_step_seconds_total": "how long these took, all together",
    "vae_seconds_total": "how long finished images were in the VAE, all together",
    "vae_encode_seconds_total": "how long start pictures were in the VAE, all together",
    "rows_total": "UNet rows computed",
    "images_total": "images finished",
    "failed_total": "images that ended in an error, cancellations not counted",
    "cancelled_total": "images cancelled",
    "refused_total": "jobs refused because the queue was full, or they would have come too late",
    "loras_resident": "style adapters on the device",
    "lora_bytes": "bytes of style adapters on the device",
    "lora_loads_total": "style adapters loaded",
    "lora_evictions_total": "style adapters evicted",
    "lora_failures_total": "style adapters that could not be read or brought to the device",
    "batch_limit": "rows that memory allows a UNet call now",
    "out_of_memory_total": "UNet calls that found too little memory, and were made smaller",
    "device_memory_bytes": "memory that torch holds of the device; 0 on a CPU",
    "compiled": "0: nothing; 1: the blocks run compiled; 2: and CUDA graphs are replayed",
    "compiles_total": "kinds of calls for which a block was compiled",
    "compile_failures_total": "compilations and captures that failed: such calls run as without",
    "graph_steps_total": "UNet calls that replayed a CUDA graph",
    "config_error": "1 while the newest user_config is refused and the last good one is in force",
}

MAPS_HELP = {
    "computed_total": "control maps and embeddings made",
    "reused_total": "control maps and embeddings found in the store",
    "stored": "maps in the store",
    "stored_bytes": "their size",
}


@dataclass(frozen=True)
class CallerFigures:
    """What one caller has in an engine, and has had of it.

    Attributes:
        name: of its key; empty for all who named none.
        running_rows: rows that hold device memory.
        pending_images: images accepted and not yet answered.
        work_total: UNet pixel-steps: latent pixels of all UNet rows computed for it. Begins
            anew for a caller who was forgotten: of those who are idle only the last are kept.
    """

    name: str
    running_rows: int = 0
    pending_images: int = 0
    work_total: int = 0


@dataclass(frozen=True)
class EngineFigures:
    """A replica's engine at one moment. Its numbers are explained by `ENGINE_HELP`; those that
    end in `_total` only grow. `callers`: the same of each caller. `node`: its address; `device`:
    `cpu`, or the GPU."""

    replica: str
    node: str = ""
    device: str = ""
    pending_images: int = 0
    running_rows: int = 0
    pending_steps: int = 0
    pending_seconds: float = 0.0
    arriving_seconds: float = 0.0
    decoding_images: int = 0
    decode_seconds: float = 0.0
    seconds_per_row_step: float = 0.0
    begun_total: int = 0
    wait_seconds_total: float = 0.0
    steps_total: int = 0
    timed_steps_total: int = 0
    timed_step_seconds_total: float = 0.0
    vae_seconds_total: float = 0.0
    vae_encode_seconds_total: float = 0.0
    rows_total: int = 0
    images_total: int = 0
    failed_total: int = 0
    cancelled_total: int = 0
    refused_total: int = 0
    loras_resident: int = 0
    lora_bytes: int = 0
    lora_loads_total: int = 0
    lora_evictions_total: int = 0
    lora_failures_total: int = 0
    batch_limit: int = 0
    out_of_memory_total: int = 0
    device_memory_bytes: int = 0
    compiled: int = 0
    compiles_total: int = 0
    compile_failures_total: int = 0
    graph_steps_total: int = 0
    config_error: int = 0
    callers: tuple[CallerFigures, ...] = ()


@dataclass(frozen=True)
class ModelFigures:
    """The engines of a model's replicas. `age_s`: how long ago they said so."""

    engines: tuple[EngineFigures, ...]
    age_s: float


@dataclass(frozen=True)
class JobFigures:
    """The jobs that are kept, by kind: image, line (of a batch), video, batch, file.

    Attributes:
        standing: how many, by kind and status.
        kept_bytes: of their pictures and results.
        waiting_s: of those that are queued, how long the oldest has been there.
    """

    standing: Mapping[tuple[str, str], int]
    kept_bytes: Mapping[str, int]
    waiting_s: Mapping[str, float]


@dataclass(frozen=True)
class MapFigures:
    """What the map store did so far, by preprocessor."""

    computed_total: dict[str, int]
    reused_total: dict[str, int]
    stored: int
    stored_bytes: int


def states(models: Mapping[str, Availability]) -> dict[tuple[str, ...], float]:
    """What models are doing as a set of states: 1 for each model's own, 0 for all others."""
    return {
        (name, state): float(state == own)
        for name, own in models.items()
        for state in AVAILABILITIES
    }
