"""Findings about templates: each rule finds its fault, and the built-in templates have none."""

from pathlib import Path

import pytest
from template_folders import GOOD, found, put, write

from otp_stream.mail.finding import error_finding
from otp_stream.mail.lint import lint_at_start
from otp_stream.mail.templates import TemplateError, Templates

PAGE = '<html lang="en">{{ otp }}'


def test_built_in_templates_have_no_findings() -> None:
    assert found(None) == []


def test_a_template_without_a_fault_has_none(tmp_path: Path) -> None:
    assert found(write(tmp_path)) == []


@pytest.mark.parametrize(
    ("files", "file", "level", "message"),
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
        ({"body_txt": "{{ otp }}{{ 1 // 0 }}"}, "body.txt", "error", "ZeroDivisionError"),
        ({"body_html": PAGE + "<script>a</script>"}, "body.html", "error", "has a <script>"),
        ({"body_html": "<html lang=en>Code"}, "body.html", "error", "does not show the code;"),
        ({"body_html": "<html lang=en>{% for it in otp %}<i>{{ it }}</i>{% endfor %}"}, "body.html", "warning", "word"),
        ({"body_html": PAGE + "<img src='http://a.b/c'>"}, "body.html", "warning", "(<img src>)"),
        ({"body_html": PAGE + "<style>@import '//a.b/c';</style>"}, "body.html", "warning", "(<style>)"),
        ({"body_html": PAGE + "<p style='x:url(https://a.b)'>"}, "body.html", "warning", "style of <p>"),
        ({"body_html": PAGE + "<a href='https://a.b/'>x</a>"}, "body.html", "warning", "has a link"),
        ({"body_html": PAGE + "<p>x</p>" * 13_000}, "body.html", "warning", "has 104 kB; Gmail"),
        ({"body_html": "<p>{{ otp }}"}, "body.html", "warning", "has no language"),
        ({"body_txt": "{{ otp }}"}, "body.txt", "warning", "does not show when the code expires"),
        ({"body_html": "<html lang=en><title>{{ validUntil }}</title>{{ otp }}"}, "body.html", "warning", "expires"),
        ({"body_html": "<html lang=ar>{{ otp }}"}, "body.html", "warning", 'write <html dir="rtl">'),
    ],
)  # fmt: skip
def test_each_rule_finds_what_it_is_for(
    tmp_path: Path, files: dict[str, str], file: str, level: str, message: str
) -> None:
    (it,) = [one for one in found(write(tmp_path, **files)) if message in one.text]
    assert (it.file, it.level) == (f"mine/{file}", level)


def test_all_unknown_names_are_found_with_file_and_line_wherever_they_are_reached(tmp_path: Path) -> None:
    text = (
        "{{ otp }}\n{{ team }}\n{% if userName %}{{ first }}{% else %}\n{{ second }}{% endif %}{{ us | default('') }}"
    )
    root = write(tmp_path, body_txt=text + "{{ validUntil }}")
    assert [(it.file, it.line, it.text.partition(" is")[0]) for it in found(root)] == [
        ("mine/body.txt", 2, "'team'"),
        ("mine/body.txt", 3, "'first'"),
        ("mine/body.txt", 4, "'second'"),
    ]
    assert found(root, team="A", first="B", second="C") == []


def test_every_file_that_cannot_be_compiled_is_reported_and_others_are_checked(tmp_path: Path) -> None:
    write(tmp_path, "one", body_txt="\n{% if %}")
    write(tmp_path, "two", body_html="{{ otp")
    write(tmp_path, "three", body_txt="no code {{ validUntil }}")
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "subject.txt").write_text("s")
    assert [(it.file, it.line, it.text.partition(";")[0][:21]) for it in found(tmp_path)] == [
        ("four/body.txt", None, "is missing"),
        ("one/body.txt", 2, "Expected an expressio"),
        ("three/body.txt", None, "does not show the cod"),
        ("two/body.html", 1, "unexpected end of tem"),
    ]


def test_a_language_whose_html_has_another_one_is_reported(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path / "mine", "fr-CA")
    assert [(it.file, it.text) for it in found(tmp_path)] == [
        ("mine/fr-CA/body.html", 'has lang="en", which is not the language of this e-mail; write lang="{{ lang }}"')
    ]


def places(root: Path) -> list[tuple[str, int | None, str]]:
    return [(it.file, it.line, it.level) for it in found(root)]


def texts(root: Path) -> str:
    return "\n".join(it.text for it in found(root))


def test_a_block_that_the_layout_does_not_have_is_named_with_those_that_it_has(tmp_path: Path) -> None:
    child = "{% extends 'layout.html' %}\n{% block intro %}Hi{% endblock %}\n{% block validty %}x{% endblock %}"
    put(tmp_path, otp__body_html=child)
    (it, *_) = [it for it in found(tmp_path) if "no block" in it.text]
    assert (it.file, it.line, it.level) == ("otp/body.html", 3, "error")
    assert it.text == (
        "layout.html has no block 'validty', so its content is never printed; did you mean validity? "
        "It has lang, title, preheader, content, heading, intro, validity, caution, footer"
    )


def test_blocks_in_blocks_and_layouts_in_layouts_are_known(tmp_path: Path) -> None:
    page = '<html lang="en">{% block page %}{% block a %}{% endblock %}{% endblock %}</html>'
    middle = "{% extends 'page.html' %}{% block a %}<p>{% block b %}{% endblock %}</p>{% endblock %}"
    child = "{% extends 'middle.html' %}\n{% set it = 1 %}\n{% block b %}{{ otp }} {{ validUntil }}{% endblock %}"
    put(tmp_path, page_html=page, middle_html=middle)
    assert found(write(tmp_path, body_html=child)) == []
    write(tmp_path, body_html=child + "\n\nlost\n{% if otp %}{% block c %}{% endblock %}{% endif %}")
    assert places(tmp_path) == [("mine/body.html", 5, "error"), ("mine/body.html", 6, "error")]
    assert "this text is never printed, because the file extends middle.html" in texts(tmp_path)
    assert "middle.html has no block 'c'" in texts(tmp_path)


def test_a_block_that_is_defined_twice_is_an_error_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, body_txt="{% block a %}{% endblock %}\n{% block a %}{% endblock %}")
    (it,) = found(tmp_path)
    assert (it.file, it.line, it.text) == (
        "mine/body.txt", 2, "block 'a' defined twice; remove one or rename it",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "missing"),
    [
        ("extends 'base.html'", "base.html"),
        ("include 'a.html'", "a.html"),
        ("include ['a.html', 'b.html']", "a.html or b.html"),
        ("from 'a.html' import x", "a.html"),
    ],
)
def test_a_file_that_does_not_exist_is_named_and_ends_the_start(tmp_path: Path, tag: str, missing: str) -> None:
    write(tmp_path, body_html=f"\n{{% {tag} %}}")
    (it,) = found(tmp_path)
    assert (it.file, it.line, it.level) == ("mine/body.html", 2, "error")
    assert f"there is no file {missing} in the templates' folder" in it.text
    with pytest.raises(TemplateError, match=r"mine/body\.html, line 2: there is no file"):
        Templates(tmp_path, "en")


@pytest.mark.parametrize("tag", ["include 'a.html' ignore missing", "include ['a.html', 'b.html']", "include name"])
def test_a_file_that_may_be_missing_is_no_error(tmp_path: Path, tag: str) -> None:
    put(tmp_path, b_html="<p>b</p>")
    write(tmp_path, body_html=GOOD["body.html"] + f"{{% if not userName %}}{{% {tag} %}}{{% endif %}}")
    book = Templates(tmp_path, "en")
    assert "mine" in book.names


@pytest.mark.parametrize(
    ("name", "level", "text"),
    [
        ("otp/body.htm", "error", "is not read; rename it to body.html"),
        ("otp/Body.html", "error", "rename it to body.html"),
        ("otp/subject.text", "error", "rename it to subject.txt"),
        ("otp/boddy.txt", "error", "rename it to body.txt"),
        ("otp/body.html.j2", "error", "rename it to body.html"),
        ("otp/body.de.html", "error", "rename it to de/body.html"),
        ("otp/de/bdy.txt", "error", "rename it to body.txt"),
        ("otp/footer.txt", "warning", "no template includes it"),
        ("otp/deutsch/body.txt", "error", "rename it to de"),
        ("otp/klingon/body.txt", "error", "after its code, such as de or de-AT"),
        ("otp/de/AT/body.txt", "error", "a regional language de-AT"),
        ("body.txt", "error", "move it to a template's folder, such as otp/body.txt"),
        ("Layout.html", "error", "rename it to layout.html"),
        ("my otp/body.txt", "error", "a template's name has"),
    ],
)
def test_a_file_that_is_not_read_is_named_with_the_name_that_it_should_have(
    tmp_path: Path, name: str, level: str, text: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    (it,) = found(tmp_path)
    assert it.level == level
    assert text in it.text
    assert name.startswith(it.file)


def test_files_that_no_one_takes_for_a_template_are_none(tmp_path: Path) -> None:
    write(tmp_path, body_html=GOOD["body.html"] + "{% include 'mine/parts/foot.html' %}")
    for name in ("README.md", ".hidden/body.htm", "mine/body.html~", "mine/notes.md", "mine/parts/foot.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert found(tmp_path) == []


def test_both_ways_to_write_a_language_are_read_and_a_file_in_both_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, body_html='<html lang="{{ locale or "en" }}">{{ otp }} {{ validUntil }}')
    put(tmp_path, **{"mine__fr-CA__body_txt": "fr {{ otp }} {{ validUntil }}", "mine__fr_CA__subject_txt": "Code fr"})
    assert found(tmp_path) == []
    template = Templates(tmp_path, "en").get("mine", "fr-ca")
    assert (template.subject.name, template.text.name) == ("mine/fr_CA/subject.txt", "mine/fr-CA/body.txt")
    put(tmp_path, mine__fr_CA__body_txt="other {{ otp }}")
    assert places(tmp_path) == [("mine/fr_CA/body.txt", None, "error")]


def test_a_folder_in_capitals_does_not_hide_the_built_in_translations_into_that_language(tmp_path: Path) -> None:
    put(tmp_path, otp__DE__subject_txt="Code")
    template = Templates(tmp_path, "en").get("otp", "de")
    assert (template.subject.name, template.text.name) == ("otp/DE/subject.txt", "otp/body.txt")
    assert template.language.tag == "de"


def test_a_misspelt_name_is_reported_with_the_one_that_was_meant(tmp_path: Path) -> None:
    text = "{{ otp }} {{ validUntil }}\n{{ opt }}\n{{ username | default('') }}\n"
    text += "{% if tenant == 'x' %}{{ otpp }}{% endif %}"
    root = write(tmp_path, body_txt=text)
    assert [(it.line, it.level, it.text.rpartition(" mean ")[2]) for it in found(root)] == [
        (2, "error", "otp?"),
        (3, "warning", "userName?"),
        (4, "warning", "otp?"),
    ]
    assert found(root, opt="1", username="x", otpp="y") == []


def test_a_worker_reports_what_it_can_see_without_rendering(tmp_path: Path) -> None:
    html = "{% extends 'layout.html' %}{% block expirey %}{% endblock %}"
    # it would take seconds to render, or kill the process
    text = "{{ otp }} {{ validUntil }}{{ team }}\n{{ opt }}{% for it in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"
    put(write(tmp_path, body_txt=text, body_html=html), mine__body_htm="x")
    assert [(it.file, it.line) for it in lint_at_start(tmp_path, "en")] == [
        ("mine/body.htm", None), ("mine/body.html", 1), ("mine/body.txt", 2),
    ]  # fmt: skip


def test_a_fault_of_a_shared_file_is_one_of_every_template_that_uses_it(tmp_path: Path) -> None:
    (tmp_path / "layout.html").write_text("{% include 'missing.html' %}")
    faults: list[TemplateError] = []
    book = Templates(tmp_path, "", faults)
    assert all(not book.languages(name) for name in book.names)
    assert len(faults) == len(book.names) * len({"", "en", *book.catalogs.by_locale})
    assert all("there is no file missing.html" in str(it) for it in faults)


def test_an_error_without_a_place_is_shown_as_it_is() -> None:
    assert error_finding(TemplateError("the disk is full")).text == "the disk is full"
    it = error_finding(TemplateError("template my layout.html, line 3: unexpected: end"))
    assert (it.file, it.line, it.text) == ("my layout.html", 3, "unexpected: end")


def test_a_folder_whose_name_is_nearly_that_of_a_built_in_template_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "password-reset")
    ((file, line, level),) = places(tmp_path)
    assert (file, line, level) == ("password-reset", None, "warning")
    assert "does not change password_reset; rename it to password_reset if it should" in texts(tmp_path)
