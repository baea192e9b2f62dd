"""Mails with hostile values, each compared with a mail that has harmless values and must be equal otherwise."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from email import message_from_bytes
from email.header import decode_header, make_header
from email.utils import parseaddr
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any

from mails import identity, job, part, read

from otp_stream.core.job import Job
from otp_stream.mail import Brand, Composer, MailIdentity
from otp_stream.mail.sanitized import NAME_LIMIT, safe_text
from otp_stream.mail.tenant_composer import TenantComposer

CODE = "481516"
TEMPLATES = ("otp", "welcome", "password_reset")
LOCALES = ("en", "de", "ar", "zh-Hans")
VALUES = (
    "\r\nBcc: eve@example.com", "\nSubject: x\n\n<b>", "\r\n.\r\nMAIL FROM:<eve@example.com>", "\r\n\r\n--=_x--\r\n",
    "\x85x\u2028y\u2029z\x0b\x0c", "\0", "\0\x01\x1b[31m\x7f\x9f", "\t",
    "\u202egnp.exe\u202c", "\u2066x\u2069\u2067", "\u200f\u200e\u061c", "\u202d123\u202c", "\ufeff\u00ad\u2060",
    "x" * 10_000, "ä" * 3_000, "<" * 10_000, "&" * 10_000, "\n" * 5_000, "\u202e" * 3_000, "‘" * 3_000, "= \n" * 2_500,
    "<script>alert(1)</script>", "</p></td></table><h1>", "</title></style><b>", "<!--", "-->", "<![endif]-->", "]]>",
    "\" onload='x'>", "&lt;b&gt; &amp; &#60;i&#62;", "<img src=//example.com/x.gif>", "<br>", "&nbsp;&#8238;x",
    "{{ otp }}", "{% raw %}", "{# x #}", "{{ 7*7 }}", "{% endtrans %}", "${7*7} #{7*7} <%= 7*7 %>", "}}", "%}",
    "%(otp)s", "%(userName)s", "%", "%%", "%s", "%d %(", "100 %", "%(brand)s %(count)d", "{0}", "\\1 \\g<0> \\n",
    "https://example.com/x?y=1", "www.example.com", "paypal.com", "http://paypal.com", "раураl.com", "paypal。com",
    "mailto:eve@example.com", "eve@example.com", "tel:+15550100", "javascript:alert(1)", "//example.com",
    "10.1.22.133", "xn--pypal-4ve.com", "[click](https://example.com)", "ftp.example.com", "example.\u200bcom",
    "evil.co.uk/login", "=?utf-8?q?Your_code?=", "=?utf-8?b?WA==?= =?utf-8?q?=0D=0A?=", "=3D=0D=0A.", ".", "..",
    "From eve", "--=_", "\ue000", "\ue000\ue001\ue002\uf8ff", "\U000f0000", "\ufffd", "\U0001f600\u200d\U0001f525",
    "e\u0301" * 60, "ﷺ" * 120, "١٢٣٤٥٦", "999999", "Your code is 999999", "שלום עולם", "محمد (x)",
)  # fmt: skip
"""What a stranger may type as a name, a place or a device."""
NAMES = (
    "Booking.com", "<b>", "{{ otp }}", "{% raw %}", "%(otp)s", "%s", "%%", "50 % off", "%", "A & B \"C\" 'D'",
    "=?utf-8?q?x?=", "Zoë's Café", "某某科技", "شركة أكمي", "\ue000\ue001", "W" * 60, "漢" * 60, "&lt;", "\\1", ".",
    "\U0001f468\u200d\U0001f4bb Dev", "mailto:x@y.example", "-->", "</title>", "A, B; C", '()<>[]:;@\\,."',
)  # fmt: skip
"""Names that an operator may give a brand."""
ACME = Brand(
    name="Acme", color="#e60023", support="https://example.com/help?a=1&b=2", footer=("Acme Inc.", "1 Main St")
)
BRANDS = {
    "none": Brand(),
    "texts": ACME,
    "logo": replace(ACME, logo_url="https://acme.example/logo.png?a=1&b=2", support="help@example.com"),
}
_FIELDS = ("Wqname", "Wqplace", "Wqdevice")
_NAME = "Wqbrand"


@dataclass(frozen=True)
class Mail:
    """What one parser has found in a message."""

    headers: tuple[str, ...]
    """The names of all headers, in order and in lower case."""
    sender: tuple[str, str]
    to: tuple[str, str]
    subject: str
    text: str
    html: str
    kinds: tuple[str, ...]
    """The content type of each part."""


class _Html(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None] | None]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", None))

    def handle_comment(self, data: str) -> None:
        self.tags.append((f"!{data}", None))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def structure(html: str) -> list[tuple[str, dict[str, str | None] | None]]:
    """Return every start tag with its attributes, every end tag and every comment."""
    return _parsed_html(html).tags


def shown(html: str) -> str:
    """Return the text of an HTML body."""
    return "".join(_parsed_html(html).texts)


@lru_cache(100)
def _parsed_html(html: str) -> _Html:
    # each is read several times, the harmless ones by every case
    return _Html(html)


def parsed(content: bytes) -> Mail:
    """Parse a message with the standard library."""
    message = read(content)
    (sender,), (to,) = message["from"].addresses, message["to"].addresses
    # the new interface keeps spaces between encoded words (RFC 2047 §6.2), depending on the version of Python
    name = make_header(decode_header(parseaddr(message_from_bytes(content)["from"])[0]))
    kinds = tuple(it.get_content_type() for it in message.walk())
    return Mail(
        tuple(it.lower() for it in message),
        (str(name), sender.addr_spec),
        (to.display_name, to.addr_spec),
        message["subject"],
        part(message, "plain").replace("\r\n", "\n"),
        part(message, "html").replace("\r\n", "\n"),
        kinds,
    )


@dataclass(frozen=True)
class Case:
    """A message with hostile values, and what it has to be."""

    name: str
    content: bytes
    harmless: Mail
    values: Mapping[str, str]
    """What has to be printed for each harmless value."""

    def check(self, mail: Mail) -> None:
        """Check that only the values differ from the harmless message."""
        same = self.harmless
        assert mail.headers == same.headers, self.name
        assert (mail.to, mail.kinds) == (same.to, same.kinds), self.name
        assert mail.sender == (self._printed(same.sender[0]), same.sender[1]), self.name
        assert mail.subject == self._printed(same.subject), self.name
        assert mail.text == self._printed(same.text), self.name
        assert shown(mail.html) == self._printed(shown(same.html)), self.name
        assert structure(mail.html) == self._printed_tags(structure(same.html)), self.name
        for text in (mail.text, shown(mail.html)):
            assert re.search(rf"(?<!\S){CODE}(?!\S)", text), self.name

    def _printed(self, text: str) -> str:
        # in one step, because a value may contain a harmless one
        return re.sub("|".join(self.values), lambda it: self.values[it[0]], text)

    def _printed_tags(self, tags: list[tuple[str, dict[str, str | None] | None]]) -> list[Any]:
        def printed(attributes: dict[str, str | None] | None) -> dict[str, str | None] | None:
            return attributes and {name: value and self._printed(value) for name, value in attributes.items()}

        return [(tag, printed(attributes)) for tag, attributes in tags]

    def check_bytes(self) -> None:
        """Check what SMTP and MIME need: short lines, CRLF alone, ASCII, and nothing behind the last boundary."""
        lines = self.content.split(b"\r\n")
        assert max(map(len, lines)) <= 998, self.name
        assert not re.search(rb"[\r\n]", b"".join(lines)), self.name
        assert self.content.isascii(), self.name
        (boundary,) = re.findall(rb'boundary="([^"]+)"', self.content)
        assert self.content.endswith(b"\r\n--" + boundary + b"--\r\n"), self.name
        assert self.content.count(b"--" + boundary) == 3, self.name


def of_strangers() -> Iterator[Case]:
    """Yield a message for each value, in each field alone and in all of them."""
    composers = _composers({name: _identity(brand) for name, brand in BRANDS.items()})
    for brand_name, brand in BRANDS.items():
        composer = composers[brand_name]
        for number, value in enumerate(VALUES):
            template, locale = TEMPLATES[number % 3], LOCALES[number % 4]
            for places in (_FIELDS, *((it,) for it in _FIELDS if brand is ACME)):
                values = {it: f"Ann {value} Lee" if it in places else "Ann" for it in _FIELDS}
                yield _case(f"{value[:40]!r} as {places}, {brand_name}", composer, values, template, locale)
    for template in TEMPLATES:
        for locale in LOCALES:
            for value in VALUES[::7]:
                values = dict.fromkeys(_FIELDS, f"Ann {value} Lee")
                yield _case(f"{value[:40]!r} in {template} {locale}", composer, values, template, locale)


def of_operators() -> Iterator[Case]:
    """Yield a message for each name of a brand."""
    for logo in ("", "https://acme.example/logo.png"):
        identities = {f"shop-{at}": _identity(_brand(name, logo), name) for at, name in enumerate((_NAME, *NAMES))}
        harmless, *composers = _composers(identities).values()
        for number, (name, composer) in enumerate(zip(NAMES, composers, strict=True)):
            template, locale = TEMPLATES[number % 3], LOCALES[number % 4]
            kept = job(CODE, template=template, locale=locale, userName="Ann")
            same = parsed(harmless.compose(kept).content)
            yield Case(f"brand {name!r} in {template} {locale}", _third(composer, kept), same, {_NAME: name})


def _brand(name: str, logo: str) -> Brand:
    return Brand(name=name, logo_url=logo, support="+1 555 0100", footer=(name, f"{name} {name}"))


def _case(name: str, composer: TenantComposer, values: Mapping[str, str], template: str, locale: str) -> Case:
    content = _third(composer, _job(values, template, locale))
    printed = {it: safe_text(value, NAME_LIMIT) for it, value in values.items()}
    return Case(name, content, _harmless(composer, template, locale), printed)


def _third(composer: TenantComposer, asked: Job) -> bytes:
    """Return a message that is filled in, if possible: the first two are rendered."""
    return [composer.compose(asked).content for _ in range(3)][-1]


@lru_cache(100)
def _harmless(composer: TenantComposer, template: str, locale: str) -> Mail:
    return parsed(composer.compose(_job({it: it for it in _FIELDS}, template, locale)).content)


def _job(values: Mapping[str, str], template: str, locale: str) -> Job:
    name, place, device = (values[it] for it in _FIELDS)
    # what is printed nowhere: a purpose that is not in the list, and fields that are not valid
    unused = dict.fromkeys(("purpose", "tenant", "timeZone", "team", "brand", "lang", "dir", "action"), name[:200])
    origin = {"place": place, "device": device}
    return job(CODE, template=template, locale=locale, userName=name, request=origin, **unused)


def _identity(brand: Brand, sender: str = "") -> MailIdentity:
    return identity(subject_time=True, brand=brand, sender=(sender, "no-reply@example.com"))


def _composers(identities: Mapping[str, MailIdentity]) -> dict[str, TenantComposer]:
    """Return composers that share their compiled templates."""
    composer = Composer(identity(), b"k" * 32, identities)
    return {name: composer.of(name) for name in identities}
