"""`make sbom`: a valid CycloneDX document of everything in the image, the same on each run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from dependencies import packages

ROOT = Path(__file__).parents[2]


def made(seed: str) -> str:
    """Return the document that a new process makes."""
    code = "import sbom, sys; sys.stdout.write(sbom.sbom())"
    env = {"PYTHONPATH": str(ROOT / "tools"), "PYTHONHASHSEED": seed}
    return subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def document() -> str:
    return made("1")


@pytest.fixture(scope="module")
def sbom(document: str) -> dict[str, Any]:
    return json.loads(document)


def test_the_bill_of_materials_is_valid_by_the_schema_of_cyclonedx(document: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.replace('"library"', '"book"')) is not None


def test_the_bill_of_materials_is_the_same_on_each_run(document: str) -> None:
    assert made("2") == document


def test_the_bill_of_materials_names_every_package_with_version_licence_hashes_and_package_url(
    sbom: dict[str, Any],
) -> None:
    expected = {f"pkg:pypi/{it.name}@{it.version}": it for it in packages()}
    assert {it["purl"] for it in sbom["components"]} == set(expected)
    for it in sbom["components"]:
        (files,) = it["externalReferences"]
        assert [entry["content"] for entry in files["hashes"]] == expected[it["purl"]].hashes
        (licence,) = it["licenses"]
        assert expected[it["purl"]].licence == licence.get("expression", licence.get("license", {}).get("id"))


def test_the_bill_of_materials_says_who_requires_each_package(sbom: dict[str, Any]) -> None:
    required = {name for it in sbom["dependencies"] for name in it.get("dependsOn", ())}
    assert required == {it["purl"] for it in sbom["components"]}
    (ours,) = (it for it in sbom["dependencies"] if it["ref"].startswith("pkg:pypi/otp-stream@"))
    assert any(name.startswith("pkg:pypi/faststream@") for name in ours["dependsOn"])
