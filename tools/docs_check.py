"""Faults of the site of the documentation, as tools/docs_site.py builds it.

A link leads nowhere; a page loads something from another site; or a page has other lists, tables or blocks of code than
CommonMark, with which hosts of repositories show it. Links to other sites are not followed.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from markdown_it import MarkdownIt

_COUNTED = ("h1", "h2", "h3", "h4", "img", "li", "pre", "tr")
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
_LOADING_LINKS = {"dns-prefetch", "icon", "modulepreload", "preconnect", "prefetch", "preload", "stylesheet"}
_GFM = MarkdownIt("commonmark").enable("table")


@dataclass
class _Page(HTMLParser):
    """What a page contains: anchors, links, what it loads, and how many elements of a kind its text has."""

    anchors: set[str] = field(default_factory=set[str])
    links: set[str] = field(default_factory=set[str])
    loaded: set[str] = field(default_factory=set[str])
    elements: Counter[str] = field(default_factory=Counter[str])
    in_text: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.in_text |= tag == "article"
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if tag in _LOADED and _LOADED[tag] in values:
            self.loaded.add(values[_LOADED[tag]])
        if tag == "link" and _LOADING_LINKS & set(values.get("rel", "").split()):
            self.loaded.add(values["href"])
        if self.in_text and tag in _COUNTED:
            self.elements[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self.in_text &= tag != "article"


def faults(site: Path, pages: Path) -> list[str]:
    """Return the faults of the site that was built from these pages, one line for each."""
    # the page for missing pages has absolute links, because it is shown at any address
    built = {path: _parsed(path.read_text()) for path in sorted(site.rglob("*.html")) if path != site / "404.html"}
    found: list[str] = []
    for path, page in built.items():
        name = path.relative_to(site).as_posix()
        found += (f"{name}: {link} {fault}" for link, fault in _link_faults(site, path, page, built))
    for source in sorted(pages.rglob("*.md")):
        name = source.relative_to(pages)
        target = site / (name.parent if name.name == "README.md" else name.with_suffix("")) / "index.html"
        found += (f"{name}: {fault}" for fault in _differences(source.read_text(), built.get(target)))
    return found


def _link_faults(site: Path, path: Path, page: _Page, built: dict[Path, _Page]) -> Iterator[tuple[str, str]]:
    for link in sorted(page.links | page.loaded):
        there = urlsplit(link)
        if there.scheme or there.netloc:
            if link in page.loaded and there.scheme != "data":
                yield link, "is loaded from another site"
            continue
        target = site / unquote(urljoin(f"/{path.relative_to(site).as_posix()}", there.path)).lstrip("/")
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            yield link, "leads nowhere"
        elif there.fragment and unquote(there.fragment) not in built[target].anchors:
            yield link, "leads to a page without this anchor"


def _differences(source: str, page: _Page | None) -> Iterator[str]:
    if page is None:
        yield "is not on the site"
        return
    expected = _parsed(f"<article>{_GFM.render(source)}</article>").elements
    for tag in _COUNTED:
        if page.elements[tag] != expected[tag]:
            yield f"has {page.elements[tag]} <{tag}> on the site, and {expected[tag]} on a host of repositories"


def _parsed(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    return page
