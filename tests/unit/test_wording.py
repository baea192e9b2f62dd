import re
from itertools import product

import pytest
from calls import counted

from otp_stream.core import greylisting
from otp_stream.core.outcome import Deferred, Rejected, Unavailable, without_secrets
from otp_stream.core.wording import CLASSIFIED, Wording
from otp_stream.relay import reply, reply_words
from otp_stream.relay.parser import MAX_LINE
from otp_stream.relay.reply import classify, to_reply

WORDINGS = {
    name: it
    for module in (greylisting, reply, reply_words)
    for name, it in vars(module).items()
    if isinstance(it, Wording)
}
TEXTS = """\
Daily user sending limit exceeded; see https://relay.example/limits
you've reached your hourly limit for message recipients, MI:SFQ otp
STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message
***: Recipient address rejected: Greylisted, please try again later
SENDER_EMAIL: Sender address rejected: not owned by user SMTP_USER
Message rejected: Email address is not verified. SENDER_EMAIL
Mailbox is full, user over quota; the mailbox only accepts mail of members
relaying denied to ***: verify your domain, ip 192.0.2.1 is listed in an RBL, no PTR or rDNS record
SPF check failed, DKIM unaligned; your API key is disabled and your network is banned
Must issue a STARTTLS command first; authentication required to send
remote host mx.example said: 550 no such user; callout; verification failed for ***
too many connections, rate limit: wait 30 seconds, server busy, qq write error
message size, header, line length or score; too many hops; 8BITMIME body
Sieve vacation rule blocked by the recipient; links in the mail are blocked; contains 3 urls
improper use of pipelining; bad sequence of commands; one SMTP session per connection
this address requires TLS; destination address accepts members only; group allows no one""".splitlines()
SECRETS = ("739154", "user.name@example.com")


@pytest.mark.parametrize("name", WORDINGS)
def test_a_wording_is_found_as_by_a_pattern_that_ignores_case(name: str) -> None:
    wording = WORDINGS[name]
    plain = re.compile("|".join(wording.patterns), re.IGNORECASE)
    for text, change, before in product(TEXTS, (str, str.upper, str.lower), ("", "x", "x ", "your ", "from ")):
        shown = change(f"{before}{text}")
        assert bool(wording.search(shown)) == bool(plain.search(shown)), shown


@pytest.mark.parametrize(("before", "expected"), [(CLASSIFIED - 40, Unavailable), (CLASSIFIED, Deferred)])
def test_a_reply_is_classified_by_its_beginning(before: int, expected: type) -> None:
    answer = (450, f"{'x ' * (before // 2)}Daily sending limit exceeded")
    assert isinstance(classify(to_reply(answer, "rcpt")), expected)
    assert greylisting.asks_for_later(f"{'x ' * (before // 2)}greylisted") is (expected is Unavailable)


@pytest.mark.parametrize(
    "piece",
    [
        "a sender ip ", "&too many %41 ", "&#49;", "%25=<%41=31&amp;= your ", "\\x41%41=41&amp;", "=31%31", "a@b ",
        "\n", "\n5.1.0 x", "(#5.1.0)",
    ],
)  # fmt: skip
def test_the_longest_reply_is_read_without_work_for_each_word_or_line(piece: str) -> None:
    text = "\n".join([piece * (MAX_LINE // len(piece))] * 15)

    def read() -> object:
        outcome = classify(to_reply((550, f"5.1.0 {text}"), "rcpt", sender="n@b.example", secrets=SECRETS))
        assert isinstance(outcome, Rejected)
        return without_secrets(outcome, *SECRETS)

    read()
    assert counted(read)[1] < 10_000  # a text of 2,000 characters with 650 escapes is unescaped in several ways


def test_a_secret_at_the_end_of_what_is_searched_is_redacted_as_a_whole() -> None:
    for blanks in (1, 50, 4_000):
        text = f"{'x ' * 120}{' ' * blanks}\n5.1.0 u%73er.name@exam\n5.1.0 ple.com {'y ' * 2_000}"
        found = to_reply((550, f"5.1.0 {text}"), "rcpt", secrets=SECRETS)
        shown = str(without_secrets(Rejected(found), *SECRETS))
        assert "name" not in shown
        assert len(found.text) <= CLASSIFIED + 3
