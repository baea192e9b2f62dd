"""The site of the documentation: what `make docs` builds it from, and which faults it finds."""

import re
from pathlib import Path

import docs_site
import pytest
from docs_check import faults

ROOT = Path(__file__).parents[2]
TEXT = "# Page\n\nText.\n\n- one\n- two\n"
ARTICLE = '<article><h1 id="page">Page</h1><p>Text.</p><ul><li>one</li><li>two</li></ul></article>'


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a site without faults and its pages: the home page, docs/page.md, and a file beside it."""
    site, pages = tmp_path / "site", tmp_path / "pages"
    for folder in (site / "docs" / "page", pages / "docs"):
        folder.mkdir(parents=True)
    (site / "docs" / "values.yaml").write_text("a: 1\n")
    for name in ("index.html", "docs/page/index.html"):
        (site / name).write_text(ARTICLE)
    for name in ("README.md", "docs/page.md"):
        (pages / name).write_text(TEXT)
    return site, pages


def test_a_site_whose_links_lead_somewhere_has_no_fault(folders: tuple[Path, Path]) -> None:
    site, pages = folders
    links = ("../../", "../../#page", "../values.yaml", "#page", "", "/docs/page/", "https://elsewhere.example/#x")
    page = ARTICLE.replace("Text.", "".join(f'<a href="{link}">x</a>' for link in links))
    (site / "docs" / "page" / "index.html").write_text(f'{page}<img src="data:image/png;base64,AA">')
    (site / "404.html").write_text('<a href="/nowhere/">x</a>')
    assert faults(site, pages) == []


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="../none/">x</a>', "../none/ leads nowhere"),
        ('<a href="../values.yml">x</a>', "../values.yml leads nowhere"),
        ('<a href="../">x</a>', "../ leads nowhere"),
        ('<a href="#none">x</a>', "#none leads to a page without this anchor"),
        ('<a href="../../#none">x</a>', "../../#none leads to a page without this anchor"),
        ('<img src="none.png">', "none.png leads nowhere"),
        ('<script src="none.js"></script>', "none.js leads nowhere"),
        ('<img src="https://cdn.example/a.png">', "https://cdn.example/a.png is loaded from another site"),
        ('<link rel="stylesheet" href="//cdn.example/a.css">', "//cdn.example/a.css is loaded from another site"),
        ('<script src="https://cdn.example/a.js"></script>', "https://cdn.example/a.js is loaded from another site"),
    ],
)
def test_a_link_that_leads_nowhere_and_a_file_of_another_site_are_faults(
    folders: tuple[Path, Path], html: str, fault: str
) -> None:
    site, pages = folders
    (site / "docs" / "page" / "index.html").write_text(ARTICLE + html)
    assert faults(site, pages) == [f"docs/page/index.html: {fault}"]


def test_a_page_that_is_missing_or_looks_different_on_the_site_is_a_fault(folders: tuple[Path, Path]) -> None:
    site, pages = folders
    (site / "index.html").write_text(
        '<ul><li>navigation</li></ul><article><h1 id="page">Page</h1>- one - two</article>'
    )
    (pages / "docs" / "other.md").write_text(TEXT)
    assert faults(site, pages) == [
        "README.md: has 0 <li> on the site, and 2 on a host of repositories",
        "docs/other.md: is not on the site",
    ]


@pytest.mark.parametrize(
    ("text", "adapted"),
    [
        ("**How.**\n- a\n- b\n", "**How.**\n\n- a\n- b\n"),
        ("Text:\n1. a\n2. b\n", "Text:\n\n1. a\n2. b\n"),
        ("- a\n  more\n- b\n\nText\n", "- a\n  more\n- b\n\nText\n"),
        ("1. a\n2. b\n", "1. a\n2. b\n"),
        (
            "In 2026\n- not in code:\n\n```yaml\nkeys:\n- a\n```\n",
            "In 2026\n\n- not in code:\n\n```yaml\nkeys:\n- a\n```\n",
        ),
        ("   ```sh\nx\n- a\n   ```\n", "   ```sh\nx\n- a\n   ```\n"),
    ],
)
def test_a_list_after_a_text_gets_the_empty_line_that_python_markdown_needs(text: str, adapted: str) -> None:
    assert docs_site.for_python_markdown(text) == adapted


def test_the_list_of_the_documentation_has_every_page() -> None:
    text = (ROOT / "docs" / "README.md").read_text()
    assert docs_site.unlisted(text) == []
    assert docs_site.unlisted(text.replace("](runbook.md)", "")) == ["docs/README.md: does not list runbook.md"]


def test_the_readme_of_the_package_links_to_the_address_of_the_site() -> None:
    project = docs_site.PROJECT
    readme = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    targets = {url for it in readme["substitutions"] for url in re.findall(r"https?://[^\\]*", it["replacement"])}
    assert targets == {project["project"]["urls"]["Documentation"]}
