"""Mails with hostile values, as a mail program reads them: npm's mailparser finds what the standard library finds."""

import json
import os
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hostile_mails import Case, Mail, of_operators, of_strangers, parsed
from relays import NODE_MODULES

SCRIPT = Path(__file__).parent.parent / "relay_scripts/mailparser.js"


def read_by_mailparser(cases: list[Case]) -> list[dict[str, Any]]:
    """Parse all messages in one process."""
    sent = json.dumps([b64encode(it.content).decode() for it in cases]).encode()
    env = {"PATH": os.environ["PATH"], "OTP_TEST_NODE_MODULES": str(NODE_MODULES)}
    done = subprocess.run(["node", str(SCRIPT)], input=sent, capture_output=True, check=False, timeout=120, env=env)
    assert done.returncode == 0, done.stderr.decode()
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) == len(cases)
    return found


@pytest.mark.parametrize("cases", [of_strangers, of_operators])
def test_two_parsers_find_the_harmless_mail_and_its_values(cases: Any) -> None:
    made = list(cases())
    read = read_by_mailparser(made)
    for case, found in zip(made, read, strict=True):
        case.check_bytes()
        mail = parsed(case.content)
        case.check(mail)
        assert (found["addresses"], found["attachments"]) == (2, 0), case.name
        again = Mail(
            tuple(found["headers"]), tuple(found["sender"]), tuple(found["to"]), found["subject"],
            found["text"], found["html"], mail.kinds,
        )  # fmt: skip
        assert again == mail, case.name
        if case.name.endswith(", none"):
            assert "<a " not in found["linked"], case.name
    # it does make links, such as of the contact of a brand
    assert cases is of_operators or any("<a " in it["linked"] for it in read)
