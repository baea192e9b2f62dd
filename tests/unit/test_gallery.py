"""docs/gallery.md shows every built-in e-mail as it is now."""

import re

from gallery import DOCS, IMAGES, LANGUAGES, document, emails

from otp_stream.mail.templates import BUILT_IN

PAGE = (DOCS / "gallery.md").read_text()


def test_the_gallery_shows_every_built_in_email_in_three_languages() -> None:
    names = {it.parent.name for it in BUILT_IN.glob("*/subject.txt")}
    assert set(emails()) == {(name, language) for name in names for language in LANGUAGES}


def test_the_gallery_is_up_to_date() -> None:
    assert document(emails()) == PAGE, "stale: run `make gallery`"


def test_every_screenshot_of_the_gallery_exists_and_is_shown() -> None:
    shown = {DOCS / it for it in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE)}
    assert shown == set(IMAGES.iterdir())
    for path in shown:
        assert path.read_bytes()[8:12] == b"WEBP"
    assert sum(path.stat().st_size for path in shown) < 1_500_000
