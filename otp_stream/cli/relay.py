"""`otp-stream relay`: requests to running workers about their mail relays.

Exits with 0 when every relay takes mail; with 1 when one does not, or a worker does not answer; with 2 for a wrong URL,
a relay that the worker does not use, and an `HTTP_TOKEN` that is missing or wrong.
"""

from typing import Annotated, Any
from urllib.parse import urlsplit

import requests
import typer

from otp_stream.bounded_http import bound
from otp_stream.urls import is_loopback

from . import output
from .output import AsJson
from .settings import read_settings

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_TIMEOUT_S = 40.0
"""The worker waits for its relay for 25 seconds."""
_MAX_RESPONSE = 1 << 20
_WRONG_INPUT = {403, 404}


@cli.callback()
def _about() -> None:
    """Make a running worker probe its mail relays."""


@cli.command()
def probe(
    workers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="HTTP address of each worker. Default: http://127.0.0.1:8000."),
    ] = None,
    relay: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Probe only this relay. Default: each relay that takes no mail."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make workers probe the relays that take no mail at once, instead of at the next scheduled probe.

    Needs HTTP_TOKEN: a token of the workers with the role operator. Name each worker. If workers share a Redis, one is
    enough: the others follow when its probe is accepted. Exits with 1 if a relay still takes no mail or a worker does
    not answer.
    """
    settings = read_settings()
    if settings.http_token is None:
        output.fail("HTTP_TOKEN: is not set; set it to a token of the workers whose role is operator")
    urls = [_checked(url) for url in workers or ["http://127.0.0.1:8000"]]
    for url in urls:
        _warn_if_readable(url)
    answers = [_ask(url, settings.http_token.get_secret_value(), relay) for url in urls]
    if as_json:
        output.write_json(answers)
    else:
        for answer in answers:
            _show(answer)
    wrong = any(answer["status"] in _WRONG_INPUT for answer in answers)
    raise typer.Exit(2 if wrong else 0 if all(answer["accepted"] for answer in answers) else 1)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:
        usable = False
    if not usable:
        output.fail(f"URL: must be the HTTP address of a worker, such as http://127.0.0.1:8000, not {url}")
    return url.rstrip("/")


def _warn_if_readable(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        text = f"{url}: HTTP_TOKEN is sent without TLS, so anyone in between can read it; use the https:// address"
        output.console.print(output.plain(f"{text} of a proxy"), style="yellow", soft_wrap=True)


def _ask(url: str, token: str, relay: str | None) -> dict[str, Any]:
    """Return what a worker answers: `accepted`, `relays`, and an `error` where it probed nothing."""
    answered: dict[str, Any] = {"url": url, "status": 0, "accepted": False, "relays": []}
    try:
        with bound(requests.Session(), _MAX_RESPONSE, _TIMEOUT_S) as session:
            session.trust_env = False  # .netrc must not replace the token, and no proxy is in front of a worker
            with output.console.status(f"{url} …"):
                answer = session.post(
                    f"{url}/probe",
                    data={"relay": relay} if relay else {},
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=_TIMEOUT_S,
                    allow_redirects=False,  # another host must not get the token
                )
    except (requests.RequestException, ValueError) as error:
        return answered | {"error": f"no answer ({type(error).__name__}); is a worker running there?"}
    answered["status"] = answer.status_code
    if answer.status_code != 200:
        text = answer.text.strip()[:200] or "no reason given"
        if answer.status_code == 403 and "has the role" not in text:
            text = "HTTP_TOKEN: the worker does not have this token, or has none"
        return answered | {"error": f"{text} (HTTP {answer.status_code})"}
    try:
        fields = answer.json()
        relays = [{name: str(it[name]) for name in ("relay", "result", "text")} for it in fields["relays"]]
        return answered | {"worker": str(fields["worker"]), "accepted": fields["accepted"] is True, "relays": relays}
    except (ValueError, LookupError, TypeError):
        return answered | {"error": "the server that answered is not a worker"}


def _show(answer: dict[str, Any]) -> None:
    if "error" in answer:
        output.console.print(output.plain(f"{answer['url']}: {answer['error']}"), style="red", soft_wrap=True)
    for it in answer["relays"]:
        output.results().print(output.plain(f"{answer['worker']}: {it['text']}"), soft_wrap=True)
