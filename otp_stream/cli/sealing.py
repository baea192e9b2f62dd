"""`otp-stream sealing`: make keys that seal codes, and show the public ones.

Exits with 0; with 2 for invalid arguments or settings.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from otp_stream.core.sealing_keys import keys_of, new_jwk

from . import output
from .output_files import replaced_file
from .settings import read_settings

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@cli.command()
def new(
    kind: Annotated[
        Literal["p256", "x25519", "oct"],
        typer.Option(help="p256 or x25519: producers seal with the public half, and cannot open. oct: a shared key."),
    ] = "p256",
    add_to: Annotated[
        Path | None,
        typer.Option("--add-to", metavar="FILE", help="Add the key to this file, as the last one, and print nothing."),
    ] = None,
) -> None:
    """Print a JWK Set with a new key, for SEALING_KEYS. It is a secret: write it to a file that only workers can read.

    The first key of a set seals, and every key opens. To rotate: add the new key last, and give the file to all
    workers; let producers use it; move it to the first place; remove the old key when nothing is sealed with it.
    """
    if add_to is not None:
        _replace(add_to, [*_jwks(add_to), new_jwk(kind)])
        return
    output.write_json({"keys": [new_jwk(kind)]})
    if sys.stdout.isatty():
        output.console.print("This is a secret: write it to a file, with umask 077.", style="yellow")


@cli.command()
def promote(file: Annotated[Path, typer.Argument(help="A file for SEALING_KEYS_FILE.", show_default=False)]) -> None:
    """Make the last key of a file the first one, which seals."""
    *others, last = _jwks(file)
    _replace(file, [last, *others])


@cli.command()
def public() -> None:
    """Print the public halves of SEALING_KEYS as a JWK Set, for producers: the same as a worker's /jwks.json."""
    keys = read_settings().sealing
    if not keys:
        output.fail("SEALING_KEYS: is not set; make keys with: otp-stream sealing new")
    found = keys.public()
    output.write_json(found)
    if not found["keys"]:
        output.console.print("SEALING_KEYS has shared keys only, which have no public half.", style="yellow")


def _jwks(file: Path) -> list[Any]:
    try:
        content: Any = json.loads(file.read_bytes())
        keys_of(content)
    except OSError as error:
        output.fail(f"{file} cannot be read: {error.strerror}")
    except ValueError as error:
        text = "is not JSON in UTF-8" if isinstance(error, json.JSONDecodeError | UnicodeError) else error
        output.fail(f"{file}: {text}")
    return content.get("keys", [content])


def _replace(file: Path, jwks: list[Any]) -> None:
    """Replace a file by another one with the same owner, which no more users can read."""
    try:
        keys_of({"keys": jwks})
        found = file.stat()
        with replaced_file(file, 0o600) as new_file:
            if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(new_file.fileno(), found.st_uid, found.st_gid)
            os.fchmod(new_file.fileno(), found.st_mode & 0o660)
            new_file.write(output.as_json({"keys": jwks}, indent=2) + "\n")
    except ValueError as error:
        output.fail(f"{file}: {error}")
    except OSError as error:
        output.fail(f"{file} cannot be replaced: {error.strerror}")
    output.console.print(f"{file} has {len(jwks)} keys; the first one seals", markup=False, soft_wrap=True)
