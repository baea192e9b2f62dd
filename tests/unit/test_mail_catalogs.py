"""Catalogues of translations: an operator's sentences, languages and mistakes, and the language of each mail."""

from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from mails import identity, job, new_composer, part, read, write

from otp_stream.mail import Composer, TemplateError, catalogs
from otp_stream.mail.catalogs import Catalogs, is_translated, read_catalog, source_text
from otp_stream.mail.templates import BUILT_IN, Templates

HEADER = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n'
TITLE = "Your one-time code"
MINUTES = "The code is valid for %(count)s minute, until %(validUntil)s, and works once."
NAMES = ("otp", "welcome", "password_reset")


def catalog(root: Path, name: str, *messages: str, header: str = HEADER) -> Path:
    """Write a catalogue; a message is `id=translation`, or lines as they are."""
    path = root / "locales" / f"{name}.po"
    path.parent.mkdir(exist_ok=True)
    path.write_text(header + "".join(f"\n{_lines(it)}\n" for it in messages), encoding="utf-8")
    return root


def _lines(message: str) -> str:
    source, _, text = message.partition("=")
    return message if message.startswith(("msg", "#")) else f'msgid "{source}"\nmsgstr "{text}"'


def plural(*forms: str) -> str:
    lines = [f'msgid "{MINUTES}"', f'msgid_plural "{MINUTES.replace("minute,", "minutes,")}"']
    return "\n".join((*lines, *(f'msgstr[{number}] "{it}"' for number, it in enumerate(forms))))


def translated(root: Path, name: str, *, without: str = "", mark: str = "X") -> Path:
    """Write a catalogue of all messages, each translated as itself with a mark."""
    path = root / "locales" / f"{name}.po"
    path.parent.mkdir(exist_ok=True)
    lines: list[str] = []
    for it in (BUILT_IN / "locales/messages.pot").read_text().splitlines():
        if it.startswith("msgid "):
            source = it.removeprefix("msgid ")
        if it.startswith("msgstr") and source not in {'""', f'"{without}"'}:
            lines.append(f'{it.split(" ")[0]} {source[:-1]}{mark}"')
        else:
            lines.append(it)
    path.write_text("\n".join(lines) + "\n")
    return root


def sent(root: Path | None, locale: str | None = "de", name: str = "otp", default: str = "en", **more: object) -> str:
    """Return subject, plain text and HTML of a mail."""
    message = read(new_composer(root, locale=default).compose(job(template=name, locale=locale, **more)).content)
    return "\n".join((message["subject"], part(message, "plain"), part(message, "html"))).replace("\r\n", "\n")


def error(root: Path) -> str:
    with pytest.raises(TemplateError) as caught:
        Templates(root, "en")
    return str(caught.value)


def test_an_operators_catalogue_changes_one_sentence_in_all_mails(tmp_path: Path) -> None:
    source = "We will never ask for this code by phone or email."
    (built_in,) = [it.string for it in read_catalog(BUILT_IN / "locales/de.po") if it.id == source]
    catalog(tmp_path, "de", f"{source}=Am Telefon fragt niemand danach.")
    for name in NAMES:
        before, after = sent(None, name=name, userName="Ann"), sent(tmp_path, name=name, userName="Ann")
        assert before.count(str(built_in)) == 2
        assert after == before.replace(str(built_in), "Am Telefon fragt niemand danach.")
        assert sent(tmp_path, "fr", name) == sent(None, "fr", name)


def test_a_plural_is_changed_in_all_its_forms(tmp_path: Path) -> None:
    catalog(tmp_path, "de", plural("Eine %(count)s, %(validUntil)s.", "Viele %(count)s, %(validUntil)s."))
    assert "Eine 1, 22:14 UTC." in sent(tmp_path, expiryMinutes=1)
    assert "Viele 15, 22:28 UTC." in sent(tmp_path, expiryMinutes=15)


def test_an_operator_adds_a_language(tmp_path: Path) -> None:
    translated(tmp_path, "sv", mark=" på svenska")
    templates = Templates(tmp_path, "en")
    for name in NAMES:
        assert "sv" in templates.languages(name)
        for locale in ("sv", "sv-SE", "sv_FI"):
            shown = sent(tmp_path, locale, name, userName="Ann", expiryMinutes=2)
            assert shown.count(" på svenska") == sent(tmp_path, "sv", name, userName="Ann", expiryMinutes=2).count("på")
            assert '<html lang="sv" dir="ltr"' in shown
        assert "22:28" in sent(tmp_path, "sv", name)
    assert sent(tmp_path, "fi", default="sv") == sent(tmp_path, "sv")


def test_a_language_with_a_missing_message_is_left_out_of_the_mails_with_it(tmp_path: Path) -> None:
    source = "Enter this code to continue:"
    translated(tmp_path, "sv", without=source)
    templates = Templates(tmp_path, "de")
    assert "sv" not in templates.languages("otp")
    assert sent(tmp_path, "sv", "otp", "de") == sent(None, "de")
    assert "sv" in templates.languages("welcome") or source in templates.messages("welcome/body.html")


@pytest.mark.parametrize(
    "message",
    [
        f'#, fuzzy\nmsgid "{TITLE}"\nmsgstr "Dein Code"',
        f'msgid "{TITLE}"\nmsgstr ""',
        f'#~ msgid "{TITLE}"\n#~ msgstr "Dein Code"',
        plural("Nur eine Form: %(count)s %(validUntil)s."),
        plural("Erste", ""),
        "Not in any template=Dein Code",
    ],
)
def test_an_unfinished_message_leaves_the_mail_as_it_is(tmp_path: Path, message: str) -> None:
    for minutes in (1, 15):
        assert sent(catalog(tmp_path, "de", message), expiryMinutes=minutes) == sent(None, expiryMinutes=minutes)


def test_an_unfinished_plural_never_puts_an_english_sentence_into_a_mail(tmp_path: Path) -> None:
    translated(tmp_path, "sv")
    path = tmp_path / "locales/sv.po"
    path.write_text(path.read_text().replace('msgstr[1] "The code is valid for %(count)s minute', 'msgstr[1] ""\n#"'))
    assert sent(tmp_path, "sv") == sent(None, "en")


NO_PLACEHOLDER = "has a % that is not part of a placeholder; write it as %%"
KEYWORD = "Unknown or misformatted keyword; correct it"
PLURAL = '"Plural-Forms: nplurals=2; plural={};\\n"\n'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f'\nmsgid "{TITLE}"\nmsgstr "Code\n', ", line 6: has no closing quote; write it"),
        (f'\nmsgid "{TITLE}"\nmsgstr "Ein "Code""\n', r", line 6: has a quote inside the text; write it as \""),
        (f'\nmsgid "{TITLE}"\nmsgtsr "Code"\n', f", line 6: {KEYWORD}"),
        ("Hello world\n", f", line 4: {KEYWORD}"),
        (f'\n\nmsgid "{TITLE}"\nmsgstr "100 % Code"\n', f", line 6: {NO_PLACEHOLDER}"),
        (f'\nmsgid "{TITLE}"\nmsgstr "Code %s"\n', f", line 5: {NO_PLACEHOLDER}"),
        (f'\nmsgid "{TITLE}"\nmsgstr "Code %%%"\n', f", line 5: {NO_PLACEHOLDER}"),
        ('\nmsgid "Hello %(userName)s,"\nmsgstr "Hallo %(userName)d,"\n', f", line 5: {NO_PLACEHOLDER}"),
        ('\nmsgid "Hello %(userName)s,"\nmsgstr "Hallo %(name)s,"\n', ", line 5: %(name)s is not in the message"),
        (f"\n{plural('%(otp)s', '%(count)s')}\n", ", line 5: %(otp)s is not in the message"),
        (f'\nmsgid "{TITLE}"\nmsgstr "Code \ue000"\n', ", line 5: contains a private-use character"),
        (PLURAL.format("__import__(1)"), ": invalid token in plural form"),
        (PLURAL.format("n"), ": Plural-Forms yields a form that is not less than nplurals=2; correct its header"),
        (PLURAL.format("1/n"), "zero; correct its header"),
    ],
)
def test_a_catalogue_with_an_error_is_refused_with_file_line_and_fix(tmp_path: Path, text: str, found: str) -> None:
    catalog(tmp_path, "de", header=HEADER + text)
    assert error(tmp_path).startswith("locales/de.po")
    assert found in error(tmp_path)


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    catalog(tmp_path, "de", header=HEADER.replace("utf-8", "klingon"))
    assert error(tmp_path).startswith("locales/de.po: unknown encoding: klingon; correct its header")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_is_named_with_its_line(tmp_path: Path, encoding: str) -> None:
    path = catalog(tmp_path, "de") / "locales/de.po"
    path.write_bytes(f'{HEADER}\nmsgid "{TITLE}"\nmsgstr "Schlüssel"\n'.encode(encoding))
    found = error(tmp_path)
    assert found.endswith("save the file as UTF-8")
    assert ("locales/de.po, line 6" in found) == ("utf" not in encoding)


@pytest.mark.parametrize(
    ("encoding", "charset"), [("latin-1", "iso-8859-1"), ("utf-8-sig", "utf-8"), ("utf-8", "UTF-8")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_encoding_that_the_header_names_is_read(tmp_path: Path, encoding: str, charset: str, end: str) -> None:
    path = catalog(tmp_path, "de") / "locales/de.po"
    text = f'{HEADER.replace("utf-8", charset)}\nmsgid "{TITLE}"\nmsgstr "Schlüssel"\n'
    path.write_bytes(text.replace("\n", end).encode(encoding))
    assert sent(tmp_path).startswith("Schlüssel\n")


@pytest.mark.parametrize("name", ["german", "messages", "de.DE", "de DE", "d", "de_"])
def test_a_file_that_is_named_after_no_language_is_refused(tmp_path: Path, name: str) -> None:
    assert error(catalog(tmp_path, name)).startswith(f"locales/{name}.po: is not named after a language; rename it")


@pytest.mark.parametrize("name", [".#de", "._de"])
def test_files_that_editors_and_systems_add_are_not_read(tmp_path: Path, name: str) -> None:
    catalog(tmp_path, name, header="nonsense")
    (tmp_path / "locales/.#fr.po").symlink_to("user@host.1234")
    assert sent(tmp_path) == sent(None)


def test_a_percent_sign_and_characters_of_other_syntaxes_are_printed_as_they_are(tmp_path: Path) -> None:
    catalog(tmp_path, "de", f"{TITLE}=100 %% {{{{ otp }}}} %%(otp)s {{%% raw %%}}\\nBcc: x")
    assert sent(tmp_path).startswith("100 % {{ otp }} %(otp)s {% raw %} Bcc: x\n")


@pytest.mark.parametrize(
    ("locale", "lang", "clock"),
    [
        ("pt", "pt-BR", "22:28 UTC"),
        ("pt-PT", "pt-BR", "22:28 UTC"),
        ("pt_br", "pt-BR", "22:28 UTC"),
        ("zh", "zh-Hans", "22:28 UTC"),
        ("zh-CN", "zh-Hans", "22:28 UTC"),
        ("zh-SG", "zh-Hans", "22:28 UTC"),
        ("zh-TW", "en", "10:28 PM UTC"),
        ("zh-HK", "en", "10:28 PM UTC"),
        ("zh-Hant", "en", "10:28 PM UTC"),
        ("zh-Hant-CN", "en", "10:28 PM UTC"),
        ("en-GB", "en", "22:28 UTC"),
        ("en-US", "en", "10:28 PM UTC"),
        ("de-CH", "de", "22:28 UTC"),
        ("sv", "en", "10:28 PM UTC"),
    ],
)
def test_a_mail_is_in_the_closest_language_of_the_same_script(locale: str, lang: str, clock: str) -> None:
    shown = sent(None, locale)
    assert f'<html lang="{lang}"' in shown
    assert clock in shown


@pytest.mark.parametrize("name", ["de_AT", "de-AT"])
def test_a_regional_catalogue_has_the_messages_of_its_language(tmp_path: Path, name: str) -> None:
    catalog(tmp_path, name, f"{TITLE}=Ihr Servus-Code")
    catalog(tmp_path, "de", "Enter this code to continue:=Hier eingeben:", f"{TITLE}=Nie in Wien")
    shown = sent(tmp_path, "de-AT")
    assert shown.startswith("Ihr Servus-Code\n")
    assert "Hier eingeben:" in shown
    assert '<html lang="de-AT"' in shown
    assert sent(tmp_path, "de-CH").startswith("Nie in Wien\n")


def test_a_catalogue_of_british_english_needs_only_what_differs(tmp_path: Path) -> None:
    catalog(tmp_path, "en_GB", f"{TITLE}=Your code, please")
    assert sent(tmp_path, "en-GB").startswith("Your code, please\n")
    assert "Enter this code to continue:" in sent(tmp_path, "en-GB")
    for other in ("en", "en-US"):
        assert sent(tmp_path, other) == sent(None, other)


def test_a_catalogue_of_english_changes_the_mails_of_all_who_get_english(tmp_path: Path) -> None:
    catalog(tmp_path, "en", f"{TITLE}=The code")
    for locale in (None, "en", "en-GB", "sv"):
        assert sent(tmp_path, locale).startswith("The code\n")


@pytest.mark.parametrize("default", ["en", "de", "de-CH", "en-GB"])
def test_an_operators_file_without_translations_stays_in_the_default_language(tmp_path: Path, default: str) -> None:
    write(tmp_path, otp__body_html="<p>Our own words: {{ otp }}</p>")
    for locale in (None, default, default[:2], "fi"):
        assert "Our own words: 123456" in sent(tmp_path, locale, default=default)
    for locale in ("fr", "ar", "zh-Hans", {"de": "en", "en": "de"}[default[:2]]):
        assert sent(tmp_path, locale, default=default) == sent(None, locale, default=default)
    assert sent(tmp_path, "fr", "welcome") == sent(None, "fr", "welcome")


def test_each_tenant_has_its_own_catalogues(tmp_path: Path) -> None:
    catalog(tmp_path, "de", f"{TITLE}=Dein Code")
    composer = Composer(identity(), b"k" * 32, {"shop": identity(tmp_path)})
    assert read(composer.compose(job(of="shop", locale="de")).content)["subject"] == "Dein Code"
    assert read(composer.compose(job(locale="de")).content)["subject"] == "Ihr Einmalcode"


def test_a_catalogue_is_read_once_for_all_folders_and_is_not_changed_by_those_of_one(tmp_path: Path) -> None:
    Catalogs([BUILT_IN])
    times_read = catalogs._read_once.cache_info().misses
    catalog(tmp_path, "pt", f"{TITLE}=Nunca", "Hello=Olá")
    catalog(tmp_path, "de", f"{TITLE}=Dein Code")
    changed, built_in = Catalogs([tmp_path, BUILT_IN]).by_locale, Catalogs([BUILT_IN]).by_locale
    assert catalogs._read_once.cache_info().misses == times_read + 2
    assert changed["pt-br"].language.translations.gettext("Hello") == "Olá"
    assert built_in["pt-br"].language.translations.gettext("Hello") == "Hello"
    assert built_in["de"].language.translations.gettext(TITLE) == "Ihr Einmalcode"
    catalog(tmp_path, "de", f"{TITLE}=Euer neuer Code")  # of another size: its time may be the same
    assert Catalogs([tmp_path]).by_locale["de"].language.translations.gettext(TITLE) == "Euer neuer Code"


def test_every_built_in_catalogue_is_complete() -> None:
    with (BUILT_IN / "locales/messages.pot").open("rb") as file:
        wanted = {source_text(it) for it in read_po(file) if it.id}
    for path in sorted((BUILT_IN / "locales").glob("*.po")):
        assert {source_text(it) for it in read_catalog(path) if is_translated(it)} == wanted, path.name
