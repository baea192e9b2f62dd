"""Look up known vulnerabilities of every locked package: `python tools/audit.py`, with pip-audit.

Exit status: 0, no package has a known vulnerability; 1, at least one has; 2, at least one could not be looked up, for
example without access to the index of advisories. pip-audit itself exits with 0 if it skips every package.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_PIP_AUDIT = ("pip_audit", "--progress-spinner=off", "--format=json", "--disable-pip", "--require-hashes")


def verdict(packages: Iterable[dict[str, Any]]) -> tuple[int, list[str]]:
    """Return the exit status and the lines to print for the packages of a report by pip-audit."""
    found, skipped, total = [], 0, 0
    for package in packages:
        total += 1
        skipped += "skip_reason" in package
        for flaw in package.get("vulns", ()):
            fixed = ", ".join(flaw["fix_versions"]) or "no version"
            found.append(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    lines = [f"NOT AUDITED: {skipped} of {total} packages could not be looked up."] if skipped or not total else []
    if found:
        return 1, [*found, *lines]
    return (2, lines) if lines else (0, [f"{total} packages, no known vulnerability."])


def main() -> int:
    """Audit every lock file."""
    statuses = set[int]()
    for lock in sorted(ROOT.glob("requirements*.txt")):
        ran = subprocess.run(  # noqa: S603 - all words are ours
            [sys.executable, "-m", *_PIP_AUDIT, "-r", lock], capture_output=True, text=True, check=False
        )
        code, lines = verdict(json.loads(ran.stdout)["dependencies"]) if ran.stdout else (2, [_failure(ran.stderr)])
        statuses.add(code)
        sys.stdout.writelines(f"{lock.name}: {line}\n" for line in lines)
    if 1 in statuses:
        sys.stdout.write("There are known vulnerabilities. Update with: make lock\n")
        return 1
    if 2 in statuses:
        sys.stdout.write(
            "The audit needs access to the package index, which answers with the advisories of a version.\n"
        )
        return 2
    return 0


def _failure(stderr: str) -> str:
    """Return what a run that ended without a report says at its end."""
    lines = stderr.strip().splitlines()
    return f"NOT AUDITED: {lines[-1] if lines else 'pip-audit wrote no report'}"


if __name__ == "__main__":
    sys.exit(main())
