"""A brand's colours can be read wherever the built-in e-mails print text in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.mail import Brand
from otp_stream.mail.brand import DARK, LIGHT
from otp_stream.mail.contrast import AA, contrast
from otp_stream.mail.templates import BUILT_IN


@pytest.mark.parametrize(
    ("one", "other", "ratio"), [("#000", "#ffffff", 21.0), ("#777777", "#fff", 4.48), ("#fff", "#ffffff", 1.0)]
)
def test_contrast_is_that_of_wcag(one: str, other: str, ratio: float) -> None:
    assert round(contrast(one, other), 2) == ratio
    assert contrast(one, other) == contrast(other, one)


@given(st.from_regex(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})", fullmatch=True))
def test_text_in_the_colour_of_a_brand_has_enough_contrast(color: str) -> None:
    brand = Brand(color=color)
    assert all(contrast(brand.accent, ground) >= AA for ground in LIGHT)
    assert all(contrast(brand.accent_dark, ground) >= AA for ground in DARK)


def test_a_colour_with_enough_contrast_is_kept() -> None:
    assert Brand(color="#2f5fd0").accent == "#2f5fd0"
    assert Brand(color="#ffcc00").accent_dark == "#ffcc00"


def test_the_backgrounds_are_those_of_the_layout() -> None:
    light, _, dark = (BUILT_IN / "layout.html").read_text().partition("@media (prefers-color-scheme: dark)")
    assert all(f"background: {ground}" in light for ground in LIGHT)
    assert all(f"background: {ground}" in dark for ground in DARK)


@pytest.mark.parametrize(
    ("support", "contact"),
    [
        ("help@a.example", "help@a.example"),
        ("https://a.example/help/", "a.example/help"),
        ("+49 30 1", "+49 30 1"),
        ("", ""),
    ],
)
def test_a_contact_is_shown_without_the_scheme_of_a_url(support: str, contact: str) -> None:
    assert Brand(support=support).contact == contact
