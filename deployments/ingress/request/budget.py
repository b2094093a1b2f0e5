"""What one request may hold: counted before anything of it is loaded, fetched, decoded or asked
elsewhere."""

import re

import numpy as np

from configs.app import ServiceArgs
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageInput, ImageRequest, VideoRequest
from deployments.contracts.maps import is_map_id
from preprocessors.image_file import ImageError, check_size

MAX_URL_CHARS = 2048  # of a picture that is named by URL or by the id of a map
FRAME = re.compile(r"(controls\.\d+\.image)\.\d+")  # a picture of one frame of a video
DATA_URL_HEADER = 128  # characters before the comma: a media type and its parameters


def check(request: ImageRequest | VideoRequest, args: ServiceArgs) -> None:
    """Raises `InvalidRequest`, naming the field and what is allowed, if a request is over one of
    the limits that can be counted as it came. What is behind a URL, and how many pixels a file
    has, shows later: see `Pictures.bring`."""
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    for name, text in texts.items():
        if len(text) > args.max_prompt_chars:
            raise InvalidRequest(
                f"{name} has {len(text)} characters; {args.max_prompt_chars} at most", name
            )
    lists = {"loras": len(request.loras), "controls": len(request.controls)}
    if isinstance(request, VideoRequest):
        lists["motion_loras"] = len(request.motion_loras)
    elif request.n > args.max_images:
        raise InvalidRequest(f"n is {request.n}; {args.max_images} at most", "n")
    for name, entries in lists.items():
        if entries > args.max_request_entries:
            raise InvalidRequest(
                f"{name} has {entries} entries; {args.max_request_entries} at most", name
            )
    _check_frames(request)
    check_pictures(pictures_of(request), args)


def _check_frames(request: ImageRequest | VideoRequest) -> None:
    """Whether each control has as many pictures as what is made can follow."""
    for place, control in request.named_controls.items():
        param, count = f"{place}.image", len(control.pictures(place))
        if count == 1:
            continue
        if not isinstance(request, VideoRequest):
            raise InvalidRequest(
                f"{param} is one picture: several are for the frames of a video", param
            )
        if count != request.num_frames:
            raise InvalidRequest(
                f"{param} has {count} pictures, and the video {request.num_frames} frames: give "
                "one picture that all of them follow, or one of each",
                param,
            )


def pictures_of(request: ImageRequest | VideoRequest) -> dict[str, ImageInput]:
    """The pictures of a request by the names of their fields, maps that are known by id left
    out."""
    maps = named_maps(request)
    return {param: image for param, image in _given(request).items() if param not in maps}


def named_maps(request: ImageRequest | VideoRequest) -> dict[str, str]:
    """The ids of maps that stand where pictures of controls and IP-Adapters could, by field."""
    return {
        param: image
        for param, image in _given(request).items()
        if ".image" in param and is_map_id(image) and len(image) <= MAX_URL_CHARS
    }


def _given(request: ImageRequest | VideoRequest) -> dict[str, ImageInput]:
    """What stands where pictures do, by field."""
    given: dict[str, ImageInput | None] = {"image": request.image}
    if isinstance(request, ImageRequest):
        given["mask"] = request.mask
    for place, adapter in request.ip_adapters.items():
        given[f"{place}.mask"] = adapter.mask
    for place, control in request.named_controls.items():
        given |= control.pictures(place)
    for place, adapter in request.ip_adapters.items():
        given |= {f"{place}.image.{i}": image for i, image in enumerate(adapter.images)}
    return {param: image for param, image in given.items() if image is not None}


def check_pictures(pictures: dict[str, ImageInput], args: ServiceArgs) -> None:
    """Raises `InvalidRequest` if the pictures are too many or, as far as their lengths tell, too
    large."""
    count = len({FRAME.sub(r"\1", param) for param in pictures})  # those of frames are one
    if count > args.max_request_pictures:
        raise InvalidRequest(
            f"the request has {count} pictures; {args.max_request_pictures} at most",
            next(reversed(pictures)).partition(".")[0],
        )
    for param, picture in pictures.items():
        _check_one(picture, param, args)
    check_bytes({param: _bytes(picture) for param, picture in pictures.items()}, args)
    arrays = {p: a.shape[0] * a.shape[1] for p, a in pictures.items() if isinstance(a, np.ndarray)}
    check_pixels(arrays, args)


def check_bytes(sizes: dict[str, int], args: ServiceArgs) -> None:
    """`sizes`: bytes of each picture's file, by field."""
    _check_sum(sizes, args.max_request_bytes, "bytes")


def check_pixels(sizes: dict[str, int], args: ServiceArgs) -> None:
    """`sizes`: pixels of each picture, by field."""
    _check_sum(sizes, args.max_request_pixels, "pixels")


def check_maps(
    request: ImageRequest | VideoRequest, size: tuple[int, int], args: ServiceArgs
) -> None:
    """Raises `InvalidRequest` if the control maps of a request, each of the (width, height) of what
    is made, are too large together: small pictures make large maps."""
    width, height = size
    count = sum(len(control.pictures(place)) for place, control in request.named_controls.items())
    if count * width * height > args.max_request_pixels:
        raise InvalidRequest(
            f"controls ask for {count} maps of {width}x{height}, {count * width * height} pixels "
            f"together; at most {args.max_request_pixels} are allowed",
            "controls",
        )


def longest_data_url(args: ServiceArgs) -> int:
    """Characters of a data URL that may hold a picture, in base64."""
    return DATA_URL_HEADER + -(-args.max_image_bytes // 3) * 4


def _check_one(picture: ImageInput, param: str, args: ServiceArgs) -> None:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4):
            raise InvalidRequest(
                f"{param} is an array of {picture.shape} {picture.dtype}; (height, width, 3 or 4) "
                "uint8 is needed",
                param,
            )
        try:
            check_size(picture.shape[1], picture.shape[0], args.max_image_pixels)
        except ImageError as error:
            raise InvalidRequest(f"{param}: {error}", param) from error
        return
    if isinstance(picture, bytes):
        most, length = args.max_image_bytes, len(picture)
        said = f"the image has {length} bytes; at most {most} are allowed"
    elif picture.startswith("data:"):
        most, length = longest_data_url(args), len(picture)
        said = (
            f"the data URL has {length} characters; at most {most} are allowed, "
            f"{args.max_image_bytes} bytes in base64"
        )
    else:
        most, length = MAX_URL_CHARS, len(picture)
        said = f"the URL has {length} characters; at most {most} are allowed"
    if length > most:
        raise InvalidRequest(f"{param}: {said}", param)


def _bytes(picture: ImageInput) -> int:
    """Of the file, where it is here: a data URL's at most."""
    if isinstance(picture, bytes):
        return len(picture)
    if isinstance(picture, str) and picture.startswith("data:"):
        return len(picture) * 3 // 4
    return 0


def _check_sum(sizes: dict[str, int], most: int, unit: str) -> None:
    total = sum(sizes.values())
    if total > most:
        largest = max(sizes, key=lambda param: sizes[param])
        raise InvalidRequest(
            f"the pictures of the request have {total} {unit} together; at most {most} are "
            f"allowed (the largest is {largest}, {sizes[largest]})",
            largest,
        )
