"""The marked secrets of the leak test, and jobs and replies that contain them in every place where one can be."""

import base64
import html
import json
import os
import quopri
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from leak_search import marked
from smtp_relay import Act, ScriptedRelay

_LETTERS = string.ascii_letters + string.digits


def _password() -> str:
    """Return a password that has another form in a URL, in HTML and in JSON."""
    return marked(12, of=_LETTERS) + "%@/&'" + marked(12, of=_LETTERS)


@dataclass(frozen=True)
class Marks:
    """Every secret of one run. Each job has one of the codes, and its own address."""

    codes: tuple[str, ...] = field(
        default_factory=lambda: (
            marked(16, of=string.digits),
            marked(40, of=string.digits),
            marked(16, of=string.ascii_uppercase + string.digits),
            marked(20, of=_LETTERS),
            "-".join(marked(5, of=_LETTERS) for _ in range(4)),
            marked(9, of=_LETTERS) + "+/=" + marked(9, of=_LETTERS),
            marked(14, of=string.ascii_letters),
        )
    )
    locals: tuple[str, ...] = field(
        default_factory=lambda: (
            marked(14),
            marked(14, of=_LETTERS),
            f"{marked(12)}+{marked(6)}",
            f"{marked(10)}.{marked(10)}",
            f"{marked(10)}_{marked(6)}'{marked(6)}",
        )
    )
    amqp_password: str = field(default_factory=_password)
    redis_password: str = field(default_factory=_password)
    smtp_password: str = field(default_factory=_password)
    fallback_password: str = field(default_factory=_password)
    tenant_password: str = field(default_factory=_password)
    secret_key: str = field(default_factory=lambda: marked(32))
    sealing_key: str = field(default_factory=lambda: base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("="))
    http_token: str = field(default_factory=lambda: marked(32))
    collector_token: str = field(default_factory=lambda: marked(32))

    @property
    def of_jobs(self) -> dict[str, str]:
        """The codes, by name."""
        return {f"code {code!r}": code for code in self.codes}

    @property
    def of_people(self) -> dict[str, str]:
        """The local parts of addresses, by name. Domains are shown."""
        return {f"address {local!r}": local for local in self.locals}

    @property
    def of_deployment(self) -> dict[str, str]:
        """Passwords, tokens and keys, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, str)}

    @property
    def sealing_keys(self) -> str:
        """`SEALING_KEYS`."""
        return json.dumps({"keys": [{"kty": "oct", "k": self.sealing_key, "kid": "k-1", "use": "enc"}]})


ENCODED: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    str.swapcase,
    " ".join,
    "-".join,
    lambda it: f"<{it}>",
    lambda it: f"{it[: len(it) // 2]}\r\n{it[len(it) // 2 :]}",
    lambda it: base64.b64encode(it.encode()).decode(),
    lambda it: base64.b64encode(f"\0user\0{it}".encode()).decode(),
    lambda it: base64.urlsafe_b64encode(f"x{it}".encode()).decode().rstrip("="),
    lambda it: quopri.encodestring(it.encode(), quotetabs=True).decode().strip(),
    lambda it: "".join(f"={byte:02X}" for byte in it.encode()),
    lambda it: quote(it, safe=""),
    lambda it: "".join(f"%{byte:02x}" for byte in it.encode()),
    html.escape,
    lambda it: "".join(f"&#{ord(char)};" for char in it),
    lambda it: json.dumps(it).replace('"', ""),
    lambda it: "".join(f"\\u{ord(char):04x}" for char in it),
    lambda it: it.encode().hex(),
    lambda it: it.encode().hex(" ").upper(),
    lambda it: it.replace("@", "=") + "@bounces.relay.example",
    lambda it: f"{it[:7]}… {it[7:]}",
    lambda it: "x" * (280 - len(it) // 2) + f" {it} is not wanted here",
)
"""How relays quote what they were given."""


@dataclass
class QuotingRelay(ScriptedRelay):
    """A relay that defers and refuses many mails, and quotes address, code or login in its replies."""

    chance: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - the same in each run
    codes: dict[str, str] = field(default_factory=dict)
    """The code of each recipient."""
    quotes: tuple[str, ...] = ()
    """What else it quotes: user and password."""
    share: float = 0.0
    """Share of the steps at which it replies so."""

    def act(self, step: str, recipient: str | None, sender: str | None = None) -> Act:
        act = super().act(step, recipient, sender)
        if act != Act() or step not in _REPLIES or self.chance.random() > self.share:
            return act
        known = [it for it in (recipient, self.codes.get(recipient or ""), *self.quotes) if it]
        text = self.chance.choice(ENCODED)(self.chance.choice(known or ["nothing"]))
        code, _, status = self.chance.choice(_REPLIES[step]).partition(" ")
        *lines, last = self.chance.choice(_TEXTS).format(text).split("\r\n")
        return Act("\r\n".join([*(f"{code}-{status} {line}" for line in lines), f"{code} {status} {last}"]))


_REPLIES = {
    "rcpt": ("250", "451 4.7.1", "450 4.2.0", "550 5.1.1", "554 5.7.1", "552 5.2.2"),
    "data": ("354", "451 4.3.0", "554 5.6.0"),
    "body": ("250", "250 2.0.0", "451 4.3.0", "554 5.7.1", "550"),
}
_TEXTS = ("{}", "no: {}", "<{}>: refused", "try {} later", "message with {} in it is spam", "id={};")
