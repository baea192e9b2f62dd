"""`python -m bench.micro`: the time of each step of a job, as a multiple of that of a fixed piece of pure Python.

The multiples are about the same on slow and fast machines, so results from different machines and times can be
compared. They are printed only; no value fails the run.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

from otp_stream.broker.events import event
from otp_stream.core.backoff import Backoff
from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.decision import Ack, admit, decide
from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Accepted, Reply
from otp_stream.core.sealed_body import Content
from otp_stream.core.sealing_keys import keys_of, new_jwk
from otp_stream.mail import Brand, Composer, MailIdentity
from otp_stream.mail.template_data import template_data
from otp_stream.relay.envelope import Envelopes, Extensions, data_form
from otp_stream.relay.parser import ReplyParser

_ROUNDS = 7
_REPEATS = 2_000
_KEY = b"k" * 32
_BRAND = Brand(name="Acme", color="#e60023", support="help@acme.example", footer=("Acme Inc.", "1 Main Street"))


def yardstick() -> int:
    """Do the fixed piece of work: about ten microseconds on a usual machine."""
    total = 0
    for number in range(200):
        total += number * number
    return total


def steps() -> dict[str, Callable[[], object]]:
    """Return each step with what it needs."""
    body = _body()
    request = OtpJob.from_bytes(body)
    job = _job(request)
    identity = MailIdentity(sender=("", "no-reply@example.com"), templates_dir=None, default_locale="en")
    composer = Composer(identity, _KEY)
    mail = composer.compose(job)
    layout = composer.templates.find("otp", None)
    data = template_data(job, layout.language, identity)
    german, acme = _job(OtpJob.from_bytes(_body(locale="de"))), Composer(replace(identity, brand=_BRAND), _KEY)
    envelopes = Envelopes("no-reply@example.com", Extensions(pipelining=True))
    backoff = Backoff(1_000, 300_000, 3)
    met = Accepted(Reply(250, "2.0.0", "Ok: queued", "body"))
    replies = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go ahead\r\n250 2.0.0 Ok: queued\r\n"
    parser = ReplyParser()
    return {
        "decode: bytes to typed job": lambda: OtpJob.from_bytes(body),
        **_sealed_steps(body),
        "build the job object": lambda: _job(request),
        "admit": lambda: admit(now_ms=0, expires_ms=1, attempts_made=0),
        "compose: the whole message": lambda: composer.compose(job),
        "the same in German": lambda: composer.compose(german),
        "the same with a brand": lambda: acme.compose(job),
        "render with Jinja, if the template cannot be precompiled": lambda: layout.render(data),
        "write the envelope": lambda: envelopes.write(mail),
        "write the content for DATA": lambda: data_form(mail),
        "parse the four replies of one mail": lambda: parser.feed(replies),
        "decide": lambda: decide(
            met, attempts_made=0, now_ms=0, expires_ms=1, backoff=backoff, fraction=0.5, may_resend=True
        ),
        "event": lambda: event(Ack("sent"), job.id, job, at_ms=0, hash_key=_KEY),
    }


def _sealed_steps(body: bytes) -> dict[str, Callable[[], object]]:
    """Return the steps of a sealed job, with each kind of key."""
    found: dict[str, Callable[[], object]] = {}
    for kind, name in (("oct", "a shared key"), ("p256", "a pair on P-256"), ("x25519", "a pair on X25519")):
        keys = keys_of(new_jwk(kind))
        sealed = at_rest(Content(body), keys).body
        found[f"the same, sealed with {name}"] = partial(OtpJob.from_bytes, sealed, keys=keys)
        found[f"seal a plain job with {name}"] = partial(at_rest, Content(body), keys)
    return found


def _body(**metadata: str) -> bytes:
    return json.dumps(
        {
            "email": "user@example.com", "otp": "123456", "jobId": "3f2b9c1e-7a4d-4c58-9f10-000000000001",
            "timestamp": 1_700_000_000_000, "metadata": {"userName": "John Doe", "expiryMinutes": 15, **metadata},
        }
    ).encode()  # fmt: skip


def _job(request: OtpJob) -> Job:
    return Job.from_request(
        request, job_id=request.job_id or "", lane="jobs", first_seen_ms=1_700_000_000_500, attempts_made=0,
        default_expiry_minutes=15,
    )  # fmt: skip


def took_us(work: Callable[[], object]) -> float:
    """Return the median time of one call, microseconds."""
    rounds: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_REPEATS):
            work()
        rounds.append((time.perf_counter() - began) / _REPEATS * 1e6)
    return median(rounds)


def main() -> None:
    """Print a table in Markdown."""
    lines = ["| step | multiple | µs here |", "|---|---|---|"]
    for name, work in steps().items():
        # the yardstick beside each step: a machine that changes its speed changes both
        one, measure = took_us(work), took_us(yardstick)
        lines.append(f"| {name} | {one / measure:.2f} | {one:.1f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
