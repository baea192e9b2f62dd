"""Looks whether Redis is as the shared tables need it. Nothing is written."""

import re
import time
from dataclasses import dataclass

from redis.exceptions import ResponseError

from otp_stream.core.check_result import Finding, Tell
from otp_stream.tables.inspect import Line, Server, ask_server, opened
from otp_stream.tables.redis import AwayError
from otp_stream.tables.shared import LEASE_S

_OLDEST = 5
_FULL = 0.9
# what the tables' own script needs: scripts, and the keys of this deployment
_SCRIPT = "return redis.call('EXISTS', KEYS[1])"


@dataclass(frozen=True, slots=True)
class Clock:
    """How Redis's clock stands against ours, in seconds."""

    ahead_s: float


def checkup(url: str, shown_url: str, prefix: str, names: str, fail: str, tell: Tell, *, broker: str) -> Clock | None:
    """Tell what there is to know of Redis; returns its clock, `None` where it gives no answer. `fail` is STATE_FAIL.

    `names` goes before the keys of every deployment with these names; `broker` is our RabbitMQ, for people.
    """
    try:
        with opened(url) as line:
            began = time.time()
            seconds, micros = line.ask("TIME")
            now_s = (began + time.time()) / 2
            clock = Clock(int(seconds) + int(micros) / 1e6 - now_s)
            server = ask_server(line)
            since_ms = (int(seconds) - LEASE_S) * 1000
            workers = _workers(line, prefix, since_ms)
            _tell_server(server, f"{server.version or 'Redis'} at {shown_url}, shared by {workers}", tell)
            _tell_rights(line, prefix, names, tell)
            _tell_others(line, prefix, names, broker, since_ms, tell)
            return clock
    except AwayError as error:
        meanwhile = "each worker goes by what it knows itself" if fail == "open" else "jobs wait"
        text = f"{shown_url} does not answer: {error}; meanwhile {meanwhile} (STATE_FAIL={fail})"
        tell(Finding("problem", text, _cure(str(error))))
        return None


def _cure(error: str) -> str:
    if re.search("WRONGPASS|NOAUTH|invalid.*password|AuthenticationError", error):
        return "mend user and password in REDIS_URL"
    return "is it up (redis-cli ping)? mend REDIS_URL"


def _workers(line: Line, prefix: str, since_ms: float) -> str:
    try:
        number: int = line.ask("ZCOUNT", f"{prefix}workers", f"({round(since_ms)}", "+inf")
    except ResponseError:  # said where rights are told
        return "an unknown number of workers"
    return f"{number} worker{'' if number == 1 else 's'}"


def _tell_server(server: Server, text: str, tell: Tell) -> None:
    number = re.search(r"\d+", server.version)
    if number and int(number[0]) < _OLDEST:
        tell(Finding("problem", f"{text}: too old", "Redis 5 or newer, or Valkey, is needed"))
    else:
        tell(Finding("ok", text))
    if server.warning:
        text, _, cure = server.warning.rpartition(". ")
        tell(Finding("warning", text, f"{cure}: redis-cli CONFIG SET maxmemory-policy noeviction"))
    elif server.memory_limit and (server.memory_bytes or 0) > _FULL * server.memory_limit:
        text = (
            f"{server.memory_bytes} of {server.memory_limit} bytes are in use: when it is full, it takes no more marks"
        )
        tell(Finding("warning", text, "raise maxmemory"))
    elif server.policy:
        tell(Finding("ok", f"maxmemory-policy {server.policy}, {'a' if server.memory_limit else 'no'} limit of memory"))


def _tell_others(line: Line, prefix: str, names: str, broker: str, since_ms: float, tell: Tell) -> None:
    try:
        found: list[bytes] = line.ask("ZRANGEBYSCORE", f"{names}deployments", f"({round(since_ms)}", "+inf")
        earlier: int = line.ask("ZCOUNT", f"{names}workers", f"({round(since_ms)}", "+inf")
        others = [it for it in found if it != prefix.encode()]
        told: list[bytes | None] = line.ask("HMGET", f"{names}brokers", *others) if others else []
    except ResponseError:  # said where rights are told
        return
    if others:
        brokers = ", ".join("unknown" if it is None else it.decode(errors="replace") for it in told)
        tell(
            Finding(
                "warning",
                f"{len(others)} other deployment{'' if len(others) == 1 else 's'} with the same queue name and "
                f"RABBITMQ_PREFIX use this Redis database, without shared state. This one uses RabbitMQ {broker}, the "
                f"others {brokers}",
                "if these are names of one RabbitMQ, set REDIS_NAMESPACE to the same value for all workers; otherwise, "
                "give each deployment its own RABBITMQ_PREFIX or Redis database",
            )
        )
    if earlier:
        tell(
            Finding(
                "warning",
                f"{earlier} worker{'' if earlier == 1 else 's'} of an earlier version use this Redis database with the "
                "same names: their limits and claims are not shared with workers of this version",
                "finish the upgrade, or give each deployment its own RABBITMQ_PREFIX or Redis database",
            )
        )


def _tell_rights(line: Line, prefix: str, names: str, tell: Tell) -> None:
    try:
        line.ask("EVAL", _SCRIPT, 1, f"{prefix}check")
    except ResponseError as error:
        cure = f"ACL SETUSER <user> ~{names}* +@read +@write +@scripting +time +select +info (see docs/tables.md)"
        tell(Finding("problem", f"Redis refuses what the tables need: {error}", cure))
    try:
        role = line.ask("ROLE")[0]
    except ResponseError:
        return
    if role == b"slave":
        tell(Finding("problem", "this Redis is a replica and takes no writes", "let REDIS_URL name its primary"))
