"""Finds the words that may be an address or a code in a malformed body, where any field may contain them."""

import json
import re
from binascii import a2b_base64
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from pydantic_core import from_json

from .address import IGNORABLE
from .json_types import is_list, is_object
from .sealed_code import NAMES, is_token
from .secret_search import (
    MAX_SEARCHED,
    MIN_DISTINCTIVE,
    SHORTEST,
    SPACED,
    Needle,
    Searched,
    contains_any,
    fold_compact,
    of_address,
    of_code,
)

_MAX_VALUES = 1_000
"""Maximum number of values and words in a body that is searched."""
_MAX_WORD = 1_000
"""Characters of the longest word that may be a secret as a whole. The words of a longer text are counted."""
_MAX_CODE = 64
_MAX_ID = 200
_HARMLESS = {"timestamp", "retryCount", "priority"}
_WORDS = {
    "userName", "user_name", "template", "locale", "purpose", "priority", "tenant", "timeZone", "time_zone",
    "place", "device",
    "type", "kind", "event", "channel", "service", "source", "action", "status",
}  # fmt: skip
"""Fields in which a word without digits is no code. In any other field it may be one."""
_NO_FIELD = ""
"""The name of a value that is in no field."""
_LIKE_AN_ADDRESS = re.compile(r"[\w.+-]@\w")
_PART = re.compile(r"[^\W_]{4,}")
"""A part of a word, as in `code=123456`."""
_AROUND_AN_ADDRESS = re.compile(r"[<>\"'(),:;=/?&|\\\[\]{}]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{6,}=*")
_TO_STANDARD = str.maketrans("-_", "+/")
_AT = str.maketrans({"\uff20": "@", "\ufe6b": "@"})


class PossibleSecrets:
    """The words of a body that may be an address or a code, to be searched for in other texts."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._needles: list[Needle] = []
        for it in {form for secret in secrets if len(secret) >= SHORTEST for form in (secret, unquote(secret))}:
            self._needles += of_address(it, shortest=SHORTEST) if "@" in it else of_code(it)

    @classmethod
    def of(cls, body: Any, *, skip: Container[str], names: bool = True) -> Self | None:
        """Return those of a body, or `None` if they are too many to search for.

        The fields in `skip` are left out; `names` includes the names of fields.
        """
        if too_many(body):
            return None
        fields = body if is_object(body) else {}
        named = {value.strip() for name in ("email", "otp") if isinstance(value := fields.get(name), str)}
        return cls(named | suspects(body, skip=skip, names=names))

    def any_in(self, text: str, *, partial: bool = False) -> bool:
        """Return whether `text` contains any of them, or anything that looks like an address.

        With `partial`, a code of six characters or more also counts as part of something longer.
        """
        searched = Searched(text)
        if any("@" in it.folded for it in searched.unescaped):
            return True
        if any(_LIKE_AN_ADDRESS.search(it.folded) for it in searched.decoded):
            return True
        within = "\0".join(part for it in searched.readings for part in (it.folded, it.compact))
        found = [it for it in self._needles if it.text in within]
        within_longer = partial and any(len(it.text) >= MIN_DISTINCTIVE and not it.whole for it in found)
        return within_longer or contains_any(searched, found)


def readable_job_id(body: bytes) -> str | None:
    """Return the `jobId` of a malformed body if it can be shown, because operators search for the job by it."""
    try:
        content = from_json(body) if len(body) <= MAX_SEARCHED else None
    except ValueError:
        return None
    if not is_object(content):
        return None
    for name in NAMES:
        if is_token(content.get(name)):  # a word of it is equal to a part of an id by chance only
            del content[name]
    job_id: Any = content.pop("jobId", None) or content.pop("job_id", None)
    if not isinstance(job_id, str) or not 0 < len(job_id) <= _MAX_ID or not job_id.isprintable():
        return None
    secrets = PossibleSecrets.of(content, skip=_HARMLESS)
    return None if secrets is None or _is_repeated(job_id, content) or secrets.any_in(job_id, partial=True) else job_id


def _is_repeated(text: str, body: Any) -> bool:
    """Return whether the text, or a word of it, is in another field as well, as a code without digits may be."""
    parts = {it for part in (text, *_PART.findall(text)) if len(it := fold_compact(part)) >= SHORTEST}
    others = (it for name, it in _values(body, skip=_HARMLESS) if isinstance(it, str) and name not in _WORDS)
    return any(part in other for other in map(fold_compact, others) for part in parts)


def suspects(body: Any, *, skip: Container[str], names: bool = True) -> set[str]:
    """Return the words of a body that may be an address or a code, whatever their field is called.

    The fields in `skip` are left out; `names` includes the names of fields.
    """
    found: set[str] = set()
    for name, value in _values(body, skip=skip):
        if name is None and not names:
            continue
        found.update(_suspects_in(str(value)))
        if isinstance(value, str) and name is not None and name not in _WORDS:
            word = value.strip()
            if SHORTEST <= len(word) <= _MAX_CODE and word.isalpha():
                found.add(word)
    return found


class _End(NamedTuple):
    """Marks the end of a list or an object on the stack of `_values`."""

    first: int
    """The number of pieces before the list or object."""


def _values(body: Any, *, skip: Container[str]) -> Iterator[tuple[str | None, str | int | float]]:
    """Yield the texts and numbers in a body with the name of their field, and each name with `None`.

    The values of a list or an object are also yielded as one word: a code may be a list of digits.
    """
    pieces = _Pieces()
    left: list[tuple[str | None, Any]] = [(_NO_FIELD, body)]
    while left:  # a stack, because deep nesting would exceed the recursion limit
        name, value = left.pop()
        if is_object(value):
            yield from ((None, key) for key in value)  # a program that confuses key and value writes secrets as keys
            left.append((name, _End(len(pieces.texts))))
            left += [(key, inner) for key, inner in reversed(value.items()) if key not in skip]
        elif is_list(value):
            left.append((name, _End(len(pieces.texts))))
            left += [(name, inner) for inner in reversed(value)]
        elif isinstance(value, _End):
            yield from ((_NO_FIELD, it) for it in pieces.joined(value.first))
        elif isinstance(value, str):
            yield name, value
            if not _may_be_json(value):
                pieces.add(name, value)
            left += ((name, it) for it in _decoded_in(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
            pieces.add(name, f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value))
    yield from ((_NO_FIELD, it) for it in pieces.numbers())


def _decoded_in(text: str) -> Iterator[Any]:
    """Yield the decoded content of a text that is JSON or base64."""
    if _may_be_json(text):
        with suppress(ValueError, RecursionError):
            yield json.loads(text)
    elif decoded := _from_base64(text):
        yield decoded


class _Pieces:
    """The texts and numbers of a body in order, several of which may form one code."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._ends = [0]
        """The number of characters before each text, and of all of them."""

    def add(self, name: str | None, text: str) -> None:
        """Add a text, unless it is a word in a field that contains no codes."""
        text = text.strip()
        if text and not (name in _WORDS and text.isalpha()):
            self.texts.append(text)
            self._ends.append(self._ends[-1] + len(text))

    def joined(self, first: int) -> Iterator[str]:
        """Yield the texts from `first` on as one word, if it has the length of a code."""
        if SHORTEST <= self._ends[-1] - self._ends[first] <= _MAX_CODE:
            yield "".join(self.texts[first:])

    def numbers(self) -> Iterator[str]:
        """Yield neighbouring numbers of equal length as one word, whatever surrounds them."""
        for size, numbers in groupby(self.texts, lambda it: len(it) if it.isdecimal() else 0):
            same = list(numbers)
            if SHORTEST <= size * len(same) <= _MAX_CODE:
                yield "".join(same)


def too_many(body: Any) -> bool:
    """Return whether a body has more values and words than can be searched for secrets in a short time."""
    seen, left = 0, [body]
    while left and seen <= _MAX_VALUES:
        value = left.pop()
        seen += 1
        if is_object(value):
            left += [*value.keys(), *value.values()]
        elif is_list(value):
            left += value
        elif isinstance(value, str):
            short = len(value) < _MAX_WORD or _may_be_json(value) or _from_base64(value)
            words = len(_AROUND_AN_ADDRESS.findall(value)) if "@" in value else 0
            seen += len(value) // SHORTEST if short else max(words, len(value.split()), len(_PART.findall(value)))
    return seen > _MAX_VALUES


def _may_be_json(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[")


def _from_base64(text: str) -> str:
    """Return the text that is encoded as base64; empty if there is none."""
    digits = "".join(text.split()).translate(_TO_STANDARD)
    if not _BASE64.fullmatch(digits):
        return ""
    with suppress(ValueError):
        return a2b_base64(digits + "==").decode()
    return ""


def _suspects_in(text: str) -> Iterator[str]:
    if not text.isascii():
        text = IGNORABLE.sub("", text.translate(_AT))
    for word in text.split():
        if len(word) < SHORTEST or word.isalpha():  # most words, so this cheap check comes first
            continue
        address = "@" in word
        if not address and not any(map(str.isdigit, word)):
            continue
        if len(word) <= _MAX_WORD:
            yield word
        yield from (it for it in _PART.findall(word) if len(it) <= _MAX_CODE and any(map(str.isdigit, it)))
        if address:
            yield from (it for it in _AROUND_AN_ADDRESS.split(word) if "@" in it and len(it) <= _MAX_WORD)
    yield from map(str.strip, SPACED.findall(text))
