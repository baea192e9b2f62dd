"""The paths of the intake."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from time import perf_counter
from typing import Any, Protocol
from urllib.parse import quote

import structlog
import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from otp_stream.asgi import INTAKE_PREFIX, NOT_FOUND, get_route, json_response
from otp_stream.core.http_request import HttpRequest, known_method
from otp_stream.core.http_token import HttpToken
from otp_stream.core.request_rate import RequestRate
from otp_stream.core.sealing_keys import SealingKeys
from otp_stream.core.state import Phase
from otp_stream.request_body import Bodies
from otp_stream.telemetry_errors import SafeSpan, observe

from .hook_receiver import HookFailedError, HookReceiver
from .hooks import Hook
from .problem import RETRY_AFTER_S, ProblemError
from .producers import JOBS, Producers
from .requests import idempotency_key, read_body
from .submitter import Publish, RankedValues, Statuses, Submitter, read_job

PREFIX = INTAKE_PREFIX
_HOOKS = "/v1/hooks/"
_TRACE = ("traceparent", "tracestate")
_NOT_CONSUMING = "this process has WORKER=false, so it is not connected to RabbitMQ; send jobs to a worker"

_NO_PATH = "there is nothing at this path; jobs are sent to /v1/jobs, and a hook is on when its secret or token is set"

View = Callable[[Request], Awaitable[Response]]

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RequestTelemetry(Protocol):
    """Counts and traces requests. Its exceptions are counted by the caller and change nothing."""

    def request_span(self, request: HttpRequest) -> AbstractContextManager[object]:
        """Return the span of a request that may publish jobs, in the client's trace."""
        ...

    def request_ended(self, request: HttpRequest, status: int, took_s: float) -> None:
        """Record the response to a request, in its span if that is the current one."""
        ...


@dataclass(frozen=True, slots=True)
class Intake:
    """What the intake reads and calls."""

    tokens: Callable[[], Sequence[HttpToken]]
    """Returns the tokens of producers that are valid now."""
    hook_keys: Callable[[], Mapping[str, Sequence[bytes]]]
    """Returns the keys with which hooks are signed now, by the name of each hook that is on."""
    per_second: float
    """Requests per second with each token."""
    publish: Publish
    ranked_values: RankedValues
    statuses: Statuses
    phase: Callable[[], Phase]
    hash_keys: Sequence[bytes] = field(repr=False)
    tenant_problem: Callable[[str], str | None]
    """Returns why no job can be sent for a tenant now, or `None`."""
    keys: Callable[[], SealingKeys]
    """Returns the keys that open sealed codes now."""
    telemetry: RequestTelemetry
    bodies: Bodies

    def is_on(self) -> bool:
        """Return whether there is a token, or a key of a hook."""
        return bool(self.tokens() or self.hook_keys())


def intake_route(intake: Intake) -> ASGIApp:
    """Return an ASGI route for all paths below `PREFIX`. Without a token and a key of a hook, there are none."""
    api = _Api(intake)

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        response = await api.respond(Request(scope, receive)) if intake.is_on() else NOT_FOUND
        await response(scope, receive, send)

    return route


def document_routes(intake: Intake, document: Callable[[], Mapping[str, Any]]) -> dict[str, ASGIApp]:
    """Return the routes of the OpenAPI document, which is public while the intake is on."""

    def route(make: Callable[[], Response]) -> ASGIApp:
        response = cache(make)

        async def view(_: Request) -> Response:
            return response() if intake.is_on() else NOT_FOUND

        return get_route(view)

    def written() -> Response:
        text = yaml.safe_dump(dict(document()), sort_keys=False, allow_unicode=True)
        return Response(text, media_type="application/yaml")

    return {
        "/openapi.json": route(lambda: json_response(document())),
        "/openapi.yaml": route(written),
    }


class _Api:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._producers = Producers(intake.tokens, RequestRate(intake.per_second))
        self._submitter = Submitter(
            intake.publish, intake.ranked_values, intake.statuses, intake.hash_keys, intake.tenant_problem
        )
        self._hooks = HookReceiver(self._producers, self._submitter, intake.bodies, intake.hook_keys)

    async def respond(self, request: Request) -> Response:
        """Return the response to any request, and record it."""
        telemetry, seen, since = self._intake.telemetry, self._seen(request), perf_counter()
        # the path of one job contains its id, and a request to it publishes nothing
        traced = seen.route is not None and seen.method == "POST" and "{" not in seen.route
        with SafeSpan(lambda: telemetry.request_span(seen)) if traced else nullcontext():
            response = await self._respond(request)
            observe(telemetry.request_ended, seen, response.status_code, perf_counter() - since)
        return response

    def _seen(self, request: Request) -> HttpRequest:
        path = str(request.scope["path"])
        route = f"{JOBS}/{{jobId}}" if path.startswith(f"{JOBS}/") else path
        return HttpRequest(
            known_method(request.method),
            route if self._views(path) else None,
            request.url.scheme,
            request.headers.get("traceparent"),
        )

    async def _respond(self, request: Request) -> Response:
        """Return the response, also if a part of the intake fails."""
        try:
            return await self._view(request)(request)
        except HookFailedError as failed:
            return failed.response()
        except ProblemError as problem:
            return problem.response()
        except Exception as error:  # noqa: BLE001 - its text may contain a code
            _log.error("the intake failed", error=type(error).__name__)
            return ProblemError.retry_later(500, "internal error; send the request again", RETRY_AFTER_S).response()

    def _view(self, request: Request) -> View:
        views = self._views(str(request.scope["path"]))
        if not views:
            raise ProblemError(404, _NO_PATH)
        if request.method not in views:
            raise ProblemError(405, f"use {' or '.join(views)}", {"allow": ", ".join(views)})
        return views[request.method]

    def _views(self, path: str) -> Mapping[str, View]:
        """Return the view of each method that a path has."""
        if path == JOBS:
            return {"POST": self._post_job}
        if path.startswith(f"{JOBS}/") and len(path) > len(JOBS) + 1:
            return {"GET": self._get_job, "HEAD": self._get_job}
        if path.startswith(_HOOKS) and (hook := self._hooks.find(path.removeprefix(_HOOKS))):
            return {"POST": partial(self._post_hook, hook)}
        return {}

    async def _post_hook(self, hook: Hook, request: Request) -> Response:
        return await self._hooks.receive(hook, request, self._check_phase)

    async def _post_job(self, request: Request) -> Response:
        producer = self._producers.by_token(request)
        self._check_phase()
        key = idempotency_key(request)
        body = await read_body(request, self._intake.bodies, is_known=True)
        job = read_job(body, self._intake.keys())
        job_id = await self._submitter.submit(job, producer, key, _trace_context(request))
        content: dict[str, object] = {"jobId": job_id, "state": "queued"}
        if job.lenient:
            content["lenient"] = [{"field": field, "what": what} for field, what in job.lenient]
        response = json_response(content, 202)
        response.headers["location"] = f"{request.scope.get('root_path', '')}{JOBS}/{quote(job_id, safe='')}"
        return response

    async def _get_job(self, request: Request) -> Response:
        producer = self._producers.by_token(request)
        job_id = str(request.scope["path"]).removeprefix(f"{JOBS}/")
        status = await self._intake.statuses.find(producer.tenant, job_id)
        if status is None:
            raise ProblemError(
                404, "this worker does not know the job: see `How long a job is known` in docs/http.md", {}
            )
        return json_response(
            {
                "jobId": job_id,
                "state": status.state,
                "outcome": None if status.outcome == "queued" else status.outcome,
                "at": status.at_ms,
                "attempt": status.attempt,
                "replyClass": status.reply_class,
            }
        )

    def _check_phase(self) -> None:
        match self._intake.phase():
            case "stopping":
                raise ProblemError(503, "this worker is stopping", {"retry-after": "1", "connection": "close"})
            case "http_only":
                raise ProblemError(503, _NOT_CONSUMING)
            case "starting" | "consuming":
                pass


def _trace_context(request: Request) -> dict[str, str]:
    return {name: it for name in _TRACE if (it := request.headers.get(name))}
