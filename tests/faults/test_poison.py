"""A job that kills whoever composes it: it may do so once, its neighbours go on, and then it lies in `otp.dead`."""

from pathlib import Path

import pytest
from conftest import Stage
from ledger import Ledger
from rabbitmq import until

KILL = "{%% set os = cycler.__init__.__globals__.os %%}{{ os.kill(os.getpid(), %d) }}"
POISONS = {
    "segmentation fault": KILL % 11,
    "killed for want of memory": KILL % 9,
    "endless template": "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}",
    "greedy template": "{{ 'x' * 10**13 }}",
}
DEATHS = {"segmentation fault": 1, "killed for want of memory": 1}
"""Workers that die of it; of the others none does."""
CONNECTIONS = 5


def poison(folder: Path, body: str) -> Path:
    """Write a template that does it."""
    (folder / "poison").mkdir(parents=True)
    for name in ("subject.txt", "body.txt", "body.html"):
        (folder / "poison" / name).write_text("{{ otp }}" if name != "body.txt" else body)
    return folder


@pytest.mark.parametrize("name", POISONS)
async def test_it_kills_once_at_most_and_its_neighbours_go_on(stage: Stage, name: str) -> None:
    templates = poison(stage.folder / "templates", POISONS[name])
    ledger = Ledger(stage.rabbit, stage.relay)
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS), TEMPLATES_DIR=str(templates))
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
        await ledger.bury()
        return not ledger.lost

    await until(done, "end of all jobs", 60)
    ledger.mended()
    row = ledger.row(f"poison: {name}")
    assert (row.lost, ledger.reasons) == (0, {"crashed": 1})
    assert deaths == DEATHS.get(name, 0)
    assert row.duplicated <= deaths * 2 * CONNECTIONS
    assert ledger.died["job40"][0] == "crashed"
