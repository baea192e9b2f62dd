"""Errors of the intake in the format of RFC 9457. None quotes a value of the request."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 2.0
"""When to send a request again after RabbitMQ did not accept a job, in seconds."""


class ProblemError(Exception):
    """A request that is refused. `detail` says what is wrong and what to do; `more` are members of the response."""

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more or {}

    @classmethod
    def retry_later(
        cls, status: int, detail: str, after_s: float, more: Mapping[str, object] | None = None
    ) -> "ProblemError":
        """Return a refusal after which the same request may be sent again in `after_s` seconds."""
        return cls(status, detail, {"retry-after": str(math.ceil(after_s))}, more)

    @property
    def title(self) -> str:
        """The phrase of the status."""
        return HTTPStatus(self.status).phrase

    def response(self) -> Response:
        """Return the response."""
        content = {"title": self.title, "status": self.status, "detail": self.detail, **self.more}
        return Response(json.dumps(content, ensure_ascii=False), self.status, self.headers, CONTENT_TYPE)
