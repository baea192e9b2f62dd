"""`otp-stream templates copy`, `new` and the errors of `preview --png`, as a person uses them."""

import asyncio
import os
from pathlib import Path

import pytest
from cli import here
from processes import start

from otp_stream.mail.templates import BUILT_IN

FILES = {"subject.txt", "body.txt", "body.html"}


def files(folder: Path) -> set[str]:
    return {it.relative_to(folder).as_posix() for it in folder.rglob("*") if it.is_file()}


def test_a_copied_template_is_the_built_in_one_and_the_next_steps_are_printed(tmp_path: Path) -> None:
    ran = here(tmp_path, "templates", "copy", "otp", "--to", "my mails")
    own = tmp_path / "my mails"
    assert ran.code == 0, ran.out
    assert files(own) == {f"otp/{it}" for it in FILES}
    assert (own / "otp/body.html").read_bytes() == (BUILT_IN / "otp/body.html").read_bytes()
    assert f"export TEMPLATES_DIR='{own}'" in ran.out
    assert "otp-stream templates preview otp --png otp.png" in ran.out
    listed = here(tmp_path, "templates", "list", TEMPLATES_DIR=str(own)).out
    assert "otp *" in listed
    mail = here(tmp_path, "templates", "preview", "otp").out
    assert (
        here(tmp_path, "templates", "preview", "otp", TEMPLATES_DIR=str(own)).out.splitlines()[0]
        == mail.splitlines()[0]
    )


def test_single_files_the_layout_and_a_catalogue_are_copied_to_the_configured_folder(tmp_path: Path) -> None:
    own = tmp_path / "own"  # does not exist yet
    ran = here(tmp_path, "templates", "copy", "welcome", "subject.txt", TEMPLATES_DIR=str(own))
    assert (ran.code, files(own)) == (0, {"welcome/subject.txt"})
    assert "export" not in ran.out
    ran = here(tmp_path, "templates", "copy", "--layout", "--locale", "pt-br", "--to", str(own))
    assert ran.code == 0, ran.out
    shared = {"layout.html", "layout.txt", "code.html", "code.txt"}
    assert files(own) == {"welcome/subject.txt", "locales/pt_BR.po", *shared}
    assert "otp-stream templates preview otp --locale pt-br --png otp.png" in ran.out


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "otp").mkdir(parents=True)
    (own / "otp" / "body.html").write_text("mine")
    ran = here(tmp_path, "templates", "copy", "otp", "--to", str(own))
    assert (ran.code, "already has otp/body.html; --force replaces them" in ran.out) == (1, True), ran.out
    assert files(own) == {"otp/body.html"}
    assert (own / "otp" / "body.html").read_text() == "mine"
    assert here(tmp_path, "templates", "copy", "otp", "--force", "--to", str(own)).code == 0
    assert (own / "otp" / "body.html").read_bytes() == (BUILT_IN / "otp/body.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("copy",), 2, "NAME: give a template (otp, password_reset, welcome), --layout or --locale"),
        (("copy", "otp"), 2, "--to: give a folder, such as --to ./templates, or set TEMPLATES_DIR"),
        (("copy", "../x", "--to", "o"), 2, "NAME: there is no built-in template ../x; known: otp, "),
        (("copy", "otp", "x.html", "--to", "o"), 2, "FILE: x.html is none of subject.txt, body.txt, body.html"),
        (("copy", "--locale", "xx", "--to", "o"), 2, "--locale: xx is not a known language; write a code such as sv"),
        (("copy", "otp", "--to", str(BUILT_IN)), 2, "--to: these are the built-in files; give another folder"),
        (("copy", "otp", "--to", "file/x"), 1, "cannot be written (Not a directory)"),
        (("new", "otp", "--to", "o"), 2, "NAME: otp is built in; otp-stream templates copy otp copies its files"),
        (("new", "locales", "--to", "o"), 2, "NAME: must consist of"),
        (("new", "../x", "--to", "o"), 2, "NAME: must consist of"),
        (("new", "invite"), 2, "--to: give a folder"),
    ],
)
def test_what_cannot_be_copied_or_created_is_reported_with_the_fix(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "file").write_text("")
    ran = here(tmp_path, "templates", *arguments)
    assert (ran.code, message in ran.out) == (code, True), ran.out
    assert files(tmp_path) == {"file"}


@pytest.mark.parametrize("kind", [(), ("--notice",)])
def test_a_new_template_passes_lint_and_can_be_sent(tmp_path: Path, kind: tuple[str, ...]) -> None:
    own = {"TEMPLATES_DIR": str(tmp_path / "own"), "BRAND_NAME": "Acme"}
    ran = here(tmp_path, "templates", "new", "invite", *kind, **own)
    assert ran.code == 0, ran.out
    assert files(tmp_path / "own") == {f"invite/{it}" for it in FILES}
    assert 'Producers select it with "metadata": {"template": "invite"}.' in ran.out
    checked = here(tmp_path, "templates", "lint", **own)
    assert checked.code == 0, checked.out
    mail = here(tmp_path, "templates", "preview", "invite", **own)
    assert mail.code == 0, mail.out
    assert "Acme" in mail.out.splitlines()[0]
    html = here(tmp_path, "templates", "preview", "invite", "--format", "html", **own).out
    assert ('class="code' in html) == (not kind)
    assert ("https://example.com/sign-in?code=123456" in mail.out) == bool(kind)
    again = here(tmp_path, "templates", "new", "invite", **own)
    assert (again.code, "nothing was created: " in again.out) == (1, True), again.out


def test_without_a_browser_the_error_names_the_fix(tmp_path: Path) -> None:
    command = ("templates", "preview", "otp", "--png", "otp.png")
    fix = "install one, or name it with --browser PATH"
    ran = here(tmp_path, *command, PATH=str(tmp_path))
    assert (ran.code, f"--png: there is no Chromium or Chrome in PATH; {fix}" in ran.out) == (1, True), ran.out
    ran = here(tmp_path, *command, "--browser", "no-browser")
    assert (ran.code, f"--png: no-browser is not a program; {fix}" in ran.out) == (1, True), ran.out
    ran = here(tmp_path, *command, "--browser", "false")
    assert (ran.code, "exited with status 1: no message" in ran.out) == (1, True), ran.out
    ran = here(tmp_path, *command, "--browser", "true")
    assert (ran.code, "does not show the e-mail; try another browser with --browser" in ran.out) == (1, True), ran.out
    broken = tmp_path / "broken"
    broken.write_text("no program\x00")
    broken.chmod(0o755)
    ran = here(tmp_path, *command, "--browser", str(broken))
    assert (ran.code, "cannot be started" in ran.out) == (1, True), ran.out
    assert not (tmp_path / "otp.png").exists()


def test_a_browser_that_does_not_end_or_takes_no_screenshot_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "browser"
    program.write_text("#!/bin/sh\nfor it; do [ $it = --dump-dom ] && echo '<title>700</title>'; done\nexit 0\n")
    program.chmod(0o755)
    command = ("templates", "preview", "otp", "--png", "otp.png", "--browser", str(program))
    ran = here(tmp_path, *command)
    assert (ran.code, "has written no screenshot" in ran.out) == (1, True), ran.out
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr("otp_stream.cli.screenshot._TIMEOUT_S", 0.2)
    ran = here(tmp_path, *command)
    assert (ran.code, "has not taken the screenshot within 0.2 s" in ran.out) == (1, True), ran.out


async def test_a_preview_controls_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "otp"
    folder.mkdir()
    (folder / "subject.txt").write_text("\x1b[31m {{ otp }}")
    (folder / "body.txt").write_text("{{ otp }}\x1b[2J\x1b]0;title\x07 \x9b31m")
    words = ("templates", "preview", "otp", "--format")
    for form in ("text", "eml"):
        terminal, end = os.openpty()
        env = {"PATH": os.environ["PATH"], "TEMPLATES_DIR": str(tmp_path)}
        output = Path(os.ttyname(end))
        process = await start("otp-stream", *words, form, folder=tmp_path, env=env, output=output)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        os.close(end)
        shown = b""
        while chunk := _read(terminal):
            shown += chunk
        os.close(terminal)
        assert b"123456" in shown
        assert not set(shown.decode()) & set("\x1b\x07\x9b")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux reports the end so
        return b""
