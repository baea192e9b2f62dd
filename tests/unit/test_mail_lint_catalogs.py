"""Findings about translations: what is not translated, what no template uses, and files that are not read."""

import shutil
from pathlib import Path

import pytest
import translations
from babel.messages.pofile import read_po
from template_folders import CATALOG_HEADER, GOOD, catalog, catalog_findings, found, put, write

from otp_stream.mail import catalog_rules
from otp_stream.mail import templates as templates_module
from otp_stream.mail.catalogs import CatalogError, Catalogs, is_translated
from otp_stream.mail.lint import lint_at_start
from otp_stream.mail.templates import BUILT_IN, TemplateError, Templates

PAGE = '<html lang="{{ lang }}" dir="{{ dir }}">{{ otp }} {{ validUntil }}'
HELLO = "{% trans %}Hello{% endtrans %}"
TRANSLATED = ["ar", "de", "es", "fr", "hi", "it", "ja", "nl", "pl", "pt-br", "tr", "zh-hans"]


def test_the_messages_are_those_of_the_templates() -> None:
    expected = {it.id for it in translations.extracted() if it.id}
    with (BUILT_IN / "locales" / "messages.pot").open("rb") as file:
        assert {it.id for it in read_po(file) if it.id} == expected, "run python tools/translations.py"
    for path in (BUILT_IN / "locales").glob("*.po"):
        with path.open("rb") as file:
            written = {it.id for it in read_po(file, locale=path.stem) if it.id and is_translated(it)}
        assert written == expected, (
            f"{path.name}: run python tools/translations.py, then translate what is empty or fuzzy"
        )


def test_every_built_in_template_is_in_every_language() -> None:
    templates = Templates(None, "en")
    assert sorted(templates.catalogs.by_locale) == TRANSLATED
    assert all(set(templates.languages(it)) == {"", "en", *TRANSLATED} for it in templates.names)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('msgstr "Passwort zurücksetzen"', 'msgstr ""'),
        ('msgid "Reset your password"', '#, fuzzy\nmsgid "Reset your password"'),
        ('msgid "Reset your password"', 'msgid "Reset the password"'),
    ],
)
def test_a_built_in_message_that_is_missing_or_fuzzy_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    copy = shutil.copytree(BUILT_IN, tmp_path / "templates")
    path = copy / "locales" / "de.po"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    for module in (templates_module, catalog_rules):
        monkeypatch.setattr(module, "BUILT_IN", copy)
    assert [(it.file, it.text) for it in found(None) if it.level == "error"] == [
        (
            "locales/de.po",
            "one message is missing, fuzzy or not translated, such as 'Reset your password'; translate it for de",
        )
    ]


def test_an_operators_template_whose_messages_are_translated_into_every_language_of_its_catalogues_has_no_error(
    tmp_path: Path,
) -> None:
    write(tmp_path, subject_txt=HELLO, body_txt=GOOD["body.txt"] + HELLO, body_html=f"{PAGE}{HELLO}")
    catalog(tmp_path, "de", "Hello=Hallo")
    assert {it[2] for it in catalog_findings(tmp_path)} == {"warning"}
    others = ", ".join(it for it in TRANSLATED if it != "de")
    text = f"is not translated into {others}, so the e-mail is sent in English there; add catalogues such as "
    assert ("mine/subject.txt", None, "warning", f"{text}locales/ar.po unless that is intended") in catalog_findings(
        tmp_path
    )


@pytest.mark.parametrize("messages", [(), ("Hello=",), ('#, fuzzy\nmsgid "Hello"\nmsgstr "Hallo"',)])
def test_a_message_that_is_missing_empty_or_fuzzy_in_an_operators_catalogue_is_an_error(
    tmp_path: Path, messages: tuple[str, ...]
) -> None:
    write(tmp_path, subject_txt=HELLO + "{% trans %}Bye{% endtrans %}")
    catalog(tmp_path, "sv", "Bye=Hej då", *messages)
    catalog(tmp_path, "da", *messages)
    in_english = "so the e-mail is sent in English"
    assert [it for it in catalog_findings(tmp_path) if it[2] == "error"] == [
        (
            "mine/subject.txt", None, "error",
            f"2 messages are not translated into da, {in_english}; translate 'Bye' in locales/da.po",
        ),
        (
            "mine/subject.txt", None, "error",
            f"one message is not translated into sv, {in_english}; translate 'Hello' in locales/sv.po",
        ),
    ]  # fmt: skip


def test_a_new_language_that_is_not_finished_is_an_error(tmp_path: Path) -> None:
    catalog(tmp_path, "sv", "Your one-time code=Din kod", "Reset your password=")
    (error,) = catalog_findings(tmp_path)
    assert error[:3] == ("locales/sv.po", None, "error")
    assert "missing, fuzzy or not translated, so otp, password_reset cannot be sent in sv; translate" in error[3]


def test_a_language_of_an_operators_template_does_not_have_to_be_one_of_the_built_in_ones(tmp_path: Path) -> None:
    put(tmp_path, mine__subject_txt=HELLO, mine__body_txt='{% extends "code.txt" %}', mine__body_html=PAGE)
    messages = sorted(Templates(tmp_path, "en").messages("mine/body.txt"))
    plural = 'msgid "{0}"\nmsgid_plural "{0}"\nmsgstr[0] "{0}"\nmsgstr[1] "{0}"'
    catalog(tmp_path, "sv", "Hello=Hej", *(plural.format(it) if "count" in it else f"{it}={it}" for it in messages))
    assert [it for it in catalog_findings(tmp_path) if it[2] == "error"] == []


def test_a_fuzzy_message_instead_of_a_built_in_one_is_a_warning(tmp_path: Path) -> None:
    catalog(tmp_path, "de", '#, fuzzy\nmsgid "Your one-time code"\nmsgstr "Dein Code"')
    fix = "correct it, and remove the fuzzy flag"
    assert catalog_findings(tmp_path) == [
        (
            "locales/de.po", 6, "warning",
            f"the translation of 'Your one-time code' is fuzzy, so the built-in one is sent; {fix}",
        )
    ]  # fmt: skip


def test_a_shared_file_that_takes_a_language_from_built_in_templates_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, code_txt=(BUILT_IN / "code.txt").read_text() + HELLO)
    lost = [it for it in catalog_findings(tmp_path) if it[:3] == ("code.txt", None, "error")]
    assert len(lost) == len(TRANSLATED)
    assert "one message is not translated into ar, so the e-mail is sent in English" in lost[0][3]


def test_an_operators_file_instead_of_a_translated_one_says_where_the_built_in_one_is_sent(tmp_path: Path) -> None:
    put(tmp_path, otp__subject_txt="Code", otp__de__subject_txt="Code")
    kept = ", ".join(it for it in TRANSLATED if it != "de")
    fix = "add {% trans %}, or files such as otp/ar/subject.txt, or set DEFAULT_LOCALE to its language"
    assert catalog_findings(tmp_path) == [
        (
            "otp/subject.txt", None, "warning",
            f"has no {{% trans %}}, so the built-in file is sent in {kept}; {fix}",
        )
    ]  # fmt: skip
    put(tmp_path, otp__subject_txt=HELLO, otp__de__subject_txt=HELLO)
    (german, general) = catalog_findings(tmp_path)
    assert "is not translated into de, so the e-mail is sent in English there" in german[3]
    assert "so the built-in file is sent there; add catalogues such as locales/ar.po" in general[3]


def test_an_operators_file_with_one_for_each_other_language_has_no_finding(tmp_path: Path) -> None:
    put(tmp_path, otp__subject_txt="Code", **{f"otp__{it}__subject_txt": "Code" for it in TRANSLATED})
    assert found(tmp_path) == []


def test_text_without_trans_in_a_file_that_extends_a_translated_one_is_a_warning(tmp_path: Path) -> None:
    child = "{% extends 'code.html' %}{% block heading %}<b>&nbsp;</b>{% endblock %}"
    put(tmp_path, otp__body_html=child)
    assert catalog_findings(tmp_path) == []
    put(tmp_path, otp__body_html=child.replace("&nbsp;", "Your code"))
    ((file, _, level, text),) = catalog_findings(tmp_path)
    assert (file, level) == ("otp/body.html", "warning")
    assert text.startswith(
        "has text without {% trans %}, but extends a file that is translated, so e-mails mix languages"
    )


def test_a_catalogue_needs_no_header(tmp_path: Path) -> None:
    assert catalog_findings(catalog(tmp_path, "de", "Your one-time code=Dein Code", header="")) == []


def test_messages_that_no_template_uses_are_a_warning_with_their_line(tmp_path: Path) -> None:
    catalog(tmp_path, "de", "Your one-time code=Ihr Code", f"Gone{'x' * 80}=Weg", "Lost=Verloren")
    fix = "correct it to the text of the template, or remove it"
    assert catalog_findings(tmp_path) == [
        (
            "locales/de.po", 8, "warning",
            f"2 messages are used by no template, such as 'Gone{'x' * 56}…'; {fix}",
        )
    ]  # fmt: skip


def test_a_catalogue_that_cannot_be_read_is_an_error_with_its_line_and_others_are_used(tmp_path: Path) -> None:
    write(tmp_path, subject_txt=HELLO)
    catalog(tmp_path, "de", 'msgid "Hello"\nmsgstr "Hallo')
    catalog(tmp_path, "sv", "Hello=Hej %(name)s")
    catalog(tmp_path, "da", "Hello=Hej")
    errors = [it for it in catalog_findings(tmp_path) if it[2] == "error"]
    assert [it[:2] for it in errors] == [("locales/de.po", 6), ("locales/sv.po", 5)]
    assert "%(name)s is not in the message" in errors[1][3]
    with pytest.raises(TemplateError, match=r"locales/de\.po, line 6: "):
        Templates(tmp_path, "en")


def test_a_translation_without_a_placeholder_or_with_other_tags_is_found(tmp_path: Path) -> None:
    greeting = "{% trans %}Hi <b>{{ userName }}</b>{% endtrans %}"
    days = "{% trans count=validCount %}{{ count }} day{% pluralize %}{{ count }} days{% endtrans %}"
    write(tmp_path, subject_txt=greeting + days)
    plural = 'msgid "%(count)s day"\nmsgid_plural "%(count)s days"\nmsgstr[0] "ein Tag"\nmsgstr[1] "{}"'
    header = CATALOG_HEADER.replace("\n\n", '\n"Plural-Forms: nplurals=2; plural=(n != 1);\\n"\n\n')
    catalog(tmp_path, "de", "Hi <b>%(userName)s</b>=<i>Hallo</b>", plural.format("Tage"), header=header)
    texts = [(it[1], it[2], it[3].partition(";")[0]) for it in catalog_findings(tmp_path) if it[0] == "locales/de.po"]
    assert texts == [
        (6, "error", "the translation of 'Hi <b>%(userName)s</b>' has other HTML tags than the message"),
        (6, "warning", "the translation of 'Hi <b>%(userName)s</b>' lacks %(userName)s"),
        (9, "warning", "the translation of '%(count)s day' lacks %(count)s"),
    ]
    # one form may write the number in words
    catalog(
        tmp_path, "de", "Hi <b>%(userName)s</b>=<b>%(userName)s</b>", plural.format("%(count)s Tage"), header=header
    )
    assert [it for it in catalog_findings(tmp_path) if it[0] == "locales/de.po"] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("locales/german.po", "is named after no known language; rename it to de.po"),
        ("locales/messages.po", "name it after a language code, such as de.po or pt_BR.po"),
        ("locales/xx.po", "name it after a language code, such as de.po or pt_BR.po"),
        ("locales/de.mo", "run msgunfmt de.mo -o de.po"),
        ("locales/de/LC_MESSAGES/messages.po", "is not read; write one file for each language, such as locales/de.po"),
        ("locales/LC_MESSAGES/messages.mo", "is not read; write one file for each language, such as locales/de.po"),
        ("locales/de.json", "is not read; translations are in files such as locales/de.po"),
        ("locale/de.po", "is not read; rename it to locales"),
        ("de.po", "is not read here; move it to locales/de.po"),
    ],
)
def test_a_file_of_translations_that_is_not_read_is_an_error_with_the_fix(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CATALOG_HEADER)
    (it,) = [it for it in found(tmp_path) if text in it.text]
    assert it.level == "error"
    assert name.startswith(it.file)
    assert it in lint_at_start(tmp_path, "en")


def test_two_catalogues_of_one_language_are_an_error_and_other_files_beside_catalogues_are_none(tmp_path: Path) -> None:
    for name in ("pt_BR", "fr"):
        catalog(tmp_path, name, "Your one-time code=Code")
    (tmp_path / "locales" / "images").mkdir()
    for name in ("messages.pot", "README.md", "fr.po~"):
        (tmp_path / "locales" / name).write_text(CATALOG_HEADER)
    assert found(tmp_path) == []
    catalog(tmp_path, "pt-BR")
    (it,) = found(tmp_path)
    assert (it.file, it.level) == ("locales/pt_BR.po", "error")
    assert "is in the same language as locales/pt-BR.po; merge them" in it.text


def test_catalogues_with_errors_are_left_out_only_for_a_caller_that_collects_them(tmp_path: Path) -> None:
    catalog(tmp_path, "de", 'msgid "Hello')
    faults: list[CatalogError] = []
    assert Catalogs([tmp_path], faults).by_locale == {}
    assert len(faults) == 1
    with pytest.raises(CatalogError):
        Catalogs([tmp_path])


def test_values_in_messages_are_known_names_and_misspelt_ones_are_found(tmp_path: Path) -> None:
    text = (
        "{% trans brand=brand.name, count=validCount %}{{ brand }} {{ count }}{% pluralize %}{{ count }}{% endtrans %}"
    )
    write(tmp_path, subject_txt=f"{text}{{{{ _('Hello') }}}}{{{{ gettext('Hello') }}}}\n")
    assert [it for it in found(tmp_path) if "unknown" in it.text] == []
    write(tmp_path, body_txt=GOOD["body.txt"] + "\n{% trans name=usrName %}Hello {{ name }}{% endtrans %}")
    (it,) = [it for it in found(tmp_path) if "unknown" in it.text]
    assert (it.file, it.line, it.level) == ("mine/body.txt", 2, "error")
    assert "did you mean userName?" in it.text


def test_a_tag_of_a_message_that_is_not_closed_has_the_line_of_its_file(tmp_path: Path) -> None:
    html = GOOD["body.html"].replace("<body>", "<body>\n\n{% trans %}\n<b>Hello\n{% endtrans %}")
    write(tmp_path, body_html=html)
    (it,) = [it for it in found(tmp_path) if "still open" in it.text]
    assert (it.file, it.line, it.level) == ("mine/body.html", 3, "error")
