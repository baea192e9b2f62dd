"""Make the files that come from the code: `python tools/generate.py`; a test fails when one of them is stale.

asyncapi/, openapi/, schemas/, .env.example, docs/settings.md, the short settings table in README.md,
docs/job-states.md, docs/tenants.schema.json, the licences in docs/dependencies.md, deploy/grafana/otp-stream.json, and
the rules of deploy/prometheus/ in deploy/kubernetes/rules/ and deploy/helm/.
"""

import json
import os
import re
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from dashboard import dashboard
from dependencies import packages
from pydantic.fields import FieldInfo
from states import job_states

from otp_stream import __version__
from otp_stream.app import asyncapi, build
from otp_stream.core.json_schemas import published
from otp_stream.intake import openapi
from otp_stream.settings import REQUIRED, REQUIRED_FOR_LOGIN, Settings
from otp_stream.settings.secret_files import secret_names
from otp_stream.settings.tenants_schema import schema

ROOT = Path(__file__).parent.parent
_MARKS = re.compile(r"(?<=<!-- settings:begin -->\n).*?(?=<!-- settings:end -->)", re.DOTALL)
_LICENCES = re.compile(r"(?<=<!-- licences:begin -->\n).*?(?=<!-- licences:end -->)", re.DOTALL)
_EXAMPLES = {
    # without quotes: `docker --env-file` and `kubectl --from-env-file` would keep them
    "SENDER_EMAIL": "Example <no-reply@example.com>",
    "SMTP_HOST": "smtp.example.com",
    "SMTP_USER": "otp",
    "SMTP_PASS": "change-me",
    "WORKER": "true",
    "PREFETCH_COUNT": "200",
    "SECRET_KEY": "",
}
"""What `.env.example` sets; every other variable is there as a comment with its default."""
_FIRST = (*_EXAMPLES, "RABBITMQ_URL", "RABBITMQ_QUEUE_NAME")
"""What the README shows."""
_SETTINGS = """# Settings

Environment variables, or the same names in a file `.env` in the working folder; variables take precedence. The worker
reads them once at start. If settings are invalid, it reports all of them in one message and exits with status 2;
`otp-stream check` reports them too, and tests the servers that they name. A `.env` that another user owns (but root),
or that every user can change or replace, is such an error, because its settings choose commands that run.

Every secret can come from a file, such as a Docker or Kubernetes secret: set `SMTP_PASS_FILE=/run/secrets/smtp_pass`
instead of `SMTP_PASS`. The same works for {secrets}. Files are read without the line break at their end, at start and
whenever they change; see [Rotate a password](operations.md#rotate-a-password) for what needs a restart.

"""
_OTEL = """
OpenTelemetry: `OTEL_EXPORTER_OTLP_ENDPOINT` turns on traces, `OTEL_METRICS_EXPORTER=otlp` metrics and
`OTEL_LOGS_EXPORTER=otlp` logs; its other standard variables (`OTEL_*`) apply as well: see [telemetry.md](telemetry.md).
[.env.example](../.env.example) is a file to start from.
"""


def generated() -> dict[Path, str]:
    """Return every generated file's path and content."""
    document = asyncapi(build(Settings.model_construct(), []))
    readme, dependencies = ROOT / "README.md", ROOT / "docs" / "dependencies.md"
    return {
        ROOT / "asyncapi" / "otp-stream.json": json.dumps(document, indent=2) + "\n",
        ROOT / "asyncapi" / "otp-stream.yaml": yaml.safe_dump(document, sort_keys=False, width=120),
        ROOT / "openapi" / "otp-stream.json": json.dumps(openapi(__version__), indent=2) + "\n",
        ROOT / ".env.example": env_example(),
        readme: _MARKS.sub(lambda _: settings_table(_FIRST), readme.read_text()),
        dependencies: _LICENCES.sub(lambda _: licences_table(), dependencies.read_text()),
        ROOT / "docs" / "settings.md": _SETTINGS.format(secrets=_secrets()) + settings_table(variables()) + _OTEL,
        ROOT / "docs" / "job-states.md": job_states(),
        ROOT / "deploy" / "grafana" / "otp-stream.json": json.dumps(dashboard(), indent=2) + "\n",
        ROOT / "deploy" / "kubernetes" / "rules" / "prometheus-rule.yaml": prometheus_rule(),
        ROOT / "deploy" / "helm" / "otp-stream" / "rules.yaml": _yaml_of_rules({"groups": rule_groups()}),
        ROOT / "docs" / "tenants.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        # patterns contain invisible characters, so they are written as escapes
        **{ROOT / "schemas" / f"{name}.json": json.dumps(it, indent=2) + "\n" for name, it in published().items()},
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
    lines = ["# Copy to .env and set the variables without a '#'. Generated from the code: `make generate`.", ""]
    for name, field in variables().items():
        lines.append(f"# {field.description}{_choices(field)}")
        value = _EXAMPLES.get(name)
        lines.append(f"{name}={value}" if value is not None else f"# {name}={default(field)}")
    lines += [
        "",
        "# A secret can come from a file, too: SMTP_PASS_FILE=/run/secrets/smtp_pass instead of SMTP_PASS.",
        "",
        "# OpenTelemetry's standard variables (OTLP by HTTP; traces by gRPC with OTEL_EXPORTER_OTLP_PROTOCOL=grpc).",
        "# OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318",
        "# OTEL_METRICS_EXPORTER=otlp",
        "# OTEL_LOGS_EXPORTER=otlp",
        "# OTEL_SERVICE_NAME=otp-stream",
    ]
    return "\n".join(lines) + "\n"


def _choices(field: FieldInfo) -> str:
    kinds = [field.annotation, *get_args(field.annotation)]
    choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    described = all(choice in (field.description or "") for choice in choices)
    return "" if described else f" One of: {', '.join(choices)}."


def _secrets() -> str:
    *names, last = (f"`{name.upper()}`" for name in secret_names() if name != "smtp_pass")
    return f"{', '.join(names)} and {last}"


def settings_table(names: Container[str]) -> str:
    """Return the table of these settings."""
    rows = ["| name | default | |", "|---|---|---|"]
    for name, field in ((name, field) for name, field in variables().items() if name in names):
        value = "required" if name in REQUIRED + REQUIRED_FOR_LOGIN else default(field)
        shown = value if value in {"", "required"} else f"`{value}`"
        rows.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def licences_table() -> str:
    """Return the table of what the image contains from others."""
    rows = ["| package | version | licence | required by |", "|---|---|---|---|"]
    rows += [f"| {it.name} | {it.version} | {it.licence} | {', '.join(it.required_by)} |" for it in packages()]
    return "\n".join(rows) + "\n"


def rule_groups() -> list[dict[str, Any]]:
    """Return the groups of all rules for Prometheus."""
    folder = ROOT / "deploy" / "prometheus"
    files = [yaml.safe_load((folder / name).read_text()) for name in ("slo.yaml", "alerts.yaml")]
    return json.loads(json.dumps([group for file in files for group in file["groups"]]))  # copies: YAML has no anchors


def prometheus_rule() -> str:
    """Return the rules as an object of the Prometheus Operator."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "otp-stream", "labels": {"app.kubernetes.io/name": "otp-stream"}},
        "spec": {"groups": rule_groups()},
    }
    return _yaml_of_rules(rule)


def _yaml_of_rules(content: dict[str, Any]) -> str:
    return "# Generated from deploy/prometheus: `make generate`.\n" + yaml.safe_dump(
        content, sort_keys=False, width=120
    )


def main() -> None:
    """Write them."""
    for path, content in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        sys.stdout.write(f"{os.path.relpath(path)}\n")


if __name__ == "__main__":
    main()
