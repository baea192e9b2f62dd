"""How the tests are shared between test processes."""

from collections import OrderedDict
from typing import Any

from conftest import Scheduling


class Process:
    """A test process that keeps what it is given."""

    shutting_down = False

    def __init__(self) -> None:
        self.tests: list[int] = []

    def send_runtest_some(self, tests: list[int]) -> None:
        self.tests += tests

    def shutdown(self) -> None:
        self.shutting_down = True


def test_the_rest_of_a_process_that_ended_runs_in_others_and_none_waits_for_ever() -> None:
    ended, other = Process(), Process()
    it: Any = object.__new__(Scheduling)
    it.log = lambda *_: None
    it.workqueue = OrderedDict()
    it.assigned_work = {ended: {"a": {"a": False}, "b": {"b": False}}, other: {"c": {"c": False}}}
    it.registered_collections = {other: ["a", "b", "c"]}
    it.collection = ["a", "b", "c"]
    assert it.remove_node(ended) == "a"
    assert (other.tests, other.shutting_down) == ([1], False)
    assert not it.workqueue
