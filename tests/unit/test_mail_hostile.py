"""Hostile values never change a mail's structure, nor make it say something else."""

import re
from typing import Any

import pytest
from hostile_mails import CODE, NAMES, VALUES, Case, of_operators, of_strangers, parsed
from mails import identity, job, part, read

from otp_stream.mail import Brand, Composer
from otp_stream.mail.sanitized import NAME_LIMIT, safe_text
from otp_stream.settings.brand_validators import brand_name


def test_values_of_strangers_are_printed_and_change_nothing_else() -> None:
    cases = list(of_strangers())
    assert len(cases) > 500
    _check(cases)


def test_names_of_brands_are_printed_and_change_nothing_else() -> None:
    _check(list(of_operators()))


def _check(cases: list[Case]) -> None:
    for case in cases:
        case.check_bytes()
        case.check(parsed(case.content))


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_brands_are_valid_settings(name: str) -> None:
    assert brand_name(name) == name


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_printed_without_controls_and_in_one_line(value: str) -> None:
    shown = safe_text(f"Ann {value} Lee", NAME_LIMIT)
    assert shown.startswith("Ann")
    assert len(shown) <= NAME_LIMIT
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]", shown)


@pytest.mark.parametrize("value", ["", "\0\r\n", "\u202e\u2066", " ", "\u200b\ufeff", "\x85"])
def test_a_value_without_a_visible_character_is_left_out(value: str) -> None:
    composer = Composer(identity(brand=Brand(name="Acme")), b"k" * 32)
    for template in ("otp", "welcome", "password_reset"):
        made = composer.compose(job(CODE, template=template, userName=value, request={"place": value, "device": value}))
        assert made == composer.compose(job(CODE, template=template))


@pytest.mark.parametrize("value", [*VALUES, ["<b>"], {"{{ otp }}": "%s"}, 7, True])
def test_what_the_built_in_mails_do_not_print_changes_no_byte(value: Any) -> None:
    composer = Composer(identity(brand=Brand(name="Acme")), b"k" * 32)
    value = f"x {value[:999]}" if isinstance(value, str) else value
    odd = dict.fromkeys(("purpose", "locale", "timeZone", "tenant", "team", "brand", "lang", "dir"), value)
    assert composer.compose(job(CODE, **odd)) == composer.compose(job(CODE))


@pytest.mark.parametrize(
    "code",
    ["{{7*7}}", "{%raw%}", "%(otp)s", "%%%%", "%s%s", "<b>&amp;", "١٢٣٤٥٦", "\ue000\ue001\ue002\ue003", "....", "=3D="],
)
def test_a_code_is_printed_as_it_is(code: str) -> None:
    composer = Composer(identity(), b"k" * 32)
    for locale in ("en", "ar"):
        for _ in range(3):
            message = read(composer.compose(job(code, locale=locale)).content)
            assert f"    {code}\n" in part(message, "plain").replace("\r\n", "\n")


@pytest.mark.parametrize(
    "name", ["x\r\nBcc: eve@example.com", "x\0\x85y", "\u202egnp", 'A "B" <c@d.example>', "=?utf-8?q?x?="]
)
def test_a_senders_name_adds_no_header(name: str) -> None:
    harmless = read(Composer(identity(), b"k" * 32).compose(job()).content)
    message = read(Composer(identity(sender=(name, "a@example.com")), b"k" * 32).compose(job()).content)
    assert message.keys() == harmless.keys()
    (address,) = message["from"].addresses
    assert address.addr_spec == "a@example.com"
    assert not re.search("[\x00-\x1f\x85]", address.display_name)
