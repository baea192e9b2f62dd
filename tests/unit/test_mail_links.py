"""Templates cannot print other files of the machine into an e-mail, by a link or by a path."""

import json
import os
from pathlib import Path

import pytest
from mails import job, new_composer
from template_folders import found, write

from otp_stream.core.mail import ComposeError
from otp_stream.core.otp_job import OtpJob
from otp_stream.mail import inlined
from otp_stream.mail import page as page_module
from otp_stream.mail.templates import TemplateError, Templates

SECRET = "smtp-password-0815"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path / "secret"


@pytest.mark.parametrize("name", ["body.txt", "body.html", "subject.txt"])
def test_a_link_to_a_file_outside_the_folder_is_refused(name: str, tmp_path: Path, secret: Path) -> None:
    folder = write(tmp_path / "templates")
    (folder / "mine" / name).unlink()
    (folder / "mine" / name).symlink_to(secret)
    with pytest.raises(TemplateError, match=f"mine/{name} is a link to a file outside") as caught:
        Templates(folder, "en")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["mine/part.txt", "locales/de.po"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_becomes_a_link_or_pipe_while_it_is_read_is_refused(
    name: str, kind: str, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "templates", body_txt="{{ otp }}{% include 'mine/part.txt' %}")
    (folder / "locales").mkdir()
    (folder / "locales/de.po").write_text("")
    (folder / "mine/part.txt").write_text("part")
    file, opened = folder / name, os.open

    def changed(path: Path, flags: int) -> int:
        if path == file:
            path.unlink()
            path.symlink_to(secret) if kind == "link" else os.mkfifo(path)
        return opened(path, flags)

    monkeypatch.setattr("otp_stream.mail.folder_files.os.open", changed)
    with pytest.raises(TemplateError, match=f"{name} is (a link to a file outside|not a file)") as caught:
        Templates(folder, "en")
    assert SECRET not in str(caught.value)


def test_a_linked_folder_outside_is_refused(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", "other")
    folder = write(tmp_path / "templates")
    (folder / "other").symlink_to(outside / "other")
    with pytest.raises(TemplateError, match=r"other/\w+.\w+ is a link to a file outside"):
        Templates(folder, "en")


@pytest.mark.parametrize("include", ["'mine/{}'", "'mine/' ~ ('{}' if otp else '')"], ids=["constant", "computed"])
@pytest.mark.parametrize("target", ["secret", "/proc/self/environ"])
def test_an_included_link_is_refused(include: str, target: str, tmp_path: Path, secret: Path) -> None:
    code = f"{{% include {include.format('part.txt')} ignore missing %}}"
    folder = write(tmp_path / "templates", body_txt="{{ otp }}" + code)
    (folder / "mine" / "part.txt").symlink_to(secret if target == "secret" else target)
    refused = "mine/part.txt is a link to a file outside|uses something that templates may not use"
    with pytest.raises((TemplateError, ComposeError), match=refused) as caught:
        Templates(folder, "en").find("mine", None).render({"otp": "123456"})
    assert SECRET not in str(caught.value)
    assert "PATH=" not in str(caught.value)


@pytest.mark.parametrize("path", ["../secret", "mine/../../secret", "{secret}", "built-in/../../secret", "..\\secret"])
def test_no_path_leaves_the_folder(path: str, tmp_path: Path, secret: Path) -> None:
    folder = write(tmp_path / "templates", body_txt="{{ otp }}{% include name %}")
    template = Templates(folder, "en").find("mine", None)
    with pytest.raises(ComposeError, match=r"Templates?NotFound") as caught:
        template.render({"otp": "123456", "name": path.format(secret=secret)})
    assert SECRET not in str(caught.value)


def test_a_linked_catalogue_is_refused_and_not_quoted(tmp_path: Path, secret: Path) -> None:
    folder = write(tmp_path / "templates")
    (folder / "locales").mkdir()
    (folder / "locales" / "de.po").symlink_to(secret)
    with pytest.raises(TemplateError, match=r"locales/de.po is a link to a file outside") as caught:
        Templates(folder, "en")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["mine/body.txt", "locales/de.po"])
def test_a_huge_file_is_refused_unread(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "templates")
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("wb") as file:
        file.truncate(100 << 30)  # of nothing: reading it would take all memory
    with pytest.raises(TemplateError, match=f"{name} is larger than 1 MiB"):
        Templates(folder, "en")


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "templates" / "..v1").parent
    (folder / "..data").symlink_to("..v1")
    (folder / "mine").symlink_to("..data/mine")
    (tmp_path / "mounted").symlink_to(folder)
    assert Templates(tmp_path / "mounted", "en").find("mine", None)


def test_lint_names_the_link(tmp_path: Path, secret: Path) -> None:
    folder = write(tmp_path / "templates")
    (folder / "mine" / "body.txt").unlink()
    (folder / "mine" / "body.txt").symlink_to(secret)
    assert any("is a link to a file outside" in it.text for it in found(folder))


@pytest.mark.parametrize("name", ["../secret", "mine/body.txt", "/etc/passwd", "built-in/otp", "..", "otp\0"])
def test_no_name_in_a_job_is_a_path(name: str) -> None:
    body = {"email": "user@example.com", "otp": "123456", "metadata": {"template": name, "locale": name}}
    metadata = OtpJob.from_bytes(json.dumps(body).encode()).metadata
    assert not {"/", ".", "\\", "\0"} & {*metadata.template, *(metadata.locale or "")}


def test_a_subject_with_line_breaks_is_one_header(tmp_path: Path) -> None:
    folder = write(tmp_path / "templates", "otp", subject_txt="Your code\r\nBcc: mallory@example.com\nX-Other: 1")
    head, _, _ = new_composer(folder).compose(job()).content.partition(b"\r\n\r\n")
    assert b"\r\nSubject: Your code Bcc: mallory@example.com X-Other: 1\r\n" in head
    assert b"\nBcc" not in head


@pytest.mark.parametrize("url", ["{file}", "file://{file}"])
def test_no_style_sheet_of_another_file_is_read(url: str, tmp_path: Path) -> None:
    (tmp_path / "other.css").write_text("p { color: #0a1b2c }")
    href = url.format(file=tmp_path / "other.css")
    page = f'<html><head><link rel="stylesheet" href="{href}"><style>b {{ color: red }}</style></head><p>a<b>c</b></p>'
    for module in (inlined, page_module):
        assert "0a1b2c" not in module._INLINER.inline(page)
