"""Takes screenshots of an e-mail with Chromium or Chrome, which runs no script of it and loads nothing."""

import os
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
"""The programs that are searched for in PATH."""
_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
_TIMEOUT_S = 60
_MAX_HEIGHT = 16_000
"""Pixels; Chromium takes no larger screenshot."""
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Chromium derives prefers-color-scheme in a frame from the frame's color-scheme. The frame inherits the policy.
_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="content-security-policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title></title>
<style>
body {{ margin: 0; }}
iframe {{ display: block; width: {width}px; height: {height}px; border: 0; background: #fff; color-scheme: {scheme}; }}
</style>
<iframe sandbox="allow-same-origin" srcdoc="{html}"></iframe>
<script>
addEventListener("load", () => {{
  document.title = document.querySelector("iframe").contentDocument.documentElement.scrollHeight;
}});
</script>
"""
_HEIGHT = re.compile(rb"<title>(\d+)</title>")


class ScreenshotError(Exception):
    """No screenshot can be taken; the text contains the fix."""


def take_screenshot(html: str, *, width: int, dark: bool, browser: str | None = None) -> bytes:
    """Return a PNG of a whole HTML body at this width in pixels. Raises `ScreenshotError`."""
    program = _find(browser)
    # Chromium's helper processes may still write into the profile
    with TemporaryDirectory(prefix="otp-screenshot-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        measured = _HEIGHT.search(_run(program, folder, html, width, 1, dark=dark, out="--dump-dom"))
        if measured is None:
            raise ScreenshotError(f"{program} does not show the e-mail; try another browser with --browser")
        height = min(int(measured[1]), _MAX_HEIGHT)
        screenshot = folder / "screenshot.png"
        _run(program, folder, html, width, height, dark=dark, out=f"--screenshot={screenshot}")
        if not screenshot.is_file():
            raise ScreenshotError(f"{program} has written no screenshot; try another browser with --browser")
        return screenshot.read_bytes()


def _find(browser: str | None) -> str:
    names = (browser,) if browser else (*NAMES, _MACOS)
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        where = f"{browser} is not a program" if browser else "there is no Chromium or Chrome in PATH"
        raise ScreenshotError(f"{where}; install one, or name it with --browser PATH")
    return found


def _run(program: str, folder: Path, html: str, width: int, height: int, *, dark: bool, out: str) -> bytes:
    page, output, errors = (folder / it for it in ("page.html", "output", "errors"))
    scheme = "dark" if dark else "light"
    page.write_text(_PAGE.format(width=width, height=height, scheme=scheme, html=escape(html)), "utf-8")
    # root may not use Chromium's own sandbox, and in containers people often are root
    flags = [*_FLAGS, *(["--no-sandbox"] if _is_root() else [])]
    command = [program, *flags, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", out]
    try:
        # files, because helper processes may keep pipes open
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            code = subprocess.run(  # noqa: S603 - the operator's own browser
                [*command, page.as_uri()],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                timeout=_TIMEOUT_S,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired:
        raise ScreenshotError(f"{program} has not taken the screenshot within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise ScreenshotError(f"{program} cannot be started ({error.strerror})") from None
    if code:
        lines = errors.read_text("utf-8", "replace").split("\n")
        last = next((it.strip() for it in reversed(lines) if it.strip()), "no message")
        raise ScreenshotError(f"{program} exited with status {code}: {last[:300]}")
    return output.read_bytes()


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
