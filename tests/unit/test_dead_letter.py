"""Dead letters by cause, and which are meant."""

import json
from typing import Any

import pytest

from otp_stream.core.dead_letter import Cause, Group, Letter, Wanted, grouped, outline, words
from otp_stream.core.outcome import Reply


def letter(job_id: str = "j", reason: str = "rejected", error: str = "550 5.1.1 no", **more: object) -> Letter:
    fields: dict[str, object] = {
        "recipient": "u***@example.com", "template": "otp", "died_ms": 1000,
        "first_seen_ms": 0, "expires_ms": 5000, "allowed_ms": None, "size": 10, "attempt": 1,
        "code": error[:3] if error[:3].isdecimal() else "",
    }  # fmt: skip
    return Letter(job_id=job_id, reason=reason, error=error, **(fields | more))  # type: ignore[arg-type]


def test_what_a_reply_is_about_is_read_where_the_relay_said_so() -> None:
    assert Reply(550, "5.1.1", "no such user", "rcpt").about == "address"
    assert Reply(552, "5.2.2", "full", "body").about == "mailbox"
    assert Reply(550, None, "no", "rcpt").about is None
    assert Reply(451, "4.9.1", "strange", "rcpt").about is None


def test_groups_are_by_cause_and_the_largest_is_first() -> None:
    letters = [
        letter(recipient="u***@b.example", died_ms=3),
        letter(),
        letter(died_ms=2000, error="550 newest"),
        letter(),
    ]
    first, second = grouped(letters, now_ms=6000)
    assert (first.count, first.stale, first.oldest_ms, first.newest_ms, first.error) == (3, 3, 1000, 2000, "550 newest")
    assert (second.cause.domain, second.count) == ("b.example", 1)


@pytest.mark.parametrize(
    ("died", "oldest_ms", "newest_ms", "error"),
    [
        ([2000, 1000, 3000], 1000, 3000, "550 third"),
        ([3000, 1000, 2000], 1000, 3000, "550 first"),
        ([1000, 1000], 1000, 1000, "550 second"),  # of the same moment, the one that was read last
        ([None, 1000], 1000, 1000, "550 second"),
        ([1000, None], 1000, 1000, "550 first"),
        ([None], None, None, "550 first"),
    ],
)
def test_a_group_knows_its_oldest_letter_its_newest_and_the_error_of_that(
    died: list[int | None], oldest_ms: int | None, newest_ms: int | None, error: str
) -> None:
    names = ("first", "second", "third")
    letters = [letter(died_ms=at_ms, error=f"550 {name}") for at_ms, name in zip(died, names, strict=False)]
    (group,) = grouped(letters, now_ms=0)
    assert (group.oldest_ms, group.newest_ms, group.error) == (oldest_ms, newest_ms, error)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ((), True),
        (("reason=rejected", "domain=EXAMPLE.com", "code=55", "template=otp", "job=j"), True),
        (("reason=expired",), False),
        (("code=551",), False),
        (("domain=other.example",), False),
        (("domain=ｅｘａｍｐｌｅ。com.",), True),
        (("job=k",), False),
        (("older=10s",), True),
        (("newer=10s",), False),
        (("newer=2m",), True),
    ],
)
def test_words_mean_letters(words: tuple[str, ...], *, meant: bool) -> None:
    assert Wanted.read(words, now_ms=61_000).has(letter()) is meant


def test_the_words_for_a_group_mean_its_letters_and_no_others() -> None:
    letters = [
        letter("a", reason="expired", error="the code expired 5 ms ago"),
        letter(
            "b",
            reason="expired",
            error="the code expires before the next try; last: 451 4.3.0 later (to DATA)",
            code="451",
        ),
        letter("c", reason="malformed", error="otp: is required", recipient=""),
        letter("d"),
        letter("e", recipient="x***@none"),
    ]
    for group in grouped(letters, 0):
        wanted = Wanted.read([f"{name}={value}" for name, value in words(group.cause).items()], 0)
        assert [it.cause for it in letters if wanted.has(it)] == [group.cause]


def test_no_recipient_and_a_domain_called_none_are_two_things() -> None:
    neither, named = letter("a", recipient=""), letter("b", recipient="x***@none")
    without, at_none = Wanted.read(["domain="], 0), Wanted.read(["domain=@none"], 0)
    assert [without.has(neither), without.has(named)] == [True, False]
    assert [at_none.has(neither), at_none.has(named)] == [False, True]
    assert Wanted.read(["domain=@X.example"], 0) == Wanted.read(["domain=x.example"], 0)
    assert (str(without), str(at_none)) == ("no domain", "domain none")
    assert str(Wanted.read(["code=none"], 0)) == "no code"


@pytest.mark.parametrize("words", [("older=1h", "newer=10m"), ("newer=1h", "older=1h")])
def test_ages_that_no_letter_can_have_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="older, newer: no dead letter matches both"):
        Wanted.read(words, now_ms=61_000)


def test_nothing_said_is_known_as_nothing() -> None:
    assert not Wanted.read((), 0)
    assert Wanted.read(("code=5",), 0)
    assert str(Wanted.read(("code=5", "reason=rejected"), 0)) == "reason rejected, code 5"
    assert str(Wanted()) == "all"


def test_an_outline_shows_what_is_nobodys_secret() -> None:
    body = {
        "email": "ada@example.com", "otp": "123456", "jobId": "order 123456", "timestamp": 7, "extra": [1, 2],
        "metadata": {"userName": "Ada", "template": "otp", "ada@example.com": True, "deep": {"deeper": {"a": 1}}},
    }  # fmt: skip
    told = outline(json.dumps(body).encode())
    assert told == {
        "email": "a***@example.com", "otp": "text of 6 characters", "jobId": "text of 12 characters", "timestamp": 7,
        "extra": "a list of 2",
        "metadata": {"userName": "text of 3 characters", "template": "otp", "***": True,
            "deep": {"deeper": "an object"}},
    }  # fmt: skip
    assert outline(b"\xff") == "no JSON"
    assert outline(b"[1]") == "a list of 1"


def test_a_group_says_how_it_is_sent_again_and_no_shell_obeys_a_domain() -> None:
    group = Group(Cause("rejected", "550", "$(reboot);x.example"), count=2, stale=1)
    assert group.command == "otp-stream dead replay reason=rejected code=550 'domain=$(reboot);x.example'"
    assert (group.can_go, group.worth_it) == (True, True)


@pytest.mark.parametrize(
    ("reason", "stale", "can_go", "worth_it"),
    [("rejected", 2, True, False), ("malformed", 0, False, False), ("expired", 1, True, True)],
)
def test_what_would_only_die_again_is_not_worth_it(reason: str, stale: int, *, can_go: bool, worth_it: bool) -> None:
    group = Group(Cause(reason, "", "x.example"), count=2, stale=stale)
    assert (group.can_go, group.worth_it) == (can_go, worth_it)


def test_an_audit_says_which_letters_were_meant() -> None:
    wanted = Wanted.read(["domain=x.example", "older=10m", "newer=1h"], now_ms=1_700_003_600_000)
    told = "domain x.example, died before 2023-11-14T23:03:20Z, died after 2023-11-14T22:13:20Z"
    assert str(wanted) == told
    assert str(Wanted()) == "all"


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("reason", "'reason': must look like reason=rejected or domain=example.com"),
        ("job=", "job: is empty; give a value or leave it out"),
        ("reason=", "reason: is empty; give a value or leave it out"),
        ("older=", "older: is empty; give a value or leave it out"),
        ("=x", ": is none of reason, code, domain, template, job, older, newer"),
        (
            "domain=none",
            "domain: none is ambiguous; write "  # noqa: ISC004 - one text
            "domain= (dead letters without a recipient) or domain=@none (recipients at none)",
        ),
        (
            "domain=.",
            "domain: must be the whole part after the @, without *, or empty for dead letters without a recipient",
        ),
        ("domain=💩.la", "domain: must have a domain that IDNA 2008 allows"),
        (
            "reason=lost",
            "reason: must be one of malformed, expired, rejected, retries_exhausted, throttled, crashed",
        ),
        ("age=10m", "age: is none of reason, code, domain, template, job, older, newer"),
        ("older=10", "older: must look like 10m (s, m, h or d)"),
        ("newer=m", "newer: must look like 10m (s, m, h or d)"),
        ("older=10w", "older: must look like 10m (s, m, h or d)"),
        ("older=-1m", "older: must look like 10m (s, m, h or d)"),
        ("older=1.5h", "older: must look like 10m (s, m, h or d)"),
        ("older=\u0661m", "older: must look like 10m (s, m, h or d)"),
        ("older=am", "older: must look like 10m (s, m, h or d)"),
    ],
)
def test_a_word_that_selects_nothing_is_refused_with_what_would(word: str, error: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Wanted.read([word], now_ms=0)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("age", "age_ms"), [("1s", 1000), ("10m", 600_000), ("2h", 7_200_000), ("30d", 2_592_000_000), ("0s", 0)]
)
def test_letters_of_exactly_that_age_are_newer_and_not_older(age: str, age_ms: int) -> None:
    now_ms = 10_000_000_000
    at_that_age, a_moment_before = letter(died_ms=now_ms - age_ms), letter(died_ms=now_ms - age_ms - 1)
    older, newer = Wanted.read([f"older={age}"], now_ms), Wanted.read([f"newer={age}"], now_ms)
    assert [older.has(at_that_age), newer.has(at_that_age)] == [False, True]
    assert [older.has(a_moment_before), newer.has(a_moment_before)] == [True, False]


def test_only_the_first_equals_sign_separates_a_name_from_its_value() -> None:
    assert Wanted.read(["job=a=b"], now_ms=0).has(letter("a=b"))


def test_a_letter_without_a_time_of_death_is_neither_old_nor_new() -> None:
    unknown = letter(died_ms=None)
    assert not Wanted.read(["older=1s"], now_ms=61_000).has(unknown)
    assert not Wanted.read(["newer=1d"], now_ms=61_000).has(unknown)
    assert Wanted.read(["older=9999999999d"], now_ms=61_000).has(letter()) is False
    assert "1970-01-01" in str(Wanted.read(["older=9999999999d"], now_ms=61_000))


def test_an_outline_shows_the_names_of_fields_and_no_id_that_is_said_elsewhere() -> None:
    assert outline(b'{"jobId": 482913, "purpose": "code 482913"}') == {
        "jobId": "a number", "purpose": "text of 11 characters",
    }  # fmt: skip
    assert outline(b'{"USER": "x", "type": "login", "template": "login"}') == {
        "USER": "text of 1 characters", "type": "text of 5 characters", "template": "login",
    }  # fmt: skip


def test_a_word_that_is_said_twice_is_refused() -> None:
    for twice in (["domain=a.example", "domain=b.example"], ["older=1m", "older=2m"]):
        with pytest.raises(ValueError, match="is given twice"):
            Wanted.read(twice, now_ms=0)


def test_blanks_around_an_address_do_not_show_it() -> None:
    told = json.dumps(outline(b'{"email": " bob@x.example", "otp": "123456", "jobId": "bob@x.example/login"}'))
    assert "bob@" not in told
    assert "b***@x.example" in told


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        # a code or an address is hidden wherever it is, also one without a digit
        ({"otp": "abcdef", "jobId": "login-abcdef"}, {"otp": "text of 6 characters", "jobId": "text of 12 characters"}),
        ({"otp": " abcdef ", "purpose": "abcdef"}, {"otp": "text of 8 characters", "purpose": "text of 6 characters"}),
        ({"email": "nobody", "purpose": "nobody"}, {"email": "***", "purpose": "text of 6 characters"}),
        ({"code": "482913", "jobId": "482913"}, {"code": "text of 6 characters", "jobId": "text of 6 characters"}),
        ({"otp": 123456, "timestamp": 123456}, {"otp": "a number", "timestamp": "a number"}),
        ({"otp": "1234", "timestamp": 1234.5}, {"otp": "text of 4 characters", "timestamp": "a number"}),
        ({"otp": "abcdef", "abcdef": 1}, {"otp": "text of 6 characters", "***": "a number"}),
        # a job without them is shown as it is
        ({"jobId": "None", "purpose": "login"}, {"jobId": "None", "purpose": "login"}),
        ({"retryCount": 2, "metadata": {"expiryMinutes": 7.5}}, {"retryCount": 2, "metadata": {"expiryMinutes": 7.5}}),
        ({"flag": True, "nothing": None, "list": [], "amount": 7.25}, {"flag": True, "nothing": None,
            "list": "a list of 0", "amount": "a number"}),
        # Python's JSON takes numbers that nobody else's does
        ({"timestamp": float("nan"), "retryCount": float("inf")}, {"timestamp": "a number", "retryCount": "a number"}),
        ({"a": {"b": {"c": {}}}}, {"a": {"b": {"c": "an object"}}}),
        ({"jobId": "482913", "text": "code=482913"}, {"jobId": "text of 6 characters",
            "text": "text of 11 characters"}),
        ({"jobId": "QWERTY", "pin": "QWERTY"}, {"jobId": "text of 6 characters", "pin": "text of 6 characters"}),
        ({"purpose": "code 482913", "jobId": "482913"}, {"purpose": "text of 11 characters",
            "jobId": "text of 6 characters"}),
        ({"retryCount": 482913, "x": {"482913": 1}}, {"retryCount": "a number", "x": {"***": "a number"}}),
        ({"QWERTY": "ada@x.example", "EMAIL": 1}, {"***": "text of 13 characters", "EMAIL": "a number"}),
        # the known fields are shown whatever else is said
        ({"email": "x", "type": "metadata", "metadata": {"template": "otp"}}, {"email": "***",
            "type": "text of 8 characters", "metadata": {"template": "otp"}}),
        ("482913", "text of 6 characters"),
        (7, "a number"),
    ],
)  # fmt: skip
def test_an_outline_hides_codes_and_addresses_wherever_they_are(body: Any, shown: object) -> None:
    assert outline(json.dumps(body).encode()) == shown


def test_a_letter_is_stale_from_the_moment_at_which_its_code_expires() -> None:
    assert [letter(expires_ms=5000).stale(now_ms) for now_ms in (4999, 5000)] == [False, True]
    assert not letter(expires_ms=None).stale(5000)


@pytest.mark.parametrize(
    "word",
    [
        "code=abc",
        "code=5x",
        "code=5500",
        "code=",
        "code=650",
        "domain=u@example.com",
        "domain=*.example.com",
        "domain=@",
    ],
)
def test_a_filter_that_no_dead_letter_can_match_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Wanted.read([word], 0)


@pytest.mark.parametrize("word", ["code=5", "code=55", "code=550", "code=none", "domain=", "domain=@none"])
def test_the_usual_filters_are_taken(word: str) -> None:
    assert Wanted.read([word], 0)
