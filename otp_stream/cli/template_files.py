"""`otp-stream templates copy` and `new`: write template files for an operator to edit."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from babel import Locale, UnknownLocaleError

from otp_stream.mail.catalogs import FOLDER, catalog_bytes, catalog_for
from otp_stream.mail.mail_template import FILES
from otp_stream.mail.templates import BUILT_IN, NAME
from otp_stream.settings import load

from . import output
from .output_files import replaced_file

_NEW = Path(__file__).parent / "new_template"
_SAMPLE_DIR = "./templates"

_To = Annotated[
    Path | None,
    typer.Option("--to", metavar="DIR", help="Folder to write to; otherwise TEMPLATES_DIR.", file_okay=False),
]
_Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


def copy(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="otp, welcome or password_reset.")] = None,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]…", help=f"{', '.join(FILES)}; otherwise all three.")
    ] = None,
    to: _To = None,
    layout: Annotated[bool, typer.Option("--layout", help="Also the files that all e-mails share.")] = False,
    locale: Annotated[
        list[str] | None,
        typer.Option(
            "--locale",
            metavar="LOCALE",
            help="Also the catalogue of this locale, such as de; an empty one for a new language. Repeatable.",
        ),
    ] = None,
    force: _Force = False,
) -> None:
    """Copy built-in files to a folder, for you to edit. Each copy overrides the built-in file.

    For another name, colour, logo or footer, no copy is needed: set BRAND_NAME and the other BRAND settings.
    """
    paths = [*_of_template(name, files or []), *(_shared() if layout else ())]
    contents = {path: (BUILT_IN / path).read_bytes() for path in paths} | dict(map(_catalog, locale or ()))
    if not contents:
        output.fail(f"NAME: give a template ({', '.join(_built_in())}), --layout or --locale")
    folder = _folder(to)
    _write(folder, contents, "copied", force=force)
    _print_next(folder, name or "otp", locale[0] if locale else "")
    if name:
        output.console.print(
            "If you change a text in {% trans %}, its translations no longer match: other languages get the built-in "
            f"file until their catalogue in {FOLDER}/ has the new text.",
            markup=False,
        )


def new(
    name: Annotated[str, typer.Argument(help="What producers write into metadata.template, such as invite.")],
    to: _To = None,
    notice: Annotated[
        bool, typer.Option("--notice", help="Without a code box: for a sign-in link, a notice or an invoice.")
    ] = False,
) -> None:
    """Create the three files of a new template, for you to edit."""
    if not NAME.fullmatch(name) or name == FOLDER:
        output.fail(f"NAME: must consist of 1 to 64 letters, digits, '-' and '_', and not be {FOLDER}")
    if name in _built_in():
        output.fail(f"NAME: {name} is built in; otp-stream templates copy {name} copies its files")
    folder, kind = _folder(to), _NEW / ("notice" if notice else "code")
    _write(folder, {f"{name}/{file}": (kind / file).read_bytes() for file in FILES}, "created", force=False)
    _print_next(folder, name)
    output.console.print(f'Producers select it with "metadata": {{"template": "{name}"}}.', markup=False)


def _built_in() -> list[str]:
    return sorted(it.name for it in BUILT_IN.iterdir() if it.is_dir() and it.name != FOLDER)


def _of_template(name: str | None, files: list[str]) -> list[str]:
    if name is None:
        return []
    if name not in _built_in():
        output.fail(f"NAME: there is no built-in template {name}; known: {', '.join(_built_in())}")
    if unknown := next((it for it in files if it not in FILES), None):
        output.fail(f"FILE: {unknown} is none of {', '.join(FILES)}")
    return [f"{name}/{file}" for file in files or FILES]


def _shared() -> list[str]:
    return sorted(it.name for it in BUILT_IN.iterdir() if it.suffix in {".html", ".txt"})


def _catalog(name: str) -> tuple[str, bytes]:
    """Return the path and content of a built-in catalogue, or of an empty one if there is none for the language."""
    try:
        locale = Locale.parse(name.replace("-", "_"))
    except (ValueError, UnknownLocaleError):
        output.fail(f"--locale: {name} is not a known language; write a code such as sv or pt-BR")
    found = BUILT_IN / FOLDER / f"{locale}.po"
    template = BUILT_IN / FOLDER / "messages.pot"
    content = found.read_bytes() if found.is_file() else catalog_bytes(catalog_for(template.read_bytes(), locale))
    return f"{FOLDER}/{found.name}", content


def _configured() -> Path | None:
    """Return TEMPLATES_DIR, even if it does not exist yet or another setting is invalid."""
    return load(worker=False)[0].templates_dir


def _folder(to: Path | None) -> Path:
    folder = to or _configured()
    if folder is None:
        output.fail(f"--to: give a folder, such as --to {_SAMPLE_DIR}, or set TEMPLATES_DIR")
    if folder.resolve() == BUILT_IN.resolve():
        output.fail("--to: these are the built-in files; give another folder")
    return folder


def _write(folder: Path, contents: Mapping[str, bytes], what: str, *, force: bool) -> None:
    """Write all files, or none if one exists and `force` is not given."""
    existing = [path for path in contents if (folder / path).exists()]
    if existing and not force:
        fix = "choose another name" if what == "created" else "--force replaces them"
        output.fail(f"nothing was {what}: {folder} already has {', '.join(existing)}; {fix}", 1)
    for path, content in contents.items():
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(folder / path) as file:
                file.buffer.write(content)
        except OSError as error:
            output.fail(f"{folder / path} cannot be written ({error.strerror})", 1)
        output.results().print(output.plain(f"{what} {folder / path}"), soft_wrap=True)


def _print_next(folder: Path, name: str, locale: str = "") -> None:
    configured = _configured()
    lines = ["Edit the files, then run:"]
    if configured is None or configured.resolve() != folder.resolve():
        lines.append(
            f"  export TEMPLATES_DIR={shlex.quote(str(folder.resolve()))}  # for a tenant: templates_dir in its table"
        )
    lines += [
        "  otp-stream templates lint",
        f"  otp-stream templates preview {name}{f' --locale {locale}' if locale else ''} --png {name}.png",
    ]
    output.console.print("\n".join(lines), markup=False, soft_wrap=True)
