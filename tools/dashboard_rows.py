"""The rows of the dashboard for Grafana: panels with their queries."""

from typing import NamedTuple

_J = 'job=~"$job"'
_DEAD = 'outcome!~"sent|duplicate|superseded"'
_RATE = "$__rate_interval"


class Panel(NamedTuple):
    """One chart. `queries` are the expressions by their legends."""

    title: str
    unit: str
    queries: dict[str, str]
    about: str = ""
    kind: str = "timeseries"


def _rate(metric: str, by: str, **labels: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{_selector(labels)}}}[{_RATE}]))"


def _max(metric: str, by: str, **labels: str) -> str:
    """Each worker reports what RabbitMQ reports: the same number."""
    return f"max by ({by}) ({metric}{{{_selector(labels)}}})"


def _sum(metric: str, by: str, **labels: str) -> str:
    return f"sum by ({by}) ({metric}{{{_selector(labels)}}})"


def _per_minute(metric: str) -> str:
    return f"60 * sum(rate({metric}{{{_J}}}[{_RATE}]))"


def _selector(labels: dict[str, str]) -> str:
    return ",".join([_J, *(f'{name}="{value}"' for name, value in labels.items())])


def _quantiles(metric: str) -> dict[str, str]:
    buckets = _rate(f"{metric}_bucket", "le")
    return {f"p{q}": f"histogram_quantile(0.{q}, {buckets})" for q in (50, 95, 99)}


_BURN = "How many times as fast as the objective allows. At 1, the budget of 30 days lasts 30 days; at 14.4, two."
ROWS: dict[str, list[Panel]] = {
    "Promise": [
        Panel(
            "Accepted within 10 s, last hour",
            "percentunit",
            {"": f"1 - otp:late_codes:ratio_rate1h{{{_J}}}"},
            "The objective is in deploy/prometheus/slo.yaml.",
            "stat",
        ),
        Panel("Sent per second", "ops", {"": f'sum(rate(otp_jobs_total{{{_J},outcome="sent"}}[{_RATE}]))'}, "", "stat"),
        Panel("Dead letters", "none", {"": f"max(otp_dead_letters{{{_J}}})"}, "", "stat"),
        Panel(
            "Workers that consume",
            "none",
            {"": f'sum(otp_phase{{{_J},state="consuming"}})'},
            "",
            "stat",
        ),
        Panel("Time from request to acceptance", "s", _quantiles("otp_time_to_accept_seconds")),
        Panel("Jobs that ended", "ops", {"{{outcome}}": _rate("otp_jobs_total", "outcome")}),
        Panel(
            "Late codes: burn rate",
            "none",
            {
                it: f"otp:late_codes:ratio_rate{it}{{{_J}}} / on () group_left () otp:late_codes:budget"
                for it in ("1h", "6h", "3d")
            },
            _BURN,
        ),
        Panel(
            "Failed jobs: burn rate of the last hour",
            "none",
            {
                "{{outcome}}": f"otp:failed_jobs:ratio_rate1h{{{_J}}}"
                " / on (outcome) group_left () otp:failed_jobs:budget"
            },
            _BURN,
        ),
    ],
    "Path of a job": [
        Panel("Jobs ready in RabbitMQ", "none", {"{{queue}}": _max("otp_queue_ready", "queue")}),
        Panel(
            "Jobs that another worker could send",
            "none",
            {"": f"max(otp_jobs_sendable{{{_J}}})"},
            "0 while a relay limits the workers: more of them would not help then.",
        ),
        Panel("Oldest job in a queue", "s", {"{{queue}}": _max("otp_queue_oldest_seconds", "queue")}),
        Panel(
            "Jobs in flight",
            "none",
            {"{{lane}}": _sum("otp_jobs_unacked", "lane"), "{{lane}}: allowed": _sum("otp_prefetch_count", "lane")},
        ),
        Panel("Oldest job in flight", "s", {"{{lane}}": _max("otp_jobs_unacked_oldest_seconds", "lane")}),
        Panel("Received", "ops", {"{{lane}}": _rate("otp_received_total", "lane")}),
        Panel("Attempts", "ops", {"{{outcome}}": _rate("otp_attempts_total", "outcome")}),
        Panel(
            "Time from request to the worker",
            "s",
            _quantiles("otp_time_to_arrive_seconds"),
            "The time in the queue, or a producer's clock that is behind.",
        ),
        Panel(
            "Retries",
            "none",
            {"waiting": f"max(otp_retries_waiting{{{_J}}})", "per minute": _per_minute("otp_retries_total")},
        ),
        Panel("Consumers", "none", {"{{queue}}": _max("otp_queue_consumers", "queue")}),
    ],
    "Jobs over HTTP": [
        Panel(
            "Requests",
            "ops",
            {
                "{{http_route}} {{http_response_status_code}}": _rate(
                    "http_server_request_duration_seconds_count", "http_route, http_response_status_code"
                )
            },
        ),
        Panel("Time to the response", "s", _quantiles("http_server_request_duration_seconds")),
    ],
    "Relays": [
        Panel(
            "Circuit breaker closed",
            "bool_yes_no",
            {"{{relay}} {{instance}}": _max("otp_circuit_breaker_state", "relay, instance", state="closed")},
        ),
        Panel("Time at the relay", "s", _quantiles("otp_send_seconds")),
        Panel("Replies", "ops", {"{{relay}} {{code}}": _rate("otp_relay_replies_total", "relay, code")}),
        Panel(
            "Mails being sent, and waiting for a connection",
            "none",
            {
                "{{relay}}": _sum("otp_relay_sends_in_flight", "relay"),
                "waiting": f"sum(otp_relay_sends_pending{{{_J}}})",
            },
        ),
        Panel(
            "Connections",
            "none",
            {
                "{{relay}}": _sum("otp_relay_connections", "relay"),
                "{{relay}}: allowed": _sum("otp_relay_connections_limit", "relay"),
            },
        ),
        Panel("Rate limit of a worker", "ops", {"{{relay}}": _max("otp_relay_rate_limit", "relay")}),
        Panel(
            "Slow relays: share of first tries",
            "percentunit",
            {"{{relay}}": f"min by (relay) (otp_relay_first_tries_ratio{{{_J}}})"},
        ),
        Panel(
            "Mails that left a slow relay",
            "ops",
            {"{{relay}} {{step}}": _rate("otp_relay_switches_total", "relay, step")},
        ),
        Panel(
            "Certificates and access tokens end in",
            "s",
            {
                "{{relay}}: certificate": (
                    f"min by (relay) (otp_relay_certificate_expiry_timestamp_seconds{{{_J}}}) - time()"
                ),
                "{{relay}}: token": f"min by (relay) (otp_relay_token_valid_seconds{{{_J}}})",
            },
        ),
    ],
    "Tenants": [
        Panel(
            "Jobs that ended, ten tenants with most",
            "ops",
            {"{{tenant}}": f"topk(10, {_rate('otp_tenant_jobs_total', 'tenant')})"},
        ),
        Panel(
            "Mean time from request to acceptance, ten slowest",
            "s",
            {
                "{{tenant}}": f"topk(10, {_rate('otp_tenant_time_to_accept_seconds_sum', 'tenant')}"
                f" / {_rate('otp_tenant_time_to_accept_seconds_count', 'tenant')})"
            },
        ),
        Panel(
            "Jobs that wait, ten tenants with most",
            "none",
            {
                "{{tenant}}: in its queue": f"topk(10, {_max('otp_tenant_queue_ready', 'tenant')})",
                "{{tenant}}: in flight": f"topk(10, {_sum('otp_tenant_jobs_unacked', 'tenant')})",
            },
        ),
        Panel(
            "Relay takes no mail of", "bool_yes_no", {"{{tenant}}": f"{_max('otp_tenant_mail_waits', 'tenant')} > 0"}
        ),
    ],
    "Dead letters and retention": [
        Panel("Dead letters", "none", {"dead letters": f"max(otp_dead_letters{{{_J}}})"}),
        Panel(
            "Dead-lettered per minute",
            "none",
            {"{{outcome}}": f"60 * sum by (outcome) (rate(otp_jobs_total{{{_J},{_DEAD}}}[{_RATE}]))"},
        ),
        Panel(
            "Sweeps",
            "none",
            {
                "{{result}} per hour": f"3600 * {_rate('otp_dead_letter_sweeps_total', 'result')}",
                "codes erased per hour": f"3600 * sum(rate(otp_dead_letter_codes_erased_total{{{_J}}}[{_RATE}]))",
                "deleted for {{reason}} per hour": f"3600 * {_rate('otp_dead_letters_deleted_total', 'reason')}",
            },
        ),
        Panel(
            "Time since the last complete sweep",
            "s",
            {"last sweep": f"time() - max(otp_dead_letter_sweep_timestamp_seconds{{{_J}}})"},
        ),
    ],
    "Shared state": [
        Panel("Redis connected", "bool_yes_no", {"{{instance}}": _max("otp_redis_connected", "instance")}),
        Panel("Calls of Redis", "s", _quantiles("otp_redis_call_seconds")),
        Panel("Admission of jobs", "ops", {"{{result}}": _rate("otp_admissions_total", "result")}),
        Panel(
            "Sent without shared state, and records not in Redis yet",
            "none",
            {
                "possible duplicates per minute": _per_minute("otp_possible_duplicates_total"),
                "{{instance}}: records": _max("otp_sent_records_pending", "instance"),
            },
        ),
    ],
    "Process": [
        Panel("Processor cores used", "none", {"{{instance}}": _rate("process_cpu_seconds_total", "instance")}),
        Panel("Resident memory", "bytes", {"{{instance}}": _max("process_resident_memory_bytes", "instance")}),
        Panel("Open files and connections", "none", {"{{instance}}": _max("process_open_fds", "instance")}),
        Panel("Phase", "bool_yes_no", {"{{instance}} {{state}}": f"{_max('otp_phase', 'instance, state')} > 0"}),
        Panel(
            "Deliveries that are neither settled nor unacked",
            "none",
            {
                "{{instance}}": f"{_sum('otp_ledger_received_total', 'instance')} - "
                f"{_sum('otp_ledger_settled_total', 'instance')} - {_sum('otp_ledger_unacked', 'instance')}"
            },
            "Always 0.",
        ),
        Panel(
            "Lost telemetry per minute",
            "none",
            {
                name: _per_minute(f"otp_{metric}_total")
                for name, metric in {
                    "events": "events_dropped",
                    "log lines": "log_lines_dropped",
                    "errors": "telemetry_errors",
                }.items()
            },
        ),
    ],
}
