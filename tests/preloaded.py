"""Imports the modules for the processes of the tests once, before they are forked (processes.py)."""

import gc
from importlib import import_module

for name in (
    "anyio._backends._asyncio",
    "faststream.__main__",
    "otp_stream.app",
    "otp_stream.cli.main",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "uvloop",
):
    import_module(name)

# The garbage collector ignores all this from now on, because a scan would copy the memory that the processes share.
gc.freeze()
