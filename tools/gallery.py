"""Take screenshots of all built-in e-mails, and write docs/gallery.md: `make gallery`, in half a minute."""

import sys
import tempfile
from html import escape
from pathlib import Path

from browser import open_browser, resize, save_screenshot
from selenium import webdriver

from otp_stream.mail import Brand, Composer, MailIdentity
from otp_stream.mail.lint import sample_job
from otp_stream.mail.preview import Preview, preview

DOCS = Path(__file__).parent.parent / "docs"
IMAGES = DOCS / "images" / "gallery"
AT_MS = 1_772_721_125_000
"""2026-03-05 14:32:05 UTC."""
SAMPLES = {
    "en": {"name": "Ada Lovelace", "zone": "America/New_York", "place": "New York, USA", "device": "Chrome on Windows"},
    "de": {"name": "Grete Hermann", "zone": "Europe/Berlin", "place": "Berlin", "device": "Firefox auf Linux"},
    "ar": {"name": "ليلى حسن", "zone": "Asia/Riyadh", "place": "الرياض", "device": "Safari على iPhone"},
}
LANGUAGES = {"en": "English", "de": "German", "ar": "Arabic"}
BRAND = Brand(
    name="Acme", color="#d6336c", support="https://acme.example/help", footer=("Acme Inc., 1 Main Street, Springfield",)
)
_WIDTH = 1168
_INTRO = """\
# Gallery

The built-in e-mails as the invented company Acme sends them (`BRAND_NAME`, `BRAND_COLOR`, `BRAND_SUPPORT` and
`BRAND_FOOTER`), in three of the languages. Each screenshot shows one e-mail 320 and 800 pixels wide, in light and in
dark mode. To see them with your brand and templates, in every language, run
`otp-stream templates preview otp --locale ja --png otp.png`, or open the page `/templates` of a worker.
[templates.md](templates.md) explains how to change them.

`make gallery` takes these screenshots and writes this page. It needs Chromium and its driver, and uses the fonts of
your machine: here Liberation Sans, which is as wide as Arial, and DejaVu Sans for Arabic.
"""
_SHEET = """<!doctype html>
<meta charset="utf-8">
<style>
body {{ margin: 0; padding: 16px; background: #8b95a7; }}
div {{ display: flex; gap: 16px; align-items: stretch; }} div + div {{ margin-top: 16px; }}
iframe {{ border: 0; flex: none; }} .light {{ color-scheme: light; }} .dark {{ color-scheme: dark; }}
</style>
{rows}
"""
_FIT = """
for (const row of document.querySelectorAll("div")) {
  const frames = [...row.querySelectorAll("iframe")];
  const heights = frames.map((it) => it.contentDocument.documentElement.scrollHeight);
  for (const it of frames) it.style.height = `${Math.max(...heights)}px`;
}
return document.documentElement.scrollHeight;
"""


def emails() -> dict[tuple[str, str], Preview]:
    """Return every built-in e-mail in each language of the gallery."""
    identity = MailIdentity(
        sender=("Acme", "no-reply@acme.example"), templates_dir=None, default_locale="en", brand=BRAND
    )
    composer = Composer(identity, b"k" * 32)
    made: dict[tuple[str, str], Preview] = {}
    for template in composer.templates.names:
        for language, of in SAMPLES.items():
            metadata = {
                "template": template,
                "locale": language,
                "userName": of["name"],
                "purpose": "login",
                "expiryMinutes": 10,
                "timeZone": of["zone"],
                "request": {"place": of["place"], "device": of["device"]},
            }
            job = sample_job(metadata, AT_MS, code="480213")
            made[template, language] = preview(composer.compose(job).content)
    return made


def document(shown: dict[tuple[str, str], Preview]) -> str:
    """Return docs/gallery.md."""
    lines = [_INTRO]
    earlier = ""
    for (template, language), it in shown.items():
        if template != earlier:
            lines.append(f"## {template}\n")
        earlier = template
        text = "\n".join(line.rstrip() for line in it.text.strip().splitlines())
        lines += [
            f"### {template}, {LANGUAGES[language]}\n",
            f"Subject: **{it.subject}**\n",
            f"![{template} in {LANGUAGES[language]}](images/gallery/{image_name(template, language)})\n",
            f"<details><summary>Plain text</summary>\n\n```text\n{text}\n```\n\n</details>\n",
        ]
    return "\n".join(lines)


def image_name(template: str, language: str) -> str:
    """Return the file name of a screenshot."""
    return f"{template}-{language}.webp"


def main() -> None:
    """Write the page and its screenshots."""
    shown = emails()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for old in IMAGES.iterdir():
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="otp-gallery-", ignore_cleanup_errors=True) as folder:
        browser = open_browser(folder)
        try:
            for (template, language), it in shown.items():
                _take(browser, Path(folder) / "sheet.html", it.html, IMAGES / image_name(template, language))
        finally:
            browser.quit()
    (DOCS / "gallery.md").write_text(document(shown))
    sys.stdout.write(f"{len(shown)} screenshots, {sum(it.stat().st_size for it in IMAGES.iterdir()) // 1000} kB\n")


def _take(browser: webdriver.Chrome, sheet: Path, html: str, path: Path) -> None:
    # a frame's prefers-color-scheme is the color-scheme of its element
    frames = {
        scheme: "".join(
            f'<iframe class="{scheme}" width="{width}" sandbox="allow-same-origin" srcdoc="{escape(html)}"></iframe>'
            for width in (320, 800)
        )
        for scheme in ("light", "dark")
    }
    sheet.write_text(_SHEET.format(rows="\n".join(f"<div>{it}</div>" for it in frames.values())))
    resize(browser, _WIDTH, 1000)
    browser.get(sheet.as_uri())
    resize(browser, _WIDTH, browser.execute_script(_FIT))
    save_screenshot(browser, path)


if __name__ == "__main__":
    main()
