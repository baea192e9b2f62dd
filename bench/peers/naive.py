"""The worker that most people would write first: a connection and an `EmailMessage` for each mail."""

import os
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

import aiosmtplib
from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel, EmailStr

QUEUE = RabbitQueue(os.environ["QUEUE"], durable=True)
PORT = int(os.environ["SMTP_PORT"])
TEMPLATES = Environment(loader=FileSystemLoader(os.environ["TEMPLATES"]), autoescape=select_autoescape(["html"]))


class Job(BaseModel):
    """What producers publish."""

    email: EmailStr
    otp: str
    metadata: dict[str, Any] = {}


broker = RabbitBroker(os.environ["AMQP_URL"])
app = FastStream(broker)


@broker.subscriber(QUEUE, channel=Channel(prefetch_count=100))
async def send(job: Job) -> None:
    """Render, build, connect, send."""
    given = {"otp": job.otp, **job.metadata}
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = "Your one-time code", "no-reply@example.com", job.email
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="example.com")
    message.set_content(TEMPLATES.get_template("otp.txt").render(given))
    message.add_alternative(TEMPLATES.get_template("otp.html").render(given), subtype="html")
    await aiosmtplib.send(message, hostname="127.0.0.1", port=PORT, use_tls=False, start_tls=False)
