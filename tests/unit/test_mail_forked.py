"""Operators' templates run in child processes: what they can stop, change and keep there."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mails import identity, job, new_composer, part, read, write

from otp_stream.core.mail import ComposeError
from otp_stream.mail import Composer, TemplateError
from otp_stream.mail.forked_renderer import ForkedRenderer
from otp_stream.mail.lint import lint_at_start
from otp_stream.mail.templates import Templates

COMPOSER = new_composer()


NESTED = "{% for i in range(40) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"


@pytest.mark.parametrize(
    "attack",
    [
        f"{{% set n = namespace(a=[1], b=[1]) %}}{NESTED}{{{{ n.a == n.b }}}}",
        "{% set n = namespace(a=(1,)) %}{% for i in range(40) %}{% set n.a = (n.a, n.a) %}{% endfor %}{{ {n.a: 1} }}",
        "{{ ([[1]] * 1000000)|sum(start=[])|length }}",
    ],
)
def test_one_call_that_python_cannot_interrupt_fails_alone(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otp_stream.mail.mail_template.RENDER_CPU_S", 0.2)
    write(tmp_path, otp__body_txt="{{ otp }}" + attack)
    composer = new_composer(tmp_path)
    with pytest.raises(ComposeError, match=r"takes more than 0\.2 s; an endless loop"):
        composer.compose(job())
    assert composer.compose(job(template="password_reset"))  # in a new process
    assert COMPOSER.compose(job())


def test_what_a_template_changes_reaches_no_other_folder_and_no_later_mail(tmp_path: Path) -> None:
    write(
        tmp_path,
        state_txt="{% set kept = namespace(code='none') %}",
        otp__body_txt="{% from 'state.txt' import kept %}{{ kept.code }}{% set kept.code = otp %}{{ otp }}",
        welcome__body_txt="{{ otp }}{% macro text(message) %}changed{% endmacro %}{{ "
        "_translations.add_fallback(namespace(gettext=text, pgettext=text, ngettext=text, npgettext=text)) }}",
    )
    composer = Composer(identity(), b"k" * 32, {"shop": identity(templates_dir=tmp_path)})
    before = composer.compose(job())
    with pytest.raises(ComposeError):
        composer.compose(job(of="shop", template="welcome"))
    assert composer.compose(job()) == before
    for _ in range(3):
        assert part(read(composer.compose(job(of="shop")).content), "plain").split() == ["none123456"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{{ otp|upper }}{% for i in range(2) %}{{ 'é' * 1000000 }}{% endfor %}", {}),
        ("{{ otp }}{% for i in range(2) %}{{ 'é' * 1000000 }}{% endfor %}", {}),
        ("{{ otp }}" + "{{ place }}\n" * 6_000, {"place": "x" * 200}),
    ],
    ids=["rendered", "precompiled", "precompiled values"],
)
def test_a_huge_result_fails_alone(
    text: str, values: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otp_stream.mail.loader._FILE_CPU_S", 60)  # a slow machine needs more than the usual second
    write(tmp_path, otp__body_txt=text)
    composer = new_composer(tmp_path)
    for _ in range(3):
        with pytest.raises(ComposeError, match=r"template otp/body\.html: prints more than 1,048,576 characters"):
            composer.compose(job(**values))
    assert composer.compose(job(template="password_reset"))


def test_a_long_subject_is_cut(tmp_path: Path) -> None:
    write(tmp_path, otp__subject_txt="{{ otp|upper }} {{ 'é' * 100000 }}")
    content = new_composer(tmp_path).compose(job()).content
    assert read(content)["subject"] == "123456 " + "é" * 993
    assert len(content) < 20_000


def test_a_stopped_process_delays_one_mail_even_if_its_values_fill_the_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, otp__body_txt="{{ otp|upper }}{{ items|length }}")
    composer = new_composer(tmp_path)
    before = children()
    assert composer.compose(job(items=[]))
    (pid,) = children() - before
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("otp_stream.mail.forked_renderer._TIMEOUT_S", 1.0)
    values = {"items": [str(number) * 40 for number in range(1000, 1200)]}
    assert "200" in part(read(composer.compose(job(**values)).content), "plain")


async def test_the_process_of_a_folder_ends_with_the_composer(tmp_path: Path) -> None:
    write(tmp_path, otp__body_txt="{{ otp|upper }}")
    composer = new_composer(tmp_path)
    before = children()
    assert composer.compose(job())
    assert len(children() - before) == 1
    await composer.close()
    assert not children() - before


def test_at_most_four_folders_have_a_process(tmp_path: Path) -> None:
    composers = [new_composer(write(tmp_path / str(number), otp__body_txt="{{ otp|upper }}")) for number in range(6)]
    before = children()
    for _ in range(2):
        for it in composers:
            assert it.compose(job())
    assert len(children() - before) <= 4


def test_a_killed_process_costs_no_mail(tmp_path: Path) -> None:
    write(tmp_path, otp__body_txt="{{ otp|upper }}")
    composer = new_composer(tmp_path)
    before = children()
    mail = composer.compose(job())
    for pid in children() - before:
        os.kill(pid, signal.SIGKILL)
    assert composer.compose(job()) == mail


def children() -> set[int]:
    """Return the child processes of this one."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def test_a_process_that_ends_without_a_crash_costs_no_mail() -> None:
    worker = os.getpid()

    def work(request: str) -> list[str]:
        if os.getpid() != worker:
            raise KeyError(request)
        return [request]

    renderer = ForkedRenderer(work)
    assert renderer.run(1, "a text") == ["a text"]


def test_a_template_that_crashes_each_process_fails_alone() -> None:
    worker = os.getpid()

    def work(_: object) -> list[str]:
        assert os.getpid() != worker
        os.kill(os.getpid(), signal.SIGSEGV)
        return []

    renderer = ForkedRenderer(work)
    with pytest.raises(ComposeError, match="ended its process"):
        renderer.run(1, "a text")


def test_a_process_whose_memory_grows_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otp_stream.mail.forked_renderer.MEMORY", 1 << 20)
    # Jinja keeps each file under each name by which it was included
    names = "('./' * (place|length * 20 + i)) ~ 'large.txt'"
    write(
        tmp_path,
        # larger than what is free within the memory that the process already has
        large_txt="{% if not otp %}" + "a" * 200_000 + "{% endif %}",
        otp__body_txt=f"{{{{ otp }}}}{{% for i in range(20) %}}{{% include {names} ignore missing %}}{{% endfor %}}",
    )
    composer = new_composer(tmp_path)
    before, used = children(), set[int]()
    for number in range(1, 60):
        assert composer.compose(job(place="x" * number))
        used |= children() - before
        if len(used) > 1:
            break
    assert len(used) > 1
    assert len(children() - before) == 1


_INLINED = "<html><style data-inline>p{color:red}</style><body>{{ otp }}"


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (_INLINED + "<b>" * 20_000, "crashes the process"),
        (_INLINED + '<a"' * 6_000, "template otp/body.html: otp/body.html takes more than 0.1 s to compile"),
        ("{{ a }}" * 8_000, "template otp/body.html: otp/body.html takes more than 0.1 s to compile"),
        ("{% for i in [1] %}" * 25 + "{% endfor %}" * 25, "template otp/body.html: too many statically nested blocks"),
        ("{% if otp %}" * 150 + "{% endif %}" * 150, "template otp/body.html: too many levels of indentation"),
        ("{{ dict(a=1, a=2) }}", "template otp/body.html: keyword argument repeated"),
        ("{{ otp[1:2, 3] }}", "template otp/body.html: invalid syntax"),
        ("{{ " + "1" * 5_000 + " }}", "template otp/body.html: Exceeds the limit"),
    ],
)
def test_a_file_that_crashes_or_blocks_its_compilation_is_refused(
    attack: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otp_stream.mail.loader._FILE_CPU_S", 0.1)
    monkeypatch.setattr("otp_stream.mail.shared_templates._COMPILE_CPU_S", 20.0)
    write(tmp_path, otp__body_html=attack)
    with pytest.raises(TemplateError, match=re.escape(problem)):
        new_composer(tmp_path)


def test_templates_that_take_too_long_to_compile_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otp_stream.mail.shared_templates._COMPILE_CPU_S", 0.2)
    write(tmp_path, otp__body_html=_INLINED + '<a"' * 20_000)
    with pytest.raises(TemplateError, match=r"takes more than 0\.2 s of CPU time; shorten them"):
        new_composer(tmp_path)


def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = os.getpid()
    write(tmp_path, otp__body_txt="first {{ otp }}")

    def compiled(*arguments: object) -> Templates:
        if os.getpid() == worker:
            write(tmp_path, otp__body_txt="second {{ otp }}")
        return Templates(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("otp_stream.mail.shared_templates.Templates", compiled)
    with pytest.raises(TemplateError, match=r"otp/body.txt has changed while it was read"):
        new_composer(tmp_path)


def test_the_checks_at_start_run_in_another_process(tmp_path: Path) -> None:
    write(tmp_path, otp__body_html=_INLINED + "<b>" * 20_000)
    with pytest.raises(ComposeError):
        lint_at_start(tmp_path, "en")
    (tmp_path / "otp/body.html").write_text("{{ otp }}{{ usrName }}")
    assert "usrName" in {it.unknown for it in lint_at_start(tmp_path, "en")}


_TRACING_BY_GRPC = """
import time
from otp_stream.core.mail import ComposeError
from otp_stream.mail import forked_renderer
from otp_stream.telemetry.exporters import open_span_exporter

open_span_exporter()
import grpc
forked_renderer._TRIES = 1
channel = grpc.insecure_channel("127.0.0.1:1")
try:
    channel.unary_unary("/none/None")(b"", timeout=0.3)
except grpc.RpcError:
    pass

def work(_):
    time.sleep(0.005)
    return ["a text"]

for _ in range(60):
    renderer = forked_renderer.ForkedRenderer(work)
    renderer.run(1, None)
    renderer.close()
"""


def test_tracing_by_grpc_crashes_no_process() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    # nothing listens there, which is when gRPC has most threads
    env |= {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    run = subprocess.run(
        [sys.executable, "-c", _TRACING_BY_GRPC], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
