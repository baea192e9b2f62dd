"""`otp-stream check` reports files with secrets that others can read or change."""

import os
from pathlib import Path

import pytest
from cli import here

from otp_stream.checks.file_permissions import check_file_permissions
from otp_stream.cli import demo
from otp_stream.cli.output_files import replaced_file
from otp_stream.core.check_result import CheckResult
from otp_stream.settings import files_with_secrets, load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("SMTP_PASS_FILE", "SEALING_KEYS_FILE", "SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    # other users can open the folders of pytest only in this test
    monkeypatch.setattr("otp_stream.checks.file_permissions.S_IXOTH", -1)
    return tmp_path


def results(*tenants_files: Path) -> list[CheckResult]:
    found = list[CheckResult]()
    check_file_permissions([*files_with_secrets(load(worker=False)[0]), *tenants_files], found.append)
    return found


def secret(path: Path, mode: int, content: str = "x8Jq2mZp0Vw4") -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def test_files_that_others_can_read_are_named_with_the_fix(folder: Path) -> None:
    tokens = secret(folder / "tokens.toml", 0o644, "[tokens]\n")
    of_a_tenant, own = secret(folder / "shop", 0o604), secret(folder / "smtp", 0o640)
    secret(folder / ".env", 0o644, f"HTTP_TOKENS_FILE={tokens}\nSMTP_PASS_FILE={own}\n")
    (found,) = results(of_a_tenant)
    assert found.level == "warning"
    assert found.text == f"every user of this machine can read secrets in .env, {of_a_tenant}, {tokens}"
    assert found.fix.startswith(f"chmod o= .env {of_a_tenant} {tokens}")


def test_files_that_others_can_change_are_named_with_the_fix(folder: Path) -> None:
    own = secret(folder / "smtp", 0o620)
    foreign = secret(folder / "shop", 0o600)
    os.chown(foreign, 65_534, -1) if os.geteuid() == 0 else foreign.chmod(0o602)
    secret(folder / ".env", 0o600, f"SMTP_PASS_FILE={own}\n")
    (found,) = results(foreign)
    assert found.text.startswith(f"other users of this machine can change {foreign}, {own}, and so redirect codes")
    assert found.fix.endswith(f"chmod go-w {foreign} {own}")


def test_private_files_and_files_in_private_folders_are_fine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret(folder / ".env", 0o600)
    assert results() == []
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    folder.chmod(0o700)
    secret(folder / ".env", 0o644)
    assert results() == []


def test_the_demo_closes_the_file_to_which_it_adds_a_key(folder: Path) -> None:
    env = secret(folder / ".env", 0o644, "BRAND_NAME=Example")
    demo._keep_secret_key()
    assert env.stat().st_mode & 0o777 == 0o600
    assert "SECRET_KEY=" in env.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["asyncapi", "--out", "{link}"],
        ["templates", "preview", "otp", "--out", "{link}"],
        ["sealing", "new", "--add-to", "{link}"],
        ["sealing", "promote", "{link}"],
        ["templates", "copy", "otp", "--to", "{folder}", "--force"],
    ],
    ids=["asyncapi", "preview", "add-to", "promote", "copy"],
)
def test_no_command_writes_through_a_link(words: list[str], folder: Path) -> None:
    keys = here(folder, "sealing", "new").out
    other, link = secret(folder / "other", 0o600, keys), folder / "otp" / "body.txt"
    link.parent.mkdir()
    link.symlink_to(other)
    ran = here(folder, *(it.format(link=link, folder=folder) for it in words))
    assert ran.code, ran
    assert "is a link" in " ".join(ran.out.split())
    assert other.read_text() == keys
    assert link.is_symlink()


def test_an_export_follows_no_link(folder: Path) -> None:
    other, link = secret(folder / "other", 0o600, "precious"), folder / "export.jsonl"
    link.symlink_to(other)
    with pytest.raises(OSError, match="is a link"), replaced_file(link):
        pass
    assert other.read_text() == "precious"
    assert link.is_symlink()


def test_a_file_that_becomes_a_link_leads_to_no_other_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, link = secret(folder / "other", 0o600, "kept"), folder / "out"
    link.symlink_to(other)
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)  # it was none a moment before
    with replaced_file(link) as file:
        file.write("new")
    assert other.read_text() == "kept"
    assert link.read_text() == "new"
