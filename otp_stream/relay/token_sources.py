"""Sources of access tokens on this machine: a file that another program keeps, or a command."""

import asyncio
import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path

from otp_stream.tasks import in_thread

from .access_token import MAX_ANSWER, Token, TokenError, no_token, read_token

_FILE_S = 10.0
_COMMAND_S = 30.0
_POLL_S = 0.02
"""How often the output of a command is read."""
_LEAST_S = 30.0
"""How long a token is used that has ended by the time of its file, because that time may be wrong."""


async def from_file(path: Path) -> Token:
    """Read the token in this file. Raises `TokenError`."""
    try:
        async with asyncio.timeout(_FILE_S):
            return await in_thread(lambda: _of_file(path), "access token")
    except TimeoutError:
        raise no_token(f"SMTP_OAUTH_TOKEN_FILE cannot be read within {_FILE_S:g} s: {path}") from None
    except (OSError, ValueError) as error:
        raise no_token(f"SMTP_OAUTH_TOKEN_FILE {why(error)}: {path}") from None


def read_file(path: Path) -> tuple[bytes, float]:
    """Return the content of a small file, and its age (seconds). Raises `OSError` and `ValueError`."""
    # opening a named pipe would wait for the program that writes into it
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a file")
        return file.read(MAX_ANSWER + 1), max(time.time() - status.st_mtime, 0.0)


def why(error: OSError | ValueError) -> str:
    """Return what is wrong with a source."""
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _of_file(path: Path) -> Token:
    data, age_s = read_file(path)
    token = read_token(data)
    if data.strip().endswith(b"}"):  # its life began when it was written
        return token._replace(life_s=max(token.life_s - age_s, min(token.life_s, _LEAST_S)))
    return token


async def from_command(command: tuple[str, ...]) -> Token:
    """Run a command that prints a token. Raises `TokenError`; what the command wrote may hold a secret."""
    name = f"SMTP_OAUTH_TOKEN_COMMAND ({Path(command[0]).name})"
    try:
        async with asyncio.timeout(_COMMAND_S):
            code, output = await _run(command)
        if code:
            raise no_token(f"{name} exits with {code}; run it by hand to see its messages")
        return read_token(output)
    except TokenError:
        raise
    except TimeoutError:
        raise no_token(f"{name} does not end within {_COMMAND_S:g} s") from None
    except (OSError, ValueError) as error:
        raise no_token(f"{name} {why(error)}") from None


async def _run(command: tuple[str, ...]) -> tuple[int, bytes]:
    """Return its exit status and what it wrote, without waiting for processes that it leaves behind.

    If it does not end, or writes too much, it is killed with all that it started.
    """
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    nothing = asyncio.subprocess.DEVNULL
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=nothing, stdout=writable, stderr=nothing, start_new_session=True
            )
        finally:
            os.close(writable)
        return await _output_of(process, readable)
    finally:
        os.close(readable)


async def _output_of(process: asyncio.subprocess.Process, readable: int) -> tuple[int, bytes]:
    output = bytearray()
    ended = asyncio.create_task(process.wait())
    try:
        while not ended.done() and len(output) <= MAX_ANSWER:
            await asyncio.wait([ended], timeout=_POLL_S)
            _drain(readable, output)
    finally:
        if not ended.done():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait([ended], timeout=1)
    return (ended.result() if len(output) <= MAX_ANSWER else 0), bytes(output)


def _drain(readable: int, output: bytearray) -> None:
    """Read what is there, up to a little more than a token may have."""
    with suppress(BlockingIOError):
        while len(output) <= MAX_ANSWER and (chunk := os.read(readable, MAX_ANSWER)):
            output += chunk
