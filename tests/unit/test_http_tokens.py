"""HTTP_TOKENS_FILE: what it may contain, what is refused with which fix, and that it is read again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from otp_stream.cli.main import cli
from otp_stream.core.http_token import digest_of, find_token
from otp_stream.settings import Settings, WatchedHttpTokens, find_problems, load, read_http_tokens, watched_http_tokens

SECRET = "b71f0c93ad5e2846"
OTHER = "3d92e8a4c05b761f"
HASHED = f"sha256:{digest_of(OTHER).hex()}"
Write = Callable[[str], Settings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    path = tmp_path / "tokens.toml"

    def settings(content: str, **more: str) -> Settings:
        path.write_text(content)
        found, problems = load(http_tokens_file=path, secret_key="f4b1d7a0c3e95826", **more)
        assert problems == []
        return found

    return settings


def ada(fields: str = f'token = "{SECRET}"', role: str = "operator") -> str:
    return f'[tokens.ada]\nrole = "{role}"\n{fields}\n'


def test_a_token_or_its_hash_is_accepted_until_it_expires(write: Write) -> None:
    content = ada(f'token = "{HASHED}"\nexpires = 2027-01-31') + f'[tokens.vic]\nrole = "viewer"\ntoken = "{SECRET}"\n'
    tokens, problems = read_http_tokens(write(content))
    assert problems == []
    assert [(it.name, it.role) for it in tokens] == [("ada", "operator"), ("vic", "viewer")]
    assert find_token(tokens, SECRET, 0) is tokens[1]
    assert find_token(tokens, OTHER, 1_801_353_599_999) is tokens[0]
    assert find_token(tokens, OTHER, 1_801_353_600_000) is None  # 2027-01-31T00:00:00Z
    assert find_token(tokens, HASHED, 0) is None
    assert find_token(tokens, "", 0) is None
    assert find_token(tokens, "\ud800", 0) is None
    assert SECRET not in repr(tokens)


def test_the_token_of_http_token_stays_and_is_an_operators(write: Write) -> None:
    tokens, _ = read_http_tokens(write(ada(), http_token=OTHER))
    assert [(it.name, it.role) for it in tokens] == [("token", "operator"), ("ada", "operator")]
    assert read_http_tokens(Settings.model_construct()) == ((), [])


def test_a_file_may_list_no_token(write: Write) -> None:
    assert read_http_tokens(write("[tokens]\n")) == ((), [])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "must have tables such as [tokens.ada] and nothing else"),
        ("tokens = 1", "must have tables such as [tokens.ada]"),
        (f'[tokens]\nada = "{SECRET}"', "[tokens.ada] must be a table with role and token"),
        (ada() + "[more]\n", "and nothing else"),
        (f'[tokens."{SECRET} "]\nrole = "viewer"', "entry 1: its name must have 1 to 64 letters, digits and"),
        (ada() + f'[tokens.token]\nrole = "viewer"\ntoken = "{OTHER}"', "entry 2: its name must have"),
        (ada() + f'[tokens.intake]\nrole = "producer"\ntoken = "{OTHER}"', "and not be token or intake"),
        (ada(f'token = "{SECRET}"\ntenant = "shop"'), '[tokens.ada] tenant: needs role = "producer"'),
        (ada(f'token = "{SECRET}"\ntenant = ""', "producer"), "tenant: must be the name of a tenant"),
        (ada(f'token = "{SECRET}"\ntenant = "default"', "producer"), "tenant: must be the name of a tenant"),
        (ada(f'token = "{SECRET}"\ntenant = ["shop"]', "producer"), "tenant: must be the name of a tenant"),
        (ada("", "viewer"), "[tokens.ada] token: is required, as text; otp-stream tokens new NAME makes one"),
        (ada("token = 1234567890123456"), "[tokens.ada] token: is required, as text"),
        (ada(role="admin"), '[tokens.ada] role: must be "viewer", "operator" or "producer"'),
        (f'[tokens.ada]\ntoken = "{SECRET}"', '[tokens.ada] role: must be "viewer", "operator" or "producer"'),
        (ada('token = "b71f0c93ad5e284"'), "[tokens.ada] token: must have 16 ASCII characters or more"),
        (ada('token = "b71f0c93ad5e284é"'), "[tokens.ada] token: must have 16 ASCII"),
        (ada('token = "b71f0c93 ad5e2846"'), "without spaces"),
        (ada('token = "passwordpassword"'), "[tokens.ada] token: is guessable"),
        (ada(f'token = "sha256:{digest_of("").hex()}"'), "[tokens.ada] token: is the hash of an empty text"),
        (ada('token = "sha256:123"'), "token: must have 64 hexadecimal digits after sha256:"),
        (ada(f'token = "{SECRET}"\n{SECRET} = 1'), "has a key other than role, token, expires, user_header and tenant"),
        (ada(f'token = "{SECRET}"\nexpires = "2027"'), "expires: must be a date, such as 2027-01-31, or a time with"),
        (ada(f'token = "{SECRET}"\nexpires = 2027-01-31T18:00:00'), "expires: must be a date"),
        (ada(f'token = "{SECRET}"\nuser_header = "X User"'), "user_header: must be the name of a header"),
        (ada() + f'[tokens.bob]\nrole = "viewer"\ntoken = "sha256:{digest_of(SECRET).hex()}"', "same as that of ada"),
        (f"{SECRET} = {SECRET}", "is not valid TOML (at line 1, column 20)"),
        (f"[tokens.{SECRET}]\n[tokens.{SECRET}]", "is not valid TOML (at"),
        ("".join(f'[tokens.a{number}]\nrole = "viewer"\n' for number in range(1_001)), "more than 1000 tokens"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained_without_quoting_a_token(
    write: Write, content: str, problem: str
) -> None:
    tokens, problems = read_http_tokens(write(content))
    assert tokens == ()
    assert problem in problems[0]
    assert problems[0].startswith("HTTP_TOKENS_FILE: ")
    assert SECRET not in " ".join(problems)


def test_the_token_of_http_token_must_not_be_listed_again(write: Write) -> None:
    tokens, problems = read_http_tokens(write(ada(), http_token=SECRET))
    assert [it.name for it in tokens] == ["token"]
    assert "is the same as that of HTTP_TOKEN" in problems[0]


def test_a_producers_token_opens_no_page_and_a_users_sends_no_job(write: Write) -> None:
    tokens = f'[tokens.shop]\nrole = "producer"\ntoken = "{OTHER}"\ntenant = 17\n'
    settings = write(ada() + tokens, intake_token=" a95e7c20d8b41f36, 0fc3d8e7561b2a94 ")
    watched = WatchedHttpTokens(settings)
    assert [it.name for it in watched.users] == ["ada"]
    assert [(it.name, it.tenant) for it in watched.producers(settings)] == [
        ("intake", ""),
        ("intake", ""),
        ("shop", "17"),
    ]
    found = find_token(watched.producers(settings), "0fc3d8e7561b2a94", 0)
    assert found is not None
    assert found.role == "producer"


def test_a_token_of_intake_token_must_not_be_listed_again(write: Write) -> None:
    _, problems = read_http_tokens(write(ada(role="producer"), intake_token=f"{OTHER},{SECRET}"))
    assert "is the same as that of INTAKE_TOKEN" in problems[0]


@pytest.mark.parametrize("value", [SECRET, SECRET * 20])
def test_a_token_in_place_of_the_name_of_the_file_is_not_quoted(value: str) -> None:
    settings, problems = load(http_tokens_file=value)
    (problem,) = (it for it in problems if it.startswith("HTTP_TOKENS_FILE"))
    assert "must be the path of a file" in problem
    assert SECRET not in problem
    assert read_http_tokens(settings) == ((), [])


def test_the_file_must_exist_and_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the `.env` that `make run` writes has a key
    settings, problems = load(http_tokens_file=tmp_path / "none.toml")
    assert f"HTTP_TOKENS_FILE: does not exist: {tmp_path / 'none.toml'}" in problems
    assert any(it.startswith("SECRET_KEY: is required with HTTP_TOKENS_FILE") for it in problems)
    assert read_http_tokens(settings) == ((), [])
    assert not [it for it in find_problems(Settings.model_construct()) if "SECRET_KEY" in it]


async def test_a_changed_file_is_used_and_one_that_cannot_be_used_changes_nothing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watched_http_tokens, "SETTLE_S", 0.0)
    settings = write(ada())
    watched = WatchedHttpTokens(settings)
    path = tmp_path / "tokens.toml"
    assert watched.watched
    await watched.refresh()
    assert capsys.readouterr().out == ""
    for broken in ("[tokens", None, ""):
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        for _ in range(2):
            await watched.refresh()
        assert [it.name for it in watched.current] == ["ada"]
        assert capsys.readouterr().out.count("HTTP_TOKENS_FILE cannot be used: the earlier tokens stay in use") == 1
    path.write_text(ada(role="viewer") + f'[tokens.bob]\nrole = "viewer"\ntoken = "{OTHER}"')
    await watched.refresh()
    assert [(it.name, it.role) for it in watched.current] == [("ada", "viewer"), ("bob", "viewer")]
    logged = capsys.readouterr().out
    assert "HTTP_TOKENS_FILE has changed" in logged
    assert "added=['bob'] changed=['ada'] removed=[] tokens=2" in logged
    assert SECRET not in logged
    path.write_text("[tokens]")
    await watched.refresh()
    assert watched.current == ()


async def test_a_file_that_is_being_written_is_read_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_http_tokens, "SETTLE_S", 0.0)
    settings = write(ada())
    watched = WatchedHttpTokens(settings)
    path = tmp_path / "tokens.toml"

    def read(_: Settings) -> object:
        path.write_text(ada() + f'[tokens.bob]\nrole = "viewer"\ntoken = "{OTHER}"')
        return read_http_tokens(settings)

    path.write_text("[tokens]")
    with monkeypatch.context() as patch:
        patch.setattr(watched_http_tokens, "read_http_tokens", read)
        await watched.refresh()
    assert [it.name for it in watched.current] == ["ada"]
    await watched.refresh()
    assert [it.name for it in watched.current] == ["ada", "bob"]


def test_the_command_makes_a_token_and_its_entry(write: Write) -> None:
    ran = CliRunner().invoke(cli, ("tokens", "new", "ada@example.com", "--role", "viewer", "--expires", "2999-01-31"))
    assert ran.exit_code == 0
    token, entry = ran.stdout.strip(), ran.stderr.rpartition("\n\n")[2]
    assert token not in ran.stderr
    assert len(token) == 64
    tokens, problems = read_http_tokens(write(entry))
    assert problems == []
    assert [(it.name, it.role) for it in tokens] == [("ada@example.com", "viewer")]
    assert find_token(tokens, token, 0) is tokens[0]
    assert find_token(tokens, token, 32_500_000_000_000) is None
    made = json.loads(CliRunner().invoke(cli, ("tokens", "new", "bot", "--json")).stdout)
    assert made["token"] != token
    assert read_http_tokens(write(made["entry"]))[0][0].role == "viewer"
    words = ("tokens", "new", "shop", "--role", "producer", "--tenant", 'a "b"', "--json")
    made = json.loads(CliRunner().invoke(cli, words).stdout)
    assert read_http_tokens(write(made["entry"]))[0][0].tenant == 'a "b"'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("shop", "--tenant", "shop-17"), "--tenant: must be the name of a tenant, and needs --role producer"),
        (("a b",), "NAME: must have 1 to 64 letters"),
        (("token",), "and not be token"),
        (("ada", "--expires", "soon"), "--expires: must be a date"),
        (("ada", "--role", "admin"), "--role"),
    ],
)
def test_the_command_refuses_bad_input(arguments: tuple[str, ...], text: str) -> None:
    ran = CliRunner().invoke(cli, ("tokens", "new", *arguments))
    assert ran.exit_code == 2
    assert text in ran.stderr
