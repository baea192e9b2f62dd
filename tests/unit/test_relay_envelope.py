import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Reply
from otp_stream.relay.envelope import Envelopes, Extensions, data_form

MODERN = Extensions.read(
    (250, "relay.example hello\nPIPELINING\nsize 1000\n8BITMIME\nSMTPUTF8\nAUTH=LOGIN\nAUTH PLAIN")
)
OLD = Extensions.read((250, "relay.example"))
EIGHT_BIT = Extensions(eight_bit=True)


def write(recipient: str, content: bytes = b"hi", offers: Extensions = MODERN, sender: str = "s@example.com"):
    return Envelopes(sender, offers).write(Mail(recipient, content))


def test_offers_are_read_from_the_answer_to_ehlo():
    logins = frozenset({"PLAIN", "LOGIN"})
    assert Extensions(pipelining=True, size=True, size_limit=1000, eight_bit=True, utf8=True, logins=logins) == MODERN
    assert Extensions() == OLD


def test_the_relay_s_own_name_is_no_offer():
    assert Extensions.read((250, "PIPELINING")) == Extensions()


def test_a_plain_mail_announces_its_size():
    assert write("u@example.com") == (b"MAIL FROM:<s@example.com> SIZE=2\r\n", b"RCPT TO:<u@example.com>\r\n")


def test_no_parameter_is_sent_that_was_not_offered():
    assert write("u@example.com", b"\xff", OLD) == (b"MAIL FROM:<s@example.com>\r\n", b"RCPT TO:<u@example.com>\r\n")


def test_a_mail_s_own_sender_replaces_that_of_the_relay():
    envelopes = Envelopes("s@example.com", MODERN)
    for sender, path in (("a@b.example", "a@b.example"), (None, "s@example.com"), ("a@b.example", "a@b.example")):
        written = envelopes.write(Mail("u@example.com", b"hi", sender=sender))
        assert written == (f"MAIL FROM:<{path}> SIZE=2\r\n".encode(), b"RCPT TO:<u@example.com>\r\n")


def test_only_so_many_senders_are_remembered():
    envelopes = Envelopes("s@example.com", OLD)
    for at in range(3_000):
        assert envelopes.write(Mail("u@example.com", b"", sender=f"{at}@b.example"))[0] == (
            f"MAIL FROM:<{at}@b.example>\r\n".encode()
        )
    assert len(envelopes._of_mails) <= 1_000


def test_a_sender_that_the_relay_cannot_take_is_refused_for_its_own_mail_only():
    envelopes = Envelopes("s@example.com", OLD)
    refused = envelopes.write(Mail("u@example.com", b"", sender="ü@b.example"))
    assert isinstance(refused, Reply)
    assert "sender's address needs SMTPUTF8" in refused.text
    assert not isinstance(envelopes.write(Mail("u@example.com", b"")), Reply)


def test_eight_bit_content_is_announced():
    assert write("u@example.com", b"\xff", EIGHT_BIT)[0] == b"MAIL FROM:<s@example.com> BODY=8BITMIME\r\n"


def test_a_non_ascii_local_part_asks_for_smtputf8():
    assert write("jürgen@bücher.example") == (
        b"MAIL FROM:<s@example.com> SIZE=2 SMTPUTF8\r\n",
        "RCPT TO:<jürgen@xn--bcher-kva.example>\r\n".encode(),
    )


@pytest.mark.parametrize("offers", [MODERN, OLD])
def test_a_non_ascii_domain_goes_as_a_labels_and_asks_for_nothing(offers: Extensions):
    mail, rcpt = write("u@bücher.example", offers=offers, sender="s@straße.example")
    assert mail.startswith(b"MAIL FROM:<s@xn--strae-oqa.example>")
    assert b"SMTPUTF8" not in mail
    assert rcpt == b"RCPT TO:<u@xn--bcher-kva.example>\r\n"


@pytest.mark.parametrize(("recipient", "sender"), [("jürgen@example.com", "s@example.com"), ("u@x.y", "ß@example.com")])
def test_without_smtputf8_a_non_ascii_local_part_is_refused_by_us(recipient: str, sender: str):
    refused = write(recipient, offers=OLD, sender=sender)
    assert isinstance(refused, Reply)
    assert (refused.code, refused.enhanced, refused.stage) == (553, "5.6.7", "rcpt")
    assert "SMTPUTF8" in refused.text
    assert "@" not in refused.text


def test_a_domain_that_idna_cannot_write_is_refused_by_us():
    assert isinstance(write(f"u@{'ü' * 80}.example", offers=OLD), Reply)


@pytest.mark.parametrize(
    "recipient", ["u@x.y>\r\nRCPT TO:<v@x.y", "u@x.y\n", "u@x.y> NOTIFY=NEVER", "u v@x.y", "u\x00@x.y"]
)
def test_an_address_never_leaves_its_brackets(recipient: str):
    refused = write(recipient)
    assert isinstance(refused, Reply)
    assert refused.code == 553


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"", b"\r\n.\r\n"),
        (b".a\r\n.\r\n..b\r\n", b"..a\r\n..\r\n...b\r\n.\r\n"),
        (b"a\n.\nb\r.\rc", b"a\r\n..\r\nb\r\n..\r\nc\r\n.\r\n"),
    ],
)
def test_content_ends_with_the_only_final_dot(content: bytes, expected: bytes):
    assert data_form(Mail("user@example.com", content)) == expected


@given(st.lists(st.sampled_from([b".", b"\r\n", b"\r", b"\n", b"x", b".."]), max_size=30).map(b"".join))
def test_no_content_ends_early_and_all_of_it_arrives(content: bytes):
    wire = data_form(Mail("user@example.com", content))
    assert wire.find(b"\r\n.\r\n") in {-1, len(wire) - 5}
    assert b"\n" not in wire.replace(b"\r\n", b"")
    assert b"\r" not in wire.replace(b"\r\n", b"")
    lines = wire.removesuffix(b".\r\n").split(b"\r\n")
    received = b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)
    sent = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert received.removesuffix(b"\r\n") == sent.removesuffix(b"\r\n")
