"""A small client of the service, for the demo and the measurements: pictures in, pictures out."""

import base64
import io
import time
from types import TracebackType
from typing import Self

import httpx
from PIL import Image, ImageSequence

TIMEOUT_S = 600
POLL_S = 0.2

Picture = Image.Image
Body = dict[str, object]


class Refused(Exception):
    """The service answered with an error, whose message this is."""


class Client:
    """Speaks to the service at `url`. Raises `Refused` for what is not answered with success.

    Args:
        key: of a service that asks for one.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._web = httpx.Client(base_url=url, timeout=TIMEOUT_S, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._web.close()

    def generate(self, body: Body) -> Picture:
        """`POST /v1/images/generations`."""
        return _picture(self._web.post("/v1/images/generations", json=body))

    def edit(self, fields: dict[str, str], image: Picture, mask: Picture | None = None) -> Picture:
        """`POST /v1/images/edits`; the mask's transparent pixels are made anew."""
        files = {"image": _png(image)}
        if mask is not None:
            files["mask"] = _png(mask)
        return _picture(self._web.post("/v1/images/edits", data=fields, files=files))

    def vary(self, fields: dict[str, str], image: Picture) -> Picture:
        """`POST /v1/images/variations`."""
        files = {"image": _png(image)}
        return _picture(self._web.post("/v1/images/variations", data=fields, files=files))

    def preprocess(self, kind: str, image: Picture) -> Picture:
        """`POST /v1/preprocess/{kind}`."""
        answer = self._web.post(f"/v1/preprocess/{kind}", files={"image": _png(image)})
        return Image.open(io.BytesIO(_succeeded(answer).content))

    def video(self, body: Body) -> list[Picture]:
        """The frames of a `POST /v1/videos`, once the job has ended."""
        job = _succeeded(self._web.post("/v1/videos", json=body)).json()
        place = f"/v1/videos/{job['id']}"
        while job["status"] in ("queued", "in_progress"):
            time.sleep(POLL_S)
            job = _succeeded(self._web.get(place)).json()
        if job["status"] != "completed":
            raise Refused(f"the video {job['status']}: {job.get('error')}")
        content = _succeeded(self._web.get(f"{place}/content")).content
        with Image.open(io.BytesIO(content)) as video:
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(video)]


def data_url(image: Picture) -> str:
    """The picture as JSON bodies take it."""
    return "data:image/png;base64," + base64.b64encode(_png(image)).decode()


def _png(image: Picture) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _succeeded(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        raise Refused(f"{answer.status_code}: {answer.text}")
    return answer


def _picture(answer: httpx.Response) -> Picture:
    (image,) = _succeeded(answer).json()["data"]
    return Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).convert("RGB")
