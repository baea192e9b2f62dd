"""docker-compose.yml, and what its profile `observability` starts."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import Stage
from given_settings import load_settings
from prometheus import FOLDER, ROOT, Prometheus, program, rules
from rabbitmq import until

from otp_stream.settings import Settings

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
GRAFANA = ROOT / "deploy/grafana"
PROFILE = "observability"


def schema_errors(file: Path) -> str:
    """Compare a file with the schema of the Compose Specification. Returns the errors."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout * bool(done.returncode)


def interpolate(value: str, **variables: str) -> str:
    """Replace `${NAME:-default}` and `${NAME:+alternative}`, as Compose does."""

    def replaced(found: re.Match[str]) -> str:
        name, kind, text = found.groups()
        given = variables.get(name, "")
        return given or text if kind == "-" else text if given else ""

    return re.sub(r"\$\{(\w+):([-+])([^}]*)\}", replaced, value)


def mounts(service: str) -> dict[str, Path]:
    """Return the folders and files of the repository that a container sees, by their paths there."""
    found = [it.split(":") for it in SERVICES[service]["volumes"]]
    assert all(mode == "ro" for _, _, mode in found)
    return {target: ROOT / source for source, target, _ in found}


def test_the_file_matches_the_compose_specification(tmp_path: Path) -> None:
    file = ROOT / "docker-compose.yml"
    assert schema_errors(file) == ""
    wrong = tmp_path / file.name
    wrong.write_text(file.read_text().replace("profiles:", "profile:"))
    assert "'profile' was unexpected" in schema_errors(wrong)


def test_only_the_profile_starts_what_observes() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert {name for name, them in profiles.items() if not them} == {"worker", "rabbitmq", "redis", "mail"}
    assert {name for name, them in profiles.items() if them == [PROFILE]} == {"prometheus", "grafana", "jaeger"}


def test_every_port_is_published_on_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("file", ["docker-compose.yml", "docs/deploying.md"])
def test_each_address_that_is_documented_is_published(file: str) -> None:
    text = (ROOT / file).read_text()
    named = set(re.findall(r"http://localhost:(\d+)", text))
    published = {port.split(":")[1] for service in SERVICES.values() for port in service["ports"]}
    assert published - named == {"5672", "6379", "1025"}  # not for a browser
    assert named <= published


@pytest.mark.parametrize(("profiles", "endpoint"), [("", ""), (PROFILE, "http://jaeger:4318")])
def test_the_worker_s_settings_are_valid_and_its_traces_go_to_jaeger_if_there_is_one(
    profiles: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = SERVICES["worker"]
    given = {name: interpolate(it, COMPOSE_PROFILES=profiles) for name, it in worker["environment"].items()}
    assert given["OTEL_EXPORTER_OTLP_ENDPOINT"] == endpoint
    assert given.keys() - {"OTEL_EXPORTER_OTLP_ENDPOINT"} <= {"NODE_ENV", *map(str.upper, Settings.model_fields)}
    settings, problems = load_settings(given, tmp_path, monkeypatch)
    assert problems == []
    assert int(worker["stop_grace_period"].removesuffix("s")) >= settings.shutdown_grace_ms / 1000 + 5
    if endpoint:
        assert SERVICES[urlsplit(endpoint).hostname or ""]["profiles"] == [PROFILE]


async def test_prometheus_scrapes_the_worker_as_a_job_that_the_alerts_watch(stage: Stage, tmp_path: Path) -> None:
    command = dict(word.removeprefix("--").split("=") for word in SERVICES["prometheus"]["command"])
    file = Path(command["config.file"])
    assert mounts("prometheus")[str(file.parent)] == FOLDER
    config = yaml.safe_load((FOLDER / file.name).read_text())
    (scraped,) = config["scrape_configs"]
    (target,) = scraped["static_configs"][0]["targets"]
    service, _, port = target.partition(":")
    assert any(it.endswith(f":{port}") for it in SERVICES[service]["ports"])
    (down,) = (rule["expr"] for rule in rules() if rule.get("alert") == "OtpWorkerDown")
    worker = await stage.run()
    async with Prometheus(tmp_path / "prometheus", worker.port, config=file.name) as prometheus:

        async def watched() -> bool:
            return bool(await prometheus.query(down.replace("== 0", "== 1")))

        await until(watched, "worker in the series of OtpWorkerDown")
        assert {it["name"] for it in (await prometheus.get("rules"))["groups"]}


def test_promtool_accepts_every_configuration() -> None:
    for path in (FOLDER / "compose.yaml", FOLDER / "prometheus.yaml"):
        done = subprocess.run(
            [program("promtool"), "check", "config", path], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    mounted = mounts("grafana")
    assert mounted["/etc/grafana/provisioning"] == GRAFANA / "provisioning"
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/otp-stream.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    dashboard = f"{provider['options']['path']}/otp-stream.json"
    assert mounted[dashboard] == GRAFANA / "otp-stream.json"
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/otp-stream.yaml").read_text())["datasources"]
    at = urlsplit(source["url"])
    assert any(it.endswith(f":{at.port}") for it in SERVICES[at.hostname or ""]["ports"])
    variables = {it["name"]: it for it in json.loads((GRAFANA / "otp-stream.json").read_text())["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", source["type"])
    assert source["isDefault"]
