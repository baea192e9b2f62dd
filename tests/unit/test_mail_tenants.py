"""The mails of several tenants: who sends them, from which templates, and what happens when tenants change."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from email import message_from_bytes
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mails import identity, job, new_composer, part, read, write

from otp_stream.configs import mail_identity, tenant_identities
from otp_stream.core.mail import ComposeError
from otp_stream.mail import Composer, MailIdentity, TemplateError
from otp_stream.mail.message import Skeleton
from otp_stream.mail.preview import Previews
from otp_stream.mail.templates import Templates
from otp_stream.settings import Settings, find_problems, read_tenants

KEY = b"k" * 32
SHOP = identity(sender=("Shop 17", "no-reply@Shop17.example"), locale="de")


def headers(it: MailIdentity, tenant: str = "shop") -> Any:
    return read(Composer(identity(), KEY, {"shop": it}).compose(job(of=tenant)).content)


@pytest.fixture
async def composers() -> AsyncIterator[list[Composer]]:
    """Close the composers that a test appends."""
    made = list[Composer]()
    yield made
    for it in made:
        await it.close()


def test_each_tenant_sends_as_itself_and_in_its_language() -> None:
    composer = Composer(identity(), KEY, {"shop": SHOP})
    mail = composer.compose(job(of="shop"))
    message = read(mail.content)
    assert message["from"] == "Shop 17 <no-reply@shop17.example>"
    assert message["subject"] == "Ihr Einmalcode"
    assert message["message-id"].endswith("@shop17.example>")
    assert (mail.tenant, mail.sender) == ("shop", "no-reply@shop17.example")
    default = composer.compose(job())
    assert (default.tenant, default.sender) == ("", None)
    assert default == new_composer().compose(job())
    assert composer.tenants == ["shop"]


@pytest.mark.parametrize("tenant", ["", "shop"])
def test_bounces_go_to_the_envelope_sender_in_its_wire_form(tenant: str) -> None:
    it = identity(envelope_sender="Bounces@bücher.example")
    mail = Composer(it, KEY, {"shop": it}).compose(job(of=tenant))
    assert mail.sender == "Bounces@xn--bcher-kva.example"
    assert read(mail.content)["from"] == "Example <no-reply@example.com>"


@pytest.mark.parametrize("name", ["", "Help", "Müller & Söhne", 'The "Best" Shop', "A, B; C\\"])
def test_replies_go_to_another_address_with_any_name(name: str) -> None:
    message = headers(identity(reply_to=(name, "help@straße.example")))
    (address,) = message["reply-to"].addresses
    assert (address.display_name, address.addr_spec) == (name, "help@xn--strae-oqa.example")
    assert message.keys()[:2] == ["From", "Reply-To"]


def test_a_long_name_for_replies_is_folded() -> None:
    name = ("Кассы " * 30).strip()
    content = Composer(identity(reply_to=(name, "help@example.com")), KEY).compose(job()).content
    assert max(map(len, content.partition(b"\r\n\r\n")[0].split(b"\r\n"))) <= 78
    # the new parser of Python 3.11 keeps the space between two encoded words, against RFC 2047 §6.2
    shown = make_header(decode_header(message_from_bytes(content)["reply-to"]))
    assert str(shown) == f"{name} <help@example.com>"


@pytest.mark.parametrize("name", ["Shop", "Größe"])
def test_only_the_additional_header_distinguishes_a_mail_with_reply_to(name: str) -> None:
    sender = (name, "no-reply@example.com")
    plain = Composer(identity(sender=sender), KEY).compose(job()).content
    with_it = Composer(identity(sender=sender, reply_to=("", "help@example.com")), KEY).compose(job()).content
    assert with_it.replace(b"Reply-To: <help@example.com>\r\n", b"", 1) == plain
    assert b"Reply-To" not in plain


@pytest.mark.parametrize("text", ["x\r\nBcc: evil@example.com", "x\nBcc: e", "x\rBcc: e", "x\x85Bcc: e", "ü\r\nBcc: e"])
@pytest.mark.parametrize("field", ["sender", "reply_to"])
def test_a_line_break_in_a_name_starts_no_header(field: str, text: str) -> None:
    message = headers(replace(identity(), **{field: (text, "no-reply@example.com")}))
    assert message["bcc"] is None
    (address,) = message[{"sender": "from", "reply_to": "reply-to"}[field]].addresses
    assert address.display_name.replace(" ", "") == "".join(text.split()).replace("\x85", "")
    assert set(message.keys()) - {"Reply-To"} == set(headers(identity()).keys())


@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_name_stays_in_its_header(name: str) -> None:
    content = Skeleton((name, "a@example.com"), (name, "b@example.com"))._head
    lines = content.split("\r\n")
    assert all(it.isprintable() for it in lines)
    starts = [it.partition(":")[0] for it in lines if it and it[0] != " "]
    assert starts == ["From", "Reply-To", "MIME-Version", "Auto-Submitted", "X-Auto-Response-Suppress"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a@b.c\r\nBcc: e@example.com",
        "a@b.c>\r\nDATA",
        "a@b.c\n",
        "a@b.c, d@e.f",
        "<a@b.c>",
        "a b@c.d",
        "a@b c",
        "a",
    ],
)
@pytest.mark.parametrize("field", ["sender", "reply_to", "envelope_sender"])
def test_what_is_not_one_address_is_refused_without_quoting_it(field: str, address: str) -> None:
    if (field, address) == ("sender", ""):
        return  # a process that sends no mail has none
    with pytest.raises(ValueError, match=f"^{field}: must be one address") as caught:
        replace(identity(), **{field: address if field == "envelope_sender" else ("Name", address)})
    assert "DATA" not in str(caught.value)


def test_a_domain_that_idna_does_not_allow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^reply_to: must be one address"):
        identity(reply_to=("", "a@-ü-.example"))


def test_addresses_that_need_smtputf8_are_refused_where_the_envelope_does_not_ask_for_it() -> None:
    def problems(**values: str) -> list[str]:
        return find_problems(Settings(_env_file=None, **values))

    assert problems(sender_email="jürgen@example.com") == []
    assert problems(sender_email="jürgen@example.com", envelope_sender="jürgen@example.com") == []
    (problem,) = problems(sender_email="jürgen@example.com", envelope_sender="bounces@example.com")
    assert problem.startswith("ENVELOPE_SENDER: must not be set")
    (problem,) = problems(reply_to="jürgen@example.com")
    assert problem.startswith("REPLY_TO: must be in ASCII")


def test_identities_are_read_from_the_settings_of_each_tenant(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    (tmp_path / "own").mkdir()
    file.write_text(
        '[tenants.a]\nsender_email = "A <a@shop.example>"\nreply_to = "Hülp <help@shop.example>"\n'
        'envelope_sender = "bounces@shop.example"\ntemplates_dir = "own"\n[tenants.b]\ndefault_locale = "de"\n'
    )
    settings = Settings(_env_file=None, sender_email="D <d@example.com>", reply_to="d2@example.com", tenants_file=file)
    tenants, problems = read_tenants(settings)
    assert problems == []
    assert mail_identity(settings) == identity(sender=("D", "d@example.com"), reply_to=("", "d2@example.com"))
    assert tenant_identities(tenants) == {
        "a": identity(
            tmp_path / "own",
            sender=("A", "a@shop.example"),
            reply_to=("Hülp", "help@shop.example"),
            envelope_sender="bounces@shop.example",
        ),
        "b": identity(sender=("D", "d@example.com"), reply_to=("", "d2@example.com"), locale="de"),
    }


def test_a_tenants_templates_are_its_own(tmp_path: Path) -> None:
    write(tmp_path, otp__subject_txt="Shop code", extra__subject_txt="E", extra__body_txt="x", extra__body_html="x")
    composer = Composer(identity(), KEY, {"shop": identity(tmp_path), "other": identity()})
    assert read(composer.compose(job(of="shop")).content)["subject"] == "Shop code"
    assert read(composer.compose(job(of="shop", template="extra")).content)["subject"] == "E"
    for tenant in ("", "other"):
        assert read(composer.compose(job(of=tenant)).content)["subject"] == "Your one-time code"
        with pytest.raises(ComposeError, match="none named extra"):
            composer.compose(job(of=tenant, template="extra"))


def test_a_job_of_a_removed_tenant_is_not_sent_as_another_one() -> None:
    with pytest.raises(ComposeError, match=r"^there is no tenant gone in TENANTS_FILE$"):
        new_composer().compose(job(of="gone"))


def test_templates_are_compiled_once_for_each_folder_and_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = list[tuple[Path | None, str]]()
    original = Templates.__init__

    def counted(self: Templates, folder: Path | None, locale: str, *more: Any) -> None:
        compiled.append((folder, locale))
        original(self, folder, locale, *more)

    monkeypatch.setattr(Templates, "__init__", counted)
    (tmp_path / "a").mkdir()
    tenants = {f"t{number}": identity(sender=("", f"a@shop{number}.example")) for number in range(200)}
    tenants |= {f"own{number}": identity(tmp_path / "a", locale=("de-AT", "de_at")[number % 2]) for number in range(9)}
    composer = Composer(identity(), KEY, tenants)
    assert compiled == [(None, "en"), (tmp_path / "a", "de-AT")]
    assert composer.of("t7").templates is composer.templates
    assert [it.tenant for it in composer.own_templates()] == ["own0"]
    composer.use(composer.prepare(tenants))
    assert len(compiled) == 2


def test_every_folder_with_an_error_is_reported_once_with_a_tenant(tmp_path: Path) -> None:
    write(tmp_path, a__otp__subject_txt="{% if %}", b__otp__body_txt="{% for %}")
    tenants = {f"t{number}": identity(tmp_path / "abc"[number % 3]) for number in range(6)}
    with pytest.raises(TemplateError) as caught:
        Composer(identity(), KEY, tenants)
    first, second, third = str(caught.value).split("\n")
    assert first.startswith("tenant t0: template otp/subject.txt, line 1: ")
    assert second.startswith("tenant t1: template otp/body.txt, line 1: ")
    assert third == f"tenant t2: {tmp_path / 'c'} cannot be read (No such file or directory)"


def test_replaced_tenants_are_used_at_once_and_unchanged_ones_are_kept() -> None:
    composer = Composer(identity(), KEY, {"a": SHOP, "b": SHOP})
    kept, templates = composer.of("a"), composer.templates
    prepared = composer.prepare({"a": SHOP, "c": replace(SHOP, sender=("", "c@example.com"))})
    assert composer.tenants == ["a", "b"]
    composer.use(prepared)
    assert composer.tenants == ["a", "c"]
    assert composer.of("a") is kept
    assert composer.templates is templates
    assert composer.compose(job(of="c")).sender == "c@example.com"
    with pytest.raises(ComposeError, match="no tenant b"):
        composer.compose(job(of="b"))
    composer.use(composer.prepare({"a": replace(SHOP, sender=("", "new@example.com"))}))
    assert composer.compose(job(of="a")).sender == "new@example.com"


def test_tenants_with_an_error_change_nothing(tmp_path: Path) -> None:
    composer = Composer(identity(), KEY, {"a": SHOP})
    write(tmp_path, otp__subject_txt="{% if %}")
    with pytest.raises(TemplateError, match=r"^tenant b: template otp/subject.txt, line 1"):
        composer.prepare({"a": replace(SHOP, sender=("", "new@example.com")), "b": identity(tmp_path)})
    assert composer.compose(job(of="a")).sender == "no-reply@shop17.example"
    assert composer.tenants == ["a"]


def subject(composer: Composer, tenant: str = "shop") -> str:
    return str(read(composer.compose(job(of=tenant)).content)["subject"])


def test_templates_of_a_changed_folder_are_compiled_again(tmp_path: Path) -> None:
    write(tmp_path, otp__subject_txt="One", same__subject_txt="", same__body_txt="", same__body_html="")
    tenants = {"shop": identity(tmp_path)}
    composer = Composer(identity(), KEY, tenants)
    write(tmp_path, otp__subject_txt="Two, and longer")
    assert subject(composer) == "One"
    composer.use(composer.prepare(tenants))
    assert subject(composer) == "Two, and longer"


def test_a_folder_of_links_as_kubernetes_mounts_it_is_seen_to_change(tmp_path: Path) -> None:
    write(tmp_path / "..v1", otp__subject_txt="One")
    write(tmp_path / "..v2", otp__subject_txt="Two")
    (tmp_path / "otp").symlink_to("..data/otp")
    (tmp_path / ".#lock").symlink_to("user@host.1")
    data = tmp_path / "..data"
    data.symlink_to("..v1")
    tenants = {"shop": identity(tmp_path)}
    composer = Composer(identity(), KEY, tenants)
    assert subject(composer) == "One"
    data.unlink()
    data.symlink_to("..v2")
    composer.use(composer.prepare(tenants))
    assert subject(composer) == "Two"
    write(tmp_path / "..v2", otp__subject_txt="Three, in the same file")
    composer.use(composer.prepare(tenants))
    assert subject(composer) == "Three, in the same file"


async def test_one_process_composes_for_all_tenants(tmp_path: Path, composers: list[Composer]) -> None:
    write(tmp_path, otp__subject_txt="Shop code")
    composer = Composer(identity(), KEY, {"shop": identity(tmp_path, reply_to=("Hülp", "h@example.com")), "de": SHOP})
    composers.append(composer)
    pids = set[int]()
    for tenant in ("", "shop", "de", ""):
        assert await composer.compose_isolated(job(of=tenant)) == composer.compose(job(of=tenant))
        child = composer._process._child
        assert child is not None
        pids.add(child.pid)
    assert len(pids) == 1
    with pytest.raises(ComposeError, match="no tenant gone"):
        await composer.compose_isolated(job(of="gone"))


async def test_templates_that_another_process_cannot_compile_are_rendered_in_this_one(
    tmp_path: Path, composers: list[Composer]
) -> None:
    write(tmp_path, otp__subject_txt="Shop code")
    composer = Composer(identity(), KEY, {"shop": identity(tmp_path)})
    composers.append(composer)
    await composer.compose_isolated(job())
    write(tmp_path, otp__subject_txt="{% if %}")
    assert await composer.compose_isolated(job(of="shop")) == composer.compose(job(of="shop"))


async def test_a_mail_that_is_being_composed_when_tenants_change_is_finished(composers: list[Composer]) -> None:
    tenants = {"shop": SHOP}
    composer = Composer(identity(), KEY, tenants)
    composers.append(composer)
    await composer.compose_isolated(job())
    first = composer._process._child
    assert first is not None
    before = composer.compose(job(of="shop"))
    os.kill(first.pid, signal.SIGSTOP)
    composing = asyncio.create_task(composer.compose_isolated(job(of="shop")))
    waiting = asyncio.create_task(composer.compose_isolated(job()))
    await asyncio.sleep(0.05)
    composer.use(composer.prepare({}))
    assert composer._process._child is first
    os.kill(first.pid, signal.SIGCONT)
    assert await composing == before
    assert await waiting == composer.compose(job())
    second = composer._process._child
    assert second is not None
    assert second.pid != first.pid
    assert await asyncio.wait_for(first.wait(), 5) == -signal.SIGKILL


async def test_a_process_that_is_idle_when_tenants_change_ends_at_once(composers: list[Composer]) -> None:
    composer = new_composer()
    composers.append(composer)
    await composer.compose_isolated(job())
    child = composer._process._child
    assert child is not None
    composer.use(composer.prepare({"shop": SHOP}))
    assert composer._process._child is None
    assert await asyncio.wait_for(child.wait(), 5) == -signal.SIGKILL
    assert await composer.compose_isolated(job(of="shop")) == composer.compose(job(of="shop"))


async def test_previews_show_a_tenants_mails_and_are_built_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, otp__subject_txt="For {{ tenant }}")
    tenants: Mapping[str, MailIdentity] = {
        "shop": identity(tmp_path, sender=("Größe", "s@example.com"), reply_to=("", "h@example.com")),
        "de": SHOP,
    }
    composer, tried = Composer(identity(sender=("", "")), KEY, tenants), list[str]()

    async def counted(asked: Any) -> Any:
        tried.append(asked.tenant)
        return composer.compose(asked)

    monkeypatch.setattr(composer, "compose_isolated", counted)
    previews = Previews(composer)
    assert previews.tenants == ["shop", "de"]
    shown = await previews.make("shop", "otp", "en")
    assert (shown.sender, shown.reply_to, shown.subject) == ("Größe <s@example.com>", "h@example.com", "For shop")
    assert (await previews.make("", "otp", "en")).sender == ""
    choice = previews.choice("de")
    assert choice.default_locale == "de"
    assert {"de", "en"} <= set(choice.languages["otp"])
    assert "" not in choice.languages["otp"]
    for wrong, text in (
        (("gone", "otp", ""), "there is no tenant gone"),
        (("de", "none", ""), "there is no template named none; known: otp, password_reset, welcome"),
        (("de", "otp", "fi"), "no template is in fi"),
    ):
        with pytest.raises(ComposeError, match=text):
            await previews.make(*wrong)
    composer.use(composer.prepare({**tenants, "de": replace(SHOP, sender=("", "new@example.com"))}))
    await previews.make("shop", "otp", "en")
    await previews.make("", "otp", "en")
    assert tried == ["shop", ""]
    assert (await previews.make("de", "otp", "de")).sender == "new@example.com"


async def test_visitors_choose_neither_how_many_previews_are_kept_nor_how_many_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    composer = Composer(identity(), KEY, {f"shop-{number}": SHOP for number in range(10)})
    making = list[Any]()
    most = 0

    async def counted(asked: Any) -> Any:
        nonlocal most
        making.append(asked)
        most = max(most, len(making))
        await asyncio.sleep(0)
        making.remove(asked)
        return composer.compose(asked)

    monkeypatch.setattr(composer, "compose_isolated", counted)
    monkeypatch.setattr("otp_stream.mail.preview._MOST_MADE", 8)
    previews = Previews(composer)
    for language in ("en", "de"):
        await asyncio.gather(*(previews.make(tenant, "otp", language) for tenant in composer.tenants))
        assert sum(map(len, previews._made.values())) <= 8
    assert most == 1


async def test_a_process_that_cannot_start_does_not_change_the_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        raise OSError("no more processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    composer = Composer(identity(), KEY, {"shop": SHOP})
    mail = await composer.compose_isolated(job(of="shop"))
    assert mail.sender == "no-reply@shop17.example"
    assert part(read(mail.content), "plain").count("123456") == 1


def test_a_default_folder_that_disappears_is_not_replaced_by_the_built_in_templates(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    identity = MailIdentity(sender=("", "a@example.com"), templates_dir=folder, default_locale="en")
    composer = Composer(identity, b"k" * 32)
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        composer.prepare({})
