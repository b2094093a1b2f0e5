"""How a checkpoint was trained on noise: what files say of it, and what of that can be sampled."""

from collections.abc import Mapping
from dataclasses import dataclass

from configs.app import ModelArgs
from deployments.diffusion.engine.models.checkpoints.header import WrongFile
from deployments.diffusion.engine.models.checkpoints.identity import Identity

_BETAS = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class Noise:
    """What of a checkpoint's scheduler is not its table of betas, in diffusers' names.

    Attributes:
        prediction_type: "epsilon", "sample" or "v_prediction".
    """

    prediction_type: str
    rescale_betas_zero_snr: bool


def noise_of(
    args: ModelArgs, scheduler: Mapping[str, object] | None, file: Identity | None
) -> Noise:
    """What holds of a model: `args` before what a single file says of itself, and that before the
    configuration of a scheduler.

    Args:
        scheduler: `scheduler_config.json` of a diffusers folder; `None`: that of a family's base.
        file: a single file, if the checkpoint is one.

    Raises `WrongFile` if the TCD step is not defined for it.
    """
    prediction_type, zero_snr = "epsilon", False
    if scheduler is not None:
        _check_process(scheduler)
        prediction_type = str(scheduler.get("prediction_type", prediction_type))
        zero_snr = bool(scheduler.get("rescale_betas_zero_snr", zero_snr))
    if file is not None:
        prediction_type = file.prediction_type or prediction_type
        zero_snr = file.zero_snr or zero_snr
    prediction_type = args.prediction_type or prediction_type
    if args.rescale_betas_zero_snr is not None:
        zero_snr = args.rescale_betas_zero_snr
    if prediction_type not in _PREDICTIONS:
        raise WrongFile(
            f"its prediction_type is {prediction_type!r}; TCD steps are defined for "
            f"{', '.join(_PREDICTIONS)}"
        )
    if zero_snr and prediction_type == "epsilon":
        raise WrongFile(
            "at zero SNR (ztsnr, rescale_betas_zero_snr) nothing can be read out of predicted "
            "noise: set prediction_type: v_prediction, or rescale_betas_zero_snr: false"
        )
    return Noise(prediction_type, zero_snr)


def _check_process(scheduler: Mapping[str, object]) -> None:
    """Raises `WrongFile` for a scheduler whose noise is no table of betas."""
    kind = str(scheduler.get("_class_name", "one without a name"))
    flows = kind.startswith("FlowMatch") or scheduler.get("use_flow_sigmas")
    continuous = kind.startswith("EDM") or scheduler.get("timestep_type") == "continuous"
    if flows or continuous or not any(key in scheduler for key in _BETAS):
        process = "flow matching" if flows else "EDM" if continuous else "something else"
        raise WrongFile(
            f"its scheduler is {kind}: it was trained by {process}, and TCD's steps need the betas "
            "of a DDPM"
        )
