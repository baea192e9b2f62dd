"""A Django application in one file that publishes a code, and shows what became of it.

pip install django 'otp-stream[client]'
RABBITMQ_URL=amqp://… python examples/django_login.py runserver
"""

import logging
import os
import secrets
import sys
import time

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.urls import path
from pydantic import ValidationError

from otp_stream.client import ClientError, JobEvent, Metadata, OtpJob, OutcomeUnknownError, SyncOtpClient

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["localhost", "127.0.0.1"],
        MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY") or secrets.token_hex(),
    )

FORM = """<form method="post"><input type="hidden" name="csrfmiddlewaretoken" value="{}">
<input name="email" type="email" required><button>Send a code</button></form>"""
TEXTS = {
    "sent": "The code is on its way: look in your inbox.",
    "duplicate": "The code was sent before: look in your inbox.",
    "throttled": "Too many codes. Please wait a while.",
}
LATER = "The code could not be sent. Please try again later."

# one for the process, in a module such as otp.py; it connects at the first use, also after a fork
client = SyncOtpClient(
    os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5673/"),
    queue=os.environ.get("RABBITMQ_QUEUE_NAME", "service_send_otp"),
    prefix=os.environ.get("RABBITMQ_PREFIX", "otp"),
)


def login(request: HttpRequest) -> HttpResponse:
    """Ask for the address; publish a code, and wait a few seconds for its outcome."""
    if request.method != "POST":
        return HttpResponse(FORM.format(get_token(request)))
    code = f"{secrets.randbelow(10**6):06}"  # store its hash and expiry in the session
    metadata = Metadata(purpose="login", expiry_minutes=10)
    try:
        job = OtpJob(
            email=request.POST.get("email", ""), otp=code, timestamp=time.time_ns() // 1_000_000, metadata=metadata
        )
        event = client.send(job, high_lane=True, timeout_s=5)
    except ValidationError:
        return HttpResponse("This is no e-mail address.", status=422)
    except OutcomeUnknownError:  # it is in RabbitMQ, and will be sent
        return HttpResponse("It takes a little longer than usual: look in your inbox in a minute.")
    except ClientError as error:
        logging.getLogger(__name__).warning("%s", error)  # names the fix
        return HttpResponse(LATER, status=503)
    return HttpResponse(text_of(event))


def text_of(event: JobEvent) -> str:
    """Return what to show to the person."""
    if event.outcome == "rejected" and event.reply_class in {"address", "mailbox", None}:
        return "Mail to this address is refused. Is it right?"
    return TEXTS.get(event.outcome, LATER)


urlpatterns = [path("", login)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
