"""Checks Redis: version, memory policy, permissions, other deployments in the same database. Nothing is written."""

import re
import time

from redis.exceptions import ResponseError

from otp_stream.core.check_result import CheckResult, Report, check_tls
from otp_stream.tables.inspect import Server, read_server
from otp_stream.tables.redis_client import RedisClient, connected
from otp_stream.tables.redis_connection import refused_tls
from otp_stream.tables.redis_pipeline import RedisUnavailableError
from otp_stream.tables.redis_session import LEASE_S

_OLDEST = 5
_FULL = 0.9
_CERTIFICATE_FIXES = {
    "alert certificate required|alert handshake failure": (
        "it requires a client certificate: set ssl_certfile=/path/client.pem&ssl_keyfile=/path/client.key in REDIS_URL"
    ),
    "alert unknown ca": (
        "it does not know the authority of the client certificate: add it to tls-ca-cert-file of Redis, or name "
        "another ssl_certfile in REDIS_URL"
    ),
    "alert certificate expired": "renew the files in REDIS_URL, ssl_certfile and ssl_keyfile",
    "alert .*certificate": "check the files in REDIS_URL, ssl_certfile and ssl_keyfile, and the log of Redis",
    r"Errno (2|13|20|21)\b|PEM|X509|key.values.mismatch|bad.decrypt|bad.password": (
        "check ssl_ca_certs, ssl_certfile and ssl_keyfile in REDIS_URL: the files must be PEM, readable, and the key "
        "that of the certificate and not encrypted"
    ),
}
"""By a pattern in the text of the error."""
# requires the same permissions as the tables' own script: scripts, and the keys of this deployment
_SCRIPT = "return redis.call('EXISTS', KEYS[1])"


def check_redis(
    url: str, shown_url: str, prefix: str, names: str, state_fail: str, report: Report, *, broker: str
) -> float | None:
    """Report on Redis. Returns the seconds by which its clock is ahead of ours, or `None` if it does not answer.

    `names` is the prefix of all deployments with the same names, `prefix` that of this deployment; `broker` describes
    our RabbitMQ, for messages.
    """
    try:
        with connected(url) as client:
            began = time.time()
            seconds, micros = client.execute("TIME")
            ahead_s = int(seconds) + int(micros) / 1e6 - (began + time.time()) / 2
            if client.tls is not None:
                report(check_tls(client.tls, "Redis", time.time()))
            server = read_server(client)
            since_ms = (int(seconds) - LEASE_S) * 1000
            workers = _workers(client, prefix, since_ms)
            _check_server(server, f"{server.version or 'Redis'} at {shown_url}, shared by {workers}", report)
            _check_permissions(client, prefix, names, report)
            _check_deployments(client, prefix, names, broker, since_ms, report)
            return ahead_s
    except RedisUnavailableError as error:
        meanwhile = "each worker uses its own state" if state_fail == "open" else "jobs wait"
        text = f"{shown_url} does not answer: {error}; meanwhile {meanwhile} (STATE_FAIL={state_fail})"
        report(CheckResult("problem", text, _connect_fix(str(error), url)))
        return None


def _connect_fix(error: str, url: str) -> str:
    for pattern, fix in _CERTIFICATE_FIXES.items():
        if re.search(pattern, error, re.IGNORECASE):
            return fix
    if found := refused_tls(error):
        return f"it {found.why}: {found.fix}"
    if url.startswith("rediss:") and re.search("EOF occurred|reset by peer|closed by server", error):
        # the alert of TLS gets lost if Redis closes a connection on which it has not read all
        which = "refuse" if "ssl_certfile" in url else "require"
        return f"see the log of Redis: it may {which} a client certificate (ssl_certfile and ssl_keyfile in REDIS_URL)"
    if re.search("WRONGPASS|NOAUTH|invalid.*password|AuthenticationError", error):
        return "correct user and password in REDIS_URL"
    return "check that it is running (redis-cli ping), and the address in REDIS_URL"


def _workers(client: RedisClient, prefix: str, since_ms: float) -> str:
    try:
        number: int = client.execute("ZCOUNT", f"{prefix}workers", f"({round(since_ms)}", "+inf")
    except ResponseError:  # _check_permissions reports it
        return "an unknown number of workers"
    return f"{number} worker{'' if number == 1 else 's'}"


def _check_server(server: Server, text: str, report: Report) -> None:
    number = re.search(r"\d+", server.version)
    if number and int(number[0]) < _OLDEST:
        report(CheckResult("problem", f"{text}: too old", "upgrade to Redis 5 or newer, or to Valkey"))
    else:
        report(CheckResult("ok", text))
    if server.warning:
        text, _, fix = server.warning.rpartition(". ")
        report(CheckResult("warning", text, f"{fix}: redis-cli CONFIG SET maxmemory-policy noeviction"))
    elif server.memory_limit and (server.memory_bytes or 0) > _FULL * server.memory_limit:
        text = f"{server.memory_bytes} of {server.memory_limit} bytes are in use: a full Redis accepts no sent records"
        report(CheckResult("warning", text, "raise maxmemory"))
    elif server.policy:
        limit = "with a" if server.memory_limit else "without a"
        report(CheckResult("ok", f"maxmemory-policy {server.policy}, {limit} memory limit"))


def _check_permissions(client: RedisClient, prefix: str, names: str, report: Report) -> None:
    try:
        client.execute("EVAL", _SCRIPT, 1, f"{prefix}check")
    except ResponseError as error:
        fix = f"ACL SETUSER <user> ~{names}* +@read +@write +@scripting +time +select +info (see docs/tables.md)"
        report(CheckResult("problem", f"Redis refuses commands that the tables need: {error}", fix))
    try:
        role = client.execute("ROLE")[0]
    except ResponseError:
        return
    if role == b"slave":
        text = "this Redis is a replica and accepts no writes"
        report(CheckResult("problem", text, "set REDIS_URL to its primary"))


def _check_deployments(
    client: RedisClient, prefix: str, names: str, broker: str, since_ms: float, report: Report
) -> None:
    try:
        found: list[bytes] = client.execute("ZRANGEBYSCORE", f"{names}deployments", f"({round(since_ms)}", "+inf")
        earlier: int = client.execute("ZCOUNT", f"{names}workers", f"({round(since_ms)}", "+inf")
        others = [it for it in found if it != prefix.encode()]
        answers: list[bytes | None] = client.execute("HMGET", f"{names}brokers", *others) if others else []
    except ResponseError:  # _check_permissions reports it
        return
    if others:
        brokers = ", ".join("unknown" if it is None else it.decode(errors="replace") for it in answers)
        text = (
            f"{len(others)} other deployment{'' if len(others) == 1 else 's'} with the same queue name and "
            f"RABBITMQ_PREFIX use this Redis database, without shared state. This one uses RabbitMQ {broker}, the "
            f"others {brokers}"
        )
        fix = (
            "if these are names of one RabbitMQ, set REDIS_NAMESPACE to the same value for all workers; otherwise, "
            "give each deployment its own RABBITMQ_PREFIX or Redis database"
        )
        report(CheckResult("warning", text, fix))
    if earlier:
        text = (
            f"{earlier} worker{'' if earlier == 1 else 's'} of an earlier version use this Redis database with the "
            "same names: their limits and claims are not shared with workers of this version"
        )
        fix = "finish the upgrade, or give each deployment its own RABBITMQ_PREFIX or Redis database"
        report(CheckResult("warning", text, fix))
