"""Every "cannot" of the threat model in SECURITY.md names a test that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = (ROOT / "SECURITY.md").read_text().split("## Threat model")[1]
ATTACKERS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", MODEL, re.MULTILINE | re.DOTALL))
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows(attacker: str, kind: str) -> list[str]:
    """Return the rows of an attacker's table of what it can or cannot do."""
    (table,) = re.findall(rf"^\| {kind} \|[^\n]*\n\|---\|---\|\n((?:\|.*\n?)+)", ATTACKERS[attacker], re.MULTILINE)
    return table.splitlines()


def test_the_threat_model_has_each_attacker() -> None:
    assert set(ATTACKERS) >= {
        "Producer", "Broker administrator", "Relay", "Network attacker", "Log reader", "Page visitor", "Operator",
        "Template editor", "Redis neighbour",
    }  # fmt: skip


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_each_attacker_can_do_something_that_has_its_limit(attacker: str) -> None:
    assert [row for row in rows(attacker, "can") if not row.split("|")[2].strip()] == []


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_every_cannot_names_its_tests(attacker: str) -> None:
    assert [row for row in rows(attacker, "cannot") if not REFERENCE.search(row.split("|")[2])] == []


@pytest.mark.parametrize(("file", "test"), sorted(set(REFERENCE.findall(MODEL))))
def test_every_test_that_is_named_exists(file: str, test: str) -> None:
    assert (ROOT / file).is_file()
    name = rf"{test}\b" if test else "test_"
    assert re.search(rf"^(async )?def {name}", (ROOT / file).read_text(), re.MULTILINE)
