"""Jobs, and messages that are none, with their code and address in every place where a producer may write them."""

import base64
import gzip
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DOMAINS = ("example.com", "corp.example", "xn--strae-oqa.example")
MINUTE_MS = 60_000
Fields = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """A message for the jobs queue."""

    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lane: str = ""
    """What to append to the name of the queue."""


@dataclass(frozen=True)
class Person:
    """Who gets a code, and which."""

    address: str
    code: str

    @property
    def local(self) -> str:
        return self.address.rpartition("@")[0]


Change = Callable[[Fields, Person], None]


def _set(name: str, value: Callable[[Person], Any]) -> Change:
    return lambda fields, person: fields.__setitem__(name, value(person))


def _metadata(name: str, value: Callable[[Person], Any]) -> Change:
    return lambda fields, person: fields.setdefault("metadata", {}).__setitem__(name, value(person))


def _header(name: str, value: Callable[[Person], Any]) -> Change:
    return lambda fields, person: fields.setdefault("headers", {}).__setitem__(name, value(person))


CHANGES: dict[str, tuple[Change, ...]] = {
    "plain": (),
    "code as id": (_set("jobId", lambda it: it.code),),
    "code in id": (_set("jobId", lambda it: f"login-{it.code}-1"),),
    "encoded code in id": (_set("jobId", lambda it: f"login-{base64.b64encode(it.code.encode()).decode()}"),),
    "address as id": (_set("jobId", lambda it: it.address),),
    "encoded address in id": (_set("jobId", lambda it: it.address.encode().hex()),),
    "address in upper case in id": (_set("jobId", lambda it: f"id/{it.address.upper()}"),),
    "code as template": (_metadata("template", lambda it: it.code),),
    "code in template": (_metadata("template", lambda it: f"t-{it.code}"),),
    "address in template": (_metadata("template", lambda it: it.local),),
    "code as purpose": (_metadata("purpose", lambda it: it.code),),
    "code as locale": (_metadata("locale", lambda it: it.code),),
    "code as time zone": (_metadata("timeZone", lambda it: f"Europe/{it.code}"),),
    "code as tenant": (_metadata("tenant", lambda it: it.code),),
    "address as tenant": (_metadata("tenant", lambda it: it.address),),
    "code as name": (_metadata("userName", lambda it: it.code),),
    "code as key": (lambda fields, it: fields.__setitem__("metadata", {it.code: it.address}),),
    "code as top-level key": (lambda fields, it: fields.__setitem__(it.code, 1),),
    "code as place": (_metadata("request", lambda it: {"place": it.code, "device": it.address}),),
    "odd place": (_metadata("request", lambda it: {"place": [it.code], it.code: it.address}),),
    "code as priority": (_set("priority", lambda it: it.code),),
    "code as count": (_set("retryCount", lambda it: it.code),),
    "code as timestamp": (_set("timestamp", lambda it: it.code),),
    "code as life": (_metadata("expiryMinutes", lambda it: it.code),),
    "code in headers": (_header("x-code", lambda it: it.code), _header("x-otp-error", lambda it: it.code)),
    "forged headers": (_header("x-otp-job-id", lambda it: it.code), _header("x-otp-mac", lambda it: it.code),
                       _header("x-otp-replayed-by", lambda it: it.address)),
    "code as trace": (_header("traceparent", lambda it: f"00-{it.code}-{it.code}-01"),),
    "code as trace state": (_header("traceparent", lambda it: f"00-{'a' * 32}-{'b' * 16}-01"),
                            _header("tracestate", lambda it: f"code={it.code.replace('=', '')}"),
                            _header("baggage", lambda it: f"user={it.address}")),
    "trace state": (_header("traceparent", lambda it: f"00-{'a' * 32}-{'b' * 16}-01"),
                    _header("tracestate", lambda it: f"a=1,to={it.address.encode().hex()}")),
    "code as message id": (lambda fields, it: fields.setdefault("properties", {}).update(message_id=it.code),),
    "code and address as properties": (lambda fields, it: fields.setdefault("properties", {}).update(
        message_id=it.address, correlation_id=it.code, type=it.address, app_id=it.code, reply_to=it.address),),
    "code as content type": (lambda fields, it: fields.setdefault("properties", {}).update(
        content_type=f"application/{it.code}", content_encoding=it.code),),
    "expired": (_set("timestamp", lambda it: time.time_ns() // 1_000_000 - 60 * MINUTE_MS),),
    "broken template": (_metadata("template", lambda it: "missing_key"),),
    "broken include": (_metadata("template", lambda it: "include"),),
    "broken format": (_metadata("template", lambda it: "format"),),
    "broken filter": (_metadata("template", lambda it: "filter"),),
    "code in subject": (_metadata("template", lambda it: "subject"),),
    "limited": (_set("email", lambda it: f"limited{it.address}"),),
    "high": (_set("priority", lambda it: "high"),),
}  # fmt: skip
"""By name, what is different from a plain job."""

SEALABLE = tuple(it for it in CHANGES if not it.startswith(("code", "encoded code", "forged", "odd place")))
"""Those in which the code is in its own field only."""

TEMPLATES = {
    "missing_key": "{{ {}[otp].x }}",
    "include": "{% include otp %}",
    "format": "{{ '%d'|format(otp ~ email) }}",
    "filter": "{{ otp|round }}",
    "subject": "{{ otp }} {{ otp }}",
}
"""Bodies of an operator's templates. All but the last fail with an error that quotes the code."""


Seal = Callable[[str, str, str, object], str]
"""Return `otpSealed` for a code, an address and a job id."""


def job(number: int, person: Person, change: str, seal: Seal | None = None) -> Message:
    """Return a job with one of the `CHANGES`, whose code is sealed if there is a `seal`."""
    fields: Fields = {"email": person.address, "otp": person.code, "jobId": f"j-{number}"}
    for alter in CHANGES[change]:
        alter(fields, person)
    if seal is not None:
        fields["otpSealed"] = seal(
            fields.pop("otp"), fields["email"], fields["jobId"], fields.get("metadata", {}).get("tenant")
        )
    properties = fields.pop("properties", {}) | {"headers": fields.pop("headers", {})}
    return Message(json.dumps(fields).encode(), properties, ".high" if number % 10 == 0 else "")


def malformed(number: int, person: Person, chance: random.Random) -> Message:
    """Return a message that is no job."""
    address, code = person.address, person.code
    fields = {"email": address, "otp": code, "jobId": f"m-{number}"}
    bodies: list[bytes | str | object] = [
        f"{address} {code}",
        f"<job><to>{address}</to><code>{code}</code></job>",
        json.dumps(fields)[:-3],
        gzip.compress(json.dumps(fields).encode(), mtime=0),
        base64.b64encode(json.dumps(fields).encode()),
        json.dumps(json.dumps(fields)),
        fields | {"email": f"{address}, {address}"},
        fields | {"email": [address]},
        fields | {"email": {"address": address}},
        fields | {"email": address.replace("@", " at ")},
        fields | {"email": f"Ann <{address}"},
        fields | {"otp": f"{code[:8]} {code[8:]}"},
        fields | {"otp": [*code]},
        fields | {"otp": {"value": code}},
        fields | {"otp": int(code) if code.isdecimal() else None, "code": code},
        fields | {"otp": "", "text": f"Your code is {code}"},
        {"to": address, "code": code, "jobId": f"otp:{code}"},
        {"to": address, "code": code, "jobId": f"for {address}"},
        {"message": {"recipient": address, "pin": [*code]}, code: address},
        {address: code},
        {"email": code, "otp": address},
        [address, code],
        code,
        fields | {"email": "", "filler": "x" * 66_000},
        fields | {"email": code, "nested": json.loads("[" * 90 + f'"{code}"' + "]" * 90)},
    ]
    body = chance.choice(bodies)
    if not isinstance(body, bytes | str):
        body = json.dumps(body)
    odd = {"message_id": code, "correlation_id": address, "headers": {code: address, "x-otp-job-id": address}}
    return Message(body.encode() if isinstance(body, str) else body, odd if chance.random() < 0.3 else {})
