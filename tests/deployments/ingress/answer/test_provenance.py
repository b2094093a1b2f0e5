"""C2PA manifests, read again by the library's own reader."""

import base64
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import pytest
from PIL import Image, ImageSequence
from starlette.testclient import TestClient

from configs.app import ServiceArgs
from configs.provenance import ProvenanceArgs
from deployments.contracts.jobs import VideoRequest, VideoResult
from deployments.contracts.recipe import Recipe
from deployments.contracts.videos import VideoFormat
from deployments.ingress.answer.media import MEDIA_TYPES, Encoding
from deployments.ingress.answer.provenance import NAME, SOURCE_TYPE, Provenance, ProvenanceError
from deployments.ingress.answer.video_files import VIDEO_TYPES
from deployments.ingress.http.app import make_app
from deployments.ingress.jobs.asked import VideoAsked
from deployments.ingress.jobs.making import _video_files
from tests.certificates import write_certificate
from tests.deployments.ingress.keyed import NO_USAGE
from tests.deployments.ingress.local_jobs import local_desk
from tests.deployments.ingress.painter import painting
from tests.safety_models import GREEN_PICTURE

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
RECIPE = Recipe("sd15", "a red ball", None, 96, 64, 4, 0.3, 0.0, "plain", 0)


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> ProvenanceArgs:
    chain, key = write_certificate(tmp_path_factory.mktemp("keys"))
    return ProvenanceArgs(certificate=str(chain), key_file=str(key))


@pytest.fixture(scope="module")
def provenance(signing: ProvenanceArgs) -> Provenance:
    return Provenance(signing)


def manifest_of(data: bytes, media_type: str) -> dict[str, Any]:
    """The manifest of a file, whose signature and hashes hold."""
    with c2pa.Reader(media_type, io.BytesIO(data)) as reader:
        told = json.loads(reader.json())
    assert told["validation_state"] == "Valid"
    # Nobody knows the authority of a test; nothing else is wrong.
    assert {s["code"] for s in told["validation_status"]} == {"signingCredential.untrusted"}
    manifest: dict[str, Any] = told["manifests"][told["active_manifest"]]
    return manifest


def source_of(manifest: dict[str, Any]) -> str:
    (actions,) = (a["data"] for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2")
    (action,) = actions["actions"]
    assert action["action"] == "c2pa.created"
    assert action["softwareAgent"]["name"] == NAME
    assert action["softwareAgent"]["version"]
    source: str = action["digitalSourceType"]
    return source.removeprefix(SOURCE_TYPE)


@pytest.mark.parametrize("output_format", MEDIA_TYPES)
@pytest.mark.parametrize("quality", [None, 80])
def test_a_picture_says_that_a_machine_made_it(
    provenance: Provenance, output_format: Any, quality: int | None
) -> None:
    plain = Encoding(output_format, quality, True)
    bare = plain.file(NOISE, RECIPE, 7)
    signed = replace(plain, provenance=provenance).file(NOISE, RECIPE, 7)
    assert source_of(manifest_of(signed, MEDIA_TYPES[output_format])) == "trainedAlgorithmicMedia"
    before, after = Image.open(io.BytesIO(bare)), Image.open(io.BytesIO(signed))
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert before.getexif() == after.getexif()  # `tcd again` reads it
    assert before.info.get("tcd") == after.info.get("tcd")
    assert "tcd" in after.info or after.getexif()
    assert len(signed) - len(bare) < 4096


def test_an_edit_says_that_it_is_one(provenance: Provenance) -> None:
    encoding = Encoding("png", None, False, provenance)
    edit = encoding.file(NOISE, replace(RECIPE, image="sha256:0"), 7)
    made = source_of(manifest_of(edit, "image/png"))
    assert made == "compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize("output_format", VIDEO_TYPES)
def test_a_video(provenance: Provenance, output_format: VideoFormat) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), np.uint8)
    recipe = replace(RECIPE, num_frames=5, fps=8)
    result = VideoResult("sd15", frames, 7, 8, NO_USAGE, recipe)
    asked = VideoAsked(request=VideoRequest("a"), output_format=output_format)
    bare = list(_video_files(result, asked, None))
    signed = list(_video_files(result, asked, provenance))
    for (role, data, _, media_type), (_, file, *_) in zip(bare, signed, strict=True):
        assert source_of(manifest_of(file, media_type)) == "trainedAlgorithmicMedia", role
        np.testing.assert_array_equal(decoded(data, media_type), decoded(file, media_type))
    if output_format == "mp4":
        with av.open(io.BytesIO(signed[0][1])) as video:
            assert '{"tcd": ' in video.metadata["description"]


def decoded(file: bytes, media_type: str) -> np.ndarray:
    if media_type == "video/mp4":
        with av.open(io.BytesIO(file), "r") as video:
            return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])
    frames = ImageSequence.Iterator(Image.open(io.BytesIO(file)))
    return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])


def test_a_changed_file_is_found_out(provenance: Provenance) -> None:
    signed = bytearray(Encoding("png", None, False, provenance).file(NOISE))
    signed[-40] ^= 1
    with c2pa.Reader("image/png", io.BytesIO(bytes(signed))) as reader:
        told = json.loads(reader.json())
    assert "assertion.dataHash.mismatch" in {s["code"] for s in told["validation_status"]}


def test_several_threads(provenance: Provenance) -> None:
    encoding = Encoding("webp", None, False, provenance)
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(lambda _: encoding.file(NOISE), range(16)))
    for file in files:
        manifest_of(file, "image/webp")


def test_what_the_service_answers_with(signing: ProvenanceArgs, tmp_path: Path) -> None:
    args = ServiceArgs(default_model="sd15", provenance=signing)
    service, *_ = painting(args)
    app = make_app(service, local_desk(service, args, tmp_path), args)
    with TestClient(app, base_url="http://service.test") as at:
        sent = at.post("/v1/images/generations", json={"prompt": "green", "output_format": "jpeg"})
        jpeg = base64.b64decode(sent.json()["data"][0]["b64_json"])
        sent = at.post("/sdapi/v1/txt2img", json={"prompt": "green", "width": 64, "height": 64})
        assert sent.status_code == 200, sent.text
        png = base64.b64decode(sent.json()["images"][0])
    assert source_of(manifest_of(jpeg, "image/jpeg")) == "trainedAlgorithmicMedia"
    assert source_of(manifest_of(png, "image/png")) == "trainedAlgorithmicMedia"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), GREEN_PICTURE)


def test_keys_in_the_environment(signing: ProvenanceArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signing.key_file is not None
    by_env = ProvenanceArgs(certificate=signing.certificate, key_env="TCD_TEST_C2PA_KEY")
    with pytest.raises(ProvenanceError, match="key_env: TCD_TEST_C2PA_KEY is not set"):
        Provenance(by_env)
    monkeypatch.setenv("TCD_TEST_C2PA_KEY", Path(signing.key_file).read_text())
    manifest_of(Encoding("png", None, False, Provenance(by_env)).file(NOISE), "image/png")


def test_what_cannot_sign_is_found_out_at_the_start(
    signing: ProvenanceArgs, tmp_path: Path
) -> None:
    chain, other = write_certificate(tmp_path)
    wrong = ProvenanceArgs(certificate=signing.certificate, key_file=str(other))
    with pytest.raises(ProvenanceError, match="and its key cannot sign"):
        Provenance(wrong)
    with pytest.raises(ProvenanceError, match=r"key_file: 'nowhere.pem' cannot be read"):
        Provenance(ProvenanceArgs(certificate=str(chain), key_file="nowhere.pem"))
    shutil.copy(other, tmp_path / "no-chain.pem")
    with pytest.raises(ProvenanceError, match="cannot sign"):
        Provenance(ProvenanceArgs(certificate=str(tmp_path / "no-chain.pem"), key_file=str(other)))
    with pytest.raises(ValueError, match="names either key_file or key_env"):
        ProvenanceArgs(certificate="chain.pem")
