"""`otp-stream templates` and `otp-stream asyncapi`, as a person uses them."""

import email
import email.policy
import json
import socket
from pathlib import Path

import pytest
from cli import here, otp_stream

from otp_stream.cli import settings as cli_settings
from otp_stream.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """Make a folder with a subject, a layout and an additional template."""
    for name, content in {
        "otp/subject.txt": "Our code for you",
        "otp/fr/body.txt": "Votre code : {{ otp }} ({{ validUntil }})",
        "layout.html": '<html lang="en">{{ otp }}',
        "invite/subject.txt": "Come",
        "invite/body.txt": "{{ team }} {{ otp }} {{ validUntil }}",
        "invite/body.html": '<html lang="en">{{ otp }} {{ validUntil }}',
    }.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return {"TEMPLATES_DIR": str(tmp_path / "own")}


HOSTILE = '<html lang="en"><style data-inline>p{color:red}</style><body>{{ otp }}' + "<b>" * 20_000


@pytest.fixture
def hostile(own: dict[str, str]) -> dict[str, str]:
    """Add a file that overflows the stack of the process that compiles it."""
    Path(own["TEMPLATES_DIR"], "otp/body.html").write_text(HOSTILE)
    return own


@pytest.mark.parametrize("command", [("lint",), ("preview", "otp"), ("list",)])
async def test_a_file_that_crashes_its_compilation_is_reported(
    tmp_path: Path, hostile: dict[str, str], command: tuple[str, ...]
) -> None:
    ran = await otp_stream(tmp_path, "templates", *command, **hostile)
    assert ran.code == 1
    assert "crashes the process; nest HTML and Jinja less deeply" in ran.out


def test_templates_are_listed_with_where_each_file_is_from(tmp_path: Path, own: dict[str, str]) -> None:
    ran = here(tmp_path, "templates", "list", "--json", **own)
    assert ran.code == 0
    report = json.loads(ran.out)
    files = {(it["template"], it["locale"]): it["files"] for it in report["templates"]}
    assert files["otp", "fr"] == {
        "subject.txt": {"file": "otp/subject.txt", "own": False},  # ours in English is not translated
        "body.txt": {"file": "otp/fr/body.txt", "own": True},
        "body.html": {"file": "otp/body.html", "own": False},
    }
    assert files["otp", "en"]["subject.txt"] == {"file": "otp/subject.txt", "own": True}
    assert files["otp", "de"]["subject.txt"] == {"file": "otp/subject.txt", "own": False}
    assert files.keys() >= {("invite", None), ("welcome", "de")}
    shared = {it["file"]: it["own"] for it in report["shared"]}
    assert shared == {"layout.html": True, "layout.txt": False, "code.html": False, "code.txt": False}
    shown = here(tmp_path, "templates", "list", **own).out
    assert "otp/fr *" in shown
    assert "Shared by all: code.html, code.txt, layout.html *, layout.txt" in shown


def test_a_preview_is_what_the_worker_would_send(tmp_path: Path, own: dict[str, str]) -> None:
    text = here(tmp_path, "templates", "preview", "welcome", "--locale", "de-AT", "--data", "userName=Zoë")
    assert text.code == 0
    assert text.out.startswith("Subject: Bitte bestätigen Sie Ihre E-Mail-Adresse\n\nGuten Tag, Zoë!\n")
    html = here(tmp_path, "templates", "preview", "otp", "--format", "html", **own)
    assert html.out.strip() == '<html lang="en">123456'
    out = tmp_path / "mail.eml"
    sender = {"SENDER_EMAIL": "Shop <no-reply@shop.example>"}
    ran = here(tmp_path, "templates", "preview", "otp", "--format", "eml", "--out", str(out), **sender)
    assert (ran.code, ran.out) == (0, "")
    message = email.message_from_bytes(out.read_bytes(), policy=email.policy.default)
    assert message["from"] == "Shop <no-reply@shop.example>"
    assert not message.defects


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nope",), 2, "NAME: there is no template nope; known: invite, otp, password_reset, welcome"),
        (("../x",), 2, "NAME: must consist of"),
        (("otp", "--data", "team"), 2, "--data: must look like KEY=VALUE"),
        (("otp", "--data", "expiryMinutes=soon"), 2, "--data expiryMinutes"),
        (("otp", "--out", "no/such/folder"), 2, "--out: "),
        (("invite",), 1, "template invite/body.txt, line 1: 'team' is undefined; give it with --data"),
        (("invite", "--data", "team=A"), 0, "A 123456"),
        (("welcome", "--data", "locale=de"), 0, "Subject: Bitte bestätigen Sie"),
    ],
)
def test_a_preview_that_fails_names_the_fix(
    tmp_path: Path, own: dict[str, str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = here(tmp_path, "templates", "preview", *arguments, **own)
    assert (ran.code, message in ran.out) == (code, True), ran.out


@pytest.mark.parametrize("command", ["lint", "list"])
def test_names_of_files_cannot_control_the_terminal(tmp_path: Path, own: dict[str, str], command: str) -> None:
    for name in ("\x1b[2Jx/body.txt", "otp/\x1b]0;title\x07.txt", "otp/\x1b[31m.html", "invite/\x1b[8m/body.txt"):
        path = Path(own["TEMPLATES_DIR"], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{{ wrong }}")
    ran = here(tmp_path, "templates", command, **own)
    assert ran.code in {0, 1}
    assert not {it for it in ran.out if not it.isprintable()} - {"\n"}


def test_lint_exits_with_1_for_errors_only(tmp_path: Path, own: dict[str, str]) -> None:
    assert here(tmp_path, "templates", "lint").out == "errors: 0, warnings: 0\n"
    ran = here(tmp_path, "templates", "lint", **own)
    assert ran.code == 1
    assert "invite/body.txt:1: error: 'team' is unknown" in ran.out
    assert 'otp/body.html: warning: has lang="en", which is not the language of this e-mail' in ran.out
    assert "otp/subject.txt: warning: has no {% trans %}, so the built-in file is sent in ar, de, " in ran.out
    assert "layout.html: warning: has no block 'validity', so what the built-in templates write" in ran.out
    assert "otp/body.html: warning: does not show when the code expires" in ran.out
    assert "\nerrors: 1, warnings: " in ran.out
    warned = here(tmp_path, "templates", "lint", "--data", "team=A", "--json", **own)
    assert warned.code == 0
    report = json.loads(warned.out)
    assert report["errors"] == 0
    assert report["warnings"] == len(report["findings"]) > 0


@pytest.fixture
def tenants(tmp_path: Path, own: dict[str, str]) -> dict[str, str]:
    """List two tenants: one with the folder of `own`, one with the built-in templates."""
    path = tmp_path / "tenants.toml"
    path.write_text(
        '[tenants.shop-17]\nsender_email = "Größe <s@shop.example>"\nreply_to = "h@shop.example"\n'
        f'templates_dir = "{own["TEMPLATES_DIR"]}"\n[tenants.shop-18]\ndefault_locale = "de"\n'
    )
    return {"TENANTS_FILE": str(path)}


def test_templates_of_a_tenant_are_listed_and_previewed(tmp_path: Path, tenants: dict[str, str]) -> None:
    shown = here(tmp_path, "templates", "list", "--tenant", "shop-17", **tenants)
    assert "otp/fr *" in shown.out
    assert "* from templates_dir; all others are built in" in shown.out
    assert "otp/fr" not in here(tmp_path, "templates", "list", **tenants).out
    assert "others (de)" in here(tmp_path, "templates", "list", "--tenant", "shop-18", **tenants).out
    ran = here(tmp_path, "templates", "preview", "otp", "--tenant", "shop-17", "--format", "eml", **tenants)
    message = email.message_from_string(ran.out, policy=email.policy.default)
    assert message["from"] == "Größe <s@shop.example>"
    assert message["reply-to"] == "h@shop.example"
    assert message["subject"] == "Our code for you"
    german = here(tmp_path, "templates", "preview", "otp", "--tenant", "shop-18", **tenants)
    assert german.out.startswith("Subject: Ihr Einmalcode")
    ran = here(tmp_path, "templates", "preview", "otp", "--tenant", "shop-19", **tenants)
    known = "--tenant: there is no tenant shop-19 in TENANTS_FILE; known: shop-17, shop-18"
    assert (ran.code, known in ran.out) == (2, True), ran.out
    assert "known: none" in here(tmp_path, "templates", "list", "--tenant", "shop-17").out


def test_lint_checks_the_templates_of_all_tenants_or_of_one(tmp_path: Path, tenants: dict[str, str]) -> None:
    ran = here(tmp_path, "templates", "lint", **tenants)
    assert ran.code == 1
    assert "tenant shop-17: invite/body.txt:1: error: 'team' is unknown" in ran.out
    assert "shop-18" not in ran.out
    report = json.loads(here(tmp_path, "templates", "lint", "--tenant", "shop-17", "--json", **tenants).out)
    assert {it["tenant"] for it in report["findings"]} == {"shop-17"}
    assert here(tmp_path, "templates", "lint", "--tenant", "shop-18", **tenants).out == "errors: 0, warnings: 0\n"
    (tmp_path / "tenants.toml").write_text("tenant = 1")
    ran = here(tmp_path, "templates", "lint", **tenants)
    assert (ran.code, "TENANTS_FILE: tenant: is not known here" in ran.out) == (2, True), ran.out


def test_a_broken_file_is_named_by_lint_and_list(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "own" / "layout.html").write_text("one\n{% if %}")
    ran = here(tmp_path, "templates", "lint", "--data", "team=A", **own)
    assert ran.code == 1
    assert ran.out.startswith("layout.html:2: error: Expected an expression")
    assert "\nerrors: 1, " in ran.out
    listed = here(tmp_path, "templates", "list", **own)
    assert listed.code == 1
    assert "template layout.html, line 2" in listed.out
    assert here(tmp_path, "templates", "list", TEMPLATES_DIR=str(tmp_path / "none")).code == 2


def test_the_asyncapi_document_is_the_generated_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a `make run` on the same machine changes nothing
    with socket.create_server(("127.0.0.1", 0)) as demo:
        monkeypatch.setattr(cli_settings, "EMBEDDED_BROKER_PORT", demo.getsockname()[1])
        for form in ("yaml", "json"):
            ran = here(tmp_path, "asyncapi", "--format", form)
            assert ran.code == 0
            assert ran.out == (ROOT / "asyncapi" / f"otp-stream.{form}").read_text()
    out = tmp_path / "document.yaml"
    own = {"RABBITMQ_QUEUE_NAME": "codes", "RABBITMQ_URL": "amqp://u:hunter2@rabbit.example.com/"}
    assert here(tmp_path, "asyncapi", "--out", str(out), **own).code == 0
    assert "codes.high" in out.read_text()
    assert "hunter2" not in out.read_text()
    assert here(tmp_path, "asyncapi", "--out", str(tmp_path)).code == 2
    assert here(tmp_path, "asyncapi", RABBITMQ_URL="ftp://x").code == 2
    assert Settings.model_fields["rabbitmq_queue_name"].default not in out.read_text()
