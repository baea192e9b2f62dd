"""Imports the modules for the processes of the tests once, before they are forked (processes.py)."""

import gc
from importlib import import_module
from typing import Any

from jinja2 import Environment, nodes

_parse, _compile = Environment.parse, Environment.compile
_trees: dict[tuple[Any, ...], nodes.Template] = {}
_codes: dict[tuple[Any, ...], Any] = {}


def _parse_once(self: Environment, source: str, name: str | None = None, filename: str | None = None) -> nodes.Template:
    key = (type(self), source, name, filename)
    if key not in _trees:
        _trees[key] = _parse(self, source, name, filename)
    return _trees[key]


def _compile_once(self: Environment, source: Any, name: Any = None, filename: Any = None, *options: bool) -> Any:
    key = (source, name, filename, *options)
    if not isinstance(source, nodes.Template):
        return _compile(self, source, name, filename, *options)
    if key not in _codes:
        _codes[key] = _compile(self, source, name, filename, *options)
    return _codes[key]


# Each worker parses and compiles the built-in templates when it imports the application, a third of its start. Here the
# import below does that for all workers.
Environment.parse, Environment.compile = _parse_once, _compile_once

for module in (
    "anyio._backends._asyncio",
    "faststream.__main__",
    "otp_stream.app",
    "otp_stream.cli.main",
    "settings_sources",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "uvloop",
):
    import_module(module)

# The garbage collector ignores all this from now on, because a scan would copy the memory that the processes share.
gc.freeze()
