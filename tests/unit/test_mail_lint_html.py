"""Findings about the HTML of e-mails: colours, mail programs, hidden text, and what differs from the plain text."""

from pathlib import Path

import pytest
from template_folders import GOOD, found, identity, write

from otp_stream.mail.brand import Brand
from otp_stream.mail.client_rules import ATTRIBUTES, ELEMENTS, STYLES, check_client_support
from otp_stream.mail.color_rules import check_colors
from otp_stream.mail.lint import lint
from otp_stream.mail.page import Page, declarations
from otp_stream.mail.rules import check_line_breaks

DARK = '<meta name="color-scheme" content="light dark">'


def of_body(root: Path, html: str, brand: Brand | None = None) -> list[str]:
    """Return the findings about the HTML of a template that shows code and expiry besides."""
    write(root, body_html=f'<html lang="en">{{{{ otp }}}} {{{{ validUntil }}}}{html}')
    return [it.text for it in lint(identity(root, brand), {}) if it.file == "mine/body.html"]


def colors(html: str) -> list[str]:
    return [text.rpartition(";")[0] for _, text in check_colors(Page(html))]


@pytest.mark.parametrize(
    ("html", "finding"),
    [
        ("<p style='color:#999'>a", "text of <p> has contrast 2.8 (#999 on #ffffff"),
        ("<p style='color: rgb(150, 150, 150)'>a", "contrast 3.0 (#969696 on"),
        ("<p style='color:rgba(150 150 150 / 1)'>a", "contrast 3.0 (#969696 on"),
        ("<p style='color:YELLOW'>a", "(#ffff00 on #ffffff"),
        ("<font color=silver>a</font>", "text of <font> has"),
        ("<table><td class=x bgcolor=#000><b style='color:#333'>a", "text of <b> has contrast 1.7 (#333 on #000"),
        ("<table><td class=x bgcolor=#000>a", 'text of <td class="x"> has'),
        ("<p style='background:#123;background-color:white;color:#fff'>a", "(#fff on #ffffff"),
        ("<p style='background-color:#123;background:white;color:#fff'>a", "(#fff on #ffffff"),
        ("<p style='color:#fff!important;color:#000'>a", "(#fff on #ffffff"),
        ("<p style='background:#fff no-repeat;color:#fff'>a", "(#fff on #fff;"),
        ("<p style='background:#003'><a href=x>a</a>", "text of <a> has contrast 2.1 (#0000ee on #003"),
        ("<style>.x { color: #eee } @media print { .x { color: #000 } }</style><p class=x>a", '<p class="x"> has'),
        ("<h1 style='color:#aaa;font-size:30px'>a", "AA needs 3)"),
    ],
)
def test_text_without_enough_contrast_is_found(html: str, finding: str) -> None:
    (text,) = [it[1] for it in check_colors(Page(html))]
    assert finding in text
    assert "dark mode" not in text


@pytest.mark.parametrize(
    "html",
    [
        "<p style='color:#767676'>a",
        "<p style='color:#949494;font-size:24px'>a",
        "<p style='color:#949494;font-size:14pt'><b>a</b>",
        "<p style='color:#949494;font-size:19px;font-weight:700'>a",
        "<p style='color:#fff;background:url(x.png)'>a",
        "<p style='color:#fff;background-image:linear-gradient(red, blue)'>a",
        "<p style='color:hsl(0 0% 99%)'>a",
        "<p style='background:var(--x)'><b style='color:#fff'>a",
        "<p style='color:#fff;display:none'>a",
        "<p style='color:#fff'>&nbsp; —",
        "<p style='background:#000'><b style='background:transparent;color:#fff'>a",
    ],
)
def test_text_with_enough_contrast_and_colours_that_are_not_seen_are_no_finding(html: str) -> None:
    assert colors(html) == []


def test_colours_of_dark_mode_are_those_of_its_rules() -> None:
    page = "<style>@media (prefers-color-scheme: dark) {{ {} }} @media print {{ p {{ color: red }} }}</style>{}"
    text = "<p style='color:#222;background:#fff'>a"
    both = "p { color: #eee !important; background: #111 !important }"
    assert colors(page.format(both, text)) == []
    assert colors(DARK + page.format(both, text)) == []
    assert colors(page.format("p { background: #111 !important }", text)) == [
        "text of <p> has contrast 1.2 (#222 on #111; AA needs 4.5) in dark mode"
    ]
    # without !important, the style attribute is stronger
    (kept,) = colors(page.format("p { color: #eee; background: #111 }", text))
    assert kept == "<p> keeps its light background #fff in dark mode"


def test_a_box_stays_light_in_dark_mode_only_if_it_shows_text() -> None:
    assert colors(DARK + "<div style='background:#fff'><p style='color:#000'>a") == [
        "<div> keeps its light background #fff in dark mode"
    ]
    assert colors(DARK + "<p style='background:#fff'><img src=a alt=b></p>") == []
    assert colors(DARK + "<p style='background:#2f5fd0;color:#fff'>a") == []
    assert colors("<p style='background:#fff'>a") == []


def test_a_page_that_declares_dark_mode_has_a_dark_ground_and_white_text() -> None:
    assert colors(DARK + "<p>a <a href=x>b</a>") == []
    assert colors(DARK + "<p style='color:#333'>a")[0].startswith("text of <p> has contrast 1.3 (#333 on #1e1e1e")
    assert colors("<style>:root { color-scheme: light dark }</style><p style='color:#333'>a")
    assert colors("<style>:root { color-scheme: light only }</style><p style='color:#333'>a") == []


@pytest.mark.parametrize(
    ("css", "after"),
    [
        ("@media (prefers-color-scheme: dark) { p { color: #fff }", {}),
        ("@media (prefers-color-scheme:dark){p{color:#fff}} p{margin:0}", {"color": "#fff", "margin": "0"}),
        (2 * "@media (prefers-color-scheme: dark) { p { color: #fff } } ", {"color": "#fff"}),
    ],
)
def test_rules_for_dark_mode_apply_in_their_order(css: str, after: dict[str, str]) -> None:
    (element,) = Page(f"<style>{css}</style><p>a", dark=True).find("p")
    assert element.style == after


def test_declarations_are_read_with_quotes_parentheses_and_comments() -> None:
    style = "COLOR : #fff ; /* x: y; */ background: url(data:a;b) ; font-family: 'a;b', c; color: #000 ! important"
    assert declarations(style) == {"background": "url(data:a;b)", "font-family": "'a;b', c", "color": "#000"}


def test_text_that_looks_like_a_tag_closes_nothing() -> None:
    assert Page("<p>a<xmp></b>b</xmp>c<svg><g/></svg>d").texts == ["a", "</b>b", "c", "d"]
    assert Page("<xmp></html>a</xmp>").texts == ["</html>a"]
    for tag in ("iframe", "noembed", "noframes"):
        assert [it.tag for it in Page(f"<p><{tag}><b>x</{tag}><i>y</i>").elements][-2:] == [tag, "i"]
    assert Page("<p style='color:#ddd;(x)'>a</b></p>b").texts == ["a", "b"]  # as it was written


def test_a_style_attribute_that_cannot_be_read_is_a_warning_and_no_style_sheet_applies(tmp_path: Path) -> None:
    html = f"{DARK}<style>p {{ margin: 0 }}</style><p style='color:#ddd;(x)'>a"
    assert Page(html).css_error
    assert any("style attribute that cannot be read" in it for it in of_body(tmp_path, html))
    assert len(colors(html)) == 1
    only_dark = "<style>@media (prefers-color-scheme: dark) { p { margin: 0 } }</style><p style='color:#ddd;(x)'>a"
    assert len(colors(only_dark)) == 1


@pytest.mark.parametrize(
    ("html", "finding"),
    [
        ("<p style='position:relative'>", "position, which Gmail, Outlook do not"),
        ("<p style='float: left'>", "float, which Outlook"),
        ("<p style='display:inline-flex'>", "display: flex, which Outlook"),
        ("<style>p { display: grid }</style>", "display: grid, which Gmail, Outlook, Yahoo"),
        ("<p style='background:#fff url(x.png)'>", "background-image"),
        ("<p style='color:var(--x)'>", "var()"),
        ("<style>@font-face { font-family: x }</style>", "@font-face, which Gmail, Yahoo"),
        ("<style>p::after { content: 'x' }</style>", "::after"),
        ("<form action='x'><input name=a></form>", "<form>"),
        ("<video src='x'></video>", "<video>, which Gmail, Outlook, Yahoo"),
        ("<svg></svg>", "<svg>"),
        ("<link rel=stylesheet href=x.css>", "<link>, which Gmail, Yahoo"),
        ("<p hidden>x</p>", "the attribute hidden"),
    ],
)
def test_what_mail_programs_do_not_support_is_a_warning_with_their_names(html: str, finding: str) -> None:
    assert any(f"uses {finding}" in text for level, text in check_client_support(Page(html)) if level == "warning")


def test_what_looks_similar_to_an_unsupported_feature_is_none() -> None:
    css = "background-position: left; position: static; float: none; text-transform: none; fill-opacity: 1; margin: 0"
    html = f"<style>/* position: fixed */ p:first-child {{ {css} }}</style><link rel=icon href=x><p style='{css}'>flex"
    assert list(check_client_support(Page(html))) == []


def test_the_table_of_mail_programs_names_a_page_and_a_fix_for_each_feature() -> None:
    table = STYLES | ELEMENTS | ATTRIBUTES
    assert all(it.slug.startswith(("css-", "html-")) and it.clients and it.fix for it in table.values())
    assert all(it.pattern for it in STYLES.values())


def test_an_image_without_alt_is_found_and_the_logo_of_the_brand_is_not_loaded_from_elsewhere(tmp_path: Path) -> None:
    assert of_body(tmp_path, "<img src=x.png class=y>") == [
        'has <img class="y"> without alt; describe the image, or write alt="" if it is decoration'
    ]
    brand = Brand(name="Acme", logo_url="https://acme.example/logo.png")
    logo = "<img alt='{{ brand.name }}' src='{}'>"
    other, own = logo.replace("{}", "https://other.example/x"), logo.replace("{}", "{{ brand.logo_url }}")
    assert "loads content from other hosts (<img src>); mail programs block it, because it can track people" in of_body(
        tmp_path, other, brand
    )
    assert not any("loads" in it for it in of_body(tmp_path, own, brand))


def test_hidden_text_shows_no_code_and_may_repeat_it(tmp_path: Path) -> None:
    for hidden in ("style='display:none'", "style='visibility:hidden'", "style='font-size:0px'"):
        assert not any("times" in it for it in of_body(tmp_path, f"<div {hidden}>{{{{ otp }}}} is your code</div>"))
        write(tmp_path, body_html=f'<html lang="en"><p {hidden}>{{{{ otp }}}}</p>{{{{ validUntil }}}}')
        assert "does not show the code; write {{ otp }}" in [it.text for it in found(tmp_path)]


def test_values_that_one_body_shows_and_the_other_one_does_not_are_named(tmp_path: Path) -> None:
    brand = Brand(name="Acme", support="https://acme.example/help")
    more = " {{ userName }} {{ requestPlace }}".replace("{{ userName }}", "{% if userName %}{{ userName }}{% endif %}")
    write(
        tmp_path,
        body_txt="{{ otp }} {{ validUntil }}" + more,
        body_html=f"{GOOD['body.html']}{{{{ brand.name }}}} {{{{ brand.contact }}}}",
    )
    assert [(it.file, it.text) for it in lint(identity(tmp_path, brand), {})] == [
        (
            "mine/body.html",
            "does not show {{ userName }}, {{ requestPlace }}, as the plain text does; show it in both",
        ),
        ("mine/body.txt", "does not show {{ brand.name }}, {{ brand.contact }}, as the HTML does; show it in both"),
    ]


def test_a_code_that_quoted_printable_breaks_is_found(tmp_path: Path) -> None:
    assert of_body(tmp_path, "") == []
    before = "x" * 66
    (text,) = of_body(tmp_path, f"<p style='display:none'>\n{before} {{{{ otp }}}}</p>")
    assert text == "has the code in a line that quoted-printable breaks; start a new line before {{ otp }}"
    assert [it[0] for it in check_line_breaks(f"{before} 123456\n", "123456")] == ["warning"]
    # each é takes six characters of a line
    assert list(check_line_breaks("é" * 11 + " 123456", "123456"))
    assert list(check_line_breaks(f"{before}\n123456 {before}", "123456")) == []


def test_a_finding_in_translations_only_names_their_languages(tmp_path: Path) -> None:
    write(tmp_path, subject_txt="{% trans %}Your one-time code{% endtrans %}{{ lang }}", body_html=GOOD["body.html"])
    write(tmp_path, body_txt=GOOD["body.txt"] + "{% trans %}Your one-time code{% endtrans %}")
    html = GOOD["body.html"] + "{% trans %}Your one-time code{% endtrans %}"
    (tmp_path / "mine" / "subject.txt").write_text("{% trans %}Your one-time code{% endtrans %}")
    (tmp_path / "mine" / "body.html").write_text(html)
    languages = "ar, de, es, fr, hi, it, ja, nl, pl, pt-br, tr, zh-hans"
    assert [it.text for it in found(tmp_path)] == [
        f'has lang="en", which is not the language of this e-mail; write lang="{{{{ lang }}}}" (in {languages})',
        'is in a language that is written from right to left; write <html dir="{{ dir }}"> (in ar)',
    ]


def test_an_email_that_needs_no_code_is_warned_about_and_no_error(tmp_path: Path) -> None:
    page = '<html lang="en"><body>Your plan has changed.</body></html>'
    write(tmp_path, body_txt="Your plan has changed.", body_html=page)
    assert {(it.level, it.text) for it in found(tmp_path)} == {
        ("warning", "does not show the code; write {{ otp }}, unless this e-mail needs none")
    }
    write(tmp_path, "otp", body_txt="Your code", body_html=page)
    assert [it.level for it in found(tmp_path) if it.file == "otp/body.html" and "show the code;" in it.text] == [
        "error"
    ]
