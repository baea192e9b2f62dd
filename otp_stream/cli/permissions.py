"""`otp-stream topology permissions`: RabbitMQ's users for producers, workers, operators, deployers and viewers."""

import re
import secrets
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import quote, urlsplit

import typer
from aio_pika.abc import AbstractConnection
from rich.table import Table

from otp_stream.broker.management_api import ManagementApi, ManagementError
from otp_stream.checks.roles import RoleName, roles_of
from otp_stream.checks.users import User, Users
from otp_stream.connection_errors import user as login_of
from otp_stream.connection_errors import virtual_host
from otp_stream.settings import Settings

from . import output
from .amqp import talk, topology_of
from .audit import Act, audited
from .output import AsJson, ManagementUrl
from .settings import broker_settings

_PASSWORD_BYTES = 24
_Names = list[str] | None


def _names(role: RoleName) -> Any:
    return typer.Option(f"--{role}", metavar="USER", help=f"User with the role {role}; may be repeated.")


@dataclass(slots=True)
class _Result:
    """What was changed of one user, or what differs."""

    user: User
    texts: list[str] = field(default_factory=list[str])
    password: str | None = field(default=None, repr=False)
    """The generated password of a new user."""


def permissions(
    producer: Annotated[_Names, _names("producer")] = None,
    worker: Annotated[_Names, _names("worker")] = None,
    operator: Annotated[_Names, _names("operator")] = None,
    deployer: Annotated[_Names, _names("deployer")] = None,
    viewer: Annotated[_Names, _names("viewer")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Create or change the users.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare the users at RabbitMQ with their roles.")] = False,
    passwords: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Lines USER=PASSWORD for --apply; -: standard input. Default: generated."),
    ] = None,
    management_url: ManagementUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show which permissions RabbitMQ's users need, as a table and as commands; or check or create the users.

    Without names, the users are RABBITMQ_PREFIX-producer, -worker, -operator, -deployer and -viewer, in the virtual
    host of RABBITMQ_URL. --apply and --check use the management API as the user of RABBITMQ_URL, who needs the tag
    administrator. --apply prints the generated password of each new user once, and keeps the passwords of existing
    users. Exits with 1 if --check finds a difference, or if RabbitMQ does not answer.
    """
    settings = broker_settings()
    named = (producer, worker, operator, deployer, viewer)
    users = _users(settings, dict(zip(get_args(RoleName), named, strict=True)))
    if apply:
        _refuse_own_user(settings, users)
    if apply and check:
        output.fail("--apply and --check: pass one of them")
    if passwords is not None and not apply:
        output.fail("--passwords: is used with --apply only")
    if not apply and not check:
        _show(settings, users, as_json=as_json)
        return
    if settings.embedded:
        output.fail("the embedded broker has no users: it accepts any login on this machine", 1)
    given = {} if passwords is None else _read_passwords(passwords, users)
    api = ManagementApi.of_broker(settings.amqp_url, management_url)
    if apply:
        with audited(settings, "topology.permissions", ", ".join(it.name for it in users)) as act:
            act.start()
            _apply(settings, api, users, given, act, as_json=as_json)
    else:
        _check(settings, api, users, as_json=as_json)


def _users(settings: Settings, named: dict[RoleName, _Names]) -> list[User]:
    """Return the users; exit with 2 if a name cannot be used."""
    roles = roles_of(topology_of(settings))
    if not any(named.values()):
        named = {role: [f"{settings.rabbitmq_prefix}-{role}"] for role in roles}
    users = [User(name, roles[role]) for role, names in named.items() for name in names or ()]
    seen: set[str] = set()
    for user in users:
        option = f"--{user.role.name}"
        if not user.name.strip() or not user.name.isprintable() or user.name.startswith("-"):
            output.fail(f"{option}: a user needs a printable name that does not begin with -, as an option does")
        if user.name in seen:
            output.fail(f"{option} {user.name}: is named twice; each role needs its own user")
        seen.add(user.name)
    return users


def _refuse_own_user(settings: Settings, users: Sequence[User]) -> None:
    for user in users:
        if user.name == login_of(settings.amqp_url):
            output.fail(
                f"--{user.role.name} {user.name}: is the user of RABBITMQ_URL, who would lose its own permissions; "
                "run this command as another user, with the tag administrator"
            )


def _show(settings: Settings, users: Sequence[User], *, as_json: bool) -> None:
    host = virtual_host(settings.amqp_url)
    commands = {it.name: _commands(it, host) for it in users}
    if as_json:
        rows = [
            {
                "user": it.name,
                "role": it.role.name,
                "tags": it.role.tags,
                **it.role.patterns,
                "commands": commands[it.name],
            }
            for it in users
        ]
        output.write_json({"virtualHost": host, "users": rows})
        return
    out = output.results()
    table = Table("User", "Role", "", box=None, caption=" ", pad_edge=False, header_style="bold")
    for it in users:
        table.add_row(*map(output.plain, (it.name, it.role.name, it.role.purpose)))
        for action, pattern in it.role.patterns.items():
            table.add_row("", action, output.plain("nothing" if pattern == "^$" else pattern))
        table.add_row("", "tags", ", ".join(it.role.tags) or "none")
    out.print(table)
    for it in users:
        for command in commands[it.name]:
            out.print(command, markup=False, soft_wrap=True)


def _commands(user: User, host: str) -> list[str]:
    """Return the commands that create a user. `add_user` reads the password from standard input."""
    commands = [shlex.join(["rabbitmqctl", "add_user", user.name])]
    if user.role.tags:
        commands.append(shlex.join(["rabbitmqctl", "set_user_tags", user.name, *user.role.tags]))
    return [*commands, user.role.grant_command(host, user.name)]


def _read_passwords(file: str, users: Sequence[User]) -> dict[str, str]:
    """Return the passwords by user; exit with 2 for an invalid line, without quoting it."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        output.fail(f"--passwords: {file} cannot be read ({type(error).__name__})")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, _, password = line.partition("=")
        if not line.strip():
            continue
        if name not in {it.name for it in users} or not password:
            output.fail(f"--passwords, line {number}: must be USER=PASSWORD for one of these users")
        found[name] = password
    return found


def _apply(
    settings: Settings, api: ManagementApi, users: Sequence[User], given: dict[str, str], act: Act, *, as_json: bool
) -> None:
    """Create or change the users, and count those that were changed."""
    results: list[_Result] = []

    async def work(connection: AbstractConnection) -> None:
        await api.verify(connection)
        admin = Users(api)
        for user in users:
            password = given.get(user.name)
            results.append(result := _Result(user))
            if password is None and not await admin.exists(user):
                password = result.password = secrets.token_urlsafe(_PASSWORD_BYTES)
            await admin.apply(user, password, result.texts.append)

    error = None
    try:
        talk(settings, work)
    except ManagementError as failed:
        error, results[:] = str(failed), [it for it in results if it.texts]
    finally:  # also after an error or a signal, because the generated passwords are known only here
        act.count = sum(bool(it.texts) for it in results)
        if results or error is not None:
            _print_applied(settings, results, as_json=as_json)
    if error is not None:
        output.fail(f"{error}; run the command again when this is corrected", 1)


def _print_applied(settings: Settings, results: Sequence[_Result], *, as_json: bool) -> None:
    if as_json:
        output.write_json([_json(it) | {"password": it.password} for it in results])
    for it in () if as_json else results:
        unchanged = "unchanged" if it.password is None else "interrupted: may have been created"
        text = f"{it.user.name} ({it.user.role.name}): {', '.join(it.texts) or unchanged}"
        output.results().print(text, markup=False, soft_wrap=True)
        if it.password is not None:
            url = _url(settings.amqp_url, it.user.name, it.password)
            output.results().print(f"  {url}", markup=False, soft_wrap=True)
    if any(it.password is not None for it in results):
        output.console.print("Store the generated passwords now: they are not shown again.", style="yellow")


def _check(settings: Settings, api: ManagementApi, users: Sequence[User], *, as_json: bool) -> None:
    results: list[_Result] = []

    async def work(connection: AbstractConnection) -> None:
        await api.verify(connection)
        results.extend([_Result(it, await Users(api).differences(it)) for it in users])

    try:
        talk(settings, work)
    except ManagementError as error:
        output.fail(str(error), 1)
    if as_json:
        output.write_json([_json(it) for it in results])
    for it in () if as_json else results:
        for text in it.texts or [f"has exactly the permissions of the role {it.user.role.name}"]:
            output.results().print(f"{it.user.name}: {text}", markup=False, soft_wrap=True)
    if any(it.texts for it in results):
        output.fail("otp-stream topology permissions --apply, with the same names, corrects this", 1)


def _json(result: _Result) -> dict[str, Any]:
    return {"user": result.user.name, "role": result.user.role.name, "texts": result.texts}


def _url(url: str, name: str, password: str) -> str:
    """Return an AMQP URL with another login, without its options, of which some are the login of this user."""
    parts = urlsplit(url)
    host = re.sub(r"^.*@", "", parts.netloc)
    return f"{parts.scheme}://{quote(name, safe='')}:{quote(password, safe='')}@{host}{parts.path}"
