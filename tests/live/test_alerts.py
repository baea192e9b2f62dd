"""The rules for Prometheus: each alert fires when it should, and only then."""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from alert_scenes import END, FAILURES, NORMAL, SCENES, Scene
from prometheus import RULES, program, rules

from otp_stream.core.decision import REASONS

_FIRING = 'count by (alertname, window) (ALERTS{alertstate="firing"})'


async def promtool(*words: object) -> str:
    """Run it. Returns its output; raises `AssertionError` with it if it fails."""
    process = await asyncio.create_subprocess_exec(
        program("promtool"), *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={"GOGC": "800"},  # it would spend a third of its time on garbage
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def unit_test(scene: Scene) -> dict[str, Any]:
    """Return a scene as promtool reads it."""
    changed = scene.changes if scene.alone else {**NORMAL, **scene.changes}
    expected = {minute: Counter(alerts) for minute, alerts in scene.fires.items()}
    expected |= {minute: Counter[str]() for minute in scene.quiet}
    end = str(max(expected))
    return {
        "name": scene.name,
        "interval": "1m",
        "input_series": [{"series": name, "values": values.replace(END, end)} for name, values in changed.items()],
        "promql_expr_test": [
            {
                "expr": _FIRING,
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": _labels(alert), "value": count} for alert, count in alerts.items()],
            }
            for minute, alerts in sorted(expected.items())
        ],
    }


def _labels(alert: str) -> str:
    name, _, window = alert.partition(" ")
    return f'{{alertname="{name}"' + (f',window="{window}"' if window else "") + "}"


async def test_the_rules_are_valid() -> None:
    assert "FAILED" not in await promtool("check", "rules", *RULES)


@pytest.mark.parametrize("step", sorted({scene.step for scene in SCENES}))
async def test_alerts_fire_when_they_should_and_not_before(step: int, tmp_path: Path) -> None:
    file = tmp_path / "scenes.json"  # JSON is YAML
    scenes = [scene for scene in SCENES if scene.step == step]

    async def test(*scenes: Scene) -> None:
        tests = [unit_test(scene) for scene in scenes]
        content = {"rule_files": [str(path) for path in RULES], "evaluation_interval": f"{step}m", "tests": tests}
        file.write_text(json.dumps(content))
        await promtool("test", "rules", file)

    try:
        await test(*scenes)  # all in one process, which does not say which of them fails
    except AssertionError:
        for scene in scenes:
            try:
                await test(scene)
            except AssertionError as error:
                raise AssertionError(f"{scene.name}: {error}") from None
        raise


def test_every_alert_fires_in_a_scene() -> None:
    fired = {alert.partition(" ")[0] for scene in SCENES for alerts in scene.fires.values() for alert in alerts}
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def test_every_way_to_fail_has_an_objective_except_the_limits_that_operators_set() -> None:
    budgets = {rule["labels"]["outcome"] for rule in rules() if rule.get("record") == "otp:failed_jobs:budget"}
    assert budgets == set(FAILURES) == set(REASONS) - {"throttled"}


def test_every_alert_has_a_severity_a_summary_a_description_and_an_entry_in_the_runbook() -> None:
    for rule in rules():
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, rule["alert"]
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        kept = re.search(r"by \(([\w, ]+)\)", rule["expr"])
        of_series = {"instance", "job"} if rule["expr"].startswith("up") else {"job", "outcome"}
        assert used <= (set(kept[1].split(", ")) if kept else of_series) | of_series, rule["alert"]
