"""The style sheet of a layout in its style attributes: what stays as it is, and what is refused with its line."""

import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
from jinja2 import TemplateSyntaxError
from mails import identity, job, new_composer, part, read, write

from otp_stream.core.mail import ComposeError
from otp_stream.mail import Brand, Composer, TemplateError
from otp_stream.mail.inlined import inlined
from otp_stream.mail.templates import BUILT_IN

RULE = ".a { color: red }"
RED = 'style="color: red;"'


def layout(body: str, css: str = RULE, head: str = "") -> str:
    start = f"<!doctype html>\n<html>\n<head>{head}\n<style data-inline>\n{css}\n</style>\n</head>\n"
    return f"{start}<body>\n{body}\n</body>\n</html>\n"


def refused(source: str) -> tuple[int, str]:
    with pytest.raises(TemplateSyntaxError) as caught:
        inlined(source)
    return caught.value.lineno, str(caught.value.message)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('<p class="a">{{ x }}</p>', f'<p class="a" {RED}>{{{{ x }}}}</p>'),
        ('<p class="a" title="{{ x }}">x</p>', f'<p class="a" title="{{{{ x }}}}" {RED}>x</p>'),
        ('<p class="a {% if x %}b{% endif %}">x</p>', f'<p class="a {{% if x %}}b{{% endif %}}" {RED}>x</p>'),
        (
            "<p class=\"a\" title=\"{{ '>' if a > b else '<' }}\">x</p>",
            f"<p class=\"a\" title=\"{{{{ '>' if a > b else '<' }}}}\" {RED}>x</p>",
        ),
        ('<p class="a" title="{{ "}}" }}">x</p>', f'<p class="a" title="{{{{ "}}}}" }}}}" {RED}>x</p>'),
        ("<p class='a'>{{ {'a': {'b': '%}'}} }}</p>", f"<p class=\"a\" {RED}>{{{{ {{'a': {{'b': '%}}'}}}} }}}}</p>"),
        ("<p class={{ x }}>x</p>", '<p class="{{ x }}">x</p>'),
        (
            '<p class="a" style="color: {{ c }}; margin: {% if x %}0{% else %}1{% endif %}">x</p>',
            '<p class="a" style="color: {{ c }};margin: {% if x %}0{% else %}1{% endif %}">x</p>',
        ),
        (
            '<p class="a">{% raw %}{{ x } {% endif %} <b>{% endraw %}</p>',
            f'<p class="a" {RED}>{{% raw %}}{{{{ x }} {{% endif %}} <b>{{% endraw %}}</p>',
        ),
        ('<p class="a">&nbsp;&amp;&lt;&#847;&zwnj;</p>', f'<p class="a" {RED}>&nbsp;&amp;&lt;&#847;&zwnj;</p>'),
        ('<p class="a">\ue0000\ue001 {{ x }} \ue001</p>', f'<p class="a" {RED}>\ue0000\ue001 {{{{ x }}}} \ue001</p>'),
        ('<p class="a">{%- if x -%} y {%+ endif -%}</p>', f'<p class="a" {RED}>{{%- if x -%}} y {{%+ endif -%}}</p>'),
        (
            '<table><tbody>{% for i in x %}<tr class="a"><td>{{ i }}</td></tr>{% endfor %}{{ rows }}</tbody></table>',
            None,
        ),
        (
            '<!--[if mso]>{% if x %}<td class="b" {{ x }}><![endif]--><p class="a"></p><!--[if mso]>{% endif %}-->',
            None,
        ),
        ('<!--{{ x }}--><p class="a"></p><!--[if mso]>{{ y }}-->', None),
        ('<img class="a" src="{{ u }}">', None),
    ],
)  # fmt: skip
def test_jinja_stays_where_it_is(source: str, expected: str | None) -> None:
    found = re.sub(r"(\{[{%#][-+]?)\n+", r"\1", inlined(layout(source)))
    assert (expected or re.sub('class="a"([^>]*)', rf'class="a"\1 {RED}', source)) in found
    assert "\ue000" not in found or "\ue000" in source
    assert "<style" not in found


def test_a_value_of_jinja_in_a_rule_is_written_into_every_attribute() -> None:
    found = inlined(layout('<p class="a"></p><p class="a"></p>', ".a { color: {{ c }} } .unused { margin: {{ m }} }"))
    assert found.count('style="color: {{ c }};"') == 2
    assert "{{ m }}" not in found


def test_rules_of_media_queries_stay_in_the_style_sheet_on_its_lines() -> None:
    media = "@media (max-width: 420px) {\n  {% if x %}.a { margin: {{ m }} }{% endif %}\n}"
    css = f"{{# Words. #}}\n.a {{ color: red }}\n{media}"
    found = inlined(layout('<p class="a">{{ x }}</p>', css, "\n<title>{{ title }}</title>"))
    assert f"<style>{media} </style>" in found
    assert found.index("<title>") < found.index("<style>")
    assert "Words" not in found


def test_another_style_sheet_stays_as_it_is() -> None:
    other = "<style>\n{% if x %}.a{margin:0}{% endif %}\n</style><!--[if mso]><style>.a{{ x }}</style><![endif]-->"
    assert other in inlined(layout('<p class="a">x</p>', head=other))


@pytest.mark.parametrize(
    "source",
    [
        "",
        "<p>{{ x }}",
        layout('<p class="a" title="x>').replace(" data-inline", ""),
        '{% extends "layout.html" %}{% block content %}<td class="a">x{% endblock %}<style data-inline>.a{}</style>',
        '{%- extends "layout.html" -%}' + layout('<p class="a">'),
        '<style data-inline>.a { color: red }</style><td class="a">{{ x }}',
        "{# " + layout('<p class="a">') + " #}<p>",
        "{# <style data-inline> #}<html><p>",
    ],
)
def test_other_files_stay_as_they_are(source: str) -> None:
    assert inlined(source) == source


@pytest.mark.parametrize(
    ("body", "css", "line", "text"),
    [
        ('<p\n {% if x %}class="a"{% endif %}>x</p>', RULE, 10, "{% if x %}: Jinja in an HTML tag must be inside the"),
        ("<p {{ x }}>x</p>", RULE, 9, "{{ x }}: Jinja in an HTML tag must be inside the quotes"),
        ('<p style="{{ s }}">x</p>', RULE, 9, "{{ s }}: Jinja in a style attribute must be a value"),
        ('<p style="color: red; {{ s }}">x</p>', RULE, 9, "{{ s }}: Jinja in a style attribute must be a value"),
        ("x", "\n{% if x %}\n.a { color: red }\n{% endif %}", 6, "{% if x %}: <style data-inline> has Jinja only"),
        ("x", ".a { {% if x %}color: red{% endif %} }", 5, "{% if x %}: <style data-inline> has Jinja only in values"),
        ("x", "{% raw %}.a { color: red }{% endraw %}", 5, "{% raw %}.a { color: red }{% endraw %}: <style"),
        ("x", ".a{{ n }} { color: red }", 5, "{{ n }}: <style data-inline> has Jinja only in values"),
        ("x", ".a { {{ css }} }", 5, "{{ css }}: <style data-inline> has Jinja only in values"),
        ('\n<p style="x" class="a">x</p>', RULE, 4, "correct its rules, or a style attribute"),
        ('{% if x %}<p class="a">\n{% else %}<p class="b">{% endif %}x</p>', RULE, 10, "<p>: <style data-inline>"),
        ('<div>\n<p class="a">x</p>', RULE, 12, "<style data-inline> needs every tag closed and nested"),
        ("<div>x</div></div>\n<p>x</p>", RULE, 9, "</div>: <style data-inline> needs every tag closed"),
        ('<p title="x>y</p>\n<b class="z">{{ x }}</b>', RULE, 10, "<style data-inline>"),
        ("<table>\n<p>{{ x }}</p><tr><td>y</td></tr></table>", RULE, 9, "<table>: <style data-inline> needs"),
    ],
)  # fmt: skip
def test_what_a_parser_would_lose_is_refused_with_its_line(body: str, css: str, line: int, text: str) -> None:
    at, message = refused(layout(body, css))
    assert text in message
    assert at == line


def test_a_layout_that_cannot_be_inlined_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, layout_html=layout("\n<p {% block content %}{% endblock %}>x</p>"))
    with pytest.raises(TemplateError, match=r"template layout.html, line 10: {% block content %}: Jinja in an HTML"):
        new_composer(tmp_path)


LINES = (BUILT_IN / "layout.html").read_text().splitlines(keepends=True)
BODY = LINES.index('<body class="page">\n') + 1


@pytest.mark.parametrize("at", [1, 3, 9, *range(BODY, len(LINES) - 2)])
def test_errors_name_the_line_of_the_operators_file(tmp_path: Path, at: int) -> None:
    before, after = "".join(LINES[:at]), "".join(LINES[at:])
    write(tmp_path, layout_html=f"{before}{{% if %}}\n{after}")
    with pytest.raises(TemplateError, match=f"template layout.html, line {at + 1}: Expected an expression"):
        new_composer(tmp_path)
    write(tmp_path, layout_html=f"{before}{{{{ unknown }}}}\n{after}")
    errors: set[str] = set()
    logo = Brand(name="Acme", logo_url="https://acme.example/a.png", footer=("Acme Inc.",))
    brands = {"acme": Brand(name="Acme"), "logo": logo}  # tenants share templates that were compiled once
    tenants = {name: identity(tmp_path, brand=brand) for name, brand in brands.items()}
    composer = Composer(identity(tmp_path), b"k" * 32, tenants)
    for tenant in ("", *tenants):
        for code in ("123456", "a-much-longer-code"):
            try:
                composer.compose(job(code, of=tenant, userName="Ann"))
            except ComposeError as error:
                errors.add(str(error))
    assert errors == {f"template layout.html, line {at + 1}: 'unknown' is undefined; give it in metadata"}


def test_a_value_in_a_kept_style_sheet_is_named_with_its_line(tmp_path: Path) -> None:
    css = ".a { color: red }\n@media (x) {\n.a { margin: 0 }\n}"
    write(tmp_path, layout_html=layout('<p class="a">\n{{ unknown }}</p>', css, "\n\n<title>\n{{ otp }}</title>"))
    with pytest.raises(ComposeError, match=r"template layout.html, line 16: 'unknown' is undefined"):
        new_composer(tmp_path).compose(job())


def test_an_operators_layout_without_data_inline_is_sent_as_it_is(tmp_path: Path) -> None:
    source = '<html><style>.a { color: red }</style><p class=a title="x>{{ otp }}&copy<TD>\n'
    write(tmp_path, layout_html=source)
    html = part(read(new_composer(tmp_path).compose(job()).content), "html")
    assert html == source.replace("{{ otp }}", "123456").replace("\n", "\r\n")


def test_the_built_in_layout_prints_the_same_text_as_its_source() -> None:
    source = (BUILT_IN / "layout.html").read_text()
    jinja = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)

    def tags(text: str) -> list[str]:
        without = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        return sorted(re.sub(r"\s+", " ", it) for it in jinja.findall(without))

    kept = [it for it in tags(inlined(source)) if "brand.color" not in it and it != "{{ brand.accent }}"]
    assert kept == tags(source)


def test_inlining_a_megabyte_takes_less_than_a_second() -> None:
    row = '<table><tr><td class="a" title="{{ x }}">it\'s {% if x %}{{ y }} &nbsp;{% endif %}</td></tr></table>\n'
    source = layout(row * (1_000_000 // len(row)))
    began = time.process_time()
    assert inlined(source).count(RED) == source.count('class="a"')
    assert time.process_time() - began < 3  # about 0.6 s, also on a busy machine
    for hostile in ("<!--", "<style>", '<a "', "{{ '", "&x", "<a '"):
        began = time.process_time()
        with suppress(TemplateSyntaxError):
            inlined(layout(hostile * (300_000 // len(hostile))))
        assert time.process_time() - began < 3, hostile
