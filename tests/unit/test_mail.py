"""The e-mail: what a person reads, what a relay sees, and what cannot be smuggled in."""

import asyncio
import re
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mails import NOW_MS, identity, job, new_composer, part, read, write

from otp_stream.core.job import Job
from otp_stream.core.mail import ComposeError
from otp_stream.mail import Brand, Composer, TemplateError
from otp_stream.mail.preview import Previews
from otp_stream.mail.sanitized import safe_text
from otp_stream.mail.templates import BUILT_IN
from otp_stream.relay.envelope import data_form

COMPOSER = new_composer()
"""The shipped templates; a test that starts a process makes its own composer."""


def test_a_message_is_whole() -> None:
    message = read(COMPOSER.compose(job(userName="John Doe", expiryMinutes=10)).content)
    assert message["from"] == "Example <no-reply@example.com>"
    assert message["to"] == "user@example.com"
    assert message["subject"] == "Your one-time code"
    assert message["date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert message["auto-submitted"] == "auto-generated"
    assert message["x-auto-response-suppress"] == "OOF, AutoReply"
    assert message["list-unsubscribe"] is None
    assert message.get_content_type() == "multipart/alternative"
    for kind in ("plain", "html"):
        assert "John Doe" in part(message, kind)
        assert re.search(r"\b123456\b", part(message, kind))
        assert "The code is valid for 10 minutes, until 10:23 PM UTC, and works once." in part(message, kind)
        assert "Requested: Nov 14, 2023, 10:13 PM UTC" in part(message, kind)


@pytest.mark.parametrize("name", ["otp", "welcome", "password_reset"])
@pytest.mark.parametrize("locale", [None, "de", "de-AT", "de_at", "fi"])
@pytest.mark.parametrize("user", [None, "Zoë"])
def test_every_template_renders_in_every_language_with_and_without_a_name(
    name: str, locale: str | None, user: str | None
) -> None:
    message = read(COMPOSER.compose(job(template=name, locale=locale, userName=user, expiryMinutes=1)).content)
    german = (locale or "").startswith("de")
    assert ("Code" in part(message, "plain")) if german else ("code" in part(message, "plain"))
    assert ("1 Minute " if german else "1 minute,") in part(message, "html")
    assert f'lang="{"de" if german else "en"}"' in part(message, "html")
    assert "None" not in part(message, "plain") + part(message, "html")
    assert "http" not in part(message, "html")
    assert "<img" not in part(message, "html")
    assert "<a " not in part(message, "html")


def test_the_default_locale_serves_jobs_that_name_none_or_an_unknown_one() -> None:
    composer = new_composer(locale="de-CH")
    assert read(composer.compose(job()).content)["subject"] == "Ihr Einmalcode"
    assert read(composer.compose(job(locale="fi")).content)["subject"] == "Ihr Einmalcode"


def test_a_job_makes_the_same_bytes_whenever_it_is_rendered() -> None:
    first = COMPOSER.compose(job(userName="Zoë"))
    again = COMPOSER.compose(job(userName="Zoë", seen_ms=NOW_MS + 60_000))
    assert first == again


def test_an_internationalised_domain_is_written_as_a_labels_in_every_header() -> None:
    composer = Composer(identity(sender=("Größe", "s@faß.example")), b"k" * 32)
    mail = composer.compose(job(email="u@straße.example"))
    assert mail.recipient == "u@xn--strae-oqa.example"
    assert mail.content.isascii()
    message = read(mail.content)
    assert message["to"] == "u@xn--strae-oqa.example"
    assert message["from"].addresses[0].addr_spec == "s@xn--fa-hia.example"
    assert message["from"].addresses[0].display_name == "Größe"
    assert message["message-id"].endswith("@xn--fa-hia.example>")


def test_a_non_ascii_local_part_stays_in_its_header_as_smtputf8_has_it() -> None:
    content = COMPOSER.compose(job(email="jürgen@bücher.example")).content
    assert "To: <jürgen@xn--bcher-kva.example>\r\n".encode() in content


def test_a_clock_far_ahead_does_not_date_the_mail_in_the_future() -> None:
    message = read(COMPOSER.compose(job(timestamp=NOW_MS + 3_600_000)).content)
    assert message["date"] == "Tue, 14 Nov 2023 22:13:20 +0000"


def test_the_code_is_in_no_header() -> None:
    content = COMPOSER.compose(job("SECRET99", job_id="j")).content
    assert b"SECRET99" not in content.partition(b"\r\n\r\n")[0]


def test_two_jobs_have_two_message_ids_and_the_key_is_needed_to_guess_one() -> None:
    other = Composer(identity(sender=("", "a@b.c")), b"other")
    ids = [
        read(composer.compose(job(job_id=name)).content)["message-id"].partition("@")[0]
        for composer, name in ((new_composer(), "a"), (new_composer(), "b"), (other, "a"))
    ]
    assert len(set(ids)) == 3


def test_another_code_under_the_same_id_is_another_message() -> None:
    # a mailbox drops what has the Message-ID of a message that it holds
    first, second = (read(COMPOSER.compose(job(otp, job_id="j")).content) for otp in ("123456", "654321"))
    assert first["message-id"] != second["message-id"]


@pytest.mark.parametrize(
    "attack", ["x\r\nBcc: evil@example.com", "x\nBcc: evil@example.com", "x\x85Bcc: e", "x\u2028B"]
)
def test_line_breaks_in_data_start_no_header(tmp_path: Path, attack: str) -> None:
    write(tmp_path, otp__subject_txt="Hello {{ userName }} {{ team }}")
    message = read(new_composer(tmp_path).compose(job(userName=attack, team=attack)).content)
    assert message["bcc"] is None
    assert message["subject"].startswith("Hello x B")
    assert set(message.keys()) == set(read(COMPOSER.compose(job()).content).keys())


def test_a_name_that_is_a_text_is_cut() -> None:
    plain = part(read(COMPOSER.compose(job(userName="Buy now! " * 1000)).content), "plain")
    assert plain.count("Buy now!") < 25


@pytest.fixture(scope="module")
def metadata_composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    """Make a template that shows whatever metadata may hold."""
    source = (
        "{{ userName }} {{ purpose }} {{ tenant }} {{ team }} {{ teams[0] }} {{ nested.a.b }}"
        "{% for key, value in nested.items() %} {{ key }} {% endfor %}"
    )
    folder = tmp_path_factory.mktemp("metadata")
    return new_composer(write(folder, t__subject_txt="{{ team }}", t__body_txt=source, t__body_html=source))


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example/x?y=1", "http://localhost/x", "HTTP://1.2.3.4/", "www.evil.example", "evil.com",
        "//evil.example/x", "mailto:a@evil.example", "a@evil.example", "tel:+4912345", "javascript:alert(1)",
        "10.1.22.133",
        "пример.рф", "evil。example", "evil\ufe52example", "evil\u2024example", "evil\uff0eexample",
        "10\u20241\ufe5222\uff0e133", "evil\u2488example",
        "evil.\u200bexample", "e\u202evil.example", "evil.\u200dexample", "💩.la",
        "evil.\ufe0fexample", "evil.e\u200cxample", "evil.\u034fexample", "evil.\U000e0061example", r"\\evil\share",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["userName", "purpose", "tenant", "team", "teams", "nested", "name in nested"])
def test_no_text_of_metadata_is_a_link(metadata_composer: Composer, key: str, link: str) -> None:
    values = {"teams": [link], "nested": {"a": {"b": link}}}.get(key, f"Ann {link}")
    more: dict[str, Any] = {"team": "", "teams": [""], "nested": {"a": {"b": ""}}}
    more |= {"nested": {"a": {"b": ""}, f"Ann {link}": 1}} if key == "name in nested" else {key: values}
    message = read(metadata_composer.compose(job(template="t", **more)).content)
    for kind in ("plain", "html"):
        text = part(message, kind)
        assert "Ann" in text or key in {"teams", "nested"}
        looked_up = re.sub("[\u034f\u200b-\u200d\ufe00-\ufe0f\U000e0000-\U000e0fff]", "", text)
        assert not re.search(r"\w:(//|\S)|\S[.。][^\W\d_]{2}|\d\.\d+\.\d+\.\d|\\\\\w", normalize("NFKC", looked_up)), (
            text
        )


def test_every_character_that_is_read_as_a_dot_ends_a_link() -> None:
    dots = [it for it in map(chr, range(sys.maxunicode + 1)) if re.search(r"(?<!\.)\.$", normalize("NFKC", it))]
    assert len(dots) > 20
    for dot in (*dots, "\u3002", "\uff61"):
        assert safe_text(f"evil{dot}com", 100) == f"evil{dot} com", hex(ord(dot))
    assert safe_text("wait\u2026what", 100) == "wait\u2026what"


def test_a_value_is_found_by_the_name_that_its_producer_gave_it(tmp_path: Path) -> None:
    source = "{{ order['shop.id'] }} {{ order.id }} {{ order['no.id'] | default('none') }} {{ order | join(' ') }}"
    composer = new_composer(write(tmp_path, t__subject_txt="s", t__body_txt=source, t__body_html=source))
    plain = part(read(composer.compose(job(template="t", order={"shop.id": "A-17", "id": 5})).content), "plain")
    assert plain.strip() == "A-17 5 none shop. id id"


@pytest.mark.parametrize(
    "name",
    ["John Q. Public", "J.R. Smith", "Zoë O'Neil-Ünal", "12.50", "1.234.567,00", "24:00", "نامه\u200cای", "№ 7 (b)"],
)
def test_a_text_that_is_no_link_is_left_alone(name: str) -> None:
    content = COMPOSER.compose(job(userName=name, request={"device": name})).content
    assert part(read(content), "plain").count(name) == 2


def test_names_and_other_texts_have_one_line_and_an_end(tmp_path: Path) -> None:
    source = "{{ purpose }}|{{ tenant }}|{{ other }}"
    composer = new_composer(write(tmp_path, t__subject_txt="s", t__body_txt=source, t__body_html=source))
    data = {"purpose": "a\r\nb" + "x" * 999, "tenant": ["a", "b"], "other": "c\u2028d" + "y" * 9999}
    purpose, tenant, other = part(read(composer.compose(job(template="t", **data)).content), "plain").strip().split("|")
    assert (purpose, tenant, other) == ("a b" + "x" * 97, "None", "c d" + "y" * 497)


def test_a_mail_that_is_sent_late_states_until_when_the_code_is_valid() -> None:
    late = job(timestamp=NOW_MS - 14 * 60_000, expiryMinutes=15)
    for locale, expiry in ((None, "until 10:14 PM UTC"), ("de", "bis 22:14 UTC")):
        asked = replace(late, request=late.request.model_copy(update={"metadata": job(locale=locale).request.metadata}))
        message = read(COMPOSER.compose(asked).content)
        assert expiry in part(message, "plain")
        assert expiry in part(message, "html")


def test_html_in_data_stays_text() -> None:
    message = read(COMPOSER.compose(job('a"<b>&', userName="<script>alert(1)</script>")).content)
    assert "<script>" not in part(message, "html")
    assert "a&#34;&lt;b&gt;&amp;" in part(message, "html")
    assert 'a"<b>&' in part(message, "plain")


def test_long_and_foreign_subjects_are_folded_encoded_words(tmp_path: Path) -> None:
    subject = "Ваш код подтверждения для входа в личный кабинет интернет-магазина " * 2
    write(tmp_path, otp__subject_txt=subject)
    content = new_composer(tmp_path).compose(job()).content
    assert read(content)["subject"] == subject.strip()
    assert max(map(len, content.partition(b"\r\n\r\n")[0].split(b"\r\n"))) <= 78


@pytest.mark.parametrize("sender", ["Müller & Söhne", 'The "Best" Shop', "A, B; C", ""])
def test_a_senders_name_survives(sender: str) -> None:
    message = read(new_composer(sender=sender).compose(job()).content)
    (address,) = message["from"].addresses
    assert (address.display_name, address.addr_spec) == (sender, "no-reply@example.com")


@given(name=st.text(max_size=2000), extra=st.text(max_size=200))
def test_any_text_travels_in_lines_that_smtp_can_carry(name: str, extra: str) -> None:
    content = COMPOSER.compose(job(userName=name, purpose=extra)).content
    assert all(len(line) <= 998 for line in content.split(b"\r\n"))
    assert content.replace(b"\r\n", b"").count(b"\n") == content.replace(b"\r\n", b"").count(b"\r") == 0
    assert content.isascii()
    assert "123456" in part(read(content), "plain")


@pytest.mark.parametrize(
    "text", ["{{ userName }}\n", ".{{ otp }}\n", "ü\n{{ userName }}", "x" * 74 + "{{ userName }}ü"]
)
@pytest.mark.parametrize("name", ["John", ".John", "...", "=.", "x" * 75 + ".", "é" * 30 + "." * 100])
def test_a_mail_that_is_called_dot_safe_is_sent_like_any_other(tmp_path: Path, text: str, name: str) -> None:
    composer = new_composer(write(tmp_path, t__subject_txt="s", t__body_txt=text, t__body_html=text))
    for _ in range(3):
        mail = composer.compose(job(template="t", userName=name))
        assert data_form(mail) == data_form(replace(mail, dot_safe=False))


def test_our_mails_are_dot_safe() -> None:
    assert COMPOSER.compose(job(userName="John Doe")).dot_safe


def test_an_operators_files_override_built_in_ones_one_by_one(tmp_path: Path) -> None:
    write(tmp_path, otp__subject_txt="Our code for you", otp__fi__body_txt="Koodisi: {{ otp }}")
    composer = new_composer(tmp_path)
    english, finnish = read(composer.compose(job()).content), read(composer.compose(job(locale="fi-FI")).content)
    assert english["subject"] == finnish["subject"] == "Our code for you"
    assert "Enter this code to continue:" in part(english, "plain")
    assert part(finnish, "plain").strip() == "Koodisi: 123456"
    assert "Enter this code to continue:" in part(finnish, "html")


def test_an_operators_layout_serves_our_templates(tmp_path: Path) -> None:
    write(tmp_path, layout_html="<b>{{ otp }}</b> {% block heading %}{% endblock %}")
    assert (
        part(read(new_composer(tmp_path).compose(job()).content), "html").strip() == "<b>123456</b> Your one-time code"
    )


def test_an_operators_layout_without_the_variable_lang_has_the_language_of_the_email(tmp_path: Path) -> None:
    write(tmp_path, layout_html='<html lang="{% block lang %}en{% endblock %}"><b>{{ otp }}</b>')
    assert '<html lang="de">' in part(read(new_composer(tmp_path).compose(job(locale="de-AT")).content), "html")


def test_an_operators_own_template_needs_all_three_files(tmp_path: Path) -> None:
    write(tmp_path, invite__subject_txt="Come", invite__body_txt="{{ otp }} {{ team }}")
    with pytest.raises(TemplateError, match=r"template invite/body.html: is missing"):
        new_composer(tmp_path)
    write(tmp_path, invite__body_html="{{ otp }} {{ team }}")
    assert (
        part(read(new_composer(tmp_path).compose(job(template="invite", team="A")).content), "html").strip()
        == "123456 A"
    )


def test_a_template_that_cannot_be_compiled_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, otp__body_txt="one\n{% if %}\n")
    with pytest.raises(TemplateError, match=r"template otp/body.txt, line 2: Expected an expression"):
        new_composer(tmp_path)


def test_a_layout_that_cannot_be_compiled_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, layout_html="<p>\n{% block a %}\n")
    with pytest.raises(TemplateError, match=r"template layout.html, line 2: Unexpected end of template"):
        new_composer(tmp_path)
    write(tmp_path, layout_html="{% include 'none.html' ignore missing %}{% include 'layout.html' ignore missing %}")
    assert new_composer(tmp_path).templates.names == ["otp", "password_reset", "welcome"]


def test_data_that_a_template_needs_is_named_when_it_is_missing(tmp_path: Path) -> None:
    write(tmp_path, otp__body_txt="{{ otp }}\n{{ orderNumber }}")
    with pytest.raises(
        ComposeError, match=r"template otp/body.txt, line 2: 'orderNumber' is undefined; give it in metadata"
    ):
        new_composer(tmp_path).compose(job())


def test_a_template_that_fails_shows_no_data(tmp_path: Path) -> None:
    write(tmp_path, otp__body_html="{{ {}[otp ~ userName] }}")
    with pytest.raises(ComposeError) as caught:
        new_composer(tmp_path).compose(job("SECRET99", userName="Mallory"))
    assert str(caught.value).startswith("template otp/body.html, line 1: ")
    assert "SECRET99" not in str(caught.value)
    assert "Mallory" not in str(caught.value)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ otp.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(otp) }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{{ (otp).__init__ }}{% set x = [] %}{{ x.append(1) }}",
        "{{ _translations.load('/etc') }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * 'x' }}",
        "{{ 10 ** (10 ** 8) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ cycler.reset(range) }}",
        "{% set it = {} %}{{ dict.update(it, {1: 2}) }}",
    ],
)
def test_a_template_reaches_nothing_but_what_it_is_given(attack: str, tmp_path: Path) -> None:
    write(tmp_path, otp__body_txt="{{ otp }}" + attack)
    with pytest.raises(
        ComposeError, match=r"^template otp/body.txt, line 1: (uses something|'|[A-Z]\w+Error)"
    ) as caught:
        new_composer(tmp_path).compose(job())
    assert "takes more" not in str(caught.value)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ otp|center(1000000000) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{% set it = namespace(x='x' * 1000) %}{% for i in range(50) %}{% set it.x = it.x ~ it.x %}{% endfor %}",
        "{% set it = namespace(x=[1]) %}{% for i in range(50) %}{% set it.x = it.x + it.x %}{% endfor %}",
    ],
)
def test_a_template_that_takes_much_memory_fails_alone(attack: str, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    write(tmp_path, otp__body_txt="{{ otp }}" + attack)
    with pytest.raises(ComposeError, match="line 1: takes more than 64 MiB of memory"):
        new_composer(tmp_path).compose(job())
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert COMPOSER.compose(job())


@pytest.mark.parametrize("loops", [2, 8])
def test_a_template_that_loops_for_ever_fails_alone(
    loops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otp_stream.mail.mail_template.RENDER_CPU_S", 0.2)
    body = "{% for i in range(90000) %}" * loops + "{% endfor %}" * loops
    write(tmp_path, otp__body_txt="{{ otp }}" + body)
    with pytest.raises(ComposeError, match="an endless loop"):
        new_composer(tmp_path).compose(job())


def test_an_unknown_template_is_named_with_those_there_are() -> None:
    with pytest.raises(ComposeError, match="none named nope; known: otp, password_reset, welcome"):
        COMPOSER.compose(job(template="nope"))


def test_all_built_in_templates_are_found() -> None:
    assert COMPOSER.templates.names == ["otp", "password_reset", "welcome"]
    languages = ["", "ar", "de", "en", "es", "fr", "hi", "it", "ja", "nl", "pl", "pt-br", "tr", "zh-hans"]
    assert all(COMPOSER.templates.languages(name) == languages for name in COMPOSER.templates.names)
    assert (BUILT_IN / "layout.html").is_file()


async def test_a_mail_composed_in_another_process_is_the_same(tmp_path: Path) -> None:
    composer = new_composer()
    try:
        assert await composer.compose_isolated(job()) == composer.compose(job())
        with pytest.raises(ComposeError, match="none named nope"):
            await composer.compose_isolated(job(template="nope"))
        assert await composer.compose_isolated(job()) == composer.compose(job())
    finally:
        await composer.close()


async def test_an_idle_process_stops_and_the_next_job_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("otp_stream.mail.render_process._IDLE_S", 0.05)
    composer = new_composer()
    try:
        assert await composer.compose_isolated(job()) == composer.compose(job())
        await asyncio.sleep(0.1)
        assert await composer.compose_isolated(job()) == composer.compose(job())
    finally:
        await composer.close()


async def test_a_process_in_use_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otp_stream.mail.render_process._IDLE_S", 0.05)
    composer = new_composer()
    ends = time.monotonic() + 0.5
    try:
        while time.monotonic() < ends:
            await composer.compose_isolated(job())
    finally:
        await composer.close()


async def test_a_job_is_not_blamed_for_a_process_that_was_killed_from_outside() -> None:
    composer = new_composer()
    try:
        await composer.compose_isolated(job())
        child = composer._process._child
        assert child is not None
        child.kill()
        assert await composer.compose_isolated(job()) == composer.compose(job())
    finally:
        await composer.close()


async def test_a_preview_is_tried_once_whatever_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "otp").mkdir()
    (tmp_path / "otp" / "body.html").write_text("{{ otp[9:][0] }}")
    composer, tried = new_composer(tmp_path), list[str]()

    async def counted(asked: Job) -> Any:
        tried.append(asked.request.metadata.template)
        return composer.compose(asked)

    monkeypatch.setattr(composer, "compose_isolated", counted)
    previews = Previews(composer)
    for _ in range(2):
        with pytest.raises(ComposeError, match=r"template otp/body.html, line 1"):
            await previews.make("", "otp", "en")
        assert (await previews.make("", "welcome", "de")).subject
    assert tried == ["otp", "welcome"]


def test_english_is_sent_on_request_whatever_the_default_locale_is() -> None:
    composer = new_composer(locale="de")
    assert read(composer.compose(job(locale="en-GB")).content)["subject"] == "Your one-time code"
    assert read(composer.compose(job(locale="sv")).content)["subject"] == "Ihr Einmalcode"


def test_every_built_in_mail_is_small_in_every_language_and_does_not_name_this_product() -> None:
    brand = Brand(
        name="A company with a rather long name", color="#e60023", logo_url=f"https://example.com/{'l' * 200}.png",
        support="https://example.com/help/center/contact", footer=("A company Ltd.", "1 Main Street", "Springfield"),
    )  # fmt: skip
    composer = Composer(identity(brand=brand, subject_time=True), b"k" * 32)
    for name in composer.templates.names:
        for locale in composer.templates.languages(name):
            origin = {"place": "Berlin, Germany", "device": "Firefox on Windows"}
            asked = job("A1B2-C3D4-E5F6", template=name, locale=locale or None, userName="Jürgen", request=origin)
            content = composer.compose(asked).content
            assert len(content) < 12 * 1024, (name, locale)
            message = read(content)
            assert "otp-stream" not in (content.decode() + part(message, "html") + part(message, "plain")).lower()
            assert brand.name in str(message["subject"])
            assert all(brand.name in part(message, kind) for kind in ("html", "plain"))


def test_a_template_of_one_language_takes_each_other_file_in_the_language_in_which_it_was_found(tmp_path: Path) -> None:
    write(tmp_path, otp__fi__body_html="<html lang=fi><p>Koodisi: {{ otp }}</p></html>")
    message = read(new_composer(tmp_path, locale="de").compose(job(locale="fi")).content)
    assert message["subject"] == "Ihr Einmalcode"
    assert "Der Code ist" in part(message, "plain")
    assert "Koodisi" in part(message, "html")


OLD_LAYOUT = """<!doctype html>
<html lang="{% block lang %}en{% endblock %}"><head><title>{% block title %}{% endblock %}</title></head><body>
<div style="display:none">{% block preheader %}{% endblock %}</div>
<h1>{% block heading %}{% endblock %}</h1><p>{% block intro %}{% endblock %}</p><div>{{ otp }}</div>
<p>{% block validity %}{% endblock %}</p><p>{% block caution %}{% endblock %}</p></body></html>
"""


def test_a_layout_that_was_copied_before_there_were_translations_shows_everything(tmp_path: Path) -> None:
    composer = new_composer(write(tmp_path, layout_html=OLD_LAYOUT))
    origin = {"place": "Berlin", "device": "Firefox"}
    html = part(read(composer.compose(job(locale="de", userName="Zoë", request=origin)).content), "html")
    for shown in ('lang="de"', "Zoë", "Angefordert am:", "Berlin", "Firefox", "15 Minuten"):
        assert shown in html


def test_a_template_that_was_written_for_the_old_layout_shows_what_it_did(tmp_path: Path) -> None:
    own = (
        '{% extends "layout.html" %}{% block lang %}sv{% endblock %}{% block heading %}Din kod{% endblock %}'
        "{% block intro %}Hej {{ userName }}, din kod:{% endblock %}"
        "{% block validity %}Till {{ validUntil }}{% endblock %}"
        "{% block caution %}Dela den inte.{% endblock %}"
    )
    composer = new_composer(write(tmp_path, otp__sv__body_html=own))
    html = part(read(composer.compose(job(locale="sv", userName="Zoë")).content), "html")
    assert re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>|&\w+;", "", html, flags=re.DOTALL)).strip() == (
        "Din kod Hej Zoë, din kod: 123456 Till 22:28 UTC Dela den inte."
    )


def test_the_time_of_the_request_in_the_subject_of_otp_is_a_setting() -> None:
    acme = Brand(name="Acme")
    timed = Composer(identity(brand=acme, subject_time=True, time_zone="Europe/Berlin"), b"k" * 32)
    first, second = (read(timed.compose(job(timestamp=NOW_MS - ago)).content)["subject"] for ago in (500, 3_500))
    assert (first, second) == ("Your Acme code (11:13:20 PM)", "Your Acme code (11:13:17 PM)")
    assert read(timed.compose(job(template="welcome")).content)["subject"] == "Confirm your email address for Acme"
    assert read(Composer(identity(brand=acme), b"k" * 32).compose(job()).content)["subject"] == "Your Acme code"


def test_lists_of_mails_show_the_code_and_its_expiry_after_the_subject() -> None:
    html = part(read(COMPOSER.compose(job()).content), "html")
    shown = re.sub(r"<[^>]*>|\s+", " ", html.partition("<body")[2].partition(">")[2]).strip()
    assert shown.startswith("123456 is your code, valid until 10:28 PM UTC.")
