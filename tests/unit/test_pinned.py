"""What the repository fetches from elsewhere is pinned: the same commit fetches the same bytes."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted(ROOT.glob("requirements*.txt"))
PINNED_IMAGE = re.compile(r"[\w./-]+:v?\d+(\.\d+)+(-[\w.]+)*@sha256:[0-9a-f]{64}")


def images() -> list[str]:
    """Return the images that others build, from each file that names images."""
    dockerfile = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    deployed = re.findall(
        r"\bimage:\s*(\S+)", "".join(file.read_text() for file in (ROOT / "deploy/kubernetes").rglob("*.yaml"))
    )
    names = [*dockerfile, *(service["image"] for service in compose if "image" in service), *deployed]
    return [name for name in names if name.split(":")[0] != "otp-stream"]


def pins(lock: Path) -> dict[str, tuple[str, int]]:
    """Return the version and the number of hashes of each package in a lock file."""
    entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", lock.read_text(), flags=re.MULTILINE).strip())
    found = {}
    for entry in entries:
        text, *hashes = entry.replace("\\\n", "").split("--hash=sha256:")
        requirement = Requirement(text)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", entry
        found[requirement.name] = (specifier.version, len(hashes))
    return found


def test_every_image_has_an_exact_version_and_a_digest() -> None:
    assert len(images()) == 8
    assert [image for image in images() if not PINNED_IMAGE.fullmatch(image)] == []


def test_the_image_is_built_and_run_on_the_same_base() -> None:
    assert len({image for image in images() if image.startswith("python:")}) == 1


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_file_has_an_exact_version_and_hashes_for_every_package(lock: Path) -> None:
    assert [name for name, (_, hashes) in pins(lock).items() if not hashes] == []


def test_lock_files_agree_on_every_version() -> None:
    versions: dict[str, dict[str, str]] = {}
    for lock in LOCKS:
        for name, (version, _) in pins(lock).items():
            versions.setdefault(name, {})[lock.name] = version
    assert {name: found for name, found in versions.items() if len(set(found.values())) > 1} == {}


def test_every_group_of_dependencies_has_a_lock_file() -> None:
    groups = {"", *(f"-{group}" for group in PROJECT["dependency-groups"])}
    assert {lock.name for lock in LOCKS} == {f"requirements{group}.txt" for group in groups}


def test_the_build_backend_and_its_plugin_are_pinned_to_the_locked_versions() -> None:
    locked = pins(ROOT / "requirements-build.txt")
    requires = PROJECT["build-system"]["requires"]
    assert {Requirement(text).name for text in requires} == {"hatchling", "hatch-fancy-pypi-readme"}
    for text in requires:
        assert text in PROJECT["dependency-groups"]["build"]
        assert text == f"{Requirement(text).name}=={locked[Requirement(text).name][0]}"


@pytest.mark.parametrize("file", ["Dockerfile", "Makefile"])
def test_pip_installs_nothing_that_has_no_hash_but_this_project(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", " ")
    installs = re.findall(r"(?:\$\(PIP\)|(?<!-m )pip (?:install|wheel))( [^&\n]*)", text)
    assert len(installs) >= 3
    assert [words for words in installs if "--require-hashes -r" not in words and "--no-deps" not in words] == []
    builds = [words for words in installs if re.search(r" \.(\s|$)", words)]
    assert builds
    assert [words for words in builds if "--no-build-isolation" not in words] == []
