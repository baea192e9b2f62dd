"""The page `/templates` with several tenants."""

import re
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest
from mails import identity, write
from starlette.requests import Request
from starlette.responses import Response

from otp_stream.core.job import Job
from otp_stream.core.mail import Mail
from otp_stream.mail import Composer
from otp_stream.mail.preview import Previews
from otp_stream.web.templates import TemplatesView

KEY = b"k" * 32


def view(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> TemplatesView:
    async def here(job: Job) -> Mail:
        return composer.compose(job)

    monkeypatch.setattr(composer, "compose_isolated", here)  # a process would take a second
    return TemplatesView(Previews(composer))


def request(**query: str) -> Request:
    return Request({"type": "http", "path": "/templates", "headers": [], "query_string": urlencode(query).encode()})


def text(response: Response) -> str:
    return bytes(response.body).decode()


async def test_the_page_shows_the_mails_of_one_tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, otp__subject_txt="Shop code", otp__body_html="<b>{{ otp }}</b>")
    own = identity(tmp_path, sender=("Größe <b>", "s@example.com"), reply_to=("", "h@example.com"))
    pages = view(Composer(identity(), KEY, {"shop & 17": own, "de": identity(locale="de")}), monkeypatch)
    page = text(await pages.page(request(tenant="shop & 17")))
    assert '<h2 dir="auto">Shop code</h2>' in page
    assert "Größe <b>" not in page
    assert 'From: "Größe <b>" <s@example.com> · Reply-To: h@example.com' in unescape(page)
    assert '<option value="shop &amp; 17" selected>shop &amp; 17</option>' in page
    assert '<option value="">default</option>' in page
    assert '<option value="otp" selected>otp</option>' in page
    assert '<option value="" selected>none (default en)</option>' in page
    assert '<option value="de">de</option>' in page
    assert 'src="preview?tenant=shop%20%26%2017&amp;name=otp&amp;language="' in page
    frame = await pages.preview(request(tenant="shop & 17", name="otp", language=""))
    assert text(frame).strip() == "<b>123456</b>"
    german = text(await pages.page(request(tenant="de")))
    assert '<h2 dir="auto">Ihr Einmalcode</h2>' in german
    assert '<option value="" selected>none (default de)</option>' in german
    assert "From: Example &lt;no-reply@example.com&gt;</p>" in text(await pages.page(request()))


async def test_a_tenant_that_does_not_exist_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = view(Composer(identity(), KEY, {"de": identity(locale="de")}), monkeypatch)
    for response in (await pages.page(request(tenant="x")), await pages.preview(request(tenant="x", name="otp"))):
        assert (response.status_code, response.media_type) == (404, "text/plain")
        assert text(response) == "there is no tenant x in TENANTS_FILE\n"


async def test_without_tenants_the_page_offers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    page = text(await view(Composer(identity(sender=("", "")), KEY), monkeypatch).page(request()))
    assert "Tenant" not in page
    assert "tenant=" not in page
    assert "From:" not in page


async def test_a_locale_without_a_translation_shows_what_a_job_with_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, invite__subject_txt="Come in", invite__body_txt="{{ otp }}", invite__body_html="<b>{{ otp }}</b>")
    pages = view(Composer(identity(tmp_path), KEY), monkeypatch)
    page = text(await pages.page(request(name="invite", language="de")))
    assert '<h2 dir="auto">Come in</h2>' in page
    assert "This template has no translation for de." in page
    for query in ({"name": "invite", "language": ""}, {"name": "otp", "language": "de"}):
        assert "has no translation" not in text(await pages.page(request(**query)))
    assert (await pages.preview(request(name="invite", language="xx"))).status_code == 404


async def test_each_email_is_shown_in_light_and_dark_mode_narrow_and_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    page = text(await view(Composer(identity(), KEY), monkeypatch).page(request(name="otp", language="ar")))
    frames = re.findall(r'<iframe class="(\w+)" width="(\d+)" src="preview\?name=otp&amp;language=ar".* sandbox>', page)
    assert frames == [(scheme, width) for scheme in ("light", "dark") for width in ("320", "800")]
