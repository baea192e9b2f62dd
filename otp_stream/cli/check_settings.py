"""The settings that `otp-stream check` checks, and with which it checks the rest."""

from dataclasses import dataclass, field

from otp_stream.broker.topology import Topology
from otp_stream.configs import relay_configs
from otp_stream.core.check_result import CheckResult, Report
from otp_stream.relay import RelayConfig
from otp_stream.settings import Settings, find_problems, find_warnings, load

from .amqp import topology_of
from .settings import with_demo_broker

_SMTP = {"SENDER_EMAIL", "SMTP_HOST", "SMTP_PORT", "SMTP_TLS", "SMTP_AUTH", "SMTP_CA_FILE"}


@dataclass(slots=True)
class CheckedSettings:
    """The settings as a worker would read them."""

    settings: Settings
    problems: list[str]
    unreadable: set[str] = field(default_factory=set[str])
    """Settings that have their default instead of an invalid value, so that what they name cannot be checked."""

    @classmethod
    def read(cls) -> "CheckedSettings":
        """Read them, whether or not WORKER is set here."""
        settings, problems = load(worker=True)
        settings = with_demo_broker(settings)
        problems = [*(it for it in load()[1] if it.startswith("WORKER:")), *problems]
        unreadable = {it.partition(":")[0] for it in problems} - {
            it.partition(":")[0] for it in find_problems(settings)
        }
        if not settings.worker:
            # the two delays contradict each other, and `load` has returned only defaults: read all other settings
            settings, more = load(worker=True, base_delay_ms=1000, max_delay_ms=30_000)
            problems += [it for it in more if it not in problems]
            unreadable |= {"BASE_DELAY_MS", "MAX_DELAY_MS"}
        return cls(settings, problems, unreadable)

    @property
    def topology(self) -> Topology:
        """The queues and exchanges that these settings require."""
        return topology_of(self.settings)

    @property
    def relays(self) -> list[RelayConfig | None]:
        """Every relay, in order; the first one is `None` if its settings are invalid."""
        first, *others = relay_configs(self.settings)
        return [None if self.settings.smtp_host is None or self.unreadable & _SMTP else first, *others]


def check_settings(checked: CheckedSettings, report: Report) -> None:
    """Report invalid settings, and valid ones that are risky."""
    it = checked.settings
    for problem in checked.problems:
        report(CheckResult("problem", problem))
    if not checked.problems:
        report(CheckResult("ok", f"a worker starts with these settings ({it.app_env})"))
    for warning in find_warnings(it):
        report(CheckResult("warning", warning))
    if it.prefetch_count == 1 and "PREFETCH_COUNT" not in checked.unreadable:
        text = "PREFETCH_COUNT=1: one job at a time, each waits for the one before"
        report(CheckResult("warning", text, "PREFETCH_COUNT=200"))
    limits = [f"{limit.name.upper()}_LIMIT={limit}" for limit in it.limits]
    if it.smtp_rate_per_second:
        limits.append(f"SMTP_RATE_PER_SECOND={it.smtp_rate_per_second:g}")
    if limits and it.redis_url is None and "REDIS_URL" not in checked.unreadable:
        report(CheckResult("note", f"{', '.join(limits)} without REDIS_URL: each worker counts alone"))
    if it.redis_url and it.hash_key_is_known:
        text = "anyone who can read the Redis can reverse its hashes: their key is not secret"
        report(CheckResult("warning", text, "set SECRET_KEY"))
    elif it.secret_key is None and it.app_env != "production" and "SECRET_KEY" not in checked.unreadable:
        text = "SECRET_KEY is not set: the key of hashes and MACs is derived from the passwords"
        report(CheckResult("note", text))
