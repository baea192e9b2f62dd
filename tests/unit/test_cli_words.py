"""Arguments that the commands for many jobs refuse, and what they ask before they publish."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from otp_stream.cli import demo, output
from otp_stream.cli.main import cli
from otp_stream.settings import load


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RABBITMQ_URL", "amqp://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("send",), "EMAIL: is required unless you pass --file"),
        (("send", "a@b.c", "--file", "x"), "--file: its lines are whole jobs"),
        (("send", "--file", "missing.jsonl"), "missing.jsonl cannot be read: No such file"),
        (("load", "--recipient", "nobody"), "--recipient: must be one e-mail address"),
        (("load", "--svg", "missing/x.svg"), "--svg: there is no folder missing"),
        (("load", "--count", "1000001"), "--count"),
        (("livecheck", "nobody"), "RECIPIENT: must be one e-mail address"),
        (("livecheck", "a@b.c", "--listen", "2525"), "--listen: must be HOST:PORT"),
        (("livecheck", "a@b.c", "--listen", "192.0.2.1:2525"), "--listen: cannot listen at 192.0.2.1:2525"),
        (("livecheck", "a@b.c", "--metrics-port", "9000", "--metrics-host", "192.0.2.1"), "--metrics-port: cannot"),
    ],
)
def test_invalid_arguments_are_refused_with_their_fix(arguments: tuple[str, ...], text: str) -> None:
    ran = CliRunner().invoke(cli, arguments)
    assert ran.exit_code == 2
    assert text in ran.stderr


@pytest.mark.parametrize(
    ("env", "recipient", "text"),
    [
        ({"SMTP_HOST": "mail.example.net"}, "x@example.com", "the relay mail.example.net"),
        ({}, "x@example.com", "the worker's relay, which is unknown here"),
        ({"SMTP_HOST": "localhost"}, "load{n}@gmail.com", "recipients at gmail.com"),
        ({"SMTP_HOST": "localhost"}, "load@notexample.com", "recipients at notexample.com"),
        ({"SMTP_HOST": "localhost", "RABBITMQ_URL": "amqp://u:hunter2@mq.example.net"}, "x@a.test", "the broker mq.ex"),
        ({"SMTP_HOST": "localhost", "SMTP_FALLBACK_URLS": "smtps://u:hunter2@b.example.net"}, "x@a.test", "relay b.ex"),
    ],
)
def test_a_load_test_asks_before_it_sends_real_mail(env: dict[str, str], recipient: str, text: str) -> None:
    ran = CliRunner(env=env).invoke(cli, ("load", "--recipient", recipient))
    assert ran.exit_code == 1
    assert "This may send real mail: it uses " in ran.stderr
    assert text in ran.stderr
    assert "hunter2" not in ran.stderr


@pytest.mark.parametrize("arguments", [("load", "--yes"), ("livecheck", "a@b.c")])
def test_a_command_that_needs_events_is_refused_without_them(arguments: tuple[str, ...]) -> None:
    ran = CliRunner(env={"SMTP_HOST": "localhost", "EVENTS": "false"}).invoke(cli, arguments)
    assert ran.exit_code == 2
    assert "EVENTS=false: workers publish no events" in ran.stderr


def test_a_load_test_on_this_machine_asks_nothing() -> None:
    ran = CliRunner(env={"SMTP_HOST": "localhost"}).invoke(cli, ("load", "--count", "1"))
    assert ran.exit_code == 1
    assert "real mail" not in ran.stderr
    assert "does not answer" in ran.stderr


def test_text_of_other_origin_is_no_markup_and_controls_no_terminal() -> None:
    assert output.plain("[/x] [red]a\x1b[2J\x9bb\u202e\n é").plain == "[/x] [red]a\ufffd[2J\ufffdb\ufffd\n é"
    assert output.table("N", [("[/odd]", "1")], "Name").columns[0]._cells[0].plain == "[/odd]"  # type: ignore[union-attr]


def test_json_has_no_characters_that_control_a_terminal_and_is_read_as_it_was() -> None:
    value = {"a\x9bb": ["\u202e\x7f\x1b", "\U000e0001 é \U0001f600\n"]}
    for text in (output.as_json(value), output.as_json(value, indent=2)):
        assert text.replace("\n", "").isprintable()
        assert "é \U0001f600" in text
        assert json.loads(text) == value
    assert output.as_json("\ud800").encode() == b'"\\ud800"'


def test_lines_are_not_wrapped_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output.results().width > 1000
    monkeypatch.setenv("COLUMNS", "70")
    assert output.results().width == 70


def test_the_demo_uses_no_server_of_an_env_file(tmp_path: Path) -> None:
    real = {"RABBITMQ_URL": "amqp://u:p@mq.example.net/", "REDIS_URL": "redis://redis.example.net/0"}
    real |= {"SMTP_FALLBACK_URLS": "smtps://u:p@relay.example.net", "SMTP_HOST": "relay.example.net"}
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in real.items()))
    made = demo.make(port=0, samples=False, log_level="info").app
    assert made.problems == []
    assert "example.net" not in str(made.settings.shown())
    assert (made.settings.redis_url, made.settings.fallbacks) == (None, [])


def test_the_demo_writes_a_missing_secret_key_and_keeps_it(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    first, second = (demo.make(port=0, samples=False, log_level="info").app.settings for _ in range(2))
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert len(env.read_text().split()) == 1
    assert first.secret_key is not None
    assert first.hash_key == second.hash_key == load()[0].hash_key
    env.write_text("SENDER_EMAIL=a@example.com\nSECRET_KEY=\nLOG_LEVEL=info")
    third = demo.make(port=0, samples=False, log_level="info").app.settings
    assert third.secret_key not in (None, first.secret_key)
    assert load()[0].sender_email == "a@example.com"
    env.write_text("SECRET_KEY=short\n")
    assert demo.make(port=0, samples=False, log_level="info").app.problems[0].startswith("SECRET_KEY: ")
    assert env.read_text() == "SECRET_KEY=short\n"


def test_the_demo_runs_in_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert demo.make(port=0, samples=False, log_level="info").app.problems == []


@pytest.mark.parametrize(
    ("words", "key"),
    [(("asyncapi", "--json"), "asyncapi"), (("templates", "preview", "otp", "--json"), "subject")],
)
def test_programs_get_json(words: tuple[str, ...], key: str) -> None:
    assert key in json.loads(CliRunner().invoke(cli, words).stdout)


@pytest.mark.parametrize(
    ("started", "path", "shown"),
    [
        ("bin/otp-stream", "/usr/bin", "bin/otp-stream"),
        ("bin/faststream", "/usr/bin", "bin/otp-stream"),
        ("{cwd}/bin/otp-stream", "/usr/bin", "bin/otp-stream"),
        ("{cwd}/bin/otp-stream", "{cwd}/bin", "otp-stream"),
        ("{root}/elsewhere/otp-stream", "{cwd}/bin", "{root}/elsewhere/otp-stream"),
        ("missing/otp-stream", "{cwd}/bin", "otp-stream"),
    ],
)
def test_the_demo_names_the_command_that_the_shell_finds(
    started: str, path: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for folder in (here / "bin", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "otp-stream").touch(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.argv", [started.format(cwd=here, root=tmp_path), "demo"])
    monkeypatch.setenv("PATH", path.format(cwd=here))
    assert demo.command() == shown.format(cwd=here, root=tmp_path)
