"""A worker with the restrictions of the container and the systemd unit, without Docker and systemd."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from conftest import Stage
from processes import SCRIPTS
from rabbitmq import until
from worker import job

_USER = "10001"
_CONFINE = """
set -e
private=$1 python=$2 holder=$3; shift 3
mount --make-rprivate /
if [ "$private" ]; then  # this user may not enter the folder of Python
  mount --bind "$python" "$holder"
  mount -t tmpfs -o mode=755 tmpfs "$private"
  mkdir -p "$python"
  mount --bind "$holder" "$python"
  mount -o remount,bind,ro "$python"
  mount -o remount,ro "$private"
fi
mount --rbind / /mnt
awk '$5 ~ "^/mnt" && $5 !~ "^/mnt/(dev|proc)" {print $5}' /proc/self/mountinfo | while read -r folder; do
  mount -o remount,bind,ro "$folder" 2>/dev/null || true  # another mount may hide it
done
mount -t proc -o subset=pid,hidepid=invisible proc /mnt/proc
exec chroot /mnt setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \\
  --inh-caps=-all "$@"
"""
_NO_EXECUTABLE_MEMORY = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
assert ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What systemd's MemoryDenyWriteExecute does, in Linux 6.3 and later."""


def _private_folder(path: Path) -> Path | None:
    """Return the outermost folder of a path that only its owner may enter."""
    return next((it for it in reversed((path, *path.parents)) if not it.stat().st_mode & 0o001), None)


@pytest.fixture
def confinement() -> Iterator[list[str]]:
    """Return the words before a command that confine it."""
    allowed = os.geteuid() == 0 and shutil.which("setpriv") and shutil.which("unshare")
    if not allowed or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs root, and the right to mount")
    if _private_folder(SCRIPTS) or _private_folder(Path(__file__).parent):
        pytest.skip("the repository is in a folder that other users may not enter")
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 3):
        pytest.skip("needs Linux 6.3, which can deny executable memory to a process")
    python = Path(sys.base_prefix)
    holder = Path(mkdtemp(dir="/var/tmp"))
    words = (_CONFINE, "sh", str(_private_folder(python) or ""), str(python), str(holder))
    yield ["unshare", "--mount", "sh", "-c", *words]
    holder.rmdir()


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one process", "two processes"])
async def test_a_worker_without_privileges_and_without_a_file_that_it_can_write_does_its_work(
    stage: Stage, confinement: list[str], options: tuple[str, ...]
) -> None:
    for folder in ("/", "/tmp", "/var/tmp"):
        probe = await asyncio.create_subprocess_exec(
            *confinement, "touch", f"{folder}/otp-stream", stderr=asyncio.subprocess.PIPE
        )
        assert b"Read-only file system" in (await probe.communicate())[1]
    worker = stage.worker()
    worker.folder.mkdir(parents=True)
    python = str(SCRIPTS / "python")
    words = (*confinement, python, "-c", _NO_EXECUTABLE_MEMORY, python, str(SCRIPTS / "faststream"), "run", worker.app)
    with worker.log_path.open("ab") as log:
        worker.process = await asyncio.create_subprocess_exec(
            *words, "--host", "127.0.0.1", "--port", str(worker.port), *options, cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"} | worker.env, stdout=log, stderr=log,
        )  # fmt: skip
    await worker.wait_ready(60)
    process = Path("/proc", str(worker.process.pid))
    state = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert set(state["Uid"].split()) == set(state["Gid"].split()) == {_USER}
    assert {state[f"Cap{it}"] for it in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert state["NoNewPrivs"] == "1"
    (root,) = (row.split() for row in (process / "mountinfo").read_text().splitlines() if row.split()[4] == "/")
    assert "ro" in root[5].split(",")
    stage.relay.then("rcpt", "451 4.3.0 later", to="later@example.com")
    await stage.rabbit.publish(job(), job("later@example.com"), b"malformed")

    async def sent() -> bool:
        return {it.recipient for it in stage.relay.accepted} == {"user@example.com", "later@example.com"}

    await until(sent, "mails")
    await stage.rabbit.dead()
    assert (await worker.get("/metrics"))[0] == 200
    assert (await worker.health())["memoryUsage"]["rss"] > 0
    assert await worker.stop() in {0, -15}  # docs/operations.md: that of the signal, but 0 with --workers
    for text in ("Errno", "Permission denied", "Read-only file system", "not permitted", "Traceback"):
        assert text not in worker.log
