"""Checks this machine's clock against those of Redis and of RabbitMQ's management API."""

from otp_stream.core.check_result import CheckResult, Report
from otp_stream.core.job import CLOCK_TOLERANCE_MS


def check_clock(redis_ahead_s: float | None, rabbitmq_ahead_s: float | None, report: Report) -> None:
    """Report the differences of the clocks. Arguments are seconds ahead of this machine, `None` if unknown."""
    clocks = {"Redis": redis_ahead_s, "RabbitMQ's management API": rabbitmq_ahead_s}
    known = {name: ahead_s for name, ahead_s in clocks.items() if ahead_s is not None}
    if not known:
        text = "not checked: neither Redis nor RabbitMQ's management API answered"
        report(CheckResult("note", text, "timedatectl"))
    for name, ahead_s in known.items():
        text = f"{name} is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine"
        if abs(ahead_s) * 1000 > CLOCK_TOLERANCE_MS:
            fix = "codes expire early or late by this difference: run timedatectl set-ntp true on both machines"
            report(CheckResult("warning", text, fix))
        else:
            report(CheckResult("ok", text))
