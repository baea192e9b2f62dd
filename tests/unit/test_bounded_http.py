"""Answers of servers that send too much, too slowly, or to another place."""

import threading
from pathlib import Path

import pytest
import requests
from certificates import Authority
from http_answers import HEAD, server
from patience import limit
from ticket_relay import TicketRelay

from otp_stream.bounded_http import bound


def post(url: str, within_s: float = 30) -> requests.Response:
    with bound(requests.Session(), 1_000, within_s) as session:
        return session.post(url, data=b"spans", timeout=10, headers={"authorization": "Bearer configured"})


@pytest.mark.parametrize(
    "head", [b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
def test_a_short_body_is_read(head: bytes) -> None:
    with server(HEAD + head) as (url, _):
        assert post(url).content == b"hello"


@pytest.mark.parametrize("head", [b"\r\n", b"content-length: 10000000000\r\n\r\n"])
def test_a_body_without_end_is_not_read(head: bytes) -> None:
    with server(HEAD + head, b"x" * 65_536) as (url, _), pytest.raises(ValueError, match="it is too long"):
        post(url)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [(HEAD + b"\r\n", b"x"), (HEAD + b"x: ", b"x"), (HEAD, b"x: y\r\n"), (b"", b"x"), (b"", CONTINUE)],
    ids=["body", "field", "fields", "status", "continue"],
)
def test_an_answer_that_comes_slowly_is_not_waited_for(head: bytes, piece: bytes) -> None:
    with server(head, piece, 0.01) as (url, _), pytest.raises((requests.ConnectionError, requests.Timeout)):
        post(url, 0.1)


def test_an_answer_that_never_begins_is_not_read() -> None:
    ends = pytest.raises((ValueError, requests.ConnectionError))  # Python 3.14 itself ends it after 100 responses
    with server(b"", CONTINUE * 1_000) as (url, _), ends as raised:
        post(url)
    assert "it is too long" in str(raised.value) or "more than 100 interim responses" in str(raised.value)


def test_a_redirect_is_not_followed() -> None:
    with server(b"HTTP/1.1 307 Moved\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n") as (url, asked):
        with pytest.raises(requests.TooManyRedirects):
            post(url)
        assert len(asked) == 1


def test_no_password_of_netrc_replaces_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password of-another-service\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with server(HEAD + b"content-length: 0\r\n\r\n") as (url, asked):
        post(url)
        assert b"authorization: Bearer configured" in asked[0]


def test_tls_records_without_data_are_not_read_for_longer(tmp_path: Path) -> None:
    authority, errors = Authority(tmp_path), list[Exception]()

    def ask(url: str) -> None:
        with bound(requests.Session(), 1_000, 0.5) as session:
            try:
                session.post(url, timeout=10, verify=str(authority.ca_file))
            except requests.RequestException as error:
                errors.append(error)

    with TicketRelay(authority) as server_of_tickets:
        asking = threading.Thread(target=ask, args=(f"https://localhost:{server_of_tickets.port}",), daemon=True)
        asking.start()
        asking.join(limit(5))
        assert not asking.is_alive()
    assert isinstance(errors[0], requests.ConnectionError | requests.Timeout)
