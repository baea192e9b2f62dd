"""Type checks of parsed JSON that also state the types of what an object or a list contains."""

from typing import Any, TypeGuard


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Return whether a JSON value is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Return whether a JSON value is a list."""
    return isinstance(value, list)


def count_values(value: object, limit: int) -> int:
    """Return the number of values in a value, each name in an object included; if more than `limit`, any such number.

    A stack, because deep nesting would exceed the recursion limit.
    """
    seen, left = 0, [value]
    while left and seen <= limit:
        it = left.pop()
        seen += 1
        if is_object(it):
            seen += len(it)
            left += it.values()
        elif is_list(it):
            left += it
    return seen
