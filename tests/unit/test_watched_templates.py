"""Templates that change while a worker runs: used for the next mail once they are complete and without errors."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from mails import identity, job, read, write

from otp_stream.mail import Composer, MailIdentity, WatchedTemplates, watched_templates
from otp_stream.mail.composer import Prepared
from otp_stream.mail.shared_templates import fingerprint
from otp_stream.tasks import cancel_and_wait

KEPT = "templates have changed and cannot be used: the earlier ones stay in use"
USED = "templates have changed"
LIMIT_S = 20


@pytest.fixture(autouse=True)
def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_templates, "_SETTLE_S", 0.0)


def composer_of(folder: Path, tenants: Mapping[str, MailIdentity] | None = None) -> Composer:
    return Composer(identity(folder), b"k" * 32, tenants or {})


def subject(composer: Composer, of: str = "") -> str:
    return read(composer.compose(job(of=of)).content)["subject"]


def put(folder: Path, text: str) -> Path:
    """Replace a file in one step."""
    write(folder, otp__subject_new=text)
    (folder / "otp/subject_new").replace(folder / "otp/subject.txt")
    return folder


@asynccontextmanager
async def watching(composer: Composer) -> AsyncIterator[WatchedTemplates]:
    watched = WatchedTemplates(composer)
    task = asyncio.create_task(watched.watch())
    yield watched
    await cancel_and_wait(task)
    assert task.cancelled()


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not met():  # noqa: ASYNC110 - a mail shows which templates are used, and no event does
            await asyncio.sleep(0.005)


async def test_a_changed_file_is_used_for_the_next_mail(tmp_path: Path) -> None:
    composer = composer_of(put(tmp_path, "first"))
    watched = WatchedTemplates(composer)
    with structlog.testing.capture_logs() as logs:
        await watched.refresh()
        assert logs == []
        for text in ("second", "third"):
            put(tmp_path, text)
            await watched.refresh()
            await watched.refresh()
            assert subject(composer) == text
    assert [it["event"] for it in logs] == [USED, USED]
    assert logs[0]["folders"] == [str(tmp_path)]


async def test_files_of_every_kind_are_watched(tmp_path: Path) -> None:
    composer = composer_of(put(tmp_path, "first"))
    watched = WatchedTemplates(composer)
    for change in (
        lambda: write(tmp_path, layout_html="<b>{{ otp }}</b>"),
        lambda: write(tmp_path, otp__de__body_html="<i>{{ otp }}</i>"),
        (tmp_path / "locales").mkdir,
        lambda: (tmp_path / "locales/de.po").write_text(""),
        (tmp_path / "otp/de/body.html").unlink,
        lambda: shutil.rmtree(tmp_path / "locales"),
    ):
        before = composer.templates
        change()
        await watched.refresh()
        assert composer.templates is not before


async def test_a_broken_file_keeps_the_earlier_templates_and_is_logged_once(tmp_path: Path) -> None:
    composer = composer_of(put(tmp_path, "first"))
    watched = WatchedTemplates(composer)
    with structlog.testing.capture_logs() as logs:
        put(tmp_path, "{% if %}")
        for _ in range(3):
            await watched.refresh()
        assert subject(composer) == "first"
        assert [it["event"] for it in logs] == [KEPT]
        assert (
            logs[0]["error"] == "template otp/subject.txt, line 1: Expected an expression, got 'end of statement block'"
        )
        put(tmp_path, "{% for %}")
        await watched.refresh()
        put(tmp_path, "second")
        await watched.refresh()
    assert [it["event"] for it in logs] == [KEPT, KEPT, USED]
    assert subject(composer) == "second"


async def test_a_broken_catalogue_or_layout_keeps_the_earlier_templates(tmp_path: Path) -> None:
    composer = composer_of(put(tmp_path, "first"))
    watched = WatchedTemplates(composer)
    (tmp_path / "locales").mkdir()
    for path, text, error in (
        ("locales/de.po", 'msgid "x\n', "locales/de.po, line 1: has no closing quote"),
        (
            "layout.html",
            "<html><style data-inline>.a{}</style><p {{ x }}>",
            "template layout.html, line 1: {{ x }}: Jinja",
        ),
        ("otp/body.html", "{{ " + "(" * 5000, "template otp/body.html: is nested too deeply"),
    ):
        (tmp_path / path).write_text(text)
        with structlog.testing.capture_logs() as logs:
            await watched.refresh()
            await watched.refresh()
        (it,) = logs
        assert it["error"].startswith(error)
        (tmp_path / path).unlink()
        await watched.refresh()
    assert subject(composer) == "first"


async def test_the_same_error_is_logged_again_after_it_was_fixed(tmp_path: Path) -> None:
    composer = composer_of(put(tmp_path / "own", "first"))
    watched = WatchedTemplates(composer)
    broken, file = tmp_path / "broken", tmp_path / "own/otp/body.html"
    broken.write_text("{% if %}")
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            broken.rename(file)
            await watched.refresh()
            file.rename(broken)
            await watched.refresh()
    assert [it["event"] for it in logs] == [KEPT, USED, KEPT, USED]  # the time of the folder has changed


async def test_the_time_to_compile_templates_does_not_delay_the_next_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_templates, "POLL_S", 0.01)
    monkeypatch.setattr(watched_templates, "_SETTLE_S", 0.5)
    composer = composer_of(put(tmp_path, "first"))
    async with watching(composer), asyncio.timeout(10):  # it would be 25 s for each
        for text in ("second", "third"):
            put(tmp_path, text)
            await until(lambda text=text: subject(composer) == text)


async def test_a_file_that_is_written_in_two_steps_is_used_once_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_templates, "_SETTLE_S", 0.2)
    monkeypatch.setattr(watched_templates, "POLL_S", 0.01)
    composer = composer_of(put(tmp_path, "first"))
    seen = set[str]()
    with structlog.testing.capture_logs() as logs:
        async with watching(composer):
            with (tmp_path / "otp/subject.txt").open("w") as file:
                for piece in ("{% if otp", " %}", "sec", "ond", "{% endif %}"):
                    file.write(piece)
                    file.flush()
                    await asyncio.sleep(0.02)
                    seen.add(subject(composer))
            await until(lambda: subject(composer) == "second")
    assert seen == {"first"}
    assert [it["event"] for it in logs] == [USED]


async def test_files_that_change_all_the_time_do_not_hold_up_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(watched_templates, "monotonic", lambda: now[0])
    shop = put(tmp_path / "shop", "shop 1")
    composer = composer_of(put(tmp_path / "own", "own 1"), {"shop": identity(shop)})
    folders = composer.folders

    def changed() -> Any:
        now[0] += 1
        (shop / "swap").write_text("x" * round(now[0]))
        return folders()

    monkeypatch.setattr(composer, "folders", changed)
    watched = WatchedTemplates(composer)
    for number in ("2", "3"):
        put(tmp_path / "own", f"own {number}")
        put(shop, f"shop {number}")
        began, shown = now[0], ""
        while now[0] < began + 15 and shown != f"own {number}":
            await watched.refresh()
            shown = subject(composer)
        assert (shown, subject(composer, "shop")) == (f"own {number}", f"shop {number}")
        assert now[0] - began > 5


async def test_files_are_read_at_once_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_templates, "POLL_S", 600.0)
    composer = composer_of(put(tmp_path, "first"))
    looked = 0
    folders = composer.folders

    def counted() -> Any:
        nonlocal looked
        looked += 1
        return folders()

    monkeypatch.setattr(composer, "folders", counted)
    async with watching(composer) as watched:
        await until(lambda: looked == 1)
        put(tmp_path, "second")
        watched.request()
        await until(lambda: subject(composer) == "second")


async def test_tenants_that_change_while_templates_are_compiled_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_templates, "POLL_S", 600.0)
    shop = put(tmp_path / "shop", "shop 1")
    composer = composer_of(put(tmp_path / "own", "own 1"), {"shop": identity(shop)})
    tenants = {"shop": identity(shop, sender=("New", "new@example.com")), "other": identity(shop)}
    prepare = composer.prepare
    changed = False

    def slow(identities: Mapping[str, MailIdentity], **options: Any) -> Prepared:
        nonlocal changed
        prepared = prepare(identities, **options)
        if not changed:
            changed = True
            loop.call_soon_threadsafe(composer.use, prepare(tenants))
        return prepared

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(composer, "prepare", slow)
    put(shop, "shop 2")
    async with watching(composer):
        await until(lambda: changed)
        await until(lambda: composer.identities == tenants and subject(composer, "other") == "shop 2")
    assert read(composer.compose(job(of="shop")).content)["from"] == "New <new@example.com>"
    assert subject(composer, "shop") == "shop 2"


async def test_templates_of_a_tenant_change_alone(tmp_path: Path) -> None:
    shop = put(tmp_path / "shop", "shop 1")
    composer = composer_of(put(tmp_path / "own", "own 1"), {"shop": identity(shop)})
    own, watched = composer.of(""), WatchedTemplates(composer)
    put(shop, "shop 2")
    await watched.refresh()
    assert composer.of("") is own
    assert subject(composer, "shop") == "shop 2"
    put(shop, "{% if %}")
    put(tmp_path / "own", "own 2")
    with structlog.testing.capture_logs() as logs:
        await watched.refresh()
    assert logs[0]["error"].startswith("tenant shop: template otp/subject.txt, line 1: Expected an expression")
    assert (subject(composer), subject(composer, "shop")) == ("own 2", "shop 2")
    put(tmp_path / "own", "{% if %}")
    put(shop, "shop 3")
    await watched.refresh()
    assert (subject(composer), subject(composer, "shop")) == ("own 2", "shop 2")
    put(tmp_path / "own", "own 3")
    await watched.refresh()
    assert (subject(composer), subject(composer, "shop")) == ("own 3", "shop 3")


async def test_a_swap_of_links_as_kubernetes_does_it_is_noticed(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    for version, text in (("..1", "first"), ("..2", "second"), ("..3", "{% if %}"), ("..4", "third")):
        put(mount / version, text)
    (mount / "..data").symlink_to("..1")
    (mount / "otp").symlink_to("..data/otp")
    composer = composer_of(mount)
    watched = WatchedTemplates(composer)
    shown: list[str] = []
    for version in ("..1", "..2", "..3", "..4"):
        (mount / "..new").symlink_to(version)
        (mount / "..new").replace(mount / "..data")
        await watched.refresh()
        shown.append(subject(composer))
    assert shown == ["first", "second", "second", "third"]


async def test_a_folder_that_is_itself_a_link_is_noticed_when_it_changes(tmp_path: Path) -> None:
    link = tmp_path / "templates"
    link.symlink_to(put(tmp_path / "v1", "first"))
    composer = composer_of(link)
    link.unlink()
    link.symlink_to(put(tmp_path / "v2", "second"))
    await WatchedTemplates(composer).refresh()
    assert subject(composer) == "second"


async def test_a_folder_that_is_removed_and_restored_keeps_its_templates(tmp_path: Path) -> None:
    folder = put(tmp_path / "own", "first")
    composer = composer_of(folder)
    watched = WatchedTemplates(composer)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            folder.rename(tmp_path / "away")
            await watched.refresh()
            await watched.refresh()
            assert subject(composer) == "first"
            (tmp_path / "away").rename(folder)
            await watched.refresh()
        assert [it["event"] for it in logs] == [KEPT, KEPT]
        assert "No such folder" in logs[0]["error"]
        shutil.rmtree(folder)
        await watched.refresh()
        put(folder, "second")
        await watched.refresh()
    assert [it["event"] for it in logs] == [KEPT, KEPT, KEPT, USED]
    assert subject(composer) == "second"


def test_a_folder_that_disappears_while_it_is_read_has_a_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "glob", gone)
    assert fingerprint(tmp_path) == frozenset()


def test_a_change_beside_deeply_nested_folders_is_noticed(tmp_path: Path) -> None:
    folder = put(tmp_path, "first")
    within = os.open(folder, os.O_RDONLY)
    for _ in range(3_000):  # deeper than Python's calls may be nested, and than a path may be long
        os.mkdir("_", dir_fd=within)
        inner = os.open("_", os.O_RDONLY, dir_fd=within)
        os.close(within)
        within = inner
    os.close(within)
    try:
        before = fingerprint(folder)
        assert subject(composer_of(folder)) == "first"
        put(folder, "second")
        assert fingerprint(folder) != before
    finally:  # `shutil.rmtree`, by which pytest deletes the folder, cannot
        subprocess.run(["rm", "-rf", str(folder / "_")], check=True)
