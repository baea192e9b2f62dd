"""Dead letters by cause, and the outlines of their bodies."""

import json
from typing import Any

import pytest

from otp_stream.core.dead_letter import Cause, DeadLetter, Group, Groups, grouped, outline
from otp_stream.core.outcome import Reply


def dead_letter(job_id: str = "j", reason: str = "rejected", error: str = "550 5.1.1 no", **more: object) -> DeadLetter:
    fields: dict[str, object] = {
        "recipient": "u***@example.com", "template": "otp", "died_ms": 1000,
        "first_seen_ms": 0, "expires_ms": 5000, "allowed_ms": None, "size": 10, "attempt": 1,
        "code": error[:3] if error[:3].isdecimal() else "",
    }  # fmt: skip
    return DeadLetter(job_id=job_id, reason=reason, error=error, **(fields | more))  # type: ignore[arg-type]


def test_what_a_reply_is_about_is_read_from_the_relays_text() -> None:
    assert Reply(550, "5.1.1", "no such user", "rcpt").about == "address"
    assert Reply(552, "5.2.2", "full", "body").about == "mailbox"
    assert Reply(550, None, "no", "rcpt").about is None
    assert Reply(451, "4.9.1", "strange", "rcpt").about is None


def test_groups_are_by_cause_and_the_largest_is_first() -> None:
    dead_letters = [
        dead_letter(recipient="u***@b.example", died_ms=3),
        dead_letter(),
        dead_letter(died_ms=2000, error="550 newest"),
        dead_letter(),
    ]
    first, second = grouped(dead_letters, now_ms=6000)
    assert (first.count, first.expired, first.oldest_ms, first.newest_ms, first.error) == (
        3,
        3,
        1000,
        2000,
        "550 newest",
    )
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
def test_a_group_has_the_times_of_its_oldest_and_newest_dead_letter_and_the_newest_error(
    died: list[int | None], oldest_ms: int | None, newest_ms: int | None, error: str
) -> None:
    names = ("first", "second", "third")
    dead_letters = [dead_letter(died_ms=at_ms, error=f"550 {name}") for at_ms, name in zip(died, names, strict=False)]
    (group,) = grouped(dead_letters, now_ms=0)
    assert (group.oldest_ms, group.newest_ms, group.error) == (oldest_ms, newest_ms, error)


def test_groups_count_all_dead_letters_and_those_without_a_valid_signature() -> None:
    groups = Groups(now_ms=0)
    assert (groups.count, groups.unverified) == (0, 0)
    for verified in (True, False, False, True, True):
        groups.add(dead_letter(verified=verified))
    groups.add(dead_letter(reason="malformed", verified=False))
    assert (groups.count, groups.unverified, len(groups.all())) == (6, 3, 2)


def test_an_outline_shows_what_is_no_secret() -> None:
    body = {
        "email": "ada@example.com", "otp": "123456", "jobId": "order 123456", "timestamp": 7, "extra": [1, 2],
        "metadata": {"userName": "Ada", "template": "otp", "ada@example.com": True, "deep": {"deeper": {"a": 1}}},
    }  # fmt: skip
    shown_text = outline(json.dumps(body).encode())
    assert shown_text == {
        "email": "a***@example.com", "otp": "text of 6 characters", "jobId": "text of 12 characters", "timestamp": 7,
        "extra": "a list of 2",
        "metadata": {"userName": "text of 3 characters", "template": "otp", "***": True,
            "deep": {"deeper": "an object"}},
    }  # fmt: skip
    assert outline(b"\xff") == "no JSON"
    assert outline(b"[1]") == "a list of 1"


def test_a_group_has_a_replay_command_in_which_the_domain_is_quoted() -> None:
    group = Group(Cause("rejected", "550", "$(reboot);x.example"), count=2, expired=1)
    assert group.command == "otp-stream dead replay reason=rejected code=550 'domain=$(reboot);x.example'"
    assert (group.can_replay, group.worth_replaying) == (True, True)


@pytest.mark.parametrize(
    ("reason", "expired", "can_replay", "worth_replaying"),
    [("rejected", 2, True, False), ("malformed", 0, False, False), ("expired", 1, True, True)],
)
def test_a_group_that_would_fail_again_is_not_worth_replaying(
    reason: str, expired: int, *, can_replay: bool, worth_replaying: bool
) -> None:
    group = Group(Cause(reason, "", "x.example"), count=2, expired=expired)
    assert (group.can_replay, group.worth_replaying) == (can_replay, worth_replaying)


def test_an_outline_shows_the_names_of_fields_and_no_id_that_is_in_another_field() -> None:
    assert outline(b'{"jobId": 482913, "purpose": "code 482913"}') == {
        "jobId": "a number", "purpose": "text of 11 characters",
    }  # fmt: skip
    assert outline(b'{"USER": "x", "type": "login", "template": "login"}') == {
        "USER": "text of 1 characters", "type": "text of 5 characters", "template": "login",
    }  # fmt: skip


def test_blanks_around_an_address_do_not_show_it() -> None:
    shown_text = json.dumps(outline(b'{"email": " bob@x.example", "otp": "123456", "jobId": "bob@x.example/login"}'))
    assert "bob@" not in shown_text
    assert "b***@x.example" in shown_text


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        # a code or an address is hidden wherever it is, also one without a digit
        ({"otp": "abcdef", "jobId": "login-abcdef"}, {"otp": "text of 6 characters", "jobId": "text of 12 characters"}),
        ({"otp": " abcdef ", "purpose": "abcdef"}, {"otp": "text of 8 characters", "purpose": "text of 6 characters"}),
        ({"email": "nobody", "purpose": "nobody"}, {"email": "***", "purpose": "text of 6 characters"}),
        ({"otp": " ab-cd ", "purpose": "is ab-cd"}, {"otp": "text of 7 characters", "purpose": "text of 8 characters"}),
        ({"email": "no-one", "purpose": "no-one"}, {"email": "***", "purpose": "text of 6 characters"}),
        ({"code": "482913", "jobId": "482913"}, {"code": "text of 6 characters", "jobId": "text of 6 characters"}),
        ({"otp": 123456, "timestamp": 123456}, {"otp": "a number", "timestamp": "a number"}),
        ({"otp": "1234", "timestamp": 1234.5}, {"otp": "text of 4 characters", "timestamp": "a number"}),
        ({"otp": "abcdef", "abcdef": 1}, {"otp": "text of 6 characters", "***": "a number"}),
        # a job without them is shown as it is
        ({"jobId": "None", "purpose": "login"}, {"jobId": "None", "purpose": "login"}),
        ({"retryCount": 2, "metadata": {"expiryMinutes": 7.5}}, {"retryCount": 2, "metadata": {"expiryMinutes": 7.5}}),
        ({"flag": True, "nothing": None, "list": [], "amount": 7.25}, {"flag": True, "nothing": None,
            "list": "a list of 0", "amount": "a number"}),
        # Python's JSON takes numbers that other parsers refuse
        ({"timestamp": float("nan"), "retryCount": float("inf")}, {"timestamp": "a number", "retryCount": "a number"}),
        ({"a": {"b": {"c": {}}}}, {"a": {"b": {"c": "an object"}}}),
        ({"jobId": "482913", "text": "code=482913"}, {"jobId": "text of 6 characters",
            "text": "text of 11 characters"}),
        ({"jobId": "QWERTY", "pin": "QWERTY"}, {"jobId": "text of 6 characters", "pin": "text of 6 characters"}),
        ({"purpose": "code 482913", "jobId": "482913"}, {"purpose": "text of 11 characters",
            "jobId": "text of 6 characters"}),
        ({"retryCount": 482913, "x": {"482913": 1}}, {"retryCount": "a number", "x": {"***": "a number"}}),
        ({"QWERTY": "ada@x.example", "EMAIL": 1}, {"***": "text of 13 characters", "EMAIL": "a number"}),
        # from four characters on, a word may be a code
        ({"purpose": "a123", "template": "a1234"}, {"purpose": "a123", "template": "text of 5 characters"}),
        ({"a123": 1, "a1234": 2}, {"a123": "a number", "***": "a number"}),
        ({"ABC": 1, "ABCD": 2}, {"ABC": "a number", "***": "a number"}),
        ({"purpose": "x" * 200, "locale": "x" * 201}, {"purpose": "x" * 200, "locale": "text of 201 characters"}),
        # the last @ ends the local part
        ({"email": "ada@home@x.example"}, {"email": "a***@x.example"}),
        # the known fields are shown whatever the other fields are
        ({"email": "x", "type": "metadata", "metadata": {"template": "otp"}}, {"email": "***",
            "type": "text of 8 characters", "metadata": {"template": "otp"}}),
        ("482913", "text of 6 characters"),
        (7, "a number"),
    ],
)  # fmt: skip
def test_an_outline_hides_codes_and_addresses_wherever_they_are(body: Any, shown: object) -> None:
    assert outline(json.dumps(body).encode()) == shown


def test_a_dead_letter_is_expired_from_the_moment_at_which_its_code_expires() -> None:
    assert [dead_letter(expires_ms=5000).is_expired(now_ms) for now_ms in (4999, 5000)] == [False, True]
    assert not dead_letter(expires_ms=None).is_expired(5000)
