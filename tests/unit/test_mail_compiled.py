"""A compiled variant gives the same bytes as the rendered template; a template that cannot be analysed has none."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.mail import ComposeError
from otp_stream.mail import Brand, compiled
from otp_stream.mail.compiled import CompiledVariants, Parts
from otp_stream.mail.mail_template import MailTemplate
from otp_stream.mail.message import Part
from otp_stream.mail.templates import Templates

TEMPLATES = Templates(None, "en")
SHIPPED = [TEMPLATES.find(name, locale) for name in TEMPLATES.names for locale in ("en", "de", "ar", "pl")]

BRANDS = [
    Brand(),
    Brand(name="Acme", color="#e60023", support="help@acme.example", footer=("Acme Inc.", "1 Main St")),
    Brand(name="Bäckerei <Müller> & 100 % {{ otp }}", logo_url="https://example.com/a.png?b=1&c=2", support="+49 30 1"),
]

texts = st.one_of(
    st.sampled_from(
        [
            "",
            "John Doe",
            "Jürgen",
            "<b>&'\"",
            "a=b",
            " ",
            ".",
            "x" * 200,
            "\ue000",
            "\ue001",
            "a\nb",
            "a\rb",
            "a\x85",
            "\n",
        ]
    ),
    st.text(max_size=30),
)
codes = st.one_of(
    st.text("0123456789", min_size=4, max_size=12),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=4, max_size=64),
)


def rendered(template: MailTemplate, data: Mapping[str, Any]) -> Parts:
    subject, text, html = template.render(data)
    return subject, Part.of(text), Part.of(html)


def data(**more: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "otp": "123456", "email": "user@example.com", "expiryMinutes": 15, "userName": None, "purpose": None,
        "locale": None, "validUntil": "14:32 UTC", "brand": Brand(), "lang": "en", "dir": "ltr", "action": "",
        "validCount": 15, "validUnit": "minute", "requestedAt": "Nov 14, 2023, 10:13 PM UTC", "requestPlace": "",
        "requestDevice": "", "subjectTime": "",
    }  # fmt: skip
    return known | more


@given(
    template=st.sampled_from(SHIPPED), otp=codes, user_name=st.one_of(st.none(), texts, st.integers(), st.booleans()),
    device=texts, count=st.sampled_from([0, 1, 2, 5, 15]), unit=st.sampled_from(["minute", "hour", "day", ""]),
    action=st.sampled_from(["", "login", "delete_account"]), until=st.sampled_from(["14:32 UTC", "2:32 م UTC"]),
    brand=st.sampled_from(BRANDS),
)  # fmt: skip
def test_a_filled_variant_equals_the_rendered_template(
    template: MailTemplate, otp: str, user_name: object, device: str, until: str, brand: Brand, **others: object
) -> None:
    more = {"brand": brand, "validUntil": until, "validCount": others["count"], "validUnit": others["unit"]}
    more["action"] = others["action"]
    # first with the values of others: a variant that kept any of them would show it here
    for given_otp, name in (("654321", "Ann"), ("987654", "Bob"), (otp[::-1], "Üwe"), (otp[::-1], "Öle")):
        template.parts(data(otp=given_otp, userName=name, requestDevice=name, **more))
    asked = data(otp=otp, userName=user_name, requestDevice=device, **more)
    for _ in range(3):
        assert template.parts(asked) == rendered(template, asked)


def template_of(root: Path, html: str, text: str = "{{ otp }}", **files: str) -> MailTemplate:
    for name, content in {"subject.txt": "s", "body.txt": text, "body.html": html}.items():
        path = root / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name, content in files.items():
        (root / f"mine/{name}").with_suffix(".html").write_text(content)
    return Templates(root, "en").find("mine", None)


def times_rendered(template: MailTemplate, *asked: Mapping[str, Any]) -> int:
    """Fill in and compare; return how often the template itself was needed."""
    count = 0

    def render(given: Mapping[str, Any]) -> tuple[str, str, str]:
        nonlocal count
        count += 1
        return template.render(given)

    for it in asked:
        parts = template.compiled.fill(it, render)
        count += parts is None
        assert parts is None or parts == rendered(template, it)
    return count


@pytest.mark.parametrize(
    "html",
    [
        "{{ otp }}",
        "{{otp}}{{otp}}-{{userName}}",
        "{% if userName %}{{ userName }}{% else %}{{ otp }}{% endif %}",
        "{% if not (userName and purpose) or otp|length > 6 %}a{% endif %}{{ otp }}",
        "{{ 'a' if otp|length > 6 else 'b' }}{{ otp }}",
        "{{ expiryMinutes * 60 }} {{ otp }} {{ purpose|upper }}",
        "{{ purpose|default('x', boolean=true) }} {{ team.name|default('us') }} {{ otp }}",
        "{{ otp }}\n\n\n",
        "{% trans %}{{ userName }}, your code{% endtrans %} {{ otp }}",
        "{{ _('%(name)s: %(code)s', name=userName, code=otp) }} 100 %",
        "{% trans count=validCount, code=otp %}{{ code }}: {{ count }}{% pluralize %}many{% endtrans %}",
        "ü {{ userName }}\n.\n {{ otp }} \n",
        "x" * 890 + "{{ otp }}",
        "x" * 1200 + "{{ otp }}\n{{ userName }}",
    ],
)
def test_what_only_prints_and_asks_is_rendered_twice_and_then_filled_in(tmp_path: Path, html: str) -> None:
    template = template_of(tmp_path, html)
    asked = [data(otp=f"{number:06}", userName=name, team={}) for number, name in enumerate(("Ann", "<b>", "C & A"))]
    asked = [{**it, "team": None} for it in asked]
    assert times_rendered(template, *asked, *asked, *asked) == 2


@pytest.mark.parametrize(
    "html",
    [
        "{{ otp|upper }}",
        "{{ otp[:3] }} {{ otp[3:] }}",
        "{% if otp == '000001' %}x{% endif %}{{ otp }}",
        "{% for digit in otp %}{{ digit }}{% endfor %}",
        "{% set code = otp %}{{ code }}",
        "{% filter upper %}{{ otp }}{% endfilter %}",
        "{% set x %}{{ otp }}{% endset %}{{ x }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(otp) }}",
        "{% autoescape false %}{{ otp }}{{ userName }}{% endautoescape %}",
        "{% block a %}{{ otp }}{% endblock %}{{ self.a()|upper }}",
        "{{ otp }} {{ range(9)|random }}",
        "{{ [1, 2]|random }} {{ otp }}",
        "{{ otp or 'x' }}",
        "{{ otp ~ userName }}",
        "{{ _(otp) }}",
        "{{ _('%(code)s', code=otp|upper) }}",
        "{{ _('%(code)s', code=otp)|upper }}",
        "{{ _('%(a)s', **{'a': otp}) }}",
        "\ue000{{ otp }}",
        "{% include 'otp/body.txt' %}",
        "{% include [ 'otp/body.html' ] %}",
        "{% include 'mine/none.html' ignore missing %}{{ otp }}",
    ],
)
def test_what_does_more_with_a_value_is_always_rendered(tmp_path: Path, html: str) -> None:
    template = template_of(tmp_path, html)
    asked = [data(otp=f"{number:06}", userName="Ann", expiryMinutes=5) for number in range(4)]
    assert times_rendered(template, *asked) == len(asked)


def test_a_value_that_differs_in_each_mail_makes_no_variants(tmp_path: Path) -> None:
    template = template_of(tmp_path, "{{ userName|upper }} {{ otp }}")
    asked = [data(userName=f"name {number}") for number in range(2_000)]
    assert times_rendered(template, *asked) == len(asked)


def test_the_number_of_variants_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_VARIANTS_LIMIT", 10)
    monkeypatch.setattr(compiled, "_SEEN_LIMIT", 20)
    template = template_of(tmp_path, "{{ expiryMinutes }} {{ otp }}")
    asked = [data(expiryMinutes=number) for number in range(100) for _ in range(3)]
    assert times_rendered(template, *asked) == 200
    assert times_rendered(template, data(expiryMinutes=0), data(expiryMinutes=0)) == 2


def test_the_size_of_all_variants_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_VARIANTS_BYTES", 1_000_000)
    template = template_of(tmp_path, "{{ expiryMinutes }} {{ otp }}" + "é" * 50_000)
    asked = [data(expiryMinutes=number) for number in range(10) for _ in range(3)]
    assert times_rendered(template, *asked) == 20
    assert times_rendered(template, data(expiryMinutes=9), data(expiryMinutes=0)) == 1  # evicted


def test_the_variants_that_were_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_VARIANTS_LIMIT", 10)
    template = template_of(tmp_path, "{{ expiryMinutes }} {{ otp }}")
    rare = [data(expiryMinutes=number) for number in range(1, 100)]
    asked = [it for one in rare for it in (one, one, data(expiryMinutes=0))]
    assert times_rendered(template, *asked) == 2 * len(rare) + 2


def test_a_line_that_a_value_may_make_too_long_is_rendered(tmp_path: Path) -> None:
    template = template_of(tmp_path, "x" * 890 + "{{ userName }}")
    asked = [data(userName="A" * length) for length in (2, 2, 2, 10, 11, 50)]
    assert times_rendered(template, *asked) == 5


def test_a_template_with_null_bytes_has_no_variant(tmp_path: Path) -> None:
    template = template_of(tmp_path, "\0\n{{ userName }} ü\n\0\n")
    asked = [data(userName="Ann")] * 4
    assert all(template.parts(it) == rendered(template, it) for it in asked)
    assert times_rendered(template, *asked) == len(asked)


def test_a_value_that_looks_like_a_blank_fills_none(tmp_path: Path) -> None:
    template = template_of(tmp_path, "{{ purpose|upper }} {{ otp }}")
    assert times_rendered(template, *[data(purpose="\ue000")] * 4) == 4


def test_numbers_that_are_equal_and_print_differently_have_separate_variants(tmp_path: Path) -> None:
    template = template_of(tmp_path, "{{ userName }} {{ expiryMinutes * 1 }} {{ otp }}")
    asked = [data(userName=value, expiryMinutes=value) for value in (0.0, -0.0, 0, False, 1, 1.0, True)]
    times_rendered(template, *asked, *asked, *asked)


def test_a_long_text_makes_no_variant(tmp_path: Path) -> None:
    template = template_of(tmp_path, "{{ purpose|upper }} {{ otp }}")
    assert times_rendered(template, *[data(purpose="x" * 65)] * 4) == 4
    assert times_rendered(template, *[data(purpose="x" * 64)] * 4) == 2


def test_values_without_a_hash_are_rendered(tmp_path: Path) -> None:
    template = template_of(tmp_path, "{{ items|join }} {{ otp }}")
    assert times_rendered(template, *[data(items=["a", "b"])] * 3) == 3


def test_an_error_names_a_missing_value_with_variants_too(tmp_path: Path) -> None:
    template = template_of(tmp_path, "{{ team }} {{ otp }}")
    for _ in range(3):
        with pytest.raises(ComposeError, match="'team' is undefined; give it in metadata"):
            template.parts(data())
    assert template.parts(data(team="A")) == template.parts(data(team="A"))


def test_templates_that_include_each_other_have_no_variant(tmp_path: Path) -> None:
    inner = "{% if again %}{% include 'mine/body.html' %}{% endif %}"
    gc.collect()  # what other tests left would be finalised at the limit of recursion, and fail there
    template = template_of(tmp_path, "{{ otp }}{% include 'mine/inner.html' %}", inner=inner)
    assert times_rendered(template, *[data(again=False)] * 3) == 3


@pytest.mark.parametrize("brand", BRANDS, ids=["none", "Acme", "hostile"])
def test_built_in_templates_have_variants(brand: Brand) -> None:
    for template in SHIPPED:
        asked = [data(otp=f"{number:06}", userName="Ann", brand=brand) for number in range(9)]
        assert times_rendered(template, *asked) <= 2
    assert isinstance(SHIPPED[0].compiled, CompiledVariants)


@pytest.mark.parametrize("end", ["", "ü"], ids=["7bit", "quoted-printable"])
def test_a_value_that_one_line_prints_many_times_makes_it_too_long(tmp_path: Path, end: str) -> None:
    template = template_of(tmp_path, "{{ userName }}" * 20 + end)
    for length in (2, 2, 2, 44, 45, 46, 60, 100):
        asked = data(userName="A" * length)
        assert template.parts(asked) == rendered(template, asked)
        assert max(map(len, template.parts(asked)[2].content.split(b"\r\n"))) <= 900
