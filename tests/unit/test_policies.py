"""What `otp-stream check` reports about a producers' queue, by its arguments, its policy and the broker's version."""

from typing import Any

import pytest

from otp_stream.broker.queue_inspect import InspectedQueue
from otp_stream.broker.topology import Topology
from otp_stream.checks.management import Policy
from otp_stream.checks.policies import cluster_risks, queue_risks
from otp_stream.core.backoff import Backoff
from otp_stream.core.check_result import CheckResult

TOPOLOGY = Topology("jobs", "otp", Backoff(1000, 30000, 3))
QUORUM = {"x-queue-type": "quorum"}


def found(version: tuple[int, ...], policy: Policy | None = None, **arguments: Any) -> list[CheckResult]:
    return list(queue_risks("jobs", InspectedQueue(0, 0, arguments=arguments), policy, TOPOLOGY, "/", version=version))


def policy(**definition: Any) -> Policy:
    return Policy(name="theirs", clear=("clear_policy", "theirs"), definition=definition)


@pytest.mark.parametrize("version", [(4, 0), (4, 3), (5, 0)])
def test_rabbitmq_4_drops_a_job_after_20_returns_and_the_fix_is_named(
    version: tuple[int, ...],
) -> None:
    (result,) = found(version, **QUORUM)
    assert result.level == "warning"
    assert "a job that was returned 20 times is dropped silently (delivery-limit: the default" in result.text
    assert result.fix is not None
    assert "rabbitmqctl set_policy" in result.fix
    assert '"dead-letter-routing-key": "otp.dead"' in result.fix


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
def test_a_queue_that_drops_nothing_gives_no_warning(version: tuple[int, ...], arguments: dict[str, Any]) -> None:
    assert found(version, **arguments) == []


def test_a_policy_counts_as_arguments_do() -> None:
    assert found((4, 0), policy(**{"dead-letter-exchange": ""}), **QUORUM) == []
    (result,) = found((3, 13), policy(**{"delivery-limit": 5}), **QUORUM)
    assert "was returned 5 times is dropped silently (delivery-limit)" in result.text
    assert "add to theirs" in (result.fix or "")


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
def test_the_effect_of_a_node_that_is_down_is_reported(
    version: tuple[int, ...], theirs: Policy | None, arguments: dict[str, Any], text: str | None
) -> None:
    queue = InspectedQueue(0, 0, arguments=arguments)
    results = list(cluster_risks("jobs", queue, theirs, "/", version=version))
    assert len(results) == (text is not None)
    assert all(text in it.text for it in results if text)


def test_the_fix_for_late_jobs_extends_an_existing_policy() -> None:
    queue = InspectedQueue(0, 0, arguments=QUORUM)
    for theirs, fix in (
        (None, "set_policy -p / jobs '^jobs$' '{\"consumer-disconnected-timeout\": 5000}'"),
        (policy(), "add to theirs: "),
    ):
        (result,) = cluster_risks("jobs", queue, theirs, "/", version=(4, 3))
        assert result.fix is not None
        assert fix in result.fix
