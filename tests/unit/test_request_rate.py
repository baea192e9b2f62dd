"""How many requests a second are permitted."""

from otp_stream.core.request_rate import RequestRate


def test_a_sender_may_send_a_burst_and_then_at_its_rate() -> None:
    rate = RequestRate(10)
    assert [rate.wait_s("a", 100.0) for _ in range(10)] == [0.0] * 10
    wait_s = rate.wait_s("a", 100.0)
    assert 0.099 < wait_s < 0.101
    assert rate.wait_s("b", 100.0) == 0.0
    assert rate.wait_s("a", 100.0 + wait_s) == 0.0
    assert rate.wait_s("a", 100.0 + wait_s) > 0
    assert [rate.wait_s("a", 200.0) for _ in range(11)].count(0.0) == 10


def test_a_rate_below_one_permits_one_request_at_once() -> None:
    rate = RequestRate(0.1)
    assert rate.wait_s("a", 0.0) == 0.0
    assert rate.wait_s("a", 0.0) == 10.0
    assert rate.wait_s("a", 9.0) == 1.0
    assert rate.wait_s("a", 10.0) == 0.0
