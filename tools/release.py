"""What `make release` checks before it builds, and the notes and steps that it prints afterwards.

`python tools/release.py` exits with 1 if something prevents a release of this commit, and names all of it.
`python tools/release.py --notes` writes build/release-notes.md from CHANGELOG.md. Nothing is signed or uploaded.
"""

import re
import subprocess
import sys
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
NOTES = ROOT / "build" / "release-notes.md"
_HEADING = re.compile(r"^## (?:(Unreleased)|(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\))$")


class Section(NamedTuple):
    """A version in the changelog. Both are `None` for what is not released yet."""

    version: str | None
    date: date | None
    text: str


def sections(changelog: str) -> list[Section]:
    """Return the versions of a changelog, newest first.

    Raises:
        ValueError: a heading is neither `## Unreleased` nor like `## 1.2.0 (2026-12-31)`.
    """
    found: list[Section] = []
    for part in re.split(r"^(?=## )", changelog, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        match = _HEADING.match(heading)
        if match is None:
            raise ValueError(f"CHANGELOG.md: write {heading!r} as '## Unreleased' or like '## 1.2.0 (2026-12-31)'")
        found.append(Section(match[2], date.fromisoformat(match[3]) if match[3] else None, text.strip()))
    return found


def refusals(project: dict[str, Any], changelog: list[Section], changed: str, tagged: str, head: str) -> list[str]:
    """Return what prevents a release, one line each.

    `changed` is the output of `git status --porcelain`; `tagged` the commit with the tag of the version, or "".
    """
    version, found = project["version"], []
    if changed:
        found.append(f"these files are not committed:\n{changed}")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"pyproject.toml: the version {version} is not like 1.2.0")
    newest = next((it for it in changelog if it.version or it.text), None)
    if newest is None or newest.version != version:
        name = newest.version or "Unreleased" if newest else "missing"
        found.append(f"CHANGELOG.md: the newest version is {name}: write '## {version} ({datetime.now(UTC):%Y-%m-%d})'")
    elif newest.date and newest.date > datetime.now(UTC).date():
        found.append(f"CHANGELOG.md: {newest.date} is in the future")
    if tagged not in {"", head}:
        found.append(f"the tag v{version} is on another commit: raise the version in pyproject.toml")
    if any("example.com" in url for url in project["urls"].values()):
        found.append("pyproject.toml: [project.urls] has addresses of example.com: write the project's own")
    return found


def main() -> int:
    """Check, or write the notes, and return the exit status."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    changelog = sections((ROOT / "CHANGELOG.md").read_text())
    if "--notes" in sys.argv:
        NOTES.parent.mkdir(exist_ok=True)
        NOTES.write_text(next(it.text for it in changelog if it.version == version) + "\n")
        sys.stdout.write(_STEPS.format(version=version))
        return 0
    tagged = _git("rev-parse", "--verify", "--quiet", f"v{version}^{{commit}}")
    found = refusals(project, changelog, _git("status", "--porcelain"), tagged, _git("rev-parse", "HEAD"))
    sys.stderr.writelines(f"release: {line}\n" for line in found)
    return 1 if found else 0


_STEPS = """
Version {version} is built: see dist, and build/release-notes.md. Next, by hand:
  1. make test, make audit, make docs; .ci/run on another machine
  2. git tag --sign v{version} && git push origin v{version}
  3. make dist on another machine from this tag, and compare dist/SHA256SUMS
  4. gpg --detach-sign --armor dist/SHA256SUMS, with a key that is not on this machine
  5. publish the wheel and the source archive on the package index; all files of dist with the notes on the host;
     build/site where [project.urls] says
  6. build the image from the tag, push it, and sign its digest with cosign
"""


def _git(*arguments: str) -> str:
    ran = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return ran.stdout.rstrip()


if __name__ == "__main__":
    sys.exit(main())
