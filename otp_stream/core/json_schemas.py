"""JSON Schemas of the job and of its events, made from the models for code generators and validators."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic.json_schema import models_json_schema

from .decision import REASONS
from .job_event import JobEvent
from .otp_job import OtpJob

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAMED = {
    "Outcome": ("JobEvent", "outcome"),
    "ReplyClass": ("JobEvent", "replyClass"),
    "Priority": ("OtpJob", "priority"),
    "RequestOrigin": ("Metadata", "request"),
}
"""Fields whose schemas get a name, so that generated models have one type with this name."""
_ERASED: Schema = {
    "type": "object",
    "description": "A job without its code, and without every other value that contained it. A malformed body is "
    "replaced by its size and, as `content`, its structure without values.",
    "properties": {
        "email": {"type": "string", "description": "Address of the recipient."},
        "jobId": {"type": "string", "description": "The job's id, if its producer gave one."},
        "originalSize": {"type": "integer", "description": "Bytes of a malformed body."},
    },
}
_PUBLISHED = {"job-1": OtpJob, "event-1": JobEvent}


def definitions(prefix: str) -> dict[str, Schema]:
    """Return each schema by its name; `prefix` is that of references, such as `#/$defs/`."""
    models = [(model, "validation") for model in _PUBLISHED.values()]
    _, made = models_json_schema(cast("Any", models), ref_template=prefix + "{model}")
    found = {name: _plain(schema) for name, schema in made["$defs"].items()}
    for name, (model, field) in _NAMED.items():
        properties = found[model]["properties"]
        found[name] = properties[field]
        properties[field] = {"$ref": prefix + name}
    found["Reason"] = {"type": "string", "enum": list(REASONS), "description": "Why the job is a dead letter."}
    found["ErasedBody"] = _ERASED
    return dict(sorted(found.items()))


def published() -> dict[str, Schema]:
    """Return the published schemas by name and version, such as `job-1`."""
    known = definitions("#/$defs/")
    return {name: _published(name, model.__name__, known) for name, model in _PUBLISHED.items()}


def _published(name: str, model: str, known: Mapping[str, Schema]) -> Schema:
    kind, _, version = name.partition("-")
    used: dict[str, Schema] = {}
    _collect(known[model], known, used)
    head: Schema = {"$schema": DIALECT, "$id": f"urn:otp-stream:schema:{kind}:{version}", "title": model}
    return head | known[model] | {"$defs": used}


def _collect(node: object, known: Mapping[str, Schema], used: dict[str, Schema]) -> None:
    """Add each schema that a node refers to."""
    if isinstance(node, list):
        for it in cast("list[object]", node):
            _collect(it, known, used)
    if not isinstance(node, dict):
        return
    content = cast("Schema", node)
    if isinstance(reference := content.get("$ref"), str):
        name = reference.rpartition("/")[2]
        used[name] = known[name]
        _collect(known[name], known, used)
    for it in content.values():
        _collect(it, known, used)


def _plain(schema: Schema) -> Schema:
    """Return a schema without generated titles, in which an optional field may be absent, but not null.

    A worker reads null as absent, but generators make another type, or none at all, of a choice with null.
    """
    schema = {key: it for key, it in schema.items() if key != "title"}
    if "properties" in schema:
        schema["properties"] = {name: _plain(it) for name, it in schema["properties"].items()}
    if (choices := schema.get("anyOf")) and any("type" in it for it in choices):
        schema = {key: it for key, it in schema.items() if key != "anyOf"}
        schema = _merged([it for it in choices if it.get("type") != "null"]) | schema
    if schema.get("default", ...) is None or schema.get("default") == {}:
        del schema["default"]
    return schema


def _merged(choices: list[Schema]) -> Schema:
    """Return the only choice, or one enumeration of the values of all."""
    if len(choices) == 1:
        return _plain(choices[0])
    values = [value for it in choices for value in it.get("enum", [it.get("const")])]
    return {"type": "string", "enum": values}
