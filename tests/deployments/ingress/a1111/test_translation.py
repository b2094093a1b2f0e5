"""What becomes of each field that A1111's clients send."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import Control, IpAdapter, LoraWeight
from deployments.ingress.http.a1111.bodies import Img2ImgBody, Txt2ImgBody
from deployments.ingress.http.a1111.pictures import made_anew
from deployments.ingress.http.a1111.prompts import without_loras
from deployments.ingress.http.a1111.translation import Translated, translated
from deployments.ingress.http.bodies import read_json
from preprocessors.image_file import Picture
from tests.deployments.ingress.a1111.standins import card, client, refusal

RECORDED = Path(__file__).with_name("front_ends")
PICTURE = base64.b64encode(b"picture").decode()


def txt2img(family: str = "sd15", **fields: Any) -> Translated:
    return translated(read_json(json.dumps(fields).encode(), Txt2ImgBody), card(family))


def img2img(**fields: Any) -> Translated:
    sent = {"init_images": [PICTURE], **fields}
    body = read_json(json.dumps(sent).encode(), Img2ImgBody)
    return translated(body, card(), "the picture", b"mask")


def units(*args: Any, name: str = "controlnet") -> dict[str, Any]:
    return {"alwayson_scripts": {name: {"args": list(args)}}}


def test_a_body_of_defaults_is_accepted_silently() -> None:
    """Every field of A1111's txt2img at the value that it has when nothing is asked for."""
    recorded = json.loads((RECORDED / "a1111_defaults.json").read_text())
    asked = txt2img(**recorded["calls"][0]["json"])
    assert asked.ignored == ()
    request = asked.request
    assert (request.width, request.height, request.n) == (512, 512, 1)
    assert (request.num_inference_steps, request.guidance_scale) == (50, 7.0)
    assert (request.seed, request.eta, request.clip_skip) == (None, None, None)
    assert request.prompt_syntax == "weighted"
    assert (request.loras, request.controls, request.ip_adapter) == ((), (), None)


def test_what_is_left_out_is_the_models_own() -> None:
    request = txt2img(prompt="a").request
    assert request.num_inference_steps is request.guidance_scale is request.width is None


def test_fields_by_their_other_names() -> None:
    request = txt2img(
        prompt="(a:1.2)",
        steps=20,
        cfg_scale=4.5,
        negative_prompt="b",
        seed=9,
        batch_size=2,
        n_iter=3,
        eta=0.5,
        override_settings={"sd_model_checkpoint": "ignored here", "CLIP_stop_at_last_layers": 2},
    ).request
    assert (request.num_inference_steps, request.guidance_scale) == (20, 4.5)
    assert (request.prompt, request.negative_prompt, request.seed) == ("(a:1.2)", "b", 9)
    assert (request.n, request.eta, request.clip_skip) == (6, 0.5, 1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampler_name": "Euler a", "sampler_index": "Euler"}, ["sampler_name", "sampler_index"]),
        ({"sampler_name": "TCD", "scheduler": "Automatic", "s_noise": 1.0}, []),
        ({"scheduler": "Karras", "s_churn": 0.5}, ["scheduler", "s_churn"]),
        ({"styles": ["anime"], "restore_faces": True}, ["styles", "restore_faces"]),
        ({"save_images": True, "do_not_save_grid": True}, ["save_images"]),
        ({"negative_prompt": "b", "cfg_scale": 1}, ["negative_prompt"]),
        ({"negative_prompt": "b"}, ["negative_prompt"]),
        ({"negative_prompt": " ", "cfg_scale": 1}, []),
        ({"url": "http://here", "nothing": None}, ["url"]),
        ({"override_settings": {"sd_vae": "Automatic", "samples_format": "png"}}, []),
        ({"override_settings": {"sd_vae": "x.vae"}}, ["override_settings.sd_vae"]),
        ({"alwayson_scripts": {"ADetailer": {"args": [False]}, "dynamic": {}}}, []),
        ({"n" * 500: 1}, ["n" * 100]),
    ],
)
def test_what_changes_nothing_is_named(fields: dict[str, Any], named: list[str]) -> None:
    assert list(txt2img(**fields).ignored) == named


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mask_blur": 4, "inpaint_full_res": True, "inpainting_fill": 0}, []),
        (
            {"mask": PICTURE, "mask_blur": 4, "inpaint_full_res": True, "inpainting_fill": 0},
            ["mask_blur", "inpaint_full_res", "inpainting_fill"],
        ),
        ({"mask": "", "mask_blur": 4, "inpainting_fill": 0}, []),
        ({"mask": PICTURE, "mask_blur": 0, "inpaint_full_res": False, "inpainting_fill": 1}, []),
        ({"initial_noise_multiplier": 1.0, "image_cfg_scale": 1.5, "resize_mode": 0}, []),
        ({"initial_noise_multiplier": 1.1}, ["initial_noise_multiplier"]),
    ],
)
def test_what_is_of_masks_is_named_with_one(fields: dict[str, Any], named: list[str]) -> None:
    assert list(img2img(**fields).ignored) == named


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_hr": True},
        {"tiling": True},
        {"subseed_strength": 0.1},
        {"refiner_checkpoint": "sdxl-refiner"},
        {"script_name": "X/Y/Z plot"},
        {"infotext": "a\nSteps: 4"},
        {"alwayson_scripts": {"adetailer": {"args": [True, {"ad_model": "face"}]}}},
        {"alwayson_scripts": {"never oom": {"args": [{"unet_enabled": True}]}}},
    ],
)
def test_what_would_be_another_kind_of_picture_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        txt2img(**fields)
    assert refused.value.param is not None
    assert refused.value.param.startswith(next(iter(fields)))


def test_pictures_are_resized_as_a_whole() -> None:
    with pytest.raises(InvalidRequest, match="resize_mode"):
        img2img(resize_mode=1)


def test_clip_skip_counts_from_one_and_passes_over_sdxl() -> None:
    """As in A1111, which skips nothing in SDXL's encoders."""
    setting: dict[str, Any] = {"override_settings": {"CLIP_stop_at_last_layers": 2}}
    assert txt2img(**setting).request.clip_skip == 1
    assert txt2img(clip_skip=3).request.clip_skip == 2
    assert txt2img(clip_skip=3, **setting).request.clip_skip == 1
    large = txt2img("sdxl", **setting)
    assert large.request.clip_skip is None
    assert large.ignored == ("override_settings.CLIP_stop_at_last_layers",)
    assert txt2img("sdxl", clip_skip=1).ignored == ()


def test_a_tag_with_too_much_weight_names_it() -> None:
    with pytest.raises(InvalidRequest, match=r"^<lora:ink:11>: weight: Input should be less"):
        without_loras("a <lora:ink:11>")


@pytest.mark.parametrize(
    ("prompt", "plain", "loras"),
    [
        ("a <lora:ink:0.7>", "a ", [("ink", 0.7)]),
        ("<lora:ink>a<lyco:neon:-0.5>", "a", [("ink", 1.0), ("neon", -0.5)]),
        ("<LoRA: ink : 1 : 1 > a", " a", [("ink", 1.0)]),
        ("<lora:ink:te=0.5:unet=0.5>", "", [("ink", 0.5)]),
        ("(a <lora:in k.v1:1>:1.2) < b > <c>", "(a :1.2) < b > <c>", [("in k.v1", 1.0)]),
    ],
)
def test_tags_of_a_prompt(prompt: str, plain: str, loras: list[tuple[str, float]]) -> None:
    assert without_loras(prompt) == (plain, tuple(LoraWeight(*each) for each in loras))


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:ink:much>",
        "<lora:ink:nan>",
        "<lora:ink:11>",
        "<lora:ink:0.5:1>",
        "<lora:ink:1:dyn=8>",
        "<hypernet:anime:1>",
        f"<lora:{'n' * 101}>",
    ],
)
def test_tags_that_cannot_be(tag: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        without_loras("a " + tag)
    assert refused.value.param == "prompt"


def test_tags_do_not_act_without_extra_networks() -> None:
    request = txt2img(prompt="a<lora:ink:1>", disable_extra_networks=True).request
    assert (request.prompt, request.loras) == ("a", ())


def test_units() -> None:
    url = "data:;base64," + PICTURE
    depth = {"module": "depth_midas", "model": "control_v11f1p_sd15_depth [cfd03158]"}
    asked = txt2img(
        **units(
            {**depth, "image": PICTURE, "weight": 0.8, "guidance_start": 0.1, "guidance_end": 0.9},
            {"module": "canny", "input_image": url, "threshold_a": 50, "threshold_b": -1},
            {"enabled": False, "module": "openpose", "image": PICTURE},
            {},
            {"module": "", "model": "", "image": ""},
            {"model": "canny", "image": {"image": PICTURE, "mask": None}},
            {"module": "ip-adapter_clip_sd15", "weight": 0.4, "image": [{"image": PICTURE}] * 2},
            name="ControlNet",
        )
    )
    assert asked.request.controls == (
        Control("depth", url, conditioning_scale=0.8, start=0.1, end=0.9),
        Control("canny", url, conditioning_scale=1.0, low_threshold=50),
        Control("canny", url, preprocessed=True, conditioning_scale=1.0),
    )
    assert asked.request.ip_adapter == IpAdapter((url, url), 0.4)
    assert asked.ignored == ()


def test_a_unit_without_a_picture_takes_that_of_img2img() -> None:
    (control,) = img2img(**units({"module": "depth"})).request.controls
    assert control.image == "the picture"


def test_what_changes_nothing_of_a_unit_is_named() -> None:
    unit = {"module": "canny", "image": [PICTURE, PICTURE], "control_mode": 2, "low_vram": True}
    place = "alwayson_scripts.controlnet.args.0."
    named = txt2img(**units(unit)).ignored
    assert named == (place + "control_mode", place + "image.mask")
    for harmless in (0, "Balanced", ["Balanced"]):
        unit = {"module": "canny", "image": PICTURE, "control_mode": harmless}
        assert txt2img(**units(unit)).ignored == ()


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        ({"module": "depth"}, "image is required"),
        ({"module": "openpose", "image": PICTURE}, "modules: none, depth, canny, ip-adapter"),
        ({"module": "ip-adapter_face_id", "image": PICTURE}, "modules: none"),
        ({"module": "canny", "model": "depth", "image": PICTURE}, "no maps for the model 'depth'"),
        ({"module": "none", "model": "openpose", "image": PICTURE}, "it has: canny, depth"),
        ({"module": "none", "model": "depth_and_canny", "image": PICTURE}, "it has: canny, depth"),
        ({"module": "canny", "image": PICTURE, "weight": 2.5}, "less than or equal to 2"),
        ({"module": "canny", "image": 7}, "image"),
        ({"module": "canny", "image": [{"image": PICTURE}] * 2}, "one picture"),
        ("canny", "must be an object"),
    ],
)
def test_units_that_cannot_be(unit: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        txt2img(**units(unit))
    assert says in str(refused.value)
    assert (refused.value.param or "").startswith("alwayson_scripts.controlnet.args.0")


def test_one_unit_is_to_be_resembled() -> None:
    unit = {"module": "ip-adapter", "image": PICTURE}
    with pytest.raises(InvalidRequest, match="one unit"):
        txt2img(**units(unit, unit))


def anew(picture: Picture, inverted: bool = False) -> list[int]:
    image = Image.open(io.BytesIO(made_anew(picture, inverted)))
    assert image.mode == "L"
    return [int(level) for level in np.asarray(image)[0]]


def test_masks_are_read_as_a1111_reads_them() -> None:
    grey = np.repeat(np.array([[0, 100, 255]], np.uint8)[:, :, None], 3, axis=2)
    opaque = np.array([[255, 255, 250]], np.uint8)
    painted = np.array([[0, 255, 100]], np.uint8)
    assert anew(Picture(grey, None)) == [0, 100, 255]
    assert anew(Picture(grey, opaque)) == [0, 100, 255]
    assert anew(Picture(grey, painted)) == [0, 255, 0]
    assert anew(Picture(grey, painted), inverted=True) == [255, 0, 255]


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"batch_size": 20}, 400, "batch_size", "10 at most"),
        ({"steps": 51}, 400, "steps", "50"),
        ({"cfg_scale": 31}, 400, "cfg_scale", "30"),
        ({"width": 100, "height": 64}, 400, "width", "multiple of 8"),
        ({"width": 4096, "height": 64}, 400, "width", "the nearest is"),
        ({"width": 64}, 400, "width", "height"),
        ({"prompt": 7}, 400, "prompt", "string"),
        ({"seed": -2}, 400, "seed", "-1"),
        ({"override_settings": {"sd_model_checkpoint": "x"}}, 404, None, "sd15, sdxl"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 0}}, 400, None, "1"),
        ({str(index): 1 for index in range(129)}, 400, None, "128 at most"),
        ({"alwayson_scripts": []}, 400, "alwayson_scripts", "object"),
    ],
)
def test_errors_name_the_field_as_it_was_sent(
    fields: dict[str, Any], status: int, param: str | None, says: str
) -> None:
    error = refusal(client().post("/sdapi/v1/txt2img", json=fields), status)
    assert says in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "init_images"),
        ({"init_images": []}, "init_images"),
        ({"init_images": ["!"]}, "init_images"),
        ({"init_images": [""]}, "init_images"),
        ({"init_images": [PICTURE]}, "init_images"),
        ({"init_images": ["http://here/a.png"]}, "init_images"),
        ({"init_images": [PICTURE] * 2}, "init_images"),
        ({"init_images": [PICTURE], "mask": "!"}, "mask"),
        ({"init_images": [PICTURE], "denoising_strength": 0}, "denoising_strength"),
    ],
)
def test_pictures_that_are_none(fields: dict[str, Any], param: str) -> None:
    error = refusal(client().post("/sdapi/v1/img2img", json=fields), 400)
    assert (error["param"] or "").startswith(param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"controlnet_input_images": ["AAAA"]}, "controlnet_input_images.0"),
        ({"controlnet_threshold_a": 200, "controlnet_threshold_b": 10}, "controlnet_threshold_a"),
    ],
)
def test_what_detect_cannot_read_is_named_as_it_was_sent(
    change: dict[str, Any], param: str
) -> None:
    sent = {"controlnet_module": "canny", "controlnet_input_images": [PICTURE], **change}
    error = refusal(client().post("/controlnet/detect", json=sent), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_more_tags_than_are_read_are_said_of_the_prompt() -> None:
    sent = {"prompt": "<lora:ink:0.1>" * 65}
    error = refusal(client().post("/sdapi/v1/txt2img", json=sent), 400)
    assert error["param"] == "prompt"
    assert "at most 64" in error["message"]


def test_tags_that_do_not_act_are_not_read() -> None:
    tags = "<lora:ink:0.5><hypernet:any:1><lora:ink:1:2>"
    request = txt2img(prompt=f"a {tags}", disable_extra_networks=True).request
    assert (request.prompt, request.loras) == ("a ", ())
