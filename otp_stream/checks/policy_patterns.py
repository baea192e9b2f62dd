"""Finds the queues that a policy of RabbitMQ applies to, by its pattern, a regular expression that others wrote."""

import json
import subprocess
import sys
from collections.abc import Collection

from otp_stream.broker.management_api import ManagementError

_TIMEOUT_S = 5.0
_PROGRAM = """
import json, re, sys
def matches(pattern, names):
    try:
        return [it for it in names if re.search(pattern, it)]
    except (re.error, OverflowError, RecursionError):  # Erlang accepts patterns that Python does not
        return []
patterns, names = json.load(sys.stdin)
json.dump({it: matches(it, names) for it in patterns}, sys.stdout)
"""


def matched_names(patterns: Collection[str], names: Collection[str]) -> dict[str, list[str]]:
    """Return the names that each pattern matches. Raises `ManagementError` if that takes too long.

    It runs in a separate process, because a pattern such as `(.*)*x` may take years, and Python limits no time.
    """
    if not patterns:
        return {}
    given = json.dumps([sorted(patterns), sorted(names)])
    try:
        ended = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-I", "-c", _PROGRAM],
            input=given, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ManagementError("a policy has a pattern that takes too long: see rabbitmqctl list_policies") from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise ManagementError(f"the patterns of policies cannot be read ({type(error).__name__})") from None
    return json.loads(ended.stdout)
