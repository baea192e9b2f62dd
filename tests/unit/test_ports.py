import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import rabbitmq

_KEEPS_A_PORT = "import sys; import rabbitmq; print(rabbitmq.free_port(), flush=True); sys.stdin.read()"


def test_runs_on_one_machine_at_the_same_time_take_their_ports_from_different_blocks() -> None:
    ports: list[int] = []
    with ExitStack() as stack:
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-c", _KEEPS_A_PORT], cwd=Path(rabbitmq.__file__).parent, text=True,
                env={**os.environ, "PYTEST_XDIST_WORKER": "gw1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.enter_context(process)
            assert process.stdout is not None
            ports.append(int(process.stdout.readline()))
    assert len({port // 1_000 for port in ports}) == 3
