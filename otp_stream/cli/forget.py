"""`otp-stream forget`: delete what is stored about one recipient, and print a receipt.

Exits with 0; with 1 if something could not be read or deleted, or you do not confirm; with 2 for invalid settings or
arguments.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from otp_stream import __version__, clock
from otp_stream.core.dead_letter import DeadLettersError
from otp_stream.core.masking import hash_address, mask_address
from otp_stream.core.times import iso
from otp_stream.dead_letters import StoredDeadLetter, current_user
from otp_stream.settings import Settings
from otp_stream.tables import inspect
from otp_stream.tables.redis_client import connected
from otp_stream.tables.redis_pipeline import RedisUnavailableError

from . import interrupts, output
from .audit import audited
from .dead_access import dead_letter_queue
from .output import AsJson
from .settings import broker_settings
from .tables import address_of

_PLACES = {
    "newest": "newest codes",
    "recipient": "windows of its limit",
    "throttled": "counts among the throttled",
    "deadLetters": "dead letters",
}


@dataclass(slots=True)
class Receipt:
    """What was found and deleted. It contains the hash of the address, never the address or a code."""

    recipient: str
    """The hash of the address, as in events and tables."""
    dry_run: bool
    removed: Counter[str] = field(default_factory=Counter[str])
    read: int = 0
    """Dead letters that were read."""
    not_read: int = 0
    workers: int | None = None
    """Live workers that clear their recent jobs; `None` without Redis."""
    errors: list[str] = field(default_factory=list[str])

    @property
    def is_complete(self) -> bool:
        """Whether everything was read."""
        return not self.errors and not self.not_read

    def as_json(self, settings: Settings) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "at": iso(clock.now_ms()),
            "by": current_user(),
            "version": __version__,
            "recipient": self.recipient,
            "rabbitmq": settings.masked_rabbitmq_url,
            "prefix": settings.rabbitmq_prefix,
            "redis": settings.masked_redis_url,
            "dryRun": self.dry_run,
            "complete": self.is_complete,
            "removed": {place: self.removed[place] for place in _PLACES},
            "deadLettersRead": self.read,
            "deadLettersNotRead": self.not_read,
            "workersNotified": self.workers,
            "errors": self.errors,
            "remains": remains(settings),
        }


def forget(
    recipient: Annotated[str, typer.Argument(help="The address.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what is stored about a recipient: tables, dead letters, recent jobs. Prints a receipt without the address.

    Jobs that wait are not deleted: their mails will be sent. Run it again when they are sent or expired. The receipt
    lists what remains, where and for how long. Exits with 1 if something could not be read.
    """
    settings = broker_settings()
    address = address_of(recipient)
    receipt = Receipt(hash_address(address, settings.hash_key), dry_run)
    with audited(settings, "forget", f"recipient {receipt.recipient}") as act:
        act.details = {"dry_run": dry_run or None}
        output.confirm(f"Delete what is stored about {mask_address(address)}?", yes or dry_run)
        if not dry_run:
            act.start()
        try:
            if settings.redis_url is not None:
                _forget_in_redis(settings, address, receipt)
            interrupts.run(_forget_dead_letters(settings, address, receipt))
        finally:
            act.count = receipt.removed.total()
        act.result = "done" if receipt.is_complete else "failed"
    if as_json:
        output.write_json(receipt.as_json(settings))
    else:
        _print(receipt, settings)
    raise typer.Exit(0 if receipt.is_complete else 1)


def _forget_in_redis(settings: Settings, address: str, receipt: Receipt) -> None:
    """Delete the recipient's entries under all hash keys, and have the workers clear their recent jobs."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    prefix = settings.tables_prefix
    try:
        with output.console.status("Redis …"), connected(url) as client:
            for key in (settings.hash_key, *settings.old_hash_keys):
                found = inspect.forget(client, prefix, hash_address(address, key), dry_run=receipt.dry_run)
                receipt.removed.update(found)
            if not receipt.dry_run:
                receipt.workers = inspect.clear_recent_jobs(client, prefix)
    except RedisUnavailableError as error:
        receipt.errors.append(f"{settings.masked_redis_url} does not answer: {error}")


async def _forget_dead_letters(settings: Settings, address: str, receipt: Receipt) -> None:
    queue, locked = dead_letter_queue(settings), set[str]()

    def is_selected(it: StoredDeadLetter) -> bool:
        if it.locked:
            locked.add(it.dead_letter.job_id)
        return it.concerns(address)

    def count(done: int, _: int) -> None:
        receipt.removed["deadLetters"] = done

    try:
        summary = await queue.drop_if(is_selected, dry_run=receipt.dry_run, progress=count)
    except DeadLettersError as error:
        receipt.errors.append(str(error))
        return
    receipt.removed["deadLetters"] = summary.dropped
    receipt.read, receipt.not_read = summary.read, summary.not_read
    if locked:
        found = output.dead_letters(len(locked))
        receipt.errors.append(f"{found} cannot be searched: sealed as a whole with a key that is not in SEALING_KEYS")


def remains(settings: Settings) -> list[str]:
    """Return what is not deleted, where it is, and until when."""
    in_memory = (
        "In the memory of workers: what they counted while Redis did not answer, as hashes, until the period or the "
        "code ends."
    )
    if settings.redis_url is None:
        in_memory = (
            "In the memory of each worker, because REDIS_URL is not set: hashes for limits and newest codes, until the "
            "period or the code ends, and the last 30 jobs of its page with masked addresses. A restart clears both."
        )
    return [
        "Jobs that wait in RabbitMQ, with address and code, until they are sent or their codes expire.",
        (
            "Sent records and generated job ids: hashes of whole jobs, which cannot be found by an address, for "
            f"{settings.sent_ttl_hours:g} hours (SENT_TTL_HOURS), records also for as long as their codes are valid."
        ),
        in_memory,
        (
            "Dead letters of others that mention the address in another field, and malformed ones in which it cannot "
            f"be read, for {settings.dead_letter_retention} (DEAD_LETTER_RETENTION)."
        ),
        (
            "What others store: logs, traces and events have masked addresses or hashes; backups, the relay's logs and "
            "the e-mails have what they contain."
        ),
    ]


def _print(receipt: Receipt, settings: Settings) -> None:
    out = output.results()
    fields = receipt.as_json(settings)
    title = "Would be deleted (dry run)" if receipt.dry_run else "Deleted"
    out.print(f"{title}: recipient {receipt.recipient}", markup=False, soft_wrap=True)
    for place, text in _PLACES.items():
        out.print(f"  {text}: {output.count(receipt.removed[place])}")
    read = output.dead_letters(receipt.read)
    out.print(f"  {read} read, {output.count(receipt.not_read)} not read")
    if receipt.workers is not None:
        out.print(f"  recent jobs: {receipt.workers} workers clear them within {inspect.FORGET_S} s")
    out.print(f"{fields['at']} by {fields['by']}, otp-stream {__version__}", markup=False, soft_wrap=True)
    out.print("Not deleted:")
    for text in remains(settings):
        out.print(f"- {text}", markup=False, soft_wrap=True)
    for error in receipt.errors:
        output.console.print(output.plain(error), style="red", soft_wrap=True)
