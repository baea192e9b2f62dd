"""`python tools/client_support.py FILE`: compare the table of mail programs in `lint` with newer data of caniemail.com.

FILE is `node_modules/caniemail/data/caniemail.json` after `npm install caniemail`.
"""

import json
import sys
from pathlib import Path

from otp_stream.mail.client_rules import ATTRIBUTES, ELEMENTS, STYLES

CLIENTS = {
    "Apple Mail": ("apple-mail", ("macos", "ios")),
    "Gmail": ("gmail", ("desktop-webmail", "ios", "android")),
    "Outlook": ("outlook", ("windows",)),
    "Yahoo": ("yahoo", ("desktop-webmail", "ios", "android")),
}


def main(file: str) -> int:
    """Print each difference; return their number."""
    data = json.loads(Path(file).read_text(encoding="utf-8"))
    features = {it["slug"]: it["stats"] for it in data["data"]}
    differences = 0
    for name, it in (STYLES | ELEMENTS | ATTRIBUTES).items():
        stats = features.get(it.slug, {})
        found = ", ".join(client for client, of in CLIENTS.items() if not _is_supported(stats.get(of[0], {}), of[1]))
        if found != it.clients:
            sys.stdout.write(f"{name} ({it.slug}): the table has {it.clients}, the data {found or 'none'}\n")
            differences += 1
    sys.stdout.write(f"data of {data['last_update_date']}: {differences} differences\n")
    return differences


def _is_supported(stats: dict[str, dict[str, str]], platforms: tuple[str, ...]) -> bool:
    """Return whether the newest release on any platform supports a feature, at least partially."""
    newest = [list(stats[it].values())[-1] for it in platforms if stats.get(it)]
    return any(it.startswith(("y", "a")) for it in newest)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1]), 1))
