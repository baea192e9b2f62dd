"""The systemd unit, as systemd reads it. It does not need to run."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/otp-stream.service"
_MAX_EXPOSURE = 1.5
"""Versions of systemd differ by 0.1."""


def systemd_analyze(*words: str) -> str:
    """Run it. Returns its output."""
    done = subprocess.run(["systemd-analyze", "--no-pager", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_unit_has_a_low_exposure_which_the_documents_state() -> None:
    found = systemd_analyze("security", "--offline=true", str(UNIT), f"--threshold={_MAX_EXPOSURE * 10:.0f}")
    exposure = re.search(r"Overall exposure level for otp-stream.service: ([0-9.]+)", found)
    assert exposure is not None, found
    assert float(exposure[1]) < _MAX_EXPOSURE
    assert f"an exposure below {_MAX_EXPOSURE} " in (ROOT / "docs/operations.md").read_text().replace("|", "")
    assert f"is below {_MAX_EXPOSURE}.\n" in UNIT.read_text()


def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    # the worker is not installed here
    copy.write_text(re.sub(r"(?m)^ExecStart=.*$", "ExecStart=/bin/true", UNIT.read_text()))
    assert systemd_analyze("verify", "--man=no", str(copy)) == ""
