"""Server-side rendering of the pages. They work without scripts and load nothing from other hosts."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from otp_stream.core.times import in_words

_HERE = Path(__file__).parent / "pages"
_CONTENT_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
ASSETS: Mapping[str, tuple[str, bytes]] = {
    path.name: (_CONTENT_TYPES[path.suffix], path.read_bytes())
    for path in sorted(_HERE.iterdir())
    if path.suffix in _CONTENT_TYPES
}
"""File name to content type and bytes."""

Node = dict[str, Any]


def render(page: str, **fields: Any) -> str:
    """Return the HTML of a page; `page` is the name of its template."""
    return _PAGES.get_template(page).render(**fields)


def parts(page: str, names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the HTML of some blocks of a page, by name."""
    template = _PAGES.get_template(page)
    context = template.new_context(dict(fields))
    return {name: "".join(template.blocks[name](context)) for name in names}


def asyncapi_page(document: Node) -> str:
    """Return the AsyncAPI document as an HTML page."""
    reader = _Reader(document)
    operations: dict[str, Node] = document["operations"]
    used = {op["channel"]["$ref"].rpartition("/")[2]: op["action"] for op in operations.values()}
    channels = [
        {
            "name": name,
            "does": "The worker consumes" if used.get(name) == "receive" else "The worker publishes",
            "channel": channel,
            "messages": [reader.resolve(it) for it in channel["messages"].values()],
            "is_job": name in _JOBS,
        }
        for name, channel in sorted(document["channels"].items(), key=lambda it: _ORDER.index(it[0]))
    ]
    return render(
        "asyncapi.html",
        document=document,
        channels=channels,
        rows=reader.rows,
        server=next(iter(document["servers"].values())),
    )


_JOBS = ("sendOtp", "sendOtpHigh", "sendOtpDue", "sendOtpTenant", "retry", "dead")
_ORDER = [*_JOBS, "events"]


class _Reader:
    """Resolves the document's references, and turns schemas into table rows."""

    def __init__(self, document: Node) -> None:
        self._document = document

    def resolve(self, node: Node) -> Node:
        """Return the node that a reference points to; other nodes unchanged."""
        while "$ref" in node:
            found: Any = self._document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/")]
            node = {**cast("Node", found), **{key: value for key, value in node.items() if key != "$ref"}}
        return node

    def rows(self, schema: Node, prefix: str = "") -> list[Node]:
        """Return one row for each field: name, type, whether it is required, limits, description."""
        schema = self.resolve(schema)
        required: list[str] = schema.get("required", [])
        found: list[Node] = []
        for name, field in schema.get("properties", {}).items():
            plain = self.resolve(field)
            found.append(
                {
                    "name": f"{prefix}{name}",
                    "type": plain.get("type", "any"),
                    "required": name in required,
                    "limits": _limits(plain),
                    "description": plain.get("description", ""),
                }
            )
            if "properties" in plain:
                found += self.rows(plain, f"{prefix}{name}.")
        return found


_LIMITS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "exclusiveMinimum": "> {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "format": "{}",
}


def _limits(field: Node) -> str:
    limits = [" | ".join(map(str, field["enum"]))] if "enum" in field else []
    if isinstance(field.get("default"), str | int):
        limits.append(f"default {field['default']}")
    return ", ".join(limits + [text.format(field[key]) for key, text in _LIMITS.items() if key in field])


def _prose(text: str) -> Markup:
    # only the Markdown that our own descriptions use: paragraphs, **strong** and `code`
    paragraphs = str(escape(text)).strip().split("\n\n")
    html = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    html = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html)
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", html))  # noqa: S704 - escaped three lines above


_UNKNOWN = "\N{EN DASH}"


def _count(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}".replace(",", "\u202f")


def _rate(value: float | None) -> str:
    return _UNKNOWN if value is None else _count(round(value)) if value >= 10 or not value else f"{value:.1f}"


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%H:%M:%S")


def _span(value_ms: float | None) -> str:
    return _UNKNOWN if value_ms is None else in_words(value_ms)


_PAGES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_PAGES.filters |= {"prose": _prose, "count": _count, "rate": _rate, "span": _span, "clock": _clock}
