"""Folders of templates, and what `lint` finds in them."""

from pathlib import Path
from typing import Any

from otp_stream.mail.brand import Brand
from otp_stream.mail.identity import MailIdentity
from otp_stream.mail.lint import Finding, lint

GOOD = {
    "subject.txt": "Your code",
    "body.txt": "Your code: {{ otp }}, valid until {{ validUntil }}",
    "body.html": '<html lang="en"><body>Your code: <b>{{ otp }}</b> (until {{ validUntil }})</body></html>',
}

CATALOG_HEADER = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n\n'


def write(root: Path, name: str = "mine", **files: str) -> Path:
    """Write the three files of a template, good ones except those of `files`."""
    for file, content in (GOOD | {it.replace("_", "."): text for it, text in files.items()}).items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / file).write_text(content)
    return root


def identity(root: Path | None, brand: Brand | None = None) -> MailIdentity:
    """Return the identity of a tenant with this folder."""
    sender = ("", "no-reply@example.com")
    return MailIdentity(sender=sender, templates_dir=root, default_locale="en", brand=brand or Brand())


def found(root: Path | None, **metadata: Any) -> list[Finding]:
    """Return what `lint` finds in a folder."""
    return lint(identity(root), metadata)


def put(root: Path, **files: str) -> Path:
    """Write files whose names have __ for / and _ before the ending."""
    for name, content in files.items():
        folder, _, ending = name.rpartition("_")
        path = root / f"{folder.replace('__', '/')}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def catalog(root: Path, name: str, *messages: str, header: str = CATALOG_HEADER) -> Path:
    """Write a catalogue of `msgid=msgstr` messages, or of entries as they are."""
    entries = [
        it if it.startswith(("#", "msgid")) else 'msgid "{}"\nmsgstr "{}"'.format(*it.split("=", 1)) for it in messages
    ]
    path = root / "locales" / f"{name}.po"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "\n\n".join(entries) + "\n", encoding="utf-8")
    return root


def catalog_findings(root: Path | None) -> list[tuple[str, int | None, str, str]]:
    """Return the findings that are about translations."""
    words = ("translat", "locales", "trans %}", "mix")
    return [
        (it.file, it.line, it.level, it.text) for it in found(root) if any(word in it.text + it.file for word in words)
    ]
