"""The service is as /openapi.json says: requests that it allows, and many that it does not, made by schemathesis."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pvqae.core import config
from pvqae.serving import app
from pvqae.serving.middleware import Metrics
from pvqae.serving.slot import Model, ModelSlot
from tests.pvqae.serving.conftest import TOKEN

OPERATIONS = {"/health": "get", "/ready": "get", "/metrics": "get", "/v1/model": "get", "/v1/score": "post",
              "/v1/score/batch": "post"}  # fmt: skip
# Too many images in a request are too much, as too many bytes are: the library's list of refusals lacks 413.
REFUSALS = ["400", "401", "404", "405", "413", "415", "422", "429"]
KEY = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def api(loaded: Model) -> Any:
    load_all_checks()
    slot = ModelSlot(Metrics())
    slot.put(loaded)
    door = app.make(slot, config.Service(rate=0, max_batch=3), Metrics(), TOKEN)
    settings = SchemathesisConfig.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}})
    return schemathesis.openapi.from_asgi("/openapi.json", door, config=settings, headers=KEY)


def test_every_operation_is_tried(api: Any) -> None:
    assert {path: next(iter(api[path])) for path in api} == OPERATIONS


@pytest.mark.parametrize("path", list(OPERATIONS))
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_service_keeps_to_its_description(api: Any, path: str, mode: GenerationMode) -> None:
    if mode is GenerationMode.NEGATIVE and OPERATIONS[path] == "get":
        pytest.skip("nothing about it can be wrong")

    seen: list[bool] = []

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=api[path][OPERATIONS[path]].as_strategy(generation_mode=mode))
    def tried(case: Any) -> None:
        # A schema can't say which strings are the base64 of an image, so "valid" bodies are refused with 400, rightly.
        answer = case.call_and_validate(headers=KEY, excluded_checks=[positive_data_acceptance])
        # The one image that it knows is of 1 x 1 pixels: whoever says so has decoded it.
        seen.append(answer.status_code == 200 or "found 1 x 1" in answer.text)

    tried()
    assert mode is GenerationMode.NEGATIVE or any(seen)
