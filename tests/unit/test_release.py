"""The changelog has a structure from which a release can be made, and `make release` refuses what is not ready."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import release
from packaging.version import Version

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
READY = "# Changelog\n\n## 1.2.0 (2026-01-31)\n\n### Security\n\n- A.\n\n## 1.1.0 (2025-12-01)\n\n- B.\n"
PROJECT = {"version": "1.2.0", "urls": {"Source": "https://code.otp-stream.test/otp-stream"}}


def refusals(changelog: str = READY, changed: str = "", tagged: str = "", **project: Any) -> list[str]:
    return release.refusals(PROJECT | project, release.sections(changelog), changed, tagged, "4f2a")


def test_the_versions_of_the_changelog_are_in_order_and_headings_occur_once() -> None:
    found = release.sections(CHANGELOG)
    assert [it for it in found[1:] if it.version is None] == []
    versions = [Version(it.version) for it in found if it.version]
    assert versions == sorted(set(versions), reverse=True)
    dates = [it.date for it in found if it.date]
    assert dates == sorted(dates, reverse=True)
    for it in found:
        headings = re.findall(r"^###+ .*", it.text, re.MULTILINE)
        assert sorted(headings) == sorted(set(headings))
        assert "### Breaking changes" not in headings[1:], "comes first: readers must not miss it"


def test_a_commit_with_its_version_in_the_changelog_is_ready() -> None:
    assert refusals() == []
    assert refusals(tagged="4f2a") == []
    assert refusals(READY.replace("## 1.2.0", "## Unreleased\n\n## 1.2.0")) == []


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"changed": " M README.md"}, "these files are not committed:\n M README.md"),
        ({"changelog": READY.replace("## 1.2.0", "## Unreleased\n\n- C.\n\n## 1.2.0")}, "newest version is Unreleased"),
        ({"changelog": "# Changelog\n\n## Unreleased\n"}, "the newest version is missing: write '## 1.2.0 ("),
        ({"version": "1.3.0"}, "CHANGELOG.md: the newest version is 1.2.0: write '## 1.3.0 ("),
        ({"changelog": READY.replace("2026-01-31", "2999-01-31")}, "CHANGELOG.md: 2999-01-31 is in the future"),
        ({"tagged": "77aa"}, "the tag v1.2.0 is on another commit: raise the version"),
        ({"urls": {"Source": "https://git.example.com/otp-stream"}}, "[project.urls] has addresses of example.com"),
    ],
)
def test_what_prevents_a_release_is_named(changes: dict[str, Any], refused: str) -> None:
    (line,) = refusals(**changes)
    assert refused in line


def test_everything_that_prevents_a_release_is_named_at_once() -> None:
    assert len(refusals(changed=" M x", version="1.3.0.dev1", tagged="77aa", urls={"x": "https://example.com"})) == 5


@pytest.mark.parametrize("heading", ["## 1.2.0", "## v1.2.0 (2026-01-31)", "## 1.2.0 (31.01.2026)", "## unreleased"])
def test_a_heading_of_another_form_is_refused_with_the_form(heading: str) -> None:
    with pytest.raises(ValueError, match=re.escape("as '## Unreleased' or like '## 1.2.0 (2026-12-31)'")):
        release.sections(f"{heading}\n")


def test_the_notes_of_a_version_are_its_part_of_the_changelog() -> None:
    first, second = release.sections(READY)
    assert first == ("1.2.0", date(2026, 1, 31), "### Security\n\n- A.")
    assert second.text == "- B."


def test_every_file_that_names_the_version_names_the_one_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    files = (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.y*ml"))
    text = "\n".join(file.read_text() for file in files)
    named = re.findall(r"(?:otp-stream:|checkout v|--sign v|newTag: \W?|appVersion: \W?)(\d+\.\d+\.\d+)", text)
    assert len(named) >= 4
    assert set(named) == {version}
