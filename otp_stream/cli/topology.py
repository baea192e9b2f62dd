"""`otp-stream topology`: what must stand at RabbitMQ, what does, and what is left of other settings."""

import asyncio
from typing import Annotated, Any

import typer
from aio_pika.abc import AbstractConnection

from otp_stream.broker import queue_inspect as standing
from otp_stream.broker.census import Census
from otp_stream.broker.management_api import Management, ManagementError, vhost
from otp_stream.broker.refusal import no_connection
from otp_stream.broker.topology import Topology, TopologyError
from otp_stream.checks.prune import Ended, OldRung, Pruning, every_old_rung, guessed_old_rungs
from otp_stream.checks.topology_drift import Survey, definitions, look
from otp_stream.settings import Settings
from otp_stream.urls import read_url

from . import say
from . import topology_output as surveyed
from .amqp import connected, talk, topology_of
from .line import LOST
from .say import AsJson

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Queues and exchanges: look, make, clear away.")

_DEFAULTS = (int(Settings.model_fields["base_delay_ms"].default), int(Settings.model_fields["max_delay_ms"].default))
_EMBEDDED = "the embedded broker has no management API"
_UNSEEN = (
    "Nothing is deleted: without the management API nobody can tell whether a wait queue is empty (AMQP counts nothing "
    "that is being handed over). Enable it (rabbitmq-plugins enable rabbitmq_management), name it with "
    "--management-url, or look and delete yourself:\n"
    "  rabbitmqctl list_queues name messages      must be 0, more than 5 s after the last new job came in\n"
    "  rabbitmqctl delete_queue NAME"
)


def _api_url(url: str | None) -> str | None:
    if url is not None:
        try:
            login = read_url(url, {"http", "https"}, "http://rabbitmq.example.com:15672").username
        except ValueError as error:
            say.fail(f"--management-url {error}")
        if login is not None:
            say.fail("--management-url takes user and password from RABBITMQ_URL: leave them out")
    return url


_ApiUrl = Annotated[
    str | None,
    typer.Option(
        "--management-url",
        callback=_api_url,
        help="URL of the management API. Default: http://HOST:15672 (amqps: https, 15671).",
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell, and change nothing.")]
_Definitions = Annotated[
    bool, typer.Option("--definitions", help="Write RabbitMQ definitions, for `rabbitmqctl import_definitions`.")
]


@cli.command()
def show(
    as_definitions: _Definitions = False,
    management_url: _ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show exchanges, queues and bindings as they must be, and whether they stand.

    Messages are those that are ready, as the broker counts them. Bindings are known where the management API answers.
    Ends with 1 when something is missing or has other properties, or RabbitMQ does not answer.
    """
    settings = say.settings()
    topology = topology_of(settings)
    if as_definitions:
        say.write(definitions(topology, vhost(settings.amqp_url), _standing(settings, topology)))
        return
    found, old, why = talk(settings, lambda connection: _survey(settings, topology, management_url, connection))
    if as_json:
        say.write(surveyed.told(found, settings, [it.name for it in old]))
    else:
        surveyed.show(found, settings)
        if why:
            say.console.print(f"Bindings are not known: {why}.", style="yellow", markup=False, soft_wrap=True)
    if old:
        say.console.print(
            f"{len(old)} wait queues of other settings stand too: otp-stream topology prune", style="yellow"
        )
    surveyed.end(found)


@cli.command()
def apply(dry_run: _DryRun = False, management_url: _ApiUrl = None, as_json: AsJson = False) -> None:
    """Make what is missing, as a worker's start does; what stands is left as it is.

    Ends with 1 when something stands with other properties (then nothing is made) or RabbitMQ does not answer, and
    after --dry-run when something is missing.
    """
    settings = say.settings()
    topology = topology_of(settings)
    before = talk(settings, lambda connection: look(topology, connection, None))
    wrong = [it for it in before.all if it[1] == "differs"]
    made = [name for name, state, _ in before.all if state == "missing"]
    if not wrong and not dry_run:
        talk(settings, lambda connection: standing.apply(topology, connection, settings.amqp_url, management_url))
    if as_json:
        say.write({"missing" if wrong or dry_run else "made": made, "problems": [problem for *_, problem in wrong]})
    elif not wrong:
        for name in made:
            say.out().print(f"{'missing' if dry_run else 'made'}: {name}", markup=False, soft_wrap=True)
        if not made:
            say.out().print("Everything stands.")
    if wrong:
        say.fail("\n".join(str(problem) for *_, problem in wrong), 1)
    if dry_run and made:
        raise typer.Exit(1)


@cli.command()
def prune(
    dry_run: _DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for queues to drain, and for figures.")] = 60,
    base_delay_ms: Annotated[int | None, typer.Option(min=1, help="BASE_DELAY_MS as it was.")] = None,
    max_delay_ms: Annotated[int | None, typer.Option(min=1, help="MAX_DELAY_MS as it was.")] = None,
    management_url: _ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete wait queues of retry settings that no worker has any more, once they are empty.

    Run it when every worker has the new settings. A queue is first cut off from new jobs; what is in it goes on when
    its wait is over. None that holds a message is deleted. Old queues are found, and known to be empty, by the
    management API; where it does not answer, those that the old settings would have made are told.
    Ends with 1 when old queues are left, or nobody says yes.
    """
    settings = say.settings()
    topology = topology_of(settings)
    if settings.embedded:
        if as_json:
            say.write([])
        else:
            say.out().print(f"Nothing to prune: {_EMBEDDED}, and its queues are lost when it stops.")
        return
    census = Census(Management.beside(settings.amqp_url, management_url))

    async def find(connection: AbstractConnection) -> list[OldRung]:
        await census.verify(connection)
        return await every_old_rung(topology, census)

    try:
        old = talk(settings, find)
    except ManagementError as error:
        _guess(settings, topology, (base_delay_ms, max_delay_ms), str(error), as_json=as_json)
        return
    if dry_run or not old or not as_json:
        surveyed.list_old(old, as_json=as_json)
    if dry_run or not old:
        return
    if not yes and not typer.confirm(f"Delete {len(old)} at {settings.masked_rabbitmq_url} once empty?", err=True):
        raise typer.Exit(1)
    ended = _clear(settings, old, Pruning(topology, census), wait, as_json=as_json)
    if any(it.verdict not in {"deleted", "gone"} for it in ended):
        raise typer.Exit(1)


def _clear(settings: Settings, old: list[OldRung], pruning: Pruning, wait_s: float, *, as_json: bool) -> list[Ended]:
    """Prune, and tell what becomes of each as soon as that is known."""

    async def work(connection: AbstractConnection) -> list[Ended]:
        def told(end: Ended) -> None:
            if not as_json:
                surveyed.tell(end)

        return await pruning.prune(connection, old, patience_s=wait_s, told=told)

    with say.console.status("Cut off from new jobs; waiting for fresh figures (5 to 15 s) and for waits to end …"):
        try:
            ended = talk(settings, work)
        except ManagementError as error:
            say.fail(f"{error}; what is cut off stays so and drains. Run it again", 1)
    if as_json:
        say.write([surveyed.told_end(it) for it in ended])
    return ended


def _guess(
    settings: Settings, topology: Topology, old: tuple[int | None, int | None], why: str, *, as_json: bool
) -> None:
    """Tell the old wait queues that can be found without the management API."""
    backoff = topology.backoff
    guesses = {_DEFAULTS, (backoff.base_ms, backoff.cap_ms), (old[0] or backoff.base_ms, old[1] or backoff.cap_ms)}
    found = talk(settings, lambda connection: guessed_old_rungs(topology, connection, guesses))
    surveyed.list_old(found, as_json=as_json)
    tried = ", ".join(f"{base_ms}/{cap_ms}" for base_ms, cap_ms in sorted(guesses))
    say.console.print(
        f"{why}. Looked for what BASE_DELAY_MS/MAX_DELAY_MS {tried} would have made; name others with --base-delay-ms "
        "and --max-delay-ms.",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    if found:
        say.fail(_UNSEEN, 1)


async def _survey(
    settings: Settings, topology: Topology, url: str | None, connection: AbstractConnection
) -> tuple[Survey, list[OldRung], str | None]:
    """Return what stands, old wait queues, and why the management API does not tell, if it does not."""
    if settings.embedded:  # what answers at the usual port of the API is another broker's
        return await look(topology, connection, None), [], _EMBEDDED
    census = Census(Management.beside(settings.amqp_url, url))
    try:
        await census.verify(connection)
        bound, old = await census.bound(topology.retry.name), await every_old_rung(topology, census)
    except ManagementError as error:
        return await look(topology, connection, None), [], str(error)
    return await look(topology, connection, bound), old, None


def _standing(settings: Settings, topology: Topology) -> dict[str, dict[str, Any]]:
    """Return the arguments of the producers' queues that exist; none, and a warning, if RabbitMQ does not answer."""

    async def ask(connection: AbstractConnection) -> dict[str, dict[str, Any]]:
        found = {name: await standing.queue(connection, name, {}) for name in (topology.jobs, topology.high)}
        return {name: {"x-queue-type": it.kind, **it.arguments} for name, it in found.items() if it}

    try:
        return asyncio.run(connected(settings, ask))
    except (TopologyError, *LOST) as error:
        say.console.print(
            f"{settings.masked_rabbitmq_url} {no_connection(error, settings.amqp_url)}: "
            f"{topology.jobs} and {topology.high} are written as plain queues, as a worker would make them.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
        return {}
