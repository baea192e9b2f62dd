"""The e-mail: what a person reads, what a relay sees, and what cannot be smuggled in."""

import asyncio
import email
import email.policy
import json
import re
import time
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.job import Job, OtpJob, carry
from otp_stream.core.mail import ComposeError
from otp_stream.mail import Mailroom, TemplateError
from otp_stream.mail.book import OURS
from otp_stream.mail.preview import Previews
from otp_stream.relay.envelope import wire_form

NOW_MS = 1_700_000_000_500


def mailroom(templates_dir: Path | None = None, *, locale: str = "en", sender: str = "Example") -> Mailroom:
    return Mailroom(
        sender=(sender, "no-reply@example.com"), templates_dir=templates_dir, default_locale=locale, hash_key=b"k" * 32
    )


def job(
    otp: str = "123456",
    *,
    seen_ms: int = NOW_MS,
    timestamp: int | None = NOW_MS - 500,
    job_id: str = "j-1",
    **meta: Any,
) -> Job:
    asked = {"email": "user@example.com", "otp": otp, "timestamp": timestamp, "metadata": meta}
    ask = OtpJob.from_bytes(json.dumps(asked).encode())
    return carry(ask, job_id=job_id, lane="jobs", first_seen_ms=seen_ms, attempts_made=0, default_expiry_minutes=15)


def read(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert isinstance(body, EmailMessage)
    return body.get_content()


def write(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt").replace("_html", ".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_message_is_whole() -> None:
    message = read(mailroom().compose(job(userName="John Doe", expiryMinutes=10)).content)
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
        assert "valid for 10 minutes" in part(message, kind)


@pytest.mark.parametrize("name", ["otp", "welcome", "password_reset"])
@pytest.mark.parametrize("locale", [None, "de", "de-AT", "de_at", "fr"])
@pytest.mark.parametrize("user", [None, "Zoë"])
def test_every_template_renders_in_every_language_with_and_without_a_name(
    name: str, locale: str | None, user: str | None
) -> None:
    message = read(mailroom().compose(job(template=name, locale=locale, userName=user, expiryMinutes=1)).content)
    german = (locale or "").startswith("de")
    assert ("Code" in part(message, "plain")) if german else ("code" in part(message, "plain"))
    assert ("1 Minute " if german else "1 minute ") in part(message, "html")
    assert f'lang="{"de" if german else "en"}"' in part(message, "html")
    assert "None" not in part(message, "plain") + part(message, "html")
    assert "http" not in part(message, "html")
    assert "<img" not in part(message, "html")
    assert "<a " not in part(message, "html")


def test_the_default_locale_serves_jobs_that_name_none_or_an_unknown_one() -> None:
    room = mailroom(locale="de-CH")
    assert read(room.compose(job()).content)["subject"] == "Ihr Einmalcode"
    assert read(room.compose(job(locale="fr")).content)["subject"] == "Ihr Einmalcode"


def test_a_job_makes_the_same_bytes_whenever_it_is_rendered() -> None:
    first = mailroom().compose(job(userName="Zoë"))
    again = mailroom().compose(job(userName="Zoë", seen_ms=NOW_MS + 60_000))
    assert first == again


def test_a_clock_far_ahead_does_not_date_the_mail_in_the_future() -> None:
    message = read(mailroom().compose(job(timestamp=NOW_MS + 3_600_000)).content)
    assert message["date"] == "Tue, 14 Nov 2023 22:13:20 +0000"


def test_the_code_is_in_no_header() -> None:
    content = mailroom().compose(job("SECRET99", job_id="j")).content
    assert b"SECRET99" not in content.partition(b"\r\n\r\n")[0]


def test_two_jobs_have_two_message_ids_and_the_key_is_needed_to_guess_one() -> None:
    other = Mailroom(sender=("", "a@b.c"), templates_dir=None, default_locale="en", hash_key=b"other")
    ids = [
        read(room.compose(job(job_id=name)).content)["message-id"].partition("@")[0]
        for room, name in ((mailroom(), "a"), (mailroom(), "b"), (other, "a"))
    ]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    "attack", ["x\r\nBcc: evil@example.com", "x\nBcc: evil@example.com", "x\x85Bcc: e", "x\u2028B"]
)
def test_line_breaks_in_data_start_no_header(tmp_path: Path, attack: str) -> None:
    write(tmp_path, otp__subject_txt="Hello {{ userName }} {{ team }}")
    message = read(mailroom(tmp_path).compose(job(userName=attack, team=attack)).content)
    assert message["bcc"] is None
    assert message["subject"].startswith("Hello x B")
    assert set(message.keys()) == set(read(mailroom().compose(job()).content).keys())


def test_a_name_that_is_a_text_is_cut() -> None:
    plain = part(read(mailroom().compose(job(userName="Buy now! " * 1000)).content), "plain")
    assert plain.count("Buy now!") < 25


def test_html_in_data_stays_text() -> None:
    message = read(mailroom().compose(job('a"<b>&', userName="<script>alert(1)</script>")).content)
    assert "<script>" not in part(message, "html")
    assert "a&#34;&lt;b&gt;&amp;" in part(message, "html")
    assert 'a"<b>&' in part(message, "plain")


def test_long_and_foreign_subjects_are_folded_encoded_words(tmp_path: Path) -> None:
    subject = "Ваш код подтверждения для входа в личный кабинет интернет-магазина " * 2
    write(tmp_path, otp__subject_txt=subject)
    content = mailroom(tmp_path).compose(job()).content
    assert read(content)["subject"] == subject.strip()
    assert max(map(len, content.partition(b"\r\n\r\n")[0].split(b"\r\n"))) <= 78


@pytest.mark.parametrize("sender", ["Müller & Söhne", 'The "Best" Shop', "A, B; C", ""])
def test_a_senders_name_survives(sender: str) -> None:
    message = read(mailroom(sender=sender).compose(job()).content)
    (address,) = message["from"].addresses
    assert (address.display_name, address.addr_spec) == (sender, "no-reply@example.com")


@given(name=st.text(max_size=2000), extra=st.text(max_size=200))
def test_any_text_travels_in_lines_that_smtp_can_carry(name: str, extra: str) -> None:
    content = ROOM.compose(job(userName=name, purpose=extra)).content
    assert all(len(line) <= 998 for line in content.split(b"\r\n"))
    assert content.replace(b"\r\n", b"").count(b"\n") == content.replace(b"\r\n", b"").count(b"\r") == 0
    assert content.isascii()
    assert "123456" in part(read(content), "plain")


ROOM = mailroom()


@pytest.mark.parametrize(
    "text", ["{{ userName }}\n", ".{{ otp }}\n", "ü\n{{ userName }}", "x" * 74 + "{{ userName }}ü"]
)
@pytest.mark.parametrize("name", ["John", ".John", "...", "=.", "x" * 75 + ".", "é" * 30 + "." * 100])
def test_a_mail_that_is_called_tame_is_sent_like_any_other(tmp_path: Path, text: str, name: str) -> None:
    room = mailroom(write(tmp_path, t__subject_txt="s", t__body_txt=text, t__body_html=text))
    for _ in range(3):
        mail = room.compose(job(template="t", userName=name))
        assert wire_form(mail) == wire_form(replace(mail, tame=False))


def test_our_mails_are_tame() -> None:
    assert mailroom().compose(job(userName="John Doe")).tame


def test_an_operators_file_goes_before_ours_one_by_one(tmp_path: Path) -> None:
    write(tmp_path, otp__subject_txt="Our code for you", otp__fr__body_txt="Votre code : {{ otp }}")
    room = mailroom(tmp_path)
    english, french = read(room.compose(job()).content), read(room.compose(job(locale="fr-CA")).content)
    assert english["subject"] == french["subject"] == "Our code for you"
    assert "your one-time code is" in part(english, "plain")
    assert part(french, "plain").strip() == "Votre code : 123456"
    assert "This is your code" in part(french, "html")


def test_an_operators_layout_serves_our_templates(tmp_path: Path) -> None:
    write(tmp_path, layout_html="<b>{{ otp }}</b> {% block heading %}{% endblock %}")
    assert part(read(mailroom(tmp_path).compose(job()).content), "html").strip() == "<b>123456</b> Your one-time code"


def test_an_operators_own_template_needs_all_three_files(tmp_path: Path) -> None:
    write(tmp_path, invite__subject_txt="Come", invite__body_txt="{{ otp }} {{ team }}")
    with pytest.raises(TemplateError, match=r"template invite/body.html: is missing"):
        mailroom(tmp_path)
    write(tmp_path, invite__body_html="{{ otp }} {{ team }}")
    assert (
        part(read(mailroom(tmp_path).compose(job(template="invite", team="A")).content), "html").strip() == "123456 A"
    )


def test_a_template_that_cannot_be_compiled_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, otp__body_txt="one\n{% if %}\n")
    with pytest.raises(TemplateError, match=r"template otp/body.txt, line 2: Expected an expression"):
        mailroom(tmp_path)


def test_a_layout_that_cannot_be_compiled_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, layout_html="<p>\n{% block a %}\n")
    with pytest.raises(TemplateError, match=r"template layout.html, line 2: Unexpected end of template"):
        mailroom(tmp_path)
    write(tmp_path, layout_html="{% include 'none.html' ignore missing %}{% include 'layout.html' ignore missing %}")
    assert mailroom(tmp_path).book.names == ["otp", "password_reset", "welcome"]


def test_data_that_a_template_needs_is_named_when_it_is_missing(tmp_path: Path) -> None:
    write(tmp_path, otp__body_txt="{{ otp }}\n{{ orderNumber }}")
    with pytest.raises(
        ComposeError, match=r"template otp/body.txt, line 2: 'orderNumber' is undefined; give it in metadata"
    ):
        mailroom(tmp_path).compose(job())


def test_a_template_that_fails_tells_no_data(tmp_path: Path) -> None:
    write(tmp_path, otp__body_html="{{ {}[otp ~ userName] }}")
    with pytest.raises(ComposeError) as caught:
        mailroom(tmp_path).compose(job("SECRET99", userName="Mallory"))
    assert str(caught.value).startswith("template otp/body.html, line 1: ")
    assert "SECRET99" not in str(caught.value)
    assert "Mallory" not in str(caught.value)


def test_an_unknown_template_is_named_with_those_there_are() -> None:
    with pytest.raises(ComposeError, match="none named nope; known: otp, password_reset, welcome"):
        mailroom().compose(job(template="nope"))


def test_ours_are_all_there() -> None:
    assert mailroom().book.names == ["otp", "password_reset", "welcome"]
    assert mailroom().book.languages("otp") == ["", "de"]
    assert (OURS / "layout.html").is_file()


async def test_a_mail_made_apart_is_the_same(tmp_path: Path) -> None:
    room = mailroom()
    try:
        assert await room.compose_apart(job()) == room.compose(job())
        with pytest.raises(ComposeError, match="none named nope"):
            await room.compose_apart(job(template="nope"))
        assert await room.compose_apart(job()) == room.compose(job())
    finally:
        await room.close()


async def test_a_process_that_rested_long_enough_is_gone_and_the_next_suspect_gets_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("otp_stream.mail.apart._REST_S", 0.05)
    room = mailroom()
    try:
        assert await room.compose_apart(job()) == room.compose(job())
        await asyncio.sleep(0.1)
        assert await room.compose_apart(job()) == room.compose(job())
    finally:
        await room.close()


async def test_a_process_in_use_is_not_sent_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otp_stream.mail.apart._REST_S", 0.05)
    room = mailroom()
    ends = time.monotonic() + 0.5
    try:
        while time.monotonic() < ends:
            await room.compose_apart(job())
    finally:
        await room.close()


async def test_a_suspect_is_not_blamed_for_a_process_that_died_of_something_else() -> None:
    room = mailroom()
    try:
        await room.compose_apart(job())
        child = room._apart._child
        assert child is not None
        child.kill()
        assert await room.compose_apart(job()) == room.compose(job())
    finally:
        await room.close()


async def test_a_preview_is_tried_once_whatever_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "otp").mkdir()
    (tmp_path / "otp" / "body.html").write_text("{{ otp[9:][0] }}")
    room, tried = mailroom(tmp_path), list[str]()

    async def counted(asked: Job) -> Any:
        tried.append(asked.ask.metadata.template)
        return room.compose(asked)

    monkeypatch.setattr(room, "compose_apart", counted)
    previews = Previews(room, "en")
    for _ in range(2):
        with pytest.raises(ComposeError, match=r"template otp/body.html, line 1"):
            await previews.make("otp", "")
        assert (await previews.make("welcome", "de")).subject
    assert tried == ["otp", "welcome"]
