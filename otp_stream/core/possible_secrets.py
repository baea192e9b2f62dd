"""Finds what may be an address or a code in a malformed body, in which any field may hold one."""

import json
import re
from binascii import a2b_base64
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, Self, cast
from urllib.parse import unquote

from pydantic_core import from_json

from .address import IGNORABLE
from .otp_job import MAX_BODY_BYTES
from .secret_search import SHORTEST, SPACED, Needle, Searched, contains_any, fold_compact, of_address, of_code

_MOST_VALUES = 1_000
"""Maximum number of values and words of a body to search."""
_LONG = 1_000
"""Characters of a text whose words are counted, and of the longest word that may be a secret as a whole."""
_LONGEST_CODE = 64
_ID_LIMIT = 200
_NO_SECRETS = {"timestamp", "retryCount", "priority"}
_WORDS = {
    "userName", "user_name", "template", "locale", "purpose", "priority", "tenant",
    "type", "kind", "event", "channel", "service", "source", "action", "status",
}  # fmt: skip
"""Fields in which a word without a digit is no code. In any other field it may be one."""
_LIKE_AN_ADDRESS = re.compile(r"[\w.+-]@\w")
_PART = re.compile(r"[^\W_]{4,}")
"""What a program writes into a word next to other things, as in `code=123456`."""
_AROUND_AN_ADDRESS = re.compile(r"[<>\"'(),:;=/?&|\\\[\]{}]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{6,}")
_TO_STANDARD = str.maketrans("-_", "+/")
_AT = str.maketrans({"\uff20": "@", "\ufe6b": "@"})


class PossibleSecrets:
    """The words of a body that may be an address or a code, searched for in many texts."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._needles: list[Needle] = []
        for it in {form for secret in secrets if len(secret) >= SHORTEST for form in (secret, unquote(secret))}:
            self._needles += of_address(it, shortest=SHORTEST) if "@" in it else of_code(it)

    @classmethod
    def of(cls, body: Any, *, apart: Container[str], names: bool = True) -> Self | None:
        """Return those of a body; `None` where they are more than can be searched for.

        `apart` are the fields to skip; `names`: whether names of fields are among the words.
        """
        if too_many(body):
            return None
        fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        named = {value.strip() for name in ("email", "otp") if isinstance(value := fields.get(name), str)}
        return cls(named | suspects(body, apart=apart, names=names))

    def any_in(self, text: str) -> bool:
        """Return whether `text` holds any of them, or what looks like an address."""
        searched = Searched(text)
        if any("@" in it.folded for it in searched.unescaped):
            return True
        if any(_LIKE_AN_ADDRESS.search(it.folded) for it in searched.decoded):
            return True
        within = "\0".join(part for it in searched.readings for part in (it.folded, it.compact))
        return contains_any(searched, [it for it in self._needles if it.text in within])


def readable_job_id(body: bytes) -> str | None:
    """Return the `jobId` of a malformed body if it can be shown: an operator searches for the job by it."""
    try:
        content = from_json(body) if len(body) <= MAX_BODY_BYTES else None
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    fields = cast("dict[str, Any]", content)
    job_id: Any = fields.pop("jobId", None) or fields.pop("job_id", None)
    if not isinstance(job_id, str) or not 0 < len(job_id) <= _ID_LIMIT or not job_id.isprintable():
        return None
    secrets = PossibleSecrets.of(fields, apart=_NO_SECRETS)
    return None if secrets is None or _is_repeated(job_id, fields) or secrets.any_in(job_id) else job_id


def _is_repeated(text: str, body: Any) -> bool:
    """Return whether it, or a word in it, is in another text as well, as a code without a digit may be."""
    parts = {it for part in (text, *_PART.findall(text)) if len(it := fold_compact(part)) >= SHORTEST}
    others = (it for name, it in _values(body, apart=_NO_SECRETS) if isinstance(it, str) and name not in _WORDS)
    return any(part in other for other in map(fold_compact, others) for part in parts)


def suspects(body: Any, *, apart: Container[str], names: bool = True) -> set[str]:
    """Return the words of a body that may be an address or a code, whatever their field is called.

    `apart` are the fields that are passed over; `names` of fields are among the words unless they are left out.
    """
    found: set[str] = set()
    for name, value in _values(body, apart=apart):
        if name is None and not names:
            continue
        found.update(_suspects_in(str(value)))
        if isinstance(value, str) and name is not None and name not in _WORDS:
            word = value.strip()
            if SHORTEST <= len(word) <= _LONGEST_CODE and word.isalpha():
                found.add(word)
    return found


class _End(NamedTuple):
    """Marks the end of a list or an object."""

    first: int
    """How many pieces came before it."""


def _values(body: Any, *, apart: Container[str]) -> Iterator[tuple[str | None, str | int | float]]:
    """Yield the texts and numbers in a body with the name of their field, and the names, which have none.

    A list or an object is yielded as one word as well: a code may be a list of digits.
    """
    pieces = _Pieces()
    left: list[tuple[str | None, Any]] = [("", body)]
    while left:  # not by recursion: a body may be nested as deep as it likes
        name, value = left.pop()
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            yield from ((None, key) for key in fields)  # a program that confuses key and value writes secrets as keys
            left.append((name, _End(len(pieces.texts))))
            left += [(key, inner) for key, inner in reversed(fields.items()) if key not in apart]
        elif isinstance(value, list):
            left.append((name, _End(len(pieces.texts))))
            left += [(name, inner) for inner in reversed(cast("list[Any]", value))]
        elif isinstance(value, _End):
            yield from (("", it) for it in pieces.joined(value.first))
        elif isinstance(value, str):
            yield name, value
            if not _may_be_json(value):
                pieces.add(name, value)
            left += ((name, it) for it in _decoded_in(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
            pieces.add(name, f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value))
    yield from (("", it) for it in pieces.numbers())


def _decoded_in(text: str) -> Iterator[Any]:
    """Yield the content of a text that is JSON or base64."""
    if _may_be_json(text):
        with suppress(ValueError, RecursionError):
            yield json.loads(text)
    elif decoded := _from_base64(text):
        yield decoded


class _Pieces:
    """The texts and numbers of a body in their order, of which several may be one code."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._ends = [0]
        """How many characters there are up to each of them."""

    def add(self, name: str | None, text: str) -> None:
        """Add one; a word of a field that holds no code is left out."""
        text = text.strip()
        if text and not (name in _WORDS and text.isalpha()):
            self.texts.append(text)
            self._ends.append(self._ends[-1] + len(text))

    def joined(self, first: int) -> Iterator[str]:
        """Yield those from `first` on as one word, if it is as long as a code, which bounds the work."""
        if len(self.texts) - first > 1 and SHORTEST <= self._ends[-1] - self._ends[first] <= _LONGEST_CODE:
            yield "".join(self.texts[first:])

    def numbers(self) -> Iterator[str]:
        """Yield neighbours with equally many digits as one word, whatever surrounds them."""
        for size, numbers in groupby(self.texts, lambda it: len(it) if it.isdecimal() else 0):
            same = list(numbers)
            if size and len(same) > 1 and SHORTEST <= size * len(same) <= _LONGEST_CODE:
                yield "".join(same)


def too_many(body: Any) -> bool:
    """Return whether a body has more values and words than are worth a search for secrets."""
    seen, left = 0, [body]
    while left and seen <= _MOST_VALUES:
        value = left.pop()
        seen += 1
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            left += [*fields.keys(), *fields.values()]
        elif isinstance(value, list):
            left += cast("list[Any]", value)
        elif isinstance(value, str):
            short = len(value) < _LONG or _may_be_json(value) or _from_base64(value)
            words = len(_AROUND_AN_ADDRESS.findall(value)) if "@" in value else 0
            seen += len(value) // SHORTEST if short else max(words, len(value.split()), len(_PART.findall(value)))
    return seen > _MOST_VALUES


def _may_be_json(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[")


def _from_base64(text: str) -> str:
    """Return the text that is encoded as base64; empty if it is none."""
    digits = "".join(text.split()).rstrip("=").translate(_TO_STANDARD)
    if not _BASE64.fullmatch(digits):
        return ""
    with suppress(ValueError):
        return a2b_base64(digits + "=" * (-len(digits) % 4)).decode()
    return ""


def _suspects_in(text: str) -> Iterator[str]:
    if not text.isascii():
        text = IGNORABLE.sub("", text.translate(_AT))
    for word in text.split():
        if len(word) < SHORTEST or word.isalpha():  # most words: they are sorted out first, at little cost
            continue
        address = "@" in word
        if not address and not any(map(str.isdigit, word)):
            continue
        if len(word) <= _LONG:
            yield word
        yield from (it for it in _PART.findall(word) if len(it) <= _LONGEST_CODE and any(map(str.isdigit, it)))
        if address:
            yield from (it for it in _AROUND_AN_ADDRESS.split(word) if "@" in it and len(it) <= _LONG)
    yield from map(str.strip, SPACED.findall(text))
