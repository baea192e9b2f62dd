"""A token server (RFC 6749) that checks every field of a request, and grants tokens that end."""

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any, Self
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.jwk import RSAKey
from rabbitmq import free_port

CLIENT = {"client_id": "otp-client", "client_secret": "s3cret/of+the client"}
SCOPE = "https://outlook.example/.default"
REFRESH_TOKEN = "refresh-0"
SERVICE = "otp@project.iam.example"


@dataclass
class TokenServer:
    """Grants `token-1`, `token-2`, …, each for `life_s` seconds."""

    life_s: float = 3600
    user: str = "otp@example.com"
    client: dict[str, str] = field(default_factory=CLIENT.copy)
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "key-1"}))
    answers: deque[tuple[int, bytes]] = field(default_factory=deque)
    """What to answer to the next requests instead."""
    requests: list[dict[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request."""
    quotes_body: bool = False
    """Whether a refusal quotes the request's body."""
    quotes_path: bool = False
    """Whether a refusal quotes the request's path, with its query."""
    revoked: set[str] = field(default_factory=set)
    delay_s: float = 0
    _ends: dict[str, float] = field(default_factory=dict)
    refresh_token: str = REFRESH_TOKEN
    _server: ThreadingHTTPServer | None = None
    _port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/oauth2/token"

    @property
    def granted(self) -> int:
        return len(self._ends)

    def granted_as(self, token: str) -> None:
        """Let relays accept a token of `answers`."""
        self._ends[token] = monotonic() + self.life_s

    def is_valid(self, token: str) -> bool:
        """Return whether a relay accepts this token now."""
        return token not in self.revoked and self._ends.get(token, 0) > monotonic()

    def service_account(self) -> str:
        """Return a key file as Google writes it."""
        return json.dumps(
            {
                "type": "service_account", "private_key_id": "key-1",
                "private_key": self.key.as_pem(private=True).decode(), "client_email": SERVICE, "token_uri": self.url,
            }
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                form = {name: value for name, (value,) in parse_qs(body, strict_parsing=True).items()}
                server.headers.append(dict(self.headers))
                status, answer = server._answer(self.path, self.headers.get_content_type(), form, body)
                self.send_response(status)
                self.send_header("content-type", "application/json")
                if status == 302:
                    self.send_header("location", server.url)
                self.end_headers()
                self.wfile.write(answer)

            def do_GET(self) -> None:
                """Report whether a token is valid, to a relay that asks by HTTP."""
                token = self.headers["authorization"].removeprefix("Bearer ")
                valid = server.is_valid(token)
                self.send_response(200 if valid else 401)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps({"active": True, "email": server.user} if valid else {}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._port = self._port or free_port()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True, args=(0.01,)).start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, path: str, kind: str, form: dict[str, str], body: str) -> tuple[int, bytes]:
        self.requests.append(form)
        threading.Event().wait(self.delay_s)
        if self.answers:
            return self.answers.popleft()
        error = (
            self._refusal(form) if (path, kind) == ("/oauth2/token", "application/x-www-form-urlencoded") else "path"
        )
        if error:
            quoted = path if self.quotes_path else body if self.quotes_body else form
            return 400, json.dumps({"error": error, "error_description": f"AADSTS7000: {quoted}"}).encode()
        token = f"token-{len(self._ends) + 1}"
        self._ends[token] = monotonic() + self.life_s
        answer: dict[str, Any] = {"access_token": token, "token_type": "Bearer", "expires_in": self.life_s}
        if form["grant_type"] == "refresh_token":
            self.refresh_token = answer["refresh_token"] = f"refresh-{len(self._ends)}"
        return 200, json.dumps(answer).encode()

    def _refusal(self, form: dict[str, str]) -> str | None:
        grant = form.get("grant_type", "")
        if form.get("scope") != SCOPE:
            return "invalid_scope"
        match grant:
            case "client_credentials":
                return None if form == {**self.client, "grant_type": grant, "scope": SCOPE} else "invalid_client"
            case "refresh_token":
                right = {**self.client, "grant_type": grant, "scope": SCOPE, "refresh_token": self.refresh_token}
                return None if form == right else "invalid_grant"
            case "urn:ietf:params:oauth:grant-type:jwt-bearer":
                claims = jwt.decode(form["assertion"], self.key, algorithms=["RS256"]).claims
                right = {"iss": SERVICE, "sub": self.user, "aud": self.url}
                return None if {name: claims.get(name) for name in right} == right else "invalid_grant"
            case _:
                return "unsupported_grant_type"
