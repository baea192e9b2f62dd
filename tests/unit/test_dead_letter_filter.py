"""The filters that select dead letters."""

import pytest

from otp_stream.core.audit import AuditRecord
from otp_stream.core.dead_letter import DeadLetter, filter_by, grouped
from otp_stream.core.dead_letter_filter import DeadLetterFilter


def dead_letter(job_id: str = "j", reason: str = "rejected", error: str = "550 5.1.1 no", **more: object) -> DeadLetter:
    fields: dict[str, object] = {
        "recipient": "u***@example.com", "template": "otp", "died_ms": 1000,
        "first_seen_ms": 0, "expires_ms": 5000, "allowed_ms": None, "size": 10, "attempt": 1,
        "code": error[:3] if error[:3].isdecimal() else "",
    }  # fmt: skip
    return DeadLetter(job_id=job_id, reason=reason, error=error, **(fields | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("conditions", "matched"),
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
def test_a_filter_matches_dead_letters(conditions: tuple[str, ...], *, matched: bool) -> None:
    assert DeadLetterFilter.parse(conditions, now_ms=61_000).matches(dead_letter()) is matched


def test_the_filter_of_a_group_matches_its_dead_letters_and_no_others() -> None:
    dead_letters = [
        dead_letter("a", reason="expired", error="the code expired 5 ms ago"),
        dead_letter(
            "b",
            reason="expired",
            error="the code expires before the next try; last: 451 4.3.0 later (to DATA)",
            code="451",
        ),
        dead_letter("c", reason="malformed", error="otp: is required", recipient=""),
        dead_letter("d"),
        dead_letter("e", recipient="x***@none"),
    ]
    for group in grouped(dead_letters, 0):
        which = DeadLetterFilter.parse([f"{name}={value}" for name, value in filter_by(group.cause).items()], 0)
        assert [it.cause for it in dead_letters if which.matches(it)] == [group.cause]


def test_no_recipient_and_a_domain_called_none_are_two_things() -> None:
    neither, named = dead_letter("a", recipient=""), dead_letter("b", recipient="x***@none")
    without, at_none = DeadLetterFilter.parse(["domain="], 0), DeadLetterFilter.parse(["domain=@none"], 0)
    assert [without.matches(neither), without.matches(named)] == [True, False]
    assert [at_none.matches(neither), at_none.matches(named)] == [False, True]
    assert DeadLetterFilter.parse(["domain=@X.example"], 0) == DeadLetterFilter.parse(["domain=x.example"], 0)
    assert (str(without), str(at_none)) == ("no domain", "domain none")
    assert str(DeadLetterFilter.parse(["code=none"], 0)) == "no code"


@pytest.mark.parametrize("conditions", [("older=1h", "newer=10m"), ("newer=1h", "older=1h")])
def test_ages_that_no_dead_letter_can_have_are_refused(conditions: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="older, newer: no dead letter matches both"):
        DeadLetterFilter.parse(conditions, now_ms=61_000)


def test_a_filter_without_conditions_is_false() -> None:
    assert not DeadLetterFilter.parse((), 0)
    assert DeadLetterFilter.parse(("code=5",), 0)
    assert str(DeadLetterFilter.parse(("code=5", "reason=rejected"), 0)) == "reason rejected, code 5"
    assert str(DeadLetterFilter()) == "all"


def test_an_audit_shows_the_filter() -> None:
    which = DeadLetterFilter.parse(["domain=x.example", "older=10m", "newer=1h"], now_ms=1_700_003_600_000)
    shown_text = "domain x.example, died before 2023-11-14T23:03:20Z, died after 2023-11-14T22:13:20Z"
    assert str(which) == shown_text
    assert str(DeadLetterFilter()) == "all"


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
            "reason: must be one of malformed, key_missing, expired, rejected, retries_exhausted, throttled, crashed",
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
def test_an_invalid_condition_is_refused_with_the_fix(word: str, error: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        DeadLetterFilter.parse([word], now_ms=0)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("age", "age_ms"), [("1s", 1000), ("10m", 600_000), ("2h", 7_200_000), ("30d", 2_592_000_000), ("0s", 0)]
)
def test_dead_letters_of_exactly_that_age_are_newer_and_not_older(age: str, age_ms: int) -> None:
    now_ms = 10_000_000_000
    at_that_age, a_moment_before = dead_letter(died_ms=now_ms - age_ms), dead_letter(died_ms=now_ms - age_ms - 1)
    older, newer = DeadLetterFilter.parse([f"older={age}"], now_ms), DeadLetterFilter.parse([f"newer={age}"], now_ms)
    assert [older.matches(at_that_age), newer.matches(at_that_age)] == [False, True]
    assert [older.matches(a_moment_before), newer.matches(a_moment_before)] == [True, False]


def test_only_the_first_equals_sign_separates_a_name_from_its_value() -> None:
    assert DeadLetterFilter.parse(["job=a=b"], now_ms=0).matches(dead_letter("a=b"))


def test_a_dead_letter_without_a_time_of_death_is_neither_old_nor_new() -> None:
    unknown = dead_letter(died_ms=None)
    assert not DeadLetterFilter.parse(["older=1s"], now_ms=61_000).matches(unknown)
    assert not DeadLetterFilter.parse(["newer=1d"], now_ms=61_000).matches(unknown)
    assert DeadLetterFilter.parse(["older=9999999999d"], now_ms=61_000).matches(dead_letter()) is False
    assert "1970-01-01" in str(DeadLetterFilter.parse(["older=9999999999d"], now_ms=61_000))


def test_a_condition_that_is_given_twice_is_refused() -> None:
    for twice in (["domain=a.example", "domain=b.example"], ["older=1m", "older=2m"]):
        with pytest.raises(ValueError, match="is given twice"):
            DeadLetterFilter.parse(twice, now_ms=0)


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
        DeadLetterFilter.parse([word], 0)


@pytest.mark.parametrize("word", ["code=5", "code=55", "code=550", "code=none", "domain=", "domain=@none"])
def test_the_usual_filters_are_taken(word: str) -> None:
    assert DeadLetterFilter.parse([word], 0)


def test_an_outline_has_no_value_that_may_be_a_code_or_an_address_by_mistake() -> None:
    typed = ("reason=rejected", "code=55", "domain=739154", "template=482915", "job=ada@example.com", "older=10m")
    outline = DeadLetterFilter.parse(typed, 3_600_000).outline
    assert outline == "reason rejected, code 55, domain …, template …, job …, died before 1970-01-01T00:50:00Z"
    assert DeadLetterFilter.parse(("domain=",), 0).outline == "no domain"
    assert DeadLetterFilter().outline == "all"


def test_no_field_of_an_audit_record_shows_an_address_or_controls_a_terminal() -> None:
    details = {"file": "/tmp/ada@example.com\x1b[2J.jsonl", "error": "of ada@example.com", "raw": True}
    fields = AuditRecord("dead.export", "done", "root@host", "host", 1, "job ada@example.com", details).fields()
    assert "ada@" not in str(fields)
    assert all(it.isprintable() for it in fields.values() if isinstance(it, str))
    assert (fields["raw"], fields["count"], fields["by"]) == (True, 1, "root@host")
