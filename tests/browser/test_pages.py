"""The pages in Chromium: narrow and wide, light and dark, without errors and without requests to other hosts."""

import asyncio
import contextlib
import itertools
import json
import re
import smtplib
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from amqp_proxy import amqp_proxy
from browser import resize
from cli import here
from conftest import Stage
from patience import deadline, limit
from rabbitmq import until
from redis_server import RedisServer
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from tenants import write
from worker import CODE, Worker, job

from otp_stream.web.stream import MAX_VIEWERS

ADDRESS = "ada.lovelace@example.com"
VIEWPORTS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
ONCE = [(390, "dark"), (1280, "light")]
"""Each width and each scheme once: a scheme changes only colours."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield browser
    browser.quit()


@pytest.fixture
def chromium(browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """Open a new tab, without cookies, cached files, emulation and logs of other tests."""
    others = browser.window_handles
    browser.switch_to.new_window("tab")
    tab = browser.current_window_handle
    for handle in others:
        browser.switch_to.window(handle)
        browser.close()
    browser.switch_to.window(tab)
    browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    for log in ("browser", "performance"):
        browser.get_log(log)
    yield browser
    browser.get("about:blank")  # an open page would keep its stream until the next test


def visit(browser: webdriver.Chrome, url: str, width: int, scheme: str) -> None:
    """Open a page with this screen size and colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(url)


def hosts(browser: webdriver.Chrome) -> set[str]:
    """Return every host that was requested since the last call."""
    found: set[str] = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            found |= {url.hostname or ""} if url.scheme.startswith("http") else set()
    return found


def lightness(browser: webdriver.Chrome) -> float:
    """Return how light the page is, 0 to 255."""
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour[4:-1].split(",")) / 3


async def test_every_page_fits_and_loads_nothing_from_elsewhere(stage: Stage, chromium: webdriver.Chrome) -> None:
    worker = await stage.run()
    await stage.rabbit.publish(job(), b"nonsense")
    await stage.rabbit.dead()
    await stage.relay.wait_accepted(1)
    pages = {"/": "Codes are going out", "/asyncapi": "Messages", "/dead": "Dead letters", "/templates": "Templates"}
    for (path, heading), (width, scheme) in itertools.product(pages.items(), VIEWPORTS):
        visit(chromium, f"http://127.0.0.1:{worker.port}{path}", width, scheme)
        assert chromium.find_element(By.TAG_NAME, "h1").text == heading
        assert not chromium.execute_script("return document.documentElement.scrollWidth > innerWidth")
        assert (lightness(chromium) > 200) == (scheme == "light")
        assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []
        assert hosts(chromium) == {"127.0.0.1"}
        assert CODE not in chromium.page_source


async def test_templates_are_shown_at_their_width_in_light_and_dark_mode_whatever_the_mode_of_the_page(
    stage: Stage, chromium: webdriver.Chrome
) -> None:
    logo = {"BRAND_NAME": "Acme", "BRAND_LOGO_URL": "https://acme.invalid/logo.png"}
    worker = await stage.run(**logo)
    for width, scheme in ONCE:
        visit(chromium, f"http://127.0.0.1:{worker.port}/templates?name=otp&language=ar", width, scheme)
        assert not chromium.execute_script("return document.documentElement.scrollWidth > innerWidth")
        assert text(chromium, ".preview h2")
        assert CODE not in chromium.page_source
        shown: list[tuple[int, bool]] = []
        for frame in chromium.find_elements(By.TAG_NAME, "iframe"):
            chromium.execute_script("arguments[0].scrollIntoView()", frame)
            chromium.switch_to.frame(frame)
            assert text(chromium, ".code") == "123456"
            assert chromium.find_element(By.TAG_NAME, "img").get_attribute("alt") == "Acme"
            assert chromium.execute_script("return getComputedStyle(document.querySelector('h1')).direction") == "rtl"
            shown.append((chromium.execute_script("return innerWidth"), lightness(chromium) > 200))
            chromium.switch_to.default_content()
        assert shown == [(320, True), (800, True), (320, False), (800, False)]
        assert hosts(chromium) == {"127.0.0.1"}


async def test_the_page_updates_itself_and_reports_that_the_worker_does_not_answer(
    stage: Stage, chromium: webdriver.Chrome
) -> None:
    worker = await stage.run()
    visit(chromium, f"http://127.0.0.1:{worker.port}/", 1280, "light")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)
    wait(lambda: "sent 1" in text(chromium, ".endings"), "the count")
    await stage.relay.stop()
    await stage.rabbit.publish(job())
    await worker.wait_log("circuit breaker open")
    wait(lambda: text(chromium, "h1") == "No codes are going out", "the heading")
    assert "unreachable" in text(chromium, ".checks")
    await worker.kill()
    wait(lambda: chromium.title.startswith("No answer"), "the missing answer")
    assert text(chromium, "h1")  # the last state stays visible


async def test_an_update_keeps_the_selection_the_focus_and_open_tables(
    stage: Stage, chromium: webdriver.Chrome
) -> None:
    worker = await stage.run()
    visit(chromium, f"http://127.0.0.1:{worker.port}/", 1280, "light")
    chromium.find_element(By.TAG_NAME, "summary").click()
    chromium.execute_script("""
        getSelection().selectAllChildren(document.querySelector('#relays code'));
        document.querySelector('#figures a').focus();
    """)
    await stage.rabbit.publish(job(ADDRESS, jobId="j-1"), b"nonsense")
    await stage.relay.wait_accepted(1)
    wait(lambda: "j-1" in text(chromium, "#recent") and "malformed 1" in text(chromium, ".endings"), "the update")
    assert "a***@example.com" in text(chromium, "#recent")
    assert text(chromium, "details tbody tr").split("\t")[:2] == ["0", "1"]  # open, and up to date
    assert chromium.execute_script("return getSelection().toString()") == f"127.0.0.1:{stage.relay.port}"
    assert chromium.switch_to.active_element.text == "Dead letters"
    assert ADDRESS not in chromium.page_source


async def test_an_unreachable_broker_is_shown_without_flicker(stage: Stage, chromium: webdriver.Chrome) -> None:
    async with amqp_proxy(stage.url) as (proxy, url):
        worker = await stage.run(url=url)
        page = f"http://127.0.0.1:{worker.port}/"
        await asyncio.to_thread(visit, chromium, page, 1280, "light")
        proxy.refuse = True
        proxy.cut()
        await wait_for_heading(chromium, "No codes are going out")
        chromium.execute_script("""
            window.seen = new Set();
            window.updates = 0;
            const count = () => { updates += 1; seen.add(document.querySelector('h1').innerText); };
            new MutationObserver(count).observe(
              document.getElementById('status'), { subtree: true, childList: true, characterData: true });
        """)
        await until(lambda: asyncio.to_thread(chromium.execute_script, "return updates >= 3"), "some seconds")
        assert chromium.execute_script("return [...seen]") == ["No codes are going out"]
        for width, scheme in ONCE:  # a new visitor sees the same at once
            await asyncio.to_thread(visit, chromium, page, width, scheme)
            assert text(chromium, "h1") == "No codes are going out"
            assert "is away" in text(chromium, ".checks")
            assert (
                text(chromium, "#lanes tbody td").removeprefix("Waiting: ") == "\N{EN DASH}"
            )  # an old value is not shown as current
            assert not chromium.find_element(By.ID, "no-answer").is_displayed()
        # a change is announced only after the first update
        await until(lambda: asyncio.to_thread(chromium.execute_script, "return announced !== null"), "an update")
        proxy.refuse = False
        await wait_for_heading(chromium, "Codes are going out")
        assert chromium.find_element(By.ID, "announcement").get_attribute("textContent") == "Codes are going out"
        assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


async def wait_for_heading(chromium: webdriver.Chrome, heading: str) -> None:
    """Wait for a heading, while the tasks of this test continue."""

    async def is_shown() -> bool:
        return await asyncio.to_thread(text, chromium, "h1") == heading

    await until(is_shown, heading)


LONG = "a-domain-that-goes-on-" * 8 + ".example"


async def test_long_names_and_errors_fit_the_screen(
    stage: Stage, chromium: webdriver.Chrome, redis: RedisServer
) -> None:
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown " + "x" * 120)
    worker = await stage.run(REDIS_URL=redis.url, HTTP_TOKEN="correct-horse-battery")
    await stage.rabbit.publish(
        job(f"someone@{LONG}", jobId="j" * 200),
        job(metadata={"template": "t" * 60}),
        b"nonsense",
    )
    await until(lambda: _has_depth(stage, f"{stage.rabbit.prefix}.dead", 3), "three dead letters")
    await stage.relay.stop()
    redis.remove()
    await stage.rabbit.publish(job())
    await worker.wait_log("circuit breaker open")
    page, widths = f"http://127.0.0.1:{worker.port}", (320, 390, 1280)
    for width in widths:
        visit(chromium, f"{page}/", width, "light")
        wait(lambda: "Redis away for" in text(chromium, "#tables"), "the state of Redis")
        fits(chromium)
    visit(chromium, f"{page}/dead", widths[0], "light")
    chromium.find_element(By.NAME, "token").send_keys("correct-horse-battery\n")
    wait(lambda: "Send again" in text(chromium, "main"), "the button")
    for width in widths:
        visit(chromium, f"{page}/dead", width, "light")
        assert "Send again" in text(chromium, "main")
        fits(chromium)


def fits(browser: webdriver.Chrome) -> None:
    """Check that neither the page nor a table in it needs to be scrolled sideways."""
    assert not browser.execute_script("return document.documentElement.scrollWidth > innerWidth")
    assert (
        browser.execute_script("""
        return [...document.querySelectorAll('main *')].filter(
          (it) => it.getClientRects().length && !it.closest('.hidden, svg')
            && it.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((it) => it.outerHTML)
    """)
        == []
    )


async def test_the_page_updates_itself_also_beyond_the_limit_of_viewers(
    stage: Stage, chromium: webdriver.Chrome
) -> None:
    worker = await stage.run()
    with contextlib.ExitStack() as viewers:
        for _ in range(MAX_VIEWERS):
            viewers.enter_context(viewer(worker))
        visit(chromium, f"http://127.0.0.1:{worker.port}/", 1280, "light")
        await stage.rabbit.publish(job())
        await stage.relay.wait_accepted(1)
        wait(lambda: "sent 1" in text(chromium, ".endings"), "the count")
        chromium.execute_script("window.began = Date.now()")
        wait(lambda: chromium.execute_script("return Date.now() - began > 9000"), "longer than the timeout")
        assert chromium.title.startswith("Codes are going out")
        assert not chromium.find_element(By.ID, "no-answer").is_displayed()


TRACK_STREAMS = """
    window.streams = [];
    window.isHidden = true;
    Object.defineProperty(document, 'hidden', { get: () => window.isHidden });
    const Real = EventSource;
    window.EventSource = class extends Real { constructor(...args) { super(...args); streams.push(this); } };
    window.hide = (hide) => { window.isHidden = hide; document.dispatchEvent(new Event('visibilitychange')); };
"""


async def test_a_hidden_tab_has_no_stream_and_shows_when_its_state_is_old(
    stage: Stage, chromium: webdriver.Chrome
) -> None:
    worker = await stage.run()
    chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": TRACK_STREAMS})
    visit(chromium, f"http://127.0.0.1:{worker.port}/", 1280, "light")

    def streams() -> list[int]:
        return chromium.execute_script("return streams.map((it) => it.readyState)")

    assert streams() == []  # opened in the background
    for shown in range(1, 3):
        chromium.execute_script("hide(false)")
        wait(lambda shown=shown: streams() == [2] * (shown - 1) + [1], "one stream")
        wait(lambda: chromium.title.startswith("Codes are going out"), "the title")
        chromium.execute_script("hide(true)")
        assert streams() == [2] * shown
        assert chromium.title.startswith("Paused")
    await worker.kill()
    chromium.execute_script("window.began = Date.now()")
    wait(lambda: chromium.execute_script("return Date.now() - began > 9000"), "longer than the timeout")
    # in one call, because the notice follows some seconds later: the worker may answer in a moment
    stale, notice = chromium.execute_script("""
        hide(false);
        return [document.body.classList.contains('stale'), document.getElementById('no-answer').checkVisibility()];
    """)
    assert (stale, notice) == (True, False)
    wait(lambda: chromium.title.startswith("No answer"), "the missing answer")


def viewer(worker: Worker) -> Any:
    """Open a stream of events."""
    return urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/live", timeout=30)


async def test_without_scripts_the_page_reloads_itself(stage: Stage, chromium: webdriver.Chrome) -> None:
    worker = await stage.run()
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    chromium.get(f"http://127.0.0.1:{worker.port}/")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)

    def counted() -> bool:
        # the page may be replaced between two steps; the driver has no separate error for each of them
        with contextlib.suppress(WebDriverException):
            return "sent 1" in chromium.find_element(By.CLASS_NAME, "endings").text.replace("\n", " ")
        return False

    wait(counted, "the count")


async def test_a_full_page_has_less_than_100_kibibytes(stage: Stage) -> None:
    stage.relay.always("rcpt", "550 5.1.1 " + "no such user here " * 12)
    worker = await stage.run()
    await stage.rabbit.publish(*(job(f"someone{number}@example.com") for number in range(40)))
    await stage.rabbit.dead(40)
    paths = ("/", "/page.css", "/page.js", "/favicon.svg")
    assert sum([len((await worker.get(path))[1].encode()) for path in paths]) < 100 * 1024


async def test_fifty_dead_letters_are_replayed_and_no_code_is_shown(stage: Stage, chromium: webdriver.Chrome) -> None:
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown")
    worker = await stage.run(HTTP_TOKEN="correct-horse-battery")
    await stage.rabbit.publish(*(job(email=f"user{number}@corp.example") for number in range(50)))
    wait_for = f"{stage.rabbit.prefix}.dead"
    await until(lambda: _has_depth(stage, wait_for, 50), "fifty dead letters")
    visit(chromium, f"http://127.0.0.1:{worker.port}/", 1280, "light")
    chromium.find_element(By.LINK_TEXT, "Dead letters").click()
    assert "corp.example" not in text(chromium, "main")
    chromium.find_element(By.NAME, "token").send_keys("correct-horse-battery\n")
    wait(lambda: "Send again" in text(chromium, "main"), "the button")
    page = text(chromium, "main")
    assert "50 jobs could not be sent" in page
    assert "550 5.1.1 mailbox unknown" in page
    assert "corp.example" in page
    stage.relay.always("rcpt", None)
    assert not chromium.execute_script("return document.documentElement.scrollWidth > innerWidth")
    chromium.find_element(By.CSS_SELECTOR, "td button").click()
    wait(lambda: "50 jobs are being sent again" in text(chromium, "main"), "the end of the replay")
    await stage.relay.wait_accepted(50)
    assert CODE not in chromium.page_source
    assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


async def test_a_relay_is_probed_from_the_page(stage: Stage, chromium: webdriver.Chrome) -> None:
    stage.relay.always("mail", "530 5.7.0 sender not verified")
    worker = await stage.run(HTTP_TOKEN="correct-horse-battery")
    visit(chromium, f"http://127.0.0.1:{worker.port}/", 390, "light")
    await stage.rabbit.publish(job())
    await worker.wait_log("relay takes no mail")
    token = "#relays input[name=token]"
    wait(lambda: chromium.find_elements(By.CSS_SELECTOR, token), "the login form, without a reload")
    assert not chromium.find_element(By.CSS_SELECTOR, "form[action=probe]").is_displayed()
    chromium.find_element(By.CSS_SELECTOR, token).send_keys("correct-horse-battery")
    chromium.execute_script("window.began = Date.now()")
    wait(lambda: chromium.execute_script("return Date.now() - began > 2500"), "updates of the page while a user types")
    chromium.find_element(By.CSS_SELECTOR, token).send_keys("\n")
    wait(lambda: "Log out" in text(chromium, "body"), "the session")
    assert chromium.current_url.endswith("/")
    assert not chromium.find_element(By.CSS_SELECTOR, token).is_displayed()
    assert not chromium.execute_script("return document.documentElement.scrollWidth > innerWidth")
    stage.relay.always("mail", None)

    def probed() -> bool:
        with contextlib.suppress(WebDriverException):
            chromium.find_element(By.CSS_SELECTOR, "form[action=probe] button").click()
        return len(stage.relay.accepted) == 1

    await until(lambda: asyncio.to_thread(probed), "the mail")
    wait(lambda: "Probe now" not in text(chromium, "#relays"), "the button to disappear")


async def test_a_viewer_sees_who_is_logged_in_and_all_causes_but_nothing_to_change(
    stage: Stage, chromium: webdriver.Chrome, tmp_path: Path
) -> None:
    tokens, values = tmp_path / "tokens.toml", {"vic": "9a6d20f7e1b84c53", "ada": "4be1c07a9d35f268"}
    roles = {"vic": "viewer", "ada": "operator"}
    lines = (f'[tokens.{name}]\nrole = "{roles[name]}"\ntoken = "{value}"\n' for name, value in values.items())
    write(tokens, "".join(lines))
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown")
    worker = await stage.run(HTTP_TOKENS_FILE=str(tokens), SECRET_KEY="c3a5f0917be4d826")
    await stage.rabbit.publish(*(job(f"u{number}@example.com") for number in range(3)))
    await until(lambda: _has_depth(stage, f"{stage.rabbit.prefix}.dead", 3), "three dead letters")
    await stage.relay.stop()
    await stage.rabbit.publish(job())
    await worker.wait_log("circuit breaker open")
    page = f"http://127.0.0.1:{worker.port}"
    for (name, role), (width, scheme) in itertools.product(roles.items(), ONCE):
        visit(chromium, f"{page}/dead", width, scheme)
        chromium.find_element(By.NAME, "token").send_keys(f"{values[name]}\n")
        wait(lambda name=name, role=role: f"{name} ({role})" in text(chromium, "nav"), "the session")
        assert "550 5.1.1 mailbox unknown" in text(chromium, "main")
        assert ("Send again" in text(chromium, "main")) == (role == "operator")
        fits(chromium)
        visit(chromium, f"{page}/", width, scheme)
        wait(lambda: "The next probe" in text(chromium, "#relays") or "is running" in text(chromium, "#relays"), "it")
        assert f"{name} ({role})" in text(chromium, "nav")
        assert ("Probe now" in text(chromium, "#relays")) == (role == "operator")
        assert not chromium.find_element(By.CSS_SELECTOR, "#relays input[name=token]").is_displayed()
        fits(chromium)
        chromium.find_element(By.CSS_SELECTOR, "form[action=logout] button").click()
        wait(lambda name=name: name not in text(chromium, "nav"), "the end of the session")
    assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


async def _has_depth(stage: Stage, queue: str, count: int) -> bool:
    return await stage.rabbit.depth(queue) == count


def text(browser: webdriver.Chrome, selector: str) -> str:
    # in one call: the page may replace its parts between two
    return browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)


def wait(condition: Any, what: str, timeout: float = 40) -> None:
    ends = deadline(timeout)
    while not condition():
        assert time.monotonic() < ends, f"no {what} within {limit(timeout)} s"
        time.sleep(0.05)


async def test_the_inbox_shows_an_email_as_its_recipient_sees_it(chromium: webdriver.Chrome, demo: Worker) -> None:
    for width, scheme in VIEWPORTS:
        visit(chromium, f"http://127.0.0.1:{demo.port}/inbox?id=1", width, scheme)
        assert not chromium.execute_script("return document.documentElement.scrollWidth > innerWidth")
        chromium.switch_to.frame(chromium.find_element(By.TAG_NAME, "iframe"))
        assert text(chromium, "h1") == "Your Example code"
        assert text(chromium, ".code") == "480213"
        assert (lightness(chromium) > 200) == (scheme == "light")
        assert not chromium.execute_script("return document.documentElement.scrollWidth > innerWidth")
        chromium.switch_to.default_content()
    assert hosts(chromium) == {"127.0.0.1"}


async def test_the_inbox_lists_new_emails_and_keeps_the_one_being_read(
    chromium: webdriver.Chrome, demo: Worker
) -> None:
    port = int(re.findall(r"SMTP_PORT\W+(\d+)", demo.log, re.IGNORECASE)[0])

    def receive(*subjects: str) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as smtp:
            for subject in subjects:
                smtp.sendmail("a@example.com", "b@example.com", f"Subject: {subject}\r\n\r\nhello\r\n")

    def listed(subject: str) -> bool:
        return text(chromium, ".list").startswith(subject)

    visit(chromium, f"http://127.0.0.1:{demo.port}/inbox", 1280, "light")
    chromium.execute_script("window.loaded = true")
    receive("first")
    wait(lambda: text(chromium, ".mail h1") == "first", "the newest mail")
    chromium.execute_script("document.querySelector('.mail details').open = true")
    receive("second")
    wait(lambda: listed("second"), "the second mail in the list")
    assert text(chromium, ".mail h1") == "first"
    assert text(chromium, ".list [aria-current]").startswith("first")
    assert chromium.execute_script("return document.querySelector('.mail details').open")
    assert chromium.execute_script("return window.loaded")
    chromium.find_element(By.CSS_SELECTOR, ".list a:nth-child(2)").click()
    wait(lambda: "id=" in chromium.current_url, "the chosen mail")
    wait(lambda: chromium.execute_script("return document.readyState") == "complete", "the whole page")
    chromium.execute_script("window.loaded = true; window.frame = document.querySelector('iframe')")
    receive(*(f"more {number}" for number in range(40)))
    wait(lambda: listed("more 39"), "all in the list")
    chromium.execute_script("document.querySelector('.list').scrollTop = 300")
    link = "return document.querySelector('.list a:nth-child(12)').getBoundingClientRect().top"
    place = chromium.execute_script(link)
    receive("last")
    wait(lambda: listed("last"), "the last in the list")
    assert abs(chromium.execute_script(link.replace("12", "13")) - place) < 1
    assert text(chromium, ".mail h1") == "first"
    assert chromium.execute_script("return window.loaded && window.frame === document.querySelector('iframe')")
    assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


async def test_the_tables_show_admissions_limits_and_that_workers_do_not_share_state(
    stage: Stage, chromium: webdriver.Chrome
) -> None:
    worker = await stage.run(RECIPIENT_LIMIT="1/1h", TENANT_LIMIT="9/1h", SUPERSEDE="latest")
    await stage.rabbit.publish(*(job(ADDRESS, jobId=f"j-{number}") for number in range(3)))
    await stage.rabbit.dead(2)
    await stage.run()
    await until(lambda: _sees_consumers(worker, 2), "the other worker's consumer")
    for width, scheme in ONCE:
        visit(chromium, f"http://127.0.0.1:{worker.port}/", width, scheme)
        assert not chromium.execute_script("return document.documentElement.scrollWidth > innerWidth")
    assert text(chromium, ".tables .figures dd") == "in memory"
    assert text(chromium, ".admissions").split("\n") == ["admitted 1 33.3 %", "throttled recipient 2 66.7 %"]
    wait(lambda: "sent 1" in text(chromium, ".sizes"), "the sent record")
    assert "recipient 1/1h 1" in text(chromium, ".sizes")
    assert text(chromium, "table.throttled tbody th").startswith("recipient ")
    assert text(chromium, "table.throttled tbody td") == "2"
    assert "Set REDIS_URL" in text(chromium, ".tables .note")
    assert ADDRESS not in chromium.page_source
    assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


async def _sees_consumers(worker: Worker, count: int) -> bool:
    await worker.get("/readyz")  # refreshes the figures of the broker if they are old
    rows = [line for line in (await worker.get("/metrics"))[1].splitlines() if line.startswith("otp_queue_consumers{")]
    return max((float(row.rpartition(" ")[2]) for row in rows), default=0) == count


def test_a_long_word_does_not_make_an_email_wider_than_the_screen(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    command = ("templates", "preview", "otp", "--format", "html", "--out", "mail.html", "--data")
    long = {"BRAND_NAME": "W" * 60, "BRAND_SUPPORT": f"https://example.com/{'w' * 60}", "BRAND_FOOTER": "W" * 80}
    assert here(tmp_path, *command, f"userName={'W' * 100}", **long).code == 0
    resize(chromium, 320, 600)
    chromium.get((tmp_path / "mail.html").as_uri())
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 320
