"""Screenshots of e-mails on the command line."""

import struct
import zlib
from pathlib import Path

from cli import here

_PNG = b"\x89PNG\r\n\x1a\n"


def read_png(path: Path) -> tuple[int, int, bytes]:
    """Return width, height, and the colour of the first pixel, which no filter of PNG changes."""
    content, at, data = path.read_bytes(), 8, b""
    assert content.startswith(_PNG)
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        if content[at + 4 : at + 8] == b"IDAT":
            data += content[at + 8 : at + 8 + size]
        at += 12 + size
    return (*struct.unpack_from(">II", content, 16), zlib.decompress(data)[1:4])


def test_a_screenshot_shows_the_whole_email_in_light_or_dark_mode_at_a_width(tmp_path: Path) -> None:
    command = ("templates", "preview", "otp", "--png", "otp.png")
    logo = {"BRAND_NAME": "Acme", "BRAND_LOGO_URL": "https://acme.invalid/logo.png"}
    ran = here(tmp_path, *command, **logo)
    assert (ran.code, ran.out) == (0, "")
    width, height, colour = read_png(tmp_path / "otp.png")
    assert (width, colour.hex()) == (320, "f2f4f8")
    assert 500 < height < 1500
    assert here(tmp_path, *command, "--dark", "--width", "800", **logo).code == 0
    wide, lower, colour = read_png(tmp_path / "otp.png")
    assert (wide, colour.hex()) == (800, "0f1420")
    assert 300 < lower < height
