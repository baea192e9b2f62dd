"""Turn the report of the fault suite into a table, printed and put into docs/reliability.md."""

import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parent.parent / "docs" / "reliability.md"
_MARKS = re.compile(r"(?<=<!-- faults:begin -->\n).*?(?=<!-- faults:end -->)", re.DOTALL)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown, the case first."""
    lines = [
        "| case | jobs | lost | duplicated | expired | late p99, ms | recovered in, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: row["case"]):
        cells = (row[name] for name in ("case", "jobs", "lost", "duplicated", "expired", "late_p99_ms", "recovered_s"))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    jobs, lost, twice = (sum(row[name] for row in rows) for name in ("jobs", "lost", "duplicated"))
    lines.append(f"| **{len(rows)} cases** | **{jobs}** | **{lost}** | **{twice}** | | | |")
    return "\n".join(lines) + f"\n\nPython {platform.python_version()}, one machine, traffic on 127.0.0.1.\n"


def main(report: Path) -> None:
    """Print the table, and write it where the document shows it."""
    text = table([json.loads(line) for line in report.read_text().splitlines()])
    sys.stdout.write(text)
    DOCUMENT.write_text(_MARKS.sub(lambda _: text, DOCUMENT.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
