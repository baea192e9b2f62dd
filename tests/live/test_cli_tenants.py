"""`otp-stream tenants`, as an operator uses it."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli import here
from smtp_relay import ScriptedRelay

TWO = """
[tenants.shop-17]
sender_email = "Shop 17 <no-reply@shop17.example>"
recipient_limit = "5/10m"

[tenants.shop-18]
smtp_host = "127.0.0.1"
smtp_port = {port}
smtp_tls = "none"
smtp_user = "shop"
smtp_pass_file = "pass"
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "pass").write_text("hunter2-own\n")
    (tmp_path / "tenants.toml").write_text(TWO.format(port=1))
    return {
        "TENANTS_FILE": "tenants.toml",
        "SENDER_EMAIL": "no-reply@acme.example",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": "1",
        "SMTP_AUTH": "none",
        "SMTP_TLS": "none",
        "PREFETCH_COUNT": "200",
    }


def results(out: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for it in json.loads(out)["results"]:
        found.setdefault(it["about"], []).append(it)
    return found


def test_list_names_senders_relays_and_limits(tmp_path: Path, env: dict[str, str]) -> None:
    ran = here(tmp_path, "tenants", "list", **env)
    assert ran.code == 0, ran.out
    rows = [line.split() for line in ran.out.splitlines()[:4]]
    assert rows[1][:3] == ["default", "no-reply@acme.example", "127.0.0.1:1"]
    assert rows[2][0] == "shop-17"
    assert "Shop 17 <no-reply@shop17.example>" in ran.out
    assert "recipient 5/10m" in ran.out
    listed = json.loads(here(tmp_path, "tenants", "list", "--json", **env).out)
    assert [it["relay"] for it in listed["tenants"]] == ["127.0.0.1:1", "that of default", "127.0.0.1:1"]


def test_show_says_where_each_value_is_from_and_masks_secrets(tmp_path: Path, env: dict[str, str]) -> None:
    ran = here(tmp_path, "tenants", "show", "shop-18", "--json", **env)
    assert ran.code == 0, ran.out
    assert "hunter2" not in ran.out
    shown = json.loads(ran.out)["settings"]
    assert shown["smtp_pass"] == {"value": "***", "from": "tenant"}
    assert shown["smtp_host"] == {"value": "127.0.0.1", "from": "tenant"}
    assert shown["sender_email"]["from"] == "environment"
    assert shown["smtp_auth"] == {"value": "login", "from": "default"}  # SMTP_AUTH=none is about another relay


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_show_hides_the_query_of_the_url_of_a_token_server(
    tmp_path: Path, env: dict[str, str], options: tuple[str, ...]
) -> None:
    own = """smtp_auth = "oauth2"\nsmtp_oauth_token_url = "https://login.example/token?key=hunter2-own"
smtp_oauth_client_id = "c"\nsmtp_oauth_client_secret = "hunter2-own"\nsmtp_oauth_scope = "s"\n"""
    content = TWO.format(port=1).replace('smtp_pass_file = "pass"\n', own)
    (tmp_path / "tenants.toml").write_text(content)
    ran = here(tmp_path, "tenants", "show", "shop-18", *options, **env)
    assert ran.code == 0, ran.out
    assert "https://login.example/token" in ran.out
    assert "hunter2" not in ran.out


def test_show_reports_the_origin_of_a_tenants_brand(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "tenants.toml").write_text("[tenants.a]\n[tenants.b]\nbrand_name = 'B'\nsubject_time = true\n")
    env |= {"BRAND_NAME": "Acme", "BRAND_FOOTER": "Acme Ltd\\nLondon"}
    of_a, of_b = (
        json.loads(here(tmp_path, "tenants", "show", name, "--json", **env).out)["settings"] for name in ("a", "b")
    )
    assert of_a["brand_footer"] == {"value": "Acme Ltd\nLondon", "from": "environment"}
    assert of_b["brand_footer"] == {"value": None, "from": "default"}
    assert of_b["brand_name"] == {"value": "B", "from": "tenant"}
    assert of_b["subject_time"] == {"value": True, "from": "tenant"}
    shown = here(tmp_path, "tenants", "show", "b", **env).out
    assert re.search(r"subject_time +true +tenant", shown)


async def test_check_logs_in_at_each_relay_and_reports_by_tenant(tmp_path: Path, env: dict[str, str]) -> None:
    async with ScriptedRelay() as relay:
        (tmp_path / "tenants.toml").write_text(TWO.format(port=relay.port))
        ran = await asyncio.to_thread(here, tmp_path, "tenants", "check", "--json", **env)
    assert "hunter2" not in ran.out
    found = results(ran.out)
    assert [it["level"] for it in found["TENANTS_FILE"]] == ["ok"]
    assert any(it["level"] in {"ok", "problem"} and str(relay.port) in it["text"] for it in found["shop-18"])
    assert relay.connections


def test_check_finds_a_relay_that_is_down(tmp_path: Path, env: dict[str, str]) -> None:
    ran = here(tmp_path, "tenants", "check", "--json", **env)
    assert ran.code == 1
    found = results(ran.out)
    assert [it["level"] for it in found["shop-18"]] == ["problem"]
    assert "problem" not in [it["level"] for it in found["shop-17"]]
    assert here(tmp_path, "tenants", "check", "shop-17", **env).code == 0


@pytest.mark.parametrize("command", [("list",), ("show", "shop-17"), ("check",)])
def test_a_broken_file_is_reported(tmp_path: Path, env: dict[str, str], command: tuple[str, ...]) -> None:
    (tmp_path / "tenants.toml").write_text("[tenants.a]\nsmtp_port = 0")
    ran = here(tmp_path, "tenants", *command, **env)
    assert ran.code == (1 if command == ("check",) else 2)
    assert "[tenants.a] smtp_port: must be 1 or more" in ran.out


def test_an_unknown_tenant_and_no_file_are_refused(tmp_path: Path, env: dict[str, str]) -> None:
    ran = here(tmp_path, "tenants", "show", "shop-19", **env)
    assert ran.code == 2
    assert "NAME: there is no tenant shop-19; known: shop-17, shop-18" in ran.out
    ran = here(tmp_path, "tenants", "list")
    assert ran.code == 2
    assert "TENANTS_FILE: is not set" in ran.out


def test_otp_stream_check_reports_the_file(tmp_path: Path, env: dict[str, str]) -> None:
    ran = here(tmp_path, "check", RABBITMQ_URL="amqp://127.0.0.1:1", **env)
    assert "2 tenants: check them with otp-stream tenants check" in ran.out
    (tmp_path / "tenants.toml").write_text("")
    ran = here(tmp_path, "check", RABBITMQ_URL="amqp://127.0.0.1:1", **env)
    assert "TENANTS_FILE: tenants: must be one or more tables" in ran.out


def test_the_schema_is_json(tmp_path: Path) -> None:
    ran = here(tmp_path, "tenants", "schema")
    assert json.loads(ran.out)["title"] == "TENANTS_FILE of otp-stream"
