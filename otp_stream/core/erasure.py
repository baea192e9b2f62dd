"""Removes the code from the body of a dead letter."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel

from .dead_letter import is_outline, outline
from .json_types import count_values, is_object
from .lenient_json import loads, read_integer
from .masking import contains_secret
from .metadata import Metadata
from .otp_job import OtpJob
from .sealed_code import CODE_FIELDS
from .secret_search import MAX_SEARCHED

_MAX_DEPTH = 20
"""Levels of nesting in which single values are removed. Deeper values are removed together."""
_MAX_VALUES = 50
"""Values that are searched for the code one by one."""
_MAX_TEXT = 200
"""Characters of the longest value that is kept of a job which is too large to be searched."""


def without_code(body: bytes, code: str) -> bytes:
    """Return a job's body without its code, and without any other value that contains the code.

    The recipient and all other values stay; of a job that is too large to be searched, only the known fields. A code
    that is not known, because its key is missing, is empty: then only the recipient, and what can be no code, stays.
    """
    try:
        content: Any = loads(body, read_integer)
    except (ValueError, RecursionError):
        return body_outline(body)
    if not isinstance(content, dict):
        return body_outline(body)
    rest = {name: it for name, it in cast("dict[str, Any]", content).items() if name not in CODE_FIELDS}
    if len(body) > MAX_SEARCHED or count_values(rest, _MAX_VALUES) > _MAX_VALUES:
        rest = _known(rest)
    email = {"email": rest.pop("email")} if "email" in rest else {}
    if not code:
        known: Any = outline(_encoded(rest).encode(errors="replace"))
        return _encoded(email | (known if is_object(known) else {})).encode(errors="replace")
    if _contains(_encoded(rest), code):
        rest = cast("dict[str, Any]", _without(rest, code, _MAX_DEPTH))
    if _contains("".join(_short_texts(rest, len(code))), code):  # a code in parts, such as one digit for each value
        rest = {}
    return _encoded(email | rest).encode(errors="replace")


def body_outline(body: bytes, size: int | None = None) -> bytes:
    """Return what replaces a body that may contain a code anywhere: its size, and its structure without values.

    `size` is that of a body that was too large to keep.
    """
    content = outline(body) if size is None else "too large to keep"
    return _encoded({"originalSize": len(body) if size is None else size, "content": content}).encode(errors="replace")


def has_no_code(body: bytes) -> bool:
    """Return whether the code was removed from a body: to remove it again would change nothing."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not is_object(content):
        return False
    if content.keys() == {"originalSize", "content"}:
        inner = content["content"]
        known = outline(_encoded(inner).encode(errors="replace")) if is_object(inner) else is_outline(inner) and inner
        return type(content["originalSize"]) is int and known == inner
    return erased_job(body) is not None and without_code(body, "") == body


def read_outline(body: bytes) -> object:
    """Return the structure in a body that `body_outline` has made."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "no JSON"
    return cast("dict[str, Any]", content).get("content") if isinstance(content, dict) else None


def erased_job(body: bytes) -> OtpJob | None:
    """Read a job whose code was erased; its `otp` is empty. Returns `None` for any other body."""
    try:
        return OtpJob.without_code(body)
    except (ValueError, TypeError, RecursionError):
        return None


def _known(job: dict[str, Any]) -> dict[str, Any]:
    """Return the short texts, numbers and words in the known fields of a job."""
    kept = _short(job, OtpJob)
    metadata = job.get("metadata")
    return kept | {"metadata": _short(metadata, Metadata)} if is_object(metadata) else kept


def _short(fields: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    names = (name for python, it in model.model_fields.items() for name in (it.alias or python, python))
    return {
        name: it
        for name in names
        if name in fields and not isinstance(it := fields[name], dict | list) and len(str(it)) <= _MAX_TEXT
    }


def _without(value: Any, code: str, depth: int) -> Any:
    """Return a value without what contains the code: entries of objects are removed, other values become `None`."""
    if depth and isinstance(value, dict):
        entries = cast("dict[str, Any]", value).items()
        kept = {name: _without(it, code, depth - 1) for name, it in entries if not _contains(name, code)}
        return {name: it for name, it in kept.items() if it is not None}
    if depth and isinstance(value, list):
        return [_without(it, code, depth - 1) for it in cast("list[Any]", value)]
    return None if _contains(value if isinstance(value, str) else _encoded(value), code) else value


def _short_texts(value: Any, size: int) -> Iterator[str]:
    """Yield the texts and numbers in a value that have fewer than `size` characters, in their order."""
    if isinstance(value, dict | list):
        container = cast("dict[str, Any] | list[Any]", value)
        for it in container.values() if isinstance(container, dict) else container:
            yield from _short_texts(it, size)
    elif isinstance(value, str | int) and not isinstance(value, bool) and len(text := str(value)) < size:
        yield text


def _contains(text: str, code: str) -> bool:
    return contains_secret(text, "", code, partial=True)


def _encoded(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
