"""Matches replies to commands when a relay has sent more replies than commands wait for one."""

from collections.abc import Sequence


def count_certain(steps: Sequence[str], codes: Sequence[int], surplus: int) -> int:
    """Return how many replies, from the first, decide about contents that were sent.

    `steps` are the commands that wait, `codes` the replies to them and `surplus` more. Any of the replies may be the
    one too many. A content is decided only if every reply that may be the one to it says the same.
    """
    certain = 0
    for at, step in enumerate(steps):
        if step == "body":
            if len({code // 100 == 2 for code in codes[at : at + surplus + 1]}) > 1:
                break
            certain = at + 1
    return certain
