"""Scenes for the alerts: what the workers report, minute by minute, and which alerts fire when.

Values are in promtool's notation: `0+60x90` is 0, 60, 120, …, 90 steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

END = "END"
"""As many steps as a scene has minutes."""
_A, _B = "a:8000", "b:8000"
_DAY_S = 86_400
FAILURES = ("rejected", "malformed", "key_missing", "expired", "retries_exhausted", "crashed")
_REQUESTS = "http_server_request_duration_seconds_count"
COUNT, FAST = "otp_time_to_accept_seconds_count", "otp_time_to_accept_seconds_bucket"
LATE_WINDOWS = ("OtpCodesLate 1h", "OtpCodesLate 6h", "OtpCodesLate 3d")
FAIL_WINDOWS = ("OtpJobsFail 1h", "OtpJobsFail 6h", "OtpJobsFail 3d")


def series(name: str, instance: str = _A, **labels: str) -> str:
    """Return a series of one of the two workers, `a` by default."""
    pairs = {"job": "otp-stream", "instance": instance, **labels}
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs.items()) + "}"


def constant(value: float) -> str:
    """Return the same value for ever."""
    return f"{value}x{END}"


def rate(per_minute: float) -> str:
    """Return a counter that grows steadily, from 0."""
    return f"0+{per_minute}x{END}"


def _of_worker(instance: str) -> dict[str, str]:
    relay = {"instance": instance, "relay": "mx:25"}
    return {
        series("up", instance): constant(1),
        series("otp_phase", instance, state="consuming"): constant(1),
        series("otp_phase", instance, state="starting"): constant(0),
        series("otp_broker_connected", instance): constant(1),
        series("otp_broker_blocked", instance): constant(0),
        series("otp_queue_consumers", instance, queue="jobs"): constant(2),
        series("otp_queue_consumers", instance, queue="tenants"): constant(0),
        series("otp_queue_oldest_seconds", instance, queue="jobs"): constant(0.2),
        series("otp_circuit_breaker_state", state="closed", **relay): constant(1),
        series("otp_circuit_breaker_state", state="open", **relay): constant(0),
        series("otp_tenant_mail_waits", instance, tenant="shop"): constant(0),
        series("otp_relay_certificate_expiry_timestamp_seconds", **relay): constant(60 * _DAY_S),
        series("otp_relay_token_failures", **relay): constant(0),
        series("otp_relay_first_tries_ratio", **relay): constant(1),
        series("otp_redis_connected", instance): constant(1),
        series("otp_dead_letters", instance): constant(100),
        series("otp_dead_letter_sweeps_total", instance, result="complete"): rate(1),
        series("otp_dead_letter_sweeps_total", instance, result="failed"): constant(0),
        series("otp_ledger_received_total", instance, lane="jobs"): rate(60),
        series("otp_ledger_settled_total", instance, lane="jobs", how="ack"): f"0 0+60x{END}",
        series("otp_ledger_unacked", instance, lane="jobs"): f"0 60x{END}",
        series("otp_jobs_total", instance, outcome="sent"): rate(60),
        series("otp_jobs_total", instance, outcome="throttled"): constant(0),
        **{series("otp_jobs_total", instance, outcome=it): constant(0) for it in FAILURES},
        series(COUNT, instance): rate(60),
        series(FAST, instance, le="10.0"): rate(60),
        **{
            series(f"otp_{name}_total", instance): constant(0)
            for name in (
                "clock_ahead", "unverified_retries", "job_ids_reused", "events_dropped", "log_lines_dropped",
                "telemetry_errors",
            )
        },
    }  # fmt: skip


NORMAL: Mapping[str, str] = {**_of_worker(_A), **_of_worker(_B)}
"""Two workers, each with a job a second, all well since both started with minute 0."""


@dataclass(frozen=True)
class Scene:
    """`changes` replace series of `NORMAL`. `fires` has the alerts that fire at a minute, with their windows if any."""

    name: str
    changes: Mapping[str, str] = field(default_factory=dict[str, str])
    fires: Mapping[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    quiet: tuple[int, ...] = ()
    """Minutes at which no alert fires."""
    alone: bool = False
    """Whether there are no other series than those in `changes`."""
    step: int = 1
    """Minutes between evaluations."""


def _both(name: str, values: str, **labels: str) -> dict[str, str]:
    return {series(name, instance, **labels): values for instance in (_A, _B)}


def _late(share: float) -> dict[str, str]:
    """Return the changes for a share of late codes."""
    return _both(FAST, rate(60 * (1 - share)), le="10.0")


def _failing(outcome: str, share: float) -> dict[str, str]:
    return _both("otp_jobs_total", rate(60 * share), outcome=outcome) | _both(
        "otp_jobs_total", rate(60 * (1 - share)), outcome="sent"
    )


def _few(failures: int) -> dict[str, str]:
    """Return the changes for 10 jobs of which some fail and are late, after five minutes without any."""
    return {
        **_both("otp_jobs_total", constant(0), outcome="sent"), **_both(COUNT, constant(0)),
        **_both(FAST, constant(0), le="10.0"),
        series("otp_jobs_total", outcome="sent"): f"0x5 {constant(10 - failures)}",
        series("otp_jobs_total", outcome="crashed"): f"0x5 {constant(failures)}",
        series(COUNT): f"0x5 {constant(10)}", series(FAST, le="10.0"): f"0x5 {constant(10 - failures)}",
    }  # fmt: skip


def _case(alert: str, after: int, changes: Mapping[str, str]) -> Scene:
    """Return a scene in which an alert fires alone, `after` minutes from minute 5, and not a minute before."""
    return Scene(alert, changes, {5 + after: (alert,)}, quiet=(4, 5 + after - 1))


def _from_5(before: float, value: float) -> str:
    return f"{before}x4 {constant(value)}"


def _certificate(days: int) -> dict[str, str]:
    """Return the changes for a certificate that is valid for so many days, half an hour after the start."""
    ends_s = days * _DAY_S + 30 * 60
    return _both("otp_relay_certificate_expiry_timestamp_seconds", constant(ends_s), relay="mx:25")


def _after_3h(before: float, after: float) -> str:
    """Return a counter that grows by `before` per minute for three hours, and then by `after`."""
    return f"0+{before}x180 {180 * before + after}+{after}x{END}"


_RESET = f"0+60x9 0+60x{END}"
SCENES = (
    Scene("all is well, also just after the start", quiet=(0, 1, 2, 5, 16)),
    Scene("no worker has ever run", {"x": constant(0)}, {2: ("OtpNoConsumer",)}, quiet=(0,), alone=True),
    Scene(
        "no traffic",
        {
            key: constant(0)
            for key in NORMAL
            if key.startswith(("otp_jobs_total", "otp_time_to", "otp_ledger"))
        },
        quiet=(5, 20),
    ),
    Scene(
        "a worker restarts, and its counters begin again",
        {
            **{key: _RESET for key in NORMAL if "60x" in NORMAL[key] and _A in key and "ledger" not in key},
            series("otp_ledger_received_total", lane="jobs"): _RESET,
            series("otp_ledger_settled_total", lane="jobs", how="ack"): f"0 0+60x8 0 0+60x{END}",
            series("otp_ledger_unacked", lane="jobs"): f"0 60x8 0 60x{END}",
        },
        quiet=(9, 10, 11, 15, 20),
    ),
    Scene(
        "requests to the intake fail",
        {
            series(_REQUESTS, http_route="/v1/jobs", http_response_status_code="202"): rate(90),
            series(_REQUESTS, http_route="/v1/jobs", http_response_status_code="422"): rate(300),
            series(_REQUESTS, http_route="/v1/jobs", http_response_status_code="503", error_type="503"): (
                f"0x10 0+30x{END}"
            ),
        },
        {18: ("OtpRequestsFail",)},
        quiet=(10,),
    ),
    Scene(
        "the intake refuses requests",
        {
            series(_REQUESTS, http_route="/v1/jobs", http_response_status_code="422"): rate(300),
            series(_REQUESTS, http_response_status_code="404"): rate(300),
        },
        quiet=(10, 20),
    ),
    Scene("few jobs, of which a half fails late", _few(5), quiet=(7, 9)),
    Scene("a few more jobs that fail late", _few(7), {9: (*LATE_WINDOWS, *FAIL_WINDOWS)}, quiet=(4,)),
    Scene("fewer late codes than the objective allows", _late(0.009), quiet=(5, 70), step=5),
    Scene("more late codes than the objective allows", _late(0.02), {70: LATE_WINDOWS[2:]}, step=5),
    Scene("late codes that use up 30 days' budget in four", _late(0.08), {70: LATE_WINDOWS[1:]}, step=5),
    Scene(
        "an hour of late codes",
        _both(FAST, f"0+60x60 3645+45x59 6360+60x{END}", le="10.0"),
        {90: LATE_WINDOWS[1:], 120: LATE_WINDOWS, 130: LATE_WINDOWS[1:], 165: LATE_WINDOWS[2:]},
        quiet=(60,),
        step=5,
    ),
    Scene(
        "forty minutes of late and failed jobs, after three hours in which all was well",
        _both(FAST, _after_3h(60, 60 * 0.92), le="10.0")
        | _both("otp_jobs_total", _after_3h(60, 60 * 0.96), outcome="sent")
        | _both("otp_jobs_total", _after_3h(0, 60 * 0.04), outcome="crashed"),
        {220: (LATE_WINDOWS[2], FAIL_WINDOWS[2])},
        quiet=(180,),
        step=5,
    ),
    *(Scene(f"most jobs are {it}", _failing(it, 0.6), {20: FAIL_WINDOWS}, step=5) for it in FAILURES),
    *(
        Scene(f"a few jobs are {it}", _failing(it, 0.01), {20: () if it == "rejected" else FAIL_WINDOWS[2:]}, step=5)
        for it in FAILURES
    ),
    Scene("most jobs are over a limit", _failing("throttled", 0.6), quiet=(20,), step=5),
    _case("OtpNoConsumer", 1, _both("otp_phase", _from_5(1, 0), state="consuming")),
    Scene(
        "one of two workers starts",
        {series("otp_phase", state="consuming"): constant(0), series("otp_phase", state="starting"): constant(1)},
        quiet=(20,),
    ),
    _case("OtpQueueNotConsumed", 2, _both("otp_queue_consumers", _from_5(2, 0), queue="jobs")),
    _case("OtpWorkerDown", 5, {series("up"): _from_5(1, 0)}),
    _case("OtpBrokerAway", 1, _both("otp_broker_connected", _from_5(1, 0))),
    _case("OtpBrokerBlocked", 2, {series("otp_broker_blocked"): _from_5(0, 1)}),
    _case("OtpQueueOld", 1, {series("otp_queue_oldest_seconds", queue="jobs"): _from_5(0, 61)}),
    Scene(
        "no relay takes mail, so the queue grows",
        _both("otp_queue_oldest_seconds", _from_5(0, 300), queue="jobs")
        | _both("otp_circuit_breaker_state", _from_5(1, 0), relay="mx:25", state="closed"),
        {9: ("OtpCircuitBreakerOpen",) * 2},
    ),
    _case(
        "OtpCircuitBreakerOpen", 2, {series("otp_circuit_breaker_state", relay="mx:25", state="closed"): _from_5(1, 0)}
    ),
    Scene(
        "a fallback relay takes the mail",
        {
            series("otp_circuit_breaker_state", relay="mx:25", state="closed"): constant(0),
            series("otp_circuit_breaker_state", relay="spare:25", state="closed"): constant(1),
        },
        quiet=(20,),
    ),
    _case("OtpTenantMailWaits", 10, {series("otp_tenant_mail_waits", tenant="shop"): _from_5(0, 1)}),
    Scene(
        "the relay's certificate expires in a fortnight",
        _certificate(14),
        {95: ("OtpCertificateExpires",)},
        quiet=(30, 90),
        step=5,
    ),
    Scene(
        "the relay's certificate expires in two days",
        _certificate(2),
        {36: ("OtpCertificateExpires",), 61: ("OtpCertificateExpires",) * 2},
        quiet=(34,),
    ),
    _case("OtpTokenNotRenewed", 2, {series("otp_relay_token_failures", relay="mx:25"): _from_5(0, 1)}),
    _case("OtpRelaySlow", 15, {series("otp_relay_first_tries_ratio", relay="mx:25"): _from_5(1, 0.4)}),
    _case("OtpRedisAway", 2, {series("otp_redis_connected"): _from_5(1, 0)}),
    _case("OtpClockDiffers", 2, {series("otp_redis_clock_difference_seconds"): _from_5(0.1, -61)}),
    Scene(
        "dead letters grow",
        _both("otp_dead_letters", f"3000x1499 {constant(5501)}"),
        {1560: ("OtpDeadLetters",)},
        quiet=(1440, 1500),
        step=60,
    ),
    Scene("many dead letters, as the day before", _both("otp_dead_letters", constant(90_000)), quiet=(1560,), step=60),
    Scene(
        "sweeps fail",
        _both("otp_dead_letter_sweeps_total", "0+1x4 " + constant(4), result="complete")
        | _both("otp_dead_letter_sweeps_total", f"0x4 1+1x{END}", result="failed"),
        {130: ("OtpDeadLettersNotSwept",)},
        quiet=(65, 120),
        step=5,
    ),
    _case(
        "OtpDeliveriesLeaked", 5, {series("otp_ledger_unacked", lane="jobs"): f"0 60x3 {constant(59)}"}
    ),
    *(
        _case(alert, 0, {series(f"otp_{name}_total"): f"0x4 {constant(3)}"})
        for alert, name in {
            "OtpProducerClockAhead": "clock_ahead",
            "OtpUnverifiedRetries": "unverified_retries",
            "OtpJobIdsReused": "job_ids_reused",
            "OtpEventsDropped": "events_dropped",
            "OtpLogLinesDropped": "log_lines_dropped",
            "OtpTelemetryErrors": "telemetry_errors",
        }.items()
    ),
)  # fmt: skip
