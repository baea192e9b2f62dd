"""A real Prometheus scrapes a real worker: every query of the rules and of the dashboard finds what it needs."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from api import TOKEN, post
from api import job as http_job
from certificates import Authority
from conftest import Stage
from prometheus import ROOT, SELECTOR, Prometheus, grouped, rules
from rabbitmq import until
from redis_server import RedisServer
from tenants import job_of, tenants_toml
from worker import Worker, job

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "otp-stream.json").read_text())
PANELS = [it for it in DASHBOARD["panels"] if it["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
EMPTY = {"Relay takes no mail of"}
"""The panel that shows nothing while all is well."""
AFTER_A_SWEEP = "Time since the last complete sweep"
"""A panel that shows nothing until the first sweep, which is 8 to 23 seconds after the start."""

_FAILED, _ACCEPTED = 'http_response_status_code=~"5.."', 'http_response_status_code=~"2.."'
_FIRST_SWEEP = "otp_dead_letter_sweep_timestamp_seconds"


@pytest.fixture
async def prometheus(stage: Stage, redis: RedisServer, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """Scrape a worker with tenants, Redis, TLS and an access token, which sends, retries and dead-letters jobs."""
    worker = await _busy_worker(stage, redis, tmp_path)
    async with Prometheus(tmp_path / "prometheus", worker.port) as prometheus:
        # jobs after the first scrape, so that each counter grows
        stage.relay.then("rcpt", "450 4.2.0 later", to="slow@example.com")
        stage.relay.then("rcpt", "550 5.1.1 unknown", to="gone@example.com")
        bodies = [job(f"{name}@example.com", jobId=name) for name in ("ada", "slow", "gone")]
        await stage.rabbit.publish(*bodies, job_of("shop"), b"{}")
        assert (await post(stage.workers[0], http_job())).status == 202

        async def scraped() -> bool:
            grown = {"sent": 4, "rejected": 1, "malformed": 1}
            found = await prometheus.query("otp_jobs_total > 0")
            return {it["metric"]["outcome"]: float(it["value"][1]) for it in found} == grown

        await until(scraped, "jobs at Prometheus", 30)
        yield prometheus


async def _busy_worker(stage: Stage, redis: RedisServer, folder: Path) -> Worker:
    authority = Authority(folder)
    relay = stage.relay
    relay.tls, relay.mode = authority.server("127.0.0.1"), "starttls"
    relay.login, relay.mechanisms, relay.accepts_token = ("otp", ""), "XOAUTH2", lambda _: True
    token, tenants = folder / "token", folder / "tenants.toml"
    token.write_text("opaque-0123456789")
    tenants.write_text(tenants_toml({"shop": {"brand_name": "Shop"}}))
    return await stage.run(
        SMTP_TLS="starttls", SMTP_CA_FILE=str(authority.ca_file), SMTP_AUTH="oauth2", SMTP_USER="otp",
        SMTP_OAUTH_TOKEN_FILE=str(token), SMTP_RATE_PER_SECOND="50", REDIS_URL=redis.url, TENANTS_FILE=str(tenants),
        DEAD_LETTER_RETENTION="1d", INTAKE_TOKEN=TOKEN,
    )  # fmt: skip


async def test_every_rule_and_every_panel_has_data(prometheus: Prometheus) -> None:
    missing: set[str] = set()

    async def complete() -> (
        bool
    ):  # after a scrape that was too late on a busy machine, all series are gone until the next
        nonlocal missing
        missing = await _missing(prometheus) - {AFTER_A_SWEEP}
        return missing == EMPTY

    try:
        await until(complete, "data", 30)
    except AssertionError as error:
        raise AssertionError(f"{error}: {missing ^ EMPTY}") from None
    firing = {it["metric"]["alertname"] for it in await prometheus.query('ALERTS{alertstate="firing"}')}
    assert not firing


async def _missing(prometheus: Prometheus) -> set[str]:
    """Return the selectors, recorded series and titles of panels for which there is nothing now."""
    missing = await _missing_selectors(prometheus)
    for group in (await prometheus.get("rules"))["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok" or (rule["type"] == "recording" and not await prometheus.query(rule["name"])):
                missing.add(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
    for panel in PANELS:
        for target in panel["targets"]:
            found = await prometheus.query(as_sent(target["expr"]))
            if not found:
                missing.add(panel["title"])
            for name in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert all(name in it["metric"] for it in found), (panel["title"], name)
    return missing


def as_sent(expression: str) -> str:
    """Return a query with its variables filled in, as Grafana sends it."""
    return expression.replace("$__rate_interval", "1m").replace("$job", "otp-stream")


async def _missing_selectors(prometheus: Prometheus) -> set[str]:
    """Return the selectors that find nothing now. The others must find the labels by which they are grouped."""
    missing: set[str] = set()
    expressions = [*(rule["expr"] for rule in rules()), *map(as_sent, QUERIES)]
    for selector in sorted({it for expression in expressions for it in SELECTOR.findall(expression)}):
        # no request fails here
        if not selector.startswith(_FIRST_SWEEP) and not await prometheus.query(selector.replace(_FAILED, _ACCEPTED)):
            missing.add(selector)
    for labels, selector in {(tuple(sorted(them)), it) for line in expressions for them, it in grouped(line)}:
        for series in await prometheus.query(selector):
            assert set(labels) <= series["metric"].keys(), (selector, labels)
    return missing


def test_the_dashboard_has_what_grafana_needs_and_its_panels_do_not_overlap() -> None:
    ids = [it["id"] for it in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {it["name"] for it in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) <= variables | {"__rate_interval"}
    used: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        cells = set(_cells(panel["gridPos"]))
        assert not cells & used, panel["title"]
        used |= cells
    for panel in PANELS:
        assert panel["targets"], panel["title"]
        assert len({it["refId"] for it in panel["targets"]}) == len(panel["targets"])


def _cells(at: dict[str, Any]) -> Iterator[tuple[int, int]]:
    assert at["x"] + at["w"] <= 24
    yield from ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
