"""No setting shows a secret: not in the error for a wrong value, nor in the dump for the log, nor as text."""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
from leak_search import Leak, LeakSearch, marked
from pydantic import SecretStr

from otp_stream.app import assemble
from otp_stream.settings import Settings, load

SECRET = marked(24, chance=Random(11))  # noqa: S311 - the same in each process, as the names of the tests
SEARCH = LeakSearch({"secret": SECRET})
URLS = (
    "{}", "{}://host", "amqp://user:{}@host:port/", "amqp://user:{}", "amqp://user:{}@", "amqp://user:a/{}@host/",
    "amqp://user:a@{}@host/", "amqp://user:{}@host/#{}", "amqp://us er:{}@host/", "amqp://host/?password={}&x=1",
    "redis://:{}@host/x", "redis://:{}@host:99999/0", "redis://:a#{}@host/0", "rediss://host/0?ssl_password={}&x=1",
    "smtp://user:{}@host/path", "smtp://user:{}@host?tls=maybe", "smtp://{}@host", "smtp://user:{}@:587,smtp://a",
    "https://user:{}@host/token", "http://host/{}", "https://host:{}/", "https://ho st/?key={}",
)  # fmt: skip
TEXTS = (
    "{}\n{}", '"{}', "{}\x07", "{}é\ud800", "{{{}", '{{"keys": [{{"kty": "oct", "k": "{}"}}]}}',
    '{{"keys": [{{"kty": "oct", "k": "{}", "alg": "A128GCM", "kid": "{}"}}]}}', '[{{"kty": "{}"}}]', '"{}" -c "x',
    " ", "{} {}", "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", "Name <{}@a", "{}/10m", "u@{}@v",
)  # fmt: skip


def found_in(*outputs: object) -> list[Leak]:
    return SEARCH.find("\n".join(map(str, outputs)).encode(errors="replace"))


TEXT_SETTINGS = [name for name, it in Settings.model_fields.items() if "str" in str(it.annotation).lower()]


@pytest.mark.parametrize("name", TEXT_SETTINGS)
def test_an_error_quotes_nothing_of_a_wrong_value(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[object] = []
    for form in (*URLS, *TEXTS):
        value = form.replace("{}", SECRET).replace("{{", "{").replace("}}", "}")
        settings, problems = load(_env_file=None, worker=True, app_env="production", **{name: value})
        shown += problems
        if isinstance(getattr(settings, name), SecretStr):
            shown += repr(settings), str(settings), settings.shown()
    assert not found_in(*shown)


@pytest.mark.parametrize("name", ["smtp_pass", "secret_key", "http_token", "redis_url", "sealing_keys"])
@pytest.mark.parametrize("content", ["{0}\n{0}", "\xff\xfe{0}", "{0}" + "x" * 99_999, "\0{0}", "[{0}"], ids=range(5))
def test_the_error_of_a_secret_file_quotes_nothing_of_it(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(content.format(SECRET).encode("latin-1"))
    monkeypatch.setenv(f"{name.upper()}_FILE", str(tmp_path / "secret"))
    settings, problems = load(_env_file=None)
    assert not found_in(*problems, settings.shown(), repr(settings))


@pytest.mark.parametrize("form", ["{}", "{}/x+{}==", '{{"keys": [{{"k": "{}"}}]}}', "{}" * 200, "{}\0"])
@pytest.mark.parametrize("name", ["smtp_pass", "sealing_keys"])
def test_a_secret_in_place_of_its_file_is_not_shown(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = form.replace("{}", SECRET).replace("{{", "{").replace("}}", "}")
    if "\0" not in given:  # no variable can contain it
        monkeypatch.setenv(f"{name.upper()}_FILE", given)
        _, problems = load(_env_file=None)
        assert "and not the secret itself" in problems[0]
        assert not found_in(*problems)
    (tmp_path / "tenants.toml").write_text(f"[tenants.shop]\nsmtp_pass_file = {json.dumps(given)}\n")
    monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    parts = assemble(*load(_env_file=None, tenants_file=tmp_path / "tenants.toml"))
    assert "and not the secret itself" in str(parts.problems)
    assert not found_in(*parts.problems)


@pytest.mark.parametrize(
    "content",
    [
        "[tenants.shop]\nsmtp_pass = {}", '[tenants.shop]\nsmtp_host = "{}',
        '[tenants.shop]\n{} = "x"', '[tenants.shop]\nsmtp_oauth_token_url = "https://user:{}@host/x"',
        '[tenants.shop]\nsmtp_oauth_client_secret = ["{}"]', '[tenants]\nshop = "{}"', "{}",
        '[tenants.shop]\nsmtp_port = "{}"',
        '[tenants.shop]\nsmtp_host = "smtp://user:{}@host"',
    ],
)  # fmt: skip
def test_the_errors_of_the_tenants_file_quote_no_value(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(content.replace("{}", SECRET))
    settings, problems = load(_env_file=None, tenants_file=path)
    parts = assemble(settings, problems)
    assert parts.problems
    if not content.startswith(("{}", "[tenants.shop]\n{}")):  # the name of an unknown key is shown
        assert not found_in(*parts.problems)


def _secrets(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    names = ("amqp", "redis", "smtp", "fallback", "key", "token", "client", "refresh", "sealing", "tenant")
    marks = {name: marked(43 if name == "sealing" else 24) for name in names}
    (folder / "tenant").write_text(marks["tenant"])
    (folder / "tenants.toml").write_text(
        '[tenants.shop]\nsmtp_host = "127.0.0.1"\nsmtp_user = "u"\nsmtp_tls = "none"\nsmtp_pass_file = "tenant"\n'
    )
    marks["sealing"] = marks["sealing"][:-1] + "A"
    return marks, {
        "worker": True, "sender_email": "a@example.com", "smtp_host": "127.0.0.1", "smtp_user": "user",
        "smtp_pass": marks["smtp"], "smtp_tls": "none", "rabbitmq_url": f"amqp://user:{marks['amqp']}@127.0.0.1/",
        "redis_url": f"redis://:{marks['redis']}@127.0.0.1/0", "secret_key": marks["key"],
        "http_token": marks["token"], "tenants_file": folder / "tenants.toml",
        "smtp_fallback_urls": f"smtp://user:{marks['fallback']}@127.0.0.1?tls=none",
        "sealing_keys": json.dumps({"keys": [{"kty": "oct", "k": marks["sealing"], "kid": "k-1"}]}),
    }  # fmt: skip


@pytest.mark.parametrize("auth", ["login", "oauth2"])
async def test_no_part_of_a_worker_shows_a_secret_as_text(auth: str, tmp_path: Path) -> None:
    marks, values = _secrets(tmp_path)
    if auth == "oauth2":
        values |= {
            "smtp_auth": "oauth2", "smtp_oauth_token_url": "https://login.example.com/token",
            "smtp_oauth_client_id": "client", "smtp_oauth_client_secret": marks["client"],
            "smtp_oauth_refresh_token": marks["refresh"], "smtp_pass": None,
        }  # fmt: skip
    settings, problems = load(_env_file=None, **values)
    assert problems == []
    parts = assemble(settings)
    shown = [text for part in _reached(parts) for text in (repr(part), str(part))]
    assert len(shown) > 100
    assert LeakSearch(marks).find("\n".join([*shown, str(settings.shown())]).encode()) == []


def _reached(start: object) -> Iterator[object]:
    """Yield all objects of the package that hang on one, whatever their attributes are called."""
    seen: set[int] = set()
    left: list[object] = [start]
    while left:
        it = left.pop()
        if id(it) in seen:
            continue
        seen.add(id(it))
        ours = type(it).__module__.startswith("otp_stream")
        if ours:
            yield it
        if isinstance(it, Mapping):
            left += [*it.keys(), *it.values()]
        elif isinstance(it, list | tuple | set | frozenset):
            left += it
        elif ours or callable(it):
            slots = chain.from_iterable(getattr(kind, "__slots__", ()) for kind in type(it).__mro__)
            left += [getattr(it, name) for name in slots if hasattr(it, name)]
            left += getattr(it, "__dict__", {}).values()
            left += [cell.cell_contents for cell in getattr(it, "__closure__", None) or ()]
            left += [getattr(it, name) for name in ("__self__", "func", "args", "keywords") if hasattr(it, name)]
