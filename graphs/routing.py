"""Which preprocessors a request needs: a pure function of the request."""

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageRequest, VideoRequest
from deployments.contracts.maps import is_map_id
from deployments.contracts.routes import Route

MAPPED = ("canny", "depth")  # control types whose maps this service can make


def route(request: ImageRequest | VideoRequest) -> tuple[Route, ...]:
    """One `Route` for whatever of the request a preprocessor must see first.

    Pictures that come ready-made (`preprocessed`, or the id of a control map) need none.

    Raises `InvalidRequest` for a picture of a control type that has no preprocessor.
    """
    routes: list[Route] = []
    for index, (place, control) in enumerate(request.named_controls.items()):
        if control.preprocessed or all(map(is_map_id, control.pictures(place).values())):
            continue
        if control.type not in MAPPED:
            raise InvalidRequest(
                f"there is no preprocessor for {control.type!r}; send the control map itself with "
                f"preprocessed: true (maps are made for: {', '.join(MAPPED)})",
                f"{place}.type",
            )
        routes.append(Route("controls", index, control.type))
    count = sum(len(adapter.images) for adapter in request.ip_adapters.values())
    routes += [Route("ip_adapter", index, "image_encoder") for index in range(count)]
    return tuple(routes)
