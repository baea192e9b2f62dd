"""Dead letters by cause, and which are meant."""

import json

import pytest

from otp_stream.core.letter import Cause, Group, Letter, Wanted, grouped, outline, words
from otp_stream.core.outcome import said


def letter(job_id: str = "j", reason: str = "rejected", error: str = "550 5.1.1 no", **more: object) -> Letter:
    fields: dict[str, object] = {
        "recipient": "u***@example.com", "template": "otp", "died_ms": 1000,
        "first_seen_ms": 0, "expires_ms": 5000, "allowed_ms": None, "size": 10, "attempt": 1,
    }  # fmt: skip
    return Letter(job_id=job_id, reason=reason, error=error, **(fields | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("550 5.1.1 no such user (to RCPT)", "550"),
        ("the code expires before the next try; last: 451 4.3.0 later (to DATA)", "451"),
        ("the code expired 5000 ms ago", ""),
        ("over RECIPIENT_LIMIT=250/10m: allowed again", ""),
        ("otp: must be a string, in quotes", ""),
    ],
)
def test_the_relays_code_is_read_where_it_said_one(error: str, code: str) -> None:
    assert letter(error=error).code == code


def test_what_a_reply_is_about_is_read_where_the_relay_said_so() -> None:
    assert said("550 5.1.1 no such user (to RCPT)") == (550, "address")
    assert said("552 5.2.2 full (to BODY)") == (552, "mailbox")
    assert said("550 no (to RCPT)") == (550, None)
    assert said("451 4.9.1 strange (to RCPT)") == (451, None)
    assert said("the code expired 550 ms ago") is None


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
    ("words", "meant"),
    [
        ((), True),
        (("reason=rejected", "domain=EXAMPLE.com", "code=55", "template=otp", "job=j"), True),
        (("reason=expired",), False),
        (("code=551",), False),
        (("domain=other.example",), False),
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
        letter("b", reason="expired", error="the code expires before the next try; last: 451 4.3.0 later (to DATA)"),
        letter("c", reason="malformed", error="otp: is required", recipient=""),
        letter("d"),
    ]
    for group in grouped(letters, 0):
        wanted = Wanted.read([f"{name}={value}" for name, value in words(group.cause).items()], 0)
        assert [it.cause for it in letters if wanted.has(it)] == [group.cause]


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


def test_a_letter_without_a_time_of_death_is_neither_old_nor_new() -> None:
    unknown = letter(died_ms=None)
    assert not Wanted.read(["older=1s"], now_ms=61_000).has(unknown)
    assert not Wanted.read(["newer=1d"], now_ms=61_000).has(unknown)
    assert Wanted.read(["older=9999999999d"], now_ms=61_000).has(letter()) is False
    assert "1970-01-01" in str(Wanted.read(["older=9999999999d"], now_ms=61_000))


def test_a_word_that_is_said_twice_is_refused() -> None:
    for twice in (["domain=a.example", "domain=b.example"], ["older=1m", "older=2m"]):
        with pytest.raises(ValueError, match="is said twice"):
            Wanted.read(twice, now_ms=0)


def test_blanks_around_an_address_do_not_show_it() -> None:
    told = json.dumps(outline(b'{"email": " bob@x.example", "otp": "123456", "jobId": "bob@x.example/login"}'))
    assert "bob@" not in told
    assert "b***@x.example" in told
