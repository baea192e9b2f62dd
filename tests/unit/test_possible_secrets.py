"""Which words of a malformed body may be a code or an address, and how many of them are searched."""

import json
from bisect import bisect_left

import pytest

from otp_stream.core.possible_secrets import PossibleSecrets, readable_job_id, suspects, too_many
from otp_stream.core.secret_search import MAX_SEARCHED


def cost(value: object) -> int:
    """Return how much of the 1,000 values and words that are searched a value takes."""
    # the list is one value itself
    return 1_000 - bisect_left(range(1_000), True, key=lambda others: too_many([value] + [0] * others))


@pytest.mark.parametrize(
    ("value", "values_and_words"),
    [
        (None, 1),
        (1234, 1),
        ([1, [2, 3]], 5),
        ({"a": {"b": 1}, "c": 2}, 7),
        # any four characters of a short text may be a word
        ("abc", 1),
        ("abcd", 2),
        ("x" * 999, 250),
        # the words of a longer text are counted
        ("x" * 1_000, 2),
        ("ab " * 400, 401),
        ("abcd-" * 300, 301),
        ("a@b,c@d-" * 200, 201),
        ("ab," * 400, 2),
        (" " * 1_000, 1),
        # a text that contains other values counts like many short ones
        ("[" + " " * 1_199, 301),
        (" {" + " " * 1_198, 301),
        ("QUJD" * 300, 301),
        ("QUJ\n" * 300, 301),
    ],
)
def test_the_search_counts_values_and_words(value: object, values_and_words: int) -> None:
    assert cost(value) == values_and_words


def test_at_most_a_thousand_values_and_words_are_searched() -> None:
    assert not too_many([0] * 999)
    assert too_many([0] * 1_000)
    assert PossibleSecrets.of([0] * 1_000, skip=()) is None
    for count, shown in ((498, "login-17"), (499, None)):  # each field is a name and a value
        fields = {str(number): 0 for number in range(count)}
        body = json.dumps({"jobId": "login-17", "a": "abc", **fields}, separators=(",", ":")).encode()
        assert len(body) <= MAX_SEARCHED
        assert readable_job_id(body) == shown


@pytest.mark.parametrize(
    ("value", "words"),
    [
        # limits of the length
        ("x" * 64, {"x" * 64}),
        ("x" * 65, set()),
        ("x=" + "a1" * 32, {"x=" + "a1" * 32, "a1" * 32}),
        ("x=" + "a1" * 32 + "b", {"x=" + "a1" * 32 + "b"}),
        ("!1" * 500, {"!1" * 500}),
        ("!1" * 500 + "!", set()),
        ("a" * 998 + "@b", {"a" * 998 + "@b"}),
        ("<" + "a" * 998 + "@b>", {"a" * 998 + "@b"}),
        ("<" + "a" * 999 + "@b>", set()),
        # values of a list or an object that are one word together
        (list("ab" * 32), {"ab" * 32}),
        (list("ab" * 33), set()),
        (["ab", "c"], set()),
        (["ab", "cd"], {"abcd"}),
        ({"before": "-" * 64, "code": ["48-", "2"]}, {"48-2"}),
        ([12, True, None, 34], {"1234"}),
        ([1.0, 2.0, 3.5], {"123.5"}),
        ([" ab ", "", " cd"], {"abcd"}),
        (["ab", '["no"]', "cd"], {"abnocd"}),
        # neighbouring numbers of equal length
        ([["-" * 64, 12], 34, [5, "6", 7, 8, "-"]], {"1234", "5678", "5678-"}),
        (["-" * 64, "a", *"1" * 64, "a"], {"1" * 64}),
        (["-" * 64, "a", *"1" * 65, "a"], set()),
        (["-" * 64, 1, 2, 3], set()),
        # a word in a field of words is no code, unless it has a digit
        ({"type": ["lo", "gin"]}, set()),
        ({"type": ["lo", "gin1"]}, {"gin1"}),
        # ordinary words, and invisible characters
        ("code abcd", set()),
        ("12\u00ad3456", {"123456"}),
        ("ab\ufe6bcd", {"ab@cd"}),
    ],
)  # fmt: skip
def test_a_word_may_be_a_secret_within_limits(value: object, words: set[str]) -> None:
    assert suspects(value, skip=()) == words


def test_the_names_of_fields_may_be_left_out() -> None:
    body = {"1234": {"a5678": "code"}, "c": "9999"}
    values = {"code", "9999", "code9999"}
    assert suspects(body, skip=()) == {"1234", "a5678", "5678"} | values
    assert suspects(body, skip=(), names=False) == values


@pytest.mark.parametrize(
    ("body", "job_id"),
    [
        (b'{"jobId": "login-1"}', "login-1"),
        (b'{"job_id": "login-1"}', "login-1"),
        (b'{"jobId": "", "job_id": "login-1"}', "login-1"),
        (b'{"jobId": "a-1", "job_id": "b-2"}', "a-1"),
        (b'{"jobId": "%b"}' % (b"x" * 200), "x" * 200),
        (b'{"jobId": "%b"}' % (b"x" * 201), None),
        (b'{"jobId": "a\\nb"}', None),
        (b'{"jobId": "1"}', "1"),
        (b'{"jobId": ""}', None),
        (b'{"jobId": "", "job_id": ""}', None),
        (b'{"jobId": 17}', None),
        (b"{}", None),
        (b'["jobId"]', None),
        (b'{"jobId": "login-1"', None),
        (b'{"jobId": "login-1"}' + b" " * (MAX_SEARCHED - 20), "login-1"),
        (b'{"jobId": "login-1"}' + b" " * (MAX_SEARCHED - 19), None),
    ],
)
def test_an_id_is_shown_if_the_body_is_an_object_that_is_small_enough_to_be_searched(
    body: bytes, job_id: str | None
) -> None:
    assert readable_job_id(body) == job_id


@pytest.mark.parametrize(
    ("body", "job_id", "shown"),
    [
        # a word of four letters may be a code, and a shorter one may not
        ({"text": "The code is ABCD."}, "l-ABCD", False),
        ({"text": "The code is ABC."}, "l-ABC", True),
        # six characters or more also count within a longer number or word
        ({"text": "The code is 482913."}, "20261130482913", False),
        ({"text": "The code is 482913."}, "user-7482913-x", False),
        ({"text": "The code is 48291."}, "2026113048291", True),
        # in any width
        ({"text": "The code is QWERTY."}, "l-\uff31\uff37\uff25\uff32\uff34\uff39", False),
        ({"text": "The code is \uff31\uff37\uff25\uff32\uff34\uff39."}, "l-qwerty", False),
        # in base64
        ({"text": "NDgyOTFX"}, "l-48291w", False),
        ({"text": "NDgyOTFXeA=="}, "l-48291w", False),
        ({"text": "NDgyOTFXeA"}, "l-48291w", False),
        ({"text": "NDgyOTFXeHk="}, "l-48291w", False),
        ({"text": "NDgyOTFX=YWJj"}, "l-48291w", True),
        # a text that looks like JSON
        ({"text": "{the code is 482913"}, "l-482913", False),
        ({"text": "[" * 3_900, "code": "482913"}, "l-482913", False),
        ({"text": "[" * 3_900, "code": "482913"}, "login-17", True),
    ],
)  # fmt: skip
def test_an_id_with_a_word_of_another_field_is_not_shown(body: dict[str, str], job_id: str, *, shown: bool) -> None:
    assert readable_job_id(json.dumps(body | {"jobId": job_id}).encode()) == (job_id if shown else None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("l-abcd", True),
        ("l-abc", False),
        ("l-gr%40ce", True),
        ("l-a%2Bb", True),
        ("l-a%2Bbc", False),
        ("mail@example", True),
        ("mail%40example", True),
        ("bWFpbEBleGFtcGxl", True),  # mail@example in base64
        ("b40ieEAgeSIu", False),  # x@ y: no address
    ],
)
def test_a_text_with_a_word_or_anything_like_an_address_may_be_secret(text: str, *, found: bool) -> None:
    assert PossibleSecrets(["abc", "abcd", "gr%40ce", "a%2Bb"]).any_in(text) is found


def test_the_last_at_sign_of_a_word_ends_the_local_part() -> None:
    assert PossibleSecrets(["ann@home@x.example"]).any_in("l-ann_home")
