"""What may be shown of a person and a code."""

import json
import string
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from functools import partial
from html import escape
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otp_stream.core.dead_letter import outline
from otp_stream.core.masking import (
    contains_secret,
    cut,
    hash_address,
    is_secret_id,
    keyed_hash,
    mask_address,
    mask_recipient,
    mentions_address,
    scrub,
)
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Rejected, without_secrets
from otp_stream.core.possible_secrets import PossibleSecrets, readable_job_id, suspects, too_many
from otp_stream.core.secret_search import SHORTEST, Searched, contains_any, of_code, of_wire_address
from otp_stream.relay.reply import to_reply


def base64(value: object) -> str:
    """Return a value as JSON in base64, as producers wrap a job."""
    return b64encode(json.dumps(value).encode()).decode()


ALPHANUMERIC = string.ascii_letters + string.digits


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("user@example.com", "u***@example.com"),
        ("@x", "***@x"),
        ("nobody", "***"),
        ("", "***"),
        ('"user@home"@example.com', '"***@example.com'),  # only the last @ ends the local part
    ],
)
def test_an_address_is_masked(address: str, shown: str) -> None:
    assert mask_address(address) == shown


@settings(deadline=None)  # a busy machine may stop any example for a second
@given(first=st.sampled_from(ALPHANUMERIC), rest=st.text(min_size=1), domain=st.text().filter(lambda it: "@" not in it))
def test_a_masked_address_shows_one_character_of_the_local_part(first: str, rest: str, domain: str) -> None:
    assert mask_address(f"{first}{rest}@{domain}") == f"{first}***@{domain}"


@pytest.mark.parametrize(
    ("domain", "code"),
    [("739154.example", "739154"), ("mail.739-154.example", "739154"), ("x739154.example", "739 154"),
     ("ab12cd.example", "AB12-cd"), ("a..--b", "..--"), ("739154.example", "７３９１５４")],
)  # fmt: skip
def test_an_address_whose_domain_contains_the_code_is_not_shown(domain: str, code: str) -> None:
    assert mask_recipient(f"user@{domain}", code) == "***"
    assert mask_recipient(f"user@{domain}", "555000") == f"u***@{domain}"
    assert mask_recipient(f"user@{domain}", "") == f"u***@{domain}"  # it is erased


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("user@example.com", True), ("To: <USER@Example.com>.", True), ("x=user@example.com&y", True),
        (r'{"to": "\nuser@example.com"}', True), ("user%40example.com", True), ("dXNlckBleGFtcGxlLmNvbQ==", True),
        ('{"to": "user@example.com."}', True), ("mailto:user@example.com?x", True),
        ("superuser@example.com", False), ("a.user@example.com", False), ("a+user@example.com", False),
        ("a-user@example.com", False), ("user@example.com.au", False), ("user@example.community", False),
        ("superuser%40example.com", False), ("user at example.com", False), ("user@example.org", False),
        ("superuser@example.com, user@example.com", True),
    ],
)  # fmt: skip
def test_a_text_mentions_a_whole_address_only(text: str, *, found: bool) -> None:
    assert mentions_address(text, "user@example.com") is found


def test_a_text_mentions_an_address_with_a_domain_in_unicode() -> None:
    assert mentions_address("An ada@b\u00fccher.example.", "ada@xn--bcher-kva.example")
    assert not mentions_address("An nada@b\u00fccher.example.", "ada@xn--bcher-kva.example")


def test_a_hashed_address_ignores_case_depends_on_the_key_and_takes_any_text() -> None:
    hashed = hash_address("user@example.com", b"k")
    assert hashed == hash_address("USER@Example.com", b"k")
    assert hashed not in (hash_address("user@example.com", b"other"), hash_address("other@example.com", b"k"))
    # the hash is part of keys in Redis that workers of two versions share during an update
    assert hashed == "cd79a266c0915416fb0dc54e5417da37"
    assert hash_address("\ud800@example.com", b"k") != hash_address("\ud801@example.com", b"k")


@pytest.mark.parametrize(
    "written",
    [
        "Victim@Example.COM", "victim@example.com.", "victim@ｅｘａｍｐｌｅ．com", "victim@ⓔⓧⓐⓜⓟⓛⓔ.com",
        "victim@exam\u00adple.com",
        "ｖｉｃｔｉｍ@example.com", "ⓥictim@example.com", "𝐯ictim@example。com。",
    ],
)  # fmt: skip
def test_addresses_that_reach_one_person_have_one_hash(written: str) -> None:
    assert hash_address(written, b"k") == hash_address("victim@example.com", b"k")


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("u@straße.example", "u@xn--strae-oqa.example"),
        ("u@BU\u0308CHER.example", "u@xn--bcher-kva.example"),
        ("ju\u0308rgen@example.com", "JÜRGEN@example.com"),
        ("o\ufb03ce@example.com", "office@example.com"),
        ("of\u200d\ufe0f\u034f\u3164\uffa0fice@example.com", "office@example.com"),
    ],
)
def test_each_form_of_an_internationalised_address_has_one_hash(one: str, same: str) -> None:
    assert hash_address(one, b"k") == hash_address(same, b"k")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("u@straße.example", "u@strasse.example"),
        ("u@κλαρας.gr", "u@κλαρασ.gr"),
        ("straße@example.com", "strasse@example.com"),
        ("u+tag@example.com", "u@example.com"),
        ("u.n@example.com", "un@example.com"),
        ("foo.@docomo.ne.jp", "foo@docomo.ne.jp"),
    ],
)
def test_addresses_of_different_people_have_different_hashes(one: str, other: str) -> None:
    assert hash_address(one, b"k") != hash_address(other, b"k")


def test_secrets_are_blotted_out_and_lines_joined() -> None:
    assert scrub("550 <u@x.y>\r\n 123456", "u@x.y", "123456", "") == "550 <***> ***"
    assert len(scrub("x" * 1000)) == 300
    assert scrub("x" * 1000, limit=7) == "x" * 7


def test_a_relays_reply_cannot_control_a_terminal() -> None:
    assert scrub("550 \x1b[2J\x9b31mgone\x00 \u202etxt") == "550 \ufffd[2J\ufffd31mgone\ufffd \ufffdtxt"


def test_a_hidden_name_is_equal_for_equal_names_and_nothing_stays_nothing() -> None:
    assert keyed_hash("123456", b"k") == keyed_hash("123456", b"k") != keyed_hash("123456", b"other")
    assert "123456" not in keyed_hash("123456", b"k")
    assert keyed_hash("", b"k") == ""
    assert len(keyed_hash("\ud800", b"k")) == 32


@pytest.mark.parametrize(
    ("code", "inside"),
    [
        ("123456", string.digits),  # a number within a longer number
        ("a1b2c3", ALPHANUMERIC),  # a word within a longer word
    ],
)
@pytest.mark.parametrize("case", ["before", "after"])
def test_a_code_is_found_unless_a_longer_number_or_word_contains_it(code: str, inside: str, case: str) -> None:
    for other in string.printable.replace("%", "") + "\u00e9":
        text = f"{other}{code}" if case == "before" else f"{code}{other}"
        assert contains_secret(text, "", code) is (other not in inside), text
        # a code within a longer word may also occur on its own elsewhere in the text
        assert contains_secret(f"{text} {code}", "", code), text


@settings(deadline=None)  # a busy machine may stop any example for a second
@given(
    code=st.text(string.punctuation + ALPHANUMERIC, min_size=4, max_size=64),
    before=st.text(string.whitespace + "-:/#", max_size=5),
    after=st.text(string.whitespace + "-:/#", max_size=5),
)
def test_a_code_of_any_characters_is_found_between_separators(code: str, before: str, after: str) -> None:
    assert contains_secret(f"login{before or ' '}{code}{after or ' '}done", "", code)


def test_a_short_local_part_is_found_with_its_tag() -> None:
    assert contains_secret("bob+news", "bob+news@example.com", "123456", partial=True)


def test_what_looks_like_an_escape_in_a_secret_does_not_hide_it() -> None:
    secret = "d4Fq&'horse"
    for quoted in (f"id={escape(secret)};", f"%{escape(secret)};", f"/?q={quote(secret)}&x=1", f"&#{quote(secret)}"):
        assert contains_secret(quoted, "", secret)
        shown = scrub(f"554 bad line {quoted} seen", secret)
        assert not contains_secret(shown, "", "horse"), shown
        assert shown.endswith("seen")


@pytest.mark.parametrize("password", ["Wrong@Horse/7", "at@home99"])
def test_a_password_with_an_at_sign_is_redacted_in_any_form(password: str) -> None:
    half = len(password) // 2
    forms = (password, password.upper(), " ".join(password), f"{password[:half]}\n{password[half:]}")
    for form in (*forms, password.encode().hex()):
        assert scrub(f"535 bad line {form} seen", password) == "535 bad line *** seen"
    shown = scrub(f"535 bad line {b64encode(f'@user@{password}'.encode()).decode()} seen", password)
    assert not contains_secret(shown, "", password, partial=True)
    assert shown.startswith("535 bad line QHVz")
    assert shown.endswith("seen")


@pytest.mark.parametrize("code", ["AB12-CD34", "kX7+/=9Qz-1", "12-34-56"])
@pytest.mark.parametrize("encode", [b64encode, urlsafe_b64encode, lambda it: it.hex().encode()])
def test_a_code_with_dashes_is_found_in_an_encoding_between_other_words(
    code: str, encode: Callable[[bytes], bytes]
) -> None:
    for before in ("", "a", "ab", "abc", "message with"):
        encoded = encode(f"{before}x{code}y".encode()).decode()
        assert contains_secret(f"login {encoded} in", "", code), encoded
        shown = scrub(f"550 message with {encoded} in it is spam", code)
        assert not contains_secret(shown, "", code, partial=True), shown
        assert shown.startswith("550 message with")
        assert shown.endswith("in it is spam")


WRITTEN: list[Callable[[str], str]] = [
    lambda it: it.upper(),
    lambda it: it[:-1],
    lambda it: b64encode(it.encode()).decode(),
    lambda it: urlsafe_b64encode(it.encode()).decode().rstrip("="),
    lambda it: it.encode().hex(),
    lambda it: "".join(f"%{byte:02x}" for byte in it.encode()),
    "-".join,
]


@settings(deadline=None)
@given(
    text=st.text(ALPHANUMERIC + "-_+/. :@%=&\\\u00e9", max_size=30),
    at=st.integers(0, 30),
    encode=st.sampled_from(WRITTEN),
    address=st.from_regex(r"\A([ab.+]{0,6}@(x|xn--tda)\.example|)\Z"),
    code=st.text("12ab-.", max_size=8),
    of=st.sampled_from(["address", "code"]),
    partial=st.booleans(),
)
def test_the_quick_check_changes_no_answer_of_the_search(
    text: str,
    at: int,
    encode: Callable[[str], str],
    address: str,
    code: str,
    of: str,
    partial: bool,  # noqa: FBT001 - as above
) -> None:
    text = f"{text[:at]}{encode(address if of == 'address' else code)}{text[at:]}"
    needles = [*of_wire_address(address, shortest=SHORTEST if partial else len(address)), *of_code(code)]
    searched = Searched(text)
    found = any(searched.spans(needles)) if partial else contains_any(searched, needles)
    assert contains_secret(text, address, code, partial=partial) is found


@pytest.mark.parametrize(
    ("text", "address", "code", "found"),
    [
        ("login-user@example.com", "user@example.com", "", True),
        ("login-user@example.com", "", "", False),
        ("login", "user@example.com", "", False),
        ("login--17", "", "", False),
        ("a1b2c3", "user@example.com", "A1B2C3", True),
        ("STRASSE@x.y", "stra\u00dfe@x.y", "", True),
        ("login-%31%32%33456", "", "123456", True),
        ("login-12%2034", "", "12%2034", True),  # as it is written, not only as it is read
        ("3.14159", "", "3x14159", False),
        ("3x14159", "", "3.14159", False),  # a code is no pattern
        # an address in its other form
        ("l-user@stra\u00dfe.example-7", "user@xn--strae-oqa.example", "", True),
        ("USER@STRASSE.example", "user@xn--strae-oqa.example", "", True),
        ("user%40stra%C3%9Fe.example", "user@xn--strae-oqa.example", "", True),
        ("Ym9Ac3RyYcOfZS5leGFtcGxl", "bo@xn--strae-oqa.example", "", True),
        ("bo@other.example", "bo@xn--strae-oqa.example", "", False),
        ("l-xn--99", "user@xn--99.example", "", False),  # no A-label
    ],
)
def test_what_an_id_contains_is_found_however_it_is_written(text: str, address: str, code: str, *, found: bool) -> None:
    assert contains_secret(text, address, code) is found


@pytest.mark.parametrize(
    "hidden", "\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200d\u2060\u3164\ufe0f\ufeff\uffa0\U000e0041"
)
def test_invisible_characters_within_a_secret_do_not_hide_it(hidden: str) -> None:
    assert contains_secret(f"l-123{hidden}456", ADDRESS, "123456")
    assert contains_secret(f"l-a{hidden}.b1", ADDRESS, "a.b1")
    assert contains_secret(f"us{hidden}er@x.example", "user@x.example", "")
    assert contains_secret("user@x.example", f"us{hidden}er@x.example", "")
    assert scrub(f"no us{hidden}er@x.example here", "user@x.example") == "no *** here"
    assert readable_job_id(json.dumps({"jobId": f"l-12{hidden}3456", "otp": 123456}).encode()) is None
    assert readable_job_id(json.dumps({"jobId": "l-123456", "x": f"code=12{hidden}3456"}).encode()) is None


@pytest.mark.parametrize("other", ["\u00e9", "\u00df", "\u00bd", "\u2026", "\ufdfa"])
def test_a_secret_is_found_beside_invisible_and_composed_characters(other: str) -> None:
    for many in (1, 2, 17):
        text = f"{chr(0xFE0F) * many} code 123456 for {ADDRESS} {other} refused"
        assert contains_secret(f"{chr(0xFE0F) * many}-123456-{other}", ADDRESS, "123456")
        shown = scrub(text, "123456", ADDRESS)
        assert "code *** for ***" in shown
        assert shown.endswith("refused")


@pytest.mark.parametrize(
    ("text", "found"), [("otp-123456", True), ("LOGIN-BOB@X.EXAMPLE", True), ("login-99", False), ("91234567", False)]
)
def test_any_of_several_secrets_is_found(text: str, *, found: bool) -> None:
    assert PossibleSecrets(["", "123456", "bob@x.example"]).any_in(text) is found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1234", ["1234"]),
        ("123", []),
        (1234, ["1234"]),
        (12.5, ["12.5"]),
        (True, []),
        (None, []),
        ("abcd", ["abcd"]),  # alone in its field
        ("abc", []),
        ("abcd efgh", []),
        ("code=1234", ["1234", "code=1234"]),
        (1234.0, ["1234", "1234.0"]),
        ("12-34", ["12-34"]),
        ('{"a": "b5c6"}', ['"b5c6"}', "b5c6"]),
        ('["efgh"]', ["efgh"]),
        ("mailto:a@b.c?x", ["a@b.c", "mailto:a@b.c?x"]),
        ("a\uff20b.c", ["a@b.c"]),
        ("a@bc", ["a@bc"]),
        ("code abcd 123456", ["123456"]),
        ({"1234": "x"}, ["1234"]),  # programs confuse names and values
        ([["1234"], {"deep": ["5678"]}], ["1234", "12345678", "5678"]),
    ],
)
def test_words_with_a_digit_or_an_at_sign_may_be_secrets(value: object, words: list[str]) -> None:
    assert sorted(suspects(value, skip=())) == words
    assert sorted(suspects({"a": value}, skip=())) == words
    assert suspects({"a": value}, skip=("a",)) == set()
    assert sorted(suspects({"b": [{"a": "9999"}], "a": "9999", "c": value}, skip=("a",))) == words
    assert suspects({"1234": {"a5678": 1}}, skip=(), names=False) == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("login-user@example.com-7", True),
        ("LOGIN-USER@EXAMPLE.COM", True),
        ("otp:123456", True),
        ("123456", True),
        ("9123456", False),  # by chance, within a longer number
        ("otp123456", True),
        ("a123456b", True),
        ("a1b2c3", False),
    ],
)
def test_an_id_that_contains_a_secret_is_found(text: str, *, found: bool) -> None:
    assert contains_secret(text, "user@example.com", "123456") is found


@pytest.mark.parametrize(
    ("body", "job_id", "shown"),
    [
        ({"email": "nobody", "otp": 123456}, "login-17", True),
        ({"email": "nobody", "otp": 123456}, "login-123456", False),
        ({"email": "nobody", "otp": " abcdef "}, "x-abcdef", False),
        ({"to": "grace@x.example", "code": "482913"}, "otp:482913", False),
        ({"to": "grace@x.example"}, "grace%40x.example", False),
        ({"otp": ["482913"]}, "l-482913", False),
        ({"otp": {"value": [["482913"]]}}, "l-482913", False),
        ({"otp": "482913 482913"}, "l-482913", False),
        ({"timestamp": 1672531200000, "otp": 5}, "login-1672531200000", True),
        ({"metadata": {"purpose": "login"}}, "login-4711", True),
        ({}, "someone@x.example", False),
        # a code may be part of a longer text, or be in another one
        ({"text": "code=483920"}, "483920", False),
        ({"text": "code=483-920"}, "l-483920", False),
        ({"data": '{"otp": "483920"}'}, "l-483920", False),
        ({"data": '{"data": "{\\"pin\\": \\"QWERTY\\"}"}'}, "l-qwerty", False),
        ({"to": "mailto:grace.hopper@x.example"}, "grace.hopper", False),
        ({"to": "grace.hopper\uff20x.example"}, "grace.hopper", False),
        ({"otp": 483920.0}, "483920", False),
        ({"codes": [{"for": {"483920": True}}]}, "l-483920", False),
        ({"pin": "QWERTY"}, "l-qwerty", False),
        ({"text": "The code is QWERTY."}, "QWERTY", False),
        ({}, "someone\uff20x.example", False),
        ({}, "someone\ufe6bx", False),
        ({}, "someone%u0040x", False),
        ({}, "mailto:u@x.example", False),
        ({"email": "x", "metadata": {"template": "welcome", "userName": "Ann"}, "tenant": "shop"}, "welcome-7", True),
        ({"tenant": "shop", "a": ["b"], "email": "grace"}, "shop-login-17", True),
        ({"type": "login"}, "login-17", True),
        ({"service": "auth"}, "auth-17", True),
        ({"metadata": {"purpose": "signup"}}, "signup", True),
        ({"text": "The code is QWERTY."}, "l-QWERTY", False),
        # a code may be written in pieces: a list or an object of digits, or of longer parts
        ({"otp": ["4", "8", "2", "9", "1", "3"]}, "otp-482913", False),
        ({"otp": [4, 8, 2, 9, 1, 3]}, "482913", False),
        ({"otp": [4.0, 8.0, 2.0, 9.0, 1.0, 3.0]}, "482913", False),
        ({"otp": {"0": "4", "1": "8", "2": "2", "3": "9", "4": "1", "5": "3"}}, "otp-48-29-13", False),
        ({"otp": ["482", "913"]}, "otp-482913", False),
        ({"otp": ["4829", "13"]}, "NDgyOTEz", False),
        ({"otp": ["482", "-", " 913 "]}, "otp-482913", False),
        ({"otp": [["4", "8"], [["2", "9"], "13"]], "n": [1]}, "otp-482913", False),
        ({"otp": {"length": 6, "digits": ["4", "8", "2", "9", "1", "3"]}}, "otp-482913", False),
        ({"email": "u@x.example", "a": 4, "b": 8, "c": 2, "d": 9, "e": 1, "f": 3, "total": 17}, "l-482913", False),
        ({"otp": ["OTP", "4", "8", "2", "9", "1", "3"]}, "l-482913", False),
        ({"otp": ["K", "7", "x", "Y"]}, "l-k7xy", False),
        ({"otp": list("QWERTY")}, "l-qwerty", False),
        ({"data": '["4", "8", "2", "9", "1", "3"]'}, "otp-482913", False),
        ({"type": "login", "user": 17}, "login-17", True),
        ({"otp": ["4", "8", "2", "9", "1", "3"]}, "login-17", True),
        ({"otp": [4, 8, 2, 9, 1, 3, True, None, float("inf")]}, "login-17", True),
        # encoded texts are searched as well
        ({"data": base64({"otp": "482913", "email": "u@x.example"})}, "482913", False),
        ({"data": base64(["4", "8", "2", "9", "1", "3"])}, "482913", False),
        ({"data": base64({"data": base64({"pin": "QWERTY"})})}, "l-qwerty", False),
        ({"code": "NDgyOTEz"}, "l-482913", False),
        ({"code": "NDgy\r\nOTEz"}, "l-482913", False),
        ({"data": "no base64!"}, "login-17", True),
        ({}, "Ym9AbcO8bGxlci5kZQ==", False),
        ({}, "Ym9iQGxvY2FsaG9zdA==", False),
    ],
)
def test_an_id_of_what_is_no_job_is_shown_only_where_it_can_reveal_nothing(
    body: dict[str, object], job_id: str, *, shown: bool
) -> None:
    shown_id = readable_job_id(json.dumps(body | {"jobId": job_id}).encode())
    assert shown_id == (job_id if shown else None)


def test_an_id_is_read_by_either_of_its_names() -> None:
    assert readable_job_id(b'{"jobId": null, "job_id": "login-17"}') == "login-17"


def test_a_body_that_is_nested_without_end_is_looked_at_all_the_same() -> None:
    deep: object = "482913"
    for _ in range(5000):
        deep = [deep]
    assert suspects({"a": deep, "priority": "12345"}, skip={"priority"}) == {"482913"}
    assert outline(b'{"jobId":' + b"[" * 900 + b"]" * 900 + b"}") is not None


def test_an_address_is_found_in_an_id_that_was_written_for_a_url() -> None:
    assert contains_secret("user%40example.com-1", "user@example.com", "")


CODE, ADDRESS = "482913", "grace.hopper+news@x.example"
FORMS = [
    "482913", "48-29-13", "482 913", "4 8 2 9 1 3", "4.8.2.9.1.3", "%34%38%32%39%31%33", "4829%31%33",
    "%2534829%2531%2533", "=34=38=32=39=31=33", "482=\r\n913", "&#52;82913", "&#x34;82913", "\\u0034\\x382913",
    "&#52&#56&#50&#57&#49&#51", "&#X34&#X38&#X32&#X39&#x31&#x33",
    "\uff14\uff18\uff12\uff19\uff11\uff13", "\u0664\u0668\u0662\u0669\u0661\u0663", "NDgyOTEz", "eDQ4MjkxMw==",
    "NDgy\r\nOTEz", "eXg0ODI5MTN6", "NAA4ADIAOQAxADMA", "343832393133", "34:38:32:39:31:33",
    "grace.hopper+news@x.example", "GRACE.HOPPER+NEWS@X.EXAMPLE", "grace.hopper+news", "Grace.Hopper", "grace_hopper",
    "grace hopper", "grace.hopper%2Bnews%40x.example", "grace.hopper+news=x.example", "grace.hopper&#64;x.example",
    "=67race.hopper=2Bnews=40x.example", "Z3JhY2UuaG9wcGVyK25ld3NAeC5leGFtcGxl", "67726163652e686f70706572",
]  # fmt: skip


def traces(text: str) -> bool:
    """Whether something is left of the code or the name."""
    low = text.lower()
    return any(it in low for it in ("48", "29", "13", "grace", "hop", "ndg", "otez", "z3jh", "3438", "6772"))


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_secret_is_left_in_a_text(form: str) -> None:
    shown = scrub(f"No mailbox <{form}> here", CODE, ADDRESS)
    assert not traces(shown)
    assert (shown[:12], shown[-5:]) == ("No mailbox <", " here")
    assert contains_secret(form, ADDRESS, CODE, partial=True)
    assert contains_secret(f"login/{form}", ADDRESS, CODE, partial=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [282, *range(288, 301)])
def test_no_part_of_a_secret_is_left_where_a_reply_is_cut(form: str, before: int) -> None:
    reply = to_reply(
        (550, "5.1.1 " + ("no " * 100)[: before - 1] + f" {form} gone" + " end" * 200), "rcpt", secrets=(CODE, ADDRESS)
    )
    redacted = without_secrets(Rejected(reply), CODE, ADDRESS)
    assert isinstance(redacted, Rejected)
    assert not traces(str(redacted.reply))
    assert len(str(redacted.reply)) <= len("550 5.1.1  (to RCPT)") + 303
    assert not traces(scrub(("no " * 100)[: before - 1] + f" {form} gone", CODE, ADDRESS))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("5.1.1 no such user here", "user@example.com"),
        ("mailbox is full", "mailbox@example.com"),
        ("rejected: not in our books", "no@example.com"),
        ("a message is late", "a@example.com"),
        ("4829 of 13 queued as 3F2504E0", "grace.hopper@x.example"),
        ("regrace.hopperly", "grace.hopper@x.example"),
        ("see https://help.example/?p=NoSuchUser and =3D", "grace.hopper@x.example"),
    ],
)
def test_what_is_no_secret_stays_legible(text: str, address: str) -> None:
    assert scrub(text, CODE, address) == text


def test_a_word_of_many_replies_is_hidden_where_it_is_quoted() -> None:
    assert scrub("no such user: <user> (user=example.com)", "", "user@example.com") == (
        "no such user: <***> (***=example.com)"
    )


def test_a_word_that_is_not_whole_is_left_out_where_a_text_is_cut() -> None:
    assert cut("as it is") == "as it is"
    assert cut("no " * 98 + "482913 end") == ("no " * 98).strip()
    assert len(cut("x" * 1000)) == 300


@pytest.mark.parametrize("name", ["482913", "code-482913", "482-913", "grace-hopper", "NDgyOTEz"])
def test_a_templates_name_that_contains_a_secret_is_not_shown(name: str) -> None:
    request = OtpJob.model_validate({"email": ADDRESS, "otp": CODE, "metadata": {"template": name}})
    assert request.shown_template == "***"


@pytest.mark.parametrize("job_id", [*FORMS, "l-grace%40x.example", "Z3JhY2VAeC5leGFtcGxl"])
def test_an_id_of_what_is_no_job_shows_no_form_of_a_secret(job_id: str) -> None:
    for body in (
        {"to": ADDRESS, "code": CODE},
        {"to": "Grace <grace.hopper@x.example>", "text": "Your code is 482 913."},
        {"email": ADDRESS, "otp": int(CODE)},
        {CODE: ADDRESS, ADDRESS: CODE},
    ):
        assert readable_job_id(json.dumps(body | {"jobId": job_id}).encode()) is None


@pytest.mark.parametrize(
    "value",
    [
        " ".join(f"x{number}y" for number in range(2_000)),
        [[f"{number:04}"] for number in range(2_000)],
        {str(number): number for number in range(2_000)},
        ["x1yz " * 50] * 50,
        {" ".join(f"aaa%41{number}" for number in range(2_000)): 1},
        ":".join(f"\u00e9@a{number}" for number in range(2_000)),
        [0] * 1_050,
    ],
    ids=["one text", "a list", "an object", "many texts", "a name", "addresses", "numbers"],
)
def test_a_body_of_more_words_than_are_searched_has_no_id_and_no_outline(value: object) -> None:
    content = {"jobId": "login-17", "x": value}
    assert too_many(content)
    body = json.dumps(content).encode()
    assert readable_job_id(body) is None
    assert outline(body) == ("too large to show" if len(body) > 4096 else "an object: too many values to show")
    assert not too_many({"jobId": "login-17", "x": ["x1yz"] * 200})


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"ada@example.com": 1, "b%40x.example": 2}, {"***": "a number", "*** (2)": "a number"}),
        ({"482913": "ada@example.com"}, {"***": "text of 15 characters"}),
        ({"otp": "482913", "NDgyOTEz": 1}, {"otp": "text of 6 characters", "***": "a number"}),
        ({"email": "ada@482913", "otp": "482913"}, {"email": "***", "otp": "text of 6 characters"}),
        ({"email": "no 482913 @ all 4711"}, {"email": "***"}),
        ({"jobId": "ada@example.com"}, {"jobId": "text of 15 characters"}),
        ({"email": "ada.lovelace@x.example", "ada.lovelace": 1}, {"email": "a***@x.example", "***": "a number"}),
        ({"a very long key of words": 1, "address2": 2}, {"***": "a number", "address2": "a number"}),
    ],
)
def test_an_outline_shows_no_key_that_may_be_a_secret(body: dict[str, object], shown: object) -> None:
    assert outline(json.dumps(body).encode()) == shown


def test_an_outline_shows_no_id_and_no_word_that_is_written_in_pieces() -> None:
    pieces = {"otp": ["4", "8", "2", "9", "1", "3"], "jobId": "otp-482913", "purpose": "is482-913"}
    assert outline(json.dumps(pieces).encode()) == {
        "otp": "a list of 6", "jobId": "text of 10 characters", "purpose": "text of 9 characters",
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        ["4"] * 900,
        [["48", "29"]] * 300,
        {str(at): "ab" for at in range(400)},
        ["x" * 60_000],
        json.loads("[" * 300 + '"4", "8"' + "]" * 300),
        json.loads('["4", ' * 300 + "8" + "]" * 300),
        b64encode(b"code 482913 " * 3_000).decode(),
        b64encode(b64encode(b64encode(b"4829 " * 4_000))).decode(),
        [b64encode(b"no 4829").decode()] * 300,
        "A" * 60_000,
    ],
    ids=["digits", "pairs", "fields", "a long text", "nested", "nested pieces", "base64", "base64 of base64",
         "many in base64", "zeros in base64"],
)  # fmt: skip
def test_pieces_and_base64_are_put_together_in_little_time(value: object) -> None:
    body = json.dumps({"jobId": "482913-" * 20, "x": value}).encode()
    # several times what it takes: 2 to 10 ms
    assert seconds(lambda: readable_job_id(body)) < 0.05
    assert seconds(lambda: outline(body)) < 0.1


def seconds(work: Callable[[], object]) -> float:
    """Return the least CPU time of three runs."""
    return min(once(work) for _ in range(3))


def once(work: Callable[[], object]) -> float:
    """Return the CPU time of one run."""
    began = time.process_time()
    work()
    return time.process_time() - began


SEARCHES: dict[str, Callable[[str], object]] = {
    "reply": lambda text: to_reply((550, text), "rcpt", secrets=(CODE, ADDRESS)),
    "reply of no mail": lambda text: without_secrets(Rejected(to_reply((450, text), "ehlo")), CODE, ADDRESS),
    "id": lambda text: readable_job_id(json.dumps({"jobId": "482913-" * 20, "x": text}).encode()),
    "id and keys": lambda text: readable_job_id(json.dumps({"jobId": "482913-" * 20, text: text.split()}).encode()),
    "outline": lambda text: outline(json.dumps({"x": text}).encode()),
    "id and pieces": lambda text: readable_job_id(
        json.dumps({"jobId": "482913-" * 20, "x": list(text[: len(text) // 70])}).encode()
    ),
    "id and base64": lambda text: readable_job_id(
        json.dumps({"jobId": "482913-" * 20, "x": b64encode(text[: len(text) * 3 // 4].encode()).decode()}).encode()
    ),
    "trace": lambda text: contains_secret(text[:8000], ADDRESS, CODE, partial=True),
}
PIECES = [
    "a", "a@", "@", "1", "1 ", "482913 ", "x1yz ", "%25", "%34", "=34", "=", "&#x34;", "&", "\\u0034", "NDgy", "\u0661",
    "grace.hopper ", "a@b.c ", "\u00e9", "hourly ", "4-8-2-9-1-", "f",
]  # fmt: skip


@pytest.mark.parametrize("search", SEARCHES)
def test_twice_the_text_takes_about_twice_the_time(search: str) -> None:
    work = SEARCHES[search]
    for piece in PIECES:
        half, whole = (piece * (size // len(piece)) for size in (30_000, 60_000))
        # a quadratic search takes four times as long, and for this much text seconds
        assert any(once(partial(work, whole)) < 3 * once(partial(work, half)) + 0.02 for _ in range(3)), piece


@pytest.mark.parametrize(
    ("job_id", "code", "is_secret"),
    [
        ("42739154", "739154", True),
        ("x1739154y", "739154", True),
        ("n7K9q2Zth", "7K9q2Z", True),
        ("42739154", "7391", False),
        ("order-7391", "7391", True),
        ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", "739154", False),
        ("order-42", "739154", False),
        ("change-email:old.person@corp.example", "739154", True),
        ("change-email%3Aold.person%40corp.example", "739154", True),
        ("change-email:old.person\uff20corp.example", "739154", True),
        ("user-17", "739154", False),
        ("a=b&c%d", "739154", False),
        ("@42", "739154", False),
    ],
)
def test_an_id_with_a_code_or_any_address_in_it_is_secret(job_id: str, code: str, is_secret: bool) -> None:  # noqa: FBT001
    assert is_secret_id(job_id, "user@x.example", code) is is_secret
