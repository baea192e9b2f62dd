"""Make the files that come from the code: `python tools/generate.py`; a test fails when one of them is stale.

asyncapi/, .env.example, the README's settings table, docs/job-states.md.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from otp_stream.app import asyncapi, build
from otp_stream.core.decision import Ending, Reason
from otp_stream.settings import REQUIRED, REQUIRED_FOR_LOGIN, Settings

ROOT = Path(__file__).parent.parent
_MARKS = re.compile(r"(?<=<!-- settings:begin -->\n).*?(?=<!-- settings:end -->)", re.DOTALL)
_EXAMPLES = {
    "SENDER_EMAIL": '"Example <no-reply@example.com>"',
    "SMTP_HOST": "smtp.example.com",
    "SMTP_USER": "otp",
    "SMTP_PASS": "change-me",
    "WORKER": "true",
    "PREFETCH_COUNT": "200",
}
"""What `.env.example` sets; every other variable stands there as a comment with its default."""


def generated() -> dict[Path, str]:
    """Return every generated file's path and content."""
    document = asyncapi(build(Settings.model_construct(), []))
    readme = ROOT / "README.md"
    return {
        ROOT / "asyncapi" / "otp-stream.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        ROOT / "asyncapi" / "otp-stream.yaml": yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120),
        ROOT / ".env.example": env_example(),
        readme: _MARKS.sub(lambda _: settings_table(), readme.read_text()),
        ROOT / "docs" / "job-states.md": job_states(),
    }


def variables() -> dict[str, FieldInfo]:
    """Return every setting by the name of its environment variable."""
    names = {"app_env": "NODE_ENV"}
    return {names.get(name, name.upper()): field for name, field in Settings.model_fields.items()}


def default(field: FieldInfo) -> str:
    """Return a setting's default as an operator writes it; empty where there is none."""
    value: Any = field.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    return f"{value:g}" if isinstance(value, float) else str(value)


def env_example() -> str:
    """Return `.env.example`."""
    lines = ["# Copy to .env and set what stands without a '#'. Made from the code: `make generate`.", ""]
    for name, field in variables().items():
        lines.append(f"# {field.description}{_choices(field)}")
        value = _EXAMPLES.get(name)
        lines.append(f"{name}={value}" if value is not None else f"# {name}={default(field)}")
    lines += [
        "",
        "# Tracing, by OpenTelemetry's standard names (OTLP over http/protobuf).",
        "# OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318",
        "# OTEL_SERVICE_NAME=otp-stream",
    ]
    return "\n".join(lines) + "\n"


def _choices(field: FieldInfo) -> str:
    kinds = [field.annotation, *get_args(field.annotation)]
    choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    told = field.description or ""
    return f" One of: {', '.join(choices)}." if choices and not all(choice in told for choice in choices) else ""


def settings_table() -> str:
    """Return the README's table."""
    rows = ["| name | default | |", "|---|---|---|"]
    for name, field in variables().items():
        value = "required" if name in REQUIRED + REQUIRED_FOR_LOGIN else default(field)
        shown = value if value in {"", "required"} else f"`{value}`"
        rows.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


_ENDS: Mapping[str, str] = {
    "sent": "the relay said 250",
    "duplicate": "its `jobId` was sent before",
    "superseded": "a newer code for the same person took its place",
    "malformed": "it is no job",
    "expired": "its code outlived its time",
    "rejected": "the relay said 5xx to this recipient or message",
    "retries_exhausted": "the relay said 4xx once too often",
    "throttled": "over a limit",
    "crashed": "template, data or our code failed",
}


def job_states() -> str:
    """Return the states of a job and how it goes from one to the other."""
    good, bad = get_args(Ending), get_args(Reason)
    told = "\n".join(
        f"| `{name}` | {'acknowledged' if name in good else '`otp.dead`'} | {_ENDS[name]} |" for name in (*good, *bad)
    )
    ends = "\n".join(f"  {name} --> [*]" for name in (*good, *bad))
    return f"""\
# The states of a job

Made from the code: `make generate`. `admit` and `decide` in `otp_stream/core/decision.py` are the only places where a
job's fate is chosen.

```mermaid
stateDiagram-v2
  [*] --> queued: published
  queued --> held: delivered, within the window
  held --> malformed: cannot be read
  held --> expired: admit
  held --> duplicate: admit
  held --> superseded: admit
  held --> throttled: admit
  held --> crashed: render
  held --> sending: its turn at the relay
  held --> waiting: gate closed for 20 minutes, no attempt counted
  sending --> sent: 250
  sending --> rejected: 5xx
  sending --> held: no connection, login refused, throttled, no attempt counted
  sending --> waiting: 4xx or uncertain, attempt counted
  sending --> retries_exhausted: 4xx or uncertain, no attempts left
  sending --> expired: the next try would be too late
  waiting --> held: otp.retry.due
{ends}
```

`queued`, `waiting`: the broker has it. `held`, `sending`: this worker has it, unacknowledged; if the worker dies, the
broker gives it to another.

| ends as | then | because |
|---|---|---|
{told}

Every end is a confirmed publish first (for `otp.dead`) and the acknowledgement second.
"""


def main() -> None:
    """Write them."""
    for path, content in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        sys.stdout.write(f"{os.path.relpath(path)}\n")


if __name__ == "__main__":
    main()
