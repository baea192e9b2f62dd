"""The AsyncAPI document states what the worker does."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = json.loads((ROOT / "asyncapi/otp-stream.json").read_text())
OPERATIONS: dict[str, Any] = DOCUMENT["operations"]
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]


def resolve(reference: str) -> Any:
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return resolve(found["$ref"]) if "$ref" in found else found


def test_what_the_worker_publishes_follows_what_it_consumes() -> None:
    actions = [it["action"] for it in OPERATIONS.values()]
    assert actions == sorted(actions)
    assert {"receive", "send"} == set(actions)
    assert all(it["summary"] for it in OPERATIONS.values())


def test_each_operation_has_one_message_of_its_channel_and_every_message_is_used() -> None:
    used = [resolve(message["$ref"])["name"] for it in OPERATIONS.values() for message in it["messages"]]
    assert len(used) == len(OPERATIONS)
    assert set(used) == set(MESSAGES)
    listed = [name for channel in DOCUMENT["channels"].values() for name in channel["messages"]]
    assert sorted(listed) == sorted(used)


def test_every_message_has_a_name_a_summary_and_the_place_of_its_job_id() -> None:
    for name, message in MESSAGES.items():
        assert message["name"] == name
        assert message["summary"]
        location = resolve(message["correlationId"]["$ref"])["location"]
        part, _, pointer = location.removeprefix("$message.").partition("#/")
        known = message["headers"] if part == "header" else resolve(message["payload"]["$ref"])
        assert pointer in known["properties"], name


def test_a_malformed_dead_letter_has_no_schema() -> None:
    assert "payload" not in MESSAGES["malformedDeadLetter"]
    assert MESSAGES["malformedDeadLetter"]["contentType"] != "application/json"
    assert MESSAGES["erasedDeadLetter"]["payload"] != MESSAGES["deadLetter"]["payload"]


def test_events_are_the_only_publishes_that_are_not_mandatory() -> None:
    sent = {name: it["bindings"]["amqp"] for name, it in OPERATIONS.items() if it["action"] == "send"}
    assert [name for name, amqp in sent.items() if not amqp["mandatory"]] == ["events"]
    assert all(amqp["deliveryMode"] == 2 for amqp in sent.values())
