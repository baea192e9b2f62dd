"""Prometheus and promtool, and the rules and the dashboard in `deploy/`."""

import asyncio
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import relays
import yaml
from rabbitmq import free_port, until

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = (FOLDER / "slo.yaml", FOLDER / "alerts.yaml")
SELECTOR = re.compile(r"\b((?:otp_|process_)\w+(?:\{[^}]*\})?)")
_GROUPED = re.compile(r"by \(([\w, ]+)\) \((?:\w+\()?" + SELECTOR.pattern)


def program(name: str) -> Path:
    """Return the path of `prometheus` or `promtool`."""
    return relays.PROMETHEUS.path(f"usr/bin/{name}")


def rules() -> Iterator[dict[str, Any]]:
    """Yield every rule."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def grouped(expression: str) -> Iterator[tuple[set[str], str]]:
    """Yield each selector of an expression that is aggregated by labels, with these labels."""
    for labels, selector in _GROUPED.findall(expression):
        yield set(labels.split(", ")), selector


@dataclass
class Prometheus:
    """Scrapes one worker twice a second, with the rules of `deploy/`. Use it with `async with`."""

    folder: Path
    target: int
    config: str = "prometheus.yaml"
    """Its configuration in `deploy/prometheus`. Intervals and the target's address are replaced."""
    port: int = field(default_factory=free_port)
    _process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self.folder.mkdir()
        config = yaml.safe_load((FOLDER / self.config).read_text())
        config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "250ms"}
        config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{self.target}"]}]
        file = self.folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        words = (
            f"--config.file={file}", f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )  # fmt: skip
        with (self.folder / "out").open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(program("prometheus"), *words, stdout=out, stderr=out)
        try:
            await until(self._scrapes, "scrape by Prometheus", 30)
        except BaseException:
            await relays.stop(self._process)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await relays.stop(self._process)

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression now, each with `metric` and `value`. Raises `OSError` if it is wrong."""
        return (await self.get("query", query=expression))["result"]

    async def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return (await asyncio.to_thread(_load, url))["data"]

    async def _scrapes(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, (self.folder / "out").read_text()
        try:
            return bool(await self.query("up == 1"))
        except OSError:
            return False


def _load(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)
