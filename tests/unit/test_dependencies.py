"""The image contains nothing under a licence that does not fit, and docs/dependencies.md explains every library."""

import re
import tomllib
from pathlib import Path

import pytest
from audit import verdict
from dependencies import packages
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENT = (ROOT / "docs" / "dependencies.md").read_text()
ALLOWED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0"}


def test_every_package_of_the_image_has_a_licence_that_allows_its_use_in_any_program() -> None:
    refused = {it.name: it.licence for it in packages() if not set(re.split(" AND | OR ", it.licence)) <= ALLOWED}
    assert refused == {}


def test_the_image_contains_what_its_python_on_linux_needs() -> None:
    names = {it.name for it in packages()}
    assert {"uvloop", "aio-pika", "opentelemetry-sdk", "cffi"} <= names
    assert not {"colorama", "async-timeout", "pytest"} & names


def test_the_document_explains_every_library_that_the_project_requires() -> None:
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    names = {Requirement(text).name for text in texts} - {PROJECT["name"]}
    table = DOCUMENT.split("## Libraries")[1].split("## Licences")[0]
    words = set(
        re.findall(r"[\w-]+", " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| ")))
    )
    assert {name for name in names if name not in words and not name.startswith("opentelemetry-exporter")} == set()


VULNERABLE = {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}
SKIPPED = {"name": "b", "skip_reason": "not found"}
CLEAN = {"name": "c", "version": "1", "vulns": []}


@pytest.mark.parametrize(
    ("report", "status", "text"),
    [
        ([CLEAN], 0, "1 packages, no known vulnerability."),
        ([CLEAN, VULNERABLE], 1, "a 1: X-1, fixed in 2"),
        ([SKIPPED, VULNERABLE], 1, "NOT AUDITED: 1 of 2"),
        ([CLEAN, SKIPPED], 2, "NOT AUDITED: 1 of 2"),
        ([], 2, "NOT AUDITED: 0 of 0"),
    ],
)
def test_an_audit_is_clean_only_if_every_package_was_looked_up(
    report: list[dict[str, object]], status: int, text: str
) -> None:
    found, lines = verdict(report)
    assert found == status
    assert text in "\n".join(lines)
