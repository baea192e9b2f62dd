"""What a server in place of the management API cannot do to a command."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from http_answers import HEAD, server

from otp_stream.broker import management_api
from otp_stream.broker.management_api import ManagementApi, ManagementError
from otp_stream.broker.topology import Topology
from otp_stream.checks import management, policy_patterns
from otp_stream.checks.dead_letter_policy import read_policy
from otp_stream.checks.management import ManagementQueries
from otp_stream.checks.policy_patterns import matched_names
from otp_stream.core.backoff import Backoff
from otp_stream.core.retention import Retention

TOPOLOGY = Topology("jobs", "otp", Backoff(1000, 30000, 3))


def api(url: str) -> ManagementApi:
    return ManagementApi.of_broker("amqp://otp:secret@127.0.0.1/", url)


def answer(body: bytes, *fields: bytes) -> bytes:
    return HEAD + b"".join(it + b"\r\n" for it in fields) + b"content-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("head", "piece"), [(HEAD + b"\r\n", b"x" * 65_536), (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000)]
)
def test_an_answer_without_end_is_not_read(head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management_api, "_MAX_RESPONSE", 1_000_000)
    with server(head, piece) as (url, _), pytest.raises(ManagementError, match="does not answer"):
        api(url).get("overview")


def test_an_answer_that_comes_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management_api, "_RESPONSE_S", 0.1)
    with server(HEAD + b"\r\n", b"x", 0.01) as (url, _), pytest.raises(ManagementError, match="does not answer"):
        api(url).get("overview")


@pytest.mark.parametrize("body", [b"1", b"[1]", b'"x"', b"null", b"[[]]", b"[" * 30_000, b"\xff", b""])
def test_what_is_no_answer_of_rabbitmq_is_refused(body: bytes) -> None:
    with server(answer(body)) as (url, _), pytest.raises(ManagementError, match=r"not RabbitMQ|does not answer"):
        api(url).get("overview")


@pytest.mark.parametrize("date", [b"x", b"Mon, 01 Jan 0001 00:00:00 -0000", b"Mon, 01 Jan 9999 00:00:00 GMT"])
def test_any_date_is_accepted(date: bytes) -> None:
    with server(answer(b"{}", b"date: " + date)) as (url, _):
        assert api(url).get("overview")[0] == {}


async def test_the_name_of_another_cluster_does_not_control_the_terminal() -> None:
    connection: Any = SimpleNamespace(
        transport=SimpleNamespace(connection=SimpleNamespace(server_properties={"cluster_name": "rabbit@\x1b[2Jone"}))
    )
    named = answer(b'{"cluster_name": "rabbit@\\u001b[31mtwo"}')
    with server(named) as (url, _), pytest.raises(ManagementError, match="belongs to") as raised:
        await api(url).verify(connection)
    assert str(raised.value).isprintable()


POLICY = {"name": "p", "pattern": "^otp", "apply-to": "queues", "definition": {}, "priority": 1}


@pytest.mark.parametrize(
    "row", [{}, {"name": "p"}, POLICY | {"pattern": 1}, POLICY | {"definition": 1}, POLICY | {"priority": "x"}]
)
async def test_rows_that_lack_fields_or_have_others_are_an_error(row: dict[str, Any]) -> None:
    with server(answer(json.dumps([row]).encode())) as (url, _):
        with pytest.raises(ManagementError):
            await read_policy(api(url), TOPOLOGY, Retention(60_000))
        with pytest.raises(ManagementError):
            await ManagementQueries(api(url)).queue_arguments()
        with pytest.raises(ManagementError):
            await ManagementQueries(api(url)).exchange_bindings("otp")
        with pytest.raises(ManagementError):
            await ManagementQueries(api(url)).queue_bindings("otp")


@pytest.mark.parametrize("rows", [[{}], [POLICY | {"pattern": []}], [POLICY, POLICY | {"priority": "x"}]])
def test_check_reports_rows_that_it_cannot_read(rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with server(answer(json.dumps(rows).encode())) as (url, _):
        found = api(url)
        monkeypatch.setattr(management.ManagementApi, "of_broker", lambda _: found)
        status = management.read_status("amqp://127.0.0.1/", ["otp.dead"], "otp.dead")
    assert "sends fields that RabbitMQ does not" in status.error


def test_a_pattern_that_takes_years_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_patterns, "_TIMEOUT_S", 0.5)
    with pytest.raises(ManagementError, match="a pattern that takes too long"):
        matched_names(["(.*)*(.*)*(.*)*(.*)*x$"], ["service_send_otp" * 10])


def test_patterns_match_as_in_rabbitmq() -> None:
    names = ["otp.dead", "jobs", "a\nb"]
    found = matched_names(["^otp", "dead$", "", "(", "(?+1)"], names)
    assert found == {"^otp": ["otp.dead"], "dead$": ["otp.dead"], "": sorted(names), "(": [], "(?+1)": []}
