"""The files in `deploy/`, and the container: a worker runs without privileges."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/otp-stream.service"


def test_the_unit_has_no_secret_in_its_environment_and_stops_later_than_the_worker() -> None:
    lines = [line for line in UNIT.read_text().splitlines() if not line.startswith("#")]
    given = [line.removeprefix("Environment=") for line in lines if line.startswith("Environment=")]
    values = dict(word.split("=", 1) for word in " ".join(given).split())
    for name in ("RABBITMQ_URL", "SMTP_PASS", "SECRET_KEY"):
        assert name not in values
        assert values[f"{name}_FILE"] == f"%d/{name.lower()}"
        assert f"LoadCredential={name.lower()}:/etc/otp-stream/{name.lower()}" in lines
    assert int(_setting(lines, "TimeoutStopSec")) > 25


def _setting(lines: list[str], name: str) -> str:
    (value,) = (line.partition("=")[2] for line in lines if line.startswith(f"{name}="))
    return value


def test_the_container_of_compose_is_read_only_and_has_no_capability() -> None:
    worker = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]
    assert (worker["read_only"], worker["cap_drop"]) == (True, ["ALL"])
    assert worker["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"(?m)^USER (?!0|root)\d+:\d+$", (ROOT / "Dockerfile").read_text())
