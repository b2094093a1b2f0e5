"""A job against what this model can do: every reason to refuse it, before it costs anything."""

from configs.app import Limits, ModelUserConfig
from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.components import Components
from deployments.diffusion.engine.lora_shelf import lora_key
from deployments.diffusion.engine.prompts import Tokenizers
from deployments.diffusion.engine.spec import LATENT_SCALE, RowSpec, partial_steps


class Admission:
    """Turns jobs into rows. Thread-safe.

    Attributes:
        config: the adapters and limits in force; may be replaced at any time.
    """

    def __init__(self, components: Components, config: ModelUserConfig) -> None:
        self.config = config
        self._tokenizers = Tokenizers(components)

    def admit(self, job: ImageJob) -> tuple[list[RowSpec], dict[str, str]]:
        """The rows of a job, and the sources of its adapters by key.

        Raises `InvalidRequest` or `NotFound` naming the field.
        """
        config = self.config
        _check_size(job, config.limits)
        if len(job.seeds) > config.limits.max_pending:
            raise InvalidRequest(
                f"n is {len(job.seeds)}; this model accepts at most {config.limits.max_pending}",
                "n",
            )
        if job.negative_prompt is not None and job.guidance_scale <= 1:
            raise InvalidRequest(
                "negative_prompt has no effect unless guidance_scale is above 1 "
                f"(it is {job.guidance_scale:g})",
                "negative_prompt",
            )
        weights, sources = _loras(job, config)
        prompt = self._tokenizers.tokenize(job.prompt, "prompt")
        negative = None
        if job.guidance_scale > 1:
            negative = self._tokenizers.tokenize(job.negative_prompt or "", "negative_prompt")
        specs = [
            RowSpec(
                prompt=prompt,
                seed=seed,
                height=job.height,
                width=job.width,
                num_inference_steps=job.num_inference_steps,
                eta=job.eta,
                guidance_scale=job.guidance_scale,
                negative=negative,
                negative_given=job.negative_prompt is not None,
                loras=weights,
                partial_steps=partial_steps(job.num_inference_steps, job.partial_images),
            )
            for seed in job.seeds
        ]
        return specs, sources

    def prompt_tokens(self, job: ImageJob) -> int:
        """Text tokens of a job's prompts, for the usage figures."""
        tokens = self._tokenizers.tokenize(job.prompt, "prompt").tokens
        if job.negative_prompt is not None:
            tokens += self._tokenizers.tokenize(job.negative_prompt, "negative_prompt").tokens
        return tokens


def _check_size(job: ImageJob, limits: Limits) -> None:
    allowed = (
        f"each side must be a multiple of {LATENT_SCALE} from {limits.min_side} to "
        f"{limits.max_side} pixels, and the area at most {limits.max_pixels} pixels"
    )
    sides = (job.width, job.height)
    if (
        any(s % LATENT_SCALE or not limits.min_side <= s <= limits.max_side for s in sides)
        or job.width * job.height > limits.max_pixels
    ):
        raise InvalidRequest(f"size {job.width}x{job.height} is not allowed: {allowed}", "size")


def _loras(
    job: ImageJob, config: ModelUserConfig
) -> tuple[tuple[tuple[str, float], ...], dict[str, str]]:
    if len(job.loras) > config.limits.max_loras:
        raise InvalidRequest(
            f"{len(job.loras)} loras asked for; this model mixes at most {config.limits.max_loras}",
            "loras",
        )
    weights: dict[str, float] = {}
    sources: dict[str, str] = {}
    for lora in job.loras:
        if lora.name not in config.loras:
            known = ", ".join(sorted(config.loras)) or "none"
            raise NotFound(f"lora {lora.name!r} does not exist; this model has: {known}", "loras")
        key = lora_key(lora.name, config.loras[lora.name])
        if key in weights:
            raise InvalidRequest(f"lora {lora.name!r} is named twice", "loras")
        weights[key] = lora.weight
        sources[key] = config.loras[lora.name]
    return tuple(weights.items()), sources
