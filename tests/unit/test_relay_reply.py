import pytest

from otp_stream.core.masking import contains_secret
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Stage, Unavailable, without_secrets
from otp_stream.relay.reply import classify, handshake_reason, to_reply

MARK = {Deferred: "later", Rejected: "never", Accepted: "sent"}


def verdict(line: str, stage: Stage) -> str:
    outcome: Outcome | None = classify(to_reply((int(line[:3]), line[4:]), stage))
    if isinstance(outcome, Unavailable):
        return outcome.reason
    return MARK[type(outcome)]


@pytest.mark.parametrize(
    ("stage", "line", "expected"),
    [
        ("body", "250 2.0.0 Ok: queued as 4B3C", "sent"),
        # about this recipient or message
        ("rcpt", "550 5.1.1 <u@example.com>: Recipient address rejected: User unknown", "never"),
        ("rcpt", "554 5.7.1 <u@example.com>: Relay access denied", "never"),
        ("rcpt", "553 sorry, that domain isn't in my list", "never"),
        ("rcpt", "501 5.1.3 Bad recipient address syntax", "never"),
        ("data", "554 5.5.1 Error: no valid recipients", "never"),
        ("body", "552 5.3.4 Message size exceeds fixed limit", "never"),
        ("body", "550 5.7.26 This mail is unauthenticated", "never"),
        ("body", "550 5.7.1 Gmail requires authentication of all senders by SPF or DKIM", "never"),
        ("rcpt", "450 4.7.1 <u@example.com>: Recipient address rejected: Greylisted, see http://x", "later"),
        ("rcpt", "451 4.7.1 Greylisting in action, please come back later", "later"),
        ("rcpt", "450 4.2.0 Recipient address rejected: Greylisted", "later"),
        ("rcpt", "451 Temporary local problem - please try later", "later"),
        ("rcpt", "452 4.2.2 The email account that you tried to reach is over quota", "later"),
        ("rcpt", "452 Mailbox quota exceeded", "later"),
        ("rcpt", "450 4.2.1 The user is receiving mail at a rate that prevents additional messages", "later"),
        ("rcpt", "450 4.2.1 mailbox has a message rate limit", "later"),
        ("rcpt", "454 4.7.1 <u@example.com>: Relay access denied", "later"),
        ("body", "451 4.3.0 Temporary lookup failure", "later"),
        ("body", "450 4.7.26 Gmail requires all senders to authenticate with either SPF or DKIM", "later"),
        # about the relay: login
        ("mail", "530 5.7.0 Authentication Required", "login_refused"),
        ("mail", "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail", "login_refused"),
        ("rcpt", "503 This mail server requires authentication when sending to a non-local address", "login_refused"),
        ("mail", "454 4.7.0 Temporary authentication failure", "login_refused"),
        ("mail", "535 5.7.8 Username and Password not accepted", "login_refused"),
        ("mail", "550 5.7.8 bad credentials", "login_refused"),
        ("mail", "530 5.7.0 Must issue a STARTTLS command first", "tls_failed"),
        ("mail", "550 5.7.10 encryption needed", "tls_failed"),
        # about the relay: rate
        ("body", "454 Throttling failure: Maximum sending rate exceeded.", "throttled"),
        ("body", "454 Throttling failure: Daily message quota exceeded.", "throttled"),
        ("mail", "421 4.7.28 unusual rate of mail", "throttled"),
        ("rcpt", "450 4.7.28 unusual rate of mail", "throttled"),
        ("mail", "450 4.7.1 Error: too much mail from 192.0.2.1", "throttled"),
        ("rcpt", "450 4.7.1 Error: too many recipients from 192.0.2.1", "throttled"),
        ("rcpt", "452 4.5.3 Too many recipients", "throttled"),
        ("mail", "452 4.3.1 Insufficient system resources", "throttled"),
        ("rcpt", "452 4.3.1 Insufficient system storage", "throttled"),
        ("body", "452 4.3.1 Insufficient system storage", "throttled"),
        ("rcpt", "452 4.4.5 Insufficient disk space; try again later", "throttled"),
        ("mail", "432 4.3.2 Concurrent connections limit exceeded", "throttled"),
        ("rcpt", "450 4.3.2 Service currently unavailable", "unreachable"),
        ("mail", "421 4.3.2 System shutting down", "unreachable"),
        ("mail", "421 4.4.2 Message submission rate for this client has exceeded the configured limit", "throttled"),
        ("body", "451 4.7.500 Server busy. Please try again later", "throttled"),
        ("body", "550 5.4.5 Daily user sending limit exceeded", "throttled"),
        ("mail", "421 4.7.0 relay.example Error: too many connections from 192.0.2.1", "throttled"),
        # about the relay: unreachable
        ("mail", "421 4.3.0 relay.example Service not available", "unreachable"),
        ("body", "421 4.4.2 relay.example Error: timeout exceeded", "unreachable"),
    ],
)
def test_replies_are_classified(stage: Stage, line: str, expected: str):
    assert verdict(line, stage) == expected


@pytest.mark.parametrize(("stage", "code"), [("mail", 354), ("data", 250), ("body", 354), ("rcpt", 334)])
def test_a_reply_that_fits_nowhere_has_no_outcome(stage: Stage, code: int):
    assert classify(to_reply((code, "?"), stage)) is None


@pytest.mark.parametrize(
    ("stage", "line", "expected"),
    [
        ("greeting", "554 No SMTP service here", "unreachable"),
        ("greeting", "554 5.7.1 too many connections from your address", "throttled"),
        ("greeting", "421 4.7.0 Error: too many connections", "throttled"),
        ("greeting", "450 too frequent connects from 192.0.2.1, please try again later.", "throttled"),
        ("ehlo", "502 what?", "unreachable"),
        ("tls", "454 4.7.0 TLS not available due to local problem", "tls_failed"),
        ("tls", "421 4.3.0 shutting down", "unreachable"),
        ("auth", "535 5.7.8 bad", "login_refused"),
        ("auth", "504 5.5.4 Unrecognized authentication type", "login_refused"),
        ("auth", "454 4.7.0 Temporary authentication failure", "login_refused"),
        ("auth", "454 4.7.0 Too many login attempts, please try again later.", "throttled"),
        ("auth", "421 4.3.0 shutting down", "unreachable"),
    ],
)
def test_refusals_before_the_first_mail_name_their_reason(stage: Stage, line: str, expected: str):
    assert handshake_reason(to_reply((int(line[:3]), line[4:]), stage)) == expected


def test_the_enhanced_code_is_separated_from_the_text():
    reply = to_reply((550, "5.1.1 no such\n5.1.1 user here"), "rcpt")
    assert (reply.enhanced, reply.text) == ("5.1.1", "no such user here")


@pytest.mark.parametrize(
    ("text", "enhanced", "rest"),
    [
        ("#5.1.0 Address rejected.", "5.1.0", "Address rejected."),
        ("sorry, no mailbox here (#5.1.1)", "5.1.1", "sorry, no mailbox here (#5.1.1)"),
        ("sorry (#4.1.1)", None, "sorry (#4.1.1)"),
    ],
)
def test_the_enhanced_code_is_read_as_ironport_and_qmail_write_it(text: str, enhanced: str | None, rest: str):
    reply = to_reply((550, text), "rcpt")
    assert (reply.enhanced, reply.text) == (enhanced, rest)


@pytest.mark.parametrize("text", ["4.1.1 other class", "5.1", "5.1.1x", "see 5.1.1", ""])
def test_what_is_no_enhanced_code_stays_text(text: str):
    reply = to_reply((550, text), "rcpt")
    assert (reply.enhanced, reply.text) == (None, text)


def test_reply_texts_show_no_address_and_have_an_end():
    reply = str(to_reply((550, f"5.1.1 <u+tag@example.com>: unknown\n5.1.1 mail to:ü@exämple.org {'x' * 999}"), "rcpt"))
    assert "@" not in reply
    assert reply.startswith("550 5.1.1 <***>: unknown mail to:*** x")
    assert reply.endswith("x (to RCPT)")
    assert len(reply) == len("550 5.1.1  (to RCPT)") + 300


@pytest.mark.parametrize(
    "quoted",
    [
        "anna.o'lee-jones@example.com", "anna.o'lee-\n5.1.1 jones@example.com", "anna.\n5.1.1 o'lee-jones@example.com",
        "anna.o'lee-jones=example.com@bounces.relay.example", "ANNA.O&#x27;LEE-JONES@EXAMPLE.COM",
    ],
)  # fmt: skip
def test_an_address_that_a_relay_changes_is_redacted_as_a_whole(quoted: str):
    address = "anna.o'lee-jones@example.com"
    text = f"5.1.1 no mailbox for <{quoted}>, see postmaster@relay.example"
    reply = to_reply((550, text), "rcpt", secrets=("123456", address))
    shown = repr(without_secrets(Rejected(reply), "123456", address)).lower()
    assert not any(part in shown for part in ("anna", "lee", "jones"))
    assert "no mailbox for <***" in shown
    assert "see ***" in shown


@pytest.mark.parametrize("secret", ["hunter%@/&'horse22", "aB3@xyz,9Qz-77"])
def test_a_secret_with_an_at_sign_is_redacted_as_a_whole(secret: str):
    for quoted in (secret, secret.upper(), f"<{secret}>"):
        text = f"5.7.0 bad line {quoted} seen"
        of_mail = without_secrets(Rejected(to_reply((554, text), "body", secrets=(secret,))), secret)
        of_login = Rejected(to_reply((554, text), "body", of_login=(secret,)))
        assert repr(of_mail) == repr(of_login)
        assert "bad line ***" in repr(of_mail).replace("<", "").replace(">", "")
        assert not contains_secret(repr(of_mail), "", secret[-7:], partial=True)


def test_words_far_behind_in_a_long_reply_count():
    policy = "Please read our policy. " * 40
    assert verdict(f"550 {policy}\nDaily sending limit exceeded", "rcpt") == "throttled"
    assert verdict(f"451 {policy}\ngreylisted, come back", "rcpt") == "later"
