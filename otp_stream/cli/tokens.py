"""`otp-stream tokens`: tokens of web pages and intake for HTTP_TOKENS_FILE."""

import json
import secrets
from datetime import date
from typing import Annotated

import typer

from otp_stream.core.http_token import Role, digest_of
from otp_stream.settings.http_tokens import RESERVED, TOKEN_NAME

from . import output
from .output import AsJson

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Tokens of the web pages and the intake.")


@cli.callback()
def _about() -> None:
    """Make tokens of the web pages and the intake."""


@cli.command()
def new(
    name: Annotated[str, typer.Argument(help="Who will use it: a person or a program. Audit lines show the name.")],
    role: Annotated[
        Role, typer.Option(help="viewer sees all pages; operator also replays and probes; producer sends jobs.")
    ] = "viewer",
    tenant: Annotated[
        str | None, typer.Option(help="The tenant for which a producer sends; the default one if absent.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="The day from which it is refused, such as 2027-01-31.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, and the entry for HTTP_TOKENS_FILE, which holds only a hash of it.

    Writes the token to standard output; it is shown only once. Exits with 2 for an invalid name or date.
    """
    if not TOKEN_NAME.fullmatch(name) or name in RESERVED:
        output.fail(f"NAME: must have 1 to 64 letters, digits and . _ @ + -, and not be {' or '.join(RESERVED)}")
    if tenant is not None and (role != "producer" or not tenant.strip() or not tenant.isprintable()):
        output.fail("--tenant: must be the name of a tenant, and needs --role producer")
    try:
        until = date.fromisoformat(expires) if expires else None
    except ValueError:
        output.fail("--expires: must be a date, such as 2027-01-31")
    token = secrets.token_hex(32)
    lines = [f'[tokens."{name}"]', f'role = "{role}"', f'token = "sha256:{digest_of(token).hex()}"']
    lines += [f"tenant = {json.dumps(tenant.strip(), ensure_ascii=False)}"] if tenant else []
    entry = "\n".join([*lines, *([f"expires = {until}"] if until else [])])
    if as_json:
        output.write_json({"name": name, "role": role, "token": token, "entry": entry})
        return
    output.console.print("Give this token to its user, and to no one else:", markup=False)
    typer.echo(token)
    output.console.print(
        output.plain(f"\nAdd this to HTTP_TOKENS_FILE; workers read it within two seconds:\n\n{entry}"), soft_wrap=True
    )
