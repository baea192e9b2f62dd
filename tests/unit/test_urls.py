"""No piece of a password in a URL is shown, however the URL is misread."""

import itertools
from pathlib import Path

import pytest

from otp_stream.settings import find_warnings, load
from otp_stream.urls import read_url, secrets_of, without_secrets

PIECES = ("Zq7x", "Kw9j", "Vy4f")
BETWEEN = [*"@/?#:[]%\\ ;,&=|^{}\"'<>`~!$*()+", "\n", "\t", "\u2100", "://", "@@", "%40", "/@", "#@", "?@", "[::1]"]
PASSWORDS = [
    a.join(PIECES[:2]) + (b + PIECES[2] if b else "")
    for a, b in itertools.product(BETWEEN, ["", *"@/?#:[]%"])
]  # fmt: skip
SCHEMES = {
    "RABBITMQ_URL": ("amqp", "amqps", "memory"),
    "REDIS_URL": ("redis", "rediss", "unix"),
    "SMTP_FALLBACK_URLS": ("smtp", "smtps"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("http", "https"),
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ("http",),
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": ("http",),
}
SHAPES = ("{scheme}://otp:{password}@host.example/", "{scheme}://:{password}@host.example:99/0", "{scheme}:{password}")


@pytest.fixture(autouse=True)
def _no_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(name: str, url: str) -> str:
    """Return all that is written of a setting's value, which must be nothing secret."""
    settings, problems = load(**({name.lower(): url} if not name.startswith("OTEL") else {}))
    texts = [*problems, *find_warnings(settings), str(settings.shown()), repr(settings), without_secrets(url)]
    return " ".join([*texts, settings.masked_rabbitmq_url, settings.masked_redis_url or ""])


@pytest.mark.parametrize("name", SCHEMES)
def test_no_piece_of_a_password_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # each kind of text between the pieces, alone and with what else ends a password too early
    for shape, password in zip(itertools.cycle(SHAPES[:2]), PASSWORDS[::5], strict=False):
        url = shape.format(scheme=SCHEMES[name][0], password=password)
        if name.startswith("OTEL"):
            monkeypatch.setenv(name, url)
        masked = shown(name, url)
        assert not [piece for piece in PIECES if piece.lower() in masked.lower()], (url, masked)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_url_is_read_as_it_was_meant_or_refused(password: str) -> None:
    try:
        parts = read_url(f"amqp://otp:{password}@host.example/v", {"amqp"}, "amqp://host")
    except ValueError:
        return
    assert (parts.hostname, parts.password, parts.path) == ("host.example", password, "/v")


def test_no_url_is_shown_with_a_piece_of_its_password() -> None:
    schemes = itertools.chain(*SCHEMES.values())
    for scheme, shape, password in itertools.product(schemes, SHAPES, PASSWORDS):
        masked = without_secrets(shape.format(scheme=scheme, password=password)).lower()
        assert not [piece for piece in PIECES if piece.lower() in masked], masked


def test_the_url_of_a_password_with_at_and_hash_is_refused_at_start() -> None:
    for url in ("amqp://otp:Se@cretWord#x@host/", "amqp://otp:Se@cretWord/x@host/", "amqp://otp:Se@cretWord?x@host/"):
        [problem] = load(rabbitmq_url=url)[1]
        assert problem.startswith("RABBITMQ_URL: is ambiguous; in a password write @")


@pytest.mark.parametrize(
    ("url", "as_shown"),
    [
        ("amqp://u:p@h:1/v", "amqp://u:***@h:1/v"),
        ("amqps://h/v?cert=secret", "amqps://h/v"),
        ("redis://secret@h/0", "redis://***@h/0"),
        ("redis://:secret@h", "redis://***@h"),
        ("unix:///run/a@b.sock?password=secret", "unix:///run/a@b.sock"),
        ("amqp://u:p@[::1]:5672/", "amqp://u:***@[::1]:5672/"),
        ("amqp://u:a@secret#x@h/", "amqp://***"),
        ("secret", "***"),
        ("", "***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, as_shown: str) -> None:
    assert without_secrets(url) == as_shown


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("amqp://guest:guest@mq", ()),
        ("amqp://otp@mq", ()),
        ("amqp://otp:a%2Fsecret@mq", ("a%2Fsecret", "a/secret")),
        ("redis://secret@redis", ("secret",)),
        ("redis://otp:secret@redis", ("secret",)),
        ("redis://redis/0?username=otp&password=a%2Fsecret", ("a/secret",)),
        ("redis://redis/0", ()),
    ],
)
def test_the_secrets_of_a_url_are_known_as_written_and_decoded(url: str, secrets: tuple[str, ...]) -> None:
    assert secrets_of(url) == secrets


def test_the_embedded_broker_listens_on_loopback_only() -> None:
    for host in ("0.0.0.0", "[::]", "10.0.0.1", "broker.example.com"):  # noqa: S104 - it is refused
        [problem] = load(rabbitmq_url=f"memory://{host}:5673")[1]
        assert problem.startswith("RABBITMQ_URL: memory:// accepts any user and password")
    for host in ("", "127.0.0.1", "localhost:5999", "[::1]:5999"):
        assert load(rabbitmq_url=f"memory://{host}")[1] == []
