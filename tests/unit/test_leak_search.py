"""The search of the leak test finds a marked secret in every encoding, and nothing else."""

import json
import pickle
import quopri
import string
from base64 import b32encode, b64encode, urlsafe_b64encode
from collections.abc import Callable
from html import escape
from random import Random
from urllib.parse import quote, quote_plus, urlencode

import pytest
from leak_search import LeakSearch, marked

CHANCE = Random(7)  # noqa: S311 - the same in each run
CODE = marked(20, of=string.digits, chance=CHANCE)
WORD = marked(20, chance=CHANCE)
PASSWORD = marked(12, of=string.ascii_letters, chance=CHANCE) + "/+%@ é" + marked(12, chance=CHANCE)
SECRETS = {"code": CODE, "word": WORD, "password": PASSWORD}
SEARCH = LeakSearch(SECRETS)

ENCODINGS: dict[str, Callable[[str], str]] = {
    "clear": str,
    "upper case": str.upper,
    "reversed case": str.swapcase,
    "reversed": lambda it: it[::-1],
    "spaced": " ".join,
    "dashes": "-".join,
    "lines": "\r\n".join,
    "invisible": "\u200b".join,
    "utf-16": lambda it: it.encode("utf-16-le").decode("latin-1"),
    "full width": lambda it: "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in it),
    **{f"base64 after {count}": (lambda it, count=count: b64encode(b"a" * count + it.encode() + b"zzz").decode())
       for count in range(4)},
    **{f"url-safe base64 after {count}": (lambda it, at=count: urlsafe_b64encode(bytes(at) + it.encode()).decode())
       for count in range(4)},
    "base64 without padding": lambda it: b64encode(it.encode()).decode().rstrip("="),
    "base64 in lines": lambda it: "\r\n".join(b64encode(it.encode()).decode()[at : at + 5] for at in range(0, 60, 5)),
    "base64, percent-encoded": lambda it: quote(b64encode(it.encode()).decode(), safe=""),
    "base64 of the upper case": lambda it: b64encode(it.upper().encode()).decode(),
    "base64 twice": lambda it: b64encode(b64encode(b"x" + it.encode()) + b"x").decode(),
    "base64 of a login": lambda it: b64encode(f"\0user\0{it}".encode()).decode(),
    "base32": lambda it: b32encode(b"abc" + it.encode()).decode(),
    "hex": lambda it: it.encode().hex(),
    "upper hex, spaced": lambda it: it.encode().hex(" ").upper(),
    "hex of the reversed": lambda it: it[::-1].encode().hex(),
    "percent": lambda it: "".join(f"%{byte:02X}" for byte in it.encode()),
    "percent twice": lambda it: "".join(f"%25{byte:02X}" for byte in it.encode()),
    "percent, every second": lambda it: "".join(char if at % 2 else f"%{ord(char):02x}" for at, char in enumerate(it)),
    "query": lambda it: urlencode({"q": it}),
    "quote": quote,
    "quote_plus": quote_plus,
    "quoted-printable": lambda it: quopri.encodestring(it.encode()).decode(),
    "quoted-printable, all": lambda it: "".join(f"={byte:02X}" for byte in it.encode()),
    "quoted-printable, wrapped": lambda it: f"{it[:7]}=\n{it[7:14]}=\r\n{it[14:]}",
    "HTML": escape,
    "HTML, decimal": lambda it: "".join(f"&#{ord(char)};" for char in it),
    "HTML, hex": lambda it: "".join(f"&#x{ord(char):x};" for char in it),
    "HTML, every third": lambda it: "".join(char if at % 3 else f"&#{ord(char)};" for at, char in enumerate(it)),
    "JSON": json.dumps,
    "JSON, escaped": lambda it: "".join(f"\\u{ord(char):04x}" for char in it),
    "JSON in JSON": lambda it: json.dumps(json.dumps("".join(f"\\u{ord(char):04X}" for char in it))),
    "Python": lambda it: repr(it.encode()),
    "Python, escaped": lambda it: "".join(f"\\x{byte:02x}" for byte in it.encode()),
    "octal": lambda it: "".join(f"\\{byte:03o}" for byte in it.encode()),
    "numbers": lambda it: str(list(it.encode())),
    "hex numbers": lambda it: ", ".join(map(hex, it.encode())),
    "pickle": lambda it: pickle.dumps({"a": it}).decode("latin-1"),
    "markup": lambda it: f"<b>{it[:9]}</b>{it[9:]}",
    "two fields": lambda it: json.dumps({"a": it[:6], "b": it[6:]}),
    "two log entries": lambda it: f'{{"code": "{it[:6]}", "x": 1}}\n{{"x": 17, "code": "{it[6:]}"}}',
    "many log entries": lambda it: "\n".join(f"12:00:0{at % 10} part={char!r} of=20" for at, char in enumerate(it)),
    "cut": lambda it: it[:-4],
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_in_every_encoding(name: str, encoding: str) -> None:
    written = ENCODINGS[encoding](SECRETS[name])
    for text in (written, f"user@example.com 12:00:00.123456 {written} sent\n", f'x="{written}" 99'):
        assert {leak.secret for leak in SEARCH.find(text.encode())} == {name}, text


@pytest.mark.parametrize("name", SECRETS)
def test_the_report_shows_where_a_secret_is_and_not_the_secret(name: str) -> None:
    (leak,) = SEARCH.find(f"before {SECRETS[name]} after".encode())
    assert (leak.secret, leak.encoding, leak.part) == (name, "clear", 1)
    assert leak.near == "before *** after"


def test_half_of_a_secret_is_a_leak_and_a_few_characters_are_not() -> None:
    (leak,) = SEARCH.find(WORD[:12].encode())
    assert leak.part == 0.6
    assert SEARCH.find(WORD[:7].encode()) == []


def test_other_random_texts_are_no_leak() -> None:
    others = [marked(20, chance=CHANCE) for _ in range(20_000)]
    numbers = [marked(20, of=string.digits, chance=CHANCE) for _ in range(20_000)]
    hashes = CHANCE.randbytes(200_000)
    text = "\n".join([*others, *numbers, hashes.hex(), b64encode(hashes).decode()])
    assert SEARCH.find(text.encode() + hashes) == []


def test_a_secret_that_chance_may_repeat_is_refused() -> None:
    with pytest.raises(AssertionError, match="too short"):
        LeakSearch({"code": "123456"})
