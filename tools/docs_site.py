"""Build the site of the documentation in build/site: `python tools/docs_site.py`, with Zensical.

The pages are written for hosts of repositories. They are copied to build/docs in the layout of the repository, with
the files they link to, so that the same links work on both. Exit status 1: tools/docs_check.py finds a fault.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from docs_check import faults

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = ROOT / "build"
PAGES, SITE = BUILD / "docs", BUILD / "site"
LINKED = (".env.example", "LICENSE", "asyncapi", "deploy", "examples", "openapi", "schemas")
"""Files and folders beside docs/ that pages link to."""
MERMAID = "@mermaid-js/tiny", "11.17.2", "package/dist/mermaid.tiny.js"
"""The script that draws the diagrams: package of npm, version, and its file. The theme would load it from a CDN."""
MERMAID_SHA256 = "28302a2f6bd556bfd223acff76a1fd511bcc9e6f1cac1bad91b904469aeca102"
_FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
_LIST_AFTER_TEXT = re.compile(r"^((?!- |\d+\. )[^\s#>|].*\n)(?=- |1\. )", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)\)")
_LISTED = re.compile(r"^(?:\*\*(.+)\*\*|- \[.+?\]\((.+?)\).*)$", re.MULTILINE)


def main() -> int:
    """Build the site and return the exit status."""
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    copy_pages()
    theme = BUILD / "theme"
    theme.mkdir(exist_ok=True)
    shutil.copy(ROOT / "tools" / "docs_site.html", theme / "main.html")
    shutil.copy(ROOT / "otp_stream" / "web" / "pages" / "favicon.svg", PAGES)
    (PAGES / "mermaid.js").write_bytes(_mermaid())
    config = BUILD / "zensical.toml"
    config.write_text(configuration())
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", config]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - all words are ours
        return 1
    shutil.copy(ROOT / ".env.example", SITE)  # Zensical skips hidden files
    found = faults(SITE, PAGES) + unlisted((ROOT / "docs" / "README.md").read_text())
    sys.stdout.writelines(f"{fault}\n" for fault in found)
    return 1 if found else 0


def copy_pages() -> None:
    """Copy the pages to build/docs, each folder that one links to with a page that lists its files."""
    for source in (*ROOT.glob("*.md"), ROOT / "docs", *map(ROOT.joinpath, LINKED)):
        copy = PAGES / source.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    for page in list(PAGES.rglob("*.md")):
        folder = page.parent
        text = for_python_markdown(page.read_text())
        page.write_text(_LINK.sub(lambda link, folder=folder: f"]({_page_of(folder, link[1])})", text))


def _page_of(folder: Path, link: str) -> str:
    """Return a link in this folder; if it leads to a folder, the one to its page, which is written if it is missing."""
    target = (folder / link).resolve()
    if not target.is_dir():
        return link
    if not (target / "README.md").exists():
        _list_files(target)
    return f"{link.removesuffix('/')}/README.md"


def for_python_markdown(text: str) -> str:
    """Return a page with an empty line between a text and a list, which Python-Markdown needs to see the list."""
    parts = _FENCE.split(text)
    return "".join(part if part.lstrip().startswith("```") else _LIST_AFTER_TEXT.sub(r"\1\n", part) for part in parts)


def _list_files(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    items = (f"- [{_title(path, folder)}]({path.relative_to(folder).as_posix()})\n" for path in files)
    (folder / "README.md").write_text(f"# {folder.name}/\n\n{''.join(items)}")


def _title(path: Path, folder: Path) -> str:
    if path.suffix == ".md":
        return path.read_text().partition("\n")[0].removeprefix("# ")
    return path.relative_to(folder).as_posix()


def configuration() -> str:
    """Return the configuration of Zensical."""
    text = (ROOT / "tools" / "docs_site.toml").read_text()
    url = PROJECT["project"]["urls"]["Documentation"]
    return text.replace("[project]\n", f"[project]\nsite_url = {json.dumps(url)}\nnav = [{navigation()}]\n", 1)


def navigation() -> str:
    """Return the items of the navigation, as TOML: what docs/README.md lists, and about the project."""
    sections: dict[str, list[str]] = {}
    title = ""
    for heading, link in _LISTED.findall((ROOT / "docs" / "README.md").read_text()):
        title = heading or title
        if link:
            sections.setdefault(title, []).append(_item((PAGES / "docs" / link).resolve()))
    sections["Project"] = ['"CHANGELOG.md"', '"CONTRIBUTING.md"']
    return ", ".join(_section(title, items) for title, items in sections.items())


def _item(path: Path) -> str:
    if not path.is_dir():
        return json.dumps(path.relative_to(PAGES.resolve()).as_posix())
    pages = [_item(page) for page in sorted(path.glob("*.md"), key=lambda page: (page.name != "README.md", page.name))]
    return _section(f"{path.name}/", pages) if len(pages) > 1 else pages[0]


def _section(title: str, items: list[str]) -> str:
    return f"{{ {json.dumps(title)} = [{', '.join(items)}] }}"


def unlisted(text: str) -> list[str]:
    """Return a fault for each page of docs/ that docs/README.md, whose text this is, does not list."""
    names = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")
    return [f"docs/README.md: does not list {name}" for name in names if f"]({name})" not in text]


def _mermaid() -> bytes:
    """Return the script that draws the diagrams, which npm downloads once."""
    package, version, file = MERMAID
    archive = BUILD / f"{package.replace('/', '-').strip('@')}-{version}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("docs: npm is missing. It downloads the script that draws the diagrams: install Node.js.")
        command = [npm, "pack", "--loglevel=error", "--pack-destination", BUILD, f"{package}@{version}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - all words are ours
    if hashlib.sha256(archive.read_bytes()).hexdigest() != MERMAID_SHA256:
        archive.unlink()
        sys.exit(f"docs: {package} {version} of npm has another SHA-256 than in tools/docs_site.py.")
    with tarfile.open(archive) as contents:
        content = contents.extractfile(file)
        assert content is not None, file  # noqa: S101 - the hash is that of an archive with this file
        return content.read()


if __name__ == "__main__":
    sys.exit(main())
