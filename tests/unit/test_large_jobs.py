"""A large job with an invalid field is parsed once, like one that is as documented, and is read the same."""

import pytest

from otp_stream.core.lenient import Lenience
from otp_stream.core.otp_job import MalformedError, OtpJob

BLANKS = b" " * 5_000
SIZE = 60_000


def body(metadata: str, locale: str = '"de"') -> bytes:
    fields = f'"userName": "Ada", "locale": {locale}, {metadata}'
    return f'{{"email": "ada@example.com", "otp": "493817", "metadata": {{{fields}}}}}'.encode()


def repeated(value: str) -> str:
    return '"x": [' + ",".join([value] * (SIZE // (len(value) + 1))) + "]"


@pytest.mark.parametrize(
    "metadata",
    [
        repeated('{"a":[]}'),
        repeated("{}"),
        repeated("[]"),
        repeated("1"),
        repeated("[" * 190 + "]" * 190),
        ",".join(['"x":[]'] * (SIZE // 7)),
    ],
    ids=["objects of lists", "objects", "lists", "numbers", "nested", "one name"],
)
def test_a_large_job_with_an_invalid_field_is_parsed_once(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_again(*_: object) -> object:
        raise AssertionError("parsed in Python, which takes ten times as long")

    monkeypatch.setattr("otp_stream.core.otp_job.repaired", parse_again)
    assert Lenience("metadata.locale", "ignored") in OtpJob.from_bytes(body(metadata, locale="7")).lenient


@pytest.mark.parametrize(
    "metadata",
    [
        '"x": 1',
        '"x": NaN, "y": -Infinity, "z": 1e999, "a": -0',
        f'"x": {"9" * 300}, "y": -{"9" * 300}, "z": {"9" * 301}, "a": {"9" * 5_000}',
        '"x": "\\q", "y": "\\ud800", "z": "\\\\q", "a": "\u00e9"',
        '"x": "a\tb", "y": [[]]',
        f'"x": {"[" * 300}{"]" * 300}',
        '"x": 1, "x": 2, "user_name": "Bob"',
        '"x": 01',
    ],
    ids=["valid", "special", "long", "escapes", "control", "deep", "two names", "mistake"],
)
@pytest.mark.parametrize("locale", ['"de"', "7"], ids=["documented", "leniently"])
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_a_large_body_is_read_like_a_small_one(metadata: str, locale: str, strict: bool) -> None:  # noqa: FBT001 - a parameter
    message = body(metadata, locale)
    # the position of a mistake is not compared, which blanks at the end do not change
    assert read(message + BLANKS, strict=strict) == read(message, strict=strict)


def read(message: bytes, *, strict: bool) -> object:
    """Return all that is read, or the text of the error."""
    try:
        job = OtpJob.from_bytes(message, strict=strict)
    except MalformedError as error:
        return str(error)
    return repr(job.model_dump()), job.email, job.otp, job.lenient, job.metadata.model_fields_set
