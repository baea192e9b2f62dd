"""The HTTP intake of a real worker does what its OpenAPI document says, whatever is sent to it."""

import asyncio
from collections.abc import Callable
from typing import Any

import schemathesis
from api import TOKEN
from conftest import Stage
from hook_payloads import SUPABASE_SECRET, ZITADEL_KEY
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from schemathesis.generation import GenerationMode
from worker import Worker

EXAMPLES = 12
"""For each operation, in each of two modes."""
LENIENT = checks.negative_data_rejection
"""Not checked, because the intake reads a job as a worker does: a wrong optional field costs no one the code."""
OF_A_PAYLOAD = checks.positive_data_acceptance
"""Not checked for hooks, whose payloads are documented by their senders, for ids of unknown jobs, and for random bytes
in the form of a sealed code, which no key opens."""


async def test_every_response_is_as_documented(stage: Stage) -> None:
    worker = await stage.run(
        INTAKE_TOKEN=TOKEN, INTAKE_SUPABASE_SECRET=SUPABASE_SECRET, INTAKE_ZITADEL_KEY=ZITADEL_KEY,
        INTAKE_RATE_PER_SECOND="100000",
    )  # fmt: skip
    calls = await asyncio.to_thread(send_all, worker)
    assert calls >= 50
    assert (await worker.get("/livez"))[0] == 200
    assert "the intake failed" not in worker.log


def send_all(worker: Worker) -> int:
    """Send generated requests to each operation, and check each response. Returns their number."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{worker.port}/openapi.json")
    count = 0

    def check(case: Any) -> None:
        nonlocal count
        count += 1
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        sealed = isinstance(case.body, dict) and "otpSealed" in case.body
        excluded = [LENIENT] if case.path == "/v1/jobs" and not sealed else [LENIENT, OF_A_PAYLOAD]
        case.validate_response(response, excluded_checks=excluded)
        assert response.status_code < 500

    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            run(operation.as_strategy(generation_mode=mode), check)
    return count


def run(strategy: Any, check: Callable[[Any], None]) -> None:
    options = settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    options(given(strategy)(check))()
