"""What is written into a file of how it was made.

Two texts: AUTOMATIC1111's `parameters`, for other programs, and the request itself as JSON, which
makes the same picture when it is sent again. Pictures that the request brought are named in it.
"""

import json
from dataclasses import asdict, dataclass

from PIL.PngImagePlugin import PngInfo

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import IpAdapter, ToldSize
from deployments.contracts.recipe import KEY, Recipe
from deployments.ingress.answer.exif import exif
from deployments.ingress.answer.infotext import infotext

EXIF_BYTES = 65_533  # that one segment of a JPEG holds


@dataclass(frozen=True)
class Metadata:
    """The texts of one file. `request`: ASCII."""

    parameters: str
    request: str

    def png(self) -> PngInfo:
        """As text chunks: `parameters`, and `tcd`."""
        texts = PngInfo()
        texts.add_text("parameters", self.parameters)
        texts.add_text(KEY, self.request)
        return texts

    def exif(self, most: int = EXIF_BYTES) -> bytes:
        """As UserComment, and ImageDescription with the request under the key `tcd`.

        In `most` bytes: if both are too long together, the first alone; if that is, the second
        alone; if that is too, neither, which is empty.
        """
        described = self.keyed
        for comment, description in (
            (self.parameters, described),
            (self.parameters, None),
            (None, described),
        ):
            written = exif(comment, description)
            if len(written) <= most:
                return written
        return b""

    @property
    def keyed(self) -> str:
        """The request where there is no key to put it under: `{"tcd": ...}`."""
        return f'{{"{KEY}": {self.request}}}'


def metadata_of(
    recipe: Recipe, seed: int, output_format: str, quality: int | None = None
) -> Metadata:
    """Of the image that a recipe makes of a seed, in a file of this format and quality."""
    request = request_of(recipe, seed, output_format, quality)
    return Metadata(infotext(recipe, seed), json.dumps(request))


def request_of(
    recipe: Recipe, seed: int, output_format: str, quality: int | None
) -> dict[str, object]:
    """The body that asks for that image again: of `POST /v1/images/generations`, or with `image` of
    the form of `/v1/images/edits`, or of `POST /v1/videos`."""
    edit, video = recipe.image is not None, recipe.num_frames is not None
    body: dict[str, object] = {
        "model": recipe.model,
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt,
        "n": None if video else 1,
        "size": f"{recipe.width}x{recipe.height}",
        "num_inference_steps": recipe.num_inference_steps,
        "eta": recipe.eta,
        "guidance_scale": recipe.guidance_scale,
        "prompt_syntax": recipe.prompt_syntax,
        "clip_skip": recipe.clip_skip,
        "original_size": _size(recipe.original_size),
        "target_size": _size(recipe.target_size),
        "seed": seed,
        "loras": [asdict(lora) for lora in recipe.loras],
        "input_reference" if video else "image": recipe.image,
        "mask": recipe.mask,
        "strength": recipe.strength,
        "preserve_unmasked": recipe.preserve_unmasked if edit and not video else None,
        "controls": [_said(asdict(control)) for control in recipe.controls],
        "ip_adapter": _one_or_several(list(map(_ip_adapter, recipe.ip_adapters))),
        "num_frames": recipe.num_frames,
        "fps": recipe.fps,
        "motion_loras": [asdict(lora) for lora in recipe.motion_loras],
        "output_format": output_format,
        "output_compression": None if output_format == "png" else quality,
    }
    return _said(body)


def wanted(asked: bool | None, written: bool) -> bool:
    """Whether a file gets metadata, by what its request says (`None`: nothing) and the service
    does. Raises `InvalidRequest` if it asks for what is not written here."""
    if asked and not written:
        raise InvalidRequest(
            "this service writes no metadata into files (metadata: false in its args): leave it "
            "out, or false",
            "metadata",
        )
    return written if asked is None else asked


def _ip_adapter(adapter: IpAdapter) -> dict[str, object]:
    return _said(
        {
            "image": list(adapter.images),
            "scale": adapter.scale,
            "name": adapter.name,
            "mask": adapter.mask,
        }
    )


def _size(told: ToldSize | None) -> str | None:
    return None if told is None else f"{told[1]}x{told[0]}"


def _one_or_several(adapters: list[dict[str, object]]) -> object:
    return adapters[0] if len(adapters) == 1 else adapters


def _said(body: dict[str, object]) -> dict[str, object]:
    """Without the fields that say nothing."""
    return {name: value for name, value in body.items() if value is not None and value != []}
