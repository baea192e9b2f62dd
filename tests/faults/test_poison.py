"""A job that crashes processes: each at most once; other jobs are sent, and it ends in `otp.dead`."""

from pathlib import Path

import pytest
from conftest import Stage
from ledger import Ledger
from rabbitmq import until

KILL = """import os
from jinja2.defaults import DEFAULT_FILTERS
DEFAULT_FILTERS["kill"] = lambda signal: os.kill(os.getpid(), signal)
DEFAULT_FILTERS["kill_parent"] = lambda signal: os.kill(os.getppid(), signal)
"""
"""Gives templates what the sandbox does not: a way to kill the process that they run in, or the one that composes."""
POISONS = {
    "segmentation fault": "{{ 11 | kill }}",
    "SIGKILL, as when out of memory": "{{ 9 | kill }}",
    "segmentation fault of the worker": "{{ 11 | kill_parent }}",
    "SIGKILL of the worker": "{{ 9 | kill_parent }}",
    "endless template": "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}",
    "greedy template": "{{ 'x' * 10**13 }}",
}
DEATHS = {"segmentation fault of the worker": 1, "SIGKILL of the worker": 1}
"""Workers that die of it; of the others none does."""
CONNECTIONS = 5
PREFETCH = 2 * CONNECTIONS
"""RabbitMQ may lose the last acknowledgements of a dying worker: at most this many jobs come again."""


def poison(folder: Path, body: str) -> Path:
    """Write a template that does it."""
    (folder / "poison").mkdir(parents=True)
    for name in ("subject.txt", "body.txt", "body.html"):
        (folder / "poison" / name).write_text("{{ otp }}" if name != "body.txt" else body)
    return folder


@pytest.mark.parametrize("name", POISONS)
async def test_it_kills_once_at_most_and_its_neighbours_go_on(stage: Stage, name: str) -> None:
    templates = poison(stage.folder / "templates", POISONS[name])
    ledger = Ledger(stage)
    changes = {"TEMPLATES_DIR": str(templates)}
    if name in DEATHS:
        # the new worker composes a redelivered job in a new interpreter, which needs the filters as well
        (stage.folder / "sitecustomize.py").write_text(KILL)
        changes["PYTHONPATH"] = str(stage.folder)
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS), PREFETCH_COUNT=str(PREFETCH), **changes)
    if name not in DEATHS:
        worker.folder.mkdir()
        (worker.folder / "poisoned.py").write_text(f"{KILL}from otp_stream.app import app\n")
        worker.app = "poisoned:app"
    await worker.start()
    await ledger.publish(40)
    await ledger.publish(1, metadata={"template": "poison"})
    await ledger.publish(40)
    deaths = 0

    async def done() -> bool:
        nonlocal deaths, worker
        assert worker.process is not None
        if worker.process.returncode is not None:
            deaths += 1
            await worker.start(ready=False)
        await ledger.read_dead_letters()
        return not ledger.lost

    await until(done, "end of all jobs", 60)
    ledger.fault_ended()
    row = ledger.row(f"poison: {name}")
    assert (row.lost, ledger.reasons) == (0, {"crashed": 1})
    assert deaths == DEATHS.get(name, 0)
    assert row.duplicated <= deaths * PREFETCH
    assert ledger.died["job40"][0] == "crashed"
