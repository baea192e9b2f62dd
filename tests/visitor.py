"""A client of the pages that keeps one cookie, and the HTTP_TOKEN of the workers under test."""

import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

from worker import Worker

TOKEN = "correct-horse-battery"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


@dataclass
class Visitor:
    """A visitor of the pages of a worker."""

    worker: Worker
    cookie: str = ""
    opener: urllib.request.OpenerDirector = field(default_factory=lambda: urllib.request.build_opener(_NoRedirect))

    def get(self, path: str) -> str:
        return self.ask(path)[1]

    def ask(self, path: str, headers: dict[str, str] | None = None, **fields: str) -> tuple[int, str]:
        """Return status and body. With fields, sends a form."""
        data = urllib.parse.urlencode(fields).encode() if fields else None
        sent = {"Cookie": self.cookie} | (headers or {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.worker.port}{path}", data, sent)
        try:
            answer = self.opener.open(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.cookie = (answer.headers.get("Set-Cookie") or self.cookie).partition(";")[0]
            return answer.status or 0, answer.read().decode()

    def key(self) -> str:
        found = re.search(r'name="key" value="([0-9a-f]+)"', self.get("/dead"))
        return found.group(1) if found else ""
