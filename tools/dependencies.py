"""What the image contains from others: read from requirements.txt, with the licences of the installed packages."""

import re
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
_CLASSIFIERS = {"License :: OSI Approved :: MIT License": "MIT"}
_STATED_OTHERWISE = {
    "jinja2": "BSD-3-Clause",  # only a classifier, which does not say which BSD licence
    "protobuf": "BSD-3-Clause",  # "3-Clause BSD License"
    "shellingham": "ISC",  # "ISC License"
    "uvloop": "MIT OR Apache-2.0",  # two classifiers, and a file of each licence
}
"""Licences that the package does not state as SPDX identifiers, read in its licence file."""


class Package(NamedTuple):
    """A package of the image: name, version, licence (SPDX expression), SHA-256 of its files, who requires it."""

    name: str
    version: str
    licence: str
    hashes: list[str]
    required_by: list[str]


def packages() -> list[Package]:
    """Return every package that requirements.txt installs in the image, by name."""
    return [
        Package(name, version, licence(name), hashes, required_by)
        for name, version, hashes, required_by in _locked((ROOT / "requirements.txt").read_text())
    ]


def licence(name: str) -> str:
    """Return the licence of an installed package as an SPDX expression, or what it states instead."""
    found = metadata(name)
    classifiers = (_CLASSIFIERS[text] for text in found.get_all("Classifier", ()) if text in _CLASSIFIERS)
    stated = found.get("License-Expression") or _STATED_OTHERWISE.get(name) or found.get("License")
    return stated or next(classifiers, "")


def _locked(text: str) -> Iterator[tuple[str, str, list[str], list[str]]]:
    environment = _image_environment()
    for entry in re.split(r"\n(?=\w)", text.strip()):
        requirement = Requirement(re.split(r" \\\n", entry)[0])
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        (version,) = (specifier.version for specifier in requirement.specifier)
        comments = " ".join(re.findall(r"# +(?:via *)?(.*)", entry))
        required_by = comments.replace("(pyproject.toml)", "").split()
        yield requirement.name, version, sorted(re.findall(r"sha256:(\w+)", entry)), required_by


def _image_environment() -> dict[str, str]:
    """Return what environment markers see in the image."""
    version = re.search(r"^FROM python:(\d+\.\d+)(\.\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert version, "the Dockerfile names no version of Python"  # noqa: S101 - a fault of this repository
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": version[1] + version[2],
        "python_version": version[1],
        "sys_platform": "linux",
    }
