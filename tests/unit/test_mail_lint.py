"""What lint says of templates: each rule finds what it is for, and ours break none."""

from pathlib import Path
from typing import Any

import pytest

from otp_stream.mail.lint import Finding, lint

GOOD = {
    "subject.txt": "Your code",
    "body.txt": "Your code: {{ otp }}",
    "body.html": '<html lang="en"><body>Your code: <b>{{ otp }}</b></body></html>',
}

PAGE = '<html lang="en">{{ otp }}'


def write(root: Path, name: str = "mine", **files: str) -> Path:
    for file, content in (GOOD | {it.replace("_", "."): text for it, text in files.items()}).items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / file).write_text(content)
    return root


def found(root: Path | None, **metadata: Any) -> list[Finding]:
    return lint(root, "en", metadata)


def test_ours_have_no_fault() -> None:
    assert found(None) == []


def test_a_template_without_a_fault_has_none(tmp_path: Path) -> None:
    assert found(write(tmp_path)) == []


@pytest.mark.parametrize(
    ("files", "file", "level", "told"),
    [
        ({"subject_txt": " \n"}, "subject.txt", "error", "is empty"),
        ({"subject_txt": "one\ntwo"}, "subject.txt", "warning", "has a line break"),
        ({"subject_txt": "x" * 79}, "subject.txt", "warning", "has 79 characters"),
        ({"subject_txt": "{{ otp }} is your code"}, "subject.txt", "warning", "lock screens show it too"),
        ({"body_txt": "Your code"}, "body.txt", "error", "does not show the code;"),
        ({"body_txt": "{{ otp[:3] }} {{ otp[3:] }}"}, "body.txt", "error", "as one word"),
        ({"body_txt": "code-{{ otp }}"}, "body.txt", "error", "as one word"),
        ({"body_txt": "{{ otp }}, once more: {{ otp }}"}, "body.txt", "warning", "shows the code 2 times"),
        ({"body_txt": "{{ otp }} https://example.com/"}, "body.txt", "warning", "has a link"),
        ({"body_txt": "Hello {{ userName }}, {{ otp }}"}, "body.txt", "error", "None for a job without userName"),
        ({"body_txt": "{{ userName.title() }} {{ otp }}"}, "body.txt", "error", "Error, for a job without userName,"),
        ({"body_html": PAGE + "<script>a</script>"}, "body.html", "error", "has a <script>"),
        ({"body_html": "<html lang=en>Code"}, "body.html", "error", "does not show the code;"),
        ({"body_html": "<html lang=en>{% for it in otp %}<i>{{ it }}</i>{% endfor %}"}, "body.html", "warning", "word"),
        ({"body_html": PAGE + "<img src='http://a.b/c'>"}, "body.html", "warning", "(<img src>)"),
        ({"body_html": PAGE + "<style>@import '//a.b/c';</style>"}, "body.html", "warning", "(<style>)"),
        ({"body_html": PAGE + "<p style='x:url(https://a.b)'>"}, "body.html", "warning", "style of <p>"),
        ({"body_html": PAGE + "<a href='https://a.b/'>x</a>"}, "body.html", "warning", "has a link"),
        ({"body_html": PAGE + "<p>x</p>" * 13_000}, "body.html", "warning", "has 104 kB; Gmail"),
        ({"body_html": "<p>{{ otp }}"}, "body.html", "warning", "has no language"),
        ({"body_html": "<html lang=ar>{{ otp }}"}, "body.html", "warning", 'write <html dir="rtl">'),
    ],
)  # fmt: skip
def test_each_rule_finds_what_it_is_for(
    tmp_path: Path, files: dict[str, str], file: str, level: str, told: str
) -> None:
    (it,) = [one for one in found(write(tmp_path, **files)) if told in one.text]
    assert (it.file, it.level) == (f"mine/{file}", level)


def test_all_unknown_names_are_found_with_file_and_line_wherever_they_are_reached(tmp_path: Path) -> None:
    text = (
        "{{ otp }}\n{{ team }}\n{% if userName %}{{ first }}{% else %}\n{{ second }}{% endif %}{{ us | default('') }}"
    )
    root = write(tmp_path, body_txt=text)
    assert [(it.file, it.line, it.text.partition(" is")[0]) for it in found(root)] == [
        ("mine/body.txt", 2, "'team'"),
        ("mine/body.txt", 3, "'first'"),
        ("mine/body.txt", 4, "'second'"),
    ]
    assert found(root, team="A", first="B", second="C") == []


def test_every_file_that_cannot_be_compiled_is_told_and_others_are_looked_through(tmp_path: Path) -> None:
    write(tmp_path, "one", body_txt="\n{% if %}")
    write(tmp_path, "two", body_html="{{ otp")
    write(tmp_path, "three", body_txt="no code")
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "subject.txt").write_text("s")
    assert [(it.file, it.line, it.text.partition(";")[0][:21]) for it in found(tmp_path)] == [
        ("four/body.txt", None, "is missing"),
        ("one/body.txt", 2, "Expected an expressio"),
        ("three/body.txt", None, "does not show the cod"),
        ("two/body.html", 1, "unexpected end of tem"),
    ]


def test_a_language_whose_html_says_another_one_is_told(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path / "mine", "fr-CA", body_txt="{{ otp }}")
    assert [(it.file, it.text) for it in found(tmp_path)] == [
        ("mine/fr-CA/body.html", 'says lang="en" in the mail for fr-ca')
    ]
