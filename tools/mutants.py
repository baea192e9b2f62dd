"""Print the result of a mutation run: a table by module, then every mutant that no test failed on.

Reads the output of `mutmut results --all true` from standard input.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

KILLED = ("killed", "timeout")
"""A mutant that never ends is noticed too."""


def read(lines: Iterable[str]) -> dict[str, str]:
    """Return the status of each mutant, by its name."""
    pairs = (line.strip().rpartition(": ") for line in lines if ": " in line)
    return {name: status for name, _, status in pairs}


def report(mutants: dict[str, str]) -> str:
    """Return the table and the list of survivors."""
    by_module: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for name, status in mutants.items():
        by_module[name.rpartition(".")[0]][status in KILLED] += 1
    rows = [(module, found[False], found.total()) for module, found in sorted(by_module.items())]
    rows.append(("total", sum(row[1] for row in rows), len(mutants)))
    lines = [f"{'module':32} {'survived':>8} {'mutants':>8} {'share':>7}"]
    lines += [f"{module:32} {survived:8} {total:8} {survived / total:7.1%}" for module, survived, total in rows]
    lines += ["", "Survivors (show one with `.venv/bin/mutmut show NAME`):"]
    lines += [f"  {name}: {status}" for name, status in sorted(mutants.items()) if status not in KILLED] or ["  none"]
    return "\n".join(lines)


if __name__ == "__main__":
    found = read(sys.stdin)
    if not found:
        sys.exit("No mutants: the mutation run did not finish. Read its output above.")
    print(report(found))  # noqa: T201 - a report for a terminal
