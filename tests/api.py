"""A program that sends jobs over HTTP."""

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from typing import Any

from worker import CODE, Worker

TOKEN = "c9d41f7e0b8265a3"


@dataclass
class Answer:
    """A response of the intake."""

    status: int
    headers: Message
    text: str

    @property
    def content(self) -> Any:
        return json.loads(self.text)

    @property
    def job_id(self) -> str:
        assert self.status == 202, self.text
        return self.content["jobId"]


def job(**more: Any) -> dict[str, Any]:
    return {"email": "user@example.com", "otp": CODE, **more}


async def call(
    worker: Worker, method: str, path: str, body: Any = None, *, token: str | None = TOKEN, **headers: str
) -> Answer:
    """Send a request. A body that is not `bytes` is sent as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{worker.port}{path}", data, sent, method=method)
    return await asyncio.to_thread(_send, request)


def _send(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return Answer(answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read().decode())


async def post(worker: Worker, body: Any, **headers: Any) -> Answer:
    """Send a job."""
    return await call(worker, "POST", "/v1/jobs", body, **headers)
