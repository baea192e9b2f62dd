"""The dashboard for Grafana."""

from itertools import count
from string import ascii_uppercase
from typing import Any

from dashboard_rows import ROWS, Panel

_WIDTH = 24
"""Columns of Grafana's grid."""
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

_DATASOURCES = {
    "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 0,
}  # fmt: skip
_JOBS = {
    "name": "job", "label": "Deployment", "type": "query", "datasource": _DATASOURCE, "refresh": 2, "hide": 0,
    "definition": "label_values(otp_phase, job)",
    "query": {"query": "label_values(otp_phase, job)", "refId": "jobs"},
    "includeAll": False, "multi": False, "sort": 1,
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    ids, y = count(1), 0
    for title, row in ROWS.items():
        place = _at(0, y, _WIDTH, 1)
        panels.append(
            {"id": next(ids), "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}
        )
        x, y, height = 0, y + 1, 0
        for panel in row:
            width, tall = (6, 4) if panel.kind == "stat" else (8, 7)
            if x + width > _WIDTH or (height and tall != height):
                x, y = 0, y + height
            panels.append(_panel(panel, next(ids), _at(x, y, width, tall)))
            x, height = x + width, tall
        y += height
    return {
        "title": "otp-stream",
        "uid": "otp-stream",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the cursor is shared by all panels
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "tags": ["otp-stream"],
        "templating": {"list": [_DATASOURCES, _JOBS]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    is_stat = panel.kind == "stat"
    last = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": at,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {} if is_stat else {"axisSoftMin": 0}},
            "overrides": [],
        },
        "options": last if is_stat else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": letter, "datasource": _DATASOURCE, "expr": query, "legendFormat": legend or "__auto"}
            for letter, (legend, query) in zip(ascii_uppercase, panel.queries.items(), strict=False)
        ],
    }
