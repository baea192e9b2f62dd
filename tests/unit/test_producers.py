"""The producers of the intake: their audit lines."""

import pytest
from starlette.requests import Request

from otp_stream.core.request_rate import RequestRate
from otp_stream.intake import producers
from otp_stream.intake.problem import ProblemError
from otp_stream.intake.producers import Producers


def request(client: str) -> Request:
    headers = [(b"authorization", b"Bearer guess")]
    return Request({"type": "http", "path": "/v1/jobs", "headers": headers, "client": (client, 1)})


def test_clients_with_thousands_of_addresses_cannot_flood_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(producers.time, "monotonic", lambda: clock[0])
    it = Producers(list, RequestRate(1))
    for number in range(300):
        with pytest.raises(ProblemError, match="authorization: "):
            it.by_token(request(f"2001:db8:0:{number:x}::1"))
    assert capsys.readouterr().out.count("action=token.refused") == 100
    clock[0] += 61
    with pytest.raises(ProblemError, match="authorization: "):
        it.by_token(request("192.0.2.1"))
    assert "left_out=200" in capsys.readouterr().out
