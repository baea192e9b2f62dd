"""A FastAPI application that publishes a code, and shows what became of it.

pip install fastapi python-multipart uvicorn 'otp-stream[client]'
RABBITMQ_URL=amqp://… uvicorn --app-dir examples fastapi_login:app
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Form, HTTPException
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError

from otp_stream.client import ClientError, JobEvent, Metadata, OtpClient, OtpJob, OutcomeUnknownError

FORM = (
    '<form method="post" action="/codes"><input name="email" type="email" required><button>Send a code</button></form>'
)
TEXTS = {
    "sent": "The code is on its way: look in your inbox.",
    "duplicate": "The code was sent before: look in your inbox.",
    "throttled": "Too many codes. Please wait a while.",
}
LATER = "The code could not be sent. Please try again later."
REFRESH = '<meta http-equiv="refresh" content="1">The code is being sent …'
outcomes: dict[str, asyncio.Task[str]] = {}  # in production: a store with an expiry, shared by all processes


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client for the application."""
    async with OtpClient(
        os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5673/"),
        queue=os.environ.get("RABBITMQ_QUEUE_NAME", "service_send_otp"),
        prefix=os.environ.get("RABBITMQ_PREFIX", "otp"),
    ) as app.state.client:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/", response_class=HTMLResponse)
async def login() -> str:
    """Ask for the address."""
    return FORM


@app.post("/codes")
async def send_code(email: Annotated[str, Form()]) -> RedirectResponse:
    """Publish a code, and lead to the page that shows its outcome."""
    code = f"{secrets.randbelow(10**6):06}"  # store its hash and expiry with the login that it confirms
    job_id = secrets.token_urlsafe(16)
    now_ms = time.time_ns() // 1_000_000
    metadata = Metadata(purpose="login", expiry_minutes=10)
    try:
        job = OtpJob(email=email, otp=code, job_id=job_id, timestamp=now_ms, metadata=metadata)
    except ValidationError:
        raise HTTPException(422, "This is no e-mail address.") from None
    outcomes[job_id] = asyncio.create_task(_send(job))
    return RedirectResponse(f"/codes/{job_id}", status_code=303)


@app.get("/codes/{job_id}", response_class=HTMLResponse)
async def outcome(job_id: str) -> str:
    """Show the outcome."""
    if job_id not in outcomes:
        raise HTTPException(404, "There is no such code.")
    task = outcomes[job_id]
    return task.result() if task.done() else REFRESH


async def _send(job: OtpJob) -> str:
    try:
        event = await app.state.client.send(job, high_lane=True, timeout_s=60)
    except OutcomeUnknownError:
        return "It takes a little longer than usual …"
    except ClientError as error:
        print(error)  # names the fix; log it
        return LATER
    return text_of(event)


def text_of(event: JobEvent) -> str:
    """Return what to show to the person."""
    if event.outcome == "rejected" and event.reply_class in {"address", "mailbox", None}:
        return "Mail to this address is refused. Is it right?"
    return TEXTS.get(event.outcome, LATER)
