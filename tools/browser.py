"""Chromium for the screenshots of the docs."""

import base64
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_QUALITY = 80


def open_browser(folder: str) -> webdriver.Chrome:
    """Start Chromium with a profile in `folder`."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/chromium"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Set the size of the page in pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def save_screenshot(browser: webdriver.Chrome, path: Path) -> None:
    """Write what the browser shows as WebP."""
    content = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": _QUALITY})
    path.write_bytes(base64.b64decode(content["data"]))
