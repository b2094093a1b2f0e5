"""The web application answers as its description says: `make fuzz` in short, without Ray."""

import os
from collections import Counter
from pathlib import Path

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup

from configs.app import FolderStorage, ServiceArgs
from tests.fuzz.application import application
from tests.fuzz.conformance import AS_DESCRIBED, AnyCase, operations

EXAMPLES = int(os.environ.get("EXAMPLES", "500"))
KEYS = ("good", "good", "good", "bad")


def test_every_answer_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCD_TEST_KEYS", "good")
    storage = FolderStorage(kind="folder", path=str(tmp_path))
    args = ServiceArgs(default_model="none", storage=storage, api_keys_env="TCD_TEST_KEYS")
    app = application(args)
    statuses: Counter[int] = Counter()
    known = list(operations(schemathesis.openapi.from_asgi("/openapi.json", app)))
    for _, requests in known:

        @settings(max_examples=EXAMPLES // len(known))
        @given(case=requests, key=st.sampled_from(KEYS))
        def ask(case: AnyCase, key: str) -> None:
            answer = case.call(headers={"authorization": f"Bearer {key}"})
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=AS_DESCRIBED)

        ask()
    assert statuses.total() > 300
    assert {200, 400, 401, 404} <= set(statuses)


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_is_not_described_is_found(method: str) -> None:
    app = application(ServiceArgs())
    description = app.openapi()
    for path in ("/v1/images/generations", "/v1/models/{model_id}"):
        for operation in description["paths"][path].values():
            for status in ("400", "404"):
                del operation["responses"][status]
    schema = schemathesis.openapi.from_dict(description)
    schema.app = app
    case = (
        schema["/v1/images/generations"]["POST"].Case(body={}, media_type="application/json")
        if method == "POST"
        else schema["/v1/models/{model_id}"]["GET"].Case(path_parameters={"model_id": "x"})
    )
    with pytest.raises(FailureGroup, match="Undocumented status code"):
        case.call_and_validate(checks=AS_DESCRIBED)
