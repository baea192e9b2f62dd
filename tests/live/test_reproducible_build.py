"""Each build of a commit makes the same wheel and source archive, byte for byte, so that hashes can be compared."""

import base64
import csv
import email
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from readme_renderer import markdown

ROOT = Path(__file__).parents[2]
EPOCH = 1_790_000_000  # SOURCE_DATE_EPOCH; an even second, because the times in a wheel have steps of two


def versioned_files() -> list[str]:
    """Return the path of each file under version control."""
    return list(filter(None, subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")))


def copy_of_the_repository(folder: Path, mode: int, modified: int) -> Path:
    """Copy every file under version control, with other permissions and times."""
    for name in versioned_files():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
        copy.chmod(mode)
        os.utime(copy, (modified, modified))
    return folder


def build(source: Path, umask: int, **env: str) -> tuple[Path, Path]:
    """Return the wheel and the source archive that are built there. The wheel is built from the source archive."""
    run_build(source, source / "dist", umask=umask, **env)
    (wheel,), (archive,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    return wheel, archive


def run_build(source: Path, out: Path, *options: str, umask: int = -1, **env: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", out, source],
        env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)} | env, umask=umask, check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Return what two builds made of the same files on two machines that differ in all that should not matter."""
    folder = tmp_path_factory.mktemp("builds")
    first = copy_of_the_repository(folder / "a", 0o600, 1_500_000_000)
    second = copy_of_the_repository(folder / "another" / "deeper" / "folder", 0o666, 1_600_000_001)
    return [
        build(first, 0o077, TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1"),
        build(second, 0o000, TZ="Asia/Tokyo", LC_ALL="C.UTF-8", PYTHONHASHSEED="2"),
    ]


def test_two_builds_make_the_same_wheel_and_the_same_source_archive(built: list[tuple[Path, Path]]) -> None:
    first, second = ([hashlib.sha256(file.read_bytes()).hexdigest() for file in files] for files in built)
    assert first == second


def test_the_source_archive_and_the_repository_make_the_same_wheel(
    built: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    from_archive, _ = built[0]
    run_build(from_archive.parents[1], tmp_path, "--wheel")
    assert (tmp_path / from_archive.name).read_bytes() == from_archive.read_bytes()


def test_the_source_archive_contains_every_versioned_file_and_no_other(built: list[tuple[Path, Path]]) -> None:
    _, file = built[0]
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == {*versioned_files(), "PKG-INFO"}


def test_an_index_page_shows_the_readme_with_links_to_the_documentation(built: list[tuple[Path, Path]]) -> None:
    with zipfile.ZipFile(built[0][0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    (site,) = (url.split(", ")[1] for url in metadata.get_all("Project-URL", ()) if url.startswith("Documentation"))
    page = markdown.render(metadata.get_payload(decode=True).decode())
    assert page is not None
    assert "mermaid" not in page
    links = [link for link in re.findall(r'(?:href|src)="([^"]*)"', page) if not link.startswith("#user-content-")]
    assert [link for link in links if "://" not in link] == []
    paths = {link.removeprefix(site).partition("#")[0].removesuffix("/") for link in links if link.startswith(site)}
    assert len(paths) > 20
    files = set(map(Path, versioned_files()))
    known = {path.as_posix() for file in files for path in (file, *file.parents)}
    pages = {file.with_suffix("").as_posix() for file in files if file.suffix == ".md"}
    assert paths - pages - known == {""}, "the home page is the README itself"


def test_the_record_of_the_wheel_lists_every_file_with_its_hash_and_size(built: list[tuple[Path, Path]]) -> None:
    with zipfile.ZipFile(built[0][0]) as wheel:
        (record,) = (name for name in wheel.namelist() if name.endswith(".dist-info/RECORD"))
        rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(wheel.read(record).decode()))}
        assert set(rows) == set(wheel.namelist())
        assert rows.pop(record) == ("", "")
        for name, row in rows.items():
            content = wheel.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert row == (f"sha256={digest}", str(len(content))), name


def test_a_wheel_has_the_time_of_the_release_and_normal_permissions(built: list[tuple[Path, Path]]) -> None:
    with zipfile.ZipFile(built[0][0]) as wheel:
        for file in wheel.infolist():
            assert file.date_time == time.gmtime(EPOCH)[:6], file.filename
            assert stat.S_IMODE(file.external_attr >> 16) == 0o644, file.filename
    with tarfile.open(built[0][1]) as archive:
        for entry in archive:
            assert (entry.mtime, entry.mode, entry.uname, entry.uid) == (EPOCH, 0o644, "", 0), entry.name


def test_no_path_of_the_machine_that_built_it_is_in_a_wheel(built: list[tuple[Path, Path]]) -> None:
    wheel_file, _ = built[1]
    folder = str(wheel_file.parents[1])
    with zipfile.ZipFile(wheel_file) as wheel:
        for name in wheel.namelist():
            content = wheel.read(name)
            assert folder.encode() not in content, name
            assert not name.endswith((".pyc", ".so")), name


def test_a_wheel_contains_the_licence_and_nothing_but_the_package(built: list[tuple[Path, Path]]) -> None:
    with zipfile.ZipFile(built[0][0]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"otp_stream"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_repository_contains_no_program_and_no_archive() -> None:
    binary = [name for name in versioned_files() if b"\0" in (ROOT / name).read_bytes()]
    assert {Path(name).suffix for name in binary} == {".webp"}
