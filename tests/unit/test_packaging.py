"""What is copied or packaged from the repository includes what the code reads."""

import tomllib
from pathlib import Path

from otp_stream.mail.templates import BUILT_IN

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_mutation_run_and_the_wheel_include_the_built_in_templates() -> None:
    folder = BUILT_IN.relative_to(ROOT).as_posix()
    assert folder in PROJECT["tool"]["mutmut"]["also_copy"]
    assert folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
