"""How an address or a code is found in a text, and how much of the text is redacted."""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from itertools import product
from math import ceil

import pytest

from otp_stream.core import masking
from otp_stream.core.masking import SHOWN, contains_secret, cut, scrub, scrub_suspects

CODE, ADDRESS = "482913", "grace.hopper@x.example"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # an escape is redacted as a whole, and only what is escaped
        ("no %3482913 here", "no *** here"),
        ("no 48291%33 here", "no *** here"),
        ("no %34%38%32%39%31%33 here", "no *** here"),
        ("no =3482=\r\n913, =41 here", "no ***, =41 here"),
        ("no %u0034%u00382913 here", "no *** here"),
        ("no %25%33%3482913 here", "no *** here"),
        ("no \\u00348\\x32913 here", "no *** here"),
        ("no &#52;82913&amp; here", "no ***&amp; here"),
        ("no \\ud835\\udfd2\\ud835\\udfd62913 here", "no *** here"),  # mathematical digits, in two halves
        # what cannot be decoded hides nothing
        ("no %ff482913 here", "no %ff*** here"),
        ("no =FF482913 here", "no =FF*** here"),
        ("no \\ud835 482913 here", "no \\ud835 *** here"),
        ("no \\xff482913 here", "no \\xff*** here"),
        # a code within a longer number is found if it has no gaps
        ("no 1482913 here", "no 1*** here"),
        ("no 148 29 13 here", "no 148 29 13 here"),
        # neighbours are redacted once
        ("no 482913482913 here", "no *** here"),
        ("no 482913 482913 here", "no *** *** here"),
        ("no 4829134829134 here", "no ***4 here"),
        ("482913", "***"),
    ],
)
def test_exactly_the_code_is_redacted(text: str, shown: str) -> None:
    assert scrub(text, CODE) == shown


@pytest.mark.parametrize("written", ["jos\u00e9", "JOS\u00c9", "jos%C3%A9", "jos%u00e9", "jos\\u00e9", "jos&eacute;"])
def test_a_name_with_an_accent_is_redacted_however_it_is_written(written: str) -> None:
    assert scrub(f"no <{written}> here", "jos\u00e9@x.example") == "no <***> here"


@pytest.mark.parametrize(
    ("text", "secret", "shown"),
    [
        ("code 1234 here", "1234", "code *** here"),
        ("code 123 here", "123", "code 123 here"),
        ("no 11111 here", "1111", "no *** here"),
        ("no 1234 or 12 34 here", "12-34", "no *** or *** here"),
        ("no ab1 or a-b1 here", "a-b1", "no ab1 or *** here"),
        ("no anna here", "anna+a+b@x.example", "no *** here"),
        ("no bo here", "bo@x.example", "no *** here"),
        ("no b here", "b@x.example", "no b here"),
        ("no bob here", "bob+tag@x.example", "no *** here"),
        ("no a.b here", "a.b@x.example", "no *** here"),
        ("no a-b here", "a.b@x.example", "no a-b here"),
        ("no a-bcd here", "a.bcd@x.example", "no *** here"),
        ("no ab.cd1 here", "ab.cd@x.example", "no ab.cd1 here"),
        ("no 1ab.cd here", "ab.cd@x.example", "no 1ab.cd here"),
        ("no grace.hopper@x.example.org here", ADDRESS, "no ***.org here"),
        ("no code", "", "no code"),
    ],
)
def test_a_secret_is_redacted_from_its_shortest_form_on(text: str, secret: str, shown: str) -> None:
    assert scrub(text, secret) == shown


@pytest.mark.parametrize("quotes", ["<>", '""', "''", "()", "[]", "{}", "``", "=%"])
def test_an_ordinary_word_is_redacted_in_quotes_only(quotes: str) -> None:
    before, after = quotes
    for text in (f"no {before}user here", f"no user{after} here"):
        assert scrub(text, "user@x.example") == text.replace("user", "***")
        assert contains_secret(text, "user@x.example", "", partial=True)
    assert scrub("no user here, user", "user@x.example") == "no user here, user"
    assert not contains_secret("no user here, user", "user@x.example", "", partial=True)


def test_a_name_that_a_text_repeats_in_longer_words_is_redacted_after_500_of_them() -> None:
    shown = scrub("xbobby " * 502, "bobby@x.example", limit=5_000)
    assert shown == ("xbobby " * 500 + "x*** " * 2).strip()
    assert scrub("bobby " * 501 + "xbobby", "bobby@x.example", limit=5_000).endswith("*** xbobby")
    assert contains_secret("xbobby " * 501, "bobby@x.example", "", partial=True)
    assert not contains_secret("xbobby " * 500, "bobby@x.example", "", partial=True)


def test_a_text_is_cut_at_300_characters_between_words() -> None:
    exact = "no " * 99 + "end"
    assert cut(exact) == exact
    assert cut(exact + "s") == exact[:-4]
    assert cut("x" * 171 + " " + "y" * 128 + "z") == "x" * 171
    assert cut("x" * 170 + " " + "y" * 129 + "z") == "x" * 170 + " " + "y" * 129


def test_a_secret_behind_the_last_shown_character_leaves_no_trace() -> None:
    exact = "no " * 99 + "end"
    assert scrub(f"{exact}{CODE}", CODE) == exact
    assert scrub(f"{exact[1:]}{CODE}", CODE) == f"{exact[1:]}***"
    assert len(exact) == SHOWN


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("550 5.1.1 no such user", "550 5.1.1 no such user"),
        ("code 1234 ab12 a1", "code *** *** a1"),
        ("code abcd 12 34 gone", "code abcd *** gone"),
        ("id a482913b gone", "id *** gone"),
        ("u@x @abc gone", "u@x *** gone"),
        ("u@x.example " * 40 + "gone " * 60, "*** " * 40 + "gone " * 28),
    ],
)
def test_words_that_may_be_secrets_are_redacted(text: str, shown: str) -> None:
    assert scrub_suspects(text) == shown
    assert scrub_suspects(f"bobby {text}", "bobby@x.example") == f"*** {shown}"[:SHOWN]


ENCODINGS: list[Callable[[bytes], str]] = [
    lambda it: b64encode(it).decode(),
    lambda it: urlsafe_b64encode(it).decode().rstrip("="),
    bytes.hex,
    lambda it: it.hex(":").upper(),
]


@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("secret", [CODE, ADDRESS, "grace.hopper", "\x00" + CODE, "~~~?" + CODE + "~~~?"])
def test_an_encoded_secret_is_found_whatever_is_beside_it(encode: Callable[[bytes], str], secret: str) -> None:
    for before, after in product(["", "-", "a", "ab", "abc"], ["", "=", ".", "a", "ab", "abc"]):
        text = before + encode(secret.encode()) + after
        assert contains_secret(text, ADDRESS, CODE, partial=True), text
        assert not contains_secret(text, "ada.lovelace@x.example", "173205", partial=True), text


@pytest.mark.parametrize(("encode", "bits"), [(ENCODINGS[1], 6), (bytes.hex, 4)])
def test_exactly_the_digits_of_an_encoded_code_are_redacted(encode: Callable[[bytes], str], bits: int) -> None:
    for before, after in product(range(4), range(4)):
        digits = encode(b"-" * before + CODE.encode() + b"-" * after)
        first, last = before * 8 // bits, ceil((before + len(CODE)) * 8 / bits)
        assert scrub(f"<{digits}>", CODE) == f"<{digits[:first]}***{digits[last:]}>"


@pytest.mark.parametrize("code", [CODE, "Ab-9_x", ""])
@pytest.mark.parametrize("address", [ADDRESS, "bo@x.example", "bob+news@x.example", "grace+news@x.example", ""])
@pytest.mark.parametrize("partial", [True, False])
def test_an_ordinary_id_is_not_searched(
    monkeypatch: pytest.MonkeyPatch, address: str, code: str, *, partial: bool
) -> None:
    monkeypatch.setattr(masking, "Searched", None)
    for job_id in ("", "7", "login-17", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "orders/2026:11_A.b", "news@y.org"):
        assert not contains_secret(job_id, address, code, partial=partial)


@pytest.mark.parametrize(
    ("text", "address", "code"),
    [
        ("\uff14\uff18\uff12\uff19\uff11\uff13", ADDRESS, CODE),
        (CODE, ADDRESS, "\uff14\uff18\uff12\uff19\uff11\uff13"),
        ("grace", "\uff47race@x.example", CODE),
        ("4829%31%33", ADDRESS, CODE),
        ("4829=31=33", ADDRESS, CODE),
        ("4829\\x31\\x33", ADDRESS, CODE),
        ("4829&#49&#51", ADDRESS, CODE),
        ("x-anna", "anna@x.example", ""),
        ("x-anna", "anna+news@x.example", ""),
        ("x-grace-hopper", "Grace.Hopper@x.example", ""),
        ("Ym9AYsO8Y2hlci5leGFtcGxl", "bo@xn--bcher-kva.example", ""),
        ("x-grace", "grace+news@x.example", CODE),
        ("x-ann", "ann+news@x.example", ""),
        ("x-ann+news", "ann+news@x.example", CODE),
        ("bo@x.example", "bo@x.example", CODE),
        ("BO@B\u00dcCHER.example", "bo@xn--bcher-kva.example", CODE),
        ("x----", ADDRESS, "----"),
        ("x-....", "....@x.example", CODE),
        ("48-29-13", ADDRESS, CODE),
        (CODE, "", CODE),
        ("GRACE_HOPPER", ADDRESS, ""),
    ],
)
def test_a_secret_in_an_id_is_found(text: str, address: str, code: str) -> None:
    assert contains_secret(text, address, code, partial=True) is (text != "x-ann")
