"""What `otp-stream check` says of a producers' queue by its arguments, its policy and the broker's version."""

from typing import Any

import pytest

from otp_stream.broker.management_api import Policy
from otp_stream.broker.queue_inspect import Standing
from otp_stream.broker.topology import Topology
from otp_stream.checks.policies import cluster_risks, risks
from otp_stream.core.backoff import Backoff
from otp_stream.core.check_result import Finding

TOPOLOGY = Topology("jobs", "otp", Backoff(1000, 30000, 3))
QUORUM = {"x-queue-type": "quorum"}


def found(version: tuple[int, ...], policy: Policy | None = None, **arguments: Any) -> list[Finding]:
    return list(risks("jobs", Standing(0, 0, arguments=arguments), policy, TOPOLOGY, "/", version=version))


def policy(**definition: Any) -> Policy:
    return Policy(name="theirs", clear=("clear_policy", "theirs"), definition=definition)


@pytest.mark.parametrize("version", [(4, 0), (4, 3), (5, 0)])
def test_rabbitmq_4_drops_a_job_after_20_returns_and_the_fix_is_named(
    version: tuple[int, ...],
) -> None:
    (finding,) = found(version, **QUORUM)
    assert finding.level == "warning"
    assert "a job that was returned 20 times is dropped silently (delivery-limit: the default" in finding.text
    assert finding.cure is not None
    assert "rabbitmqctl set_policy" in finding.cure
    assert '"dead-letter-routing-key": "otp.dead"' in finding.cure


@pytest.mark.parametrize(
    ("version", "arguments"),
    [
        ((3, 10), QUORUM),
        ((3, 13), QUORUM),
        ((4, 0), {}),
        ((4, 0), QUORUM | {"x-delivery-limit": -1}),
        ((4, 0), QUORUM | {"x-dead-letter-exchange": ""}),
    ],
)
def test_a_queue_that_drops_nothing_is_not_warned_of(version: tuple[int, ...], arguments: dict[str, Any]) -> None:
    assert found(version, **arguments) == []


def test_a_policy_counts_as_arguments_do() -> None:
    assert found((4, 0), policy(**{"dead-letter-exchange": ""}), **QUORUM) == []
    (finding,) = found((3, 13), policy(**{"delivery-limit": 5}), **QUORUM)
    assert "was returned 5 times is dropped silently (delivery-limit)" in finding.text
    assert "add to theirs" in (finding.cure or "")


@pytest.mark.parametrize(
    ("version", "theirs", "arguments", "text"),
    [
        ((3, 10), None, {}, "is a classic queue in a cluster"),
        ((4, 3), None, {}, "is a classic queue in a cluster"),
        ((3, 10), policy(**{"ha-mode": "all"}), {}, None),
        ((4, 2), None, QUORUM, None),
        ((4, 3), None, QUORUM, "if a node goes down, its jobs in flight are redelivered after 60 s"),
        ((4, 3), policy(**{"consumer-disconnected-timeout": 5000}), QUORUM, None),
        ((4, 3), None, {**QUORUM, "x-consumer-disconnected-timeout": 5000}, None),
    ],
)
def test_what_a_node_that_is_down_does_to_jobs_is_told(
    version: tuple[int, ...], theirs: Policy | None, arguments: dict[str, Any], text: str | None
) -> None:
    queue = Standing(0, 0, arguments=arguments)
    findings = list(cluster_risks("jobs", queue, theirs, "/", version=version))
    assert len(findings) == (text is not None)
    assert all(text in it.text for it in findings if text)


def test_the_fix_for_jobs_that_come_late_goes_into_the_policy_that_is_there() -> None:
    queue = Standing(0, 0, arguments=QUORUM)
    for theirs, fix in (
        (None, "set_policy -p / jobs '^jobs$' '{\"consumer-disconnected-timeout\": 5000}'"),
        (policy(), "add to theirs: "),
    ):
        (finding,) = cluster_risks("jobs", queue, theirs, "/", version=(4, 3))
        assert finding.cure is not None
        assert fix in finding.cure
