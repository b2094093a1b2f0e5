"""The description of the API: FastAPI's, and what FastAPI cannot know of these routes.

FastAPI knows paths, parameters and JSON answers. The rest stands in one table here: bodies that
routes read by themselves, answers that are no JSON, and which refusals there are at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments.contracts.api import (
    EditsForm,
    ErrorAnswer,
    GenerationsBody,
    PreprocessForm,
    VariationsForm,
)
from deployments.contracts.batches import BatchBody, FileForm
from deployments.contracts.job_cards import JobCard
from deployments.contracts.moderations import ModerationsBody
from deployments.contracts.tokens import TokenizeBody
from deployments.contracts.videos import VideoBody
from deployments.ingress.answer.media import MEDIA_TYPES
from deployments.ingress.answer.stills import SPRITESHEET_TYPE
from deployments.ingress.answer.storage import FILES_PATH
from deployments.ingress.answer.video_files import VIDEO_TYPES
from deployments.ingress.http.a1111.answers import DetailedErrorAnswer
from deployments.ingress.http.a1111.bodies import (
    DetectBody,
    Img2ImgBody,
    OptionsBody,
    Txt2ImgBody,
)
from deployments.ingress.http.events import (
    CompletedEvent,
    ErrorEvent,
    FailedEvent,
    JobEvent,
    JobPartialImageEvent,
    PartialImageEvent,
)
from deployments.ingress.http.forms import NESTED
from deployments.ingress.http.idempotency import HEADER
from deployments.ingress.http.metrics import CONTENT_TYPE
from deployments.ingress.http.paths import A1111, PING_PATH
from deployments.ingress.jobs.desk import LINES_TYPE, MAX_KEY

Json = dict[str, Any]  # a part of the document
REF = "#/components/schemas/{model}"
MODELS: tuple[type[BaseModel], ...] = (
    *(GenerationsBody, EditsForm, VariationsForm, PreprocessForm, VideoBody),
    *(Txt2ImgBody, Img2ImgBody, DetectBody, OptionsBody, DetailedErrorAnswer),
    *(ErrorAnswer, PartialImageEvent, CompletedEvent, FailedEvent, ErrorEvent),
    *(JobEvent, JobPartialImageEvent, JobCard, FileForm, BatchBody),
    *(TokenizeBody, ModerationsBody),
)
REFUSALS = {
    400: "a field, the body or a header is wrong; `param` names the field",
    401: "a key is needed",
    403: "the key does not allow this",
    404: "no such model, adapter, file or job",
    409: "the Idempotency-Key came with another request before",
    408: "not done within the time limit, or the body was not there in time",
    413: "the body is too large",
    429: "full, or more than the key may have; try again after `retry-after-ms`",
    499: "interrupted by its caller before an image was done",
    500: "the request failed by the service's fault",
    503: "the model, or what the request needs, cannot answer now; try again",
}
PHRASES = {499: "Client Closed Request"}  # of statuses that no standard knows
ALWAYS, OF_WORK, OF_KEYS = (400, 404, 413, 500, 503), (408, 429), (401, 403, 429)
# Whatever keys there are; the names of pictures are secrets.
OPEN = ("/healthz", PING_PATH, "/v1/jobs/{job_id}/files/{name}")
BOTH = FILES_PATH + "{name}"  # a picture is shown without a key, what is known of a file with one
BINARY: Json = {"type": "string", "format": "binary"}


# Each event as its fields, whose `data` is JSON in turn: as OpenAPI 3.2 describes such streams.
def _stream_of(*events: tuple[type[BaseModel], str]) -> Json:
    return {
        "anyOf": [
            {
                "type": "object",
                "required": ["event", "data"],
                "properties": {
                    "event": {"type": "string", "pattern": pattern},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {"$ref": REF.format(model=event.__name__)},
                    },
                },
            }
            for event, pattern in events
        ]
    }


EVENTS = _stream_of(
    (PartialImageEvent, r"\.partial_image$"),
    (CompletedEvent, r"\.completed$"),
    (FailedEvent, r"\.failed$"),
    (ErrorEvent, "^error$"),
)
JOB_EVENTS = _stream_of(
    (JobEvent, r"^job\.(progress|completed|failed|cancelled)$"),
    (JobPartialImageEvent, r"^job\.partial_image$"),
    (ErrorEvent, "^error$"),
)
BALL: Json = {
    "model": "sd15",
    "prompt": "a big red ball on the left, in the snow",
    "size": "64x64",
    "num_inference_steps": 4,
    "eta": 0.3,
    "seed": 7,
    "loras": [{"name": "papercut", "weight": 1.0}],
}
CONE: Json = {
    "model": "sd15",
    "prompt": "a big yellow cone in the center, at night",
    "size": "64x64",
    "num_frames": 8,
    "output_format": "gif",
    "motion_loras": [{"name": "pan-left", "weight": 1.0}],
}
WORDS: Json = {"model": "sd15", "prompt": "a big red ball on the left, in the snow"}
CUBE: Json = {
    "prompt": "a (small:1.2) blue cube in the center, on the sand <lora:ink:0.7>",
    "width": 64,
    "height": 64,
    "steps": 4,
    "cfg_scale": 1,
    "seed": 7,
}


@dataclass(frozen=True)
class Form:
    """A multipart body: the fields of a model, and files."""

    fields: type[BaseModel]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """What FastAPI is told of one route.

    Attributes:
        takes: the JSON body; an example of it.
        form: the multipart body.
        answers: media types of a success, beside or instead of FastAPI's JSON.
        instead: FastAPI's JSON answer does not exist.
        headers: of a success, with what they say.
        repeats: it takes an `Idempotency-Key`.
        unready: its 503 is FastAPI's JSON, too.
        interruptible: another request may end it.
        later: it may be answered with a job.
    """

    takes: type[BaseModel] | None = None
    example: Json | None = None
    form: Form | None = None
    answers: Mapping[str, Json] = field(default_factory=dict)
    instead: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    repeats: bool = False
    unready: bool = False
    interruptible: bool = False
    later: bool = False

    @property
    def once(self) -> bool:
        """Whether its answer comes once, to a key."""
        return self.repeats and not self.interruptible


EVENT_STREAM = {"text/event-stream": EVENTS}
JOB_EVENT_STREAM = {"text/event-stream": JOB_EVENTS}
LINES = {LINES_TYPE: {"type": "string"}}
PICTURES = dict.fromkeys(MEDIA_TYPES.values(), BINARY)
TABLE: Mapping[tuple[str, str], Told] = {
    ("post", "/v1/images/generations"): Told(
        takes=GenerationsBody, example=BALL, answers=EVENT_STREAM, repeats=True, later=True
    ),
    ("post", "/v1/images/edits"): Told(
        form=Form(EditsForm, ("image",), ("mask",)),
        answers=EVENT_STREAM,
        repeats=True,
        later=True,
    ),
    ("post", "/v1/images/variations"): Told(
        form=Form(VariationsForm, ("image",)), answers=EVENT_STREAM, repeats=True, later=True
    ),
    ("post", "/v1/preprocess/{preprocessor}"): Told(
        form=Form(PreprocessForm, ("image",)),
        answers={"image/png": BINARY},
        instead=True,
        headers={"x-map-id": "stands for the map where a request takes an image"},
    ),
    ("post", "/v1/tokenize"): Told(takes=TokenizeBody, example=WORDS),
    ("post", "/v1/moderations"): Told(takes=ModerationsBody),
    ("post", "/v1/videos"): Told(takes=VideoBody, example=CONE, form=Form(VideoBody), repeats=True),
    ("get", "/v1/videos/{video_id}/content"): Told(
        answers=dict.fromkeys([*VIDEO_TYPES.values(), SPRITESHEET_TYPE], BINARY), instead=True
    ),
    ("get", FILES_PATH + "{name}"): Told(answers=PICTURES),
    ("post", "/v1/files"): Told(form=Form(FileForm, ("file",))),
    ("get", "/v1/files/{file_id}/content"): Told(answers=LINES, instead=True),
    ("post", "/v1/batches"): Told(takes=BatchBody, repeats=True),
    ("get", "/v1/jobs/{job_id}/content"): Told(
        answers=dict.fromkeys([*MEDIA_TYPES.values(), *VIDEO_TYPES.values()], BINARY), instead=True
    ),
    ("get", "/v1/jobs/{job_id}/files/{name}"): Told(answers=PICTURES, instead=True),
    ("get", "/v1/jobs/{job_id}/events"): Told(answers=JOB_EVENT_STREAM, instead=True),
    ("get", "/readyz"): Told(unready=True),
    ("post", "/sdapi/v1/txt2img"): Told(
        takes=Txt2ImgBody, example=CUBE, repeats=True, interruptible=True
    ),
    ("post", "/sdapi/v1/img2img"): Told(takes=Img2ImgBody, repeats=True, interruptible=True),
    ("post", "/sdapi/v1/options"): Told(takes=OptionsBody),
    ("post", "/controlnet/detect"): Told(takes=DetectBody),
    ("get", "/metrics"): Told(answers={CONTENT_TYPE: {"type": "string"}}, instead=True),
}


def describe(app: FastAPI, *, keyed: bool) -> None:
    """Has the application serve this description of itself. `keyed`: it asks for keys."""

    @cache
    def openapi() -> Json:
        return described(app, keyed)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to say it


def described(app: FastAPI, keyed: bool) -> Json:
    """The document, in OpenAPI 3.1."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components: Json = document.setdefault("components", {})
    schemas: Json = components.setdefault("schemas", {})
    _, ours = models_json_schema([(m, "validation") for m in MODELS], ref_template=REF)
    schemas.update(ours["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["responses"] = {
        f"{prefix}{status}": _refused(status, shape)
        for prefix, shape in (("Refused", ErrorAnswer), ("Detailed", DetailedErrorAnswer))
        for status in REFUSALS
    }
    if keyed:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "password": {"type": "http", "scheme": "basic", "description": "the key, of any user"},
        }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            told = TABLE.get((method, path), Told())
            _tell(operation, told, schemas)
            a1111 = path.startswith(A1111)
            statuses = {*ALWAYS, *(OF_WORK if method == "post" else ())}
            statuses |= {499} if told.interruptible else set()
            statuses |= {409, 499} if told.once else set()
            if keyed and path == BOTH:
                statuses |= set(OF_KEYS)
            elif keyed and path not in OPEN:
                statuses |= set(OF_KEYS)
                operation["security"] = [{"key": []}, *([{"password": []}] if a1111 else [])]
            _refuse(operation, statuses, "Detailed" if a1111 else "Refused")
            if told.unready:
                operation["responses"]["503"] = operation["responses"]["200"] | {
                    "description": "not ready"
                }
    return document


def _tell(operation: Json, told: Told, schemas: Json) -> None:
    """Puts bodies, answers and headers into one operation."""
    content: Json = {}
    if told.takes is not None:
        content["application/json"] = {"schema": {"$ref": REF.format(model=told.takes.__name__)}}
        if told.example is not None:
            content["application/json"]["example"] = told.example
    if told.form is not None:
        content["multipart/form-data"] = {"schema": _form_schema(told.form, schemas)}
    if content:
        operation["requestBody"] = {"required": True, "content": content}
    if told.repeats:
        operation.setdefault("parameters", []).append(
            {
                "name": HEADER,
                "in": "header",
                "description": "a request that is sent again gets the answer of the first",
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
            }
        )
    success: Json = operation["responses"]["200"]
    kept = {} if told.instead else success.get("content", {})
    if told.later:
        job = {"$ref": REF.format(model=JobCard.__name__)}
        operation["responses"]["202"] = {
            "description": "with `async`: a job, accepted",
            "content": {"application/json": {"schema": job}},
        }
    success["content"] = {**kept, **{m: {"schema": schema} for m, schema in told.answers.items()}}
    success["headers"] = _headers({**told.headers, "x-request-id": "names the request in the log"})


def _form_schema(form: Form, schemas: Json) -> Json:
    """A model's fields as texts, the nested ones as JSON, and its files."""
    model: Json = schemas[form.fields.__name__]
    properties: Json = {}
    for name, schema in model["properties"].items():
        nested = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
        properties[name] = nested if name in NESTED else schema
    for name in (*form.required, *form.optional):
        properties[name] = BINARY
    required = [*model.get("required", []), *form.required]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _refuse(operation: Json, statuses: set[int], prefix: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # every fault of a request is a 400 here
    for status in REFUSALS:
        responses.pop(str(status), None)
        if status in statuses:
            responses[str(status)] = {"$ref": f"#/components/responses/{prefix}{status}"}


def _refused(status: int, shape: type[BaseModel]) -> Json:
    headers = {"x-request-id": "names the request in the log"}
    if status not in (429, 500, 503):
        headers["x-should-retry"] = "false: the same request would fail again"
    if status == 429:
        headers["retry-after-ms"] = "when to try again, from the measured step time"
        headers["retry-after"] = "the same in whole seconds"
    return {
        "description": f"{PHRASES.get(status) or HTTPStatus(status).phrase}: {REFUSALS[status]}",
        "headers": _headers(headers),
        "content": {"application/json": {"schema": {"$ref": REF.format(model=shape.__name__)}}},
    }


def _headers(described: Mapping[str, str]) -> Json:
    return {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in described.items()
    }
